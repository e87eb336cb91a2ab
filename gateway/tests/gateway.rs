//! The gateway end to end from a resources file: who passes, who is closed, and all alike.

#[path = "../../proxy/tests/engine/world.rs"]
#[allow(dead_code, reason = "shared with the engine's own tests")]
mod world;

use mesh::name::Hostname;
use mesh::program::*;
use mesh::sni::{Sni, probe_host};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;
use trust::probe::{self, Probed};
use trust::tls::Expected;
use world::*;

const SNI: &str = "outbound_.80_._.hello.shop.global";

struct Setup {
    world: &'static World,
    running: gateway::Running,
    end: CancellationToken,
    _folder: tempfile::TempDir,
}

fn sni(text: &str) -> Sni {
    text.parse().unwrap()
}

/// West's gateway with one route to these pods.
async fn setup(pods: &[LbEndpoint], more: &str) -> Setup {
    let world = World::shared();
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name);
    let cluster = ClusterName::sni(&sni(SNI));
    let listener = GatewayListener {
        routes: BTreeMap::from([(sni(SNI), cluster.clone())]),
        probe: probe_host(&"west".parse().unwrap()),
    };
    let settings = Cluster {
        name: cluster,
        sni: String::new(),
        protocol: mesh::name::Protocol::Tcp,
        load_balancing: LoadBalancing::LeastRequest,
        connect_timeout_ms: 1_000,
        outlier: OutlierDetection::default(),
        pool: ConnectionPool::default(),
        server_identities: BTreeMap::new(),
    };
    let mut program = with(settings, &[pods]).program;
    let listener = Resource::Listener(Listener::Gateway(listener));
    program.insert(ResourceName::gateway(), Arc::new(listener));
    write(&file("resources.json"), &agent::to_json(&program).to_string());
    let (chain, key) = world.pem("west", "isthmus-system", "isthmus-gateway");
    write(&file("chain.pem"), &chain);
    write(&file("key.pem"), &key);
    write(&file("root.pem"), &world.root_pem);
    let at = |name: &str| file(name).display().to_string();
    let config = format!(
        "cluster: west\nnamespace: isthmus-system\npod: gw-0\ntrustDomain: west.mesh\n\
         rootCertificates: {}\nresources: {}\nsvid: {{chain: {}, key: {}}}\n\
         listen: 127.0.0.1:0\nadmin: 127.0.0.1:0\nmetrics: 127.0.0.1:0\nhealth: 127.0.0.1:0\n\
         accessLog: false\n{more}",
        at("root.pem"),
        at("resources.json"),
        at("chain.pem"),
        at("key.pem"),
    );
    write(&file("gateway.yaml"), &config);
    let config = runtime::config::load(&file("gateway.yaml")).unwrap();
    let end = CancellationToken::new();
    let running = gateway::start(config, end.clone()).await.unwrap();
    assert!(running.readiness.is_ready(), "{:?}", running.readiness.awaited());
    Setup { world, running, end, _folder: folder }
}

fn write(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap();
}

impl Setup {
    fn address(&self) -> SocketAddr {
        self.running.address
    }

    /// A client of east that speaks mTLS with whom it reaches through the gateway.
    fn client(&self, expected: mesh::name::Identity, alpn: &[&[u8]]) -> TlsConnector {
        TlsConnector::from(trust::tls::client_config(
            Some(self.world.svid("east", "shop", "client")),
            self.world.bundle(),
            Expected::AnyOf(Arc::new([expected].into())),
            alpn,
        ))
    }

    /// The greeting behind that name, or what went wrong.
    async fn greeting(&self, name: &str, alpn: &[&[u8]]) -> std::io::Result<String> {
        let tcp = TcpStream::connect(self.address()).await?;
        let name = name.to_owned().try_into().unwrap();
        let client = self.client(identity("west", "shop", "hello"), alpn);
        let mut tls = client.connect(name, tcp).await?;
        tls.shutdown().await?;
        let mut text = String::new();
        tls.read_to_string(&mut text).await?;
        Ok(text)
    }

    /// How often connections were refused for that reason.
    fn refused(&self, reason: &str) -> u64 {
        let text = self.running.metrics.encode();
        let start = format!("isthmus_gateway_sni_refused_total{{reason=\"{reason}\"}} ");
        text.lines().find_map(|l| l.strip_prefix(&start)).map_or(0, |n| n.parse().unwrap())
    }

    async fn until_refused(&self, reason: &str, count: u64) {
        let limit = Instant::now() + Duration::from_secs(8);
        while self.refused(reason) != count {
            let text = self.running.metrics.encode();
            assert!(Instant::now() < limit, "{reason} is not {count}:\n{text}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Sends these bytes and returns how it is closed: always a reset without a byte.
    async fn closed(&self, bytes: &[u8]) {
        let mut stream = TcpStream::connect(self.address()).await.unwrap();
        let _ = stream.write_all(bytes).await;
        let mut answer = Vec::new();
        let read = stream.read_to_end(&mut answer).await;
        assert_eq!(answer, b"", "nothing is said to strangers");
        let kind = read.expect_err("it is a reset").kind();
        assert_eq!(kind, std::io::ErrorKind::ConnectionReset);
    }
}

/// A ClientHello as a mesh client writes it.
fn hello(name: &str, alpn: &[&[u8]]) -> Vec<u8> {
    let world = World::shared();
    let config = trust::tls::client_config(
        Some(world.svid("east", "shop", "client")),
        world.bundle(),
        Expected::AnyOf(Arc::new([identity("west", "shop", "hello")].into())),
        alpn,
    );
    let name = name.to_owned().try_into().unwrap();
    let mut client = rustls::ClientConnection::new(config, name).unwrap();
    let mut bytes = Vec::new();
    while client.wants_write() {
        client.write_tls(&mut bytes).unwrap();
    }
    bytes
}

/// A pod of west needs the world's root before the gateway has one: both come from one world.
async fn with_pod() -> (Setup, Server) {
    let port = Port::held();
    let setup = setup(&[pod(port.address, "west")], "").await;
    let server = setup.world.echo_at(port.address, "west", "shop", "hello", "west").await;
    (setup, server)
}

#[tokio::test]
async fn the_right_name_reaches_the_workload_and_only_it_speaks() {
    let (setup, server) = with_pod().await;
    assert_eq!(setup.greeting(SNI, &[b"istio"]).await.unwrap(), "west\n");
    let upper = "OUTBOUND_.80_._.Hello.Shop.Global";
    assert_eq!(setup.greeting(upper, &[b"istio-http/1.1"]).await.unwrap(), "west\n");
    assert_eq!(server.count(), 2);
    let text = setup.running.metrics.encode();
    let opened = text.lines().find(|l| l.starts_with("istio_tcp_connections_opened_total{"));
    let opened = opened.expect("tunnels are counted");
    assert!(opened.contains("destination_service=\"hello.shop.global\""), "{opened}");
}

#[tokio::test]
async fn all_others_are_closed_alike_and_counted_by_reason() {
    let (setup, server) = with_pod().await;
    let cases: [(&str, Vec<u8>); 8] = [
        ("unknown_sni", hello("outbound_.80_._.secret.shop.global", &[b"istio"])),
        ("unknown_sni", hello("outbound_.81_._.hello.shop.global", &[b"istio"])),
        ("unknown_sni", hello("hello.shop.global", &[b"istio"])),
        ("no_mesh_alpn", hello(SNI, &[])),
        ("no_mesh_alpn", hello(SNI, &[b"h2", b"http/1.1"])),
        ("no_sni", hello("127.0.0.1", &[b"istio"])),
        ("not_tls", b"GET / HTTP/1.1\r\nhost: hello.shop.global\r\n\r\n".to_vec()),
        ("malformed", vec![22, 3, 1, 0, 0, 1, 2, 3]),
    ];
    let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
    for (reason, bytes) in &cases {
        setup.closed(bytes).await;
        *counts.entry(reason).or_default() += 1;
        setup.until_refused(reason, counts[reason]).await;
    }
    assert_eq!(server.count(), 0, "no pod was even dialled");
    assert_eq!(setup.greeting(SNI, &[b"istio"]).await.unwrap(), "west\n", "the rest goes on");
}

#[tokio::test]
async fn byte_by_byte_and_in_small_records_is_the_same() {
    let (setup, server) = with_pod().await;
    let mut stream = TcpStream::connect(setup.address()).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let bytes = hello(SNI, &[b"istio"]);
    assert!(bytes.len() > 1_460);
    for byte in &bytes {
        stream.write_all(&[*byte]).await.unwrap();
    }
    // The workload's ServerHello comes back: a handshake record.
    assert_eq!(stream.read_u8().await.unwrap(), 22);
    assert_eq!(server.count(), 1);
}

#[tokio::test]
async fn more_than_sixty_four_kibibytes_are_refused() {
    let (setup, server) = with_pod().await;
    // Its header says so already.
    let mut long = vec![22, 3, 1, 0, 4, 1];
    long.extend([1, 0, 0]);
    setup.closed(&long).await;
    setup.until_refused("too_long", 1).await;
    assert_eq!(server.count(), 0);
}

#[tokio::test]
async fn a_hello_that_does_not_come_is_closed_at_its_deadline() {
    let (setup, server) = with_pod().await;
    let begun = Instant::now();
    let bytes = hello(SNI, &[b"istio"]);
    setup.closed(&bytes[..bytes.len() - 1]).await;
    let waited = begun.elapsed();
    assert!(waited >= Duration::from_secs(4) && waited < Duration::from_secs(8), "{waited:?}");
    setup.until_refused("deadline", 1).await;
    assert_eq!(server.count(), 0);
}

#[tokio::test]
async fn a_probe_is_answered_by_the_gateway_itself_and_by_no_pod() {
    let (setup, server) = with_pod().await;
    let tcp = TcpStream::connect(setup.address()).await.unwrap();
    let name: Hostname = probe_host(&"west".parse().unwrap());
    let client = setup.client(identity("west", "isthmus-system", "isthmus-gateway"), &[b"istio"]);
    let name = name.as_str().to_owned().try_into().unwrap();
    let tls = client.connect(name, tcp).await.unwrap();
    let certificates = tls.get_ref().1.peer_certificates().unwrap();
    assert_eq!(
        trust::tls::peer_identity(certificates),
        Some(identity("west", "isthmus-system", "isthmus-gateway"))
    );
    assert_eq!(server.count(), 0);
}

#[tokio::test]
async fn the_prober_of_a_client_finds_it_alive() {
    let (setup, _server) = with_pod().await;
    let engine =
        setup.world.engine(watched(snapshot(&[&[world::gateway(setup.address(), "west")]])));
    let ask = proxy::Ask { alpn: b"istio".to_vec(), ..Default::default() };
    let established = engine.connect(&name(), &ask).await.unwrap();
    assert_eq!(established.identity, Some(identity("west", "shop", "hello")));
    let limit = Instant::now() + Duration::from_secs(4);
    while engine.status()[0].endpoints[0].probe_ms.is_none() {
        assert!(Instant::now() < limit, "no probe succeeded: {:?}", engine.status());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn an_operator_without_a_certificate_learns_who_it_is() {
    let setup = setup(&[], "").await;
    let bundle = setup.world.bundle();
    let bundle = bundle.borrow().clone();
    let limit = Duration::from_secs(5);
    let ask = async |cluster: &str, domain: &str, address: SocketAddr| {
        let (cluster, domain) = (cluster.parse().unwrap(), domain.parse().unwrap());
        probe::gateway(address, &cluster, &domain, &bundle, limit).await
    };
    let alive = ask("west", "west.mesh", setup.address()).await;
    assert!(matches!(alive, Probed::Alive(_)), "{alive:?}");
    // Another cluster's gateway does not know the name, and closes or resets.
    let foreign = ask("north", "north.mesh", setup.address()).await;
    assert!(matches!(foreign, Probed::Foreign(_)), "{foreign:?}");
    // The right name, and another's identity.
    let foreign = ask("west", "north.mesh", setup.address()).await;
    assert!(matches!(&foreign, Probed::Foreign(why) if why.contains("ISM5226")), "{foreign:?}");
    let missed = ask("west", "west.mesh", Port::held().address).await;
    assert!(matches!(&missed, Probed::Missed(why) if why.contains("refused")), "{missed:?}");
}

#[tokio::test]
async fn a_dead_pod_is_passed_over() {
    let (dead, alive) = (Port::held(), Port::held());
    let setup = setup(&[pod(dead.address, "west"), pod(alive.address, "west")], "").await;
    let _server = setup.world.echo_at(alive.address, "west", "shop", "hello", "alive").await;
    for _ in 0..10 {
        assert_eq!(setup.greeting(SNI, &[b"istio"]).await.unwrap(), "alive\n");
    }
}

#[tokio::test]
async fn pods_without_mesh_or_of_others_are_never_dialled() {
    let other = serve("127.0.0.1:0".parse().unwrap(), |_| async {}).await;
    let never = [
        LbEndpoint { tls: false, ..pod(other.address, "west") },
        pod(other.address, "east"),
        world::gateway(other.address, "west"),
    ];
    for endpoint in never {
        let setup = setup(&[endpoint], "").await;
        setup.closed(&hello(SNI, &[b"istio"])).await;
        setup.until_refused("no_pod", 1).await;
    }
    assert_eq!(other.count(), 0);
}

#[tokio::test]
async fn caps_shed_and_recover() {
    let port = Port::held();
    let setup = setup(&[pod(port.address, "west")], "maxConnectionsPerSource: 2\n").await;
    let _server = setup.world.echo_at(port.address, "west", "shop", "hello", "west").await;
    let one = TcpStream::connect(setup.address()).await.unwrap();
    let two = TcpStream::connect(setup.address()).await.unwrap();
    let mut three = TcpStream::connect(setup.address()).await.unwrap();
    assert!(matches!(three.read(&mut [0]).await, Ok(0) | Err(_)), "the third is closed");
    setup.until_refused("too_many_of_one_source", 1).await;
    drop((one, two));
    let limit = Instant::now() + Duration::from_secs(4);
    while setup.greeting(SNI, &[b"istio"]).await.is_err() {
        assert!(Instant::now() < limit, "places never came back");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn bulk_comes_through_whole_and_draining_lets_it_end() {
    let (setup, _server) = with_pod().await;
    let tcp = TcpStream::connect(setup.address()).await.unwrap();
    let client = setup.client(identity("west", "shop", "hello"), &[b"istio"]);
    let tls = client.connect(SNI.to_owned().try_into().unwrap(), tcp).await.unwrap();
    let (mut read, mut write) = tokio::io::split(tls);
    setup.end.cancel();
    let sent: Vec<u8> = (0..8_000_000u32).map(|n| (n % 251) as u8).collect();
    let expected = sent.clone();
    let sending = tokio::spawn(async move {
        write.write_all(&sent).await.unwrap();
        write.shutdown().await.unwrap();
    });
    let mut back = Vec::new();
    read.read_to_end(&mut back).await.unwrap();
    sending.await.unwrap();
    assert_eq!(&back[..5], b"west\n");
    assert!(back[5..] == expected[..], "{} bytes came back changed", back.len());
    tokio::time::timeout(Duration::from_secs(10), setup.running.ended()).await.unwrap().unwrap();
}

#[test]
fn a_configuration_from_two_places_or_with_a_typo_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("gateway.yaml");
    let base = "cluster: west\nnamespace: n\npod: p\ntrustDomain: w\nrootCertificates: r\n";
    write(&file, &format!("{base}controlPlan: 1.2.3.4:5\n"));
    let error = runtime::config::load::<gateway::Config>(&file).unwrap_err().to_string();
    assert!(error.contains("controlPlan"), "{error}");
    write(&file, base);
    let config = runtime::config::load(&file).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let error = runtime.block_on(gateway::start(config, CancellationToken::new())).unwrap_err();
    assert!(error.to_string().contains("ISM1020"), "{error}");
}
