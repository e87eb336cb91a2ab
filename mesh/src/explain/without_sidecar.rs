//! What becomes of a call by a pod that has no sidecar: nothing carries it out of its cluster.

use super::{Plain, Step, Verdict, endpoints, plaintext};
use crate::inventory::{Endpoint, ServicePort, WorkloadName};
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
    let at = |copy: &Endpoint| copy.ports.get(&port.number).copied();
    plaintext::to_copies(world, view, own, at, steps).unwrap_or_else(|| {
        steps.push(Step::NoCopies { host: own.local_host() });
        steps.extend(endpoints::missing(world, own));
        Verdict::Unreachable
    })
}

/// Other clusters that export it.
fn others(world: &World, name: &ServiceName) -> Vec<ClusterId> {
    let all = world.singles(name).map(|(cluster, _)| cluster.clone());
    all.filter(|cluster| *cluster != world.own.mesh.cluster).collect()
}
