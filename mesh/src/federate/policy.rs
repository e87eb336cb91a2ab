//! What a link may announce here: which links count at all, which services, which gateways.

use super::finding;
use crate::export::{Exports, ImportPolicy, is_reserved};
use crate::finding::{Finding, ObjectRef, Severity};
use crate::inventory::{GatewayAddress, Inventory};
use crate::name::{Hostname, ServiceName};
use std::net::IpAddr;

/// Gateways of one cluster that are used; the rest is refused aloud. Bounds the least common
/// multiple that weights are counted in.
pub(super) const GATEWAYS_MAX: usize = 16;

/// Gateway addresses of one cluster that are looked at.
const OFFERED_MAX: usize = 64;

/// Findings about one link that are kept; a stranger writes what they quote.
pub(super) const FINDINGS_MAX: usize = 100;

/// Services one link may announce; the rest is refused aloud.
pub(super) const SERVICES_MAX: usize = 20_000;

pub(super) fn link_object(link: &Exports) -> ObjectRef {
    ObjectRef::new("ClusterLink", crate::export::ROOT_NAMESPACE, &link.link)
}

/// Links that are one cluster each, and none of them ourselves; sorted by cluster.
pub(super) fn distinct<'a>(
    own: &Inventory,
    links: &'a [Exports],
    findings: &mut Vec<Finding>,
) -> Vec<&'a Exports> {
    let incumbent = |link: &Exports| {
        let mut doors = own.remote_gateways.values();
        doors.any(|door| door.published && door.cluster.as_ref() == Some(&link.cluster))
    };
    let mut sorted: Vec<&Exports> = links.iter().collect();
    // Who is here already, then who is named as its cluster: a newcomer cannot push it out.
    sorted.sort_by_cached_key(|link| {
        (!incumbent(link), link.link != link.cluster.as_str(), link.link.clone())
    });
    let mut kept: Vec<&Exports> = Vec::new();
    for link in sorted {
        let refuse = |code, problem: String, fix: &str| {
            finding(Severity::Refused, code, link_object(link), "", problem, fix)
        };
        let known = |uid: &str| !uid.is_empty() && uid == link.uid;
        if link.cluster == own.mesh.cluster || known(&own.uid) {
            findings.push(refuse(
                3103,
                format!(
                    "link {} leads to cluster {} with uid {}, which is this cluster {} ({}) itself or \
                     bears its id; nothing is imported over it.",
                    link.link, link.cluster, link.uid, own.mesh.cluster, own.uid
                ),
                "give each cluster its own id in ConfigMap isthmus-mesh, and a kubeconfig that leads \
                 to the other cluster.",
            ));
        } else if let Some(other) = kept.iter().find(|other| other.cluster == link.cluster) {
            findings.push(refuse(
                3104,
                format!(
                    "links {} and {} both lead to a cluster called {} (uids {} and {}); only {} is used.",
                    other.link, link.link, link.cluster, other.uid, link.uid, other.link
                ),
                "rename one of the clusters in its ConfigMap isthmus-mesh, or delete one link.",
            ));
        } else if let Some(other) = kept.iter().find(|other| known(&other.uid)) {
            findings.push(refuse(
                3104,
                format!(
                    "links {} and {} lead to one and the same cluster (uid {}) under the names {} and \
                     {}; only {} is used.",
                    other.link, link.link, link.uid, other.cluster, link.cluster, other.link
                ),
                "delete the link that is not wanted.",
            ));
        } else {
            kept.push(link);
        }
    }
    kept.sort_by(|a, b| a.cluster.cmp(&b.cluster));
    kept
}

/// Whether a link may announce this service here.
pub(super) fn admits(policy: &ImportPolicy, name: &ServiceName) -> bool {
    let named = policy.namespaces.contains("*") || policy.namespaces.contains(&name.namespace);
    named && !is_reserved(name)
}

/// The addresses that may be dialled, sorted; the others are refused aloud.
pub(super) fn doors(
    own: &Inventory,
    link: &Exports,
    offered: &[GatewayAddress],
    findings: &mut Vec<Finding>,
) -> Vec<GatewayAddress> {
    let mut doors = Vec::new();
    for address in offered.iter().take(OFFERED_MAX) {
        let refusal = refusal(own, &link.import, address);
        if let Some((code, severity, why)) = refusal {
            findings.push(finding(
                severity,
                code,
                link_object(link),
                "",
                format!("gateway address {} of cluster {} {why}", echo(address), link.cluster),
                match severity {
                    Severity::Warning | Severity::Note => {
                        "see that this cluster's resolvers answer for it; it is asked again by itself."
                    }
                    Severity::Refused => {
                        "let the gateway's Service have an address that this cluster can reach, or \
                         name its range in spec.import.gatewayRanges."
                    }
                },
            ));
        }
        if refusal.is_none_or(|(_, severity, _)| severity != Severity::Refused) {
            let host = match address.socket() {
                // One way of writing one address.
                Some(socket) => socket.ip().to_string(),
                None => address.host.clone(),
            };
            doors.push(GatewayAddress { host, port: address.port });
        }
    }
    doors.sort();
    doors.dedup();
    if doors.len() > GATEWAYS_MAX {
        findings.push(finding(
            Severity::Refused,
            3113,
            link_object(link),
            "",
            format!(
                "cluster {} has {} gateway addresses; the first {GATEWAYS_MAX} are used.",
                link.cluster,
                doors.len()
            ),
            "put a load balancer before its gateways.",
        ));
        doors.truncate(GATEWAYS_MAX);
    }
    doors
}

/// A stranger's text as we repeat it: short, and nothing in it moves a terminal's cursor.
fn echo(address: &GatewayAddress) -> String {
    let text: String = address.to_string().chars().take(128).collect();
    if text.bytes().all(|b| b.is_ascii_graphic()) { text } else { format!("{text:?}") }
}

fn refusal(
    own: &Inventory,
    policy: &ImportPolicy,
    address: &GatewayAddress,
) -> Option<(u16, Severity, &'static str)> {
    let refused = |why| Some((3101, Severity::Refused, why));
    if address.port == 0 {
        return refused("has port 0; it is not used.");
    }
    let Some(ip) = address.socket().map(|socket| socket.ip()) else {
        if !policy.gateway_ranges.is_empty() {
            return refused(
                "is a name, which the link's gatewayRanges cannot judge; it is not used.",
            );
        }
        if address.host.parse::<Hostname>().is_err() {
            return refused("is neither an IP address nor a DNS name; it is not used.");
        }
        let why = "is a DNS name that is not resolved just now; addresses it had before are kept.";
        return Some((3111, Severity::Warning, why));
    };
    let named = policy.gateway_ranges.iter().any(|range| range.contains(&ip));
    if ip.is_loopback() && !named {
        return refused("is a loopback address, so it would lead back here; it is not used.");
    }
    if ip.is_unspecified() || ip.is_multicast() || is_broadcast(ip) {
        return refused("is not the address of one machine; it is not used.");
    }
    if is_link_local(ip) {
        return refused("is link-local, where cloud metadata services live; it is not used.");
    }
    let virtual_range = match ip {
        IpAddr::V4(ip) => own.mesh.vip_range.contains(&ip),
        IpAddr::V6(ip) => own.mesh.vip_range_v6.contains(&ip),
    };
    if virtual_range {
        return refused("lies in this cluster's range of virtual addresses; it is not used.");
    }
    if !policy.gateway_ranges.is_empty() && !named {
        return refused("lies outside the link's spec.import.gatewayRanges; it is not used.");
    }
    None
}

fn is_broadcast(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V4(ip) if ip.is_broadcast())
}

fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}
