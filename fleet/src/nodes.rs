//! Clusters with real nodes: kubelets, containers, the cluster's own DNS and load balancers, each
//! node in namespaces of its own, all of them on one WAN.

mod control;
mod images;
pub mod init;
pub mod load_balancer;
mod machine;
mod manifests;
mod remains;
mod site;

pub use control::Control;
pub(crate) use images::workloads;
pub use images::{HELLO, INTEROP, TOOLS};
pub use machine::Machine;
pub(crate) use remains::{MARK, clean};
pub use remains::{Remains, memory, remains, shell};
pub use site::{PODS, SERVICES, SITES, Site};

use crate::home::Home;
use crate::netns::Netns;
use crate::parts::NodeParts;
use crate::pods::{PodCluster, Pods, reason};
use crate::process::Process;
use crate::{apiserver, objects};
use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long a cluster may take until its nodes are ready and its DNS answers.
const UP_MAX: Duration = Duration::from_secs(180);

/// All clusters; taken down when dropped, unless they are left.
pub struct Nodes {
    // Dropped in this order: nodes and programs first, then namespaces, then files.
    pub clusters: BTreeMap<&'static str, NodeCluster>,
    pub wan: Netns,
    parts: NodeParts,
    /// Tars that every node is given.
    images: Vec<PathBuf>,
    /// As scenarios on pods see it.
    pub pods: Pods,
    pub home: Home,
}

/// One cluster.
pub struct NodeCluster {
    pub site: Site,
    pub machines: Vec<Machine>,
    load_balancer: Process,
    pub control: Control,
}

impl Nodes {
    /// Starts all clusters; [`Self::ready`] waits for them.
    pub fn start(home: Home, wan: Netns, parts: NodeParts, sites: &[Site]) -> Result<Self> {
        let folder = remains::disk(&home.prefix).join("images");
        let images = images::write(&parts, &home.parts.own.program, &folder)?;
        // What an operator's shell finds on its PATH.
        let link = home.run.join("bin/kubectl");
        std::os::unix::fs::symlink(&parts.kubectl, &link)
            .with_context(|| format!("linking {}", link.display()))?;
        let clusters = sites
            .iter()
            .map(|site| Ok((site.name, NodeCluster::start(*site, &home, &parts, &wan)?)))
            .collect::<Result<BTreeMap<_, _>>>()?;
        let all: Vec<_> = clusters.values().map(|c| (c.site.name, &c.control.api)).collect();
        std::fs::write(home.operator(), apiserver::operator_kubeconfig(&all))?;
        let seen = clusters.values().map(|c| (c.site.name, c.seen())).collect();
        let pods = Pods {
            clusters: seen,
            isthmus: home.parts.isthmus.clone(),
            operator: home.operator(),
            run: home.run.clone(),
            kubectl: parts.kubectl.clone(),
        };
        Ok(Self { clusters, wan, parts, images, pods, home })
    }

    /// Waits until every node is ready and every cluster's DNS answers; `tell` hears of each step.
    /// The first cluster that cannot come up ends it.
    pub async fn ready(&self, tell: impl Fn(&str) + Sync) -> Result<()> {
        let all = self.clusters.values();
        let all = all.map(|cluster| cluster.ready(&self.parts, &self.images, &tell));
        futures::future::try_join_all(all).await.map(|_| ())
    }

    pub fn cluster(&self, name: &str) -> &NodeCluster {
        &self.clusters[name]
    }

    /// Memory of all processes of the fleet, in bytes: the sum of what each has of its own and its
    /// part of what they share (Pss).
    pub fn memory(&self) -> Result<u64> {
        memory(&self.home.prefix)
    }

    /// Leaves everything running; [`crate::clean`] takes it down.
    pub fn leave(mut self) -> Result<()> {
        self.home.leave()?;
        // What would be dropped would be ended.
        std::mem::forget(self);
        Ok(())
    }
}

impl NodeCluster {
    fn start(site: Site, home: &Home, parts: &NodeParts, wan: &Netns) -> Result<Self> {
        let control = Control::start(site, home, parts, wan)?;
        let machines = (1..=site.nodes)
            .map(|number| Machine::start(site, number, &control, home, parts, wan))
            .collect::<Result<Vec<_>>>()?;
        let load_balancer = load_balancer::job(site, &control, home).start()?;
        Ok(Self { site, machines, load_balancer, control })
    }

    /// As scenarios on pods see it.
    fn seen(&self) -> PodCluster {
        let client = self.control.api.client.clone();
        PodCluster { name: self.site.name, client, balanced: self.site.balanced() }
    }

    fn client(&self) -> &kube::Client {
        &self.control.api.client
    }

    /// Waits until its nodes are ready and its DNS is.
    async fn ready(
        &self,
        parts: &NodeParts,
        images: &[PathBuf],
        tell: &(impl Fn(&str) + Sync),
    ) -> Result<()> {
        let name = self.site.name;
        let load = self.machines.iter().map(|machine| machine.import(parts, images));
        let load = async {
            futures::future::try_join_all(load).await?;
            tell(&format!("{name}: images in its nodes"));
            anyhow::Ok(())
        };
        let control = async {
            self.control.ready().await?;
            tell(&format!("{name}: API server ready"));
            for machine in &self.machines {
                machine.go()?;
            }
            objects::apply_yaml(self.client(), &manifests::dns()).await?;
            self.nodes_ready().await?;
            tell(&format!("{name}: {} ready", machine::count(self.machines.len())));
            anyhow::Ok(())
        };
        tokio::try_join!(load, control).with_context(|| format!("cluster {name}"))?;
        self.seen()
            .deployment_ready("kube-system", "coredns", UP_MAX)
            .await
            .with_context(|| format!("cluster {name}: its DNS"))?;
        tell(&format!("{name}: cluster DNS ready"));
        Ok(())
    }

    /// What has ended of what must run.
    fn check(&self) -> Result<()> {
        let machines = self.machines.iter().map(|machine| &machine.init);
        for process in machines.chain([&self.load_balancer]).chain(self.control.processes()) {
            if let Some(status) = process.ended() {
                bail!("{} ended with {status}:\n{}", process.name(), process.last_words());
            }
        }
        Ok(())
    }

    async fn nodes_ready(&self) -> Result<()> {
        let api = objects::api(self.client(), "v1", "Node", "");
        let deadline = tokio::time::Instant::now() + UP_MAX;
        for machine in &self.machines {
            loop {
                self.check()?;
                let found = api.get_opt(&machine.name).await;
                let conditions = |node: &kube::core::DynamicObject| {
                    let all = node.data["status"]["conditions"].as_array().cloned();
                    all.unwrap_or_default().into_iter().find(|c| c["type"] == "Ready")
                };
                let ready = found.as_ref().ok().and_then(|n| conditions(n.as_ref()?));
                if ready.as_ref().is_some_and(|ready| ready["status"] == "True") {
                    break;
                }
                if tokio::time::Instant::now() > deadline {
                    let said = ready.map_or_else(|| "it has not registered".into(), reason);
                    bail!("node {} is not ready: {said}\n{}", machine.name, machine.last_words());
                }
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
        Ok(())
    }
}

/// Writes text to a file, with the folders on the way to it.
fn write(path: &Path, text: impl AsRef<[u8]>) -> Result<()> {
    let folder = path.parent().context("a file lies in a folder")?;
    std::fs::create_dir_all(folder)
        .and_then(|()| std::fs::write(path, text))
        .with_context(|| format!("writing {}", path.display()))
}
