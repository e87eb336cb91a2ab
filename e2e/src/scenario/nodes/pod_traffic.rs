//! What goes in comes out, octet by octet, between pods of two clusters: long bodies, HTTP/2, WebSocket,
//! servers that speak first.

use super::shop::manifests;
use super::{Stage, gone, until};
use anyhow::{Context, Result};
use fleet::exact::Tried;
use fleet::objects;
use std::time::Duration;

const HOST: &str = "exact.shop.global";
/// By then the name answers.
const LINKED: Duration = Duration::from_secs(90);
const READY: Duration = Duration::from_secs(90);

pub(super) async fn pod_traffic(stage: &Stage<'_>) -> Result<()> {
    stage.install().await?;
    for (name, copies) in [("east", 1), ("west", 2)] {
        let cluster = stage.fleet.cluster(name);
        objects::apply_yaml(cluster.client(), &manifests(name, copies)).await?;
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
    let clusters = ["east", "west"].map(|name| gone(stage.fleet.cluster(name), "shop"));
    futures::future::try_join_all(clusters).await.map(|_| ())
}
