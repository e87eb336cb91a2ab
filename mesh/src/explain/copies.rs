//! What becomes of a call that the mesh carries: which copies take it, in which order, and whether they
//! let the client in.

use super::{Step, Verdict, endpoints, pod};
use crate::authorize::{self, Judged};
use crate::compile::horizon::{Copies, Place, Reach, Tier, reach, tier};
use crate::compile::outbound::{
    Named, copies, distribution, identities, joined, subset, viewpoint,
};
use crate::inventory::{MtlsMode, WorkloadName};
use crate::name::{ClusterId, Locality};
use crate::program::Endpoints;
use crate::sni::Sni;
use crate::world::{Form, View, World};
use std::collections::{BTreeMap, BTreeSet};

/// By priority: whether some copies let the client in, and whether some deny it.
#[derive(Debug, Default)]
pub(super) struct Admission(BTreeMap<u32, (bool, bool)>);

impl Admission {
    fn note(&mut self, priority: Option<u32>, admitted: bool) {
        let Some(priority) = priority else { return };
        let (some, others) = self.0.entry(priority).or_default();
        *(if admitted { some } else { others }) = true;
    }

    /// As the copies say that are called first: a denial is an answer, nobody asks elsewhere after it.
    pub(super) fn verdict(&self) -> Verdict {
        match self.0.values().next() {
            Some((true, false)) => Verdict::Reachable,
            Some((true, true)) => Verdict::Partly,
            Some((false, _)) | None => Verdict::Unreachable,
        }
    }
}

/// Tier, locality, cluster, mTLS, and a number that keeps pods apart.
type Alike<'a> = (Tier, &'a Locality, &'a ClusterId, bool, usize);

pub(super) fn explain(
    world: &World,
    view: &View,
    found: &Named<'_>,
    endpoints: &Endpoints,
    peers: &[World],
    steps: &mut Vec<Step>,
) -> Admission {
    let target = &found.target;
    if let Form::Local(service) = target.form
        && joined(world, &service.name).is_none()
        && world.joint_entry(&service.name).is_some()
    {
        let global = service.name.global_host();
        steps.push(Step::LocalOnly { host: target.host.clone(), global });
    }
    let whole = subset(world, view, target, "").flatten();
    let all = copies(world, found, "", whole);
    let from = viewpoint(world, view);
    let prefers = distribution(world, target);
    // One line for all that are alike.
    let mut alike: BTreeMap<Alike<'_>, (u32, Reach)> = BTreeMap::new();
    for (order, it) in all.iter().enumerate() {
        let way = reach(from, it);
        let direct = matches!(it.place, Place::Address { .. });
        let key = (
            tier(from, it, prefers),
            it.locality,
            it.cluster,
            it.meshed,
            if direct { order } else { 0 },
        );
        let sum = alike.entry(key).or_insert((0, way));
        sum.0 = sum.0.saturating_add(it.weight);
    }
    let mut admission = Admission::default();
    let mut elsewhere: BTreeMap<&ClusterId, BTreeSet<u32>> = BTreeMap::new();
    for ((tier, locality, cluster, mtls, _), (count, way)) in alike {
        let priority = priority_of(endpoints, &way, locality, cluster);
        if let (Reach::Through(_), Some(priority)) = (&way, priority) {
            elsewhere.entry(cluster).or_default().insert(priority);
        }
        steps.push(Step::Copies {
            cluster: cluster.clone(),
            locality: locality.clone(),
            count,
            priority,
            tier,
            reach: way,
            mtls,
        });
    }
    if all.is_empty() {
        steps.push(Step::NoCopies { host: target.host.clone() });
        let service = target.form.service();
        steps.extend(service.and_then(|service| endpoints::missing(world, service)));
    }
    for (cluster, expected) in identities(world, target) {
        steps.push(Step::Identities { cluster, expected });
    }
    for copies in &all {
        let way = reach(from, copies);
        let used = priority_of(endpoints, &way, copies.locality, copies.cluster);
        let Some((admitted, judged)) = inbound(world, view, found, copies) else {
            // Those behind a gateway are judged below.
            if !matches!(way, Reach::Through(_)) {
                admission.note(used, true);
            }
            continue;
        };
        admission.note(used, admitted);
        steps.extend(judged);
    }
    for (cluster, priorities) in elsewhere {
        let seen = peers.iter().find(|peer| peer.own.mesh.cluster == *cluster);
        let judged = seen.map(|peer| judged_there(peer, view, found)).unwrap_or_default();
        let mut note = |admitted| {
            priorities.iter().for_each(|priority| admission.note(Some(*priority), admitted));
        };
        if judged.is_empty() {
            note(true);
            steps.push(Step::AuthorizationElsewhere { cluster: cluster.clone() });
        }
        judged.iter().for_each(|judged| note(judged.decision.allows()));
        steps.extend(judged.into_iter().map(|Judged { workload, port, decision }| {
            let (cluster, caller) = (Some(cluster.clone()), Some(view.identity.clone()));
            Step::Authorization { cluster, workload, port, caller, decision }
        }));
    }
    admission
}

/// What the copies of a peer that was seen decide on this client.
fn judged_there(peer: &World, view: &View, found: &Named<'_>) -> Vec<Judged> {
    let Some(service) = found.target.form.service() else { return Vec::new() };
    let port = found.port.number;
    let sni = Sni { port, subset: String::new(), host: found.host.clone() };
    authorize::through_gateway(peer, service, port, &view.identity, &sni.to_string())
}

/// The priority these copies have in what the proxy gets.
fn priority_of(
    endpoints: &Endpoints,
    way: &Reach,
    locality: &Locality,
    cluster: &ClusterId,
) -> Option<u32> {
    let sockets = match way {
        Reach::Direct(socket) => std::slice::from_ref(socket),
        Reach::Through(doors) => doors.as_slice(),
        Reach::Unreachable(_) => &[],
    };
    let groups = endpoints.groups.iter().filter(|group| group.locality == *locality);
    let mut here = groups.flat_map(|group| group.endpoints.iter().map(|it| (group.priority, it)));
    here.find(|(_, it)| it.cluster == *cluster && sockets.contains(&it.address))
        .map(|(priority, _)| priority)
}

/// How a pod of this cluster takes the connection, and whether its policies let the client in.
fn inbound(
    world: &World,
    view: &View,
    found: &Named<'_>,
    copies: &Copies<'_>,
) -> Option<(bool, [Step; 2])> {
    let Place::Address { pod, socket, .. } = copies.place else { return None };
    let namespace = found.target.form.service()?.namespace.clone();
    let name = WorkloadName { namespace, name: pod.into() };
    let workload = world.own.workloads.get(&name).filter(|_| copies.meshed)?;
    let (mode, inbound) = pod::mode(world, workload, socket.port());
    let sni = Sni { port: found.port.number, subset: String::new(), host: found.host.clone() };
    let proof = (mode != MtlsMode::Disable).then(|| (view.identity.clone(), sni.to_string()));
    let (admitted, authorization) = pod::admits(world, view, workload, socket, proof);
    Some((admitted, [inbound, authorization]))
}
