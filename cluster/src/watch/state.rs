//! All kinds of one cluster joined into an `Inventory`: pure, and only what changed is done again.

use super::join::{self, Links};
use super::store::{Item, Key, Store, Touched};
use crate::follow::Change;
use crate::parse::endpoint_slice::Slice;
use crate::parse::gateway_service::Door;
use crate::parse::pod::PodFacts;
use crate::parse::service_entry::{self, Place};
use kube::api::DynamicObject;
use mesh::finding::{Finding, ObjectRef};
use mesh::inventory::{
    AuthorizationPolicy, DestinationRule, Inventory, Link, MeshConfig, PassthroughServer,
    PeerAuthentication, RemoteGateway, Service, ServiceEntry, WorkloadName,
};
use mesh::name::{Locality, ServiceName};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// A Service, and the door it may be.
#[derive(Debug, PartialEq)]
pub(super) struct ServiceFacts {
    pub(super) service: Option<Service>,
    pub(super) door: Option<Door>,
}

/// News of one kind.
#[derive(Debug)]
pub(super) enum Input {
    Service(Change<Item<ServiceFacts>>),
    Slice(Change<Item<Slice>>),
    Pod(Change<Item<PodFacts>>),
    Node(Change<Item<Locality>>),
    /// The value is the UID.
    Namespace(Change<Item<String>>),
    MeshConfig(Change<Item<MeshConfig>>),
    /// Read beside the mesh's configuration, so kept as it is.
    Entry(Change<Item<DynamicObject>>),
    Passthrough(Change<Item<Vec<PassthroughServer>>>),
    RemoteGateway(Change<Item<RemoteGateway>>),
    PeerAuthentication(Change<Item<PeerAuthentication>>),
    AuthorizationPolicy(Change<Item<AuthorizationPolicy>>),
    DestinationRule(Change<Item<DestinationRule>>),
    ServiceExport(Change<Item<ServiceName>>),
    ClusterLink(Change<Item<Link>>),
}

/// One cluster, kind by kind, and the inventory made of it.
#[derive(Debug)]
pub(super) struct State {
    root_namespace: String,
    services: Store<ServiceFacts>,
    slices: Store<Slice>,
    pods: Store<PodFacts>,
    nodes: Store<Locality>,
    namespaces: Store<String>,
    configs: Store<MeshConfig>,
    entries: Store<DynamicObject>,
    passthrough: Store<Vec<PassthroughServer>>,
    remote_gateways: Store<RemoteGateway>,
    peer_authentications: Store<PeerAuthentication>,
    authorization_policies: Store<AuthorizationPolicy>,
    destination_rules: Store<DestinationRule>,
    service_exports: Store<ServiceName>,
    cluster_links: Store<Link>,
    links: Links,
    /// The last good configuration: a bad or deleted one does not unmake a running mesh.
    mesh: Option<MeshConfig>,
    entry_findings: BTreeMap<Key, Vec<Finding>>,
    dirty: Dirty,
    current: Option<Arc<Inventory>>,
}

/// What is to be done again before the next inventory.
#[derive(Debug, Default)]
struct Dirty {
    services: BTreeSet<Key>,
    endpoints: BTreeSet<ServiceName>,
    workloads: BTreeSet<Key>,
    entries: BTreeSet<Key>,
    remote_gateways: BTreeSet<Key>,
    peer_authentications: BTreeSet<Key>,
    authorization_policies: BTreeSet<Key>,
    destination_rules: BTreeSet<Key>,
    /// Mesh configuration, namespaces, doors, passthrough servers, exports, links: small, and made
    /// whole.
    small: bool,
    findings: bool,
}

impl State {
    pub(super) fn new(root_namespace: &str) -> Self {
        Self {
            root_namespace: root_namespace.into(),
            services: Store::default(),
            slices: Store::default(),
            pods: Store::default(),
            nodes: Store::default(),
            namespaces: Store::default(),
            configs: Store::default(),
            entries: Store::default(),
            passthrough: Store::default(),
            remote_gateways: Store::default(),
            peer_authentications: Store::default(),
            authorization_policies: Store::default(),
            destination_rules: Store::default(),
            service_exports: Store::default(),
            cluster_links: Store::default(),
            links: Links::default(),
            mesh: None,
            entry_findings: BTreeMap::new(),
            dirty: Dirty { small: true, findings: true, ..Dirty::default() },
            current: None,
        }
    }

    /// Takes one piece of news.
    pub(super) fn apply(&mut self, input: Input) {
        let touched = match input {
            Input::Service(change) => {
                let touched = self.services.apply(change);
                for key in &touched.values {
                    self.dirty.small = true; // It may be a door.
                    self.dirty.endpoints.extend(service_name(key));
                }
                self.dirty.services.extend(touched.values.iter().cloned());
                touched
            }
            Input::Slice(change) => {
                let touched = self.slices.apply(change);
                for key in &touched.values {
                    let services = self.links.slice(key, self.slices.values.get(key));
                    self.dirty.endpoints.extend(services);
                }
                touched
            }
            Input::Pod(change) => {
                let touched = self.pods.apply(change);
                for key in &touched.values {
                    self.links.pod(key, self.pods.values.get(key));
                    self.dirty.endpoints.extend(self.links.services_of(key));
                }
                self.dirty.workloads.extend(touched.values.iter().cloned());
                touched
            }
            Input::Node(change) => {
                let touched = self.nodes.apply(change);
                for key in &touched.values {
                    for pod in self.links.pods_on(&key.name) {
                        self.dirty.endpoints.extend(self.links.services_of(&pod));
                        self.dirty.workloads.insert(pod);
                    }
                    self.dirty.endpoints.extend(self.links.podless_on(&key.name));
                }
                touched
            }
            Input::Namespace(change) => self.small(|state| state.namespaces.apply(change)),
            Input::MeshConfig(change) => {
                let touched = self.small(|state| state.configs.apply(change));
                if let Some(mesh) = self.configs.values.values().next()
                    && self.mesh.as_ref() != Some(mesh)
                {
                    self.mesh = Some(mesh.clone());
                    self.dirty.entries.extend(self.entries.values.keys().cloned());
                }
                touched
            }
            Input::Entry(change) => {
                let touched = self.entries.apply(change);
                self.dirty.entries.extend(touched.values.iter().cloned());
                touched
            }
            Input::Passthrough(change) => self.small(|state| state.passthrough.apply(change)),
            Input::ServiceExport(change) => self.small(|state| state.service_exports.apply(change)),
            Input::ClusterLink(change) => self.small(|state| state.cluster_links.apply(change)),
            Input::RemoteGateway(change) => {
                let touched = self.remote_gateways.apply(change);
                self.dirty.remote_gateways.extend(touched.values.iter().cloned());
                touched
            }
            Input::PeerAuthentication(change) => {
                let touched = self.peer_authentications.apply(change);
                self.dirty.peer_authentications.extend(touched.values.iter().cloned());
                touched
            }
            Input::AuthorizationPolicy(change) => {
                let touched = self.authorization_policies.apply(change);
                self.dirty.authorization_policies.extend(touched.values.iter().cloned());
                touched
            }
            Input::DestinationRule(change) => {
                let touched = self.destination_rules.apply(change);
                self.dirty.destination_rules.extend(touched.values.iter().cloned());
                touched
            }
        };
        self.dirty.findings |= touched.findings;
    }

    fn small(&mut self, apply: impl FnOnce(&mut Self) -> Touched) -> Touched {
        let touched = apply(self);
        self.dirty.small |= !touched.values.is_empty();
        touched
    }

    /// What the first inventory waits for, beyond whole lists.
    pub(super) fn waiting(&self) -> Option<String> {
        if self.mesh.is_some() || !self.configs.synced {
            return None;
        }
        let name = format!("ConfigMap {}/{}", self.root_namespace, crate::parse::mesh_config::NAME);
        let mut problems = self.configs.findings.values().flatten();
        Some(match problems.next() {
            Some(finding) => format!("{name} cannot be used: {finding}"),
            None => format!("{name} does not exist"),
        })
    }

    /// The inventory as of all news so far; `None` while it is not whole, or where it is equal to
    /// the last one handed out.
    pub(super) fn inventory(&mut self) -> Option<Arc<Inventory>> {
        let mesh = self.mesh.clone()?;
        if !self.is_whole() {
            return None;
        }
        let first = self.current.is_none();
        let mut inventory =
            self.current.take().unwrap_or_else(|| Arc::new(Inventory::empty(mesh.clone())));
        let before = Arc::clone(&inventory);
        let dirty = std::mem::take(&mut self.dirty);
        self.services_and_endpoints(&mut inventory, &dirty);
        self.policies(&mut inventory, &dirty);
        let entry_findings = self.entries(&mut inventory, &dirty.entries, &mesh);
        if dirty.small {
            self.small_parts(&mut inventory, mesh);
        }
        // What policies say is held against trust domains and gateways, which these tell.
        let links = !dirty.remote_gateways.is_empty() || !dirty.entries.is_empty();
        let beside = !dirty.authorization_policies.is_empty()
            || (links && !inventory.authorization_policies.is_empty());
        if dirty.findings || dirty.small || entry_findings || first || beside {
            let mut findings = self.findings();
            findings.extend(mesh::authorize::findings(&inventory));
            findings.sort();
            if inventory.findings != findings {
                Arc::make_mut(&mut inventory).findings = findings;
            }
        }
        self.current = Some(Arc::clone(&inventory));
        (first || !Arc::ptr_eq(&before, &inventory)).then_some(inventory)
    }

    fn is_whole(&self) -> bool {
        self.services.synced
            && self.slices.synced
            && self.pods.synced
            && self.nodes.synced
            && self.namespaces.synced
            && self.configs.synced
            && self.entries.synced
            && self.passthrough.synced
            && self.remote_gateways.synced
            && self.peer_authentications.synced
            && self.authorization_policies.synced
            && self.destination_rules.synced
            && self.service_exports.synced
            && self.cluster_links.synced
    }

    fn services_and_endpoints(&self, inventory: &mut Arc<Inventory>, dirty: &Dirty) {
        for key in &dirty.services {
            let Some(name) = service_name(key) else { continue };
            let service = self.services.values.get(key).and_then(|facts| facts.service.clone());
            put(inventory, |all| &all.services, |all| &mut all.services, name, service);
        }
        for key in &dirty.workloads {
            let name = WorkloadName { namespace: key.namespace.clone(), name: key.name.clone() };
            let pod = self.pods.values.get(key);
            let workload = pod.map(|pod| join::workload(pod, &self.nodes.values));
            put(inventory, |all| &all.workloads, |all| &mut all.workloads, name, workload);
        }
        for name in &dirty.endpoints {
            let endpoints = self.endpoints(name);
            let some = (!endpoints.is_empty()).then_some(endpoints);
            put(inventory, |all| &all.endpoints, |all| &mut all.endpoints, name.clone(), some);
        }
    }

    fn endpoints(&self, name: &ServiceName) -> Vec<mesh::inventory::Endpoint> {
        let key = Key::new(&name.namespace, &name.name);
        let Some(service) = self.services.values.get(&key).and_then(|facts| facts.service.as_ref())
        else {
            return Vec::new();
        };
        let slices = self.links.slices_of(name).filter_map(|key| self.slices.values.get(key));
        join::endpoints(service, slices, &self.pods.values, &self.nodes.values)
    }

    fn policies(&self, inventory: &mut Arc<Inventory>, dirty: &Dirty) {
        for key in &dirty.remote_gateways {
            let value = self.remote_gateways.values.get(key).cloned();
            let name = ObjectRef::new("Gateway", &key.namespace, &key.name);
            put(inventory, |all| &all.remote_gateways, |all| &mut all.remote_gateways, name, value);
        }
        for key in &dirty.peer_authentications {
            let value = self.peer_authentications.values.get(key).cloned();
            let name = ObjectRef::new("PeerAuthentication", &key.namespace, &key.name);
            put(
                inventory,
                |all| &all.peer_authentications,
                |all| &mut all.peer_authentications,
                name,
                value,
            );
        }
        for key in &dirty.authorization_policies {
            let value = self.authorization_policies.values.get(key).cloned();
            let name = ObjectRef::new(mesh::authorize::KIND, &key.namespace, &key.name);
            put(
                inventory,
                |all| &all.authorization_policies,
                |all| &mut all.authorization_policies,
                name,
                value,
            );
        }
        for key in &dirty.destination_rules {
            let value = self.destination_rules.values.get(key).cloned();
            let name = ObjectRef::new("DestinationRule", &key.namespace, &key.name);
            put(
                inventory,
                |all| &all.destination_rules,
                |all| &mut all.destination_rules,
                name,
                value,
            );
        }
    }

    /// True where findings changed.
    fn entries(
        &mut self,
        inventory: &mut Arc<Inventory>,
        dirty: &BTreeSet<Key>,
        mesh: &MeshConfig,
    ) -> bool {
        let mut changed = false;
        let place = Place {
            root_namespace: &self.root_namespace,
            cluster: &mesh.cluster,
            network: &mesh.network,
        };
        for key in dirty {
            let object = self.entries.values.get(key);
            let resting = object.and_then(service_entry::resting);
            let object = object.filter(|_| resting.is_none());
            let name = ObjectRef::new("ServiceEntry", &key.namespace, &key.name);
            put(inventory, |all| &all.resting, |all| &mut all.resting, name, resting);
            let parsed = object.map(|object| service_entry::parse(object, place));
            let (value, findings) = match parsed {
                Some(parsed) => (parsed.value, parsed.findings),
                None => (None, Vec::new()),
            };
            let before = self.entry_findings.remove(key).unwrap_or_default();
            changed |= before != findings;
            if !findings.is_empty() {
                self.entry_findings.insert(key.clone(), findings);
            }
            let name = ObjectRef::new("ServiceEntry", &key.namespace, &key.name);
            put::<_, ServiceEntry>(
                inventory,
                |all| &all.entries,
                |all| &mut all.entries,
                name,
                value,
            );
        }
        changed
    }

    fn small_parts(&self, inventory: &mut Arc<Inventory>, mesh: MeshConfig) {
        let uid = self.namespaces.values.get(&Key::new("", "kube-system"));
        let doors = self.services.values.values().filter_map(|facts| facts.door.as_ref());
        // A door into another network is another cluster's business.
        let ours =
            doors.filter(|door| door.network.as_ref().is_none_or(|net| *net == mesh.network));
        let addresses: BTreeSet<_> = ours.flat_map(|door| door.addresses.iter().cloned()).collect();
        let mut parts = Inventory::empty(mesh);
        parts.uid = uid.cloned().unwrap_or_default();
        parts.namespaces = self.namespaces.values.keys().map(|key| key.name.clone()).collect();
        parts.gateway_addresses = addresses.into_iter().collect();
        parts.passthrough_hosts = self.passthrough.values.values().flatten().cloned().collect();
        parts.passthrough_hosts.sort();
        parts.service_exports = self.service_exports.values.values().cloned().collect();
        let links = self.cluster_links.values.iter();
        parts.links = links.map(|(key, link)| (key.name.clone(), *link)).collect();
        let same = inventory.mesh == parts.mesh
            && inventory.uid == parts.uid
            && inventory.namespaces == parts.namespaces
            && inventory.gateway_addresses == parts.gateway_addresses
            && inventory.passthrough_hosts == parts.passthrough_hosts
            && inventory.service_exports == parts.service_exports
            && inventory.links == parts.links;
        if !same {
            let inventory = Arc::make_mut(inventory);
            inventory.mesh = parts.mesh;
            inventory.uid = parts.uid;
            inventory.namespaces = parts.namespaces;
            inventory.gateway_addresses = parts.gateway_addresses;
            inventory.passthrough_hosts = parts.passthrough_hosts;
            inventory.service_exports = parts.service_exports;
            inventory.links = parts.links;
        }
    }

    fn findings(&self) -> Vec<Finding> {
        let mut all: Vec<Finding> = [
            &self.services.findings,
            &self.slices.findings,
            &self.configs.findings,
            &self.entry_findings,
            &self.passthrough.findings,
            &self.remote_gateways.findings,
            &self.peer_authentications.findings,
            &self.authorization_policies.findings,
            &self.destination_rules.findings,
            &self.service_exports.findings,
        ]
        .into_iter()
        .flat_map(|findings| findings.values().flatten().cloned())
        .collect();
        if self.configs.values.is_empty() && self.configs.findings.is_empty() {
            all.push(Finding {
                severity: mesh::finding::Severity::Warning,
                code: 3023,
                object: ObjectRef::new(
                    "ConfigMap",
                    &self.root_namespace,
                    crate::parse::mesh_config::NAME,
                ),
                field: String::new(),
                problem: "it was deleted; what it said last is still in force until a restart."
                    .into(),
                fix: "create it again.".into(),
            });
        }
        all
    }
}

/// A Service's name from its key; `None` for names that no host can have.
fn service_name(key: &Key) -> Option<ServiceName> {
    ServiceName::new(&key.namespace, &key.name).ok()
}

/// Sets or removes one value, and leaves the inventory as it is where that changes nothing.
fn put<K: Ord + 'static, V: PartialEq + 'static>(
    inventory: &mut Arc<Inventory>,
    read: impl Fn(&Inventory) -> &BTreeMap<K, V>,
    write: impl Fn(&mut Inventory) -> &mut BTreeMap<K, V>,
    key: K,
    value: Option<V>,
) {
    if read(inventory).get(&key) == value.as_ref() {
        return;
    }
    let map = write(Arc::make_mut(inventory));
    match value {
        Some(value) => map.insert(key, value),
        None => map.remove(&key),
    };
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
