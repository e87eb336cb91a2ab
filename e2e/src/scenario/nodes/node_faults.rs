//! What a node may suffer: its packets vanish, its power fails. The cluster notices, and recovers.

use super::{Stage, until};
use anyhow::{Context, Result, ensure};
use fleet::nodes::{HELLO, Nodes};
use fleet::pods::PodCluster;
use fleet::{load, objects};
use std::time::{Duration, Instant};

/// A controller calls a node unready 50 s after its last lease (`--node-monitor-grace-period`), and
/// looks every 5 s.
const NOTICED: Duration = Duration::from_secs(65);
/// A kubelet renews its lease every 10 s, and posts its status when it can.
const WELL: Duration = Duration::from_secs(45);
/// From power to answers: the runtime, the kubelet, every pod's sandbox anew.
const BOOTED: Duration = Duration::from_secs(90);

pub(super) async fn node_faults(stage: &Stage<'_>, nodes: &Nodes) -> Result<()> {
    let cluster = stage.pods.cluster("west");
    let machine = nodes.cluster("west").machines.first().context("west has no node")?;
    objects::apply_yaml(&cluster.client, &manifests()).await?;
    cluster.deployment_ready("faults", "hello", BOOTED).await?;
    let url = format!("http://{}/", address(cluster).await?);
    let answers = async || load::get(&url, None, Duration::from_secs(2)).await;
    until(BOOTED, "calling the load balancer", answers).await?;

    let started = Instant::now();
    machine.black_hole()?;
    let silent = answers().await;
    until(NOTICED, "noticing the black hole", async || ready(cluster, &machine.name, false).await)
        .await?;
    stage.judge(
        "a node in a black hole answers nobody, and is unready to its cluster",
        &format!("unready after {:.1} s", started.elapsed().as_secs_f64()),
        silent.is_err(),
    );
    let started = Instant::now();
    machine.heal()?;
    until(WELL, "noticing the end of the black hole", async || {
        ready(cluster, &machine.name, true).await
    })
    .await?;
    let ready_after = started.elapsed();
    until(WELL, "calling the load balancer", answers).await?;
    let figure = format!(
        "ready after {:.1} s, answers after {:.1} s",
        ready_after.as_secs_f64(),
        started.elapsed().as_secs_f64()
    );
    stage.judge("without it the node is ready again, and its pods answer", &figure, true);

    machine.kill();
    let silent = answers().await;
    let started = Instant::now();
    machine.boot()?;
    until(BOOTED, "calling the load balancer after the boot", answers).await?;
    stage.judge(
        "a node whose power failed answers nobody; booted again, it runs its pods",
        &format!("answers after {:.1} s", started.elapsed().as_secs_f64()),
        silent.is_err(),
    );
    until(WELL, "the node is ready", async || ready(cluster, &machine.name, true).await).await?;
    super::gone(cluster, "faults").await
}

/// Whether the API server's word on a node is `wanted`; an error where it is not.
async fn ready(cluster: &PodCluster, node: &str, wanted: bool) -> Result<()> {
    let node = objects::api(&cluster.client, "v1", "Node", "").get(node).await?;
    let conditions = node.data["status"]["conditions"].as_array();
    let condition = conditions.and_then(|all| all.iter().find(|c| c["type"] == "Ready"));
    let status = &condition.context("the node has no condition Ready")?["status"];
    ensure!((status == "True") == wanted, "its condition Ready is {status}");
    Ok(())
}

async fn address(cluster: &PodCluster) -> Result<String> {
    let services = objects::api(&cluster.client, "v1", "Service", "faults");
    until(BOOTED, "the address of the load balancer", async || {
        let service = services.get("hello").await?;
        let ingress = service.data["status"]["loadBalancer"]["ingress"][0]["ip"].as_str();
        Ok(ingress.context("it has no address")?.to_owned())
    })
    .await
}

fn manifests() -> String {
    format!(
        r#"
apiVersion: v1
kind: Namespace
metadata: {{name: faults}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {{name: hello, namespace: faults}}
spec:
  selector: {{matchLabels: {{app: hello}}}}
  template:
    metadata: {{labels: {{app: hello}}}}
    spec:
      containers:
      - name: hello
        image: {HELLO}
        args: [--cluster, west, --pod, hello]
        readinessProbe:
          httpGet: {{path: /, port: 8080}}
          periodSeconds: 1
---
apiVersion: v1
kind: Service
metadata: {{name: hello, namespace: faults}}
spec:
  type: LoadBalancer
  selector: {{app: hello}}
  ports:
  - {{port: 80, targetPort: 8080}}
"#
    )
}
