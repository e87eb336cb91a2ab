//! What one client runs: `resource(&World, &View, &Name)`, and its closure over names.

mod affected;
mod cache;
mod gateway;
pub mod horizon;
pub(crate) mod inbound;
pub(crate) mod outbound;
mod proxyless;

pub use affected::{Affected, affected};
pub use cache::Cache;

use crate::inventory::{TrafficDistribution, WorkloadName};
use crate::name::{Locality, Network};
use crate::program::{
    ClusterName, Direction, Program, Resource, ResourceKind, ResourceName, ValidationContext,
};
use crate::world::{Dialect, Role, View, World};
use std::sync::Arc;

/// One resource as this client is to see it; `None` where it does not exist for it.
pub fn resource(world: &World, view: &View, name: &ResourceName) -> Option<Arc<Resource>> {
    let gateway = view.role == Role::Gateway;
    let made = match name.kind {
        ResourceKind::Listener if *name == ResourceName::gateway() => {
            gateway.then(|| gateway::listener(world))
        }
        ResourceKind::Listener if gateway => None,
        ResourceKind::Listener if view.dialect == Dialect::Grpc => {
            proxyless::listener(world, &name.name)
        }
        ResourceKind::Listener if *name == ResourceName::inbound() => {
            inbound::listener(world, view)
        }
        ResourceKind::Listener => outbound::listener(world, &name.name),
        ResourceKind::Route if gateway => None,
        ResourceKind::Route => outbound::route(world, &name.name),
        ResourceKind::Cluster => {
            let cluster = cluster_name(name)?;
            match cluster.direction {
                Direction::SniDnat if gateway => gateway::cluster(world, &cluster),
                Direction::Outbound if !gateway => outbound::cluster(world, view, &cluster),
                Direction::Inbound if !gateway => inbound::cluster(cluster),
                Direction::SniDnat | Direction::Outbound | Direction::Inbound => None,
            }
        }
        ResourceKind::Endpoints => {
            let cluster = cluster_name(name)?;
            match cluster.direction {
                Direction::SniDnat if gateway => gateway::endpoints(world, view, &cluster),
                Direction::Outbound if !gateway => outbound::endpoints(world, view, &cluster),
                Direction::SniDnat | Direction::Outbound | Direction::Inbound => None,
            }
        }
        ResourceKind::Secret => (*name == ResourceName::root_ca()).then(|| {
            Resource::Secret(ValidationContext {
                name: name.name.clone(),
                root_certificates: world.own.mesh.root_certificates.clone(),
            })
        }),
        ResourceKind::Zone => (*name == ResourceName::zone() && !gateway)
            .then(|| Resource::Zone(crate::zone::zone(&world.own, world.all_links_complete()))),
    };
    made.map(Arc::new)
}

/// The name, where it is written as we write it: one cluster has one name.
fn cluster_name(name: &ResourceName) -> Option<ClusterName> {
    name.name.parse().ok().filter(|cluster: &ClusterName| cluster.to_string() == name.name)
}

/// All names of a kind this client may ask for, for wildcard subscriptions (Envoy's dialect, and
/// the gateway's clusters).
pub fn names(world: &World, view: &View, kind: ResourceKind) -> Vec<ResourceName> {
    let gateway = view.role == Role::Gateway;
    match kind {
        ResourceKind::Listener if view.dialect == Dialect::Grpc && !gateway => {
            proxyless::names(world)
        }
        // Its names and its certificates are files and the cluster's DNS.
        ResourceKind::Secret | ResourceKind::Zone if view.dialect == Dialect::Grpc => Vec::new(),
        ResourceKind::Secret => vec![ResourceName::root_ca()],
        ResourceKind::Zone if gateway => Vec::new(),
        ResourceKind::Zone => vec![ResourceName::zone()],
        ResourceKind::Listener if gateway => vec![ResourceName::gateway()],
        ResourceKind::Cluster | ResourceKind::Endpoints if gateway => gateway::names(world, kind),
        ResourceKind::Route if gateway => Vec::new(),
        ResourceKind::Listener => {
            let inbound = ResourceName::inbound();
            let known = inbound::listener(world, view).is_some();
            let mut names = outbound::names(world, view, kind);
            names.extend(known.then_some(inbound));
            names
        }
        ResourceKind::Cluster => {
            let mut names = outbound::names(world, view, kind);
            // Our own proxies reach their workload without one.
            let foreign = view.dialect == Dialect::Envoy;
            names.extend(
                foreign.then(|| ResourceName::new(kind, ClusterName::inbound(0).to_string())),
            );
            names
        }
        ResourceKind::Route | ResourceKind::Endpoints => outbound::names(world, view, kind),
    }
}

/// The closure of [`resource`] over [`names`].
pub fn compile(world: &World, view: &View) -> Program {
    let kinds = [
        ResourceKind::Secret,
        ResourceKind::Cluster,
        ResourceKind::Endpoints,
        ResourceKind::Listener,
        ResourceKind::Route,
        ResourceKind::Zone,
    ];
    let names = kinds.into_iter().flat_map(|kind| names(world, view, kind));
    names.filter_map(|name| Some((name.clone(), resource(world, view, &name)?))).collect()
}

/// The part of a View that a resource reads, as a cache key: two views with equal parts get equal
/// resources. What a resource does not read is `None`.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ViewPart {
    /// Gateways and the others see different resources under any name.
    pub gateway: bool,
    /// So do gRPC clients that are their own proxy.
    pub proxyless: bool,
    pub network: Option<Network>,
    pub locality: Option<Locality>,
    /// Where the service prefers its callers' node.
    pub node: Option<String>,
    /// Where a rule of the client's namespace is on this host.
    pub namespace: Option<String>,
    /// The pod itself.
    pub workload: Option<WorkloadName>,
}

/// What [`resource`] reads of `view` for this name.
pub fn view_part(world: &World, view: &View, name: &ResourceName) -> ViewPart {
    let mut part = ViewPart {
        gateway: view.role == Role::Gateway,
        proxyless: view.dialect == Dialect::Grpc,
        ..ViewPart::default()
    };
    match name.kind {
        ResourceKind::Listener => {
            if *name == ResourceName::inbound() {
                part.workload = Some(WorkloadName {
                    namespace: view.namespace.clone(),
                    name: view.workload.clone(),
                });
            }
        }
        ResourceKind::Cluster => part.namespace = ruling_namespace(world, view, name),
        ResourceKind::Endpoints => {
            part.namespace = ruling_namespace(world, view, name);
            part.network = (!part.gateway).then(|| view.network.clone());
            part.locality = Some(view.locality.clone());
            if near_node(world, name) {
                part.node = Some(world.node(&view.namespace, &view.workload).to_owned());
            }
        }
        ResourceKind::Route | ResourceKind::Secret | ResourceKind::Zone => {}
    }
    part
}

fn ruling_namespace(world: &World, view: &View, name: &ResourceName) -> Option<String> {
    let target = world.target(&host_of(&name.name).parse().ok()?)?;
    world.rule_depends_on(&target, &view.namespace).then(|| view.namespace.clone())
}

fn near_node(world: &World, name: &ResourceName) -> bool {
    let target = host_of(&name.name).parse().ok().and_then(|host| world.target(&host));
    let distribution = target.and_then(|target| outbound::distribution(world, &target));
    distribution == Some(TrafficDistribution::PreferSameNode)
}

/// The host at the end of a cluster's name, in both ways of writing it.
fn host_of(name: &str) -> &str {
    match name.rsplit_once('|') {
        Some((_, host)) => host,
        None => name.rsplit_once("_.").map_or(name, |(_, host)| host),
    }
}

#[cfg(test)]
mod tests;
