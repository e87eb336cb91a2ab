//! What becomes of a call by a pod that has no sidecar: nothing carries it out of its cluster.

use super::{Plain, Step, Verdict};
use crate::compile::inbound::Policy;
use crate::inventory::{MtlsMode, ServicePort, WorkloadName};
use crate::name::{ClusterId, ServiceName};
use crate::world::{Form, Target, View, World};

/// Whether the client is a pod that is known to have none.
pub(super) fn is(world: &World, view: &View) -> bool {
    let name = WorkloadName { namespace: view.namespace.clone(), name: view.workload.clone() };
    world.own.workloads.get(&name).is_some_and(|workload| !workload.meshed)
}

/// What the cluster's DNS tells it (`zone::zone_without_sidecar`), and who takes its plaintext.
pub(super) fn explain(
    world: &World,
    view: &View,
    target: &Target<'_>,
    port: &ServicePort,
    steps: &mut Vec<Step>,
) -> Verdict {
    let step = |reaches| Step::WithoutSidecar { workload: view.workload.clone(), reaches };
    let own = match target.form {
        Form::Local(service) => {
            steps.push(step(Plain::ClusterIp));
            &service.name
        }
        Form::User(_) => {
            steps.push(step(Plain::Outside));
            return Verdict::NotCarried;
        }
        Form::All(name, _) => match (world.exported(name), others(world, name)) {
            (true, others) => {
                steps.push(step(Plain::OwnCopies(others)));
                name
            }
            (false, others) => {
                steps.push(step(Plain::Nothing(others)));
                return Verdict::Unreachable;
            }
        },
        Form::One(name, ..) => {
            let cluster = world.singles(name).find(|(_, entry)| entry.hosts.contains(target.host));
            let cluster = cluster.map(|(cluster, _)| cluster.clone());
            if cluster.as_ref() != Some(&world.own.mesh.cluster) || !world.exported(name) {
                steps.push(step(Plain::Nothing(cluster.into_iter().collect())));
                return Verdict::Unreachable;
            }
            steps.push(step(Plain::OwnCopies(vec![])));
            name
        }
    };
    copies(world, own, port, steps)
}

/// Which of this cluster's copies take plaintext.
fn copies(world: &World, name: &ServiceName, port: &ServicePort, steps: &mut Vec<Step>) -> Verdict {
    let (mut any, mut taken) = (false, false);
    for copy in world.own.endpoints.get(name).into_iter().flatten() {
        let Some(target) = copy.ports.get(&port.number) else { continue };
        any = true;
        let pod = WorkloadName { namespace: name.namespace.clone(), name: copy.pod.clone() };
        let Some(workload) = world.own.workloads.get(&pod).filter(|_| copy.meshed) else {
            taken = true;
            continue;
        };
        let policy = Policy::of(world, workload);
        let mode = policy.at(*target);
        taken |= mode != MtlsMode::Strict;
        let by = policy.set_by(*target).map(|it| it.object.clone());
        steps.push(Step::Inbound { workload: copy.pod.clone(), port: *target, mode, by });
    }
    if !any {
        let host = name.local_host();
        steps.push(Step::NoCopies { host });
    }
    if taken { Verdict::NotCarried } else { Verdict::Unreachable }
}

/// Other clusters that export it.
fn others(world: &World, name: &ServiceName) -> Vec<ClusterId> {
    let all = world.singles(name).map(|(cluster, _)| cluster.clone());
    all.filter(|cluster| *cluster != world.own.mesh.cluster).collect()
}
