//! `isthmus why CLIENT HOST:PORT`: every decision on the way, with its reason, by the functions that
//! the control plane and the proxies use.

use crate::Target;
use crate::bad_call::bad_call;
use crate::check::wrong_link;
use crate::look::{self, Peers, look};
use crate::output::{self, Format};
use crate::remedy::remedy;
use anyhow::{Context as _, Result};
use clap::Args;
use cluster::api::cluster_link::ClusterLink;
use cluster::operator::look::pods::PodState;
use futures::future::join;
use mesh::explain::{self, Explanation, Hint, Meaning, Step};
use mesh::inventory::{Inventory, WorkloadName};
use mesh::name::Identity;
use mesh::world::{Dialect, Role, View, World};
use serde::Serialize;
use std::collections::BTreeSet;
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
    #[command(flatten)]
    peers: Peers,
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,
}

/// What programs read.
#[derive(Debug, Serialize)]
struct Answer<'a> {
    /// Why the client has no sidecar, where it has none and could.
    #[serde(skip_serializing_if = "Option::is_none")]
    sidecar: Option<String>,
    /// What is wrong with links that have a part in the call.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    links: Vec<String>,
    #[serde(flatten)]
    explanation: &'a Explanation,
}

/// Why a pod of a cluster that injects has no sidecar, and how it gets one; `None` where it has.
fn without_sidecar(context: &str, state: &PodState) -> Option<String> {
    let PodState { namespace, name, .. } = state;
    let why = remedy(context, &[state])?;
    Some(format!("pod/{name} in namespace {namespace} is not in the mesh: {why}"))
}

/// What is wrong with the links by which such a call could go: of a name of one cluster that cluster's, of
/// a name of all clusters every one, else those whose copies are among the answers.
fn wrong_links(context: &str, links: &[ClusterLink], explanation: &Explanation) -> Vec<String> {
    let part = |step: &Step, name: &str| match step {
        Step::Name { host, meaning: Meaning::OneCluster, .. } => of_cluster(host.as_str(), name),
        Step::Name { meaning, .. } => *meaning == Meaning::AllExporters,
        Step::UnknownName { host, hints } => {
            !matches!(
                hints[..],
                [Hint::Outside
                    | Hint::Address
                    | Hint::PodAddress { .. }
                    | Hint::PodName { .. }
                    | Hint::NoName]
            ) && match host.strip_suffix(".global").map(|host| host.split('.').count()) {
                Some(3..) => of_cluster(host, name),
                Some(_) | None => true,
            }
        }
        Step::Copies { cluster, .. } => cluster.as_str() == name,
        Step::Completed { .. }
        | Step::NoAddress { .. }
        | Step::NoPort { .. }
        | Step::Listener { .. }
        | Step::AddressTaken { .. }
        | Step::Route { .. }
        | Step::Cluster { .. }
        | Step::WithoutSidecar { .. }
        | Step::LocalOnly { .. }
        | Step::NoCopies { .. }
        | Step::NoEndpoints { .. }
        | Step::NoPod { .. }
        | Step::Identities { .. }
        | Step::Inbound { .. }
        | Step::Authorization { .. }
        | Step::AuthorizationElsewhere { .. } => false,
    };
    let said = links.iter().filter_map(|link| {
        let name = link.metadata.name.as_deref()?;
        if !explanation.steps.iter().any(|step| part(step, name)) {
            return None;
        }
        let status = link.status.clone().unwrap_or_default();
        Some(format!("link {name}: {}", wrong_link(context, name, &status)?))
    });
    said.collect()
}

/// Whether `NAME.NAMESPACE.CLUSTER.global` is a name of this cluster's.
fn of_cluster(host: &str, cluster: &str) -> bool {
    host.strip_suffix(".global").and_then(|host| host.rsplit('.').next()) == Some(cluster)
}

impl Call {
    pub(crate) async fn run(self) -> Result<ExitCode> {
        let pod = match self.client.split_once('/') {
            Some(("pod" | "pods" | "po", name)) => name,
            Some((kind, _)) => {
                return Err(bad_call(format!(
                    "ISM2030 CLIENT is pod/NAME, not {kind:?}. Fix: name a pod"
                )));
            }
            None => &self.client,
        };
        let (host, port) = destination(&self.destination)?;
        let operator = self.target.load().await?;
        let kubeconfig = self.target.kubeconfig.as_deref();
        let peers = self.peers.load(kubeconfig, std::slice::from_ref(&operator)).await?;
        let (own, peers) =
            join(look(&operator, &self.root_namespace), look::all(&peers, &self.root_namespace))
                .await;
        let own = own?;
        let view = self.view(&own, pod)?;
        let world = World::new(Arc::clone(&own));
        let peers: Vec<World> = peers.into_iter().map(World::new).collect();
        let explanation = explain::why(&world, &view, &host, port, &peers);
        // Who may not read what this rests on is told the rest.
        let state = operator.pod_state(&self.namespace, pod).await.ok().flatten();
        let sidecar = state.and_then(|state| without_sidecar(&operator.context, &state));
        let links = operator.links(&self.root_namespace).await.unwrap_or_default();
        let links = wrong_links(&operator.context, &links, &explanation);
        if self.output == Format::Table {
            for sentence in sidecar.iter().chain(&links) {
                say!("{sentence}");
            }
            say!("{explanation}");
        } else {
            output::value(self.output, &Answer { sidecar, links, explanation: &explanation })?;
        }
        Ok(match explanation.verdict {
            explain::Verdict::Reachable | explain::Verdict::NotCarried => ExitCode::SUCCESS,
            explain::Verdict::Partly | explain::Verdict::Unreachable => ExitCode::FAILURE,
        })
    }

    fn view(&self, own: &Inventory, pod: &str) -> Result<View> {
        let name = WorkloadName { namespace: self.namespace.clone(), name: pod.to_owned() };
        let workload = own.workloads.get(&name).with_context(|| {
            let there = own.workloads.keys();
            let near: Vec<&str> = there
                .filter(|known| known.namespace == self.namespace)
                .map(|known| known.name.as_str())
                .take(10)
                .collect();
            let fix = if near.is_empty() {
                let there = own.workloads.keys().map(|known| known.namespace.as_str());
                let with: BTreeSet<&str> = there.collect();
                let with: Vec<&str> = with.into_iter().take(10).collect();
                match with[..] {
                    [] => "start one; the cluster has no pod that the mesh knows".to_owned(),
                    _ => format!("it has none; pass -n with one of: {}", with.join(", ")),
                }
            } else {
                format!("name one of: {}", near.join(", "))
            };
            format!("ISM2032 there is no pod {pod} in namespace {}. Fix: {fix}", self.namespace)
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

/// HOST:PORT as a call names it; an IPv6 address stands in brackets there, and in none behind it.
fn destination(text: &str) -> Result<(String, u16)> {
    let (host, port) =
        text.rsplit_once(':').filter(|(host, _)| !host.is_empty()).ok_or_else(|| {
            bad_call(format!("ISM2030 {text:?} is not HOST:PORT. Fix: add the service port"))
        })?;
    let port = port.parse().ok().filter(|port| *port > 0).ok_or_else(|| {
        bad_call(format!(
            "ISM2030 {port:?} in {text:?} is no port. Fix: write the service port, a number from 1 to \
             65535"
        ))
    })?;
    let inside = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    Ok((inside.unwrap_or(host).to_ascii_lowercase(), port))
}

#[cfg(test)]
mod tests {
    use super::*;
    use cluster::inject::Sidecar;

    #[test]
    fn a_destination_has_a_host_and_a_port() {
        assert_eq!(destination("Hello.shop.global:80").unwrap(), ("hello.shop.global".into(), 80));
        assert_eq!(destination("[fd00::1]:80").unwrap(), ("fd00::1".into(), 80));
        for (text, word) in [
            ("hello", "HOST:PORT"),
            (":80", "HOST:PORT"),
            ("hello:", "no port"),
            ("hello:0", "no port"),
            ("hello:99999", "1 to 65535"),
            ("hello:http", "no port"),
        ] {
            let said = destination(text).unwrap_err().to_string();
            assert!(said.contains(word) && said.contains("Fix: "), "{text}: {said}");
        }
    }

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
    fn a_broken_link_is_named_where_the_call_could_go_by_it() {
        let link = |name: &str, status: &str| -> ClusterLink {
            let condition = serde_json::json!({
                "type": "TrustEstablished", "status": status, "reason": "RootsDiffer",
                "message": "other roots. Fix: trust issue", "lastTransitionTime": "2026-01-01T00:00:00Z",
            });
            let ready = serde_json::json!({
                "type": "Ready", "status": status, "reason": "Ready", "message": "",
                "lastTransitionTime": "2026-01-01T00:00:00Z",
            });
            serde_json::from_value(serde_json::json!({
                "metadata": {"name": name}, "spec": {},
                "status": {"conditions": [condition, ready], "services": 1, "endpoints": 1},
            }))
            .unwrap()
        };
        let links = [link("west", "False"), link("north", "True"), link("south", "False")];
        let named = |steps: Vec<Step>| -> Vec<String> {
            let verdict = explain::Verdict::Unreachable;
            let explanation = Explanation { asked: String::new(), steps, verdict };
            let said = wrong_links("east", &links, &explanation);
            let whole = said.iter().all(|it| it.contains("ISM2618") && it.contains("Fix: trust"));
            assert!(whole, "{said:?}");
            said.iter().map(|it| it.split(':').next().unwrap().to_owned()).collect()
        };
        let name = |host: &str, meaning| Step::Name {
            host: host.parse().unwrap(),
            addresses: vec![],
            meaning,
        };
        let unknown = |host: &str, hint| Step::UnknownName { host: host.into(), hints: vec![hint] };
        let both = ["link west", "link south"];
        assert_eq!(named(vec![name("hello.shop.global", Meaning::AllExporters)]), both);
        let one = name("hello.shop.west.global", Meaning::OneCluster);
        assert_eq!(named(vec![one]), ["link west"]);
        assert_eq!(named(vec![unknown("hello.shop.west.global", Hint::NoLinks)]), ["link west"]);
        assert_eq!(named(vec![unknown("hello.shop.global", Hint::NoLinks)]), both);
        let none: [&str; 0] = [];
        assert_eq!(named(vec![unknown("example.org", Hint::Outside)]), none);
        assert_eq!(named(vec![name("hello.shop.svc.cluster.local", Meaning::LocalService)]), none);
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
            let answer = Answer { sidecar, links: vec![], explanation: &explanation };
            for format in [Format::Yaml, Format::Json] {
                let text = output::written(format, &answer).unwrap();
                let back: serde_json::Value = serde_saphyr::from_str(&text).unwrap();
                assert_eq!(back, expected, "{text}");
            }
        }
    }
}
