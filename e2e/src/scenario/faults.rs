//! Copies, gateways and a whole cluster die, hang or vanish under 1,000 requests a second, or as many as
//! the machine carries.

use super::Stage;
use super::headroom::carried;
use super::sockets::connections;
use anyhow::{Context, Result, ensure};
use fleet::launcher::Pod;
use fleet::load::micros_now;
use fleet::netns::Fault;
use fleet::verdict::{Kind, Pillar, Record, figures, slowest_new_ms};
use nix::sys::signal::Signal;
use std::net::SocketAddrV4;
use std::time::Duration;

/// Load before the fault; by its end everything is warm and judged healthy.
const BEFORE: Duration = Duration::from_secs(4);

/// Longest drain of a gateway, and some.
const DRAIN_MAX: Duration = Duration::from_secs(90);

/// What a load has seen of a fault.
struct Hurt {
    records: Vec<Record>,
    /// Requests a second that were played.
    rate: f64,
    /// The fault was wholly there from then on.
    fault_us: u64,
    /// GETs that were under way when it struck and were never answered.
    lost_gets: usize,
}

/// Runs the load with `hurt` in the middle.
async fn under_load(stage: &Stage<'_>, hurt: impl FnOnce() -> Result<()>) -> Result<Hurt> {
    // The first use of a name asks the control plane; these promises are about names in use.
    let (load, rates) = carried(stage, BEFORE).await?;
    let begun_us = micros_now();
    hurt()?;
    // Only now is the fault wholly there: a rule of nft takes some milliseconds to be in force.
    let fault_us = micros_now();
    let limit = Duration::from_secs_f64(rates.seconds + 30.0);
    let records = load.finish(limit).await?;
    // What was under way when the fault struck is neither before nor after: a POST or a stream that
    // was on the broken path is nobody's to repeat, and is shown, not judged.
    let (settled, under_way): (Vec<Record>, Vec<Record>) = records
        .iter()
        .filter(|record| record.start_us < fault_us)
        .cloned()
        .partition(|record| record.start_us + record.took_us <= begun_us);
    for kind in [Kind::Get, Kind::Post, Kind::Tcp] {
        let before = figures(&settled, kind, 0, fault_us);
        ensure!(before.requests > 0, "no {kind:?} was sent before the fault");
        let whole = before.failed + before.cut == 0;
        if !whole {
            stage.judge(
                &format!("{kind:?} before the fault are whole"),
                &before.to_string(),
                false,
                &[],
            );
        }
        stage.note(&format!("{kind:?} before: {before}"));
        let caught = figures(&under_way, kind, 0, fault_us);
        if caught.failed + caught.cut > 0 {
            stage.note(&format!("{kind:?} under way: {caught}"));
        }
        stage.note(&format!("{kind:?} after:  {}", figures(&records, kind, fault_us, u64::MAX)));
    }
    let lost_gets = figures(&under_way, Kind::Get, 0, fault_us).failed;
    Ok(Hurt { records, rate: rates.sum(), fault_us, lost_gets })
}

/// "0 failed among GETs whose response had not begun; POSTs counted apart".
async fn none_failed(
    stage: &Stage<'_>,
    what: &str,
    hurt: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let Hurt { records, rate, fault_us, .. } = under_load(stage, hurt).await?;
    let gets = figures(&records, Kind::Get, 0, u64::MAX);
    stage.judge(
        &format!("{what}: 0 GETs fail whose response had not begun"),
        &format!("{rate}/s; {gets}"),
        gets.failed == 0,
        // It rests on retries too, but one or two requests are on the broken path when it breaks:
        // without retries it is red in most runs, not in all, so it proves nothing under sabotage.
        &[],
    );
    let gap = figures(&records, Kind::Get, fault_us, u64::MAX).longest_gap_ms;
    stage.note(&format!("longest gap after the fault {gap} ms"));
    Ok(())
}

/// "new requests answered elsewhere within 1 s; HTTP and new TCP connections".
async fn elsewhere(
    stage: &Stage<'_>,
    what: &str,
    rests_on: &[Pillar],
    hurt: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let Hurt { records, rate, fault_us, lost_gets } = under_load(stage, hurt).await?;
    for (kind, word) in [(Kind::Get, "GETs"), (Kind::Tcp, "TCP connections")] {
        // Connections are raced, not retried.
        let rests_on: Vec<Pillar> = rests_on
            .iter()
            .copied()
            .filter(|pillar| kind != Kind::Tcp || *pillar != Pillar::Retries)
            .collect();
        let slowest = slowest_new_ms(&records, kind, fault_us, u64::MAX);
        let after = figures(&records, kind, fault_us, u64::MAX);
        let figure = match slowest {
            Some(ms) => format!("slowest {ms} ms; {rate}/s; {after}"),
            None => format!("{rate}/s; {after}"),
        };
        // A GET may be sent again, so it survives being under way too.
        let lost = if kind == Kind::Get { lost_gets } else { 0 };
        let figure =
            if lost > 0 { format!("{lost} under way were lost; {figure}") } else { figure };
        stage.judge(
            &format!("{what}: every new one of the {word} is answered within 1 s"),
            &figure,
            slowest.is_some_and(|ms| ms <= 1000) && lost == 0,
            &rests_on,
        );
    }
    Ok(())
}

pub(super) async fn kill_copy(stage: &Stage<'_>) -> Result<()> {
    let pod = stage.cluster("west").pod("hello-1")?;
    none_failed(stage, "SIGKILL of a copy and its sidecar", || {
        // A pod that dies loses both its containers.
        for process in [pod.app.get(), pod.proxy.get()] {
            process.context("hello-1 runs")?.kill();
        }
        Ok(())
    })
    .await
}

pub(super) async fn kill_gateway(stage: &Stage<'_>) -> Result<()> {
    let pod = stage.cluster("west").pod("gateway-1")?;
    none_failed(stage, "SIGKILL of one of two gateways", || {
        pod.proxy.get().context("gateway-1 runs")?.kill();
        Ok(())
    })
    .await
}

pub(super) async fn drain_gateway(stage: &Stage<'_>) -> Result<()> {
    let pod = stage.cluster("west").pod("gateway-1")?;
    let gateway = pod.proxy.get().context("gateway-1 runs")?;
    let Hurt { records, rate, .. } = under_load(stage, || {
        gateway.signal(Signal::SIGTERM);
        Ok(())
    })
    .await?;
    let limit = tokio::time::Instant::now() + DRAIN_MAX;
    while gateway.ended().is_none() {
        ensure!(tokio::time::Instant::now() < limit, "it still drains after {DRAIN_MAX:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    for (kind, word) in [(Kind::Get, "GETs"), (Kind::Post, "POSTs"), (Kind::Tcp, "connections")] {
        let all = figures(&records, kind, 0, u64::MAX);
        stage.judge(
            &format!("a gateway that is told to end loses none of the {word}, new or under way"),
            &format!("{rate}/s; {all}"),
            all.requests > 0 && all.failed + all.cut == 0,
            &[],
        );
    }
    Ok(())
}

pub(super) async fn stop_gateway(stage: &Stage<'_>) -> Result<()> {
    elsewhere(stage, "a gateway hangs (SIGSTOP)", &[Pillar::Retries], || {
        busier_gateway(stage)?.proxy.get().context("a gateway runs")?.stop();
        Ok(())
    })
    .await
}

pub(super) async fn drop_gateway(stage: &Stage<'_>) -> Result<()> {
    elsewhere(stage, "a gateway is a black hole", &[Pillar::Retries], || {
        busier_gateway(stage)?.spot.fault("wan", Fault::Drop)
    })
    .await
}

/// That of west's two which carries more of the client's connections: the one whose loss must be
/// felt, so that a run without retries is red.
fn busier_gateway<'a>(stage: &'a Stage<'_>) -> Result<&'a Pod> {
    let west = stage.cluster("west");
    let client = stage.client()?.proxy.get().context("the client has a sidecar")?;
    let mut best = None;
    for (name, last) in [("gateway-1", 11), ("gateway-2", 12)] {
        let address = SocketAddrV4::new(west.wan_address(last), 15443);
        let count = connections(client, address)?;
        stage.note(&format!("{name} carries {count} connections of the client"));
        if best.is_none_or(|(_, most)| count > most) {
            best = Some((name, count));
        }
    }
    let (name, _) = best.context("west has gateways")?;
    Ok(west.pod(name)?)
}

pub(super) async fn kill_west(stage: &Stage<'_>) -> Result<()> {
    let west = stage.cluster("west");
    elsewhere(stage, "all of west is SIGKILLed", &[Pillar::Failover], || {
        west.kill();
        Ok(())
    })
    .await
}

pub(super) async fn stop_west(stage: &Stage<'_>) -> Result<()> {
    let west = stage.cluster("west");
    elsewhere(stage, "all of west hangs (SIGSTOP)", &[Pillar::Failover], || {
        west.stop();
        Ok(())
    })
    .await
}
