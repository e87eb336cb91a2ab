//! What scenarios on pods need of a fleet, whoever made its nodes: its clusters, their Deployments, and an
//! operator's programs.

use crate::objects;
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Clusters whose nodes run pods, as an operator sees them. It ends nothing when it is dropped: whoever
/// made the clusters does.
pub struct Pods {
    pub clusters: BTreeMap<&'static str, PodCluster>,
    /// The program under test.
    pub isthmus: PathBuf,
    /// Of the operator, with one context for each cluster, named as it is.
    pub operator: PathBuf,
    /// For files of the run; removed at its end.
    pub run: PathBuf,
    pub(crate) kubectl: PathBuf,
}

/// One of them.
pub struct PodCluster {
    pub name: &'static str,
    pub client: kube::Client,
    /// First and last address that Services of type LoadBalancer get: the other clusters reach these.
    pub balanced: (Ipv4Addr, Ipv4Addr),
}

impl Pods {
    pub fn cluster(&self, name: &str) -> &PodCluster {
        &self.clusters[name]
    }

    /// A command of kubectl on a cluster.
    pub fn kubectl(&self, cluster: &str) -> tokio::process::Command {
        let mut command = tokio::process::Command::new(&self.kubectl);
        command.arg("--kubeconfig").arg(&self.operator).args(["--context", cluster]);
        // A cache elsewhere would be left behind.
        command.arg("--cache-dir").arg(cache(&self.run));
        command.kill_on_drop(true);
        command
    }
}

/// kubectl's cache among the files of a run.
pub(crate) fn cache(run: &Path) -> PathBuf {
    run.join("kubectl")
}

impl PodCluster {
    /// Waits until all copies of a Deployment are available, of its latest generation.
    pub async fn deployment_ready(
        &self,
        namespace: &str,
        name: &str,
        limit: Duration,
    ) -> Result<()> {
        let api = objects::api(&self.client, "apps/v1", "Deployment", namespace);
        let deadline = tokio::time::Instant::now() + limit;
        loop {
            let found = api.get(name).await;
            if let Ok(object) = &found {
                let (status, wanted) = (&object.data["status"], &object.data["spec"]["replicas"]);
                let seen = status["observedGeneration"].as_i64() == object.metadata.generation;
                let all = |field: &str| {
                    status[field].as_i64().unwrap_or(0) == wanted.as_i64().unwrap_or(1)
                };
                if seen && all("availableReplicas") && all("updatedReplicas") && all("replicas") {
                    return Ok(());
                }
            }
            if tokio::time::Instant::now() > deadline {
                let pods = self.pods_said(namespace).await;
                found.with_context(|| format!("reading Deployment {namespace}/{name}"))?;
                bail!("Deployment {namespace}/{name} is not available after {limit:?}. {pods}");
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// What keeps the pods of a namespace from being ready, in a line.
    async fn pods_said(&self, namespace: &str) -> String {
        let pods = objects::api(&self.client, "v1", "Pod", namespace);
        let pods = match pods.list(&Default::default()).await {
            Ok(pods) => pods.items,
            Err(error) => return format!("its pods cannot be read: {error}"),
        };
        let said = pods.into_iter().map(|pod| {
            let status = &pod.data["status"];
            let containers = status["containerStatuses"].as_array().cloned().unwrap_or_default();
            let states = containers.iter().map(|c| c["state"].to_string()).collect::<Vec<_>>();
            let conditions = status["conditions"].as_array().cloned().unwrap_or_default();
            let unmet = conditions.into_iter().filter(|c| c["status"] == "False").map(reason);
            let unmet = unmet.collect::<Vec<_>>().join(", ");
            let name = pod.metadata.name.unwrap_or_default();
            format!("pod {name}: {} {} {unmet}", status["phase"], states.join(" "))
        });
        said.collect::<Vec<_>>().join("; ")
    }
}

/// A condition's reason and message.
pub(crate) fn reason(condition: Value) -> String {
    let text = |field: &str| condition[field].as_str().unwrap_or_default().to_owned();
    format!("{}: {} {}", text("type"), text("reason"), text("message"))
}
