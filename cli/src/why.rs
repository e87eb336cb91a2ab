//! `isthmus why CLIENT HOST:PORT`: every decision on the way, with its reason, by the functions that
//! the control plane and the proxies use.

use crate::Target;
use crate::look::look;
use crate::output::{self, Format};
use crate::remedy::remedy;
use anyhow::{Context as _, Result, bail};
use clap::Args;
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
    let why = remedy(context, &[state])?;
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
    use cluster::inject::Sidecar;

    #[test]
    fn a_pod_without_a_sidecar_is_named_first() {
        let state = |sidecar| PodState {
            namespace: "shop".into(),
            name: "a".into(),
            owner: None,
            age: 0,
            sidecar,
            blocked: None,
        };
        let said = without_sidecar("east", &state(Sidecar::Missed)).unwrap();
        let first = "pod/a in namespace shop is not in the mesh: ISM2626 no sidecar: ";
        assert!(said.starts_with(first) && said.contains("delete pod a in shop"), "{said}");
        assert_eq!(without_sidecar("east", &state(Sidecar::There)), None);
    }

    #[test]
    fn machines_read_one_object_as_yaml_and_as_json() {
        let explanation = explain::Explanation {
            asked: "hello:80".into(),
            steps: vec![explain::Step::Completed { host: "hello.shop.global".parse().unwrap() }],
            verdict: explain::Verdict::NotCarried,
        };
        for sidecar in [Some("pod/a is not: in the mesh".to_owned()), None] {
            let mut expected = serde_json::json!({
                "asked": "hello:80", "verdict": "notCarried",
                "steps": [{"step": "completed", "host": "hello.shop.global"}],
            });
            if let Some(said) = &sidecar {
                expected["sidecar"] = said.clone().into();
            }
            let answer = Answer { sidecar, explanation: &explanation };
            for format in [Format::Yaml, Format::Json] {
                let text = output::written(format, &answer).unwrap();
                let back: serde_json::Value = serde_saphyr::from_str(&text).unwrap();
                assert_eq!(back, expected, "{text}");
            }
        }
    }
}
