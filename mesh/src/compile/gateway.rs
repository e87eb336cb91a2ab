//! What an east-west gateway opens: exact names of exported services, and own ready meshed pods behind.

use super::horizon::{Viewpoint, groups};
use super::outbound::{own, plain, viewpoint};
use crate::export::{ExportedService, export, host_forms};
use crate::inventory::ServicePort;
use crate::name::{Hostname, ServiceName};
use crate::program::{
    ClusterName, Direction, Endpoints, GatewayListener, Listener, Resource, ResourceKind,
    ResourceName,
};
use crate::sni::{Sni, probe_host};
use crate::world::{View, World, local_service};
use std::collections::BTreeMap;

/// Every exported service by port, subset and host form; nothing else, no default.
pub(super) fn listener(world: &World) -> Resource {
    let cluster = &world.own.mesh.cluster;
    let mut routes = BTreeMap::new();
    for service in opened(world) {
        for (port, subset) in doors(&service) {
            let canonical = canonical(&service.name, port, &subset);
            for host in host_forms(&service.name, cluster) {
                let sni = Sni { port, subset: subset.clone(), host };
                routes.insert(sni, canonical.clone());
            }
        }
    }
    Resource::Listener(Listener::Gateway(GatewayListener { routes, probe: probe_host(cluster) }))
}

/// The one cluster behind all host forms: named after `svc.cluster.local`.
fn canonical(name: &ServiceName, port: u16, subset: &str) -> ClusterName {
    ClusterName::sni(&Sni { port, subset: subset.into(), host: name.local_host() })
}

/// A service's ports, each whole and by subset.
fn doors(service: &ExportedService) -> Vec<(u16, String)> {
    let subsets = || std::iter::once(String::new()).chain(service.subsets.keys().cloned());
    let ports = service.ports.iter().map(|port| port.number);
    ports.flat_map(|port| subsets().map(move |subset| (port, subset))).collect()
}

fn opened(world: &World) -> impl Iterator<Item = ExportedService> {
    let exported = world.own.service_exports.iter().filter(|name| opens(world, name));
    exported.filter_map(|name| export(&world.own, name))
}

/// Istio's AUTO_PASSTHROUGH servers, where there are any, say which exported services are open: one
/// that matches any of a service's host forms opens all of them.
pub(crate) fn opens(world: &World, name: &ServiceName) -> bool {
    let servers = &world.own.passthrough_hosts;
    let forms = host_forms(name, &world.own.mesh.cluster);
    let matching = |pattern: &str| forms.iter().any(|form| matches(pattern, form));
    servers.is_empty()
        || servers.iter().flat_map(|server| &server.hosts).any(|pattern| matching(pattern))
}

/// `*`, `*.suffix`, or the host itself; a `NAMESPACE/` before it is Istio's and names importers.
fn matches(pattern: &str, host: &Hostname) -> bool {
    let pattern = pattern.rsplit('/').next().unwrap_or(pattern).to_ascii_lowercase();
    match pattern.strip_prefix('*') {
        Some(suffix) => host.as_str().ends_with(suffix),
        None => host.as_str() == pattern,
    }
}

/// The exported service, port and subset a gateway's cluster name means.
fn named(world: &World, name: &ClusterName) -> Option<(ServiceName, ServicePort)> {
    if name.direction != Direction::SniDnat {
        return None;
    }
    let service = local_service(&name.host).filter(|name| opens(world, name))?;
    let exported = export(&world.own, &service)?;
    let port = exported.ports.iter().find(|port| port.number == name.port)?;
    if !name.subset.is_empty() && !exported.subsets.contains_key(&name.subset) {
        return None;
    }
    let port =
        ServicePort { number: port.number, protocol: port.protocol, name: port.name.clone() };
    Some((service, port))
}

/// Bytes go through as they are: no TLS of the gateway's own, so nobody it would have to know.
pub(super) fn cluster(world: &World, name: &ClusterName) -> Option<Resource> {
    named(world, name)?;
    Some(Resource::Cluster(plain(name.clone())))
}

/// Ready, meshed pods of this cluster, never another gateway. `tls` stays true on them: whoever is
/// not meshed is not behind a gateway, and the client's own TLS passes through.
pub(super) fn endpoints(world: &World, view: &View, name: &ClusterName) -> Option<Resource> {
    let (service, port) = named(world, name)?;
    let labels = export(&world.own, &service)?.subsets.remove(&name.subset).unwrap_or_default();
    let behind = own(world, &service, &port, |copy| {
        copy.meshed && crate::export::selects(&labels, &copy.labels)
    });
    let service = world.own.services.get(&service);
    let distribution = service.and_then(|service| service.traffic_distribution);
    // A gateway's own network is its cluster's, whatever it says of itself.
    let from = Viewpoint { network: &world.own.mesh.network, ..viewpoint(world, view) };
    let groups = groups(from, &behind, distribution);
    Some(Resource::Endpoints(Endpoints { cluster: name.clone(), groups }))
}

pub(super) fn names(world: &World, kind: ResourceKind) -> Vec<ResourceName> {
    let clusters = opened(world).flat_map(|service| {
        let name = |(port, subset): (u16, String)| canonical(&service.name, port, &subset);
        doors(&service).into_iter().map(name).collect::<Vec<_>>()
    });
    clusters.map(|cluster| ResourceName::new(kind, cluster.to_string())).collect()
}
