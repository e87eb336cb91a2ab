//! `isthmus why CLIENT HOST:PORT`: every decision on the way, with its reason, by the functions that
//! the control plane and the proxies use.

use crate::Target;
use crate::look::look;
use crate::output::{self, Format};
use anyhow::{Context as _, Result, bail};
use clap::Args;
use cluster::inject::{Sidecar, Why};
use cluster::operator::look::pods::PodState;
use mesh::explain;
use mesh::inventory::{Inventory, WorkloadName};
use mesh::name::Identity;
use mesh::world::{Dialect, Role, View, World};
use serde::Serialize;
use std::process::ExitCode;
use std::sync::Arc;

#[derive(Debug, Args)]
pub(crate) struct Call {
    /// Who calls: pod/NAME.
    client: String,
    /// What it calls: HOST:PORT, as the application writes it.
    destination: String,
    /// Namespace of the client.
    #[arg(short, long, default_value = "default")]
    namespace: String,
    #[arg(long, default_value = "isthmus-system")]
    root_namespace: String,
    #[command(flatten)]
    target: Target,
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,
}

/// What programs read.
#[derive(Debug, Serialize)]
struct Answer<'a> {
    /// Why the client has no sidecar, where it has none and could.
    #[serde(skip_serializing_if = "Option::is_none")]
    sidecar: Option<String>,
    #[serde(flatten)]
    explanation: &'a explain::Explanation,
}

/// Why a pod of a cluster that injects has no sidecar, and how it gets one; `None` where it has.
fn without_sidecar(context: &str, state: &PodState) -> Option<String> {
    let PodState { namespace, name, .. } = state;
    let anew = match &state.owner {
        Some(owner) => {
            format!("`kubectl --context {context} -n {namespace} rollout restart {owner}`")
        }
        None => format!("delete pod {name} and make it anew"),
    };
    let why = match &state.sidecar {
        Sidecar::There => return None,
        Sidecar::Both(foreign) => format!(
            "it has ours and another mesh's sidecar ({foreign}), and both capture its traffic. Fix: label \
             the namespace for one mesh only, then {anew} (ISM2633)"
        ),
        Sidecar::Missed => format!(
            "its labels ask for a sidecar, and it was made before them or the webhook. Fix: {anew} \
             (ISM2626)"
        ),
        Sidecar::Without(Why::NotAsked) => format!(
            "no label asks for a sidecar. Fix: `kubectl --context {context} label namespace {namespace} \
             istio-injection=enabled`, then {anew}"
        ),
        Sidecar::Without(why) => why.to_string(),
    };
    Some(format!("pod/{name} in namespace {namespace} is not in the mesh: {why}"))
}

impl Call {
    pub(crate) async fn run(self) -> Result<ExitCode> {
        let pod = match self.client.split_once('/') {
            Some(("pod" | "pods" | "po", name)) => name,
            Some((kind, _)) => bail!("ISM2030 CLIENT is pod/NAME, not {kind:?}. Fix: name a pod"),
            None => &self.client,
        };
        let (host, port) = self
            .destination
            .rsplit_once(':')
            .and_then(|(host, port)| Some((host.to_ascii_lowercase(), port.parse::<u16>().ok()?)))
            .with_context(|| {
                format!(
                    "ISM2030 {:?} is not HOST:PORT. Fix: add the service port",
                    self.destination
                )
            })?;
        let operator = self.target.load().await?;
        let own = look(&operator, &self.root_namespace).await?;
        let view = self.view(&own, pod)?;
        let world = World::new(Arc::clone(&own));
        let explanation = explain::why(&world, &view, &host, port);
        // Who may not read what this rests on is told the rest.
        let state = operator.pod_state(&self.namespace, pod).await.ok().flatten();
        let sidecar = state.and_then(|state| without_sidecar(&operator.context, &state));
        if self.output == Format::Table {
            if let Some(sentence) = &sidecar {
                println!("{sentence}");
            }
            print!("{explanation}");
        } else {
            output::value(self.output, &Answer { sidecar, explanation: &explanation })?;
        }
        Ok(if explanation.verdict != explain::Verdict::Unreachable {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    }

    fn view(&self, own: &Inventory, pod: &str) -> Result<View> {
        let name = WorkloadName { namespace: self.namespace.clone(), name: pod.to_owned() };
        let workload = own.workloads.get(&name).with_context(|| {
            let near: Vec<&str> = own
                .workloads
                .keys()
                .filter(|known| known.namespace == self.namespace)
                .map(|known| known.name.as_str())
                .take(10)
                .collect();
            format!(
                "ISM2032 there is no pod {pod} in namespace {}. Fix: name one of: {}",
                self.namespace,
                near.join(", ")
            )
        })?;
        Ok(View {
            role: Role::Sidecar,
            dialect: Dialect::Isthmus,
            cluster: own.mesh.cluster.clone(),
            network: own.mesh.network.clone(),
            locality: workload.locality.clone(),
            namespace: self.namespace.clone(),
            identity: Identity {
                domain: own.mesh.trust_domain.clone(),
                namespace: self.namespace.clone(),
                account: workload.account.clone(),
            },
            workload: pod.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_comes_with_what_mends_it() {
        let state = |sidecar, owner: Option<&str>| PodState {
            namespace: "shop".into(),
            name: "a".into(),
            owner: owner.map(str::to_owned),
            age: 0,
            sidecar,
            blocked: None,
        };
        let said = |state: PodState| without_sidecar("east", &state).unwrap();
        let restart = "-n shop rollout restart deployment/hello";
        let missed = said(state(Sidecar::Missed, Some("deployment/hello")));
        assert!(missed.contains("ISM2626") && missed.contains(restart), "{missed}");
        let plain = said(state(Sidecar::Without(Why::NotAsked), None));
        let label = "label namespace shop istio-injection=enabled";
        assert!(plain.contains(label) && plain.contains("delete pod a"), "{plain}");
        let host = said(state(Sidecar::Without(Why::HostNetwork), None));
        assert!(host.contains("ISM2710") && host.contains("hostNetwork"), "{host}");
        assert_eq!(without_sidecar("east", &state(Sidecar::There, None)), None);
    }
}
