//! What may be shown of what has arrived: nothing before what it refers to (make before break).

use mesh::program::{
    ClusterName, Direction, GatewayListener, Listener, OutboundTarget, Program, Resource,
    ResourceKind, ResourceName,
};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Roots are wanted by somebody; the rest follows from what they refer to. A resource is shown
/// when all it leads to is here or known to be absent; until then what it replaces stays, along
/// with all that leads to. A gateway's listener is shown at once, but of its routes only those
/// whose clusters are ready.
#[derive(Debug, Default)]
pub(super) struct Warming {
    roots: BTreeSet<ResourceName>,
    /// The latest of everything subscribed to.
    arrived: Program,
    absent: BTreeSet<ResourceName>,
    shown: Program,
    /// Subscribed to: all that roots lead to, by what arrived and by what is still shown.
    wanted: BTreeSet<ResourceName>,
}

/// What to tell the server.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Wishes {
    pub(super) subscribe: Vec<ResourceName>,
    pub(super) unsubscribe: Vec<ResourceName>,
}

impl Warming {
    /// Begins with what was known before; what nothing else refers to was wanted by somebody.
    pub(super) fn from_known(known: Program) -> Self {
        let referred: BTreeSet<ResourceName> =
            known.values().flat_map(|resource| leads_to(resource)).collect();
        let roots = known.keys().filter(|name| !referred.contains(*name)).cloned().collect();
        let wanted = known.keys().cloned().collect();
        Self { roots, arrived: known.clone(), absent: BTreeSet::new(), shown: known, wanted }
    }

    pub(super) fn want(&mut self, name: ResourceName) {
        self.roots.insert(name);
    }

    pub(super) fn unwant(&mut self, name: &ResourceName) {
        self.roots.remove(name);
    }

    pub(super) fn take(&mut self, name: ResourceName, resource: Resource) {
        self.absent.remove(&name);
        self.arrived.insert(name, Arc::new(resource));
    }

    pub(super) fn remove(&mut self, name: ResourceName) {
        self.arrived.remove(&name);
        self.shown.remove(&name);
        self.absent.insert(name);
    }

    pub(super) fn shown(&self) -> &Program {
        &self.shown
    }

    pub(super) fn absent(&self) -> &BTreeSet<ResourceName> {
        &self.absent
    }

    /// Shows what is ready and works out what to ask for.
    pub(super) fn settle(&mut self) -> Wishes {
        let mut shown = Program::new();
        let mut wanted = BTreeSet::new();
        for root in &self.roots {
            self.show(root, &mut shown);
            self.reach(root, &mut wanted);
        }
        // What is still shown needs what it leads to, even where its successor does not.
        for resource in shown.values() {
            for name in leads_to(resource) {
                self.reach(&name, &mut wanted);
            }
        }
        let wishes = Wishes {
            subscribe: wanted.difference(&self.wanted).cloned().collect(),
            unsubscribe: self.wanted.difference(&wanted).cloned().collect(),
        };
        for name in &wishes.unsubscribe {
            self.arrived.remove(name);
            self.absent.remove(name);
        }
        self.shown = shown;
        self.wanted = wanted;
        wishes
    }

    /// All that `name` leads to, itself included, by what arrived.
    fn reach(&self, name: &ResourceName, wanted: &mut BTreeSet<ResourceName>) {
        if !wanted.insert(name.clone()) {
            return;
        }
        if let Some(resource) = self.arrived.get(name) {
            for next in leads_to(resource) {
                self.reach(&next, wanted);
            }
        }
    }

    fn show(&self, name: &ResourceName, shown: &mut Program) {
        if shown.contains_key(name) {
            return;
        }
        let before = self.shown.get(name);
        let now = match self.arrived.get(name) {
            Some(resource) => match &**resource {
                Resource::Listener(Listener::Gateway(gateway)) => {
                    Some(self.show_gateway(resource, gateway, before))
                }
                Resource::Listener(_)
                | Resource::Route(_)
                | Resource::Cluster(_)
                | Resource::Endpoints(_)
                | Resource::Secret(_)
                | Resource::Zone(_) => {
                    let ready = leads_to(resource).iter().all(|next| self.ready(next));
                    if ready { Some(Arc::clone(resource)) } else { before.cloned() }
                }
            },
            None => before.cloned(),
        };
        let Some(now) = now else { return };
        let next = leads_to(&now);
        shown.insert(name.clone(), now);
        for name in &next {
            self.show(name, shown);
        }
    }

    /// Here with all it leads to, or known not to exist.
    fn ready(&self, name: &ResourceName) -> bool {
        match self.arrived.get(name) {
            Some(resource) => leads_to(resource).iter().all(|next| self.ready(next)),
            None => self.absent.contains(name),
        }
    }

    /// One new service does not hold back the news about all others.
    fn show_gateway(
        &self,
        resource: &Arc<Resource>,
        gateway: &GatewayListener,
        before: Option<&Arc<Resource>>,
    ) -> Arc<Resource> {
        let before = match before.map(|before| &**before) {
            Some(Resource::Listener(Listener::Gateway(before))) => Some(&before.routes),
            _ => None,
        };
        let routes = gateway.routes.iter().filter_map(|(sni, cluster)| {
            if self.ready(&cluster_name(cluster)) {
                return Some((sni.clone(), cluster.clone()));
            }
            let before = before?.get(sni)?;
            Some((sni.clone(), before.clone()))
        });
        let routes = routes.collect();
        if routes == gateway.routes {
            return Arc::clone(resource);
        }
        let probe = gateway.probe.clone();
        Arc::new(Resource::Listener(Listener::Gateway(GatewayListener { routes, probe })))
    }
}

fn cluster_name(cluster: &ClusterName) -> ResourceName {
    ResourceName::new(ResourceKind::Cluster, cluster.to_string())
}

/// What a resource refers to directly.
fn leads_to(resource: &Resource) -> Vec<ResourceName> {
    match resource {
        Resource::Listener(Listener::Outbound(outbound)) => match &outbound.target {
            OutboundTarget::Http { route } => vec![ResourceName::new(ResourceKind::Route, route)],
            OutboundTarget::Tcp { cluster } => vec![cluster_name(cluster)],
            OutboundTarget::Auto { route, cluster } => {
                vec![ResourceName::new(ResourceKind::Route, route), cluster_name(cluster)]
            }
        },
        Resource::Listener(Listener::Gateway(gateway)) => {
            gateway.routes.values().map(cluster_name).collect()
        }
        Resource::Route(route) => vec![cluster_name(&route.cluster)],
        Resource::Cluster(cluster) => match cluster.name.direction {
            Direction::Outbound | Direction::SniDnat => {
                vec![ResourceName::new(ResourceKind::Endpoints, cluster.name.to_string())]
            }
            // The process behind the listener.
            Direction::Inbound => Vec::new(),
        },
        Resource::Listener(Listener::Inbound(_))
        | Resource::Endpoints(_)
        | Resource::Secret(_)
        | Resource::Zone(_) => Vec::new(),
    }
}
