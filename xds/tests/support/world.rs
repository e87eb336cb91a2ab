//! A control plane's memory: one program, the same for every client.

use mesh::name::Identity;
use mesh::program::*;
use mesh::world::View;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use tokio::sync::watch;
use xds::node::Node;
use xds::serve::{Changed, Source};

pub(crate) struct World {
    pub(crate) program: Mutex<Program>,
    generation: watch::Sender<u64>,
    changed: Mutex<Vec<(u64, ResourceName)>>,
    pub(crate) looked_up: AtomicUsize,
}

impl World {
    pub(crate) fn new(program: Program) -> Arc<Self> {
        Arc::new(Self {
            program: Mutex::new(program),
            generation: watch::channel(1).0,
            changed: Mutex::default(),
            looked_up: AtomicUsize::new(0),
        })
    }

    pub(crate) fn edit(&self, name: &ResourceName, value: Option<Resource>) {
        let mut program = self.program.lock().unwrap();
        match value {
            Some(value) => program.insert(name.clone(), Arc::new(value)),
            None => program.remove(name),
        };
        let next = *self.generation.borrow() + 1;
        self.changed.lock().unwrap().push((next, name.clone()));
        drop(program);
        self.generation.send_replace(next);
    }
}

impl Source for World {
    fn view(&self, peer: &Identity, node: &Node) -> Result<View, String> {
        if node.account != peer.account || node.namespace != peer.namespace {
            return Err(format!("ISM3999 {} is not {}", node.pod, peer));
        }
        Ok(View {
            role: node.role,
            dialect: node.dialect,
            cluster: node.cluster.parse().map_err(|_| "ISM3999 no cluster".to_owned())?,
            network: "net".parse().unwrap(),
            locality: node.locality.clone(),
            namespace: node.namespace.clone(),
            identity: peer.clone(),
            workload: node.pod.clone(),
        })
    }

    fn resource(&self, _: &View, name: &ResourceName) -> Option<Arc<Resource>> {
        self.looked_up.fetch_add(1, Ordering::Relaxed);
        self.program.lock().unwrap().get(name).cloned()
    }

    fn names(&self, _: &View, kind: ResourceKind) -> Vec<ResourceName> {
        let program = self.program.lock().unwrap();
        program.keys().filter(|name| name.kind == kind).cloned().collect()
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.generation.subscribe()
    }

    fn changed_since(&self, generation: u64) -> Changed {
        let changed = self.changed.lock().unwrap();
        let since = changed.iter().filter(|(at, _)| *at > generation);
        Changed::Names(Arc::new(since.map(|(_, name)| name.clone()).collect()))
    }
}
