//! `isthmus export` and `unexport`: a ServiceExport (MCS API) beside a Service.

use anyhow::{Context as _, Result, bail};
use clap::Args;
use cluster::operator::Operator;
use mesh::name::ServiceName;
use serde_json::json;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Debug, Args)]
pub(crate) struct Call {
    /// `svc/NAME`, or NAME.
    service: String,
    #[arg(short, long, default_value = "default")]
    namespace: String,
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Contexts to do it in; may be given several times.
    #[arg(long, value_name = "NAME")]
    context: Vec<String>,
    /// Print what would be done; change nothing.
    #[arg(long)]
    dry_run: bool,
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

    async fn clusters(&self) -> Result<Vec<Operator>> {
        if self.context.is_empty() {
            return Ok(vec![Operator::load(self.kubeconfig.as_deref(), None).await?]);
        }
        let mut clusters = Vec::new();
        for context in &self.context {
            clusters.push(Operator::load(self.kubeconfig.as_deref(), Some(context)).await?);
        }
        Ok(clusters)
    }

    pub(crate) async fn export(self) -> Result<ExitCode> {
        let name = self.name()?;
        for cluster in self.clusters().await? {
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
                println!("  {:<12}would apply ServiceExport {name} ({version})", cluster.context);
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
            println!("  {:<12}exported {name}, ports {}", cluster.context, ports.join(" "));
        }
        println!("  {:<12}{}  {}", "names", name.global_host(), name.clusterset_host());
        Ok(ExitCode::SUCCESS)
    }

    pub(crate) async fn unexport(self) -> Result<ExitCode> {
        let name = self.name()?;
        for cluster in self.clusters().await? {
            let version = cluster.service_export_version().await?;
            let object = json!({
                "apiVersion": version, "kind": "ServiceExport",
                "metadata": {"name": name.name, "namespace": name.namespace},
            });
            if self.dry_run {
                println!("  {:<12}would delete ServiceExport {name}", cluster.context);
                continue;
            }
            let done = if cluster.delete(&[object]).await?.is_empty() {
                "was not exported"
            } else {
                "no longer exported"
            };
            println!("  {:<12}{name} {done}", cluster.context);
        }
        Ok(ExitCode::SUCCESS)
    }
}
