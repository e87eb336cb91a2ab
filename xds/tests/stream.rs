//! Server and subscriber on real gRPC streams over in-memory pipes.

mod support;

use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use envoy_types::pb::google::rpc::Status;
use mesh::program::*;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use support::plane::{Plane, World, hello, node, within};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use xds::issue::{self, Refused, RequestFailed, TurnedAway};
use xds::node::Node;
use xds::serve::{self, Counted};
use xds::session::server::Limits;
use xds::subscribe::{self, Subscription};

#[track_caller]
fn until(
    subscription: &Subscription,
    fine: impl Fn(&Snapshot) -> bool,
) -> impl Future<Output = Arc<Snapshot>> {
    let mut snapshot = subscription.snapshot.clone();
    within(async move {
        let shown = snapshot.wait_for(|snapshot| fine(snapshot)).await.unwrap();
        Arc::clone(&shown)
    })
}

async fn want(subscription: &Subscription, name: &ResourceName) {
    subscription.want.send(Want::Subscribe(name.clone())).await.unwrap();
}

fn listener() -> ResourceName {
    ResourceName::outbound("240.240.7.2".parse().unwrap(), 80)
}

fn of(kind: ResourceKind, name: &ClusterName) -> ResourceName {
    ResourceName::new(kind, name.to_string())
}

#[tokio::test]
async fn a_listener_brings_its_route_cluster_and_endpoints_and_takes_them_along() {
    let program = support::program();
    let world = World::new(program.clone());
    let plane = Plane::start(&world);
    let end = CancellationToken::new();
    let proxy = subscribe::start(node(), plane.connector(Some(hello())), end.clone());
    until(&proxy, |s| s.connected).await;
    want(&proxy, &listener()).await;
    let shown = until(&proxy, |s| s.program.contains_key(&listener())).await;
    let name = support::outbound(80, "hello.shop.global");
    let expected: BTreeSet<ResourceName> = [
        listener(),
        of(ResourceKind::Route, &name),
        of(ResourceKind::Cluster, &name),
        of(ResourceKind::Endpoints, &name),
    ]
    .into();
    assert_eq!(shown.program.keys().cloned().collect::<BTreeSet<_>>(), expected);
    assert!(shown.program.iter().all(|(name, value)| program[name] == *value));

    let absent = ResourceName::outbound("240.240.9.9".parse().unwrap(), 1);
    want(&proxy, &absent).await;
    until(&proxy, |s| s.absent.contains(&absent)).await;

    let session = plane.sessions.list().remove(0);
    assert_eq!((session.proxy, session.identity), (node().id(), hello()));
    assert_eq!(session.types.iter().map(|it| it.resources).sum::<usize>(), 4);
    let counted = plane.sessions.counted();
    assert_eq!(counted[&ResourceKind::Cluster], Counted { pushes: 1, rejects: 0 });
    assert_eq!((counted[&ResourceKind::Zone].pushes, plane.sessions.slowed()), (0, 0));

    proxy.want.send(Want::Unsubscribe(listener())).await.unwrap();
    until(&proxy, |s| s.program.is_empty()).await;
    end.cancel();
}

#[tokio::test]
async fn a_change_reaches_the_proxy_and_nothing_else_is_looked_up() {
    let world = World::new(support::program());
    let plane = Plane::start(&world);
    let proxy = subscribe::start(node(), plane.connector(Some(hello())), CancellationToken::new());
    let names: Vec<_> = world.program.lock().unwrap().keys().cloned().collect();
    for name in names {
        want(&proxy, &name).await;
    }
    let whole = support::program();
    until(&proxy, |s| s.program == whole).await;
    let name = support::outbound(80, "hello.shop.global");
    let mut endpoints = support::endpoints(name.clone());
    endpoints.groups.truncate(1);
    let key = of(ResourceKind::Endpoints, &name);
    let looked_up = world.looked_up.load(Ordering::Relaxed);
    world.edit(&key, Some(Resource::Endpoints(endpoints.clone())));
    until(&proxy, |s| *s.program[&key] == Resource::Endpoints(endpoints.clone())).await;
    assert_eq!(world.looked_up.load(Ordering::Relaxed) - looked_up, 1);
    // What nobody asked for wakes nobody up.
    world.edit(&ResourceName::new(ResourceKind::Cluster, "outbound|1||x.y.global"), None);
    world.edit(&key, None);
    until(&proxy, |s| s.absent.contains(&key)).await;
    assert_eq!(world.looked_up.load(Ordering::Relaxed) - looked_up, 2);
}

#[tokio::test]
async fn a_listener_is_shown_with_its_new_cluster_and_not_before() {
    let name = support::outbound(5432, "db.shop.global");
    let key = ResourceName::outbound("240.240.7.3".parse().unwrap(), 5432);
    let world = World::new(support::program());
    let plane = Plane::start(&world);
    let proxy = subscribe::start(node(), plane.connector(Some(hello())), CancellationToken::new());
    let other = support::outbound(5432, "other.shop.global");
    let seen = proxy.snapshot.clone();
    let torn = Arc::new(AtomicBool::new(false));
    let watching = {
        let (torn, key) = (Arc::clone(&torn), key.clone());
        let mut seen = seen.clone();
        tokio::spawn(async move {
            while seen.changed().await.is_ok() {
                let snapshot = Arc::clone(&seen.borrow_and_update());
                let Some(Resource::Listener(Listener::Outbound(listener))) =
                    snapshot.program.get(&key).map(|it| &**it)
                else {
                    continue;
                };
                let OutboundTarget::Tcp { cluster } = &listener.target else { unreachable!() };
                for kind in [ResourceKind::Cluster, ResourceKind::Endpoints] {
                    if !snapshot.program.contains_key(&of(kind, cluster)) {
                        torn.store(true, Ordering::Relaxed);
                    }
                }
            }
        })
    };
    want(&proxy, &key).await;
    until(&proxy, |s| s.program.contains_key(&key)).await;
    let Resource::Listener(Listener::Outbound(now)) = &*support::program()[&key] else {
        unreachable!()
    };
    let target = OutboundTarget::Tcp { cluster: other.clone() };
    let next = Resource::Listener(Listener::Outbound(OutboundListener { target, ..now.clone() }));
    let (cluster, members) = (
        support::cluster(other.clone(), mesh::name::Protocol::Tcp),
        support::endpoints(other.clone()),
    );
    world.edit(&of(ResourceKind::Endpoints, &other), Some(Resource::Endpoints(members)));
    world.edit(&of(ResourceKind::Cluster, &other), Some(Resource::Cluster(cluster)));
    world.edit(&key, Some(next.clone()));
    let shown = until(&proxy, |s| *s.program[&key] == next).await;
    // What it replaced went with the switch.
    assert!(!shown.program.contains_key(&of(ResourceKind::Cluster, &name)));
    assert!(!torn.load(Ordering::Relaxed), "a listener was shown without what it refers to");
    watching.abort();
}

#[tokio::test]
async fn the_last_good_program_outlives_the_control_plane() {
    let world = World::new(support::program());
    let mut plane = Plane::start(&world);
    let proxy = subscribe::start(node(), plane.connector(Some(hello())), CancellationToken::new());
    want(&proxy, &listener()).await;
    let before = until(&proxy, |s| s.program.contains_key(&listener())).await;
    plane.stop();
    let during = until(&proxy, |s| !s.connected).await;
    assert_eq!(during.program, before.program);
    // Changed while nobody was listening.
    let name = support::outbound(80, "hello.shop.global");
    let key = of(ResourceKind::Cluster, &name);
    let changed = Resource::Cluster(Cluster {
        connect_timeout_ms: 7,
        ..support::cluster(name, mesh::name::Protocol::Http)
    });
    world.edit(&key, Some(changed.clone()));
    plane.again(&world);
    until(&proxy, |s| s.connected && *s.program[&key] == changed).await;
}

#[tokio::test]
async fn a_start_from_disk_shows_what_was_known_and_subscribes_again() {
    let mut known = support::program();
    let gone = ResourceName::gateway();
    let world = World::new(known.clone());
    world.edit(&gone, None);
    let plane = Plane::start(&world);
    plane.stop();
    let mut plane = plane;
    let end = CancellationToken::new();
    let connector = plane.connector(Some(hello()));
    let proxy = subscribe::start_from(node(), connector, known.clone(), end);
    let shown = Arc::clone(&proxy.snapshot.borrow());
    assert_eq!((&shown.program, shown.connected), (&known, false));
    plane.again(&world);
    known.remove(&gone);
    until(&proxy, |s| s.connected && s.absent.contains(&gone)).await;
    // The gateway's clusters went with its listener; all the rest stays.
    let shown = until(&proxy, |s| !s.program.contains_key(&gone)).await;
    assert!(shown.program.contains_key(&listener()));
}

#[tokio::test]
async fn who_asks_too_often_is_slowed_and_who_refuses_is_counted() {
    let world = World::new(support::program());
    let plane = Plane::start(&world);
    let channel = subscribe::channel(&plane.connector(Some(hello()))).await.unwrap();
    let mut client = AggregatedDiscoveryServiceClient::new(channel);
    let (send, requests) = mpsc::channel(1);
    let type_url = xds::codec::type_url(ResourceKind::Secret).to_owned();
    let ask = DeltaDiscoveryRequest {
        node: Some(node().to_proto()),
        type_url: type_url.clone(),
        resource_names_subscribe: vec!["none-0".into()],
        ..Default::default()
    };
    send.send(ask.clone()).await.unwrap();
    let answers = client.delta_aggregated_resources(ReceiverStream::new(requests)).await;
    let first = within(answers.unwrap().into_inner().message().map(Result::unwrap)).await.unwrap();
    let refusal = DeltaDiscoveryRequest {
        type_url,
        response_nonce: first.nonce,
        error_detail: Some(Status { message: "no".into(), ..Default::default() }),
        ..Default::default()
    };
    send.send(refusal).await.unwrap();

    // 200 more than a burst, at one per 5 ms: a second, and nothing is lost.
    let limits = Limits::default();
    let (all, start) = (limits.request_burst as usize + 200, Instant::now());
    let asking = tokio::spawn(async move {
        for number in 1..all {
            let names = vec![format!("none-{number}")];
            let more = DeltaDiscoveryRequest { resource_names_subscribe: names, ..ask.clone() };
            send.send(more).await.unwrap();
        }
        send
    });
    let mut every = tokio::time::interval(Duration::from_millis(5));
    while plane.sessions.list()[0].types[0].subscribed < all {
        assert!(start.elapsed() < Duration::from_secs(30), "{:?}", plane.sessions.list());
        every.tick().await;
    }
    let took = start.elapsed();
    assert!(took >= limits.request_every * 190, "{all} requests were read in {took:?}");
    assert!(plane.sessions.slowed() > 0);
    let secrets = plane.sessions.counted()[&ResourceKind::Secret];
    assert!(secrets.rejects == 1 && secrets.pushes > 0, "{secrets:?}");
    drop(asking.await.unwrap());
}

#[tokio::test]
async fn a_stranger_and_a_liar_are_refused() {
    let world = World::new(support::program());
    let plane = Plane::start(&world);
    for (peer, node) in [
        (None, node()),
        (Some("spiffe://east.mesh/ns/shop/sa/other".parse().unwrap()), node()),
        (Some(hello()), Node { cluster: "East!".into(), ..node() }),
    ] {
        let end = CancellationToken::new();
        let proxy = subscribe::start(node, plane.connector(peer), end.clone());
        want(&proxy, &listener()).await;
        let shown = tokio::time::timeout(
            Duration::from_millis(300),
            proxy.snapshot.clone().wait_for(|s| s.connected).map(|_| ()),
        )
        .await;
        assert!(shown.is_err(), "connected, and should not be");
        assert!(plane.sessions.list().is_empty());
        end.cancel();
    }
}

trait Map: Future + Sized {
    fn map<T>(self, with: impl FnOnce(Self::Output) -> T) -> impl Future<Output = T> {
        async move { with(self.await) }
    }
}
impl<F: Future> Map for F {}

#[tokio::test]
async fn a_certificate_is_issued_to_whom_the_token_vouches_for() {
    let world = World::new(Program::new());
    let plane = Plane::start(&world);
    let connector = plane.connector(None);
    let day = Duration::from_secs(86_400);
    let chain = within(issue::request(&connector, "good\n", "CSR", day)).await.unwrap();
    assert_eq!(chain, ["leaf of CSR", "root"]);
    let refused = within(issue::request(&connector, "bad", "CSR", day)).await.unwrap_err();
    let RequestFailed::Refused(Refused::Unauthenticated(why)) = refused else {
        panic!("{refused}");
    };
    assert!(why.contains("ISM3999"), "{why}");
    let long = "x".repeat(issue::CSR_MAX + 1);
    let refused = within(issue::request(&connector, "good", &long, day)).await.unwrap_err();
    assert!(matches!(refused, RequestFailed::Refused(Refused::Invalid(_))), "{refused}");
    let longer = "x".repeat(2 * issue::CSR_MAX);
    within(issue::request(&connector, "good", &longer, day)).await.unwrap_err();
    let token = "x".repeat(issue::TOKEN_MAX + 1);
    within(issue::request(&connector, &token, "CSR", day)).await.unwrap_err();
    let limits = [TurnedAway::CsrBytes, TurnedAway::MessageBytes, TurnedAway::TokenBytes];
    assert_eq!(*plane.issuer.turned_away.lock().unwrap(), limits, "each is counted as itself");
    plane.stop();
    let refused = within(issue::request(&connector, "good", "CSR", day)).await.unwrap_err();
    assert!(matches!(refused, RequestFailed::Unreachable(_)), "{refused}");
}

#[tokio::test]
async fn state_of_the_world_is_served_and_refusals_of_one_identity_are_limited() {
    let world = World::new(support::program());
    let plane = Plane::start(&world);
    let channel = within(subscribe::channel(&plane.connector(Some(hello())))).await.unwrap();
    let mut client = AggregatedDiscoveryServiceClient::new(channel);
    let (send, requests) = mpsc::channel(1);
    let ask = DiscoveryRequest {
        node: Some(node().to_proto()),
        type_url: xds::codec::type_url(ResourceKind::Cluster).to_owned(),
        ..Default::default()
    };
    send.send(ask.clone()).await.unwrap();
    let answers = client.stream_aggregated_resources(ReceiverStream::new(requests)).await;
    let mut answers = answers.unwrap().into_inner();
    let first = within(answers.message()).await.unwrap().unwrap();
    let clusters = |name: &&ResourceName| name.kind == ResourceKind::Cluster;
    let expected = world.program.lock().unwrap().keys().filter(clusters).count();
    assert_eq!(first.resources.len(), expected);

    let refusal = DiscoveryRequest {
        response_nonce: first.nonce,
        error_detail: Some(Status { message: "no".into(), ..Default::default() }),
        ..ask
    };
    let refusing = tokio::spawn(async move {
        // Until the stream is left unread: then the window fills, and this waits.
        while send.send(refusal.clone()).await.is_ok() {}
    });
    let limit = serve::Limited::Refusals;
    let mut every = tokio::time::interval(Duration::from_millis(5));
    let start = Instant::now();
    while plane.sessions.limited()[&limit] == 0 {
        assert!(start.elapsed() < Duration::from_secs(30), "{:?}", plane.sessions.limited());
        every.tick().await;
    }
    let refused = plane.sessions.counted()[&ResourceKind::Cluster].rejects;
    assert!((100..110).contains(&refused), "{refused} refusals were read");
    refusing.abort();
}

#[tokio::test]
async fn one_pod_has_few_streams_and_the_limit_has_a_name() {
    let world = World::new(support::program());
    let plane = Plane::start(&world);
    let mut open = Vec::new();
    let mut refused = None;
    for _ in 0..16 {
        let channel = within(subscribe::channel(&plane.connector(Some(hello())))).await.unwrap();
        let mut client = AggregatedDiscoveryServiceClient::new(channel);
        let (send, requests) = mpsc::channel(1);
        let ask = DiscoveryRequest {
            node: Some(node().to_proto()),
            type_url: xds::codec::type_url(ResourceKind::Cluster).to_owned(),
            ..Default::default()
        };
        send.send(ask).await.unwrap();
        match within(client.stream_aggregated_resources(ReceiverStream::new(requests))).await {
            Ok(answers) => open.push((send, answers)),
            Err(status) => {
                refused = Some(status);
                break;
            }
        }
    }
    let refused = refused.expect("the number of streams is limited");
    assert_eq!(refused.code(), tonic::Code::ResourceExhausted);
    assert_eq!(open.len(), plane.sessions.list().len());
    assert_eq!(plane.sessions.limited()[&serve::Limited::StreamsPerWorkload], 1);
}
