//! What a client dials: listeners by virtual address, routes, clusters and their endpoints.

use super::horizon::{Copies, Place, Viewpoint, groups};
use crate::export::selects;
use crate::inventory::{
    Endpoint, EntryEndpoint, ServiceEntry, ServiceKind, ServicePort, Subset, TrafficDistribution,
    TrafficPolicy,
};
use crate::name::{ClusterId, Hostname, Identity, Protocol, ServiceName, TrustDomain};
use crate::program::{
    Cluster, ClusterName, ConnectionPool, Direction, Endpoints, Listener, LoadBalancing,
    OutboundListener, OutboundTarget, Resource, ResourceKind, ResourceName, Retry, Route,
};
use crate::sni::Sni;
use crate::world::{Dialect, Form, Target, View, World};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

/// Milliseconds a connection may take, where no rule says otherwise.
const CONNECT_TIMEOUT_MS: u64 = 1_000;

/// `VIP_PORT`.
pub(super) fn listener(world: &World, name: &str) -> Option<Resource> {
    let (address, port) = vip_port(name)?;
    let target = world.target_at(address)?;
    let port = carried(target.ports, port)?;
    let cluster = ClusterName::outbound(port.number, "", target.host);
    let route = cluster.to_string();
    let target_of = match port.protocol {
        Protocol::Http | Protocol::Http2 | Protocol::Grpc => OutboundTarget::Http { route },
        Protocol::Auto => OutboundTarget::Auto { route, cluster },
        Protocol::Tcp | Protocol::Udp => OutboundTarget::Tcp { cluster },
    };
    Some(Resource::Listener(Listener::Outbound(OutboundListener {
        address: SocketAddr::new(address, port.number),
        host: target.host.clone(),
        target: target_of,
    })))
}

/// `240.240.7.2_80`, `2001:2::7_80`, in the one way in which [`ResourceName::outbound`] writes it.
fn vip_port(name: &str) -> Option<(IpAddr, u16)> {
    let (address, port) = name.rsplit_once('_')?;
    let (address, port) = (address.parse().ok()?, port.parse().ok()?);
    (ResourceName::outbound(address, port).name == name).then_some((address, port))
}

/// The port of this number that a proxy carries: not UDP.
pub(crate) fn carried(ports: &[ServicePort], number: u16) -> Option<&ServicePort> {
    ports.iter().find(|port| port.number == number && port.protocol != Protocol::Udp)
}

/// A service's port as a cluster's name means it.
pub(crate) struct Named<'a> {
    pub(crate) target: Target<'a>,
    pub(crate) port: &'a ServicePort,
    pub(crate) host: Hostname,
}

/// What an outbound cluster's name means here.
pub(crate) fn named<'a>(world: &'a World, name: &ClusterName) -> Option<Named<'a>> {
    if name.direction != Direction::Outbound {
        return None;
    }
    let host: Hostname = name.host.parse().ok()?;
    let target = world.target(&host)?;
    if is_external_name(&target) {
        return None;
    }
    let port = carried(target.ports, name.port)?;
    Some(Named { target, port, host })
}

pub(super) fn is_external_name(target: &Target<'_>) -> bool {
    matches!(target.form, Form::Local(service) if service.kind == ServiceKind::ExternalName)
}

pub(super) fn route(world: &World, name: &str) -> Option<Resource> {
    let cluster: ClusterName = name.parse().ok()?;
    let port = named(world, &cluster)?.port;
    let route = Route { name: name.into(), cluster, timeout_ms: 0, retry: Retry::default() };
    port.protocol.may_be_http().then_some(Resource::Route(route))
}

pub(super) fn cluster(world: &World, view: &View, name: &ClusterName) -> Option<Resource> {
    let found = named(world, name)?;
    let subset = subset(world, view, &found.target, &name.subset)?;
    let rule = world.rule(&found.target, &view.namespace);
    let policies = [subset.map(|subset| &subset.policy), rule.map(|rule| &rule.policy)];
    let sni = Sni { port: name.port, subset: name.subset.clone(), host: found.host };
    let mut cluster = plain(name.clone());
    cluster.sni = sni.to_string();
    cluster.protocol = found.port.protocol;
    apply(&mut cluster, policies.into_iter().flatten());
    cluster.server_identities = identities(world, &found.target);
    Some(Resource::Cluster(cluster))
}

/// A cluster that no rule speaks about.
pub(super) fn plain(name: ClusterName) -> Cluster {
    Cluster {
        name,
        sni: String::new(),
        protocol: Protocol::Tcp,
        load_balancing: LoadBalancing::LeastRequest,
        connect_timeout_ms: CONNECT_TIMEOUT_MS,
        outlier: crate::program::OutlierDetection::default(),
        pool: ConnectionPool::default(),
        server_identities: BTreeMap::new(),
    }
}

/// The first policy that says something wins: a subset's before its rule's.
fn apply<'a>(cluster: &mut Cluster, policies: impl Iterator<Item = &'a TrafficPolicy> + Clone) {
    fn first<'a, T: Clone + 'a>(
        mut policies: impl Iterator<Item = &'a TrafficPolicy>,
        field: impl Fn(&'a TrafficPolicy) -> &'a Option<T>,
        set: &mut T,
    ) {
        if let Some(value) = policies.find_map(|policy| field(policy).clone()) {
            *set = value;
        }
    }
    let all = || policies.clone();
    first(all(), |it| &it.load_balancing, &mut cluster.load_balancing);
    first(all(), |it| &it.connect_timeout_ms, &mut cluster.connect_timeout_ms);
    first(all(), |it| &it.outlier, &mut cluster.outlier);
    let pool = &mut cluster.pool;
    first(all(), |it| &it.max_connections, &mut pool.max_connections);
    first(all(), |it| &it.max_pending_requests, &mut pool.max_pending_requests);
    first(all(), |it| &it.max_requests_per_connection, &mut pool.max_requests_per_connection);
    first(all(), |it| &it.idle_timeout_ms, &mut pool.idle_timeout_ms);
}

/// `Some(None)` for the whole service, `None` for a subset that no rule has.
#[expect(clippy::option_option, reason = "no subset asked for, and no such subset, differ")]
pub(crate) fn subset<'a>(
    world: &'a World,
    view: &View,
    target: &Target<'_>,
    name: &str,
) -> Option<Option<&'a Subset>> {
    if name.is_empty() {
        return Some(None);
    }
    world.rule(target, &view.namespace)?.subsets.get(name).map(Some)
}

pub(super) fn endpoints(world: &World, view: &View, name: &ClusterName) -> Option<Resource> {
    let found = named(world, name)?;
    let subset = subset(world, view, &found.target, &name.subset)?;
    let copies = copies(world, &found, &name.subset, subset);
    let mut groups = groups(viewpoint(world, view), &copies, distribution(world, &found.target));
    if view.dialect == Dialect::Grpc {
        groups = super::proxyless::reachable(groups, &identities(world, &found.target));
    }
    Some(Resource::Endpoints(Endpoints { cluster: name.clone(), groups }))
}

/// From where a client looks.
pub(crate) fn viewpoint<'a>(world: &'a World, view: &'a View) -> Viewpoint<'a> {
    Viewpoint {
        network: &view.network,
        locality: &view.locality,
        node: world.node(&view.namespace, &view.workload),
    }
}

/// The local Service's `trafficDistribution` holds for all names of the service.
pub(crate) fn distribution(world: &World, target: &Target<'_>) -> Option<TrafficDistribution> {
    world.own.services.get(target.form.service()?)?.traffic_distribution
}

/// All copies a name stands for, reachable or not.
pub(crate) fn copies<'a>(
    world: &'a World,
    found: &Named<'a>,
    subset_name: &str,
    subset: Option<&Subset>,
) -> Vec<Copies<'a>> {
    let port = found.port;
    let wanted = subset.map(|subset| &subset.labels);
    let pick = |copy: &Endpoint| wanted.is_none_or(|wanted| selects(wanted, &copy.labels));
    let remote = |entry| remote(world, entry, port, subset_name);
    let mut all = Vec::new();
    match found.target.form {
        Form::Local(service) => {
            all.extend(own(world, &service.name, port, |copy| pick(copy)));
            if let Some(entry) = joined(world, &service.name) {
                all.extend(remote(entry));
            }
        }
        Form::All(name, entry) => {
            if world.exported(name) {
                all.extend(own(world, name, port, |copy| copy.meshed && pick(copy)));
            }
            all.extend(remote(entry));
        }
        Form::One(name, _, true) => {
            if world.exported(name) {
                all.extend(own(world, name, port, |copy| copy.meshed && pick(copy)));
            }
        }
        Form::One(_, entry, false) | Form::User(entry) => all.extend(remote(entry)),
    }
    all
}

/// The entry whose copies join `svc.cluster.local`: with consent of both sides (decision 7).
pub(crate) fn joined<'a>(world: &'a World, name: &ServiceName) -> Option<&'a ServiceEntry> {
    let consent = world.own.mesh.merge_cluster_local || world.exported(name);
    world.joint_entry(name).filter(|_| consent)
}

/// Own pods behind a port of the same number and protocol.
pub(super) fn own<'a>(
    world: &'a World,
    name: &'a ServiceName,
    port: &ServicePort,
    pick: impl Fn(&Endpoint) -> bool,
) -> Vec<Copies<'a>> {
    let mesh = &world.own.mesh;
    let service = world.own.services.get(name);
    let same = service.and_then(|service| carried(&service.ports, port.number));
    if same.is_none_or(|same| same.protocol != port.protocol) {
        return Vec::new();
    }
    let copies = world.own.endpoints.get(name).map(Vec::as_slice).unwrap_or_default();
    let copy = |copy: &'a Endpoint| {
        let target = *copy.ports.get(&port.number)?;
        Some(Copies {
            cluster: &mesh.cluster,
            network: &mesh.network,
            locality: &copy.locality,
            weight: 1,
            meshed: copy.meshed,
            place: Place::Address {
                socket: SocketAddr::new(copy.address, target),
                pod: &copy.pod,
                node: world.node(&name.namespace, &copy.pod),
            },
        })
    };
    copies.iter().filter(|copy| pick(copy)).filter_map(copy).collect()
}

fn remote<'a>(
    world: &'a World,
    entry: &'a ServiceEntry,
    port: &ServicePort,
    subset: &str,
) -> Vec<Copies<'a>> {
    let same = carried(&entry.ports, port.number);
    if same.is_none_or(|same| same.protocol != port.protocol) {
        return Vec::new();
    }
    let copy = |copy: &'a EntryEndpoint| Copies {
        cluster: &copy.cluster,
        network: &copy.network,
        locality: &copy.locality,
        weight: if copy.address.is_some() { copy.weight.max(1) } else { copy.ready(subset) },
        meshed: copy.meshed(),
        place: match copy.address.filter(|_| copy.network == world.own.mesh.network) {
            Some(ip) => {
                Place::Address { socket: SocketAddr::new(ip, port.number), pod: "", node: "" }
            }
            None => Place::Behind { doors: world.doors(&copy.network, &copy.cluster) },
        },
    };
    let serves = |copy: &&EntryEndpoint| copy.serves(port.number);
    entry.endpoints.iter().filter(serves).map(copy).collect()
}

/// Who may answer, per cluster: its accounts' identities in its trust domain. Where clusters share a
/// domain (Istio's way) each still has its own accounts.
pub(crate) fn identities(
    world: &World,
    target: &Target<'_>,
) -> BTreeMap<ClusterId, BTreeSet<Identity>> {
    let mut all = BTreeMap::new();
    let mesh = &world.own.mesh;
    let add_own = |all: &mut BTreeMap<_, _>, name: &ServiceName| {
        let own = own_identities(world, name);
        if !own.is_empty() {
            all.insert(mesh.cluster.clone(), own);
        }
    };
    match target.form {
        Form::Local(service) => {
            add_own(&mut all, &service.name);
            if let Some(entry) = joined(world, &service.name) {
                all.extend(remote_identities(world, &service.name, entry));
            }
        }
        Form::All(name, entry) => {
            if world.exported(name) {
                add_own(&mut all, name);
            }
            all.extend(remote_identities(world, name, entry));
        }
        Form::One(name, _, true) => {
            if world.exported(name) {
                add_own(&mut all, name);
            }
        }
        Form::One(name, entry, false) => {
            let mut remote = remote_identities(world, name, entry);
            remote.retain(|cluster, _| name.cluster_host(cluster) == *target.host);
            all.extend(remote);
        }
        Form::User(entry) => all.extend(users_identities(world, entry)),
    }
    all
}

/// Accounts of own meshed copies; those named last while there is none.
pub(super) fn own_identities(world: &World, name: &ServiceName) -> BTreeSet<Identity> {
    let mesh = &world.own.mesh;
    let copies = world.own.endpoints.get(name).into_iter().flatten();
    let accounts = copies.filter(|copy| copy.meshed).map(|copy| copy.account.as_str());
    let identity = |account| identity(&mesh.trust_domain, &name.namespace, account);
    let mut all: BTreeSet<Identity> = accounts.filter_map(identity).collect();
    let published = world.singles(name).find(|(cluster, _)| **cluster == mesh.cluster);
    let named = published.into_iter().flat_map(|(_, entry)| &entry.subject_alt_names);
    all.extend(named.filter(|identity| identity.domain == mesh.trust_domain).cloned());
    all
}

fn remote_identities(
    world: &World,
    name: &ServiceName,
    entry: &ServiceEntry,
) -> BTreeMap<ClusterId, BTreeSet<Identity>> {
    let own = &world.own.mesh.cluster;
    let singles = world.singles(name).filter(|(cluster, _)| *cluster != own);
    let of = |(cluster, entry): (&ClusterId, &ServiceEntry)| {
        (cluster.clone(), entry.subject_alt_names.iter().cloned().collect())
    };
    let mut all: BTreeMap<ClusterId, BTreeSet<Identity>> = singles.map(of).collect();
    // A cluster without an entry of its own: what the joint one names in that cluster's domain.
    for copy in &entry.endpoints {
        if copy.cluster == *own || all.contains_key(&copy.cluster) {
            continue;
        }
        let Some(domain) = copy.trust_domain() else { continue };
        let named = entry.subject_alt_names.iter().filter(|identity| identity.domain == domain);
        all.insert(copy.cluster.clone(), named.cloned().collect());
    }
    all.retain(|_, identities| !identities.is_empty());
    all
}

fn users_identities(
    world: &World,
    entry: &ServiceEntry,
) -> BTreeMap<ClusterId, BTreeSet<Identity>> {
    let mut all: BTreeMap<ClusterId, BTreeSet<Identity>> = BTreeMap::new();
    for copy in entry.endpoints.iter().filter(|copy| copy.meshed()) {
        let named = all.entry(copy.cluster.clone()).or_default();
        named.extend(entry.subject_alt_names.iter().cloned());
        if entry.subject_alt_names.is_empty() {
            let domain = &world.own.mesh.trust_domain;
            named.extend(identity(domain, &entry.object.namespace, &copy.account));
        }
    }
    all
}

fn identity(domain: &TrustDomain, namespace: &str, account: &str) -> Option<Identity> {
    // Through text, so that an account that is no name becomes no identity.
    format!("spiffe://{domain}/ns/{namespace}/sa/{account}").parse().ok()
}

/// All names of a kind that clients may ask for.
pub(super) fn names(world: &World, view: &View, kind: ResourceKind) -> Vec<ResourceName> {
    let mut names = BTreeSet::new();
    for target in world.targets() {
        if is_external_name(&target) {
            continue;
        }
        let carried = target.ports.iter().filter(|port| port.protocol != Protocol::Udp);
        for port in carried {
            let cluster = |subset: &str| {
                let name = ClusterName::outbound(port.number, subset, target.host).to_string();
                ResourceName::new(kind, name)
            };
            match kind {
                ResourceKind::Listener => {
                    let held = target.addresses.iter().filter(|ip| world.holds(&target, **ip));
                    names.extend(held.map(|ip| ResourceName::outbound(*ip, port.number)));
                }
                ResourceKind::Route if port.protocol.may_be_http() => {
                    names.insert(cluster(""));
                }
                ResourceKind::Cluster | ResourceKind::Endpoints => {
                    names.insert(cluster(""));
                    let rule = world.rule(&target, &view.namespace);
                    let subsets = rule.into_iter().flat_map(|rule| rule.subsets.keys());
                    names.extend(subsets.map(|subset| cluster(subset)));
                }
                ResourceKind::Route | ResourceKind::Secret | ResourceKind::Zone => {}
            }
        }
    }
    names.into_iter().collect()
}
