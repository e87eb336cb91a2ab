//! What the names of the mesh mean in DNS: a table, and the answer to one question.

use crate::export::is_reserved;
use crate::inventory::{Inventory, ServiceKind};
use crate::name::Hostname;
use crate::world::is_published_form;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Seconds an answer may be kept (Istio's DNS proxy says 30 too).
pub const TTL: u32 = 30;

/// All names one cluster answers for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Zone {
    /// Addresses by name. A name with no address exists (NODATA).
    pub names: BTreeMap<Hostname, Vec<IpAddr>>,
    /// Namespaces known here or in a linked cluster: `.global` names below them are ours.
    pub namespaces: BTreeSet<String>,
    /// Every accepted link has delivered a whole list: only then is an absent name NXDOMAIN.
    pub complete: bool,
}

/// What was asked for; other types of a known name are NODATA.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecordType {
    A,
    Aaaa,
    Other,
}

/// What to say, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    V4(Vec<Ipv4Addr>),
    V6(Vec<Ipv6Addr>),
    /// The name exists, not with this type.
    NoData,
    /// Ours, and certain that it does not exist.
    NxDomain,
    /// Ours, absent, and a link has not been heard yet.
    ServFail,
    /// Not ours: ask upstream.
    Forward,
}

/// The zone of one cluster: own Services, and what the federation published; `links_complete` is the
/// caller's to know (all accepted links synced). Own exports that are not published yet count too:
/// their names are about to exist.
pub fn zone(own: &Inventory, links_complete: bool) -> Zone {
    let (names, namespaces) = (BTreeMap::new(), own.namespaces.clone());
    let mut zone = Zone { names, namespaces, complete: links_complete };
    for (name, service) in &own.services {
        let mut addresses: Vec<IpAddr> = match service.kind {
            ServiceKind::ClusterIp => service.addresses.clone(),
            // Own pods only; remote pods of a headless Service are never named (decision 8).
            ServiceKind::Headless => {
                let copies = own.endpoints.get(name).into_iter().flatten();
                copies.map(|copy| copy.address).collect()
            }
            // A CNAME, which the cluster's DNS gives.
            ServiceKind::ExternalName => continue,
        };
        addresses.sort();
        addresses.dedup();
        if !addresses.is_empty() {
            zone.names.insert(name.local_host(), addresses);
        }
    }
    for entry in own.entries.values() {
        if let Some(name) = entry.service.as_ref().filter(|_| entry.published) {
            zone.namespaces.insert(name.namespace.clone());
        }
        for host in &entry.hosts {
            let publishers_alone = is_published_form(host);
            let local = host.as_str().ends_with(".cluster.local");
            if !entry.published && (publishers_alone || local) {
                continue;
            }
            // A user's host without an address is the world's to resolve.
            if !entry.published && entry.addresses.is_empty() {
                continue;
            }
            let mut addresses = entry.addresses.clone();
            addresses.sort();
            zone.names.entry(host.clone()).or_insert(addresses);
        }
    }
    let mut exported = own.service_exports.iter().filter(|name| own.services.contains_key(name));
    zone.complete &=
        exported.all(|name| is_reserved(name) || zone.names.contains_key(&name.global_host()));
    zone
}

/// The zone for clients that nothing carries to a virtual address, as pods without a sidecar are: a
/// published name leads to this cluster's own copies where it exports them. Where only others do it is
/// absent, since a client that must fail had better hear so at once than wait for a connection.
pub fn zone_without_sidecar(own: &Inventory, links_complete: bool) -> Zone {
    let mut zone = zone(own, links_complete);
    for entry in own.entries.values().filter(|entry| entry.published) {
        let Some(name) = &entry.service else { continue };
        let local = name.local_host();
        let copies = zone.names.get(&local).filter(|_| own.service_exports.contains(name)).cloned();
        let ours =
            [name.global_host(), name.clusterset_host(), name.cluster_host(&own.mesh.cluster)];
        for host in &entry.hosts {
            match &copies {
                Some(addresses) if ours.contains(host) => {
                    zone.names.insert(host.clone(), addresses.clone());
                }
                // A Service of that name is this cluster's own, whoever else exports it.
                _ if *host == local && own.services.contains_key(name) => {}
                _ => {
                    zone.names.remove(host);
                }
            }
        }
    }
    zone
}

/// Answers one question. `name` is lower case without trailing dot.
pub fn answer(zone: &Zone, name: &str, record: RecordType) -> Answer {
    let Ok(host) = name.parse::<Hostname>() else {
        return Answer::Forward;
    };
    if let Some(addresses) = zone.names.get(&host) {
        return of_type(addresses, record);
    }
    if !is_ours(zone, name) {
        return Answer::Forward;
    }
    if is_between(zone, name) {
        return Answer::NoData;
    }
    if zone.complete { Answer::NxDomain } else { Answer::ServFail }
}

fn of_type(addresses: &[IpAddr], record: RecordType) -> Answer {
    let mut v4 = Vec::new();
    let mut v6 = Vec::new();
    for address in addresses {
        match address {
            IpAddr::V4(ip) => v4.push(*ip),
            IpAddr::V6(ip) => v6.push(*ip),
        }
    }
    match record {
        RecordType::A if !v4.is_empty() => Answer::V4(v4),
        RecordType::Aaaa if !v6.is_empty() => Answer::V6(v6),
        RecordType::A | RecordType::Aaaa | RecordType::Other => Answer::NoData,
    }
}

/// Names that only we can know: all below `clusterset.local`, and `.global` names of known
/// namespaces. `.global` is a public top-level domain too, and `cluster.local` the cluster DNS's.
fn is_ours(zone: &Zone, name: &str) -> bool {
    if name == "clusterset.local" || name.ends_with(".clusterset.local") {
        return true;
    }
    let Some(below) = name.strip_suffix(".global") else { return false };
    let labels: Vec<&str> = below.split('.').collect();
    let known = |label: Option<&&str>| label.is_some_and(|label| zone.namespaces.contains(*label));
    let last = labels.len() - 1;
    // NAME.NS.global, and NAME.NS.CLUSTER.global.
    (last >= 1 && known(labels.get(last))) || (last >= 2 && known(labels.get(last - 1)))
}

/// The name a resolver means that has put a pod's first search domain behind it: `hello.shop.global` of
/// `hello.shop.global.web.svc.cluster.local`.
///
/// With `ndots:5`, as kubelets write it, a resolver asks for three such names before the one it was
/// given. The first is answered for the mesh's own domains, as by Istio's agent (`pkg/dns/client`).
/// Kubernetes gives nothing a name of this form: at most two labels stand before a namespace.
pub fn searched<'a>(zone: &Zone, name: &'a str) -> Option<&'a str> {
    let (whole, _namespace) = name.strip_suffix(".svc.cluster.local")?.rsplit_once('.')?;
    let ends = whole.ends_with(".global") || whole.ends_with(".clusterset.local");
    (ends && is_ours(zone, whole)).then_some(whole)
}

/// Names that exist only as parents of services' names (RFC 8020): no address, but no NXDOMAIN, which
/// resolvers that minimise their questions would take for all below.
fn is_between(zone: &Zone, name: &str) -> bool {
    let Some(above) = name.strip_suffix("clusterset.local") else { return false };
    let namespace = above.strip_suffix(".svc.");
    above.is_empty() || above == "svc." || namespace.is_some_and(|it| zone.namespaces.contains(it))
}

#[cfg(test)]
mod tests;
