//! Small worlds as text, for tests: one line is one fact about one cluster.
//!
//! ```text
//! east cluster net-east [domain=east.mesh] [gateway=203.0.113.1:15443] [uid=u] [merge]
//! east namespace shop
//! east service shop/hello 10.96.0.1|none|external 80/http[/name] … [prefer=PreferSameNode] [created=5] [affinity] [app=hello]
//! east pod shop/hello hello-1 10.244.0.5 eu/a [account=hello] [unmeshed] [unready] [node=n1] [hostname=h] [version=v1]
//! east export shop/hello
//! east link west [accepted] [complete]
//! east rule shop/hello HOST [lb=RANDOM] [timeout=50] [subset=v1:version=v1]
//! east peerauth shop/name STRICT|UNSET [port=8080:DISABLE] [app=hello]
//! east policy shop/name ALLOW|DENY|CUSTOM [app=hello] [rule [principal=P] [!principal=P] [namespace=N] …] …
//! east passthrough *.local
//! ```
//! Service ports below 1000 lead to themselves + 8000 on the pod, the others to themselves.

use crate::authorize::{Clause, Operation, Pattern, Rule, Source, block};
use crate::export::{Exports, ImportPolicy, exports};
use crate::federate::{self, Plan};
use crate::finding::ObjectRef;
use crate::inventory::*;
use crate::name::*;
use crate::program::LoadBalancing;
use crate::world::{Dialect, Role, View, World};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

pub(crate) type Clusters = BTreeMap<String, Inventory>;

#[track_caller]
pub(crate) fn clusters(text: &str) -> Clusters {
    let mut all = Clusters::new();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [cluster, verb, rest @ ..] = &words[..] else { panic!("{line}") };
        let own = all.entry((*cluster).to_owned()).or_insert_with(|| empty(cluster));
        fact(own, verb, rest);
    }
    all
}

pub(crate) fn empty(cluster: &str) -> Inventory {
    let mesh = MeshConfig {
        root_certificates: "ROOT".into(),
        ..MeshConfig::new(
            cluster.parse().unwrap(),
            format!("net-{cluster}").parse().unwrap(),
            format!("{cluster}.mesh").parse().unwrap(),
        )
    };
    Inventory {
        uid: format!("uid-{cluster}"),
        namespaces: BTreeSet::from(["isthmus-system".into()]),
        ..Inventory::empty(mesh)
    }
}

pub(crate) fn service(text: &str) -> ServiceName {
    let (namespace, name) = text.split_once('/').unwrap();
    ServiceName::new(namespace, name).unwrap()
}

fn options<'a>(words: &[&'a str], key: &str) -> Vec<&'a str> {
    words.iter().filter_map(|word| word.strip_prefix(key)?.strip_prefix('=')).collect()
}

fn labels_of(words: &[&str], taken: &[&str]) -> BTreeMap<String, String> {
    let pairs = words.iter().filter_map(|word| word.split_once('='));
    pairs
        .filter(|(key, _)| !taken.contains(key))
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
}

fn mode(text: &str) -> MtlsMode {
    match text {
        "STRICT" => MtlsMode::Strict,
        "PERMISSIVE" => MtlsMode::Permissive,
        "DISABLE" => MtlsMode::Disable,
        other => panic!("no mode {other}"),
    }
}

fn fact(own: &mut Inventory, verb: &str, words: &[&str]) {
    let option = |key| options(words, key).first().copied();
    match (verb, words) {
        ("cluster", [network, ..]) => {
            own.mesh.network = network.parse().unwrap();
            if let Some(domain) = option("domain") {
                own.mesh.trust_domain = domain.parse().unwrap();
            }
            if let Some(uid) = option("uid") {
                own.uid = uid.into();
            }
            own.mesh.merge_cluster_local = words.contains(&"merge");
            for gateway in options(words, "gateway") {
                let (host, port) = gateway.rsplit_once(':').unwrap();
                let port = port.parse().unwrap();
                own.gateway_addresses.push(GatewayAddress { host: host.into(), port });
            }
        }
        ("namespace", [name, ..]) => {
            own.namespaces.insert((*name).into());
        }
        ("service", [name, address, ports @ ..]) => {
            let name = service(name);
            let port = |word: &&str| {
                let mut parts = word.split('/');
                let number = parts.next()?.parse().ok()?;
                let word = parts.next()?;
                let transport = if word == "udp" { "UDP" } else { "TCP" };
                let protocol = Protocol::of_port(transport, Some(word), "", number);
                Some(ServicePort {
                    number,
                    protocol,
                    name: parts.next().unwrap_or_default().into(),
                })
            };
            let (kind, addresses) = match *address {
                "none" => (ServiceKind::Headless, Vec::new()),
                "external" => (ServiceKind::ExternalName, Vec::new()),
                ip => (ServiceKind::ClusterIp, vec![ip.parse().unwrap()]),
            };
            own.namespaces.insert(name.namespace.clone());
            let value = Service {
                name: name.clone(),
                kind,
                selector: labels_of(words, &["prefer", "created"]),
                addresses,
                ports: ports.iter().filter_map(port).collect(),
                client_ip_affinity: words.contains(&"affinity"),
                traffic_distribution: option("prefer").map(|text| match text {
                    "PreferClose" => TrafficDistribution::PreferClose,
                    "PreferSameZone" => TrafficDistribution::PreferSameZone,
                    "PreferSameNode" => TrafficDistribution::PreferSameNode,
                    other => panic!("no preference {other}"),
                }),
                created: option("created").map_or(0, |text| text.parse().unwrap()),
            };
            own.services.insert(name, value);
        }
        ("pod", [of, pod, address, locality, ..]) => {
            let of = service(of);
            let address: IpAddr = address.parse().unwrap();
            let labels = labels_of(words, &["account", "node", "hostname"]);
            let locality = Locality::from((*locality).to_owned());
            let account = option("account").unwrap_or(&of.name).to_owned();
            let meshed = !words.contains(&"unmeshed");
            let ports = own.services.get(&of).map_or(&[][..], |it| &it.ports);
            let target = |number: u16| if number < 1000 { number + 8000 } else { number };
            let copy = Endpoint {
                address,
                ports: ports.iter().map(|it| (it.number, target(it.number))).collect(),
                locality: locality.clone(),
                account: account.clone(),
                labels: labels.clone(),
                meshed,
                pod: (*pod).into(),
                hostname: option("hostname").unwrap_or_default().into(),
            };
            let name = WorkloadName { namespace: of.namespace.clone(), name: (*pod).into() };
            let workload = Workload {
                name: name.clone(),
                addresses: vec![address],
                account,
                labels,
                node: option("node").unwrap_or_default().into(),
                locality,
                meshed,
            };
            own.workloads.insert(name, workload);
            if words.contains(&"unready") {
                return;
            }
            let copies = own.endpoints.entry(of).or_default();
            copies.push(copy);
            copies.sort();
        }
        ("export", [name, ..]) => {
            own.service_exports.insert(service(name));
        }
        ("link", [name, said @ ..]) => {
            let (accepted, complete) = (said.contains(&"accepted"), said.contains(&"complete"));
            own.links.insert((*name).into(), Link { accepted, complete });
        }
        ("rule", [name, host, rest @ ..]) => {
            let object = object("DestinationRule", name);
            let subset = |text: &&str| {
                let (name, label) = text.split_once(':').unwrap();
                let (key, value) = label.split_once('=').unwrap();
                let labels = BTreeMap::from([(key.to_owned(), value.to_owned())]);
                (name.to_owned(), Subset { labels, policy: TrafficPolicy::default() })
            };
            let rule = DestinationRule {
                object: object.clone(),
                host: host.parse().unwrap(),
                policy: TrafficPolicy {
                    load_balancing: option("lb").map(|text| match text {
                        "RANDOM" => LoadBalancing::Random,
                        "ROUND_ROBIN" => LoadBalancing::RoundRobin,
                        other => panic!("no balancing {other}"),
                    }),
                    connect_timeout_ms: option("timeout").map(|text| text.parse().unwrap()),
                    ..TrafficPolicy::default()
                },
                subsets: options(rest, "subset").iter().map(subset).collect(),
            };
            own.destination_rules.insert(object, rule);
        }
        ("peerauth", [name, said, ..]) => {
            let object = object("PeerAuthentication", name);
            let port = |text: &&str| {
                let (port, said) = text.split_once(':').unwrap();
                (port.parse().unwrap(), mode(said))
            };
            let policy = PeerAuthentication {
                object: object.clone(),
                selector: labels_of(words, &["port", "created"]),
                created: option("created").map_or(0, |text| text.parse().unwrap()),
                mode: (*said != "UNSET").then(|| mode(said)),
                ports: options(words, "port").iter().map(port).collect(),
            };
            own.peer_authentications.insert(object, policy);
        }
        ("policy", [name, said, rest @ ..]) => {
            let object = object("AuthorizationPolicy", name);
            let mut parts = rest.split(|word| *word == "rule");
            let policy = AuthorizationPolicy {
                object: object.clone(),
                selector: labels_of(parts.next().unwrap_or_default(), &[]),
                action: match *said {
                    "ALLOW" => PolicyAction::Allow,
                    "DENY" => PolicyAction::Deny,
                    "CUSTOM" => PolicyAction::Custom,
                    other => panic!("no action {other}"),
                },
                rules: parts.map(rule).collect(),
            };
            own.authorization_policies.insert(object, policy);
        }
        ("passthrough", hosts) => own.passthrough_hosts.push(PassthroughServer {
            object: ObjectRef::new("Gateway", "isthmus-system", "east-west"),
            port: 15443,
            hosts: hosts.iter().map(|host| (*host).into()).collect(),
        }),
        other => panic!("no such fact: {other:?}"),
    }
}

/// One rule, with at most one source and one operation: `principal=P`, `!port=80`, `partial`.
pub(crate) fn rule(words: &[&str]) -> Rule {
    let one = |text: &str| text.parse::<Pattern>().unwrap();
    fn clause<T>(words: &[&str], key: &str, read: impl Fn(&str) -> T) -> Option<Clause<T>> {
        let any_of: Vec<T> = options(words, key).into_iter().map(&read).collect();
        let none_of: Vec<T> = options(words, &format!("!{key}")).into_iter().map(&read).collect();
        let said = !any_of.is_empty() || !none_of.is_empty();
        said.then_some(Clause { any_of, none_of })
    }
    let from = [
        clause(words, "principal", |text| Source::Principal(one(text))),
        clause(words, "namespace", |text| Source::Namespace(one(text))),
        clause(words, "domain", |text| Source::TrustDomain(one(text))),
        clause(words, "account", |text| {
            Source::ServiceAccount(text.to_owned().try_into().unwrap())
        }),
        clause(words, "ip", |text| Source::Ip(block(text).unwrap())),
    ];
    let to = [
        clause(words, "port", |text| Operation::Port(text.parse().unwrap())),
        clause(words, "to-ip", |text| Operation::Ip(block(text).unwrap())),
        clause(words, "sni", |text| Operation::ServerName(one(text))),
    ];
    let from: Vec<_> = from.into_iter().flatten().collect();
    let to: Vec<_> = to.into_iter().flatten().collect();
    Rule {
        from: if from.is_empty() { vec![] } else { vec![from] },
        to: if to.is_empty() { vec![] } else { vec![to] },
        partial: words.contains(&"partial"),
        ..Rule::default()
    }
}

fn object(kind: &str, name: &str) -> ObjectRef {
    let (namespace, name) = name.split_once('/').unwrap();
    ObjectRef::new(kind, namespace, name)
}

/// What a cluster tells a link to it, imported without limits.
pub(crate) fn told(own: &Inventory) -> Exports {
    Exports {
        link: own.mesh.cluster.to_string(),
        cluster: own.mesh.cluster.clone(),
        uid: own.uid.clone(),
        network: own.mesh.network.clone(),
        trust_domain: own.mesh.trust_domain.clone(),
        services: exports(own),
        gateways: own.gateway_addresses.clone(),
        import: ImportPolicy {
            namespaces: BTreeSet::from(["*".into()]),
            gateway_ranges: Vec::new(),
        },
        synced: true,
    }
}

/// What all others tell one cluster.
pub(crate) fn others(all: &Clusters, cluster: &str) -> Vec<Exports> {
    all.iter().filter(|(name, _)| *name != cluster).map(|(_, own)| told(own)).collect()
}

/// The moment of every plan that does not care, seconds since the epoch.
pub(crate) const NOW: i64 = 1_000_000;

pub(crate) fn plan(own: &Inventory, links: &[Exports]) -> Plan {
    federate::plan(own, links, NOW)
}

/// As `cluster::apply` and then `cluster::parse` make it.
pub(crate) fn apply(own: &Inventory, plan: &Plan) -> Inventory {
    let mut own = own.clone();
    let rests = |object: &ObjectRef| plan.resting.contains_key(object);
    own.entries.retain(|object, _| !plan.deletions.contains(object) && !rests(object));
    own.resting = plan.resting.clone();
    own.remote_gateways.retain(|object, _| !plan.deletions.contains(object));
    own.entries.extend(plan.entries.clone());
    own.remote_gateways.extend(plan.gateways.clone());
    own
}

/// One cluster with all others linked and published.
pub(crate) fn linked(all: &Clusters, cluster: &str) -> Inventory {
    let own = &all[cluster];
    apply(own, &plan(own, &others(all, cluster)))
}

pub(crate) fn world(own: Inventory) -> World {
    World::new(Arc::new(own))
}

/// A client in a cluster: `sidecar NAMESPACE/POD LOCALITY`, `gateway isthmus-system/gw eu/a`.
pub(crate) fn view(own: &Inventory, text: &str) -> View {
    let words: Vec<&str> = text.split_whitespace().collect();
    let [role, pod, locality] = words[..] else { panic!("{text}") };
    let (namespace, workload) = pod.split_once('/').unwrap();
    let domain = &own.mesh.trust_domain;
    View {
        role: match role {
            "sidecar" => Role::Sidecar,
            "gateway" => Role::Gateway,
            other => panic!("no role {other}"),
        },
        dialect: Dialect::Isthmus,
        cluster: own.mesh.cluster.clone(),
        network: own.mesh.network.clone(),
        locality: Locality::from(locality.to_owned()),
        namespace: namespace.into(),
        identity: format!("spiffe://{domain}/ns/{namespace}/sa/web").parse().unwrap(),
        workload: workload.into(),
    }
}
