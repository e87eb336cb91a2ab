//! Configuration changes under load: nobody who calls may notice.

use super::{HOST, Load, Rates, Stage};
use anyhow::{Result, bail, ensure};
use fleet::launcher::Pod;
use fleet::objects::{apply, delete};
use fleet::verdict::{Kind, figures};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// Changes of configuration, in the client's cluster and in the server's.
const SWAPS: u32 = 20;
/// Between two of them.
const PACE: Duration = Duration::from_secs(4);
/// Over 100,000 requests, begun before the first change and ending after the last.
const LOAD: Rates =
    Rates { gets: 1_000.0, posts: 20.0, connects: 20.0, fresh: 0.0, seconds: 104.0 };
/// What a promise says is served.
const REQUESTS: usize = 100_000;
/// Longest time until all proxies run what was applied.
const SEEN_MAX: Duration = Duration::from_secs(10);

pub(super) async fn swaps(stage: &Stage<'_>) -> Result<()> {
    let load = Load::start(stage.fleet, stage.client()?, HOST, LOAD)?;
    let mut slowest = Duration::ZERO;
    let swapped = async {
        for swap in 1..=SWAPS {
            tokio::time::sleep(PACE).await;
            slowest = slowest.max(change(stage, swap).await?);
        }
        anyhow::Ok(())
    };
    let swapped = swapped.await;
    undo(stage).await?;
    swapped?;
    let records = load.finish(Duration::from_secs(60)).await?;
    let gets = figures(&records, Kind::Get, 0, u64::MAX);
    ensure!(gets.requests >= REQUESTS, "only {} requests were sent", gets.requests);
    stage.judge(
        "100,000 requests over 20 changes of configuration: none fails",
        &format!("{SWAPS} changes, the slowest seen after {} ms; {gets}", slowest.as_millis()),
        gets.failed + gets.cut == 0,
        &[],
    );
    // A POST is never sent twice: nothing makes good what a change would cost it.
    for (kind, promise) in [(Kind::Post, "and no POST"), (Kind::Tcp, "and no new TCP connection")] {
        let others = figures(&records, kind, 0, u64::MAX);
        let kept = others.requests > 0 && others.failed + others.cut == 0;
        stage.judge(promise, &others.to_string(), kept, &[]);
    }
    Ok(())
}

/// Changes how the client dials, whom the servers let in, and what the gateways route; how long it took
/// until the client's sidecar, the servers' and the gateways all ran that.
pub(super) async fn change(stage: &Stage<'_>, swap: u32) -> Result<Duration> {
    let (east, west) = (stage.cluster("east"), stage.cluster("west"));
    let (limit, even) = (5_000 + swap, swap.is_multiple_of(2));
    let taken = if even { "PERMISSIVE" } else { "STRICT" };
    apply(east.client(), &rule(limit)).await?;
    apply(west.client(), &mode(taken)).await?;
    if even {
        delete(west.client(), &export("secret")).await?;
    } else {
        apply(west.client(), &export("secret")).await?;
    }
    let dials = format!("\"max_connections\":{limit}");
    let takes = format!("\"kind\":\"inbound\",\"mtls\":\"{taken}\"");
    let mut all = vec![seen(stage.client()?, &dials, true)];
    for copy in ["hello-1", "hello-2"] {
        all.push(seen(west.pod(copy)?, &takes, true));
    }
    for gateway in ["gateway-1", "gateway-2"] {
        all.push(seen(west.pod(gateway)?, "secret.shop", !even));
    }
    let took = futures::future::try_join_all(all).await?;
    Ok(took.into_iter().max().unwrap_or_default())
}

/// Takes all of it back.
pub(super) async fn undo(stage: &Stage<'_>) -> Result<()> {
    for object in [rule(0), mode("PERMISSIVE"), export("secret")] {
        let cluster = if object["kind"] == "DestinationRule" { "east" } else { "west" };
        delete(stage.cluster(cluster).client(), &object).await?;
    }
    Ok(())
}

/// Returns once what a proxy runs holds this text, or does not.
async fn seen(pod: &Pod, text: &str, there: bool) -> Result<Duration> {
    let start = Instant::now();
    loop {
        let door = pod.spot.door();
        let page = tokio::task::spawn_blocking(move || {
            let admin = SocketAddr::from(([127, 0, 0, 1], 15_000));
            fleet::spot::http_get_at(&door, admin, "/config", Duration::from_secs(2))
        });
        // A page may be late on a machine under this load; the limit below is for all of them.
        if let Ok((_, page)) = page.await? {
            let page: String = page.chars().filter(|c| !c.is_whitespace()).collect();
            if page.contains(text) == there {
                return Ok(start.elapsed());
            }
        }
        if start.elapsed() > SEEN_MAX {
            let word = if there { "no" } else { "still" };
            bail!("{} has {word} {text} in its configuration after {SEEN_MAX:?}", pod.name);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn rule(max_connections: u32) -> Value {
    json!({
        "apiVersion": "networking.istio.io/v1", "kind": "DestinationRule",
        "metadata": {"name": "swapped", "namespace": "shop"},
        "spec": {"host": HOST, "trafficPolicy": {"connectionPool": {
            "tcp": {"maxConnections": max_connections},
        }}},
    })
}

fn mode(mode: &str) -> Value {
    json!({
        "apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication",
        "metadata": {"name": "swapped", "namespace": "shop"},
        "spec": {"mtls": {"mode": mode}},
    })
}

fn export(service: &str) -> Value {
    json!({
        "apiVersion": "multicluster.x-k8s.io/v1beta1", "kind": "ServiceExport",
        "metadata": {"name": service, "namespace": "shop"},
    })
}
