//! What gateways and sidecars must refuse: strange ClientHellos, and servers that lie.

use super::{Stage, call, call_until};
use anyhow::{Context, Result};
use fleet::client_hello::{Back, Name, client_hello, probe};
use fleet::process::Process;
use fleet::verdict::Pillar;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

pub(super) async fn sni_refused(stage: &Stage<'_>) -> Result<()> {
    let gateway = SocketAddr::from((stage.cluster("west").wan_address(11), 15443));
    const GOOD: &str = "outbound_.80_._.hello.shop.global";
    let hello = |name: Name<'_>| client_hello(name, "istio");
    let mut upper = GOOD.to_ascii_uppercase();
    upper.replace_range(..8, "outbound");
    // TLS handshake record, type 0x16: the workload behind the gateway answers.
    let opened: [(&str, Vec<u8>, usize); 4] = [
        ("an exported service", hello(Name::Host(GOOD)), usize::MAX),
        ("the same in pieces of one octet", hello(Name::Host(GOOD)), 1),
        ("the same in upper case", hello(Name::Host(&upper)), usize::MAX),
        (
            "its svc.cluster.local name",
            hello(Name::Host("outbound_.80_._.hello.shop.svc.cluster.local")),
            usize::MAX,
        ),
    ];
    for (what, flight, piece) in opened {
        let (back, took) = probe(gateway, &flight, piece, Duration::from_secs(7))?;
        let figure = format!("{back:?} after {} ms", took.as_millis());
        stage.judge(&format!("SNI of {what} is routed"), &figure, back == Back::Octet(0x16), &[]);
    }
    let long = format!("outbound_.80_._.{}.shop.global", "a".repeat(64));
    let closed: [(&str, Vec<u8>); 16] = [
        ("no SNI", hello(Name::None)),
        ("a trailing dot", hello(Name::Host("outbound_.80_._.hello.shop.global."))),
        ("an IPv4 literal", hello(Name::Host("10.244.0.21"))),
        ("an IPv6 literal", hello(Name::Host("2001:db8::1"))),
        ("an unknown service", hello(Name::Host("outbound_.80_._.nobody.shop.global"))),
        ("an unknown namespace", hello(Name::Host("outbound_.80_._.hello.nowhere.global"))),
        (
            "a service that is not exported",
            hello(Name::Host("outbound_.80_._.secret.shop.svc.cluster.local")),
        ),
        (
            "the API server",
            hello(Name::Host("outbound_.443_._.kubernetes.default.svc.cluster.local")),
        ),
        ("another cluster's name", hello(Name::Host("outbound_.80_._.hello.shop.north.global"))),
        ("a port that is not served", hello(Name::Host("outbound_.81_._.hello.shop.global"))),
        ("a subset that does not exist", hello(Name::Host("outbound_.80_.v9_.hello.shop.global"))),
        ("a plain host name", hello(Name::Host("hello.shop.global"))),
        ("a label of 64 octets", hello(Name::Host(&long))),
        ("two names", hello(Name::Two(GOOD, "outbound_.80_._.secret.shop.global"))),
        ("an octet that is no letter", hello(Name::Bytes(b"outbound_.80_._.hello\0.shop.global"))),
        ("HTTP instead of TLS", b"GET / HTTP/1.1\r\nhost: hello.shop.global\r\n\r\n".to_vec()),
    ];
    for (what, flight) in closed {
        let (back, took) = probe(gateway, &flight, usize::MAX, Duration::from_secs(7))?;
        let figure = format!("{back:?} after {} ms", took.as_millis());
        let promise = format!("SNI with {what} is closed without an octet");
        stage.judge(&promise, &figure, back == Back::Closed, &[]);
    }
    let half = &hello(Name::Host(GOOD))[..40];
    let (back, took) = probe(gateway, half, usize::MAX, Duration::from_secs(8))?;
    stage.judge(
        "half a ClientHello is closed after 5 s",
        &format!("{back:?} after {} ms", took.as_millis()),
        back == Back::Closed && (4..7).contains(&took.as_secs()),
        &[],
    );
    Ok(())
}

/// A server in the place of west's gateways with a certificate of our making; where `authority`
/// is west's own it must be believed, else the refusal below would prove nothing.
pub(super) fn start_forger(stage: &Stage<'_>, authority: &str) -> Result<Vec<Process>> {
    let pair = stage.fleet.trust.authority(authority)?;
    let leaf = pair.workload("spiffe://west.mesh/ns/shop/sa/hello")?;
    let chain = format!("{}{}", leaf.certificate, pair.certificate);
    let mut servers = vec![];
    for name in ["gateway-1", "gateway-2"] {
        let pod = stage.cluster("west").pod(name)?;
        let (chain_file, key_file) = (pod.dir.join("forged.pem"), pod.dir.join("forged.key"));
        std::fs::write(&chain_file, &chain)?;
        std::fs::write(&key_file, &leaf.key)?;
        let job =
            pod.job("forger", &stage.fleet.home.parts.own.program, &stage.fleet.home.logs).args([
                "forger",
                "--listen",
                "0.0.0.0:15443",
                "--chain",
                &chain_file.display().to_string(),
                "--key",
                &key_file.display().to_string(),
            ]);
        servers.push(job.start()?);
        let here = SocketAddr::from(([127, 0, 0, 1], 15443));
        let deadline = Instant::now() + Duration::from_secs(10);
        while let Err(error) = pod.spot.connect(here, Duration::from_secs(1)) {
            anyhow::ensure!(Instant::now() < deadline, "the forger does not listen: {error:#}");
        }
    }
    Ok(servers)
}

pub(super) async fn forged_identity(stage: &Stage<'_>) -> Result<()> {
    let (fleet, client) = (stage.fleet, stage.client()?);
    let url = "http://hello.shop.west.global/";
    call_until(fleet, client, url, Duration::from_secs(30), |_| true).await?;
    for name in ["gateway-1", "gateway-2"] {
        stage.cluster("west").pod(name)?.proxy.get().context("west's gateways run")?.kill();
    }
    // The control: with west's own authority the same server in the same place is believed.
    let servers = start_forger(stage, "west")?;
    let believed =
        call_until(fleet, client, url, Duration::from_secs(20), |a| a.pod == "forger").await;
    let figure = match &believed {
        Ok((took, _)) => format!("answered after {:.1} s", took.as_secs_f64()),
        Err(error) => format!("{error:#}"),
    };
    let promise = "control: a server with west's identity by west's authority is believed";
    stage.judge(promise, &figure, believed.is_ok(), &[]);
    drop(servers);
    // Without a verifier any authority under the root would do: the sabotage hands the forger one
    // that is believed, and the verdict must turn red.
    let authority = if stage.sabotage == Some(Pillar::Verifier) { "west" } else { "north" };
    let servers = start_forger(stage, authority)?;
    let mut answered = vec![];
    for _ in 0..10 {
        if let Ok(answer) = call(fleet, client, url, 3.0).await {
            answered.push(answer.pod);
        }
    }
    stage.judge(
        "a server with west's identity by another cluster's authority is refused, 10 of 10",
        &format!("{} of 10 were answered {answered:?}", answered.len()),
        answered.is_empty(),
        &[Pillar::Verifier],
    );
    drop(servers);
    Ok(())
}
