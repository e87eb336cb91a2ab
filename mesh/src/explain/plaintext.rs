//! What becomes of plaintext: whoever sends it proves no name to the pod that takes it.
//!
//! Pods without a sidecar call so; and those with one wherever no listener of it leads, which is so of
//! pods' own addresses, and a headless Service's name has no others (`sidecar/src/outbound.rs`, `way`).

use super::{Hint, Step, Verdict, pod, vacant};
use crate::inventory::{Endpoint, MtlsMode, Workload, WorkloadName};
use crate::name::ServiceName;
use crate::world::{View, World};
use std::net::SocketAddr;

/// To an address that is no service's, written as `host`.
pub(super) fn to_address(
    world: &World,
    view: &View,
    host: String,
    to: SocketAddr,
    steps: &mut Vec<Step>,
) -> Verdict {
    let has = |workload: &&Workload| workload.addresses.contains(&to.ip());
    let Some(workload) = world.own.workloads.values().find(has) else {
        let (hint, verdict) = match vacant::hint(world, to.ip()) {
            // A sidecar refuses it, and nothing else is there.
            Some(hint) => (hint, Verdict::Unreachable),
            None => (Hint::Address, Verdict::NotCarried),
        };
        steps.push(Step::UnknownName { host, hints: vec![hint] });
        return verdict;
    };
    let strict = workload.meshed && pod::mode(world, workload, to.port()).0 == MtlsMode::Strict;
    let hint = Hint::PodAddress { pod: workload.name.to_string(), strict };
    steps.push(Step::UnknownName { host, hints: vec![hint] });
    let taken = !workload.meshed || is_taken(world, view, workload, to, steps);
    if taken { Verdict::NotCarried } else { Verdict::Unreachable }
}

/// To whichever of a service's own copies, each at the port that `port` says; `None` where no copy has one.
pub(super) fn to_copies(
    world: &World,
    view: &View,
    name: &ServiceName,
    port: impl Fn(&Endpoint) -> Option<u16>,
    steps: &mut Vec<Step>,
) -> Option<Verdict> {
    let (mut some, mut others) = (false, false);
    for copy in world.own.endpoints.get(name).into_iter().flatten() {
        let Some(port) = port(copy) else { continue };
        let pod = WorkloadName { namespace: name.namespace.clone(), name: copy.pod.clone() };
        let meshed = world.own.workloads.get(&pod).filter(|_| copy.meshed);
        let to = SocketAddr::new(copy.address, port);
        // Nothing stands before one without a sidecar.
        let taken = meshed.is_none_or(|workload| is_taken(world, view, workload, to, steps));
        *(if taken { &mut some } else { &mut others }) = true;
    }
    match (some, others) {
        (true, false) => Some(Verdict::NotCarried),
        // Whoever picks a copy does not know what it refuses.
        (true, true) => Some(Verdict::Partly),
        (false, true) => Some(Verdict::Unreachable),
        (false, false) => None,
    }
}

/// Whether a pod with a sidecar takes it.
fn is_taken(
    world: &World,
    view: &View,
    workload: &Workload,
    to: SocketAddr,
    steps: &mut Vec<Step>,
) -> bool {
    let (mode, inbound) = pod::mode(world, workload, to.port());
    steps.push(inbound);
    if mode == MtlsMode::Strict {
        // It gets no further than the handshake: no policy is asked.
        return false;
    }
    let (admitted, authorization) = pod::admits(world, view, workload, to, None);
    steps.push(authorization);
    admitted
}

#[cfg(test)]
mod tests;
