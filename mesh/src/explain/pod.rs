//! What stands in front of a pod of this cluster: its mTLS mode has the first word, then its policies.

use super::Step;
use crate::authorize::{self, Authorization, Caller};
use crate::compile::inbound::Policy;
use crate::inventory::{MtlsMode, Workload, WorkloadName};
use crate::name::Identity;
use crate::world::{View, World};
use std::net::{IpAddr, SocketAddr};

/// How it takes connections at a port.
pub(super) fn mode(world: &World, workload: &Workload, port: u16) -> (MtlsMode, Step) {
    let policy = Policy::of(world, workload);
    let (mode, by) = (policy.at(port), policy.set_by(port).map(|it| it.object.clone()));
    (mode, Step::Inbound { workload: workload.name.name.clone(), port, mode, by })
}

/// Whether its policies let the client in, who proves `identity` under a server name, or nothing.
pub(super) fn admits(
    world: &World,
    view: &View,
    workload: &Workload,
    to: SocketAddr,
    proof: Option<(Identity, String)>,
) -> (bool, Step) {
    let (identity, server_name) = proof.unzip();
    let caller = Caller {
        identity: identity.clone(),
        source: source(world, view, to.ip()),
        destination: to,
        server_name,
    };
    let decision = authorize::decide(&Authorization::of(&world.own, workload), &caller);
    let admitted = decision.allows();
    let step = Step::Authorization {
        cluster: None,
        workload: workload.name.name.clone(),
        port: to.port(),
        caller: identity,
        decision,
    };
    (admitted, step)
}

/// The address from which the client calls: its own of that family, for nothing in between translates.
fn source(world: &World, view: &View, to: IpAddr) -> IpAddr {
    let client = WorkloadName { namespace: view.namespace.clone(), name: view.workload.clone() };
    let addresses = world.own.workloads.get(&client).map(|it| it.addresses.as_slice());
    let addresses = addresses.unwrap_or_default();
    let same = addresses.iter().find(|address| address.is_ipv4() == to.is_ipv4());
    same.or_else(|| addresses.first()).copied().unwrap_or(to)
}
