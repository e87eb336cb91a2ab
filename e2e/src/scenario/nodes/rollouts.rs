//! Every part of the way is rolled out anew under 500 GETs a second: the service, its gateway, both
//! control planes.

use super::shop::manifests;
use super::{Stage, gone, until};
use anyhow::{Context, Result, ensure};
use fleet::load::micros_now;
use fleet::objects;
use fleet::verdict::{Kind, Record, figures};
use std::time::Duration;

const HOST: &str = "hello.shop.global";
const LIMIT: Duration = Duration::from_secs(120);
/// What is sent, a second, and for how long in all: 100,000.
const GETS: &str = "500";
const SECONDS: u64 = 200;
/// Between two rollouts.
const REST: Duration = Duration::from_secs(5);

/// Where, and what.
const ROLLED: [(&str, &str, &str); 4] = [
    ("west", "shop", "hello"),
    ("west", "isthmus-system", "isthmus-eastwestgateway"),
    ("west", "isthmus-system", "isthmus-control-plane"),
    ("east", "isthmus-system", "isthmus-control-plane"),
];

pub(super) async fn rollouts(stage: &Stage<'_>) -> Result<()> {
    stage.install().await?;
    for (name, copies) in [("east", 1), ("west", 2), ("north", 1)] {
        let cluster = stage.fleet.cluster(name);
        objects::apply_yaml(cluster.client(), &manifests(name, copies)).await?;
        cluster.deployment_ready("shop", "hello", LIMIT).await?;
    }
    stage.link().await?;
    for context in ["west", "north"] {
        stage.isthmus(&["export", "svc/hello", "-n", "shop", "--context", context]).await?;
    }
    let url = format!("http://{HOST}/");
    until(LIMIT, HOST, async || stage.curl(&url).await).await?;

    // Each record is printed as it ends: the pod has no file that anybody else could read.
    let (host, seconds) = (format!("{HOST}:80"), SECONDS.to_string());
    let from = ["-n", "shop", "exec", "deployment/hello", "-c", "hello", "--"];
    let load = ["/usr/bin/isthmus-e2e", "load", "--http", &host, "--tcp", &host, "--gets", GETS];
    let rest = ["--seconds", &seconds, "--out", "/dev/stdout"];
    let load = [&from[..], &load, &rest].concat();
    let (said, spans) = tokio::join!(stage.kubectl("east", &load), roll(stage));
    let (said, spans) = (said?, spans?);
    let records: Vec<Record> = said
        .lines()
        .map(|line| serde_json::from_str(line).with_context(|| format!("a record: {line}")))
        .collect::<Result<_>>()?;
    for (what, from_us, until_us) in spans {
        let part = figures(&records, Kind::Get, from_us, until_us);
        ensure!(part.requests > 0, "nothing was sent while {what} was rolled out");
        stage.judge(
            &format!("rollout of {what} under {GETS} GETs a second: none fails"),
            &part.to_string(),
            part.failed + part.cut == 0,
        );
    }
    let all = figures(&records, Kind::Get, 0, u64::MAX);
    stage.judge(
        "of 100,000 GETs over all rollouts and between them none fails",
        &all.to_string(),
        all.failed + all.cut == 0 && all.requests >= 99_000,
    );
    let clusters = stage.fleet.clusters.values().map(|cluster| gone(cluster, "shop"));
    futures::future::try_join_all(clusters).await.map(|_| ())
}

/// Rolls out everything once; what, from when until when.
async fn roll(stage: &Stage<'_>) -> Result<Vec<(String, u64, u64)>> {
    let mut spans = vec![];
    for (cluster, namespace, name) in ROLLED {
        tokio::time::sleep(REST).await;
        let from_us = micros_now();
        let deployment = format!("deployment/{name}");
        stage.kubectl(cluster, &["-n", namespace, "rollout", "restart", &deployment]).await?;
        let status = ["-n", namespace, "rollout", "status", "--timeout=120s", &deployment];
        stage.kubectl(cluster, &status).await?;
        // Those that end drain for a while after the new ones are ready.
        tokio::time::sleep(REST).await;
        spans.push((format!("{name} in {cluster}"), from_us, micros_now()));
    }
    Ok(spans)
}
