//! Four attacks on the running mesh, each beside a control that must pass, with the reason it fails.

use super::screen::{Paint, Screen};
use super::{HOST, http_port};
use anyhow::{Context as _, Result};
use fleet::authority::Authority;
use fleet::client_hello::{Back, Name, client_hello, probe};
use fleet::forger::get_as;
use fleet::launcher::{Pod, Service};
use fleet::spot::http_get_at;
use fleet::{Cluster, Fleet};
use serde_json::Value;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(6);

/// One attack: what was tried, whether the control passed and the attack did not, and why not.
struct Attack {
    name: &'static str,
    tried: String,
    control: bool,
    refused: bool,
    reason: String,
}

/// Shows all four; whether each was refused and each control passed.
pub(super) async fn show(fleet: &Fleet, screen: &mut Screen) -> Result<bool> {
    let mut all = true;
    let west = fleet.cluster("west");
    let gateway = west.pod("gateway-1")?.clone();
    let copy = west.pod("hello-1")?.clone();
    let (own, foreign) = (fleet.trust.authority("east")?, fleet.trust.authority("north")?);
    let network = tokio::task::spawn_blocking(move || {
        anyhow::Ok([unexported(&gateway)?, plaintext(&copy, &own)?, forged(&copy, &own, &foreign)?])
    });
    for attack in network.await??.into_iter().chain([unwanted(fleet).await?]) {
        let kept = attack.control && attack.refused;
        let verdict = match (attack.control, attack.refused) {
            (true, true) => "refused",
            (true, false) => "NOT REFUSED",
            (false, _) => "the control failed, so this proves nothing",
        };
        screen.fact(attack.name, &attack.tried, Paint::Plain);
        let paint = if kept { Paint::Good } else { Paint::Bad };
        screen.fact("", &format!("{verdict}: {}", attack.reason), paint);
        all &= kept;
    }
    Ok(all)
}

/// A service that west has and does not export, asked for at its gateway.
fn unexported(gateway: &Pod) -> Result<Attack> {
    let door = SocketAddr::from((gateway.address, 15443));
    let port = http_port();
    let hello = |host: &str| {
        client_hello(Name::Host(&format!("outbound_.{port}_._.{host}")), "istio-http/1.1")
    };
    let (good, _) = probe(door, &hello("hello.shop.global"), usize::MAX, LIMIT)?;
    let before = refusals(gateway)?;
    let wanted = "secret.shop.svc.cluster.local";
    let (back, _) = probe(door, &hello(wanted), usize::MAX, LIMIT)?;
    Ok(Attack {
        name: "unexported",
        tried: format!("SNI of {wanted}, which west does not export, at its gateway {door}"),
        // The first octet of a TLS handshake: a workload behind the gateway answers.
        control: good == Back::Octet(0x16),
        refused: back == Back::Closed,
        reason: format!("closed without an octet, {}", newly(gateway, &before)?),
    })
}

/// HTTP without TLS at the port of a meshed workload.
fn plaintext(copy: &Pod, own: &Authority) -> Result<Attack> {
    let door = SocketAddr::from((copy.address, 8080));
    let good = speak(door, own).is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"));
    let before = refusals(copy)?;
    let answer = http_get_at(&copy.spot.door(), door, "/", LIMIT);
    Ok(Attack {
        name: "plaintext",
        tried: format!("HTTP without TLS at {}/{}, {door}", copy.cluster, copy.name),
        control: good,
        refused: answer.is_err(),
        reason: format!("PeerAuthentication STRICT, {}", newly(copy, &before)?),
    })
}

/// A client with an identity of east's, signed by north.
fn forged(copy: &Pod, own: &Authority, foreign: &Authority) -> Result<Attack> {
    let door = SocketAddr::from((copy.address, 8080));
    let good = speak(door, own).is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"));
    let before = refusals(copy)?;
    let answer = speak(door, foreign);
    let counted = newly(copy, &before)?;
    let said = logged(copy, "identity");
    Ok(Attack {
        name: "forged",
        tried: format!("a client that says it is {CLIENT}, by the CA of north"),
        control: good,
        refused: answer.is_err(),
        reason: said.map_or_else(|| counted.clone(), |said| format!("{said}; {counted}")),
    })
}

const CLIENT: &str = "spiffe://east.mesh/ns/shop/sa/client";

/// One GET over mutual TLS as [`CLIENT`], by whatever authority.
fn speak(door: SocketAddr, authority: &Authority) -> Result<String> {
    get_as(door, CLIENT, authority, HOST, LIMIT)
}

/// A service that west exports from a namespace which east's link does not let in.
async fn unwanted(fleet: &Fleet) -> Result<Attack> {
    let (east, west) = (fleet.cluster("east"), fleet.cluster("west"));
    let namespace = serde_json::json!({
        "apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "vault"},
    });
    fleet::objects::apply(west.client(), &namespace).await?;
    let service = Service {
        namespace: "vault".into(),
        name: "ledger".into(),
        selector: BTreeMap::from([("app".into(), "ledger".into())]),
        ports: vec![("http".into(), http_port(), 8080)],
    };
    west.launcher.serve(service).await?;
    let export = serde_json::json!({
        "apiVersion": "multicluster.x-k8s.io/v1beta1", "kind": "ServiceExport",
        "metadata": {"name": "ledger", "namespace": "vault"},
    });
    fleet::objects::apply(west.client(), &export).await?;
    let until = Instant::now() + Duration::from_secs(15);
    let found = loop {
        let found = finding(east, "vault/ledger").await?;
        if found.is_some() || Instant::now() > until {
            break found;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    let dns = super::dns_of(fleet)?;
    let known = fleet::load::ask(dns, HOST).await.is_ok_and(|addresses| !addresses.is_empty());
    let name = "ledger.vault.global";
    let asked = fleet::load::ask(dns, name).await;
    Ok(Attack {
        name: "unwanted",
        tried: "west announces vault/ledger; east's link to west imports namespace shop".into(),
        control: known,
        refused: found.is_some() && asked.is_err(),
        reason: found.unwrap_or_else(|| "no finding says so".into()),
    })
}

/// What a federation controller has found about `what`.
async fn finding(cluster: &Cluster, what: &str) -> Result<Option<String>> {
    let (door, page) = (cluster.spot.door(), cluster.pages(15024));
    let got = tokio::task::spawn_blocking(move || http_get_at(&door, page, "/findings", LIMIT));
    let (_, body) = got.await??;
    let all: Value = serde_json::from_str(&body).context("/findings is not JSON")?;
    let all = all.as_array().context("/findings is no list")?;
    Ok(all.iter().find_map(|finding| {
        let problem = finding["problem"].as_str()?;
        let code = finding["code"].as_u64()?;
        problem.contains(what).then(|| format!("ISM{code} {problem}"))
    }))
}

/// Refusals a proxy has counted, by their labels.
fn refusals(pod: &Pod) -> Result<BTreeMap<String, f64>> {
    let page = SocketAddr::from((pod.address, 15090));
    let (_, text) = http_get_at(&pod.spot.door(), page, "/metrics", LIMIT)?;
    let lines = text.lines().filter(|line| line.contains("refused_total{"));
    Ok(lines
        .filter_map(|line| {
            let (name, value) = line.rsplit_once(' ')?;
            Some((name.to_owned(), value.parse().ok()?))
        })
        .collect())
}

/// The reason a proxy has counted since `before`.
fn newly(pod: &Pod, before: &BTreeMap<String, f64>) -> Result<String> {
    let now = refusals(pod)?;
    let more = now.iter().find(|(name, value)| before.get(*name).is_none_or(|old| old < value));
    let reason = more.and_then(|(name, _)| name.split("reason=\"").nth(1)?.split('"').next());
    Ok(format!("counted as {}", reason.unwrap_or("nothing")))
}

/// Why a sidecar's log says that it refused a peer for `reason` last; looks for a while, since a log
/// may come after the fact.
fn logged(pod: &Pod, reason: &str) -> Option<String> {
    let until = Instant::now() + Duration::from_secs(2);
    loop {
        let text = std::fs::read_to_string(pod.proxy.get()?.log()).unwrap_or_default();
        let lines = text.lines().rev().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let mut found = lines
            .filter(|line| line["message"] == "a peer was refused" && line["reason"] == reason);
        if let Some(line) = found.next() {
            return line["error"].as_str().map(str::to_owned);
        }
        if Instant::now() > until {
            return None;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
