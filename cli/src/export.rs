//! `isthmus export` and `unexport`: a ServiceExport (MCS API) beside a Service.

use crate::bad_call::bad_call;
use crate::look::{self, Peers, look};
use anyhow::{Context as _, Result, anyhow};
use clap::Args;
use cluster::operator::Operator;
use cluster::parse::{self, Parsed};
use mesh::authorize::{self, Callers};
use mesh::export::Offer;
use mesh::inventory::{Inventory, Service};
use mesh::name::{ClusterId, ServiceName};
use mesh::world::World;
use serde_json::json;
use std::collections::BTreeSet;
use std::process::ExitCode;
use std::sync::Arc;

#[derive(Debug, Args)]
pub(crate) struct Call {
    /// `svc/NAME`, or NAME.
    service: String,
    #[arg(short, long, default_value = "default")]
    namespace: String,
    #[command(flatten)]
    targets: crate::Targets,
    #[arg(long, default_value = "isthmus-system")]
    root_namespace: String,
    /// Print what would be done; change nothing.
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Export {
    #[command(flatten)]
    call: Call,
    #[command(flatten)]
    peers: Peers,
}

impl Export {
    pub(crate) async fn run(self) -> Result<ExitCode> {
        self.call.export(&self.peers).await
    }
}

/// What other clusters will be able to call of a Service.
///
/// # Errors
/// Why that is nothing.
fn offered(parsed: Parsed<Service>, cluster: Option<&ClusterId>) -> Result<Offer, String> {
    let unread = parsed.findings.iter().map(ToString::to_string).collect::<Vec<_>>();
    let Some(service) = parsed.value else { return Err(unread.join("; ")) };
    let mut offer = mesh::export::offer(&service, cluster)?;
    offer.left_out.extend(unread);
    if offer.ports.is_empty() { Err(offer.left_out.join("; ")) } else { Ok(offer) }
}

fn print_left_out(offer: &Offer) {
    for sentence in &offer.left_out {
        say!("    {:<10}{sentence}", "left out");
    }
}

impl Call {
    fn name(&self) -> Result<ServiceName> {
        let name = match self.service.split_once('/') {
            Some(("svc" | "service" | "services", name)) => name,
            Some((kind, _)) => {
                return Err(bad_call(format!(
                    "ISM2020 only services are exported, not {kind:?}. Fix: svc/NAME"
                )));
            }
            None => &self.service,
        };
        ServiceName::new(&self.namespace, name).map_err(|why| {
            bad_call(format!("ISM2020 no such service: {why}. Fix: svc/NAME -n NAMESPACE"))
        })
    }

    async fn export(&self, peers: &Peers) -> Result<ExitCode> {
        let name = self.name()?;
        let clusters = self.targets.load().await?;
        let peers = peers.load(self.targets.kubeconfig.as_deref(), &clusters).await?;
        // All are judged before anything is written in one of them.
        let mut offers = vec![];
        for cluster in clusters {
            let service = cluster.service(&name.namespace, &name.name).await?.with_context(|| {
                format!(
                    "ISM2021 there is no Service {name} in {}. Fix: create it first, or name another context",
                    cluster.context
                )
            })?;
            // Of a cluster that does not say its id yet, the rest is judged.
            let described = cluster.describe(&self.root_namespace).await.ok();
            let id = described.and_then(|it| it.cluster.parse::<ClusterId>().ok());
            let offer = offered(parse::service::parse(&service), id.as_ref())
                .map_err(|why| anyhow!("Service {name} in {}: {why}", cluster.context))?;
            offers.push((cluster, offer));
        }
        let peers = look::all(&peers, &self.root_namespace).await;
        for (cluster, offer) in offers {
            let version = cluster.service_export_version().await?;
            let object = json!({
                "apiVersion": version, "kind": "ServiceExport",
                "metadata": {"name": name.name, "namespace": name.namespace},
            });
            if self.dry_run {
                say!("  {:<12}would apply ServiceExport {name} ({version})", cluster.context);
                print_left_out(&offer);
                self.callers(&cluster, &name, &peers).await;
                continue;
            }
            cluster.apply(&[object]).await?;
            let ports = offer.ports.iter().map(|port| format!("{}/TCP", port.number));
            let ports: Vec<String> = ports.collect();
            say!("  {:<12}exported {name}, ports {}", cluster.context, ports.join(" "));
            print_left_out(&offer);
            self.callers(&cluster, &name, &peers).await;
        }
        say!("  {:<12}{}  {}", "names", name.global_host(), name.clusterset_host());
        Ok(ExitCode::SUCCESS)
    }

    /// Which policies stand in front, and whom they let in. The export stands without it, so what
    /// cannot be seen is said and is no error.
    async fn callers(&self, cluster: &Operator, name: &ServiceName, peers: &[Arc<Inventory>]) {
        let say = |what: &str, text: &str| say!("    {what:<10}{text}");
        let own = match look(cluster, &self.root_namespace).await {
            Ok(own) => own,
            Err(problem) => return say("callers", &format!("not known: {problem:#}")),
        };
        // Of several clusters that export at once, each may be a peer of the others.
        let others = peers.iter().filter(|peer| peer.mesh.cluster != own.mesh.cluster);
        let peers: Vec<Arc<Inventory>> = others.cloned().collect();
        let world = World::new(own);
        let Some(found) = authorize::audience(&world, name, &peers) else {
            return say("callers", "not known: the Service has just come or gone");
        };
        for (policy, action) in &found.policies {
            say("policy", &format!("{policy} ({action})"));
        }
        if found.policies.is_empty() && found.copies > 0 {
            say("policy", "none: every workload that may connect may call");
        }
        if found.copies == 0 {
            say("callers", "not known: no ready copy is in the mesh, so no policy is in force yet");
        }
        for (port, callers) in &found.ports {
            say("callers", &format!("port {port}: {callers}"));
        }
        let uncounted: BTreeSet<_> = found.ports.values().flat_map(Callers::uncounted).collect();
        if !uncounted.is_empty() {
            let names = uncounted.iter().map(|cluster| cluster.as_str());
            let names = names.collect::<Vec<_>>().join(", ");
            let count = uncounted.len();
            let clusters = if count == 1 { "cluster" } else { "clusters" };
            say(
                "",
                &format!(
                    "{count} linked {clusters} not looked at: {names} (--peer CONTEXT counts its workloads)"
                ),
            );
        }
        for rule in found.any_domain(&world) {
            say(
                "warning",
                &format!(
                    "{rule} lets in a namespace or service account by its name, of every linked cluster. \
                 Add trustDomains or principals to name the clusters."
                ),
            );
        }
    }

    pub(crate) async fn unexport(self) -> Result<ExitCode> {
        let name = self.name()?;
        for cluster in self.targets.load().await? {
            let version = cluster.service_export_version().await?;
            let object = json!({
                "apiVersion": version, "kind": "ServiceExport",
                "metadata": {"name": name.name, "namespace": name.namespace},
            });
            if self.dry_run {
                say!("  {:<12}would delete ServiceExport {name}", cluster.context);
                continue;
            }
            let done = if cluster.delete(&[object]).await?.is_empty() {
                "was not exported"
            } else {
                "no longer exported"
            };
            say!("  {:<12}{name} {done}", cluster.context);
        }
        Ok(ExitCode::SUCCESS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_never_be_exported_is_refused_and_says_why() {
        let judge = |namespace: &str, name: &str, spec: serde_json::Value| {
            let metadata = json!({"name": name, "namespace": namespace});
            let service = serde_json::from_value(json!({"metadata": metadata, "spec": spec}));
            offered(parse::service::parse(&service.unwrap()), None)
        };
        let tcp = json!({"port": 80, "protocol": "TCP"});
        let udp = json!({"port": 53, "protocol": "UDP"});
        let sctp = json!({"port": 9, "protocol": "SCTP"});
        let of = |ports: &[&serde_json::Value]| json!({"clusterIP": "10.96.0.9", "ports": ports});
        for (namespace, name, spec, code) in [
            ("default", "kubernetes", of(&[&tcp]), "ISM3201"),
            ("shop", "db", json!({"clusterIP": "None", "ports": [tcp]}), "ISM3202"),
            ("shop", "cdn", json!({"type": "ExternalName", "externalName": "a.b"}), "ISM3203"),
            ("shop", "dns", of(&[&udp]), "ISM3204"),
            ("shop", "calls", of(&[&sctp]), "ISM3011"),
        ] {
            let why = judge(namespace, name, spec).unwrap_err();
            assert!(why.contains(code) && why.contains("Fix: "), "{name}: {why}");
        }
        let offer = judge("shop", "both", of(&[&udp, &tcp])).unwrap();
        assert_eq!(offer.ports.iter().map(|port| port.number).collect::<Vec<_>>(), [80]);
        assert!(
            matches!(&offer.left_out[..], [one] if one.contains("port 53 is UDP")),
            "{offer:?}"
        );
    }
}
