//! gRPC and HTTP/2 across clusters, judged by programs that are not ours.

use super::{HOST, Stage, program_at, program_inside};
use anyhow::{Context, Result, bail, ensure};
use fleet::launcher::{APP_USER, Service};
use fleet::load::micros_now;
use fleet::objects::{apply, delete};
use fleet::peers::{self, INTEROP_CASES};
use fleet::process::Process;
use fleet::streams::Record;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::{Instant, timeout};

/// gRPC's interop server, in west only.
const INTEROP: &str = "interop.shop.global";
/// Below those that the kernel gives to connections, one of which may hold it when the server starts.
const PORT: u16 = 8_051;
/// Longest run of one case.
const CASE_MAX: Duration = Duration::from_secs(30);
/// `UNAVAILABLE`.
const UNAVAILABLE: u32 = 14;
/// Microseconds.
const SECOND: u64 = 1_000_000;

/// Brings gRPC's interop server up in west and calls it from east until it answers. The servers live
/// as long as what is returned.
async fn serve(stage: &Stage<'_>) -> Result<Vec<Process>> {
    let west = stage.cluster("west");
    let programs = peers::interop()?;
    let mut servers = Vec::new();
    for pod in ["hello-1", "hello-2"] {
        let job = west
            .pod(pod)?
            .job("interop", &programs.server, &stage.fleet.home.logs)
            .user(APP_USER)
            .args([format!("--port={PORT}")]);
        servers.push(job.start()?);
    }
    let service = Service {
        namespace: "shop".into(),
        name: "interop".into(),
        selector: BTreeMap::from([("app".into(), "hello".into())]),
        ports: vec![("grpc".into(), PORT, PORT)],
    };
    west.launcher.serve(service).await?;
    apply(west.client(), &export()).await?;
    let limit = Instant::now() + Duration::from_secs(30);
    loop {
        match case(stage, "empty_unary").await {
            Ok(()) => return Ok(servers),
            Err(problem) if Instant::now() > limit => {
                return Err(problem).context("gRPC's interop server never answered");
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(250)).await,
        }
    }
}

fn export() -> Value {
    json!({
        "apiVersion": "multicluster.x-k8s.io/v1beta1", "kind": "ServiceExport",
        "metadata": {"name": "interop", "namespace": "shop"},
    })
}

/// Plays one of gRPC's interop cases from the client pod.
async fn case(stage: &Stage<'_>, name: &str) -> Result<()> {
    let client = peers::interop()?.client;
    let (host, port) = (format!("--server_host={INTEROP}"), format!("--server_port={PORT}"));
    let (case, plain) = (format!("--test_case={name}"), "--use_tls=false");
    let args = [&*host, &*port, &*case, plain];
    let out = timeout(CASE_MAX, program_inside(stage.client()?, &client, &args))
        .await
        .with_context(|| format!("it did not end within {CASE_MAX:?}"))??;
    let said = String::from_utf8_lossy(&out.stderr);
    ensure!(out.status.success(), "{}", said.lines().last().unwrap_or("it said nothing"));
    Ok(())
}

/// Runs `play` while the interop server is exported, and takes the export back.
async fn served(stage: &Stage<'_>, play: impl Future<Output = Result<()>>) -> Result<()> {
    let _servers = serve(stage).await?;
    let played = play.await;
    delete(stage.cluster("west").client(), &export()).await?;
    played
}

pub(super) async fn interop(stage: &Stage<'_>) -> Result<()> {
    served(stage, conform(stage)).await
}

pub(super) async fn streams(stage: &Stage<'_>) -> Result<()> {
    served(stage, lose_gateway(stage)).await
}

async fn conform(stage: &Stage<'_>) -> Result<()> {
    let mut broken = Vec::new();
    for name in INTEROP_CASES {
        if let Err(problem) = case(stage, name).await {
            broken.push(format!("{name}: {problem:#}"));
        }
    }
    let (passed, all) = (INTEROP_CASES.len() - broken.len(), INTEROP_CASES.len());
    stage.judge(
        "gRPC's interop cases pass through two sidecars and a gateway",
        &format!("{passed} of {all} passed {}", broken.join("; ")),
        broken.is_empty(),
        &[],
    );
    let west = stage.cluster("west");
    let pod = west.pod("hello-1")?.address.to_string();
    // Into the mesh from an application, and out of it from who has no sidecar.
    for (way, spot, host, port) in
        [("outbound", &stage.client()?.spot, HOST, "80"), ("inbound", &west.spot, &*pod, "8080")]
    {
        let args = ["--strict", "--host", host, "--port", port, "--timeout", "3"];
        let out = program_at(spot, &peers::h2spec()?, &args).await?;
        let said = String::from_utf8_lossy(&out.stdout);
        let log = format!("h2spec-{way}.log");
        std::fs::write(stage.fleet.home.logs.join(log), said.as_bytes())?;
        let last = said.lines().rev().find(|line| line.contains("tests,")).unwrap_or("no summary");
        stage.judge(
            &format!("a sidecar's HTTP/2 conforms {way}, by h2spec"),
            last,
            last.starts_with("146 tests, 146 passed"),
            &[],
        );
    }
    Ok(())
}

async fn lose_gateway(stage: &Stage<'_>) -> Result<()> {
    let client = stage.client()?;
    let out = client.dir.join(format!("streams-{}.jsonl", micros_now()));
    std::fs::write(&out, "")?;
    std::os::unix::fs::chown(&out, Some(APP_USER), Some(APP_USER))?;
    let process = client
        .job("streams", &stage.fleet.home.parts.own.program, &stage.fleet.home.logs)
        .user(APP_USER)
        .own_etc()
        .args(["streams", "--target", &format!("{INTEROP}:{PORT}"), "--open", "40"])
        .args(["--begun", "100", "--seconds", "10", "--out", &out.display().to_string()])
        .start()?;
    tokio::time::sleep(Duration::from_secs(4)).await;
    let fault_us = micros_now();
    stage.cluster("west").pod("gateway-1")?.proxy.get().context("gateway-1 runs")?.kill();
    let limit = Instant::now() + Duration::from_secs(40);
    let status = loop {
        match process.ended() {
            Some(status) => break status,
            None if Instant::now() > limit => bail!("the streams have not ended"),
            None => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    };
    ensure!(status.success(), "the streams ended with {status}: {}", process.last_words());
    let records: Vec<Record> = std::fs::read_to_string(&out)?
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()?;
    std::fs::remove_file(&out)?;
    judge(stage, &records, fault_us)
}

fn judge(stage: &Stage<'_>, records: &[Record], fault_us: u64) -> Result<()> {
    // Until the kernel has closed what the gateway had open, a stream may be begun through it, and ends
    // as those do that were open: so it is one of them until the last of them has been told.
    let ended = |record: &Record| record.start_us + record.took_us;
    let told_at = records
        .iter()
        .filter(|record| record.stays_open && record.status == Some(UNAVAILABLE))
        .map(ended)
        .max()
        .context("none of the streams went through the gateway that was killed")?;
    let (new, others): (Vec<&Record>, Vec<&Record>) =
        records.iter().partition(|record| !record.stays_open && record.start_us > told_at);
    let (meanwhile, open): (Vec<&Record>, Vec<&Record>) = others
        .into_iter()
        .filter(|record| record.stays_open || record.start_us > fault_us)
        .partition(|record| !record.stays_open);
    let count = |of: &[&Record], status| of.iter().filter(|it| it.status == Some(status)).count();
    let all = [&open[..], &meanwhile].concat();
    let told_after = told_at.saturating_sub(fault_us);
    stage.judge(
        "SIGKILL of a gateway: open streams through it end with UNAVAILABLE within 1 s, the others go on",
        &format!(
            "{} open, {} told UNAVAILABLE, the last {} ms after it, {} went on to their end; {} begun \
             in those ms, {} of them told",
            open.len(),
            count(&open, UNAVAILABLE),
            millis(Some(told_after)),
            count(&open, 0),
            meanwhile.len(),
            count(&meanwhile, UNAVAILABLE),
        ),
        count(&all, 0) + count(&all, UNAVAILABLE) == all.len() && told_after <= SECOND,
        &[],
    );
    ensure!(!new.is_empty(), "no stream was begun after the kill");
    let failed: Vec<_> = new.iter().filter(|record| record.status != Some(0)).collect();
    let slowest = new.iter().filter_map(|record| record.answered_us).max();
    let first = failed.first().map(|record| format!("{:?} {}", record.status, record.problem));
    stage.judge(
        "SIGKILL of a gateway: new streams are answered within 1 s",
        &format!(
            "{} begun after that, {} failed {}, slowest first answer {} ms",
            new.len(),
            failed.len(),
            first.unwrap_or_default(),
            millis(slowest)
        ),
        failed.is_empty() && slowest.is_some_and(|us| us <= SECOND),
        &[],
    );
    Ok(())
}

fn millis(us: Option<u64>) -> String {
    us.map_or_else(|| "-".to_owned(), |us| format!("{:.1}", us as f64 / 1_000.0))
}
