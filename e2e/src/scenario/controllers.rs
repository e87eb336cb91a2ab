//! API servers and control planes die, hang and vanish; calls go on, and what is unknown says so.

use super::{HOST, Load, Rates, Stage, call, get, resolve};
use anyhow::{Context, Result, bail, ensure};
use fleet::Cluster;
use fleet::launcher::HEALTH_PORT;
use fleet::link::{condition, on_page};
use fleet::netns::Fault;
use fleet::objects::{apply, delete};
use fleet::verdict::{Kind, figures};
use kube::api::ListParams;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;
use tokio::time::Instant;

/// Waits until the page of `here` says that it does not know whether `remote` can be reached.
async fn until_unknown(
    here: &Cluster,
    remote: &str,
    limit: Duration,
) -> Result<(Duration, String)> {
    let start = Instant::now();
    loop {
        let page = on_page(here, remote).await;
        if let Ok(link) = &page
            && let Some((status, reason, message)) = condition(link, "Reachable")
            && status == "Unknown"
        {
            let age = &link["heartbeatAgeSeconds"];
            return Ok((start.elapsed(), format!("{reason}, last heard {age} s ago: {message}")));
        }
        if start.elapsed() > limit {
            bail!("link {remote} is not Unknown after {limit:?}: {page:?}");
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn unknown(stage: &Stage<'_>, what: &str, found: Result<(Duration, String)>, seconds: f64) {
    let (figure, kept) = match found {
        Ok((took, words)) => {
            (format!("{:.1} s; {words}", took.as_secs_f64()), took.as_secs_f64() <= seconds)
        }
        Err(error) => (format!("{error:#}"), false),
    };
    let promise = format!("{what}: east says Unknown with its age within {seconds} s");
    stage.judge(&promise, &figure, kept, &[]);
}

/// The gateway addresses the client's sidecar has for the service in use.
pub(super) async fn endpoints(stage: &Stage<'_>) -> Result<BTreeSet<String>> {
    let door = stage.client()?.spot.door();
    let admin = SocketAddr::from(([127, 0, 0, 1], 15000));
    let limit = Duration::from_secs(2);
    let (_, body) = tokio::task::spawn_blocking(move || {
        fleet::spot::http_get_at(&door, admin, "/clusters", limit)
    })
    .await??;
    endpoints_in(&body, HOST)
}

/// Endpoint addresses of every destination of `host` on a `/clusters` page.
pub(super) fn endpoints_in(page: &str, host: &str) -> Result<BTreeSet<String>> {
    let page: serde_json::Value = serde_json::from_str(page).context("/clusters is not JSON")?;
    let clusters = page.as_array().context("/clusters is no list")?;
    let of_host = clusters.iter().filter(|cluster| cluster["name"].to_string().contains(host));
    let endpoints =
        of_host.flat_map(|cluster| cluster["endpoints"].as_array().into_iter().flatten());
    Ok(endpoints.filter_map(|e| Some(e["address"].as_str()?.to_owned())).collect())
}

pub(super) async fn control_down(stage: &Stage<'_>) -> Result<()> {
    const DOWN: Duration = Duration::from_secs(120);
    let (fleet, client) = (stage.fleet, stage.client()?);
    let east = stage.cluster("east");
    call(fleet, client, &format!("http://{HOST}/"), 5.0).await?;
    let rates = Rates { gets: 160.0, posts: 20.0, connects: 20.0, fresh: 0.0, seconds: 140.0 };
    let load = Load::start(fleet, client, HOST, rates)?;
    let first = FirstCall::prepare(stage).await?;
    tokio::time::sleep(Duration::from_secs(5)).await;
    let before = endpoints(stage).await?;
    for cluster in fleet.clusters.values() {
        for process in
            [Some(&cluster.api.server), cluster.api.etcd.as_ref(), cluster.control_plane.get()]
        {
            process.context("the control plane runs")?.kill();
        }
    }
    let start = Instant::now();
    unknown(
        stage,
        "west's API server is killed",
        until_unknown(east, "west", Duration::from_secs(30)).await,
        15.0,
    );
    first.judge_unknown(stage).await?;
    tokio::time::sleep_until(start + DOWN / 2).await;
    // Restarted controllers find nobody: what they knew must not become nothing.
    for cluster in fleet.clusters.values() {
        let federation = cluster.federation.get().context("the federation controller runs")?;
        federation.kill();
        federation.revive()?;
        cluster.control_plane.get().context("the control plane runs")?.revive()?;
    }
    unknown(
        stage,
        "a controller restarted while nobody answers",
        until_unknown(east, "west", Duration::from_secs(40)).await,
        15.0,
    );
    tokio::time::sleep_until(start + DOWN).await;
    let during = endpoints(stage).await?;
    stage.judge(
        "no endpoint is withdrawn while nothing is known",
        &format!("before {before:?}, after 120 s {during:?}"),
        before == during && !before.is_empty(),
        &[],
    );
    fleet.mend().await?;
    let records = load.finish(Duration::from_secs(90)).await?;
    for kind in [Kind::Get, Kind::Tcp] {
        let figures = figures(&records, kind, 0, u64::MAX);
        stage.judge(
            &format!("API servers and control planes down 2 min: 0 of {kind:?} fail to a destination in use"),
            &figures.to_string(),
            figures.failed + figures.cut == 0,
            &[],
        );
    }
    stage.note(&format!("Post: {}", figures(&records, Kind::Post, 0, u64::MAX)));
    fleet::link::until_condition(east, "west", "Reachable", "True", Duration::from_secs(60))
        .await?;
    let after = endpoints(stage).await?;
    let figure = format!("before {before:?}, after {after:?}");
    stage.judge("nothing is withdrawn when all are back", &figure, before == after, &[]);
    first.judge_known(stage).await
}

/// A server of east that speaks plaintext, which has a name in the mesh and has never been called.
struct FirstCall {
    entry: Value,
    url: String,
}

impl FirstCall {
    /// Names it; returns once the client's resolver knows.
    async fn prepare(stage: &Stage<'_>) -> Result<Self> {
        const NAME: &str = "never-called.example.test";
        let east = stage.cluster("east");
        let address = east.pod("gateway-1")?.address;
        let entry = json!({
            "apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry",
            "metadata": {"name": "never-called", "namespace": "shop"},
            "spec": {
                "hosts": [NAME], "addresses": [address], "location": "MESH_EXTERNAL",
                "resolution": "STATIC", "endpoints": [{"address": address}],
                "ports": [{"number": HEALTH_PORT, "name": "http", "protocol": "HTTP"}],
            },
        });
        apply(east.client(), &entry).await?;
        let begun = Instant::now();
        while resolve(stage.fleet, stage.client()?, NAME).await.ok() != Some(vec![address]) {
            ensure!(begun.elapsed() < Duration::from_secs(20), "nobody resolves {NAME}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(Self { entry, url: format!("http://{address}:{HEALTH_PORT}/readyz") })
    }

    /// While nobody says how it is reached, it is not called in plaintext, which is how it answers.
    async fn judge_unknown(&self, stage: &Stage<'_>) -> Result<()> {
        let called = get(stage.fleet, stage.client()?, &self.url, 2.0).await;
        let log = stage.client()?.proxy.get().context("the client's sidecar runs")?.log();
        let log = std::fs::read_to_string(log)?;
        let why = log.lines().rfind(|line| line.contains("no_control_plane"));
        let heard = called.as_ref().map_or_else(|error| format!("{error:#}"), Clone::clone);
        let figure = format!("{heard}; its sidecar: {}", why.unwrap_or("nothing of it"));
        let kept = called.is_err() && why.is_some();
        let promise = "the first call to an address that the mesh names is refused meanwhile";
        stage.judge(promise, &figure, kept, &[]);
        let node = stage.cluster("east").launcher.node_address;
        let world = format!("http://{node}:15025/metrics");
        let called = get(stage.fleet, stage.client()?, &world, 2.0).await;
        let figure = called.as_ref().map_or_else(
            |error| format!("{world}: {error:#}"),
            |body| format!("{world}: {} octets", body.len()),
        );
        let promise = "and an address that it does not name is called as ever";
        stage.judge(promise, &figure, called.is_ok(), &[]);
        Ok(())
    }

    async fn judge_known(self, stage: &Stage<'_>) -> Result<()> {
        let begun = Instant::now();
        let called = loop {
            let called = get(stage.fleet, stage.client()?, &self.url, 2.0).await;
            if called.is_ok() || begun.elapsed() > Duration::from_secs(20) {
                break called;
            }
        };
        let heard = called.as_ref().map_or_else(|error| format!("{error:#}"), Clone::clone);
        let figure = format!("{} after {} ms", heard.trim(), begun.elapsed().as_millis());
        stage.judge("what was refused is called now", &figure, called.is_ok(), &[]);
        delete(stage.cluster("east").client(), &self.entry).await
    }
}

/// Judges that the client's resolver comes to say this (in glibc's words) of a name nobody exports.
async fn absent(stage: &Stage<'_>, promise: &str, words: &str) -> Result<()> {
    let start = Instant::now();
    loop {
        let found = resolve(stage.fleet, stage.client()?, "nobody.shop.global").await;
        let said = found.map_or_else(|e| format!("{e:#}"), |found| format!("{found:?}"));
        let kept = said.contains(words);
        if kept || start.elapsed() > Duration::from_secs(20) {
            let figure = format!("after {:.2} s: {said}", start.elapsed().as_secs_f64());
            stage.judge(promise, &figure, kept, &[]);
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Reason of each Event on a ClusterLink of `here`, and how often it was said.
async fn link_events(here: &Cluster, link: &str) -> Result<BTreeMap<String, u64>> {
    let events = fleet::objects::api(here.client(), "v1", "Event", fleet::SYSTEM);
    let fields = format!("involvedObject.kind=ClusterLink,involvedObject.name={link}");
    let all = events.list(&ListParams::default().fields(&fields)).await?;
    let mut said = BTreeMap::new();
    for event in all {
        let reason = event.data["reason"].as_str().unwrap_or_default().to_owned();
        *said.entry(reason).or_default() += event.data["count"].as_u64().unwrap_or(1);
    }
    Ok(said)
}

/// Judges that since `before` the link said that it was silent and heard `times` each, and no more.
async fn said(stage: &Stage<'_>, before: &BTreeMap<String, u64>, times: u64) -> Result<()> {
    let east = stage.cluster("east");
    let wanted = BTreeMap::from([("Heard", times), ("Silent", times)]);
    let start = Instant::now();
    loop {
        let now = link_events(east, "west").await?;
        let news: BTreeMap<&str, u64> = now
            .iter()
            .map(|(reason, count)| {
                (&**reason, count.saturating_sub(*before.get(reason).unwrap_or(&0)))
            })
            .filter(|(_, news)| *news > 0)
            .collect();
        // What is said too often comes late: a while is waited for it.
        let (patience, end) = (Duration::from_secs(5), Duration::from_secs(20));
        if (news == wanted && start.elapsed() > patience) || start.elapsed() > end {
            stage.judge(
                "kubectl describe shows it: an Event for each transition of the link, and no other",
                &format!("since then {news:?}, before {before:?}"),
                news == wanted,
                &[],
            );
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

pub(super) async fn api_hangs(stage: &Stage<'_>) -> Result<()> {
    let (east, west) = (stage.cluster("east"), stage.cluster("west"));
    let limit = Duration::from_secs(60);
    let before = link_events(east, "west").await?;
    let linked = before.contains_key("Linked");
    stage.judge("the link said that it is one", &format!("{before:?}"), linked, &[]);
    let (nxdomain, servfail) = ("Name or service not known", "Temporary failure");
    absent(stage, "with all heard, a name that nobody exports is denied (NXDOMAIN)", nxdomain)
        .await?;
    west.api.server.stop();
    unknown(
        stage,
        "west's API server hangs (SIGSTOP)",
        until_unknown(east, "west", limit).await,
        35.0,
    );
    absent(stage, "while west is not heard it is not denied (SERVFAIL)", servfail).await?;
    let known = resolve(stage.fleet, stage.client()?, "hello.shop.west.global").await;
    let figure = known.as_ref().map_or_else(|e| format!("{e:#}"), |found| format!("{found:?}"));
    stage.judge("and what west exported keeps its name", &figure, known.is_ok(), &[]);
    west.api.server.resume();
    fleet::link::until_condition(east, "west", "Reachable", "True", limit).await?;
    absent(stage, "heard again, it is denied again", nxdomain).await?;
    west.spot.fault("wan", Fault::Drop)?;
    unknown(
        stage,
        "packets to west's API server vanish",
        until_unknown(east, "west", limit).await,
        35.0,
    );
    west.spot.heal()?;
    fleet::link::until_condition(east, "west", "Reachable", "True", limit).await?;
    west.spot.fault("wan", Fault::DropOut)?;
    unknown(
        stage,
        "answers of west's API server vanish",
        until_unknown(east, "west", limit).await,
        35.0,
    );
    west.spot.heal()?;
    fleet::link::until_condition(east, "west", "Reachable", "True", limit).await?;
    said(stage, &before, 3).await
}
