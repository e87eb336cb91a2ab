//! The main job with Deployments on kubelets: bare clusters, then `install`, `link`, `export`, and a pod
//! that nobody prepared calls a name across clusters.

use super::shop::manifests;
use super::{Stage, until};
use anyhow::{Context, Result, ensure};
use fleet::hello::Answer;
use fleet::{objects, trust_domain};
use serde_json::Value;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(90);
/// Bare clusters to the first answer.
const WHOLE: Duration = Duration::from_secs(180);

pub(super) async fn real_pods(stage: &Stage<'_>) -> Result<()> {
    let workloads = stage.pods.clusters.values().map(async |cluster| {
        let copies = if cluster.name == "east" { 0 } else { 2 };
        objects::apply_yaml(&cluster.client, &manifests(cluster.name, copies)).await
    });

    let begun = Instant::now();
    let said = stage.install().await?;
    stage.judge(
        "install brings three bare clusters up by one command",
        &format!("{} after {:.0} s", last(&said), begun.elapsed().as_secs_f64()),
        said.contains("installed in 3 clusters"),
    );
    let again = stage.install().await?;
    let changed = again.lines().filter(|line| line.contains(" objects ")).collect::<Vec<_>>();
    stage.judge(
        "done again, it changes nothing",
        &changed.iter().map(|line| line.trim()).collect::<Vec<_>>().join("; "),
        changed.len() == 3 && changed.iter().all(|line| line.contains("0 created, 0 changed")),
    );
    // Users' own, as they have it before they hear of us: labelled for injection, nothing more.
    futures::future::try_join_all(workloads).await?;
    stage.link().await?;
    for context in ["west", "north"] {
        stage.isthmus(&["export", "svc/hello", "-n", "shop", "--context", context]).await?;
    }
    let answer = call(stage, "http://hello.shop.global/").await?;
    let took = begun.elapsed();
    let identity = format!("spiffe://{}/ns/shop/sa/default", trust_domain("east"));
    let xfcc = answer.headers.get("x-forwarded-client-cert").cloned().unwrap_or_default();
    stage.judge(
        "trust init, install, link, export, and curl from a pod: answered within 3 minutes",
        &format!("{}/{} after {:.0} s", answer.cluster, answer.pod, took.as_secs_f64()),
        ["west", "north"].contains(&answer.cluster.as_str()) && took < WHOLE,
    );
    stage.judge(
        "the server in the other cluster is told the caller's SPIFFE identity",
        &xfcc,
        xfcc.contains(&identity),
    );
    for name in ["hello.shop.west.global", "hello.shop.svc.clusterset.local"] {
        let answer = call(stage, &format!("http://{name}/")).await?;
        stage.judge(
            &format!("a pod calls {name}"),
            &format!("{}/{}", answer.cluster, answer.pod),
            answer.cluster != "east" && (!name.contains("west") || answer.cluster == "west"),
        );
    }
    injected(stage).await?;
    scaled(stage).await
}

/// What the webhook made of a Deployment that says nothing of a mesh.
async fn injected(stage: &Stage<'_>) -> Result<()> {
    let pods = objects::api(&stage.pods.cluster("west").client, "v1", "Pod", "shop");
    let pods = pods.list(&Default::default()).await?.items;
    let proxies = pods.iter().filter(|pod| {
        let containers = pod.data["spec"]["initContainers"].as_array();
        containers.is_some_and(|all| {
            all.iter().any(|c| c["name"] == "isthmus-proxy" && c["restartPolicy"] == "Always")
        })
    });
    let (count, all) = (proxies.count(), pods.len());
    stage.judge(
        "every pod of a labelled namespace has a native sidecar",
        &format!("{count} of {all} pods in west"),
        count == all && all >= 2,
    );
    Ok(())
}

/// West scaled to nothing and back.
async fn scaled(stage: &Stage<'_>) -> Result<()> {
    let scale = async |replicas: &str| {
        let replicas = format!("--replicas={replicas}");
        stage.kubectl("west", &["-n", "shop", "scale", "deployment/hello", &replicas]).await
    };
    scale("0").await?;
    let begun = Instant::now();
    let away = until(LIMIT, "north answering", async || {
        let answer = call_once(stage, "http://hello.shop.global/").await?;
        ensure!(answer.cluster == "north", "{} answers", answer.cluster);
        Ok(answer)
    })
    .await?;
    stage.judge(
        "west scaled to 0: north answers",
        &format!("{}/{} after {:.1} s", away.cluster, away.pod, begun.elapsed().as_secs_f64()),
        away.cluster == "north",
    );
    scale("2").await?;
    stage.pods.cluster("west").deployment_ready("shop", "hello", LIMIT).await?;
    let begun = Instant::now();
    let mut seen = BTreeSet::new();
    until(LIMIT, "west answering again", async || {
        let answer = call_once(stage, "http://hello.shop.west.global/").await?;
        seen.insert(answer.cluster);
        ensure!(seen.contains("west"), "{seen:?} answer");
        Ok(())
    })
    .await?;
    let took = begun.elapsed();
    stage.judge(
        "west scaled back: it answers within 2 s of its readiness",
        &format!("after {:.2} s", took.as_secs_f64()),
        took < Duration::from_secs(2),
    );
    Ok(())
}

fn last(said: &str) -> &str {
    said.lines().last().unwrap_or_default()
}

/// Calls from east's pod until something answers.
async fn call(stage: &Stage<'_>, url: &str) -> Result<Answer> {
    until(LIMIT, url, async || call_once(stage, url).await).await
}

async fn call_once(stage: &Stage<'_>, url: &str) -> Result<Answer> {
    let said = stage.curl(url).await?;
    let answer: Value = serde_json::from_str(&said).with_context(|| format!("{url}: {said}"))?;
    serde_json::from_value(answer).context("an answer that is not hello's")
}
