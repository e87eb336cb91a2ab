//! Each way in which a policy may name callers and ports, one after the other: who was answered no longer
//! is, and who was not is answered again.

use super::{HOST, LIMIT, Open, URL, policy, until_denied};
use crate::scenario::{Stage, call, call_until, resolve};
use anyhow::{Context, Result, ensure};
use fleet::objects::{apply, delete};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

/// How long a policy may take to decide.
const PROMPT: Duration = Duration::from_secs(1);
/// A block that nobody calls from (RFC 5737).
const NOBODY: &str = "192.0.2.0/24";

/// What one rule says, and whether east's client gets through then.
struct Step {
    action: &'static str,
    rule: Value,
    answered: bool,
}

fn from(action: &'static str, field: &str, values: &[String], answered: bool) -> Step {
    Step { action, rule: json!({"from": [{"source": {field: values}}]}), answered }
}

/// Before the first step east's client is answered in west.
pub(super) async fn decide(stage: &Stage<'_>) -> Result<()> {
    let one = |value: &str| vec![value.to_owned()];
    let namespaces = [
        from("ALLOW", "namespaces", &one("other"), false),
        from("ALLOW", "namespaces", &one("shop"), true),
        from("DENY", "namespaces", &one("shop"), false),
        from("DENY", "namespaces", &one("other"), true),
    ];
    played(stage, "the caller's namespace decides, allowed and denied", &namespaces).await?;
    // What the servers saw: of callers of another network it is their own gateways.
    let seen = peers(stage)?;
    let blocks: Vec<String> = seen.iter().map(IpAddr::to_string).collect();
    let addresses = [
        from("ALLOW", "ipBlocks", &one(NOBODY), false),
        from("ALLOW", "ipBlocks", &blocks, true),
        from("DENY", "ipBlocks", &blocks, false),
        from("DENY", "ipBlocks", &one(NOBODY), true),
    ];
    let promise =
        format!("the address that connects decides, allowed and denied ({})", blocks.join(", "));
    played(stage, &promise, &addresses).await?;
    ports(stage).await
}

/// Plays one step after the other; each turns what the one before left.
async fn played(stage: &Stage<'_>, promise: &str, steps: &[Step]) -> Result<()> {
    let west = stage.cluster("west").client();
    let (mut figures, mut kept) = (vec![], true);
    for Step { action, rule, answered } in steps {
        apply(west, &of(action, rule)).await?;
        let took = if *answered {
            call_until(stage.fleet, stage.client()?, URL, LIMIT, |_| true).await?.0
        } else {
            let begun = Instant::now();
            let (_, said) = until_denied(stage).await?;
            ensure!(said.contains("RBAC: access denied"), "{action} {rule}: {said}");
            begun.elapsed()
        };
        kept &= took <= PROMPT;
        let end = if *answered { "answered" } else { "denied" };
        figures.push(format!("{action}: {end} after {} ms", took.as_millis()));
    }
    stage.judge(promise, &figures.join(", "), kept, &[]);
    delete(west, &of("DENY", &json!({}))).await
}

/// The port of the workload, not of its service: one is closed while the other stays open.
async fn ports(stage: &Stage<'_>) -> Result<()> {
    let west = stage.cluster("west").client();
    let vip = resolve(stage.fleet, stage.client()?, HOST).await?;
    let lines = SocketAddr::from((*vip.first().context("a virtual address")?, 9000));
    let spot = &stage.client()?.spot;
    let rule = |port: &str| json!({"to": [{"operation": {"ports": [port]}}]});
    let (mut figures, mut kept) = (vec![], true);
    // The policy, and which of 8080 and 9000 is open under it.
    let all = [("DENY", "8080", 9000), ("DENY", "9000", 8080), ("ALLOW", "9000", 9000)];
    for (action, port, open) in all.into_iter().chain([("ALLOW", "8080", 8080)]) {
        apply(west, &of(action, &rule(port))).await?;
        let begun = Instant::now();
        loop {
            let called = call(stage.fleet, stage.client()?, URL, 2.0).await.is_ok();
            let greeted = Open::new(spot, lines).is_ok();
            if (called, greeted) == (open == 8080, open == 9000) {
                break;
            }
            let late = || format!("{action} {port}: 8080 open is {called}, 9000 open is {greeted}");
            ensure!(begun.elapsed() < LIMIT, "{} after {LIMIT:?}", late());
        }
        let took = begun.elapsed();
        kept &= took <= PROMPT;
        figures
            .push(format!("{action} {port}: {open} alone is open after {} ms", took.as_millis()));
    }
    stage.judge("a port decides, over HTTP and TCP", &figures.join(", "), kept, &[]);
    delete(west, &of("DENY", &json!({}))).await
}

fn of(action: &str, rule: &Value) -> Value {
    let selector = json!({"matchLabels": {"app": "hello"}});
    policy("fields", json!({"action": action, "selector": selector, "rules": [rule]}))
}

/// Whom the sidecars of west's hello saw connect for calls that they refused, by their access logs.
fn peers(stage: &Stage<'_>) -> Result<BTreeSet<IpAddr>> {
    let mut found = BTreeSet::new();
    for copy in ["hello-1", "hello-2"] {
        let pod = stage.cluster("west").pod(copy)?;
        let log = pod.proxy.get().context("west's sidecars run")?.log().to_owned();
        for line in std::fs::read_to_string(log)?.lines().filter(|line| line.contains("rbac_")) {
            let line: Value = serde_json::from_str(line).context("a line of the access log")?;
            let peer = line["downstream_remote_address"].as_str().context("who called")?;
            let peer: SocketAddr = peer.parse().context("who called")?;
            found.insert(peer.ip().to_canonical());
        }
    }
    ensure!(!found.is_empty(), "the logs name no call that was refused");
    Ok(found)
}
