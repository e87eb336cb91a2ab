//! What a change of the world can change for clients: names, so that only these are computed again.

use super::ViewPart;
use super::host_of;
use super::outbound::own_identities;
use crate::export::ROOT_NAMESPACE;
use crate::inventory::{Endpoint, Inventory, ServiceEntry, TrafficDistribution, WorkloadName};
use crate::name::{ClusterId, Network, ServiceName};
use crate::program::{ResourceKind, ResourceName};
use crate::world::{World, local_service};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Which resources may differ between two worlds. What it does not name is equal in both.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Affected {
    /// All of them.
    pub everything: bool,
    /// [`super::names`] may differ too: wildcard subscriptions look again.
    pub names: bool,
    hosts: BTreeMap<String, Kinds>,
    vips: BTreeSet<IpAddr>,
    inbound: Inbound,
    gateway: bool,
    zone: bool,
    roots: bool,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Kinds {
    routes: bool,
    clusters: bool,
    endpoints: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Inbound {
    Of(BTreeSet<WorkloadName>),
    All,
}

impl Default for Inbound {
    fn default() -> Self {
        Self::Of(BTreeSet::new())
    }
}

impl Affected {
    /// Nothing differs for anybody.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether this resource, for clients with this part of a View, may differ.
    pub fn touches(&self, name: &ResourceName, part: &ViewPart) -> bool {
        if self.everything {
            return true;
        }
        let host = |kind: fn(&Kinds) -> bool| self.hosts.get(host_of(&name.name)).is_some_and(kind);
        match name.kind {
            ResourceKind::Secret => self.roots,
            ResourceKind::Zone => self.zone,
            ResourceKind::Cluster => host(|kinds| kinds.clusters),
            ResourceKind::Endpoints => host(|kinds| kinds.endpoints),
            ResourceKind::Route => host(|kinds| kinds.routes),
            ResourceKind::Listener if *name == ResourceName::gateway() => self.gateway,
            ResourceKind::Listener if *name == ResourceName::inbound() => match &self.inbound {
                Inbound::All => true,
                Inbound::Of(some) => part.workload.as_ref().is_some_and(|it| some.contains(it)),
            },
            ResourceKind::Listener => {
                let vip = name.name.rsplit_once('_').and_then(|(vip, _)| vip.parse().ok());
                vip.is_some_and(|vip| self.vips.contains(&vip)) || {
                    // `HOST:PORT`, as gRPC clients ask.
                    let host = name.name.rsplit_once(':').map(|(host, _)| host);
                    host.and_then(|host| self.hosts.get(host)).is_some_and(|kinds| kinds.routes)
                }
            }
        }
    }

    fn host(&mut self, host: impl ToString) -> &mut Kinds {
        self.hosts.entry(host.to_string()).or_default()
    }

    fn inbound_of(&mut self, workloads: impl IntoIterator<Item = WorkloadName>) {
        if let Inbound::Of(some) = &mut self.inbound {
            some.extend(workloads);
        }
    }
}

/// What differs for clients between two worlds.
pub fn affected(old: &World, new: &World) -> Affected {
    let mut all = Affected::default();
    let (a, b) = (&*old.own, &*new.own);
    if std::ptr::eq(a, b) {
        return all;
    }
    if a.mesh != b.mesh {
        let roots_only = crate::inventory::MeshConfig {
            root_certificates: b.mesh.root_certificates.clone(),
            ..a.mesh.clone()
        };
        if roots_only != b.mesh {
            return Affected { everything: true, names: true, ..all };
        }
        all.roots = true;
    }
    let diff = Diff { old, new, a, b };
    diff.services(&mut all);
    diff.endpoints(&mut all);
    diff.entries(&mut all);
    diff.gateways(&mut all);
    diff.rules(&mut all);
    diff.workloads(&mut all);
    diff.policies(&mut all);
    let exports = a.service_exports != b.service_exports;
    if a.namespaces != b.namespaces
        || exports
        || old.all_links_complete() != new.all_links_complete()
    {
        all.zone = true;
    }
    if a.passthrough_hosts != b.passthrough_hosts {
        for name in a.service_exports.union(&b.service_exports) {
            diff.family(&mut all, name, Kinds { routes: false, clusters: true, endpoints: true });
        }
        (all.gateway, all.names) = (true, true);
    }
    if old.trust_domains() != new.trust_domains()
        || a.peer_authentications != b.peer_authentications
    {
        all.inbound = Inbound::All;
    }
    all
}

struct Diff<'a> {
    old: &'a World,
    new: &'a World,
    a: &'a Inventory,
    b: &'a Inventory,
}

const WHOLE: Kinds = Kinds { routes: true, clusters: true, endpoints: true };
const COPIES: Kinds = Kinds { routes: false, clusters: false, endpoints: true };

impl Diff<'_> {
    /// All hosts of a service, in both worlds.
    fn family(&self, all: &mut Affected, name: &ServiceName, kinds: Kinds) {
        let mut hosts = BTreeSet::from([
            name.local_host(),
            name.clusterset_host(),
            name.global_host(),
            name.cluster_host(&self.b.mesh.cluster),
        ]);
        for world in [self.old, self.new] {
            hosts.extend(world.singles(name).map(|(cluster, _)| name.cluster_host(cluster)));
        }
        for host in hosts {
            let at = all.host(host);
            at.routes |= kinds.routes;
            at.clusters |= kinds.clusters;
            at.endpoints |= kinds.endpoints;
        }
    }

    fn services(&self, all: &mut Affected) {
        for (name, _) in changed(&self.a.services, &self.b.services) {
            self.family(all, name, WHOLE);
            (all.zone, all.names) = (true, true);
            for own in [self.a, self.b] {
                let addresses = own.services.get(name).into_iter().flat_map(|it| &it.addresses);
                all.vips.extend(addresses);
                all.gateway |= own.service_exports.contains(name);
                let copies = own.endpoints.get(name).into_iter().flatten();
                all.inbound_of(copies.map(|copy| pod(name, copy)));
            }
        }
        for name in self.a.service_exports.symmetric_difference(&self.b.service_exports) {
            self.family(all, name, WHOLE);
            (all.gateway, all.names) = (true, true);
        }
    }

    fn endpoints(&self, all: &mut Affected) {
        for (name, (a, b)) in changed(&self.a.endpoints, &self.b.endpoints) {
            self.family(all, name, COPIES);
            if own_identities(self.old, name) != own_identities(self.new, name) {
                self.family(all, name, Kinds { clusters: true, ..COPIES });
            }
            let a: BTreeSet<&Endpoint> = a.into_iter().flatten().collect();
            let b: BTreeSet<&Endpoint> = b.into_iter().flatten().collect();
            all.inbound_of(a.symmetric_difference(&b).map(|copy| pod(name, copy)));
            let service = |own: &Inventory| own.services.get(name).cloned();
            let virtual_address = service(self.b).is_some_and(|it| !it.addresses.is_empty());
            all.zone |= !virtual_address;
        }
    }

    fn entries(&self, all: &mut Affected) {
        for (_, (a, b)) in changed(&self.a.entries, &self.b.entries) {
            let same = |field: fn(&ServiceEntry, &ServiceEntry) -> bool| match (a, b) {
                (Some(a), Some(b)) => field(a, b),
                (None, _) | (_, None) => false,
            };
            let shape = same(|a, b| {
                let rest = ServiceEntry {
                    endpoints: b.endpoints.clone(),
                    subject_alt_names: b.subject_alt_names.clone(),
                    ..a.clone()
                };
                rest == *b
            });
            // Accounts and domains on endpoints shape clusters where no names are listed.
            let who = same(|a, b| {
                let key = |entry: &ServiceEntry| -> BTreeSet<_> {
                    let copies = entry.endpoints.iter();
                    copies
                        .map(|it| {
                            (it.cluster.clone(), it.trust_domain(), it.account.clone(), it.meshed())
                        })
                        .collect()
                };
                // Ours with entries per cluster read names from there alone.
                let single = a.published && a.service.is_some();
                a.subject_alt_names == b.subject_alt_names && (single || key(a) == key(b))
            }) && !self.unnamed(a.or(b));
            let kinds = Kinds { routes: !shape, clusters: !shape || !who, endpoints: true };
            for entry in [a, b].into_iter().flatten() {
                for host in &entry.hosts {
                    let at = all.host(host);
                    at.routes |= kinds.routes;
                    at.clusters |= kinds.clusters;
                    at.endpoints |= kinds.endpoints;
                }
                if let Some(name) = entry.service.as_ref().filter(|_| entry.published) {
                    self.family(all, name, kinds);
                }
                if !shape {
                    all.vips.extend(&entry.addresses);
                }
            }
            all.zone |= !shape;
            all.names |= !shape;
        }
    }

    /// An entry of ours with a cluster that has none of its own: its endpoints say who may answer.
    fn unnamed(&self, entry: Option<&ServiceEntry>) -> bool {
        let Some((entry, name)) = entry.and_then(|it| Some((it, it.service.as_ref()?))) else {
            return false;
        };
        let known: BTreeSet<&ClusterId> = self.new.singles(name).map(|(id, _)| id).collect();
        entry.endpoints.iter().any(|copy| !known.contains(&copy.cluster))
    }

    fn gateways(&self, all: &mut Affected) {
        let mut networks: BTreeSet<&Network> = BTreeSet::new();
        for (_, (a, b)) in changed(&self.a.remote_gateways, &self.b.remote_gateways) {
            networks.extend([a, b].into_iter().flatten().map(|door| &door.network));
        }
        if networks.is_empty() {
            return;
        }
        for entry in self.b.entries.values() {
            if !entry.endpoints.iter().any(|copy| networks.contains(&copy.network)) {
                continue;
            }
            for host in &entry.hosts {
                all.host(host).endpoints = true;
            }
            if let Some(name) = &entry.service {
                self.family(all, name, COPIES);
            }
        }
    }

    fn rules(&self, all: &mut Affected) {
        for (_, (a, b)) in changed(&self.a.destination_rules, &self.b.destination_rules) {
            let kinds = Kinds { routes: false, clusters: true, endpoints: true };
            for rule in [a, b].into_iter().flatten() {
                // It holds for the service's other names even where there is no such Service here.
                let mut services: BTreeSet<ServiceName> =
                    local_service(rule.host.as_str()).into_iter().collect();
                for world in [self.old, self.new] {
                    let Some(target) = world.target(&rule.host) else { continue };
                    services.extend(target.form.service().cloned());
                    for host in target.aliases.iter().chain([target.host]) {
                        let at = all.host(host);
                        (at.clusters, at.endpoints) = (true, true);
                    }
                }
                for name in services {
                    self.family(all, &name, kinds);
                    all.gateway |= self.old.exported(&name) || self.new.exported(&name);
                }
            }
            all.names = true;
        }
    }

    fn workloads(&self, all: &mut Affected) {
        let mut moved: BTreeSet<&str> = BTreeSet::new();
        for (name, (a, b)) in changed(&self.a.workloads, &self.b.workloads) {
            all.inbound_of([name.clone()]);
            all.names |= a.is_some() != b.is_some();
            if a.map(|it| &it.node) != b.map(|it| &it.node) {
                moved.insert(&name.namespace);
            }
        }
        // A pod of the same name on another node is nearer to others now.
        for service in self.b.services.values() {
            let by_node = service.traffic_distribution == Some(TrafficDistribution::PreferSameNode);
            if by_node && moved.contains(service.name.namespace.as_str()) {
                self.family(all, &service.name, COPIES);
            }
        }
    }
}

impl Diff<'_> {
    fn policies(&self, all: &mut Affected) {
        let (a, b) = (&self.a.authorization_policies, &self.b.authorization_policies);
        for (object, _) in changed(a, b) {
            if object.namespace == ROOT_NAMESPACE {
                all.inbound = Inbound::All;
                return;
            }
            let first = WorkloadName { namespace: object.namespace.clone(), name: String::new() };
            let pods = self.b.workloads.range(first..).map(|(name, _)| name);
            let here = pods.take_while(|name| name.namespace == object.namespace);
            all.inbound_of(here.cloned());
        }
    }
}

fn pod(service: &ServiceName, copy: &Endpoint) -> WorkloadName {
    WorkloadName { namespace: service.namespace.clone(), name: copy.pod.clone() }
}

/// A value before and after.
type Change<'a, V> = (Option<&'a V>, Option<&'a V>);

/// Keys whose values differ, with both values: one merge over two sorted maps.
fn changed<'a, K: Ord, V: PartialEq>(
    a: &'a BTreeMap<K, V>,
    b: &'a BTreeMap<K, V>,
) -> Vec<(&'a K, Change<'a, V>)> {
    let mut changes = Vec::new();
    let (mut a, mut b) = (a.iter().peekable(), b.iter().peekable());
    loop {
        let order = match (a.peek(), b.peek()) {
            (None, None) => return changes,
            (Some(_), None) => std::cmp::Ordering::Less,
            (None, Some(_)) => std::cmp::Ordering::Greater,
            (Some((x, _)), Some((y, _))) => x.cmp(y),
        };
        match order {
            std::cmp::Ordering::Less => {
                changes.extend(a.next().map(|(key, value)| (key, (Some(value), None))));
            }
            std::cmp::Ordering::Greater => {
                changes.extend(b.next().map(|(key, value)| (key, (None, Some(value)))));
            }
            std::cmp::Ordering::Equal => {
                if let (Some((key, x)), Some((_, y))) = (a.next(), b.next())
                    && x != y
                {
                    changes.push((key, (Some(x), Some(y))));
                }
            }
        }
    }
}
