//! Slices, pods and nodes joined into endpoints, and who is touched when one of them changes.

use super::store::Key;
use crate::parse::endpoint_slice::{Slice, SliceEndpoint};
use crate::parse::pod::PodFacts;
use mesh::inventory::{Endpoint, Service, Workload};
use mesh::name::{Locality, Protocol, ServiceName};
use std::collections::{BTreeMap, BTreeSet};

/// The ready endpoints of a Service, sorted. One pod is one endpoint, in the family of the Service's
/// first address where it has both.
///
/// An address whose pod we have not seen (yet, or any more, or not this one of that name) is not
/// ready for us: without its labels we would not know whether to speak mTLS to it.
pub(super) fn endpoints<'a>(
    service: &Service,
    slices: impl Iterator<Item = &'a Slice>,
    pods: &BTreeMap<Key, PodFacts>,
    nodes: &BTreeMap<Key, Locality>,
) -> Vec<Endpoint> {
    let ipv4_first = service.addresses.first().is_none_or(|address| address.is_ipv4());
    let mut found: BTreeMap<(&str, std::net::IpAddr), Endpoint> = BTreeMap::new();
    for slice in slices {
        let ports = ports(service, slice);
        if ports.is_empty() {
            continue;
        }
        for ready in &slice.endpoints {
            let Some(mut endpoint) = endpoint(slice, ready, pods, nodes) else { continue };
            let pod = ready.pod.as_ref().map_or("", |pod| pod.name.as_str());
            // Its ports may be spread over slices.
            let known = found.remove(&(pod, ready.address));
            endpoint.ports = known.map(|known| known.ports).unwrap_or_default();
            endpoint.ports.extend(&ports);
            found.insert((pod, ready.address), endpoint);
        }
    }
    let preferred: BTreeSet<&str> = found
        .keys()
        .filter(|(pod, address)| !pod.is_empty() && address.is_ipv4() == ipv4_first)
        .map(|(pod, _)| *pod)
        .collect();
    let mut endpoints: Vec<Endpoint> = found
        .into_iter()
        .filter(|((pod, address), _)| address.is_ipv4() == ipv4_first || !preferred.contains(pod))
        .map(|(_, endpoint)| endpoint)
        .collect();
    endpoints.sort();
    endpoints
}

/// Target port by Service port: joined by the port's name (the EndpointSlice API's rule).
fn ports(service: &Service, slice: &Slice) -> BTreeMap<u16, u16> {
    let tcp = service.ports.iter().filter(|port| port.protocol != Protocol::Udp);
    tcp.filter_map(|port| {
        let target = slice.ports.iter().find(|target| target.name == port.name)?;
        Some((port.number, target.number.unwrap_or(port.number)))
    })
    .collect()
}

/// Without ports.
fn endpoint(
    slice: &Slice,
    ready: &SliceEndpoint,
    pods: &BTreeMap<Key, PodFacts>,
    nodes: &BTreeMap<Key, Locality>,
) -> Option<Endpoint> {
    let Some(target) = &ready.pod else {
        return Some(Endpoint {
            address: ready.address,
            ports: BTreeMap::new(),
            locality: node_locality(ready.node.as_deref().unwrap_or_default(), nodes),
            account: String::new(),
            labels: BTreeMap::new(),
            meshed: false,
            pod: String::new(),
            hostname: ready.hostname.clone(),
        });
    };
    let pod = pods.get(&Key::new(&slice.service.namespace, &target.name))?;
    if !target.uid.is_empty() && target.uid != pod.uid {
        return None;
    }
    let workload = workload(pod, nodes);
    Some(Endpoint {
        address: ready.address,
        ports: BTreeMap::new(),
        locality: workload.locality,
        account: workload.account,
        labels: workload.labels,
        meshed: workload.meshed,
        pod: target.name.clone(),
        hostname: ready.hostname.clone(),
    })
}

/// A pod with its locality: its own label's, else its node's.
pub(super) fn workload(pod: &PodFacts, nodes: &BTreeMap<Key, Locality>) -> Workload {
    let mut workload = pod.workload.clone();
    if workload.locality == Locality::default() {
        workload.locality = node_locality(&workload.node, nodes);
    }
    workload
}

fn node_locality(node: &str, nodes: &BTreeMap<Key, Locality>) -> Locality {
    nodes.get(&Key::new("", node)).cloned().unwrap_or_default()
}

/// Who points to whom, to find what a change touches.
#[derive(Debug, Default)]
pub(super) struct Links {
    slices_of: BTreeMap<ServiceName, BTreeSet<Key>>,
    /// Per slice: its service, the pods and, of endpoints without one, the nodes it names.
    targets: BTreeMap<Key, Targets>,
    slices_to: BTreeMap<Key, BTreeSet<Key>>,
    pods_on: BTreeMap<String, BTreeSet<Key>>,
    node_of: BTreeMap<Key, String>,
}

#[derive(Debug)]
struct Targets {
    service: ServiceName,
    pods: Vec<Key>,
    nodes: BTreeSet<String>,
}

impl Links {
    /// A slice is this now, or gone. Returns the services it belonged and belongs to.
    pub(super) fn slice(&mut self, key: &Key, slice: Option<&Slice>) -> Vec<ServiceName> {
        let mut services = Vec::new();
        if let Some(before) = self.targets.remove(key) {
            remove(&mut self.slices_of, &before.service, key);
            for pod in &before.pods {
                remove(&mut self.slices_to, pod, key);
            }
            services.push(before.service);
        }
        if let Some(slice) = slice {
            let named = slice.endpoints.iter().filter_map(|endpoint| endpoint.pod.as_ref());
            let pods: Vec<Key> =
                named.map(|pod| Key::new(&slice.service.namespace, &pod.name)).collect();
            for pod in &pods {
                self.slices_to.entry(pod.clone()).or_default().insert(key.clone());
            }
            let podless = slice.endpoints.iter().filter(|endpoint| endpoint.pod.is_none());
            let nodes = podless.filter_map(|endpoint| endpoint.node.clone()).collect();
            self.slices_of.entry(slice.service.clone()).or_default().insert(key.clone());
            services.push(slice.service.clone());
            let service = slice.service.clone();
            self.targets.insert(key.clone(), Targets { service, pods, nodes });
        }
        services
    }

    /// A pod is this now, or gone.
    pub(super) fn pod(&mut self, key: &Key, pod: Option<&PodFacts>) {
        if let Some(node) = self.node_of.remove(key) {
            remove(&mut self.pods_on, &node, key);
        }
        if let Some(pod) = pod.filter(|pod| !pod.workload.node.is_empty()) {
            let node = pod.workload.node.clone();
            self.pods_on.entry(node.clone()).or_default().insert(key.clone());
            self.node_of.insert(key.clone(), node);
        }
    }

    pub(super) fn slices_of(&self, service: &ServiceName) -> impl Iterator<Item = &Key> {
        self.slices_of.get(service).into_iter().flatten()
    }

    /// Services with an endpoint that is this pod.
    pub(super) fn services_of(&self, pod: &Key) -> Vec<ServiceName> {
        let slices = self.slices_to.get(pod).into_iter().flatten();
        slices.filter_map(|slice| Some(self.targets.get(slice)?.service.clone())).collect()
    }

    pub(super) fn pods_on(&self, node: &str) -> Vec<Key> {
        self.pods_on.get(node).into_iter().flatten().cloned().collect()
    }

    /// Services with an endpoint on this node that is no pod.
    pub(super) fn podless_on(&self, node: &str) -> Vec<ServiceName> {
        let all = self.targets.values().filter(|targets| targets.nodes.contains(node));
        all.map(|targets| targets.service.clone()).collect()
    }
}

fn remove<K: Ord>(map: &mut BTreeMap<K, BTreeSet<Key>>, from: &K, key: &Key) {
    if let Some(set) = map.get_mut(from) {
        set.remove(key);
        if set.is_empty() {
            map.remove(from);
        }
    }
}
