//! New connections in plenty while configuration changes and a gateway ends: none is lost, and no
//! listener is made anew.

use super::headroom::{AT_ALL, carried_of};
use super::sockets::listening;
use super::{HOST, Load, Rates, Stage, TWO_THOUSAND, swaps};
use anyhow::{Context, Result, bail, ensure};
use fleet::load::micros_now;
use fleet::process::Process;
use fleet::verdict::{Kind, Record, figures};
use nix::sys::signal::Signal;
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// What is promised, of what is sent.
const PROMISED: f64 = 2_000.0 / TWO_THOUSAND;
/// Until it is known what the load leaves of the machine.
const LEAVES: Duration = Duration::from_secs(4);
/// Changes of configuration, and the time between two of them.
const SWAPS: u32 = 20;
const PACE: Duration = Duration::from_millis(800);
/// Load before a gateway is told to end, and longest time until it has.
const BEFORE: Duration = Duration::from_secs(4);
const DRAIN_MAX: Duration = Duration::from_secs(60);
/// By then the load has ended.
const LOAD_MAX: Duration = Duration::from_secs(90);
/// What gateways are asked for.
const SNI: &str = "outbound_.80_._.hello.shop.global";

pub(super) async fn rush(stage: &Stage<'_>) -> Result<()> {
    let before = listeners(stage)?;
    let changing = Rates::fresh(TWO_THOUSAND, 40.0);
    let (load, Rates { fresh: sent, .. }) = carried_of(stage, changing, LEAVES, AT_ALL).await?;
    let slowest = change(stage).await?;
    let records = load.finish(LOAD_MAX).await?;
    judge(
        stage,
        &format!("a sidecar, over {SWAPS} changes of configuration"),
        &format!("{SWAPS} changes, the slowest seen after {} ms; ", slowest.as_millis()),
        sent,
        &records,
    );
    let after = listeners(stage)?;
    stage.judge(
        "and every listening socket of proxies and gateways is the one it was before",
        &format!(
            "{} sockets before, {} of them after",
            before.len(),
            before.intersection(&after).count()
        ),
        !before.is_empty() && before == after,
        &[],
    );

    let draining = Rates::fresh(sent, 12.0);
    let load = Load::start(stage.fleet, stage.client()?, HOST, draining)?;
    drain(stage).await?;
    let records = load.finish(LOAD_MAX).await?;
    judge(stage, "a sidecar, while one of west's two gateways drains", "", sent, &records);
    stage.fleet.mend().await?;

    let hellos = Hellos::start(stage, sent, 30.0)?;
    let slowest = change(stage).await?;
    drain(stage).await?;
    let records = hellos.finish().await?;
    judge(
        stage,
        &format!("two gateways, over {SWAPS} changes and while one of them drains"),
        &format!("{SWAPS} changes, the slowest seen after {} ms; ", slowest.as_millis()),
        sent,
        &records,
    );
    Ok(())
}

/// All changes, one after the other; how long the slowest took to be seen.
async fn change(stage: &Stage<'_>) -> Result<Duration> {
    let mut slowest = Duration::ZERO;
    let changed = async {
        for swap in 1..=SWAPS {
            sleep(PACE).await;
            slowest = slowest.max(swaps::change(stage, swap).await?);
        }
        anyhow::Ok(())
    };
    let changed = changed.await;
    swaps::undo(stage).await?;
    changed.map(|()| slowest)
}

/// Tells a gateway to end, after a while, and waits until it has.
async fn drain(stage: &Stage<'_>) -> Result<()> {
    sleep(BEFORE).await;
    let gateway = stage.cluster("west").pod("gateway-1")?.proxy.get().context("gateway-1 runs")?;
    gateway.signal(Signal::SIGTERM);
    let limit = Instant::now() + DRAIN_MAX;
    while gateway.ended().is_none() {
        ensure!(Instant::now() < limit, "it still drains after {DRAIN_MAX:?}");
        sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

fn judge(stage: &Stage<'_>, what: &str, figure: &str, sent: f64, records: &[Record]) {
    let all = figures(records, Kind::Fresh, 0, u64::MAX);
    let starts = || records.iter().map(|record| record.start_us);
    let span_us = starts().max().zip(starts().min()).map_or(0, |(last, first)| last - first);
    let rate = all.requests as f64 / (span_us.max(1) as f64 / 1e6);
    stage.judge(
        &format!("{:.0} new connections a second to {what}: none is lost", sent * PROMISED),
        &format!("{rate:.0} a second reached; {figure}{all}"),
        rate >= sent * PROMISED && all.failed + all.cut == 0,
        &[],
    );
}

/// Ports and inodes of the sockets that sidecars and gateways of east and west listen on.
fn listeners(stage: &Stage<'_>) -> Result<BTreeSet<(String, u16, u64)>> {
    let mut all = BTreeSet::new();
    for cluster in ["east", "west"] {
        for pod in &stage.cluster(cluster).pods {
            let proxy = pod.proxy.get().with_context(|| format!("{} has a proxy", pod.name))?;
            let sockets = listening(proxy)?;
            ensure!(!sockets.is_empty(), "{} listens nowhere", proxy.name());
            all.extend(
                sockets.into_iter().map(|(port, node)| (proxy.name().to_owned(), port, node)),
            );
        }
    }
    Ok(all)
}

/// ClientHellos from the WAN to west's gateways.
struct Hellos {
    process: Process,
    out: std::path::PathBuf,
}

impl Hellos {
    fn start(stage: &Stage<'_>, rate: f64, seconds: f64) -> Result<Self> {
        let (home, west) = (&stage.fleet.home, stage.cluster("west"));
        let to = [11, 12].map(|last| format!("{}:15443", west.wan_address(last)));
        let out = home.logs.join(format!("hellos-{}.jsonl", micros_now()));
        // From a node on the WAN, as another cluster's would come.
        let east = stage.cluster("east");
        let process =
            fleet::process::Job::new("hellos", &east.spot, &home.parts.own.program, &home.logs)
                .args(["hellos", "--to", &to.join(","), "--sni", SNI])
                .args(["--rate", &rate.to_string(), "--seconds", &seconds.to_string()])
                .args(["--out", &out.display().to_string()])
                .start()?;
        Ok(Self { process, out })
    }

    async fn finish(self) -> Result<Vec<Record>> {
        let limit = Instant::now() + LOAD_MAX;
        let status = loop {
            match self.process.ended() {
                Some(status) => break status,
                None if Instant::now() > limit => bail!("the hellos have not ended"),
                None => sleep(Duration::from_millis(20)).await,
            }
        };
        ensure!(status.success(), "the hellos ended with {status}: {}", self.process.last_words());
        let text = std::fs::read_to_string(&self.out)?;
        std::fs::remove_file(&self.out)?;
        text.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
    }
}
