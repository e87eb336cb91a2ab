//! Reasons as sentences: what `isthmus why` prints, from the decisions the proxies take.

use crate::authorize;
use crate::compile::horizon::{Reach, Tier};
use crate::compile::outbound::{carried, named};
use crate::compile::resource;
use crate::finding::ObjectRef;
use crate::inventory::{Endpoint, MtlsMode, ServiceKind};
use crate::name::{ClusterId, Hostname, Identity, Locality, Protocol, ServiceName};
use crate::program::{ClusterName, LoadBalancing, Resource, ResourceKind, ResourceName};
use crate::world::{Form, View, World};
use ipnet::IpNet;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

/// How a call of one client would go, decision by decision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Explanation {
    pub asked: String,
    pub steps: Vec<Step>,
    pub verdict: Verdict,
}

/// How it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Verdict {
    /// There are copies the client can reach, and each of those that are called first lets it in.
    Reachable,
    /// Of the copies that are called first, some let the client in and others do not.
    Partly,
    Unreachable,
    /// The mesh has no say: connections go where DNS sends them.
    NotCarried,
}

/// One decision and its reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "step", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Step {
    /// A short name was completed, as a pod's search list does.
    Completed {
        host: Hostname,
    },
    Name {
        host: Hostname,
        addresses: Vec<IpAddr>,
        meaning: Meaning,
    },
    UnknownName {
        host: String,
        hints: Vec<Hint>,
    },
    /// The name is there, and cannot be dialled through a virtual address.
    NoAddress {
        host: Hostname,
        reason: NoAddress,
    },
    NoPort {
        host: Hostname,
        port: u16,
        offered: Vec<u16>,
        udp: bool,
    },
    Listener {
        name: String,
        protocol: Protocol,
    },
    /// The address belongs to another host.
    AddressTaken {
        address: IpAddr,
        holder: Option<Hostname>,
    },
    Route {
        name: String,
        attempts: u32,
        hedge_ms: u64,
    },
    Cluster {
        name: String,
        load_balancing: LoadBalancing,
        rule: Option<ObjectRef>,
    },
    /// The client has no sidecar: the cluster's DNS and kube-proxy decide.
    WithoutSidecar {
        workload: String,
        reaches: Plain,
    },
    /// Copies of other clusters do not join this name.
    LocalOnly {
        host: Hostname,
        global: Hostname,
    },
    Copies {
        cluster: ClusterId,
        locality: Locality,
        count: u32,
        /// `None` where they cannot be reached.
        priority: Option<u32>,
        tier: Tier,
        reach: Reach,
        mtls: bool,
    },
    NoCopies {
        host: Hostname,
    },
    /// A Service of this cluster that has no endpoints.
    NoEndpoints {
        service: ServiceName,
        reason: NoEndpoints,
    },
    /// The name of one pod behind a Service of this cluster, which leads nowhere.
    NoPod {
        host: Hostname,
        pod: String,
        service: ServiceName,
        reason: NoPod,
    },
    Identities {
        cluster: ClusterId,
        expected: BTreeSet<Identity>,
    },
    /// How own pods behind the name take connections.
    Inbound {
        workload: String,
        port: u16,
        mode: MtlsMode,
        by: Option<ObjectRef>,
    },
    /// Whether such a pod lets the client in, and which rule decides.
    Authorization {
        /// The pod's cluster, where that is another one.
        #[serde(skip_serializing_if = "Option::is_none")]
        cluster: Option<ClusterId>,
        workload: String,
        port: u16,
        /// What the client proves; `None` for plaintext.
        caller: Option<Identity>,
        decision: authorize::Verdict,
    },
    /// Copies of another cluster that was not looked at: its own policies decide there.
    AuthorizationElsewhere {
        cluster: ClusterId,
    },
}

/// What kind of name it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Meaning {
    LocalService,
    AllExporters,
    OneCluster,
    UsersEntry,
    /// One pod of a Service of this cluster.
    OnePod,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum NoAddress {
    Headless,
    ExternalName,
    NothingCallable,
    UsersEntry,
    OnePod,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum NoEndpoints {
    /// Others would have to write them.
    NoSelector,
    NoPods {
        selector: BTreeMap<String, String>,
    },
    /// Such pods are there, and not ready.
    NoneReady {
        selector: BTreeMap<String, String>,
        pods: Vec<String>,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum NoPod {
    /// It is there, and no ready copy.
    NotReady,
    /// It is there, and the Service stands for others.
    NotSelected { selector: BTreeMap<String, String> },
    /// It is behind the Service, and says that it belongs to another one or to none.
    OtherSubdomain,
    /// These are there.
    NoSuch { named: Vec<String> },
}

/// What would make an unknown name known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Hint {
    /// The service lives in these namespaces.
    OtherNamespaces(Vec<ServiceName>),
    /// It is here under this name, and not exported.
    NotExported(ServiceName),
    /// It is exported here; its entry is not written yet.
    NotPublishedYet(ServiceName),
    /// Only these clusters export it.
    ExportedBy(ServiceName, Vec<ClusterId>),
    /// Linked clusters that announce no such service here.
    Silent(Vec<ClusterId>),
    /// Nothing is linked.
    NoLinks,
    /// Not a name of the mesh; upstream DNS decides.
    Outside,
    /// No name that DNS could have.
    NoName,
    /// An address that is no service's; it is called as it is, in plaintext.
    Address,
    /// That of a pod of the mesh, `NAMESPACE/NAME`, which takes plaintext or does not.
    PodAddress { pod: String, strict: bool },
    /// It is written as if the mesh had names for pods.
    PodName { pod: String, service: ServiceName },
    /// An address of this range, which proxies keep for names, and no name's now.
    Vacant {
        range: IpNet,
        /// The name that had it last, while nobody else may have it.
        had: Option<Hostname>,
        /// Else those that would get it.
        homes: Vec<Hostname>,
    },
}

/// What a name means to a client without a sidecar.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Plain {
    /// A Service of this cluster, by kube-proxy.
    ClusterIp,
    /// This cluster's copies of a published name; those of these clusters it does not reach.
    OwnCopies(Vec<ClusterId>),
    /// Nothing: only these clusters export it.
    Nothing(Vec<ClusterId>),
    /// A ServiceEntry's host, which DNS resolves or not.
    Outside,
}

/// Explains what happens when the client of `view` dials `host:port`. A short host is completed as
/// the search list of a pod does. `peers`: other clusters as they were seen, whose policies are judged too.
pub fn why(world: &World, view: &View, host: &str, port: u16, peers: &[World]) -> Explanation {
    let asked = format!("{host}:{port}");
    let mut steps = Vec::new();
    let verdict = explain(world, view, host, port, peers, &mut steps);
    Explanation { asked, steps, verdict: verdict.unwrap_or(Verdict::Unreachable) }
}

fn explain(
    world: &World,
    view: &View,
    asked: &str,
    port: u16,
    peers: &[World],
    steps: &mut Vec<Step>,
) -> Option<Verdict> {
    let lower = asked.trim_end_matches('.').to_ascii_lowercase();
    let Some(host) = host::complete(world, view, &lower) else {
        if let Ok(address) = lower.parse::<IpAddr>() {
            let to = SocketAddr::new(address, port);
            return Some(plaintext::to_address(world, view, lower, to, steps));
        }
        if let Some(verdict) = pod_name::explain(world, view, &lower, port, steps) {
            return Some(verdict);
        }
        let hints = host::hints(world, view, &lower);
        let verdict = match hints[..] {
            [Hint::Outside] => Verdict::NotCarried,
            _ => Verdict::Unreachable,
        };
        steps.push(Step::UnknownName { hints, host: lower });
        return Some(verdict);
    };
    if host.as_str() != lower && lower.parse::<IpAddr>().is_err() {
        steps.push(Step::Completed { host: host.clone() });
    }
    let target = world.target(&host)?;
    steps.push(Step::Name {
        host: host.clone(),
        addresses: target.addresses.to_vec(),
        meaning: match target.form {
            Form::Local(_) => Meaning::LocalService,
            Form::All(..) => Meaning::AllExporters,
            Form::One(..) => Meaning::OneCluster,
            Form::User(_) => Meaning::UsersEntry,
        },
    });
    let reason = match target.form {
        Form::Local(service) => match service.kind {
            ServiceKind::Headless => Some(NoAddress::Headless),
            ServiceKind::ExternalName => Some(NoAddress::ExternalName),
            ServiceKind::ClusterIp => None,
        },
        Form::User(entry) => entry.addresses.is_empty().then_some(NoAddress::UsersEntry),
        Form::All(_, entry) | Form::One(_, entry, _) => {
            entry.addresses.is_empty().then_some(NoAddress::NothingCallable)
        }
    };
    if let Some(reason) = reason {
        steps.push(Step::NoAddress { host, reason });
        return match (reason, target.form) {
            (NoAddress::NothingCallable, _) => None,
            // Pods are dialled at the port that is asked: no Service's port leads to its target.
            (NoAddress::Headless, Form::Local(service)) => {
                let at = |_: &Endpoint| Some(port);
                let verdict = plaintext::to_copies(world, view, &service.name, at, steps);
                Some(verdict.unwrap_or_else(|| {
                    steps.extend(endpoints::missing(world, &service.name));
                    Verdict::Unreachable
                }))
            }
            (
                NoAddress::Headless
                | NoAddress::ExternalName
                | NoAddress::UsersEntry
                | NoAddress::OnePod,
                _,
            ) => Some(Verdict::NotCarried),
        };
    }
    let Some(found) = carried(target.ports, port) else {
        let tcp = target.ports.iter().filter(|it| it.protocol != Protocol::Udp);
        let offered = tcp.map(|it| it.number).collect();
        let udp = target.ports.iter().any(|it| it.number == port);
        steps.push(Step::NoPort { host, port, offered, udp });
        return None;
    };
    if without_sidecar::is(world, view) {
        return Some(without_sidecar::explain(world, view, &target, found, steps));
    }
    let Some(address) = target.addresses.iter().find(|ip| world.holds(&target, **ip)) else {
        for address in target.addresses {
            let holder = world.target_at(*address).map(|holder| holder.host.clone());
            steps.push(Step::AddressTaken { address: *address, holder });
        }
        return None;
    };
    let listener = ResourceName::outbound(*address, port);
    steps.push(Step::Listener { name: listener.name, protocol: found.protocol });
    // The listener leads to the first name; its cluster is the one that is used.
    let cluster = ClusterName::outbound(port, "", target.host);
    let name = |kind| ResourceName::new(kind, cluster.to_string());
    if let Some(Resource::Route(route)) =
        resource(world, view, &name(ResourceKind::Route)).as_deref()
    {
        let (attempts, hedge_ms) = (route.retry.attempts, route.retry.hedge_ms);
        steps.push(Step::Route { name: route.name.clone(), attempts, hedge_ms });
    }
    if let Some(Resource::Cluster(it)) =
        resource(world, view, &name(ResourceKind::Cluster)).as_deref()
    {
        let rule = world.rule(&target, &view.namespace).map(|rule| rule.object.clone());
        let load_balancing = it.load_balancing;
        steps.push(Step::Cluster { name: it.name.to_string(), load_balancing, rule });
    }
    let endpoints = resource(world, view, &name(ResourceKind::Endpoints))?;
    let Resource::Endpoints(endpoints) = &*endpoints else { return None };
    let found = named(world, &cluster)?;
    Some(copies::explain(world, view, &found, endpoints, peers, steps).verdict())
}

/// Near misses at most shown.
const NEAR_MAX: usize = 5;

mod copies;
mod endpoints;
mod host;
mod plaintext;
mod pod;
mod pod_name;
mod sentence;
mod vacant;
mod without_sidecar;

#[cfg(test)]
mod tests;
