//! The engine against real servers: failover, silence, ejection and return, identities, wants.

#[path = "world.rs"]
mod world;

use mesh::program::*;
use proxy::upstream::{ATTEMPT_MAX, STAGGER};
use proxy::{Ask, ConnectFailed, Engine, Established, NotHere, Options, Outcome};
use runtime::metrics::Metrics;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use world::*;

/// Against a hang only: what is quick is told by its attempts.
const PATIENCE: Duration = Duration::from_secs(10);

fn tcp() -> Ask {
    Ask { alpn: b"istio".to_vec(), ..Ask::default() }
}

/// Who answers: the greeting's line.
async fn greeting(established: &mut Established) -> String {
    let mut line = Vec::new();
    loop {
        let byte = established.stream.read_u8().await.expect("a greeting comes");
        if byte == b'\n' {
            return String::from_utf8(line).unwrap();
        }
        line.push(byte);
    }
}

async fn connect(engine: &Engine) -> Established {
    let (name, ask) = (name(), tcp());
    let connected = tokio::time::timeout(PATIENCE, engine.connect(&name, &ask));
    connected.await.expect("no hang").unwrap()
}

/// Connects; also how long after the call the attempt that won was begun.
async fn connect_timed(engine: &Engine) -> (Established, Duration) {
    let begun = Instant::now();
    let established = connect(engine).await;
    let took = begun.elapsed();
    let won = established.attempts.iter().find(|a| a.problem.is_empty()).expect("one won");
    let waited = took.saturating_sub(won.after);
    (established, waited)
}

async fn ask(engine: &Engine) -> String {
    greeting(&mut connect(engine).await).await
}

/// Who was dialled, in order.
fn dialled(established: &Established) -> Vec<SocketAddr> {
    established.attempts.iter().map(|attempt| attempt.endpoint).collect()
}

fn health(engine: &Engine, address: SocketAddr) -> &'static str {
    let status = engine.status();
    let endpoint = status[0].endpoints.iter().find(|e| e.address == address);
    endpoint.expect("it is an endpoint").health
}

#[tokio::test]
async fn speaks_mutual_tls_with_the_workload() {
    let world = World::shared();
    let server = world.echo("west", "hello", "west").await;
    let engine = world.engine(watched(snapshot(&[&[pod(server.address, "west")]])));
    let mut established = engine.connect(&name(), &tcp()).await.unwrap();
    assert_eq!(greeting(&mut established).await, "west");
    assert_eq!(established.identity, Some(identity("west", "shop", "hello")));
    established.stream.write_all(b"hello").await.unwrap();
    established.stream.shutdown().await.unwrap();
    let mut back = String::new();
    established.stream.read_to_string(&mut back).await.unwrap();
    assert_eq!(back, "hello", "half-close lets the answer come");
}

#[tokio::test]
async fn another_identity_is_not_an_answer() {
    let world = World::shared();
    let wrong = world.echo("west", "intruder", "intruder").await;
    let stolen = world.echo("east", "hello", "of another cluster").await;
    let right = world.echo("west", "hello", "right").await;
    let all = [pod(wrong.address, "west"), pod(stolen.address, "west")];
    let engine = world.engine(watched(snapshot(&[&all, &[pod(right.address, "west")]])));
    for _ in 0..4 {
        assert_eq!(ask(&engine).await, "right");
    }
    let engine = world.engine(watched(snapshot(&[&all])));
    let error = engine.connect(&name(), &tcp()).await.unwrap_err();
    assert!(error.to_string().contains("its certificate is refused"), "{error}");
    assert_eq!(error.flag(), "UF");
}

#[tokio::test]
async fn what_refuses_costs_nothing() {
    let world = World::shared();
    let server = world.echo("west", "hello", "west").await;
    let port = Port::held();
    let dead = port.address;
    let engine =
        world.engine(watched(snapshot(&[&[pod(dead, "west")], &[pod(server.address, "west")]])));
    for _ in 0..20 {
        assert_eq!(ask(&engine).await, "west");
    }
    // Who meets the dead one first goes on at once, and not when the next attempt is due.
    let mut waited = Vec::new();
    for _ in 0..5 {
        let engine = world
            .engine(watched(snapshot(&[&[pod(dead, "west")], &[pod(server.address, "west")]])));
        let (established, begun) = connect_timed(&engine).await;
        assert_eq!(dialled(&established)[..2], [dead, server.address]);
        waited.push(begun);
    }
    // A slow machine may be late now and then; an engine that waits is late always.
    assert!(waited.iter().min() < Some(&STAGGER), "{waited:?}");
}

#[tokio::test]
async fn silence_costs_the_first_a_quarter_second_and_the_next_nothing() {
    let world = World::shared();
    let silent = silent().await;
    let server = world.echo("north", "hello", "north").await;
    let snapshot =
        snapshot(&[&[gateway(silent.address, "west")], &[gateway(server.address, "north")]]);
    let engine = world.engine(watched(snapshot));
    let (mut established, begun) = connect_timed(&engine).await;
    assert_eq!(greeting(&mut established).await, "north");
    assert_eq!(dialled(&established)[..2], [silent.address, server.address]);
    assert!(begun >= STAGGER - Duration::from_millis(10) && begun < ATTEMPT_MAX, "{begun:?}");
    for _ in 0..10 {
        let mut established = connect(&engine).await;
        assert_eq!(greeting(&mut established).await, "north");
        assert_eq!(dialled(&established)[0], server.address, "a known doubt must not cost again");
    }
}

#[tokio::test]
async fn a_black_hole_is_left_for_another_network_within_a_second() {
    let world = World::shared();
    let holes = [black_hole(), black_hole(), black_hole()];
    let server = world.echo("north", "hello", "north").await;
    let west: Vec<LbEndpoint> = holes.iter().map(|hole| gateway(hole.address, "west")).collect();
    let engine = world.engine(watched(snapshot(&[&west, &[gateway(server.address, "north")]])));
    let (mut established, begun) = connect_timed(&engine).await;
    assert_eq!(greeting(&mut established).await, "north");
    assert!(begun < ATTEMPT_MAX, "{begun:?}: {:?}", established.attempts);
    // The third attempt at the latest is abroad.
    let abroad = dialled(&established).iter().position(|address| *address == server.address);
    assert!((1..3).contains(&abroad.unwrap()), "{:?}", established.attempts);
}

#[tokio::test]
async fn a_dead_gateway_is_ejected_by_probes_and_comes_home() {
    let world = World::shared();
    // Both accounts on one socket: our test gateway answers probes as a gateway would.
    let port = Port::held();
    let address = port.address;
    let west = world.echo_at(address, "west", "isthmus-system", "isthmus-gateway", "west").await;
    let north = world.echo("north", "hello", "north").await;
    let mut snapshot =
        snapshot(&[&[gateway(west.address, "west")], &[gateway(north.address, "north")]]);
    // What stands behind west answers as the gateway itself, so one server can play both.
    let cluster = ResourceName::new(ResourceKind::Cluster, name().to_string());
    let Some(Resource::Cluster(settings)) = snapshot.program.get(&cluster).map(|r| &**r) else {
        panic!("the cluster is there")
    };
    let mut settings = settings.clone();
    let west_id = "west".parse().unwrap();
    settings
        .server_identities
        .insert(west_id, [identity("west", "isthmus-system", "isthmus-gateway")].into());
    snapshot.program.insert(cluster, Arc::new(Resource::Cluster(settings)));
    let engine = world.engine(watched(snapshot));
    assert_eq!(ask(&engine).await, "west");
    // A probe beside the request: only then is silence of this gateway a death.
    let limit = Instant::now() + PATIENCE;
    while west.count() < 2 {
        assert!(Instant::now() < limit, "nobody probes");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    west.kill().await;
    assert_eq!(ask(&engine).await, "north");
    let limit = Instant::now() + PATIENCE;
    while health(&engine, address) != "ejected" {
        assert!(Instant::now() < limit, "it is {}", health(&engine, address));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let mut established = connect(&engine).await;
    assert_eq!(greeting(&mut established).await, "north");
    assert_eq!(dialled(&established)[0], north.address, "the dead one is not even dialled");

    let back =
        world.echo_at(address, "west", "isthmus-system", "isthmus-gateway", "west again").await;
    let limit = Instant::now() + PATIENCE;
    while health(&engine, address) == "ejected" {
        assert!(Instant::now() < limit, "no probe brought it back");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(health(&engine, address), "returning", "its share comes home slowly");
    assert!(back.count() > 0);
}

#[tokio::test]
async fn a_pod_that_fails_is_set_aside_tried_once_and_taken_back() {
    let world = World::shared();
    let port = Port::held();
    let address = port.address;
    let other = world.echo("east", "hello", "other").await;
    let engine =
        world.engine(watched(snapshot(&[&[pod(address, "east"), pod(other.address, "east")]])));
    for _ in 0..3 {
        assert_eq!(ask(&engine).await, "other");
    }
    assert_ne!(health(&engine, address), "healthy");
    let back = world.echo_at(address, "east", "shop", "hello", "back").await;
    let limit = Instant::now() + PATIENCE;
    while ask(&engine).await != "back" {
        assert!(Instant::now() < limit, "it never came back: {:?}", engine.status());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(back.count() >= 1);
}

#[tokio::test]
async fn when_everything_is_set_aside_trying_goes_on_at_a_ration() {
    let world = World::shared();
    let port = Port::held();
    let address = port.address;
    let engine = world.engine(watched(snapshot(&[&[pod(address, "east")]])));
    let mut told = false;
    for _ in 0..6 {
        let error = engine.connect(&name(), &tcp()).await.unwrap_err();
        told |= matches!(&error, ConnectFailed::NoEndpoint { reason, .. }
            if reason == "1 of 1 are set aside after failures");
    }
    assert!(told, "who is over the ration is told why");
    let _back = world.echo_at(address, "east", "shop", "hello", "back").await;
    let limit = Instant::now() + PATIENCE;
    loop {
        if let Ok(mut established) = engine.connect(&name(), &tcp()).await {
            assert_eq!(greeting(&mut established).await, "back");
            break;
        }
        assert!(Instant::now() < limit, "the ration must find out");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn responses_eject_pods_and_never_gateways() {
    let world = World::shared();
    let (one, two) =
        (world.echo("east", "hello", "one").await, world.echo("west", "hello", "two").await);
    let tiers = [pod(one.address, "east"), gateway(two.address, "west")];
    let engine = world.engine(watched(snapshot(&[&tiers])));
    let upstream = engine.upstream(&name()).await.unwrap();
    for _ in 0..40 {
        let picked = upstream.pick(&[]).unwrap();
        picked.begin().report(Outcome::ServerError);
    }
    assert_eq!(health(&engine, one.address), "ejected");
    assert_ne!(health(&engine, two.address), "ejected");
    assert!(upstream.pick(&[]).unwrap().endpoint().gateway);
}

#[tokio::test]
async fn plaintext_stays_at_home_and_unannounced_clusters_are_never_dialled() {
    let world = World::shared();
    let plain = serve("127.0.0.1:0".parse().unwrap(), |mut stream| async move {
        let _ = stream.write_all(b"plain\n").await;
    })
    .await;
    let at_home = LbEndpoint { tls: false, ..pod(plain.address, "east") };
    let engine = world.engine(watched(snapshot(&[std::slice::from_ref(&at_home)])));
    let mut established = engine.connect(&name(), &tcp()).await.unwrap();
    assert_eq!(greeting(&mut established).await, "plain");
    assert_eq!(established.identity, None);

    for abroad in [
        LbEndpoint { tls: false, ..pod(plain.address, "west") },
        LbEndpoint { gateway: true, ..at_home },
    ] {
        let engine = world.engine(watched(snapshot(&[&[abroad]])));
        let error = engine.connect(&name(), &tcp()).await.unwrap_err();
        assert!(error.to_string().contains("plaintext beyond this network"), "{error}");
        assert_eq!(error.flag(), "UH");
    }
    let Some(Resource::Cluster(settings)) = snapshot(&[])
        .program
        .values()
        .find(|r| matches!(***r, Resource::Cluster(_)))
        .map(|r| (**r).clone())
    else {
        panic!("the cluster is there")
    };
    let engine = world.engine(watched(with(settings, &[&[pod(plain.address, "west")]])));
    let error = engine.connect(&name(), &tcp()).await.unwrap_err();
    assert!(error.to_string().contains("no identity that may answer"), "{error}");
    assert_eq!(plain.count(), 1, "only the first was ever dialled");
}

#[tokio::test]
async fn metadata_addresses_are_never_dialled() {
    let world = World::shared();
    let metadata = pod("169.254.169.254:80".parse().unwrap(), "east");
    let engine = world.engine(watched(snapshot(&[&[metadata]])));
    let error = engine.connect(&name(), &tcp()).await.unwrap_err();
    assert!(error.to_string().contains("not an address of a workload"), "{error}");
}

#[tokio::test]
async fn connections_have_a_limit() {
    let world = World::shared();
    let server = world.echo("east", "hello", "one").await;
    let mut settings = None;
    for resource in snapshot(&[&[pod(server.address, "east")]]).program.values() {
        if let Resource::Cluster(cluster) = &**resource {
            settings = Some(cluster.clone());
        }
    }
    let mut settings = settings.unwrap();
    settings.pool.max_connections = 1;
    let engine = world.engine(watched(with(settings, &[&[pod(server.address, "east")]])));
    let held = engine.connect(&name(), &tcp()).await.unwrap();
    let error = engine.connect(&name(), &tcp()).await.unwrap_err();
    assert_eq!(error.flag(), "UO");
    drop(held);
    engine.connect(&name(), &tcp()).await.unwrap();
}

#[tokio::test]
async fn health_survives_a_new_program_and_new_endpoints_are_seen() {
    let world = World::shared();
    let port = Port::held();
    let dead = port.address;
    let (one, two) =
        (world.echo("east", "hello", "one").await, world.echo("east", "hello", "two").await);
    let first = [pod(dead, "east"), pod(one.address, "east")];
    let snapshots = watch::Sender::new(Arc::new(snapshot(&[&first])));
    let engine = world.engine(snapshots.subscribe());
    let upstream = engine.upstream(&name()).await.unwrap();
    for _ in 0..3 {
        assert_eq!(ask(&engine).await, "one");
    }
    let before = health(&engine, dead);
    assert_ne!(before, "healthy");
    snapshots.send_replace(Arc::new(snapshot(&[&[pod(dead, "east"), pod(two.address, "east")]])));
    assert_eq!(health(&engine, dead), before);
    let mut established = upstream.connect(&tcp()).await.unwrap();
    assert_eq!(greeting(&mut established).await, "two", "a held handle follows the program");
    snapshots.send_replace(Arc::new(Snapshot::default()));
    let error = upstream.connect(&tcp()).await.unwrap_err();
    assert!(error.to_string().contains("gone from the configuration"), "{error}");
}

fn wanting(
    world: &World,
    snapshot: watch::Receiver<Arc<Snapshot>>,
) -> (Engine, mpsc::Receiver<Want>) {
    let (want, wanted) = mpsc::channel(16);
    let engine = Engine::new(Options {
        metrics: Metrics::new(),
        svid: world.svid("east", "shop", "client"),
        bundle: world.bundle(),
        cluster: "east".parse().unwrap(),
        network: "east".parse().unwrap(),
        snapshot,
        want: Some(want),
    });
    (engine, wanted)
}

#[tokio::test(start_paused = true)]
async fn a_first_use_waits_a_second_while_connected_and_not_at_all_else() {
    let world = World::shared();
    let snapshots =
        watch::Sender::new(Arc::new(Snapshot { connected: true, ..Snapshot::default() }));
    let (engine, mut wanted) = wanting(world, snapshots.subscribe());
    let listener = ResourceName::outbound("240.240.7.2".parse().unwrap(), 80);

    let begun = Instant::now();
    let timed_out = engine.resource(&listener).await.unwrap_err();
    assert_eq!(timed_out, NotHere::TimedOut(listener.clone()));
    assert_eq!(begun.elapsed(), Duration::from_secs(1));
    assert_eq!(wanted.recv().await.unwrap(), Want::Subscribe(listener.clone()));
    engine.resource(&listener).await.unwrap_err();
    assert!(wanted.try_recv().is_err(), "asked for once is enough");

    let mut absent = Snapshot { connected: true, ..Snapshot::default() };
    absent.absent.insert(listener.clone());
    snapshots.send_replace(Arc::new(absent));
    assert_eq!(engine.resource(&listener).await.unwrap_err(), NotHere::Absent(listener));

    snapshots.send_replace(Arc::new(Snapshot::default()));
    let begun = Instant::now();
    let other = ResourceName::outbound("240.240.7.3".parse().unwrap(), 80);
    let error = engine.resource(&other).await.unwrap_err();
    assert_eq!(error, NotHere::NotConnected(other.clone()));
    assert_eq!(begun.elapsed(), Duration::ZERO);
    assert_eq!(
        wanted.recv().await.unwrap(),
        Want::Subscribe(other),
        "it is followed once somebody answers"
    );
}

#[tokio::test]
async fn a_destination_is_asked_for_with_its_endpoints_and_used_as_it_comes() {
    let world = World::shared();
    let server = world.echo("east", "hello", "one").await;
    let snapshots =
        watch::Sender::new(Arc::new(Snapshot { connected: true, ..Snapshot::default() }));
    let (engine, mut wanted) = wanting(world, snapshots.subscribe());
    let asking = tokio::spawn(async move { ask(&engine).await });
    let mut kinds = Vec::new();
    for _ in 0..2 {
        let Some(Want::Subscribe(name)) = wanted.recv().await else {
            panic!("a name is asked for")
        };
        kinds.push(name.kind);
    }
    kinds.sort();
    assert_eq!(kinds, [ResourceKind::Cluster, ResourceKind::Endpoints]);
    snapshots.send_replace(Arc::new(snapshot(&[&[pod(server.address, "east")]])));
    assert_eq!(asking.await.unwrap(), "one");
}
