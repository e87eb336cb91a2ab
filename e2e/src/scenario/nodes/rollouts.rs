//! Every part of the way is rolled out anew under 500 requests a second: the service, its gateway, both
//! control planes.

use super::{HOST, Stage};
use anyhow::{Result, ensure};
use fleet::load::micros_now;
use fleet::verdict::{Kind, figures};
use std::time::Duration;

/// What is sent, a second, and for how long in all: 100,000. Who loses a POST has lost it: no sidecar
/// may send it twice.
const GETS: u32 = 400;
const POSTS: u32 = 100;
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
    stage.in_use([1, 2, 1]).await?;
    let load = stage.load_with(HOST, GETS, POSTS, SECONDS);
    let (records, spans) = tokio::join!(load, roll(stage));
    let (records, spans) = (records?, spans?);
    for (kind, rate, name) in [(Kind::Get, GETS, "GETs"), (Kind::Post, POSTS, "POSTs")] {
        for (what, from_us, until_us) in &spans {
            let part = figures(&records, kind, *from_us, *until_us);
            ensure!(part.requests > 0, "no {name} were sent while {what} was rolled out");
            stage.judge(
                &format!("rollout of {what} under {rate} {name} a second: none fails"),
                &part.to_string(),
                part.failed + part.cut == 0,
            );
        }
        let all = figures(&records, kind, 0, u64::MAX);
        let sent = u64::from(rate) * SECONDS;
        stage.judge(
            &format!("of {sent} {name} over all rollouts and between them none fails"),
            &all.to_string(),
            all.failed + all.cut == 0 && all.requests as u64 >= sent * 99 / 100,
        );
    }
    stage.shop_gone().await
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
