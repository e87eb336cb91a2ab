//! All that one control plane knows, indexed by host; and who asks.

use crate::export::{ROOT_NAMESPACE, is_reserved};
use crate::federate::cluster_of;
use crate::finding::ObjectRef;
use crate::inventory::{
    DestinationRule, GatewayAddress, Inventory, Service, ServiceEntry, ServiceKind, ServicePort,
    WorkloadName,
};
use crate::name::{ClusterId, Hostname, Identity, Locality, Network, ServiceName, TrustDomain};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

/// Who asks, in full: nothing else may shape what one client gets (ARCHITECTURE.md, B6).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct View {
    pub role: Role,
    pub dialect: Dialect,
    pub cluster: ClusterId,
    pub network: Network,
    pub locality: Locality,
    pub namespace: String,
    /// From the client's certificate.
    pub identity: Identity,
    /// The pod's name, checked against a live pod of that account.
    pub workload: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    Sidecar,
    Gateway,
    /// A foreign proxy.
    Agent,
}

/// Which of the listed ways of writing the same resources a client reads (decision 5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dialect {
    Isthmus,
    Envoy,
    /// A gRPC client that is its own proxy (gRFC A27): listeners by `HOST:PORT`, one transport for
    /// all endpoints of a cluster.
    Grpc,
}

/// One cluster's inventory, indexed for compilation. Cheap to clone.
#[derive(Debug, Clone)]
pub struct World {
    pub own: Arc<Inventory>,
    index: Arc<Index>,
}

#[derive(Debug, Default)]
struct Index {
    hosts: HashMap<Hostname, Owner>,
    vips: HashMap<IpAddr, Owner>,
    /// DestinationRules by host, then by the namespace they stand in.
    rules: HashMap<Hostname, BTreeMap<String, ObjectRef>>,
    doors: HashMap<(Network, Option<ClusterId>), Vec<SocketAddr>>,
    trust_domains: BTreeSet<TrustDomain>,
    /// Entries of one cluster's copies, by service and cluster.
    singles: HashMap<ServiceName, BTreeMap<ClusterId, ObjectRef>>,
}

/// Whose name or address it is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Owner {
    Service(ServiceName),
    Entry(ObjectRef),
}

/// What a host means here.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Target<'a> {
    pub(crate) form: Form<'a>,
    /// The host that names it first.
    pub(crate) host: &'a Hostname,
    pub(crate) ports: &'a [ServicePort],
    pub(crate) addresses: &'a [IpAddr],
    /// Other hosts of the same thing.
    pub(crate) aliases: &'a [Hostname],
}

/// Which copies a host stands for.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Form<'a> {
    /// `hello.shop.svc.cluster.local`.
    Local(&'a Service),
    /// `hello.shop.global` and `….svc.clusterset.local`: all exporters.
    All(&'a ServiceName, &'a ServiceEntry),
    /// `hello.shop.west.global`, also for the own cluster.
    One(&'a ServiceName, &'a ServiceEntry, bool),
    /// A user's ServiceEntry.
    User(&'a ServiceEntry),
}

impl<'a> Form<'a> {
    /// The service it is a form of.
    pub(crate) fn service(self) -> Option<&'a ServiceName> {
        match self {
            Self::Local(service) => Some(&service.name),
            Self::All(name, _) | Self::One(name, _, _) => Some(name),
            Self::User(_) => None,
        }
    }

    /// The namespace its object lives in.
    pub(crate) fn namespace(self) -> &'a str {
        match self {
            Self::User(entry) => &entry.object.namespace,
            Self::Local(_) | Self::All(..) | Self::One(..) => {
                self.service().map_or("", |name| &name.namespace)
            }
        }
    }
}

impl World {
    /// Indexes an inventory.
    pub fn new(own: Arc<Inventory>) -> Self {
        let index = Arc::new(Index::of(&own));
        Self { own, index }
    }

    /// Trust domains whose workloads may connect: the own, and those of accepted links.
    pub fn trust_domains(&self) -> &BTreeSet<TrustDomain> {
        &self.index.trust_domains
    }

    /// What a host means; aliases are fine.
    pub(crate) fn target(&self, host: &Hostname) -> Option<Target<'_>> {
        self.target_of(self.index.hosts.get(host)?)
    }

    /// Whose virtual address it is.
    pub(crate) fn target_at(&self, address: IpAddr) -> Option<Target<'_>> {
        self.target_of(self.index.vips.get(&address)?)
    }

    /// Every host that has a meaning, by its first name, in order.
    pub(crate) fn targets(&self) -> impl Iterator<Item = Target<'_>> {
        let services = self.own.services.keys().map(|name| Owner::Service(name.clone()));
        let entries = self.own.entries.keys().map(|object| Owner::Entry(object.clone()));
        services.chain(entries).filter_map(|owner| {
            let target = self.target_of(&owner)?;
            (self.index.hosts.get(target.host) == Some(&owner)).then_some(target)
        })
    }

    fn target_of(&self, owner: &Owner) -> Option<Target<'_>> {
        match owner {
            Owner::Service(name) => {
                let service = self.own.services.get(name)?;
                let (host, _) = self.index.hosts.get_key_value(&name.local_host())?;
                Some(Target {
                    form: Form::Local(service),
                    host,
                    ports: &service.ports,
                    addresses: &service.addresses,
                    aliases: &[],
                })
            }
            Owner::Entry(object) => {
                let entry = self.own.entries.get(object)?;
                let (host, aliases) = entry.hosts.split_first()?;
                let form = match entry.service.as_ref().filter(|_| entry.published) {
                    None => Form::User(entry),
                    Some(name) => match cluster_of(name, host) {
                        None => Form::All(name, entry),
                        Some(cluster) => Form::One(name, entry, cluster == self.own.mesh.cluster),
                    },
                };
                Some(Target {
                    form,
                    host,
                    ports: &entry.ports,
                    addresses: &entry.addresses,
                    aliases,
                })
            }
        }
    }

    /// Whether an address or host belongs to what this target is.
    pub(crate) fn holds(&self, target: &Target<'_>, address: IpAddr) -> bool {
        self.target_at(address).is_some_and(|holder| holder.host == target.host)
    }

    /// The entry of all exporters of a service.
    pub(crate) fn joint_entry(&self, name: &ServiceName) -> Option<&ServiceEntry> {
        match self.target(&name.global_host())?.form {
            Form::All(_, entry) => Some(entry),
            Form::Local(_) | Form::One(..) | Form::User(_) => None,
        }
    }

    /// Entries of one cluster's copies each: who exports the service, and who may answer for it.
    pub(crate) fn singles(
        &self,
        name: &ServiceName,
    ) -> impl Iterator<Item = (&ClusterId, &ServiceEntry)> {
        let singles = self.index.singles.get(name).into_iter().flatten();
        singles.filter_map(|(cluster, object)| Some((cluster, self.own.entries.get(object)?)))
    }

    /// Whether this cluster's copies answer to the service's names beyond `svc.cluster.local`.
    pub(crate) fn exported(&self, name: &ServiceName) -> bool {
        self.own.service_exports.contains(name)
            && !is_reserved(name)
            && self.own.services.get(name).is_some_and(|it| it.kind == ServiceKind::ClusterIp)
    }

    /// Every accepted link is complete, as its own object says: the federation controller judges,
    /// and both DNS servers of a cluster answer alike.
    pub fn all_links_complete(&self) -> bool {
        self.own.links.values().all(|link| link.complete || !link.accepted)
    }

    /// Gateways that lead to a cluster in a network: its own, else the network's common ones.
    /// Never another cluster's: what stands behind them is other copies with other identities.
    pub(crate) fn doors(&self, network: &Network, cluster: &ClusterId) -> &[SocketAddr] {
        let of = |cluster| self.index.doors.get(&(network.clone(), cluster));
        let own = of(Some(cluster.clone())).filter(|doors| !doors.is_empty());
        own.or_else(|| of(None)).map(Vec::as_slice).unwrap_or_default()
    }

    /// The rule for a host as clients in `namespace` have it: their namespace's, then the
    /// service's, then the mesh's. A rule for a service's local host holds for its `.global` forms
    /// too, unless one of these has its own.
    pub(crate) fn rule(&self, target: &Target<'_>, namespace: &str) -> Option<&DestinationRule> {
        let own = [namespace, target.form.namespace(), ROOT_NAMESPACE];
        let hosts = self.rule_hosts(target);
        let object = hosts.into_iter().find_map(|host| {
            let rules = self.index.rules.get(&host)?;
            own.iter().find_map(|namespace| rules.get(*namespace))
        })?;
        self.own.destination_rules.get(object)
    }

    /// Whether the client's namespace decides which rule it gets.
    pub(crate) fn rule_depends_on(&self, target: &Target<'_>, namespace: &str) -> bool {
        let hosts = self.rule_hosts(target);
        hosts.iter().any(|host| {
            self.index.rules.get(host).is_some_and(|rules| rules.contains_key(namespace))
        })
    }

    fn rule_hosts(&self, target: &Target<'_>) -> Vec<Hostname> {
        let mut hosts = vec![target.host.clone()];
        hosts.extend(target.aliases.iter().cloned());
        hosts.extend(target.form.service().map(ServiceName::local_host));
        hosts.dedup();
        hosts
    }

    /// The node a workload runs on; empty where it is not known.
    pub(crate) fn node(&self, namespace: &str, workload: &str) -> &str {
        let name = WorkloadName { namespace: namespace.into(), name: workload.into() };
        self.own.workloads.get(&name).map_or("", |workload| &workload.node)
    }
}

impl Index {
    fn of(own: &Inventory) -> Self {
        let mut index = Self::default();
        for name in own.services.keys() {
            index.hosts.insert(name.local_host(), Owner::Service(name.clone()));
        }
        // Services before entries, older before newer: who was first keeps a contested address.
        let mut services: Vec<_> = own.services.values().collect();
        services.sort_by_key(|service| (service.created, &service.name));
        for service in services {
            for address in &service.addresses {
                let owner = || Owner::Service(service.name.clone());
                index.vips.entry(*address).or_insert_with(owner);
            }
        }
        let mut entries: Vec<_> = own.entries.values().collect();
        entries.sort_by_key(|entry| (!entry.published, entry.created, &entry.object));
        for entry in entries {
            index.add_entry(entry);
        }
        for rule in own.destination_rules.values() {
            let rules = index.rules.entry(rule.host.clone()).or_default();
            rules.entry(rule.object.namespace.clone()).or_insert_with(|| rule.object.clone());
        }
        index.trust_domains = trust_domains(own);
        for door in own.remote_gateways.values() {
            let key = (door.network.clone(), door.cluster.clone());
            let sockets = door.addresses.iter().filter_map(GatewayAddress::socket);
            index.doors.entry(key).or_default().extend(sockets);
        }
        for doors in index.doors.values_mut() {
            doors.sort();
            doors.dedup();
        }
        index
    }

    fn add_entry(&mut self, entry: &ServiceEntry) {
        let owner = || Owner::Entry(entry.object.clone());
        // `*.global` and `*.clusterset.local` are our publisher's alone, and a Service's name is its
        // namespace's (reserved and foreign hosts).
        let stolen = |host: &Hostname| {
            let local = host.as_str().ends_with(".cluster.local");
            is_published_form(host) || (local && !is_in(host, &entry.object))
        };
        if !entry.published && entry.hosts.iter().any(stolen) {
            return;
        }
        for host in &entry.hosts {
            self.hosts.entry(host.clone()).or_insert_with(owner);
        }
        let service = entry.service.as_ref().filter(|_| entry.published);
        if let (Some(name), Some(host)) = (service, entry.hosts.first())
            && let Some(cluster) = cluster_of(name, host)
        {
            let singles = self.singles.entry(name.clone()).or_default();
            singles.entry(cluster).or_insert_with(|| entry.object.clone());
        }
        for address in &entry.addresses {
            self.vips.entry(*address).or_insert_with(owner);
        }
    }
}

/// Trust domains whose workloads may connect: the own, and those of accepted links, as our publisher
/// wrote them down.
pub(crate) fn trust_domains(own: &Inventory) -> BTreeSet<TrustDomain> {
    let mut domains = BTreeSet::from([own.mesh.trust_domain.clone()]);
    for entry in own.entries.values().filter(|entry| entry.published) {
        let named = entry.subject_alt_names.iter().map(|identity| identity.domain.clone());
        let labelled = entry.endpoints.iter().filter_map(|copy| copy.trust_domain());
        domains.extend(named.chain(labelled));
    }
    let doors = own.remote_gateways.values().filter(|door| door.published);
    domains.extend(doors.filter_map(|door| door.trust_domain.clone()));
    domains
}

/// `*.global`, `*.clusterset.local`.
pub(crate) fn is_published_form(host: &Hostname) -> bool {
    let host = host.as_str();
    [".global", ".clusterset.local"].iter().any(|suffix| host.ends_with(suffix))
}

/// The service whose `svc.cluster.local` name this is.
pub(crate) fn local_service(host: &str) -> Option<ServiceName> {
    let (name, namespace) = host.strip_suffix(".svc.cluster.local")?.split_once('.')?;
    ServiceName::new(namespace, name).ok()
}

fn is_in(host: &Hostname, object: &ObjectRef) -> bool {
    host.as_str().split('.').nth(1) == Some(object.namespace.as_str())
}
