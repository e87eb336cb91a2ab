//! Who may call a service, counted from what one cluster knows.

use super::rule::principal;
use super::{Authorization, Caller, Pattern, Source, decide, selecting};
use crate::compile::inbound::Policy as Mtls;
use crate::export::ROOT_NAMESPACE;
use crate::finding::ObjectRef;
use crate::inventory::{Endpoint, MtlsMode, PolicyAction, Workload, WorkloadName};
use crate::name::{ClusterId, Identity, ServiceName, TrustDomain};
use crate::world::World;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

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
    /// Other trust domains whose workloads may connect at all: those of accepted links. How many
    /// workloads they have is not known here.
    pub elsewhere: BTreeMap<TrustDomain, Elsewhere>,
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
    fn lets_in(&self, identity: Option<Identity>, source: IpAddr, server_name: &str) -> bool {
        let proven = identity.is_some() && self.mtls != MtlsMode::Disable;
        if !proven && self.mtls == MtlsMode::Strict {
            return false;
        }
        let caller = Caller {
            identity: identity.filter(|_| proven),
            source,
            destination: self.destination,
            server_name: proven.then(|| server_name.to_owned()),
        };
        decide(&self.authorization, &caller).allows()
    }
}

/// Who may call this service of the own cluster; `None` where there is none of that name.
pub fn audience(world: &World, name: &ServiceName) -> Option<Audience> {
    let own = &world.own;
    let service = own.services.get(name)?;
    let copies = own.endpoints.get(name).map(Vec::as_slice).unwrap_or_default();
    let meshed: Vec<(&Endpoint, &Workload)> = copies
        .iter()
        .filter(|copy| copy.meshed)
        .filter_map(|copy| {
            let pod = WorkloadName { namespace: name.namespace.clone(), name: copy.pod.clone() };
            Some((copy, own.workloads.get(&pod)?))
        })
        .collect();
    let policies = meshed.iter().flat_map(|(_, workload)| selecting(own, workload));
    let policies = policies.map(|policy| (policy.object.clone(), policy.action)).collect();
    let door = |(copy, workload): &(&Endpoint, &Workload), port: u16| {
        let target = *copy.ports.get(&port)?;
        Some(Door {
            destination: (copy.address, target).into(),
            mtls: Mtls::of(world, workload).at(target),
            authorization: Authorization::of(own, workload),
        })
    };
    let ports = service.ports.iter().filter_map(|port| {
        let doors: Vec<Door> = meshed.iter().filter_map(|copy| door(copy, port.number)).collect();
        let sni = format!("outbound_.{}_._.{}", port.number, name.global_host());
        (!doors.is_empty()).then(|| (port.number, callers(world, &doors, &sni)))
    });
    let (ports, copies) = (ports.collect(), meshed.len());
    Some(Audience { policies, copies, ports })
}

fn callers(world: &World, doors: &[Door], sni: &str) -> Callers {
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
    Callers { own: may, own_all: own.workloads.len(), elsewhere: elsewhere.collect() }
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
    let gateway = own.workloads.values().find(|pod| {
        pod.name.namespace == ROOT_NAMESPACE
            && pod.labels.get("istio").is_some_and(|it| it == "eastwestgateway")
    });
    let source = gateway.and_then(|pod| pod.addresses.first().copied()).unwrap_or(NOWHERE);
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

impl fmt::Display for Callers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} workloads here", self.own, self.own_all)?;
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
