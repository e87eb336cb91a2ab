//! What to write into our own API server about the others: `.global` ServiceEntries and gateways.

mod join;
mod policy;
mod share;
mod vip;

use crate::export::{Exports, ROOT_NAMESPACE};
use crate::finding::{Finding, ObjectRef, Severity};
use crate::inventory::{Inventory, MeshConfig, RemoteGateway, Resting, ServiceEntry};
use crate::name::{ClusterId, Hostname, ServiceName};
use join::join;
use serde::{Deserialize, Serialize};
use share::{Existing, Share};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// What should stand in our own API server, whole: what is ours there and not in it is deleted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    pub entries: BTreeMap<ObjectRef, ServiceEntry>,
    pub gateways: BTreeMap<ObjectRef, RemoteGateway>,
    /// Entries that name nothing any more, as long as their addresses rest.
    pub resting: BTreeMap<ObjectRef, Resting>,
    /// Ours, no longer wanted, and every source that ever fed it is synced or gone.
    pub deletions: BTreeSet<ObjectRef>,
    /// Why something was left out or changed; sorted.
    pub findings: Vec<Finding>,
    /// Per link: services imported, endpoints behind them, and those refused by its policy.
    pub links: BTreeMap<String, LinkSummary>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LinkSummary {
    pub services: u32,
    pub endpoints: u32,
    pub refused: u32,
}

/// Seconds that a freed virtual address rests before another host may have it (decision 7): longer
/// than resolvers and clients keep the old meaning.
pub const REST: i64 = 600;

/// Plans our own API server's content from what `own` has and what the accepted `links` export.
///
/// A link that is not synced keeps what it published before. A cluster without a link (removed)
/// loses its endpoints. Law: planning again over an applied plan changes nothing.
///
/// An entry that is not wanted any more is not deleted at once: it stays, without a meaning, until its
/// addresses have rested [`REST`] from `now` (seconds since the epoch). So a restart forgets nothing,
/// and a host that comes back meanwhile has the address it had.
pub fn plan(own: &Inventory, links: &[Exports], now: i64) -> Plan {
    let mut plan = Plan::default();
    let existing = Existing::of(own);
    let used = policy::distinct(own, links, &mut plan.findings);
    for link in links {
        let summary = LinkSummary { refused: size(link.services.len()), ..LinkSummary::default() };
        plan.links.insert(link.link.clone(), summary);
    }

    let mut services: BTreeMap<ServiceName, Vec<Share>> = BTreeMap::new();
    for share in share::own(own, &existing) {
        services.entry(share.service.clone()).or_default().push(share);
    }
    for link in &used {
        let mut said = Vec::new();
        let (shares, refused) = share::of_link(link, &existing, &mut said);
        let weights = shares.iter().flat_map(|share| &share.endpoints).map(|copy| copy.weight);
        let endpoints = weights.fold(0, u32::saturating_add);
        let summary = LinkSummary { services: size(shares.len()), endpoints, refused };
        plan.links.insert(link.link.clone(), summary);
        for share in shares {
            services.entry(share.service.clone()).or_default().push(share);
        }
        let gateway = gateway(own, link, &mut said);
        said.sort();
        plan.findings.extend(said.into_iter().take(policy::FINDINGS_MAX));
        plan.gateways.insert(gateway.object.clone(), gateway);
    }

    for (name, mut shares) in services {
        shares.sort_by(|a, b| (a.created, &a.cluster).cmp(&(b.created, &b.cluster)));
        for share in &shares {
            let entry = single(own, &existing, share);
            plan.entries.insert(entry.object.clone(), entry);
        }
        let entry = join(own, &existing, &name, &shares, &mut plan.findings);
        plan.entries.insert(entry.object.clone(), entry);
    }
    address(own, &existing, now, &mut plan);

    let unwanted = |object: &&ObjectRef| {
        !plan.entries.contains_key(*object) && !plan.gateways.contains_key(*object)
    };
    let doors = own.remote_gateways.values().filter(|door| door.published);
    // An entry that does not say what it stands for may be anybody's.
    let all_heard = links.iter().all(|link| link.synced);
    let entries = own.entries.values().filter(|entry| entry.published);
    let entries = entries.filter(|entry| all_heard || entry.service.is_some());
    // What an unsynced link fed was taken over above as its share, so what is unwanted now has only
    // sources that are synced or gone; but a source is the cluster itself, by whatever name.
    let silent = |uid: &Option<String>, admits: &dyn Fn(&Exports) -> bool| {
        let same = |link: &Exports| !link.synced && Some(&link.uid) == uid.as_ref() && admits(link);
        links.iter().any(same)
    };
    let single_silent = |entry: &ServiceEntry| {
        let admits = |link: &Exports| {
            entry.service.as_ref().is_none_or(|service| policy::admits(&link.import, service))
        };
        silent(&entry.source_uid, &admits)
    };
    let fed = own.entries.values().filter(|entry| entry.published && single_silent(entry));
    let unheard: BTreeSet<&ServiceName> = fed.filter_map(|entry| entry.service.as_ref()).collect();
    let joint = |entry: &ServiceEntry| entry.source_uid.is_none();
    let silent_entry = |entry: &ServiceEntry| {
        let service = entry.service.as_ref();
        single_silent(entry) || (joint(entry) && service.is_some_and(|it| unheard.contains(it)))
    };
    let entries = entries.filter(|entry| unwanted(&&entry.object) && !silent_entry(entry));
    let doors = doors
        .filter(|door| unwanted(&&door.object) && !silent(&door.source_uid, &|_: &Exports| true));
    let (resting, over) = rest(own, entries, &plan.entries, now);
    plan.deletions = doors.map(|door| door.object.clone()).chain(over).collect();
    plan.resting = resting;
    plan.findings.sort();
    plan.findings.dedup();
    plan
}

/// Of unwanted entries and those that rest already: what rests on, and what may be deleted.
fn rest<'a>(
    own: &Inventory,
    unwanted: impl Iterator<Item = &'a ServiceEntry>,
    wanted: &BTreeMap<ObjectRef, ServiceEntry>,
    now: i64,
) -> (BTreeMap<ObjectRef, Resting>, Vec<ObjectRef>) {
    let hosts: BTreeSet<&Hostname> = wanted.values().map(|entry| &entry.hosts[0]).collect();
    let freed = unwanted.filter_map(|entry| {
        let (host, addresses) = (entry.hosts.first()?.clone(), entry.addresses.clone());
        Some((entry.object.clone(), Resting { host, addresses, until: now + REST }))
    });
    // A clock that was ahead when it was written must not hold an address for years.
    let before = own.resting.iter().map(|(object, rest)| {
        (object.clone(), Resting { until: rest.until.min(now + REST), ..rest.clone() })
    });
    let (mut resting, mut over) = (BTreeMap::new(), Vec::new());
    for (object, rest) in freed.chain(before).filter(|(object, _)| !wanted.contains_key(object)) {
        // Its host may stand elsewhere now, with the same addresses.
        let held = !rest.addresses.is_empty() && !hosts.contains(&rest.host);
        if held && rest.until > now {
            resting.insert(object, rest);
        } else {
            over.push(object);
        }
    }
    (resting, over)
}

/// The entry of one cluster's copies alone: `hello.shop.west.global`.
fn single(own: &Inventory, existing: &Existing<'_>, share: &Share) -> ServiceEntry {
    let host = share.service.cluster_host(&share.cluster);
    let mut entry = blank(own, existing, &share.service, vec![host], share.created);
    entry.source_uid = share.source_uid.clone();
    entry.ports = join::named(share.ports.iter().map(|port| (port.number, port)));
    entry.endpoints = share.endpoints.clone();
    if entry.ports.is_empty() {
        entry.endpoints.clear();
    }
    entry.subject_alt_names = share.identities.iter().cloned().collect();
    entry
}

/// An entry without ports and endpoints. It stands in the service's namespace where that exists.
fn blank(
    own: &Inventory,
    existing: &Existing<'_>,
    service: &ServiceName,
    hosts: Vec<Hostname>,
    created: i64,
) -> ServiceEntry {
    let here = own.namespaces.contains(&service.namespace);
    let namespace = if here { service.namespace.as_str() } else { ROOT_NAMESPACE };
    let host = &hosts[0];
    ServiceEntry {
        object: ObjectRef::new("ServiceEntry", namespace, host.as_str()),
        created: existing.entry(host).map_or(created, |entry| entry.created),
        addresses: Vec::new(),
        ports: Vec::new(),
        endpoints: Vec::new(),
        subject_alt_names: Vec::new(),
        published: true,
        service: Some(service.clone()),
        source_uid: None,
        hosts,
    }
}

/// Gives every entry that can be called its virtual addresses.
fn address(own: &Inventory, existing: &Existing<'_>, now: i64, plan: &mut Plan) {
    let host_of = |entry: &ServiceEntry| entry.hosts[0].clone();
    let wanted: BTreeSet<Hostname> = plan.entries.values().map(host_of).collect();
    let services = own.services.values().flat_map(|service| &service.addresses);
    let others = own.entries.values().filter(|entry| {
        !entry.published || entry.hosts.first().is_none_or(|host| !wanted.contains(host))
    });
    let resting = own.resting.values();
    let resting = resting.filter(|rest| rest.until > now && !wanted.contains(&rest.host));
    let taken: BTreeSet<IpAddr> = services
        .chain(others.flat_map(|entry| &entry.addresses))
        .chain(resting.flat_map(|rest| &rest.addresses))
        .copied()
        .collect();
    let callable = plan.entries.values().filter(|entry| !entry.ports.is_empty());
    let wishes = callable.map(|entry| vip::Wish {
        host: host_of(entry),
        created: entry.created,
        has: existing.addresses(&entry.hosts[0]),
    });
    let mesh = &own.mesh;
    let mut grants = vip::grant(mesh.vip_range, mesh.vip_range_v6, wishes.collect(), &taken);
    for entry in plan.entries.values_mut() {
        let grant = grants.remove(&entry.hosts[0]).unwrap_or_default();
        entry.addresses = grant.addresses;
        for address in grant.displaced {
            plan.findings.push(finding(
                Severity::Note,
                3109,
                entry.object.clone(),
                "spec.addresses",
                format!(
                    "another host holds or held the address that its name leads to, so it has \
                     {address} here and perhaps another one in other clusters."
                ),
                "none needed; resolve the name in each cluster instead of copying its address.",
            ));
        }
        if grant.full {
            plan.findings.push(finding(
                Severity::Refused,
                3110,
                entry.object.clone(),
                "spec.addresses",
                "the range of virtual addresses is full, so it has none of one family.".into(),
                "set a larger vipRange in ConfigMap isthmus-mesh.",
            ));
        }
    }
}

/// The doors of a linked cluster. It stands even without an address: it tells the trust domain.
fn gateway(own: &Inventory, link: &Exports, findings: &mut Vec<Finding>) -> RemoteGateway {
    let object = ObjectRef::new("Gateway", ROOT_NAMESPACE, &format!("isthmus-{}", link.cluster));
    let has = own.remote_gateways.get(&object).filter(|door| door.published && !link.synced);
    let mut offered = has.map_or(&link.gateways, |door| &door.addresses).clone();
    // A name that is not resolved (any more, or since a restart) led to what stands.
    if link.gateways.iter().any(|address| address.socket().is_none()) {
        let standing = own.remote_gateways.get(&object).filter(|door| door.published);
        offered.extend(standing.into_iter().flat_map(|door| door.addresses.iter().cloned()));
    }
    let addresses = policy::doors(own, link, &offered, findings);
    if addresses.is_empty() && link.synced {
        findings.push(finding(
            Severity::Warning,
            3115,
            policy::link_object(link),
            "",
            format!(
                "cluster {} has no gateway to dial, so its copies cannot be reached.",
                link.cluster
            ),
            "give its east-west gateway's Service an external address.",
        ));
    }
    RemoteGateway {
        network: has.map_or(&link.network, |door| &door.network).clone(),
        trust_domain: has
            .and_then(|door| door.trust_domain.clone())
            .or_else(|| Some(link.trust_domain.clone())),
        source_uid: share::source_uid(&link.uid, has.and_then(|door| door.source_uid.as_ref())),
        object,
        cluster: Some(link.cluster.clone()),
        addresses,
        published: true,
    }
}

/// Whether a host that is published is given this address, unless another one has it.
pub(crate) fn is_home(mesh: &MeshConfig, host: &Hostname, address: IpAddr) -> bool {
    vip::is_home(mesh.vip_range, mesh.vip_range_v6, host, address)
}

/// The cluster whose copies a published entry's first host names; `None` for all exporters'.
pub fn cluster_of(service: &ServiceName, host: &Hostname) -> Option<ClusterId> {
    let prefix = format!("{}.{}.", service.name, service.namespace);
    let cluster = host.as_str().strip_prefix(&prefix)?.strip_suffix(".global")?;
    cluster.parse().ok()
}

fn size(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

fn finding(
    severity: Severity,
    code: u16,
    object: ObjectRef,
    field: &str,
    problem: String,
    fix: &str,
) -> Finding {
    Finding { severity, code, object, field: field.into(), problem, fix: fix.into() }
}

#[cfg(test)]
mod tests;
#[cfg(test)]
pub(crate) use tests::mesh_text;
