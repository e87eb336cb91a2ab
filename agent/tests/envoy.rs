//! A real Envoy as the child of `isthmus agent`: what it has taken when the agent ends is answered,
//! and it is ready when it listens.

#[path = "../../xds/tests/support/found.rs"]
mod found;
#[path = "../../runtime/tests/support/port.rs"]
mod port;
mod support;

use agent::{Beside, Config, run};
use mesh::authorize::Authorization;
use mesh::inventory::MtlsMode;
use mesh::program::{InboundListener, Listener, Resource, ResourceName};
use port::Port;
use runtime::page::{self, Place};
use serde_json::json;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use support::{Machine, PATIENCE, until};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

/// As README says an Envoy is to be started.
fn command(envoy: &Path, bootstrap: &Path) -> Vec<OsString> {
    let flags = ["--drain-time-s", "5", "--drain-strategy", "immediate"];
    // Others run beside it.
    let alone = ["--disable-hot-restart", "--concurrency", "2", "--log-level", "warning"];
    let files: [&std::ffi::OsStr; 3] = [envoy.as_ref(), "-c".as_ref(), bootstrap.as_ref()];
    files
        .into_iter()
        .chain(flags.into_iter().chain(alone).map(AsRef::as_ref))
        .map(Into::into)
        .collect()
}

async fn page(at: SocketAddr, path: &str) -> Option<page::Answer> {
    page::get(&Place::Tcp(at.to_string()), path, Duration::from_secs(5)).await.ok()
}

/// Until a page reads so.
async fn reads(what: &str, at: SocketAddr, path: &str, holds: impl Fn(&page::Answer) -> bool) {
    let reading = async {
        while !page(at, path).await.is_some_and(|answer| holds(&answer)) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    if tokio::time::timeout(PATIENCE, reading).await.is_err() {
        panic!("never: {what}; {path} says {:?}", page(at, path).await);
    }
}

/// An Envoy that passes what comes to `port` on to `upstream`, on its own word.
fn passing(admin: SocketAddr, port: SocketAddr, upstream: SocketAddr) -> serde_json::Value {
    let address =
        |at: SocketAddr| json!({"socket_address": {"address": at.ip(), "port_value": at.port()}});
    let typed = |of: &str| format!("type.googleapis.com/envoy.extensions.filters.{of}");
    json!({
        "admin": {"address": address(admin)},
        "static_resources": {
            "listeners": [{
                "name": "inbound",
                "address": address(port),
                "filter_chains": [{"filters": [{"name": "http", "typed_config": {
                    "@type": typed("network.http_connection_manager.v3.HttpConnectionManager"),
                    "stat_prefix": "inbound",
                    "route_config": {"virtual_hosts": [{
                        "name": "all", "domains": ["*"],
                        "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "app"}}],
                    }]},
                    "http_filters": [{"name": "router", "typed_config": {
                        "@type": typed("http.router.v3.Router"),
                    }}],
                }}]}],
            }],
            "clusters": [{
                "name": "app", "type": "STATIC", "connect_timeout": "1s",
                "load_assignment": {"cluster_name": "app", "endpoints": [{"lb_endpoints": [
                    {"endpoint": {"address": address(upstream)}},
                ]}]},
            }],
        },
    })
}

/// Takes requests, and answers each when it is told to.
fn slow(listener: TcpListener) -> mpsc::Receiver<oneshot::Sender<()>> {
    let (took, taken) = mpsc::channel(8);
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let took = took.clone();
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    if stream.read_buf(&mut head).await.unwrap() == 0 {
                        return;
                    }
                }
                let (answer, answered) = oneshot::channel();
                took.send(answer).await.unwrap();
                answered.await.unwrap();
                stream
                    .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nwell")
                    .await
                    .unwrap();
            });
        }
    });
    taken
}

/// All that is answered to a request, until the connection is closed.
async fn call(at: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(at).await?;
    stream.write_all(b"GET / HTTP/1.1\r\nhost: app\r\n\r\n").await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

/// An agent and its Envoy, in front of an application that answers when it is told to.
struct Fronted {
    _machine: Machine,
    _admin: Port,
    port: Port,
    taken: mpsc::Receiver<oneshot::Sender<()>>,
    end: CancellationToken,
    agent: tokio::task::JoinHandle<anyhow::Result<()>>,
}

async fn fronted(envoy: &Path) -> Fronted {
    let machine = Machine::new();
    let address = machine.serve("isthmus-control-plane", CancellationToken::new()).await;
    let (admin, port) = (Port::held(), Port::held());
    let upstream = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let own = machine.file("own.json");
    let passing = passing(admin.address, port.address, upstream.local_addr().unwrap());
    std::fs::write(&own, passing.to_string()).unwrap();
    let config =
        Config { proxy_admin: admin.address, drain_seconds: 60, ..machine.beside(address) };
    let beside = Beside {
        bootstrap: Some(machine.file("bootstrap.json")),
        proxy: command(envoy, &own),
        ..Beside::default()
    };
    let end = CancellationToken::new();
    let agent = tokio::spawn(run(config, beside, end.clone()));
    reads("Envoy is live", admin.address, "/ready", page::Answer::is_ok).await;
    Fronted { _machine: machine, _admin: admin, port, taken: slow(upstream), end, agent }
}

/// Connections whose clients keep them open are no reason to stay, and who asks on one is answered.
#[tokio::test]
async fn an_envoy_waits_for_requests_and_not_for_idle_connections() {
    const POST: &[u8] = b"POST / HTTP/1.1\r\nhost: app\r\ncontent-length: 0\r\n\r\n";
    let Some(envoy) = found::envoy() else { return };
    let Fronted { _machine, _admin, port, mut taken, end, agent } = fronted(&envoy).await;
    let mut kept = Vec::new();
    for _ in 0..2 {
        let mut stream = TcpStream::connect(port.address).await.unwrap();
        stream.write_all(POST).await.unwrap();
        taken.recv().await.unwrap().send(()).unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"well") {
            assert_ne!(stream.read_buf(&mut answer).await.unwrap(), 0);
        }
        kept.push(stream);
    }
    let begun = Instant::now();
    end.cancel();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (mut asks, mut idle) = (kept.pop().unwrap(), kept.pop().unwrap());
    asks.write_all(POST).await.unwrap();
    let answers = taken.recv().await.unwrap();
    // Longer than idle connections are left.
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(!agent.is_finished(), "ended with a request in flight");
    answers.send(()).unwrap();
    let mut answer = String::new();
    asks.read_to_string(&mut answer).await.unwrap();
    assert!(answer.ends_with("well") && answer.contains("connection: close\r\n"), "{answer}");
    tokio::time::timeout(PATIENCE, agent).await.expect("nobody asks").unwrap().unwrap();
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    assert_eq!(idle.read(&mut [0]).await.unwrap_or(0), 0);
}

#[tokio::test]
async fn what_an_envoy_took_is_answered_over_the_end_of_its_agent() {
    let Some(envoy) = found::envoy() else { return };
    let Fronted { _machine, _admin, port, mut taken, end, agent } = fronted(&envoy).await;
    let before = tokio::spawn(call(port.address));
    let answer_before = taken.recv().await.unwrap();
    end.cancel();
    // As by others who have not heard yet that this pod goes.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let after = tokio::spawn(call(port.address));
    let answer_after = tokio::time::timeout(PATIENCE, taken.recv()).await;
    let answer_after = answer_after.expect("Envoy takes requests").unwrap();
    // Envoy looks at its connections anew every 5 s for `server.total_connections`.
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert!(!agent.is_finished(), "ended with requests in flight");
    answer_before.send(()).unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    answer_after.send(()).unwrap();
    for call in [before, after] {
        let answer = call.await.unwrap().unwrap();
        assert!(
            answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("well"),
            "{answer:?}"
        );
        assert!(answer.contains("connection: close\r\n"), "{answer}");
    }
    tokio::time::timeout(PATIENCE, agent).await.expect("no connection is left").unwrap().unwrap();
}

#[tokio::test]
async fn an_envoy_is_ready_once_it_listens_for_its_workload() {
    let Some(envoy) = found::envoy() else { return };
    let machine = Machine::new();
    // The control plane does not know the pod yet.
    machine.edit(&ResourceName::gateway(), None);
    let address = machine.serve("isthmus-control-plane", CancellationToken::new()).await;
    let (admin, metrics, health) = (Port::held(), Port::held(), Port::held());
    let bootstrap: PathBuf = machine.file("bootstrap.json");
    let config = Config {
        proxy_admin: admin.address,
        metrics: metrics.address,
        health: health.address,
        ..machine.beside(address)
    };
    let beside = Beside {
        bootstrap: Some(bootstrap.clone()),
        proxy: command(&envoy, &bootstrap),
        ..Beside::default()
    };
    let end = CancellationToken::new();
    let agent = tokio::spawn(run(config, beside, end.clone()));
    reads("Envoy is live", admin.address, "/ready", page::Answer::is_ok).await;
    let taken = |answer: &page::Answer| {
        // Clusters and listeners, none of each.
        answer.text.lines().any(|line| line == "isthmus_agent_xds_accepted_total 2")
    };
    reads("it answered", metrics.address, "/metrics", taken).await;
    let ready = page(health.address, "/readyz").await.unwrap();
    assert!(!ready.is_ok() && ready.text.contains("proxy"), "ready without a listener: {ready:?}");

    let inbound = InboundListener {
        mtls: MtlsMode::Permissive,
        ports: BTreeMap::new(),
        trust_domains: ["west.mesh".parse().unwrap()].into(),
        authorization: Authorization::default(),
        ipv6: false,
    };
    let inbound = Resource::Listener(Listener::Inbound(inbound));
    machine.edit(&ResourceName::inbound(), Some(inbound));
    reads("the agent is ready", health.address, "/readyz", page::Answer::is_ok).await;
    let listeners = page(admin.address, "/listeners").await.unwrap().text;
    assert!(listeners.lines().any(|line| line.starts_with("inbound::")), "{listeners}");
    end.cancel();
    until("the agent ends", || agent.is_finished()).await;
    agent.await.unwrap().unwrap();
}
