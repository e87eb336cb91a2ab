//! Who may call: policies of the cluster that is called decide on callers of another, at once, on open
//! connections too.

mod fields;
mod strict;

use super::cli::isthmus;
use super::mistakes::{finding, findings};
use super::{Load, Rates, Stage, call, call_until, resolve};
use anyhow::{Context, Result, ensure};
use fleet::Cluster;
use fleet::objects::{apply, delete};
use fleet::spot::Spot;
use fleet::trust_domain;
use fleet::verdict::{Kind, figures};
use serde_json::{Value, json};
use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

const HOST: &str = "hello.shop.west.global";
const URL: &str = "http://hello.shop.west.global/";
const LIMIT: Duration = Duration::from_secs(20);

/// A policy in front of west's hello.
fn policy(name: &str, spec: Value) -> Value {
    json!({
        "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
        "metadata": {"name": name, "namespace": "shop"}, "spec": spec,
    })
}

fn of(action: &str, principal: &str) -> Value {
    json!({"action": action, "selector": {"matchLabels": {"app": "hello"}},
        "rules": [{"from": [{"source": {"principals": [principal]}}]}]})
}

pub(super) async fn policy_decides(stage: &Stage<'_>) -> Result<()> {
    let done = walk(stage).await;
    let west = ["seen", "no-east", "callers", "fields"].map(|name| ("west", name));
    let all = west.into_iter().chain([("east", "moon")]);
    for (cluster, name) in all {
        delete(stage.cluster(cluster).client(), &policy(name, json!({}))).await?;
    }
    strict::end(stage).await?;
    let back = call_until(stage.fleet, stage.client()?, URL, LIMIT, |_| true).await;
    done?;
    back.map(|_| ())
}

async fn walk(stage: &Stage<'_>) -> Result<()> {
    let (fleet, client, west) = (stage.fleet, stage.client()?, stage.cluster("west"));
    let caller = format!("{}/ns/shop/sa/client", trust_domain("east"));
    let (_, answer) = call_until(fleet, client, URL, LIMIT, |_| true).await?;
    stage.judge("without a policy east's client is answered in west", &answer.pod, true, &[]);
    watching(west).await?;
    let vip = resolve(fleet, client, HOST).await?;
    let lines = SocketAddr::from((*vip.first().context("a virtual address")?, 9000));
    let open = Open::new(&client.spot, lines)?;

    let no = policy("no-east", of("DENY", &caller));
    apply(west.client(), &no).await?;
    let denied = Instant::now();
    let cut = tokio::task::spawn_blocking(move || open.until_cut(denied));
    let (answered, said) = until_denied(stage).await?;
    let took = denied.elapsed();
    let figure = format!("{said} after {} ms; {answered} were answered before", took.as_millis());
    let kept = said.contains("403") && said.contains("RBAC: access denied");
    let promise = "a DENY of the caller's principal in west: 403 in east within 1 s";
    stage.judge(promise, &figure, kept && took < Duration::from_secs(1), &[]);
    let cut = cut.await?;
    let figure = match &cut {
        Ok(took) => format!("cut after {} ms", took.as_millis()),
        Err(error) => format!("{error:#}"),
    };
    let kept = cut.is_ok_and(|took| took < Duration::from_secs(1));
    stage.judge("and a TCP connection that was open is cut within 1 s", &figure, kept, &[]);
    none_gets_through(stage).await?;
    told_while_denied(stage, west, &caller).await?;

    delete(west.client(), &no).await?;
    let back = call_until(fleet, client, URL, LIMIT, |_| true).await;
    judge_back(stage, "the policy deleted, calls are answered within 1 s", &back);
    let again = Open::new(&client.spot, lines);
    let figure = again.as_ref().map_or_else(|e| format!("{e:#}"), |_| "greeted".into());
    stage.judge("and connections are taken", &figure, again.is_ok(), &[]);

    let others = format!("{}/ns/shop/sa/other", trust_domain("east"));
    apply(west.client(), &policy("callers", of("ALLOW", &others))).await?;
    let (_, said) = until_denied(stage).await?;
    stage.judge("an ALLOW of another principal alone denies", &said, said.contains("403"), &[]);
    let args = ["why", "pod/hello-1", "-n", "shop", "hello.shop:80", "--context", "west"];
    let said = isthmus(stage, None, &args).await?;
    let words = ["denies the caller", "AuthorizationPolicy shop/callers", "cannot be called"];
    let kept = said.code == Some(1) && said.says(&words);
    stage.judge("why names the policy that denies, and exits 1", &said.figure(), kept, &[]);

    apply(west.client(), &policy("callers", of("ALLOW", &caller))).await?;
    let back = call_until(fleet, client, URL, LIMIT, |_| true).await;
    judge_back(stage, "an ALLOW of the caller lets it in within 1 s", &back);
    delete(west.client(), &policy("callers", json!({}))).await?;
    strict::reaches_plaintext(stage).await?;
    fields::decide(stage).await?;

    let moon = policy("moon", of("ALLOW", "moon.mesh/ns/shop/sa/client"));
    let mut moon = moon;
    moon["spec"]["selector"]["matchLabels"] = json!({"app": "nobody"});
    apply(stage.cluster("east").client(), &moon).await?;
    let promise = "a principal of a trust domain without a link is told";
    let words = ["ISM3421", "AuthorizationPolicy shop/moon", "moon.mesh", "east.mesh", "Fix:"];
    finding(stage, promise, &words).await
}

/// Until west's control plane has seen a policy come and go: a scenario before may have killed west's
/// API server, and each kind's watch comes back at a time of its own.
async fn watching(west: &Cluster) -> Result<()> {
    // Of nobody; its path is a finding that can be read.
    let seen = policy(
        "seen",
        json!({"action": "DENY", "selector": {"matchLabels": {"app": "nobody"}},
            "rules": [{"to": [{"operation": {"paths": ["/"]}}]}]}),
    );
    for there in [true, false] {
        if there {
            apply(west.client(), &seen).await?;
        } else {
            delete(west.client(), &seen).await?;
        }
        let start = Instant::now();
        loop {
            let all = findings(&west.spot, 15014).await?;
            let found = all.iter().any(|text| text.contains("AuthorizationPolicy shop/seen"));
            if found == there {
                break;
            }
            let told = if there { "of it" } else { "that it is gone" };
            ensure!(
                start.elapsed() < LIMIT,
                "west's control plane knows nothing {told} after {LIMIT:?}: {}",
                all.join(" | ")
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    Ok(())
}

fn judge_back(stage: &Stage<'_>, promise: &str, back: &Result<(Duration, fleet::hello::Answer)>) {
    let figure = match back {
        Ok((took, answer)) => format!("{} after {} ms", answer.pod, took.as_millis()),
        Err(error) => format!("{error:#}"),
    };
    let kept = back.as_ref().is_ok_and(|(took, _)| *took < Duration::from_secs(1));
    stage.judge(promise, &figure, kept, &[]);
}

/// Calls until one is not answered: how many were, and what that one was told.
async fn until_denied(stage: &Stage<'_>) -> Result<(usize, String)> {
    let start = Instant::now();
    let mut answered = 0;
    loop {
        match call(stage.fleet, stage.client()?, URL, 2.0).await {
            Err(error) => return Ok((answered, format!("{error:#}"))),
            Ok(_) => answered += 1,
        }
        ensure!(start.elapsed() < LIMIT, "still answered after {LIMIT:?}");
    }
}

/// 10^4 calls by a caller that is denied, over HTTP and TCP.
async fn none_gets_through(stage: &Stage<'_>) -> Result<()> {
    let rates = Rates { gets: 400.0, posts: 100.0, connects: 100.0, fresh: 0.0, seconds: 19.0 };
    let load = Load::start(stage.fleet, stage.client()?, HOST, rates)?;
    let records = load.finish(Duration::from_secs(60)).await?;
    let (mut sent, mut through, mut refused, mut texts) = (0, 0, 0, vec![]);
    for kind in [Kind::Get, Kind::Post, Kind::Tcp] {
        let figures = figures(&records, kind, 0, u64::MAX);
        sent += figures.requests;
        through += figures.requests - figures.failed;
        for (text, count) in figures.errors {
            let by_policy = text.contains("RBAC: access denied") || kind == Kind::Tcp;
            refused += if by_policy { count } else { 0 };
            texts
                .push(format!("{count} x {kind:?}: {}", text.chars().take(60).collect::<String>()));
        }
    }
    let figure =
        format!("{through} of {sent} got through, {refused} refused: {}", texts.join("; "));
    let kept = sent >= 10_000 && through == 0 && refused * 100 >= sent * 99;
    stage.judge("of 10^4 calls by a principal that is denied 0 get through", &figure, kept, &[]);
    Ok(())
}

/// What an operator reads meanwhile: of both sides, and in the server's own log.
async fn told_while_denied(stage: &Stage<'_>, west: &Cluster, caller: &str) -> Result<()> {
    let name = "rbac_access_denied_matched_policy[ns[shop]-policy[no-east]-rule[0]]";
    let mut found = (0, 0);
    for copy in ["hello-1", "hello-2"] {
        let log = west.pod(copy)?.proxy.get().context("west's sidecars run")?.log().to_owned();
        for line in std::fs::read_to_string(log)?.lines().filter(|line| line.contains(name)) {
            found.0 += usize::from(line.contains("\"response_code\":403"));
            found.1 += usize::from(line.contains("connection_termination_details"));
        }
    }
    let figure = format!("{} lines of requests, {} of connections: {name}", found.0, found.1);
    let promise = "the servers' access logs name the rule, of requests and of connections";
    stage.judge(promise, &figure, found.0 > 0 && found.1 > 0, &[]);

    let args =
        ["why", "pod/client-1", "-n", "shop", "hello.shop.west.global:80", "--context", "east"];
    let said = isthmus(stage, None, &args).await?;
    let words = ["in west its own AuthorizationPolicies decide"];
    let kept = said.code == Some(0) && said.says(&words);
    stage.judge("why in east says that west's policies decide", &said.figure(), kept, &[]);
    let said = isthmus(stage, None, &[&args[..], &["--peer", "west"]].concat()).await?;
    let words =
        ["of west, port", "denies the caller by rules[0] of AuthorizationPolicy shop/no-east"];
    let kept = said.code == Some(1) && said.says(&words);
    stage.judge("and which rule, where it may look at west", &said.figure(), kept, &[]);
    let args = ["export", "svc/hello", "-n", "shop", "--context", "west", "--dry-run"];
    let said = isthmus(stage, None, &args).await?;
    let but = format!("every workload of east (east.mesh) but {caller}");
    let words = ["AuthorizationPolicy shop/no-east (DENY)", "workloads here", &but];
    let kept = said.code == Some(0) && said.says(&words);
    stage.judge("export names the policy in front and whom it lets in", &said.figure(), kept, &[]);
    let peers = ["--peer", "east", "--peer", "north"];
    let said = isthmus(stage, None, &[&args[..], &peers].concat()).await?;
    let kept = said.code == Some(0) && said.says(&[" in east, ", " in north: ", " of 3 clusters;"]);
    let promise = "and counts the workloads that may call, where it may look at their clusters";
    stage.judge(promise, &said.figure(), kept, &[]);
    Ok(())
}

/// An open TCP connection from a pod's application to a server that speaks first.
struct Open(std::net::TcpStream);

impl Open {
    fn new(spot: &Spot, to: SocketAddr) -> Result<Self> {
        let mut stream = spot.connect(to, Duration::from_secs(2))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        let mut read = 0;
        let mut buffer = [0; 1024];
        while !buffer[..read].ends_with(b"\n") {
            let more = stream.read(&mut buffer[read..]).context("no greeting")?;
            ensure!(more > 0, "closed before the greeting");
            read += more;
        }
        stream.write_all(b"ping\n")?;
        let mut echo = [0; 5];
        stream.read_exact(&mut echo).context("no echo")?;
        Ok(Self(stream))
    }

    /// How long after `since` the connection ended; nothing comes on it before.
    fn until_cut(mut self, since: Instant) -> Result<Duration> {
        match self.0.read(&mut [0; 1]) {
            Ok(0) => Ok(since.elapsed()),
            Ok(_) => anyhow::bail!("an octet came instead of the end"),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {
                Ok(since.elapsed())
            }
            Err(error) => Err(error).context("it is still open"),
        }
    }
}
