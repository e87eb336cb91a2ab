//! Who may call a service, counted from what one cluster knows.

use super::rule::principal;
use super::{Authorization, Caller, Pattern, Source, Verdict, decide, selecting};
use crate::compile::inbound::Policy as Mtls;
use crate::export::ROOT_NAMESPACE;
use crate::finding::ObjectRef;
use crate::inventory::{Endpoint, Inventory, MtlsMode, PolicyAction, Workload, WorkloadName};
use crate::name::{ClusterId, Identity, ServiceName, TrustDomain};
use crate::world::World;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

/// Who may call a service's ready meshed copies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Audience {
    /// Policies that select a copy, and what they do.
    pub policies: BTreeMap<ObjectRef, PolicyAction>,
    /// Ready meshed copies. None: nothing to judge yet.
    pub copies: usize,
    /// Service ports, by number.
    pub ports: BTreeMap<u16, Callers>,
}

/// Who is let in at one port by at least one copy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Callers {
    /// Pods of this cluster that may call.
    pub own: usize,
    /// Pods of this cluster.
    pub own_all: usize,
    /// The same of other clusters, where those were looked at.
    pub counted: BTreeMap<ClusterId, Count>,
    /// Other trust domains whose workloads may connect at all: those of accepted links.
    pub elsewhere: BTreeMap<TrustDomain, Elsewhere>,
}

/// Pods of one cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Count {
    /// Who may call.
    pub may: usize,
    pub all: usize,
}

/// What one copy decides on a caller of another cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judged {
    /// The copy's pod.
    pub workload: String,
    /// The copy's own port.
    pub port: u16,
    pub decision: Verdict,
}

/// Who of another trust domain is let in, as far as policies name somebody.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Elsewhere {
    /// Its clusters.
    pub clusters: BTreeSet<ClusterId>,
    /// Workloads that no policy names.
    pub others: bool,
    /// Whose lot differs from the others': denied where `others` are let in, else let in.
    pub except: BTreeSet<String>,
}

/// One way in: a copy, its port, and what stands in front.
struct Door {
    destination: SocketAddr,
    mtls: MtlsMode,
    authorization: Authorization,
}

impl Door {
    fn new(world: &World, copy: &Endpoint, workload: &Workload, port: u16) -> Option<Self> {
        let target = *copy.ports.get(&port)?;
        Some(Self {
            destination: (copy.address, target).into(),
            mtls: Mtls::of(world, workload).at(target),
            authorization: Authorization::of(&world.own, workload),
        })
    }

    /// `None` where nobody is let in who proves no name, and this one does not.
    fn decide(
        &self,
        identity: Option<Identity>,
        source: IpAddr,
        server_name: &str,
    ) -> Option<Verdict> {
        let proven = identity.is_some() && self.mtls != MtlsMode::Disable;
        if !proven && self.mtls == MtlsMode::Strict {
            return None;
        }
        let caller = Caller {
            identity: identity.filter(|_| proven),
            source,
            destination: self.destination,
            server_name: proven.then(|| server_name.to_owned()),
        };
        Some(decide(&self.authorization, &caller))
    }

    fn lets_in(&self, identity: Option<Identity>, source: IpAddr, server_name: &str) -> bool {
        self.decide(identity, source, server_name).is_some_and(|verdict| verdict.allows())
    }
}

/// Ready copies of a service of the own cluster that are in the mesh.
fn meshed<'a>(own: &'a Inventory, name: &ServiceName) -> Vec<(&'a Endpoint, &'a Workload)> {
    let copies = own.endpoints.get(name).map(Vec::as_slice).unwrap_or_default();
    let meshed = copies.iter().filter(|copy| copy.meshed);
    let found = meshed.filter_map(|copy| {
        let pod = WorkloadName { namespace: name.namespace.clone(), name: copy.pod.clone() };
        Some((copy, own.workloads.get(&pod)?))
    });
    found.collect()
}

/// What each ready meshed copy of a service of `world`'s own cluster decides on a caller of another cluster,
/// whom the gateway hands on.
pub fn through_gateway(
    world: &World,
    name: &ServiceName,
    port: u16,
    caller: &Identity,
    server_name: &str,
) -> Vec<Judged> {
    let source = gateway_address(&world.own);
    let judged = meshed(&world.own, name).into_iter().filter_map(|(copy, workload)| {
        let door = Door::new(world, copy, workload, port)?;
        let decision = door.decide(Some(caller.clone()), source, server_name)?;
        Some(Judged { workload: copy.pod.clone(), port: door.destination.port(), decision })
    });
    judged.collect()
}

/// Who may call this service of the own cluster; `None` where there is none of that name. `peers`:
/// other clusters as they were seen, whose workloads are counted too.
pub fn audience(world: &World, name: &ServiceName, peers: &[Arc<Inventory>]) -> Option<Audience> {
    let own = &world.own;
    let service = own.services.get(name)?;
    let meshed = meshed(own, name);
    let policies = meshed.iter().flat_map(|(_, workload)| selecting(own, workload));
    let policies = policies.map(|policy| (policy.object.clone(), policy.action)).collect();
    let ports = service.ports.iter().filter_map(|port| {
        let doors = meshed.iter();
        let doors: Vec<Door> = doors
            .filter_map(|(copy, workload)| Door::new(world, copy, workload, port.number))
            .collect();
        let sni = format!("outbound_.{}_._.{}", port.number, name.global_host());
        (!doors.is_empty()).then(|| (port.number, callers(world, &doors, &sni, peers)))
    });
    let (ports, copies) = (ports.collect(), meshed.len());
    Some(Audience { policies, copies, ports })
}

fn callers(world: &World, doors: &[Door], sni: &str, peers: &[Arc<Inventory>]) -> Callers {
    let own = &world.own;
    let home = &own.mesh.trust_domain;
    let mut known: BTreeMap<_, bool> = BTreeMap::new();
    let mut may = 0;
    for pod in own.workloads.values() {
        let identity = pod.meshed.then(|| identity(home, &pod.name.namespace, &pod.account));
        let source = pod.addresses.first().copied().unwrap_or(NOWHERE);
        // Pods of one account and address are let in alike.
        let let_in = *known.entry((identity.clone(), source)).or_insert_with(|| {
            doors.iter().any(|door| door.lets_in(identity.clone(), source, sni))
        });
        may += usize::from(let_in);
    }
    // Where all clusters have one trust domain, the others' workloads are of it too.
    let shared = own.remote_gateways.values().any(|door| door.trust_domain.as_ref() == Some(home));
    let foreign = world.trust_domains().iter().filter(|domain| shared || *domain != home);
    let elsewhere = foreign.map(|domain| (domain.clone(), of_domain(world, domain, doors, sni)));
    let others = peers.iter().filter(|peer| peer.mesh.cluster != own.mesh.cluster);
    let counted =
        others.map(|peer| (peer.mesh.cluster.clone(), count(world, doors, sni, peer))).collect();
    Callers { own: may, own_all: own.workloads.len(), counted, elsewhere: elsewhere.collect() }
}

/// Pods of a peer that may call. One without a sidecar proves no name, and no gateway lets it in; nor one of a
/// cluster that is not linked.
fn count(world: &World, doors: &[Door], sni: &str, peer: &Inventory) -> Count {
    let domain = &peer.mesh.trust_domain;
    let linked = world.trust_domains().contains(domain);
    let source = gateway_address(&world.own);
    let mut known: BTreeMap<Identity, bool> = BTreeMap::new();
    let mut may = 0;
    for pod in peer.workloads.values().filter(|pod| linked && pod.meshed) {
        let who = identity(domain, &pod.name.namespace, &pod.account);
        let may_call = || doors.iter().any(|door| door.lets_in(Some(who.clone()), source, sni));
        may += usize::from(*known.entry(who.clone()).or_insert_with(may_call));
    }
    Count { may, all: peer.workloads.len() }
}

/// Whom a workload sees as the source of calls from other clusters: a gateway of its own.
fn gateway_address(own: &Inventory) -> IpAddr {
    let gateway = own.workloads.values().find(|pod| {
        pod.name.namespace == ROOT_NAMESPACE
            && pod.labels.get("istio").is_some_and(|it| it == "eastwestgateway")
    });
    gateway.and_then(|pod| pod.addresses.first().copied()).unwrap_or(NOWHERE)
}

/// Stands where no address is known.
const NOWHERE: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
/// Names that nobody has: for all whom no policy names.
const STRANGER: &str = "?";

fn identity(domain: &TrustDomain, namespace: &str, account: &str) -> Identity {
    Identity { domain: domain.clone(), namespace: namespace.into(), account: account.into() }
}

fn of_domain(world: &World, domain: &TrustDomain, doors: &[Door], sni: &str) -> Elsewhere {
    let own = &world.own;
    let source = gateway_address(own);
    let let_in = |namespace: &str, account: &str| {
        let who = identity(domain, namespace, account);
        doors.iter().any(|door| door.lets_in(Some(who.clone()), source, sni))
    };
    let others = let_in(STRANGER, STRANGER);
    let mut except = BTreeSet::new();
    for (namespace, account) in named(world, domain, doors) {
        let whole = let_in(&namespace, STRANGER);
        if account == STRANGER {
            if whole != others {
                except.insert(format!("namespace {namespace}"));
            }
        } else if let_in(&namespace, &account) != whole {
            except.insert(principal(&identity(domain, &namespace, &account)));
        }
    }
    let entries = own.entries.values().flat_map(|entry| &entry.endpoints);
    let announced = entries
        .filter(|copy| copy.trust_domain().as_ref() == Some(domain))
        .map(|copy| copy.cluster.clone());
    let doors = own.remote_gateways.values();
    let reached = doors
        .filter(|door| door.trust_domain.as_ref() == Some(domain))
        .filter_map(|door| door.cluster.clone());
    Elsewhere { clusters: announced.chain(reached).collect(), others, except }
}

/// (namespace, account) of everybody of this domain whom a policy in front of these doors, or an
/// import, names; and of each namespace one whom none names.
fn named(world: &World, domain: &TrustDomain, doors: &[Door]) -> BTreeSet<(String, String)> {
    let mut found: BTreeSet<(String, String)> = BTreeSet::new();
    let policies = doors.iter().flat_map(|door| {
        let authorization = &door.authorization;
        authorization.deny.iter().chain(&authorization.allow)
    });
    for source in policies.flat_map(|policy| &policy.rules).flat_map(|rule| rule.sources()) {
        match source {
            Source::Namespace(Pattern::Exact(namespace)) => {
                found.insert((namespace.clone(), STRANGER.into()));
            }
            Source::ServiceAccount(account) => {
                found.insert((account.namespace.clone(), account.name.clone()));
            }
            Source::Principal(
                Pattern::Exact(text) | Pattern::Suffix(text) | Pattern::Prefix(text),
            ) => {
                let parts: Vec<&str> = text.split('/').collect();
                if let [_, "ns", namespace, rest @ ..] = &parts[..] {
                    let account = match rest {
                        ["sa", account] if !account.is_empty() => account,
                        _ => STRANGER,
                    };
                    found.insert(((*namespace).to_owned(), account.to_owned()));
                }
            }
            Source::Principal(Pattern::Any)
            | Source::Namespace(_)
            | Source::TrustDomain(_)
            | Source::Ip(_) => {}
        }
    }
    let imported = world.own.entries.values().flat_map(|entry| &entry.subject_alt_names);
    for who in imported.filter(|who| who.domain == *domain) {
        found.insert((who.namespace.clone(), who.account.clone()));
    }
    let namespaces: Vec<_> = found.iter().map(|(namespace, _)| namespace.clone()).collect();
    found.extend(namespaces.into_iter().map(|namespace| (namespace, STRANGER.to_owned())));
    found
}

impl Audience {
    /// Rules that let a namespace in, whatever cluster it is in: worth a warning where several are.
    pub fn any_domain(&self, world: &World) -> Vec<String> {
        if world.trust_domains().len() < 2 {
            return Vec::new();
        }
        let policies = &world.own.authorization_policies;
        let allowing = self.policies.iter().filter(|(_, action)| **action == PolicyAction::Allow);
        let mut found = BTreeSet::new();
        for policy in allowing.filter_map(|(object, _)| policies.get(object)) {
            for (number, rule) in policy.rules.iter().enumerate() {
                let bound = rule
                    .sources()
                    .any(|it| matches!(it, Source::TrustDomain(_) | Source::Principal(_)));
                let open = rule
                    .sources()
                    .any(|it| matches!(it, Source::Namespace(_) | Source::ServiceAccount(_)));
                if open && !bound {
                    found.insert(format!("rules[{number}] of {}", policy.object));
                }
            }
        }
        found.into_iter().collect()
    }
}

impl Callers {
    /// How many workloads may call, in how many clusters, of those that were looked at.
    pub fn total(&self) -> (usize, usize) {
        let all = self.counted.values().map(|count| count.may).chain([self.own]);
        let some: Vec<usize> = all.filter(|may| *may > 0).collect();
        (some.iter().sum(), some.len())
    }

    /// Clusters that may connect at all and were not looked at.
    pub fn uncounted(&self) -> BTreeSet<&ClusterId> {
        let all = self.elsewhere.values().flat_map(|it| &it.clusters);
        all.filter(|cluster| !self.counted.contains_key(*cluster)).collect()
    }
}

impl fmt::Display for Callers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} workloads here", self.own, self.own_all)?;
        for (cluster, Count { may, all }) in &self.counted {
            write!(f, ", {may} of {all} in {cluster}")?;
        }
        if !self.counted.is_empty() {
            let (workloads, clusters) = self.total();
            write!(f, ": {workloads} in {clusters} of {} clusters", self.counted.len() + 1)?;
        }
        for (domain, it) in &self.elsewhere {
            let clusters: Vec<&str> = it.clusters.iter().map(ClusterId::as_str).collect();
            let place = match &clusters[..] {
                [] => domain.to_string(),
                some => format!("{} ({domain})", some.join(", ")),
            };
            let except: Vec<&str> = it.except.iter().map(String::as_str).collect();
            match (it.others, &except[..]) {
                (true, []) => write!(f, "; every workload of {place}")?,
                (true, some) => write!(f, "; every workload of {place} but {}", some.join(", "))?,
                (false, []) => write!(f, "; nobody of {place}")?,
                (false, some) => write!(f, "; of {place} only {}", some.join(", "))?,
            }
        }
        Ok(())
    }
}
