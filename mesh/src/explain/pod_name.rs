//! Names of single pods, as a cluster's DNS gives them to those behind a Service, a StatefulSet's above
//! all. The mesh has none: its names are services'.

use super::endpoints::{self, selects};
use super::host::candidates;
use super::{Hint, Meaning, NEAR_MAX, NoAddress, NoPod, Step, Verdict, plaintext};
use crate::inventory::{Endpoint, Service, ServiceKind, WorkloadName};
use crate::name::{Hostname, ServiceName};
use crate::world::{View, World, is_published_form, local_service};
use std::net::IpAddr;

/// What happens where `asked` has the form of a pod's name; `None` where it has not.
pub(super) fn explain(
    world: &World,
    view: &View,
    asked: &str,
    port: u16,
    steps: &mut Vec<Step>,
) -> Option<Verdict> {
    if let Some(named) = candidates(view, asked).find_map(|host| Named::of(world, host)) {
        if named.host.as_str() != asked {
            steps.push(Step::Completed { host: named.host.clone() });
        }
        return Some(named.explain(world, view, port, steps));
    }
    let (pod, service) = published(world, asked)?;
    let hints = vec![Hint::PodName { pod, service }];
    steps.push(Step::UnknownName { host: asked.to_owned(), hints });
    Some(Verdict::Unreachable)
}

/// `POD.SERVICE.NAMESPACE.svc.cluster.local` of a Service that is here.
struct Named<'a> {
    host: Hostname,
    pod: String,
    service: &'a Service,
}

impl<'a> Named<'a> {
    fn of(world: &'a World, host: Hostname) -> Option<Self> {
        let (pod, rest) = host.as_str().split_once('.')?;
        let service = world.own.services.get(&local_service(rest)?)?;
        let here = service.kind != ServiceKind::ExternalName;
        here.then(|| Self { pod: pod.to_owned(), service, host: host.clone() })
    }

    /// By its host name; one without is named after its address, as CoreDNS does.
    fn names(&self, copy: &Endpoint) -> bool {
        name(copy) == self.pod
    }

    fn explain(&self, world: &World, view: &View, port: u16, steps: &mut Vec<Step>) -> Verdict {
        let (host, service) = (self.host.clone(), &self.service.name);
        let copies = world.own.endpoints.get(service).map(Vec::as_slice).unwrap_or_default();
        let named = copies.iter().filter(|copy| self.names(copy));
        let addresses: Vec<IpAddr> = named.map(|copy| copy.address).collect();
        if addresses.is_empty() {
            let (pod, service) = (self.pod.clone(), service.clone());
            let reason = self.reason(world, copies);
            let missing = match reason {
                NoPod::NoSuch { .. } => endpoints::missing(world, &service),
                NoPod::NotReady | NoPod::NotSelected { .. } | NoPod::OtherSubdomain => None,
            };
            steps.push(Step::NoPod { host, pod, service, reason });
            steps.extend(missing);
            return Verdict::Unreachable;
        }
        steps.push(Step::Name { host: host.clone(), addresses, meaning: Meaning::OnePod });
        steps.push(Step::NoAddress { host, reason: NoAddress::OnePod });
        let at = |copy: &Endpoint| self.names(copy).then_some(port);
        plaintext::to_copies(world, view, service, at, steps).unwrap_or(Verdict::NotCarried)
    }

    /// Why no copy has the name.
    fn reason(&self, world: &World, copies: &[Endpoint]) -> NoPod {
        if copies.iter().any(|copy| copy.pod == self.pod) {
            return NoPod::OtherSubdomain;
        }
        let selector = &self.service.selector;
        let namespace = self.service.name.namespace.clone();
        match world.own.workloads.get(&WorkloadName { namespace, name: self.pod.clone() }) {
            Some(workload) if selects(self.service, &workload.labels) => NoPod::NotReady,
            Some(_) if !selector.is_empty() => NoPod::NotSelected { selector: selector.clone() },
            Some(_) | None => {
                NoPod::NoSuch { named: copies.iter().map(name).take(NEAR_MAX).collect() }
            }
        }
    }
}

/// How the cluster's DNS names a copy before its Service's name.
fn name(copy: &Endpoint) -> String {
    match copy.hostname.as_str() {
        "" => copy.address.to_string().replace(['.', ':'], "-"),
        name => name.to_owned(),
    }
}

/// A pod and its service, in a name that has the form of the mesh's and names a pod as if it had one.
fn published(world: &World, asked: &str) -> Option<(String, ServiceName)> {
    let host: Hostname = asked.parse().ok().filter(is_published_form)?;
    let own = &world.own;
    let is_namespace = |name: &str| {
        let mut entries = own.entries.values().filter_map(|entry| entry.service.as_ref());
        own.namespaces.contains(name) || entries.any(|service| service.namespace == name)
    };
    let is_cluster = |name: &str| {
        let mut doors = own.remote_gateways.values().filter_map(|door| door.cluster.as_ref());
        own.mesh.cluster.as_str() == name
            || own.links.contains_key(name)
            || doors.any(|cluster| cluster.as_str() == name)
    };
    let (pod, service, namespace) = if let Some(labels) = host.as_str().strip_suffix(".global") {
        match labels.split('.').collect::<Vec<_>>()[..] {
            // SERVICE.NAMESPACE.CLUSTER.global looks the same.
            [pod, service, namespace] if !is_cluster(namespace) && !is_namespace(service) => {
                (pod, service, namespace)
            }
            [pod, service, namespace, cluster] if is_cluster(cluster) => (pod, service, namespace),
            _ => return None,
        }
    } else {
        let labels = host.as_str().strip_suffix(".svc.clusterset.local")?;
        match labels.split('.').collect::<Vec<_>>()[..] {
            // The MCS API has a cluster between a pod and its service.
            [pod, service, namespace] | [pod, _, service, namespace] => (pod, service, namespace),
            _ => return None,
        }
    };
    let service = ServiceName::new(namespace, service).ok()?;
    is_namespace(namespace).then(|| (pod.to_owned(), service))
}

#[cfg(test)]
mod tests;
