//! What goes in comes out, octet by octet, between pods of two clusters: long bodies, HTTP/2, WebSocket,
//! servers that speak first, gRPC's streams.

use super::shop::manifests;
use super::{Stage, gone, until};
use anyhow::{Context, Result};
use fleet::exact::Tried;
use fleet::nodes::INTEROP;
use fleet::objects;
use fleet::peers::INTEROP_CASES;
use std::time::Duration;

const HOST: &str = "exact.shop.global";
/// By then the name answers.
const LINKED: Duration = Duration::from_secs(90);
const READY: Duration = Duration::from_secs(90);

pub(super) async fn pod_traffic(stage: &Stage<'_>) -> Result<()> {
    stage.install().await?;
    for (name, copies) in [("east", 1), ("west", 2)] {
        let cluster = stage.pods.cluster(name);
        objects::apply_yaml(&cluster.client, &manifests(name, copies)).await?;
        cluster.deployment_ready("shop", "hello", READY).await?;
    }
    stage.link().await?;
    stage.isthmus(&["export", "svc/exact", "-n", "shop", "--context", "west"]).await?;
    let url = format!("http://{HOST}/");
    until(LINKED, HOST, async || stage.curl(&url).await).await?;
    let exact = ["--", "/usr/bin/isthmus-e2e", "exact", "--host", HOST];
    let from = ["-n", "shop", "exec", "deployment/hello", "-c", "hello"];
    let said = stage.kubectl("east", &[&from[..], &exact].concat()).await?;
    let tried: Vec<Tried> = serde_json::from_str(&said).context("what the tries came to")?;
    for Tried { name, problem, took_ms } in tried {
        let figure = problem.clone().unwrap_or_else(|| format!("every octet, in {took_ms} ms"));
        stage.judge(&name, &figure, problem.is_none());
    }
    grpc(stage).await?;
    let clusters = ["east", "west"].map(|name| gone(stage.pods.cluster(name), "shop"));
    futures::future::try_join_all(clusters).await.map(|_| ())
}

/// Plays gRPC's interop cases from a pod of east against pods of west.
async fn grpc(stage: &Stage<'_>) -> Result<()> {
    for (name, app, copies) in [("west", "interop", 2), ("east", "caller", 1)] {
        let cluster = stage.pods.cluster(name);
        objects::apply_yaml(&cluster.client, &interop(app, copies)).await?;
        cluster.deployment_ready("shop", app, READY).await?;
    }
    stage.isthmus(&["export", "svc/interop", "-n", "shop", "--context", "west"]).await?;
    let case = async |name: &str| {
        let name = format!("--test_case={name}");
        let host = "--server_host=interop.shop.global";
        let call =
            ["/usr/bin/interop-client", host, "--server_port=8051", "--use_tls=false", &name];
        let from = ["-n", "shop", "exec", "deployment/caller", "-c", "interop", "--"];
        stage.kubectl("east", &[&from[..], &call].concat()).await
    };
    until(LINKED, "interop.shop.global", async || case("empty_unary").await).await?;
    let mut broken = Vec::new();
    for name in INTEROP_CASES {
        if let Err(problem) = case(name).await {
            broken.push(format!("{name}: {problem:#}"));
        }
    }
    let (passed, all) = (INTEROP_CASES.len() - broken.len(), INTEROP_CASES.len());
    let figure = format!("{passed} of {all} passed {}", broken.join("; "));
    stage.judge("gRPC's interop cases, streams both ways among them", &figure, broken.is_empty());
    Ok(())
}

/// gRPC's interop server behind a service of its own name; the image has the client too.
fn interop(app: &str, copies: u32) -> String {
    format!(
        r#"
apiVersion: apps/v1
kind: Deployment
metadata: {{name: {app}, namespace: shop}}
spec:
  replicas: {copies}
  selector: {{matchLabels: {{app: {app}}}}}
  template:
    metadata: {{labels: {{app: {app}}}}}
    spec:
      containers:
      - name: interop
        image: {INTEROP}
        args: [--port=8051]
        ports:
        - {{name: grpc, containerPort: 8051}}
        readinessProbe:
          tcpSocket: {{port: grpc}}
          periodSeconds: 1
---
apiVersion: v1
kind: Service
metadata: {{name: {app}, namespace: shop}}
spec:
  selector: {{app: {app}}}
  ports:
  - {{name: grpc, port: 8051, targetPort: grpc}}
"#
    )
}
