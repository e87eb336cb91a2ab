//! What a gRPC client without a proxy may dial: targets by `HOST:PORT`, and of their endpoints those
//! that one transport reaches.

use super::outbound::{carried, is_external_name};
use crate::name::{ClusterId, Hostname, Identity};
use crate::program::{
    ClusterName, Listener, LocalityGroup, OutboundListener, OutboundTarget, Resource, ResourceKind,
    ResourceName,
};
use crate::world::World;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// `HOST:PORT`, as a client writes after `xds:///`: by any name of a port that may speak HTTP.
pub(super) fn listener(world: &World, name: &str) -> Option<Resource> {
    let (host, number) = name.rsplit_once(':')?;
    let host: Hostname = host.parse().ok()?;
    let target = world.target(&host)?;
    if is_external_name(&target) {
        return None;
    }
    let port = carried(target.ports, number.parse().ok()?)?;
    // One way of writing it: no other case, no leading zeros. A port that does not say that it speaks
    // HTTP hands a gRPC client's own TLS to the application, where it is permissive.
    if listener_name(&host, port.number).name != name || !port.protocol.is_http() {
        return None;
    }
    let cluster = ClusterName::outbound(port.number, "", target.host);
    // A gRPC client reads none; a headless service has none.
    let address = target.addresses.first().copied();
    let address = address.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
    Some(Resource::Listener(Listener::Outbound(OutboundListener {
        address: SocketAddr::new(address, port.number),
        host: target.host.clone(),
        target: OutboundTarget::Http { route: cluster.to_string() },
    })))
}

fn listener_name(host: &Hostname, port: u16) -> ResourceName {
    ResourceName::new(ResourceKind::Listener, format!("{host}:{port}"))
}

/// All of them, by each target's first name.
pub(super) fn names(world: &World) -> Vec<ResourceName> {
    let mut names = BTreeSet::new();
    for target in world.targets().filter(|target| !is_external_name(target)) {
        let ports = target.ports.iter().map(|port| port.number);
        names.extend(ports.map(|port| listener_name(target.host, port)));
    }
    names.into_iter().filter(|name| listener(world, &name.name).is_some()).collect()
}

/// The endpoints of the own network, in their order. A gateway is no place for them: it wants one of
/// the mesh's ALPN names, and gRPC offers `h2` only. Where any cluster has identities all
/// connections are mutual TLS, so that only endpoints of these clusters can answer; a cluster's
/// transport is one for all its endpoints, and none of them is called in plaintext by mistake.
pub(super) fn reachable(
    groups: Vec<LocalityGroup>,
    identities: &BTreeMap<ClusterId, BTreeSet<Identity>>,
) -> Vec<LocalityGroup> {
    let mutual = !identities.is_empty();
    let mut kept: Vec<LocalityGroup> = Vec::new();
    // gRPC refuses an assignment that has an address twice.
    let mut seen = BTreeSet::new();
    for mut group in groups {
        group.endpoints.retain(|endpoint| {
            let proven = endpoint.tls && identities.contains_key(&endpoint.cluster);
            let reached = !endpoint.gateway && if mutual { proven } else { !endpoint.tls };
            reached && seen.insert(endpoint.address)
        });
        if group.endpoints.is_empty() {
            continue;
        }
        let weights = group.endpoints.iter().map(|endpoint| endpoint.weight);
        group.weight = weights.fold(0, u32::saturating_add);
        kept.push(group);
    }
    // gRPC refuses gaps between priorities (gRFC A27).
    let priorities: BTreeSet<u32> = kept.iter().map(|group| group.priority).collect();
    for group in &mut kept {
        let before = priorities.range(..group.priority).count();
        group.priority = u32::try_from(before).expect("fewer priorities than groups");
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::program::LbEndpoint;

    fn endpoint(address: u8, cluster: &str, tls: bool, gateway: bool) -> LbEndpoint {
        LbEndpoint {
            address: SocketAddr::from(([10, 244, 0, address], 8080)),
            cluster: cluster.parse().unwrap(),
            network: "net".parse().unwrap(),
            weight: 3,
            tls,
            gateway,
            workload: String::new(),
        }
    }

    fn group(priority: u32, endpoints: Vec<LbEndpoint>) -> LocalityGroup {
        LocalityGroup { priority, locality: Default::default(), weight: 99, endpoints }
    }

    fn who(cluster: &str) -> BTreeMap<ClusterId, BTreeSet<Identity>> {
        let identity = format!("spiffe://{cluster}.mesh/ns/shop/sa/hello").parse().unwrap();
        BTreeMap::from([(cluster.parse().unwrap(), BTreeSet::from([identity]))])
    }

    #[test]
    fn gateways_plaintext_beside_mutual_tls_and_strangers_are_left_out() {
        let groups = vec![
            group(0, vec![endpoint(1, "east", false, false)]),
            group(1, vec![endpoint(2, "east", true, false), endpoint(3, "south", true, false)]),
            group(2, vec![endpoint(4, "west", true, true)]),
            // The second is announced twice.
            group(4, vec![endpoint(5, "east", true, false), endpoint(2, "east", true, false)]),
        ];
        let kept = reachable(groups, &who("east"));
        let seen: Vec<_> = kept
            .iter()
            .map(|group| (group.priority, group.weight, group.endpoints.len()))
            .collect();
        assert_eq!(seen, [(0, 3, 1), (1, 3, 1)]);
        let all = kept.iter().flat_map(|group| &group.endpoints);
        assert!(all.clone().all(|it| it.tls && !it.gateway && it.cluster.as_str() == "east"));
    }

    #[test]
    fn without_identities_only_plaintext_is_left() {
        let groups = vec![group(
            0,
            vec![endpoint(1, "east", false, false), endpoint(2, "east", true, false)],
        )];
        let kept = reachable(groups, &BTreeMap::new());
        assert_eq!(kept.len(), 1);
        assert!(kept[0].endpoints.iter().all(|endpoint| !endpoint.tls));
    }
}
