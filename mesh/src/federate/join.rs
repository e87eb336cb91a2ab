//! All exporters' shares of one service as one entry: `hello.shop.global`.

use super::share::{Existing, Share};
use super::{blank, finding};
use crate::export::ExportedPort;
use crate::finding::{Finding, ObjectRef, Severity};
use crate::inventory::{EntryEndpoint, Inventory, ServiceEntry, ServicePort, labels};
use crate::name::{ClusterId, Protocol, ServiceName};
use std::collections::{BTreeMap, BTreeSet};

/// Joins shares, oldest export first: a port joins by number and protocol.
pub(super) fn join(
    own: &Inventory,
    existing: &Existing<'_>,
    name: &ServiceName,
    shares: &[Share],
    findings: &mut Vec<Finding>,
) -> ServiceEntry {
    let hosts = vec![name.global_host(), name.clusterset_host()];
    let oldest = shares.first().map_or(0, |share| share.created);
    let has = existing.entry(&hosts[0]);
    let mut entry = blank(own, existing, name, hosts, oldest);
    let joined = ports(&entry.object, shares, has, findings);
    entry.ports = named(joined.iter().map(|(number, joint)| (*number, joint.port)));
    for share in shares {
        let serves: BTreeSet<u16> = joined
            .iter()
            .filter(|(_, joint)| joint.clusters.contains(&share.cluster))
            .map(|(number, _)| *number)
            .collect();
        if serves.is_empty() {
            continue;
        }
        let all = serves.len() == joined.len();
        let ports = if all { BTreeSet::new() } else { serves };
        entry.endpoints.extend(share.endpoints.iter().map(|copy| restrict(copy, &ports)));
    }
    entry.endpoints.sort();
    let identities: BTreeSet<_> = shares.iter().flat_map(|share| &share.identities).collect();
    entry.subject_alt_names = identities.into_iter().cloned().collect();
    entry
}

/// Entry ports with names that are there and differ, as ServiceEntry wants them.
pub(super) fn named<'a>(ports: impl Iterator<Item = (u16, &'a ExportedPort)>) -> Vec<ServicePort> {
    let mut names = BTreeSet::new();
    let mut named = Vec::new();
    for (number, port) in ports {
        let mut name = port.name.clone();
        if name.is_empty() || names.contains(&name) {
            name = format!("{}-{number}", port.protocol);
        }
        names.insert(name.clone());
        named.push(ServicePort { number, protocol: port.protocol, name });
    }
    named
}

/// One port number, and who serves it.
struct Joint<'a> {
    port: &'a ExportedPort,
    clusters: BTreeSet<&'a ClusterId>,
}

fn ports<'a>(
    object: &ObjectRef,
    shares: &'a [Share],
    has: Option<&ServiceEntry>,
    findings: &mut Vec<Finding>,
) -> BTreeMap<u16, Joint<'a>> {
    let unsure = shares.iter().any(|share| share.kept);
    let standing = |number: u16| -> Option<Protocol> {
        let entry = has.filter(|_| unsure)?;
        entry.ports.iter().find(|port| port.number == number).map(|port| port.protocol)
    };
    let mut joined: BTreeMap<u16, Joint<'a>> = BTreeMap::new();
    let numbers: BTreeSet<u16> =
        shares.iter().flat_map(|share| &share.ports).map(|port| port.number).collect();
    for number in numbers {
        let offers = || {
            let port = |share: &'a Share| share.ports.iter().find(|port| port.number == number);
            shares.iter().filter_map(move |share| Some((share, port(share)?)))
        };
        // A kept share has no date of its export, so what stands decides while one is among them.
        let stands = standing(number);
        let winner =
            offers().find(|(_, port)| Some(port.protocol) == stands).or_else(|| offers().next());
        let Some((first, port)) = winner else { continue };
        let mut joint = Joint { port, clusters: BTreeSet::new() };
        for (share, offer) in offers() {
            let mut say = |severity, code, problem: String, fix: &str| {
                let field = format!("spec.ports[number={number}]");
                findings.push(finding(severity, code, object.clone(), &field, problem, fix));
            };
            if offer.protocol != port.protocol {
                say(
                    Severity::Refused,
                    3106,
                    format!(
                        "{} says {} and {} says {}; {}, whose export is newer, is left out of this port.",
                        first.cluster, port.protocol, share.cluster, offer.protocol, share.cluster
                    ),
                    "give the port one appProtocol (or name prefix) in all clusters.",
                );
                continue;
            }
            if offer.name != port.name {
                say(
                    Severity::Warning,
                    3105,
                    format!(
                        "it is called {:?} in {} and {:?} in {}; they join, and {:?} is used.",
                        port.name, first.cluster, offer.name, share.cluster, port.name
                    ),
                    "give the port one name in all clusters.",
                );
            }
            joint.clusters.insert(&share.cluster);
        }
        joined.insert(number, joint);
    }
    missing(object, shares, &joined, findings);
    joined
}

fn missing(
    object: &ObjectRef,
    shares: &[Share],
    joined: &BTreeMap<u16, Joint<'_>>,
    findings: &mut Vec<Finding>,
) {
    for (number, joint) in joined {
        // A share without any port said so in its export's problems already.
        let lacks = |share: &&Share| {
            !share.ports.is_empty() && share.ports.iter().all(|port| port.number != *number)
        };
        let lacking: Vec<&str> =
            shares.iter().filter(lacks).map(|share| share.cluster.as_str()).collect();
        if !lacking.is_empty() {
            let serving: Vec<&str> = joint.clusters.iter().map(|name| name.as_str()).collect();
            findings.push(finding(
                Severity::Warning,
                3108,
                object.clone(),
                &format!("spec.ports[number={number}]"),
                format!(
                    "{} lacks this port; only {} serves it, and calls to it go there alone.",
                    lacking.join(", "),
                    serving.join(", ")
                ),
                "give the Service the same ports in all clusters.",
            ));
        }
    }
}

fn restrict(copy: &EntryEndpoint, ports: &BTreeSet<u16>) -> EntryEndpoint {
    let mut copy = EntryEndpoint { ports: ports.clone(), ..copy.clone() };
    if !ports.is_empty() {
        let text: Vec<String> = ports.iter().map(u16::to_string).collect();
        copy.labels.insert(labels::PORTS.into(), text.join("-"));
    }
    copy
}
