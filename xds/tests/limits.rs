//! What one identity may take of a control plane, over all its streams: each limit with two streams
//! of it, a neighbour who is not hurt, and what is given back; and the limits of one stream that
//! need nobody else. Each is read where metrics read it.

mod support;

use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse,
};
use envoy_types::pb::google::rpc;
use mesh::program::*;
use std::time::{Duration, Instant};
use support::plane::{Plane, World, hello, node, within};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};
use xds::codec::type_url;
use xds::node::Node;
use xds::serve::{Limited, Shares};
use xds::session::server::Limits;
use xds::subscribe;

/// One stream, in the hands of a test.
struct Talk {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: Streaming<DeltaDiscoveryResponse>,
}

impl Talk {
    /// Another pod of `account`.
    async fn open(plane: &Plane, account: &str, pod: &str) -> Result<Self, Status> {
        let node = Node { account: account.into(), pod: pod.into(), ..node() };
        let first = DeltaDiscoveryRequest { node: Some(node.to_proto()), ..subscribe_to(&[]) };
        Self::begin(plane, account, Some(first)).await
    }

    async fn begin(
        plane: &Plane,
        account: &str,
        first: Option<DeltaDiscoveryRequest>,
    ) -> Result<Self, Status> {
        let peer = format!("spiffe://east.mesh/ns/shop/sa/{account}").parse().unwrap();
        let channel = within(subscribe::channel(&plane.connector(Some(peer)))).await.unwrap();
        let (requests, outgoing) = mpsc::channel(1);
        if let Some(first) = first {
            requests.send(first).await.unwrap();
        }
        let mut client = AggregatedDiscoveryServiceClient::new(channel);
        let opened = client.delta_aggregated_resources(ReceiverStream::new(outgoing));
        let responses = within(opened).await?.into_inner();
        Ok(Self { requests, responses })
    }

    async fn send(&self, request: DeltaDiscoveryRequest) {
        within(self.requests.send(request)).await.unwrap();
    }

    async fn heard(&mut self) -> Result<DeltaDiscoveryResponse, Status> {
        let response = within(self.responses.message()).await?;
        Ok(response.expect("the stream has not ended"))
    }

    /// Asks for secrets that do not exist and hears so.
    async fn takes(&mut self, names: &[&str]) -> Result<(), Status> {
        self.send(subscribe_to(names)).await;
        let heard = self.heard().await?;
        assert_eq!(heard.removed_resources.len(), names.len());
        self.send(answer(&heard.nonce, None)).await;
        Ok(())
    }
}

fn subscribe_to(names: &[&str]) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: type_url(ResourceKind::Secret).to_owned(),
        resource_names_subscribe: names.iter().map(|&name| name.to_owned()).collect(),
        ..Default::default()
    }
}

fn answer(nonce: &str, refusal: Option<&str>) -> DeltaDiscoveryRequest {
    let refusal = refusal.map(|why| rpc::Status { message: why.into(), ..Default::default() });
    DeltaDiscoveryRequest {
        response_nonce: nonce.to_owned(),
        error_detail: refusal,
        ..subscribe_to(&[])
    }
}

fn plane(shares: Shares) -> Plane {
    Plane::with(&World::new(Program::new()), shares)
}

fn met(plane: &Plane, limit: Limited) -> u64 {
    plane.sessions.limited()[&limit]
}

#[track_caller]
fn until(what: &str, mut fine: impl FnMut() -> bool) -> impl Future<Output = ()> {
    let at = std::panic::Location::caller();
    async move {
        let start = tokio::time::Instant::now();
        while !fine() {
            assert!(start.elapsed() < Duration::from_secs(60), "{what} in vain, {at}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

#[tokio::test]
async fn streams_of_one_identity_are_limited_over_its_pods() {
    let plane = plane(Shares { streams_per_identity: 2, ..Shares::default() });
    let first = Talk::open(&plane, "hello", "hello-0").await.unwrap();
    let _second = Talk::open(&plane, "hello", "hello-1").await.unwrap();
    let refused = Talk::open(&plane, "hello", "hello-2").await.err().expect("a third stream");
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert!(refused.message().contains("ISM6033"), "{refused}");
    assert!(refused.message().contains(&hello().to_string()), "{refused}");
    assert_eq!(met(&plane, Limited::StreamsPerIdentity), 1);
    assert_eq!(met(&plane, Limited::StreamsPerWorkload), 0);
    let _other = Talk::open(&plane, "other", "other-0").await.expect("it has streams of its own");

    drop(first);
    until("the place is given back", || plane.sessions.list().len() == 2).await;
    let _again = Talk::open(&plane, "hello", "hello-2").await.expect("a place is free");
    assert!(Talk::open(&plane, "hello", "hello-3").await.is_err(), "and it was the only one");
}

#[tokio::test]
async fn names_of_one_identity_are_limited_over_its_streams() {
    let plane = plane(Shares { names_per_identity: 5, ..Shares::default() });
    let mut first = Talk::open(&plane, "hello", "hello-0").await.unwrap();
    let mut second = Talk::open(&plane, "hello", "hello-1").await.unwrap();
    first.takes(&["a", "b", "c"]).await.unwrap();
    // The same names are as dear on another stream.
    second.takes(&["a", "b"]).await.unwrap();
    let refused = second.takes(&["c"]).await.expect_err("a sixth name");
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert!(refused.message().contains("ISM6039"), "{refused}");
    assert!(refused.message().contains(&hello().to_string()), "{refused}");
    assert_eq!(met(&plane, Limited::NamesPerIdentity), 1);
    assert_eq!(met(&plane, Limited::Names), 0);
    let mut other = Talk::open(&plane, "other", "other-0").await.unwrap();
    other.takes(&["a", "b", "c", "d", "e"]).await.expect("it has names of its own");

    // What the ended stream had is given back; the first one never lost anything.
    until("the stream is gone", || plane.sessions.list().len() == 2).await;
    first.takes(&["d", "e"]).await.expect("two names were given back");
    // So is what is no longer asked for.
    let fewer = DeltaDiscoveryRequest {
        resource_names_unsubscribe: vec!["d".into(), "e".into()],
        ..subscribe_to(&[])
    };
    first.send(fewer).await;
    let asked = |account: &str| -> usize {
        let sessions = plane.sessions.list();
        let of = sessions.iter().filter(|session| session.identity.account == account);
        of.flat_map(|session| &session.types).map(|it| it.subscribed).sum()
    };
    until("fewer are asked for", || asked("hello") == 3).await;
    let mut third = Talk::open(&plane, "hello", "hello-2").await.unwrap();
    third.takes(&["a", "b"]).await.expect("two names were given back");
    assert!(third.takes(&["c"]).await.is_err(), "and no more than two");
    assert_eq!(met(&plane, Limited::NamesPerIdentity), 2);
}

#[tokio::test]
async fn refusals_of_one_identity_are_limited_over_its_streams() {
    let shares = Shares::default();
    let each = u64::from(shares.nack_burst) * 6 / 10;
    let plane = plane(shares);
    let rejects = || plane.sessions.counted()[&ResourceKind::Secret].rejects;
    let refuse = |talk: &Talk| {
        let requests = talk.requests.clone();
        tokio::spawn(async move {
            for _ in 0..each {
                requests.send(answer("any", Some("no"))).await.unwrap();
            }
        })
    };
    let start = Instant::now();
    let first = Talk::open(&plane, "hello", "hello-0").await.unwrap();
    within(refuse(&first)).await.unwrap();
    until("the first one's are read", || rejects() == each).await;
    assert_eq!(met(&plane, Limited::Refusals), 0, "one stream alone stays below");

    let second = Talk::open(&plane, "hello", "hello-1").await.unwrap();
    let refusing = refuse(&second);
    until("the limit is met", || met(&plane, Limited::Refusals) > 0).await;
    let forgiven = start.elapsed().as_secs() + 1;
    let read = rejects();
    let most = u64::from(shares.nack_burst) + forgiven;
    assert!((u64::from(shares.nack_burst)..=most).contains(&read), "{read} were read");

    // A neighbour may refuse as much as one may, and is read meanwhile.
    let before = met(&plane, Limited::Refusals);
    let other = Talk::open(&plane, "other", "other-0").await.unwrap();
    within(refuse(&other)).await.unwrap();
    until("the neighbour's are read", || rejects() >= read + each).await;
    assert!(rejects() < 2 * each + each, "the second one's are not all read yet");
    assert!(met(&plane, Limited::Refusals) - before <= start.elapsed().as_secs() + 1);

    // Left unread is not cut off: a refusal is forgiven each second, and then the next is read.
    let read = rejects();
    until("one more is read", || rejects() > read).await;
    refusing.abort();
}

#[tokio::test]
async fn the_limits_that_are_shipped_are_of_use() {
    let (shares, stream) = (Shares::default(), Limits::default());
    assert!(shares.streams_per_identity * 8 <= shares.streams, "nobody takes all streams");
    assert!(shares.names_per_identity > stream.names, "one full stream is not all of an identity");
    let free = stream.names * shares.streams_per_identity;
    assert!(shares.names_per_identity < free, "a limit that is never met");
    let names: std::collections::BTreeSet<_> = Limited::ALL.map(Limited::name).into();
    assert_eq!(names.len(), Limited::ALL.len(), "each limit has a name of its own");
    for (place, limit) in Limited::ALL.into_iter().enumerate() {
        assert_eq!(place, limit as usize, "{limit:?} is counted as another");
    }
}

#[tokio::test(start_paused = true)]
async fn who_asks_for_nothing_is_not_waited_for() {
    let plane = plane(Shares::default());
    let start = tokio::time::Instant::now();
    let over = Talk::begin(&plane, "hello", None).await.err().expect("it stays silent");
    assert_eq!(over.code(), Code::DeadlineExceeded);
    assert!(over.message().contains("ISM6036"), "{over}");
    assert!(start.elapsed() >= Duration::from_secs(10), "{:?}", start.elapsed());
    assert_eq!(met(&plane, Limited::FirstRequest), 1);
}

#[tokio::test]
async fn a_message_that_is_too_long_is_counted() {
    let plane = plane(Shares::default());
    let mut talk = Talk::open(&plane, "hello", "hello-0").await.unwrap();
    let name = "x".repeat(4 << 20);
    talk.send(subscribe_to(&[&name])).await;
    let over = talk.heard().await.expect_err("it is not read");
    assert_eq!(over.code(), Code::OutOfRange, "{over}");
    assert_eq!(met(&plane, Limited::MessageBytes), 1);
    assert_eq!(met(&plane, Limited::NameBytes), 0);
}

#[tokio::test(start_paused = true)]
async fn who_does_not_read_is_left_after_a_while() {
    let world = World::new(Program::new());
    // More than the windows of HTTP/2 and the pipe hold together.
    for number in 0..64 {
        let name = ResourceName::new(ResourceKind::Secret, format!("root-{number}"));
        let root =
            ValidationContext { name: name.name.clone(), root_certificates: "x".repeat(512 << 10) };
        world.edit(&name, Some(Resource::Secret(root)));
    }
    let plane = Plane::with(&world, Shares::default());
    let talk = Talk::open(&plane, "hello", "hello-0").await.unwrap();
    talk.send(subscribe_to(&["*"])).await;
    // It answers, so that more is sent, and reads nothing of it: nonces are no secret.
    let requests = talk.requests.clone();
    tokio::spawn(async move {
        for nonce in 1.. {
            tokio::time::sleep(Duration::from_millis(20)).await;
            if requests.send(answer(&format!("{nonce:x}"), None)).await.is_err() {
                return;
            }
        }
    });
    let start = tokio::time::Instant::now();
    until("it is left", || met(&plane, Limited::Unread) == 1).await;
    assert!(start.elapsed() >= Duration::from_secs(30), "{:?}", start.elapsed());
    until("its place is free", || plane.sessions.list().is_empty()).await;
}
