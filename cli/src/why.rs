//! `isthmus why CLIENT HOST:PORT`: every decision on the way, with its reason, by the functions that
//! the control plane and the proxies use.

use crate::Target;
use crate::look::look;
use crate::output::{self, Format};
use anyhow::{Context as _, Result, bail};
use clap::Args;
use mesh::explain;
use mesh::inventory::{Inventory, WorkloadName};
use mesh::name::Identity;
use mesh::world::{Dialect, Role, View, World};
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
        if self.output == Format::Table {
            print!("{explanation}");
        } else {
            output::value(self.output, &explanation)?;
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
