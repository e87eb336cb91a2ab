//! How a workload takes connections: its mTLS mode, by port, the ports its services use, and who may
//! call.

use crate::authorize::Authorization;
use crate::export::{ROOT_NAMESPACE, selects};
use crate::inventory::{MtlsMode, PeerAuthentication, Workload, WorkloadName};
use crate::name::{Protocol, ServiceName};
use crate::program::{ClusterName, InboundListener, InboundPort, Listener, Resource};
use crate::world::{Dialect, View, World};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// The listener of the workload that asks; `None` while no such pod is known.
pub(super) fn listener(world: &World, view: &View) -> Option<Resource> {
    let name = WorkloadName { namespace: view.namespace.clone(), name: view.workload.clone() };
    let workload = world.own.workloads.get(&name)?;
    let policy = Policy::of(world, workload);
    let mut ports: BTreeMap<u16, InboundPort> = BTreeMap::new();
    for (target, service, protocol) in served(world, &name) {
        // First by name where several services use one port.
        ports.entry(target).or_insert_with(|| InboundPort {
            mtls: policy.at(target),
            protocol,
            service: service.to_string(),
        });
    }
    for port in policy.ports() {
        let mtls = policy.at(port);
        let protocol = Protocol::Tcp;
        ports.entry(port).or_insert(InboundPort { mtls, protocol, service: String::new() });
    }
    Some(Resource::Listener(Listener::Inbound(InboundListener {
        mtls: policy.mode,
        ports,
        trust_domains: world.trust_domains().clone(),
        authorization: Authorization::of(&world.own, workload),
        ipv6: view.dialect == Dialect::Envoy && workload.addresses.iter().any(IpAddr::is_ipv6),
    })))
}

/// The workload itself, on whichever port was called: one for all ports, since what is called says
/// the port (`ORIGINAL_DST` in Envoy's words).
pub(super) fn cluster(name: ClusterName) -> Option<Resource> {
    (name == ClusterName::inbound(0)).then(|| Resource::Cluster(super::outbound::plain(name)))
}

/// Target ports a pod is an endpoint on, with the service and what it speaks there.
fn served<'a>(
    world: &'a World,
    workload: &'a WorkloadName,
) -> impl Iterator<Item = (u16, &'a ServiceName, Protocol)> {
    let first = ServiceName { namespace: workload.namespace.clone(), name: String::new() };
    let endpoints = world.own.endpoints.range(first..);
    let here = endpoints.take_while(|(name, _)| name.namespace == workload.namespace);
    here.flat_map(move |(name, copies)| {
        let own = copies.iter().filter(|copy| copy.pod == workload.name);
        own.flat_map(move |copy| {
            copy.ports.iter().filter_map(move |(number, target)| {
                let service = world.own.services.get(name)?;
                let port = super::outbound::carried(&service.ports, *number)?;
                Some((*target, name, port.protocol))
            })
        })
    })
}

/// Port over workload over namespace over mesh; else permissive (Istio's precedence).
pub(crate) struct Policy<'a> {
    pub(crate) mode: MtlsMode,
    /// The object that decided; `None` for the default.
    pub(crate) by: Option<&'a PeerAuthentication>,
    workload: Option<&'a PeerAuthentication>,
}

impl<'a> Policy<'a> {
    pub(crate) fn of(world: &'a World, workload: &Workload) -> Self {
        // Of several the oldest, so that a new one opens nothing (Istio's rule; then by name).
        let oldest = |namespace: &str, fits: &dyn Fn(&PeerAuthentication) -> bool| {
            let all = world.own.peer_authentications.values();
            let there = all.filter(|it| it.object.namespace == namespace && fits(it));
            there.min_by_key(|it| it.created)
        };
        let namespace = workload.name.namespace.as_str();
        // In the root namespace there are none for single workloads (Istio's rule).
        let selecting = (namespace != ROOT_NAMESPACE).then(|| {
            oldest(namespace, &|it| {
                !it.selector.is_empty() && selects(&it.selector, &workload.labels)
            })
        });
        let selecting = selecting.flatten();
        let whole = oldest(namespace, &|it| it.selector.is_empty());
        let mesh = oldest(ROOT_NAMESPACE, &|it| it.selector.is_empty());
        // One that says UNSET leaves it to the next.
        let by = [selecting, whole, mesh].into_iter().flatten().find(|it| it.mode.is_some());
        let mode = by.and_then(|it| it.mode).unwrap_or(MtlsMode::Permissive);
        Self { mode, by, workload: selecting }
    }

    /// The mode of a target port. Ports can be named only where a workload is selected.
    pub(crate) fn at(&self, port: u16) -> MtlsMode {
        let named = self.workload.and_then(|it| it.ports.get(&port));
        named.copied().unwrap_or(self.mode)
    }

    /// The object that set the mode of a target port; `None` for the default.
    pub(crate) fn set_by(&self, port: u16) -> Option<&'a PeerAuthentication> {
        self.workload.filter(|it| it.ports.contains_key(&port)).or(self.by)
    }

    fn ports(&self) -> impl Iterator<Item = u16> {
        self.workload.into_iter().flat_map(|it| it.ports.keys().copied())
    }
}
