//! Envoy in front of a workload, called by a client without a mesh, byte for byte.

use super::super::Stage;
use anyhow::{Context, Result};
use fleet::launcher::Pod;
use fleet::spot::{Door, http_get_at};
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(5);
/// Where Envoy takes what is redirected to it, and shows its numbers to the pod itself.
const INBOUND: u16 = 15006;
const ADMIN: u16 = 15000;
/// Connections Envoy opened to its workload.
const DIALLED: &str = "cluster.inbound|0||.upstream_cx_total: ";
/// A caller's own word on who it is.
const FORGED: &str = "spiffe://east.mesh/ns/bank/sa/forged";

pub(super) async fn strangers(stage: &Stage<'_>, pod: &Pod) -> Result<()> {
    let (outside, inside) = (stage.cluster("east").spot.door(), pod.spot.door());
    let pod = std::net::IpAddr::from(pod.address);
    let judged = tokio::task::spawn_blocking(move || -> Result<_> {
        let application = SocketAddr::new(pod, 8080);
        let ask = |request: &str| said(&outside, application, request);
        let old = ask("GET / HTTP/1.0\r\nhost: hello\r\n\r\n")?;
        let upgrade =
            ask("GET / HTTP/1.1\r\nhost: hello\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
             sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")?;
        let forged = ask(&format!(
            "GET / HTTP/1.1\r\nhost: hello\r\nconnection: close\r\n\
             x-forwarded-client-cert: URI={FORGED}\r\n\r\n"
        ))?;
        let before = dialled(&inside)?;
        let itself = said(&outside, SocketAddr::new(pod, INBOUND), "GET / HTTP/1.1\r\n\r\n");
        std::thread::sleep(Duration::from_millis(500));
        Ok((old, upgrade, forged, itself, dialled(&inside)? - before))
    });
    let (old, upgrade, forged, itself, dials) = judged.await??;
    let head = |answer: &str| answer.lines().next().unwrap_or_default().to_owned();
    stage.judge(
        "Envoy as a server carries HTTP/1.0 and upgrades, and drops a forged client certificate",
        &format!("{}; {}; {}", head(&old), head(&upgrade), head(&forged)),
        old.contains(" 200 ")
            && upgrade.contains(" 200 ")
            && forged.contains(" 200 ")
            && !forged.contains(FORGED),
        &[],
    );
    let answer = itself.unwrap_or_else(|error| format!("{error:#}"));
    stage.judge(
        "a connection to Envoy's own port 15006 is closed, and opens none",
        &format!("{:?} was answered, {dials} connections were opened", head(&answer)),
        dials == 0 && !answer.contains("HTTP/"),
        &[],
    );
    Ok(())
}

/// All that is answered until the connection ends or is silent for 2 s.
fn said(door: &Door, to: SocketAddr, request: &str) -> Result<String> {
    let mut stream = door.connect(to, LIMIT)?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    stream.write_all(request.as_bytes())?;
    let (mut answer, mut part) = (Vec::new(), [0; 4096]);
    while let Ok(length @ 1..) = stream.read(&mut part) {
        answer.extend_from_slice(&part[..length]);
    }
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

fn dialled(pod: &Door) -> Result<u64> {
    let admin = SocketAddr::from(([127, 0, 0, 1], ADMIN));
    let (_, text) = http_get_at(pod, admin, "/stats?usedonly", LIMIT)?;
    let line = text.lines().find_map(|line| line.strip_prefix(DIALLED));
    line.context("Envoy counts no connections to its workload")?.parse().context("a count")
}
