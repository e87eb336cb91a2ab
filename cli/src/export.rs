//! `isthmus export` and `unexport`: a ServiceExport (MCS API) beside a Service.

use crate::look::{Peers, look};
use anyhow::{Context as _, Result, bail};
use clap::Args;
use cluster::operator::Operator;
use mesh::authorize::{self, Callers};
use mesh::inventory::Inventory;
use mesh::name::ServiceName;
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

impl Call {
    fn name(&self) -> Result<ServiceName> {
        let name = match self.service.split_once('/') {
            Some(("svc" | "service" | "services", name)) => name,
            Some((kind, _)) => {
                bail!("ISM2020 only services are exported, not {kind:?}. Fix: svc/NAME")
            }
            None => &self.service,
        };
        ServiceName::new(&self.namespace, name)
            .context("ISM2020 no such service. Fix: svc/NAME -n NAMESPACE")
    }

    async fn export(&self, peers: &Peers) -> Result<ExitCode> {
        let name = self.name()?;
        let kubeconfig = self.targets.kubeconfig.as_deref();
        let peers = peers.look(kubeconfig, &self.root_namespace).await;
        for cluster in self.targets.load().await? {
            let service = cluster.service(&name.namespace, &name.name).await?.with_context(|| {
                format!(
                    "ISM2021 there is no Service {name} in {}. Fix: create it first, or name another context",
                    cluster.context
                )
            })?;
            let kind =
                service.spec.as_ref().and_then(|spec| spec.type_.clone()).unwrap_or_default();
            if kind == "ExternalName" {
                bail!(
                    "ISM2022 Service {name} in {} is of type ExternalName, which has no endpoints of its \
                     own. Fix: export the service it points to",
                    cluster.context
                );
            }
            let version = cluster.service_export_version().await?;
            let object = json!({
                "apiVersion": version, "kind": "ServiceExport",
                "metadata": {"name": name.name, "namespace": name.namespace},
            });
            if self.dry_run {
                say!("  {:<12}would apply ServiceExport {name} ({version})", cluster.context);
                self.callers(&cluster, &name, &peers).await;
                continue;
            }
            cluster.apply(&[object]).await?;
            let ports: Vec<String> = service
                .spec
                .and_then(|spec| spec.ports)
                .into_iter()
                .flatten()
                .map(|port| {
                    format!("{}/{}", port.port, port.protocol.unwrap_or_else(|| "TCP".into()))
                })
                .collect();
            say!("  {:<12}exported {name}, ports {}", cluster.context, ports.join(" "));
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
        let world = World::new(own);
        let Some(found) = authorize::audience(&world, name, peers) else {
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
