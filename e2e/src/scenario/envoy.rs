//! A real Envoy as a sidecar in east: configured only by our control plane through `isthmus agent`,
//! it calls west through the gateways over mutual TLS, and judges who calls the workload behind it.

mod raw;
mod served;

use super::{HOST, Load, Rates, Stage, call, call_until};
use anyhow::{Context, Result, ensure};
use fleet::Cluster;
use fleet::launcher::Pod;
use fleet::load::micros_now;
use fleet::objects::{apply, delete};
use fleet::spot::http_get_at;
use fleet::trust_domain;
use fleet::verdict::{Kind, figures, slowest_new_ms};
use serde_json::json;
use std::net::SocketAddr;
use std::time::Duration;

/// What Envoy carries while something is hurt.
const LOAD: Rates = Rates { gets: 400.0, posts: 50.0, connects: 50.0, fresh: 0.0, seconds: 12.0 };
/// Load before the fault.
const BEFORE: Duration = Duration::from_secs(4);
/// Until the control plane has told Envoy that a cluster's copies are gone.
const MOVED_MAX: Duration = Duration::from_secs(3);
/// Where the agent shows its numbers.
const METRICS_PORT: u16 = 15020;

pub(super) async fn envoy_sidecar(stage: &Stage<'_>) -> Result<()> {
    let east = stage.cluster("east");
    let envoy = tokio::task::spawn_blocking(fleet::parts::envoy).await??;
    let pod = stage.fleet.start_envoy(east, &envoy).await?;
    let judged = judge(stage, &pod).await;
    let words = if judged.is_err() { pod.last_words() } else { String::new() };
    east.launcher.dismiss(&pod).await?;
    judged.with_context(|| words)
}

async fn judge(stage: &Stage<'_>, pod: &Pod) -> Result<()> {
    let url = format!("http://{HOST}/");
    let limit = Duration::from_secs(30);
    let (took, answer) =
        call_until(stage.fleet, pod, &url, limit, |answer| answer.cluster == "west").await?;
    let identity = format!("spiffe://{}/ns/shop/sa/{}", trust_domain("east"), fleet::ENVOY_ACCOUNT);
    let xfcc = answer.headers.get("x-forwarded-client-cert").cloned().unwrap_or_default();
    stage.judge(
        "a call through Envoy is answered in west, which is told Envoy's SPIFFE identity",
        &format!(
            "{}/{} after {:.2} s, x-forwarded-client-cert: {xfcc}",
            answer.cluster,
            answer.pod,
            took.as_secs_f64()
        ),
        xfcc.contains(&identity),
        &[],
    );
    killed_copy(stage, pod).await?;
    stage.fleet.mend().await?;
    settle(stage, pod).await?;
    killed_copies(stage, pod).await?;
    stage.fleet.mend().await?;
    settle(stage, pod).await?;
    hung_gateway(stage, pod).await?;
    stage.fleet.mend().await?;
    settle(stage, pod).await?;
    served::served(stage, pod).await?;
    bad_objects(stage, pod).await?;
    never_refused(stage, pod).await
}

/// Until west answers through Envoy; which copy, its idle connections decide.
async fn settle(stage: &Stage<'_>, pod: &Pod) -> Result<()> {
    let (url, limit) = (format!("http://{HOST}/"), Duration::from_secs(60));
    call_until(stage.fleet, pod, &url, limit, |answer| answer.cluster == "west").await?;
    Ok(())
}

async fn killed_copy(stage: &Stage<'_>, pod: &Pod) -> Result<()> {
    let copy = stage.cluster("west").pod("hello-1")?;
    let load = Load::start(stage.fleet, pod, HOST, LOAD)?;
    tokio::time::sleep(BEFORE).await;
    for process in [copy.app.get(), copy.proxy.get()] {
        process.context("hello-1 runs")?.kill();
    }
    let killed_us = micros_now();
    let records = load.finish(Duration::from_secs(60)).await?;
    let gets = figures(&records, Kind::Get, 0, u64::MAX);
    ensure!(gets.requests > 1_000, "only {} GETs were sent", gets.requests);
    stage.judge(
        "Envoy: 0 GETs fail when a copy in west and its sidecar are SIGKILLed",
        &gets.to_string(),
        gets.failed == 0,
        &[],
    );
    for kind in [Kind::Post, Kind::Tcp] {
        stage.note(&format!("{kind:?} after: {}", figures(&records, kind, killed_us, u64::MAX)));
    }
    Ok(())
}

/// All copies of the nearest cluster die: the next one answers.
async fn killed_copies(stage: &Stage<'_>, pod: &Pod) -> Result<()> {
    let load = Load::start(stage.fleet, pod, HOST, LOAD)?;
    tokio::time::sleep(BEFORE).await;
    for copy in ["hello-1", "hello-2"] {
        let copy = stage.cluster("west").pod(copy)?;
        for process in [copy.app.get(), copy.proxy.get()] {
            process.context("west's copies run")?.kill();
        }
    }
    let killed_us = micros_now();
    let records = load.finish(Duration::from_secs(60)).await?;
    let moved_us = killed_us + u64::try_from(MOVED_MAX.as_micros())?;
    let moved = figures(&records, Kind::Get, moved_us, u64::MAX);
    stage.judge(
        "Envoy: every copy in west SIGKILLed, 3 s later north answers all",
        &moved.to_string(),
        moved.requests > 1_000
            && moved.failed + moved.cut == 0
            && moved.by.keys().all(|copy| copy.starts_with("north/")),
        &[],
    );
    let between = figures(&records, Kind::Get, killed_us, moved_us);
    stage.note(&format!("GETs of those 3 s: {between}"));
    Ok(())
}

async fn hung_gateway(stage: &Stage<'_>, pod: &Pod) -> Result<()> {
    let gateway = stage.cluster("west").pod("gateway-1")?;
    let load = Load::start(stage.fleet, pod, HOST, LOAD)?;
    tokio::time::sleep(BEFORE).await;
    gateway.proxy.get().context("gateway-1 runs")?.stop();
    let stopped_us = micros_now();
    let records = load.finish(Duration::from_secs(60)).await?;
    // Envoy has no probe of ours: figures, not a promise.
    for kind in [Kind::Get, Kind::Post, Kind::Tcp] {
        let slowest = slowest_new_ms(&records, kind, stopped_us, u64::MAX);
        let after = figures(&records, kind, stopped_us, u64::MAX);
        stage.note(&format!(
            "a hung gateway (SIGSTOP), {kind:?} after: slowest {slowest:?} ms; {after}"
        ));
    }
    Ok(())
}

/// Objects that are legal for Kubernetes and mean things Envoy does not take.
async fn bad_objects(stage: &Stage<'_>, pod: &Pod) -> Result<()> {
    let client = stage.cluster("east").client();
    let rule = |name: &str, host: &str, policy: serde_json::Value| {
        json!({
            "apiVersion": "networking.istio.io/v1", "kind": "DestinationRule",
            "metadata": {"name": name, "namespace": "shop"},
            "spec": {"host": host, "trafficPolicy": policy},
        })
    };
    let extremes = json!({
        "connectionPool": {
            "tcp": {"maxConnections": 2_147_483_647},
            "http": {"http1MaxPendingRequests": 2_147_483_647, "maxRequestsPerConnection": 0},
        },
        "outlierDetection": {
            "consecutive5xxErrors": 0, "interval": "1ms", "baseEjectionTime": "1ms",
            "maxEjectionPercent": 100,
        },
    });
    let objects = [
        rule("extremes", HOST, extremes),
        rule("nobody", "no.such.host.anywhere", json!({})),
        json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": "odd", "namespace": "shop"},
            "spec": {
                "selector": {"app": "odd"},
                "ports": [
                    {"name": "http-a", "port": 1, "targetPort": 65535, "protocol": "TCP"},
                    {"name": "udp-b", "port": 1, "targetPort": "nowhere", "protocol": "UDP"},
                ],
            },
        }),
    ];
    let before = numbers(pod).await?;
    for object in &objects {
        apply(client, object).await?;
    }
    // The odd service is new to Envoy: that it took something shows that the objects arrived.
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    let mut after = before;
    while after.accepted == before.accepted && tokio::time::Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(100)).await;
        after = numbers(pod).await?;
    }
    let answer = call(stage.fleet, pod, &format!("http://{HOST}/"), 5.0).await;
    for object in &objects {
        delete(client, object).await?;
    }
    let figure = match &answer {
        Ok(answer) => format!("{}/{} answers", answer.cluster, answer.pod),
        Err(error) => format!("{error:#}"),
    };
    stage.judge(
        "Envoy survives extreme and senseless objects: it goes on, and takes what it is sent",
        &format!("{figure}; {} responses taken, {} refused", after.accepted, after.refused),
        answer.is_ok() && after.accepted > before.accepted && after.refused == 0,
        &[],
    );
    Ok(())
}

/// What the agent counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Numbers {
    accepted: u64,
    refused: u64,
}

async fn numbers(pod: &Pod) -> Result<Numbers> {
    let door = pod.spot.door();
    let address = SocketAddr::from(([127, 0, 0, 1], METRICS_PORT));
    let read = move || http_get_at(&door, address, "/metrics", Duration::from_secs(2));
    let (_, text) = tokio::task::spawn_blocking(read).await??;
    let value = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        let value = line.and_then(|rest| rest.trim().parse().ok());
        value.with_context(|| format!("the agent shows no {name}"))
    };
    Ok(Numbers {
        accepted: value("isthmus_agent_xds_accepted_total ")?,
        refused: value("isthmus_agent_xds_rejected_total ")?,
    })
}

/// Envoy's own word on all it was sent, as the control plane heard it.
async fn never_refused(stage: &Stage<'_>, pod: &Pod) -> Result<()> {
    let (acked, nacks) = answers(stage.cluster("east"), pod).await?;
    let Numbers { accepted, refused } = numbers(pod).await?;
    stage.judge(
        "Envoy refused nothing it was sent (no NACK)",
        &format!(
            "{accepted} responses taken, {refused} refused; the control plane counts {nacks} \
             refusals of {acked} types"
        ),
        refused == 0 && nacks == 0 && accepted > 0 && acked >= 4,
        &[],
    );
    Ok(())
}

/// What the control plane heard of a pod's proxy: types it took, and refusals.
pub(super) async fn answers(cluster: &Cluster, pod: &Pod) -> Result<(u64, u64)> {
    let (door, page) = (cluster.spot.door(), cluster.pages(15014));
    let read = move || http_get_at(&door, page, "/sessions", Duration::from_secs(2));
    let (_, text) = tokio::task::spawn_blocking(read).await??;
    let sessions: serde_json::Value = serde_json::from_str(&text)?;
    let own = format!("~{}.{}~", pod.name, pod.namespace);
    let sessions = sessions.as_array().context("/sessions is a list")?;
    let types = sessions
        .iter()
        .filter(|session| session["proxy"].as_str().is_some_and(|proxy| proxy.contains(&own)))
        .flat_map(|session| session["types"].as_array().into_iter().flatten());
    let (mut acked, mut nacks) = (0, 0);
    for kind in types {
        acked += u64::from(kind["acked"].as_str().is_some_and(|version| !version.is_empty()));
        nacks += kind["nacks"].as_u64().unwrap_or_default();
    }
    Ok((acked, nacks))
}
