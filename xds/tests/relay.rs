//! What an agent's relay does for a foreign proxy, on gRPC streams over in-memory pipes: secrets anew
//! on the stream that asked for them, no waiting for a control plane that is stuck, and whether the
//! proxy has taken the listeners it serves by.

#[path = "support/replicas.rs"]
mod replicas;

use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{Secret, secret::Type};
use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DiscoveryRequest, DiscoveryResponse,
};
use envoy_types::pb::envoy::service::secret::v3::secret_discovery_service_client::SecretDiscoveryServiceClient;
use mesh::program::ResourceKind;
use prost::Message as _;
use replicas::{CLUSTER, Replica, SILENT, WELL};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::DuplexStream;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_stream::wrappers::{ReceiverStream, UnboundedReceiverStream};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tonic::{Code, Streaming};
use xds::codec::type_url;
use xds::relay::{self, Heard, KeyPair, Limited, WATCHDOG};
use xds::subscribe::{self, Connector};

fn pair(of: &str) -> Arc<KeyPair> {
    let text = |what: &str| format!("{what} {of}");
    Arc::new(KeyPair { chain: text("chain"), key: text("key"), roots: "roots".into() })
}

/// A relay with its proxy's channel. `replicas` are dialled in turn, the last one from then on.
struct Agent {
    proxy: Channel,
    certificate: watch::Sender<Arc<KeyPair>>,
    heard: watch::Receiver<Heard>,
    dialled: Arc<AtomicUsize>,
    end: CancellationToken,
}

impl Agent {
    async fn start(replicas: &'static [Replica]) -> Self {
        let (upward, dialled) = replicas::dial(replicas);
        let (door, incoming) = mpsc::unbounded_channel::<DuplexStream>();
        let certificate = watch::Sender::new(pair("one"));
        let (heard, hears) = watch::channel(Heard::default());
        let end = CancellationToken::new();
        tokio::spawn(relay::serve(
            UnboundedReceiverStream::new(incoming),
            upward,
            certificate.subscribe(),
            heard,
            end.clone(),
        ));
        let local = Connector::new(move || {
            let (near, far) = tokio::io::duplex(64 * 1024);
            let sent = door.send(far).map_err(|_| io::ErrorKind::ConnectionRefused.into());
            async move { sent.map(|()| near) }
        });
        let proxy = subscribe::channel(&local).await.unwrap();
        Self { proxy, certificate, heard: hears, dialled, end }
    }

    /// Opens ADS and asks for all clusters.
    async fn ask(&self) -> Stream {
        let (requests, outgoing) = mpsc::channel(4);
        requests.send(request(ResourceKind::Cluster, &[], "")).await.unwrap();
        let mut client = AggregatedDiscoveryServiceClient::new(self.proxy.clone());
        let opened = client.stream_aggregated_resources(ReceiverStream::new(outgoing)).await;
        (requests, opened.unwrap().into_inner())
    }
}

type Stream = (mpsc::Sender<DiscoveryRequest>, Streaming<DiscoveryResponse>);

fn request(of: ResourceKind, names: &[&str], nonce: &str) -> DiscoveryRequest {
    DiscoveryRequest {
        type_url: type_url(of).into(),
        resource_names: names.iter().map(|&name| name.to_owned()).collect(),
        response_nonce: nonce.into(),
        ..Default::default()
    }
}
#[tokio::test(start_paused = true)]
async fn a_stuck_control_plane_is_left_for_another_replica_after_45_s() {
    let agent = Agent::start(&[SILENT, WELL]).await;
    let start = Instant::now();
    let (_requests, mut responses) = agent.ask().await;
    let over = responses.message().await.unwrap_err();
    let waited = start.elapsed();
    assert_eq!(over.code(), Code::Unavailable);
    assert!(over.message().contains("owes an answer for 45 s"), "{over}");
    assert!((WATCHDOG..WATCHDOG + Duration::from_secs(1)).contains(&waited), "{waited:?}");
    assert_eq!(agent.dialled.load(Ordering::SeqCst), 1);

    // As Envoy and gRPC do: another stream.
    let (_requests, mut responses) = agent.ask().await;
    let answer = responses.message().await.unwrap().expect("the other replica answers");
    assert_eq!(answer.type_url, type_url(ResourceKind::Cluster));
    assert_eq!(agent.dialled.load(Ordering::SeqCst), 2);
    // Which owes nothing now, and is not left.
    let quiet = tokio::time::timeout(WATCHDOG * 4, responses.message()).await;
    assert!(quiet.is_err(), "a stream without debts was ended: {quiet:?}");
    agent.end.cancel();
}

/// Has the clusters of the replica it speaks to, and owes no answer.
async fn settled(agent: &Agent) -> Stream {
    let (requests, mut responses) = agent.ask().await;
    let clusters = responses.message().await.unwrap().expect("clusters");
    let taken = DiscoveryRequest {
        version_info: "one".into(),
        ..request(ResourceKind::Cluster, &[], &clusters.nonce)
    };
    requests.send(taken).await.unwrap();
    (requests, responses)
}

#[tokio::test(start_paused = true)]
async fn a_control_plane_stuck_on_endpoints_or_routes_is_left_too() {
    const STUCK: [&[Replica]; 2] = [
        &[Replica { but: Some(ResourceKind::Endpoints), ..WELL }, WELL],
        &[Replica { but: Some(ResourceKind::Route), ..WELL }, WELL],
    ];
    assert!(WATCHDOG <= Duration::from_secs(45), "the promise is 45 s");
    for (replicas, of) in STUCK.into_iter().zip([ResourceKind::Endpoints, ResourceKind::Route]) {
        let agent = Agent::start(replicas).await;
        let (requests, mut responses) = settled(&agent).await;
        // What may not exist is no reason to leave.
        requests.send(request(of, &["of-no-cluster"], "")).await.unwrap();
        let quiet = tokio::time::timeout(WATCHDOG * 4, responses.message()).await;
        assert!(quiet.is_err(), "{of:?}: {quiet:?}");
        let start = Instant::now();
        requests.send(request(of, &["of-no-cluster", CLUSTER], "")).await.unwrap();
        let over = tokio::time::timeout(WATCHDOG * 4, responses.message()).await;
        let over = over.unwrap_or_else(|_| panic!("stuck on {of:?}, it is not left")).unwrap_err();
        let waited = start.elapsed();
        assert!(over.message().contains("owes an answer for 45 s"), "{of:?}: {over}");
        assert!((WATCHDOG..WATCHDOG + Duration::from_secs(1)).contains(&waited), "{waited:?}");
        let (requests, mut responses) = settled(&agent).await;
        requests.send(request(of, &[CLUSTER], "")).await.unwrap();
        let answer = responses.message().await.unwrap().expect("the other replica answers");
        assert_eq!((&*answer.type_url, agent.dialled.load(Ordering::SeqCst)), (type_url(of), 2));
        agent.end.cancel();
    }
}

#[tokio::test]
async fn who_asks_for_too_many_secrets_is_refused_and_counted() {
    let agent = Agent::start(&[WELL]).await;
    let (requests, outgoing) = mpsc::channel(4);
    let mut client = SecretDiscoveryServiceClient::new(agent.proxy.clone());
    let ask = |count: u8| DiscoveryRequest {
        resource_names: (0..count).map(|number| number.to_string()).collect(),
        ..request(ResourceKind::Secret, &[], "")
    };
    requests.send(ask(16)).await.unwrap();
    let opened = client.stream_secrets(ReceiverStream::new(outgoing)).await.unwrap();
    let mut responses = opened.into_inner();
    responses.message().await.unwrap().expect("so many may be asked for");
    assert_eq!(agent.heard.borrow().limited.secrets, 0);
    requests.send(ask(17)).await.unwrap();
    let over = responses.message().await.unwrap_err();
    assert_eq!(over.code(), Code::ResourceExhausted);
    assert!(over.message().contains("ISM6038"), "{over}");
    assert_eq!(agent.heard.borrow().limited.secrets, 1);
    agent.end.cancel();
}

#[tokio::test]
async fn messages_that_are_too_long_are_counted_by_who_sent_them() {
    const LONG: &[Replica] = &[Replica { ballast: 64 << 20, ..WELL }, WELL];
    let agent = Agent::start(LONG).await;
    let limited = || agent.heard.borrow().limited;
    let (_requests, mut responses) = agent.ask().await;
    assert_eq!(responses.message().await.unwrap_err().code(), Code::OutOfRange);
    assert_eq!(limited(), Limited { response_bytes: 1, ..Limited::default() });

    let (requests, mut responses) = agent.ask().await;
    responses.message().await.unwrap().expect("clusters");
    let name = "x".repeat(4 << 20);
    requests.send(request(ResourceKind::Endpoints, &[&name], "")).await.unwrap();
    assert_eq!(responses.message().await.unwrap_err().code(), Code::OutOfRange);
    assert_eq!(limited(), Limited { response_bytes: 1, request_bytes: 1, ..Limited::default() });

    // The socket's other service, too.
    let (requests, outgoing) = mpsc::channel(4);
    requests.send(request(ResourceKind::Secret, &[&name], "")).await.unwrap();
    let mut client = SecretDiscoveryServiceClient::new(agent.proxy.clone());
    let opened = client.stream_secrets(ReceiverStream::new(outgoing)).await.unwrap();
    assert_eq!(opened.into_inner().message().await.unwrap_err().code(), Code::OutOfRange);
    assert_eq!(limited().request_bytes, 2);
    agent.end.cancel();
}

#[tokio::test]
async fn a_renewed_certificate_comes_on_the_stream_that_is_open() {
    let agent = Agent::start(&[WELL]).await;
    let (requests, outgoing) = mpsc::channel(4);
    let ask = DiscoveryRequest {
        resource_names: vec!["default".into()],
        type_url: type_url(ResourceKind::Secret).into(),
        ..Default::default()
    };
    requests.send(ask.clone()).await.unwrap();
    let mut client = SecretDiscoveryServiceClient::new(agent.proxy.clone());
    let opened = client.stream_secrets(ReceiverStream::new(outgoing)).await.unwrap();
    let mut responses = opened.into_inner();
    let mut versions = Vec::new();
    for of in ["one", "two", "three"] {
        agent.certificate.send_replace(pair(of));
        let response = tokio::time::timeout(Duration::from_secs(10), async {
            loop {
                let response = responses.message().await.unwrap().expect("the stream stays open");
                if shown(&response) == (format!("chain {of}"), format!("key {of}")) {
                    return response;
                }
            }
        });
        let response = response.await.unwrap_or_else(|_| panic!("{of} never came"));
        let taken = DiscoveryRequest {
            version_info: response.version_info.clone(),
            response_nonce: response.nonce,
            ..ask.clone()
        };
        requests.send(taken).await.unwrap();
        versions.push(response.version_info);
    }
    versions.dedup();
    assert_eq!(versions.len(), 3, "a version of its own each: {versions:?}");
    agent.end.cancel();
}

/// Chain and key of the one secret.
fn shown(response: &DiscoveryResponse) -> (String, String) {
    use envoy_types::pb::envoy::config::core::v3::data_source::Specifier;
    let [any] = &response.resources[..] else { panic!("one secret: {response:?}") };
    let secret = Secret::decode(any.value.as_slice()).unwrap();
    let Some(Type::TlsCertificate(certificate)) = secret.r#type else { panic!("a certificate") };
    let text = |source: Option<_>| {
        let source: envoy_types::pb::envoy::config::core::v3::DataSource = source.unwrap();
        let Some(Specifier::InlineString(text)) = source.specifier else { panic!("inline") };
        text
    };
    (text(certificate.certificate_chain), text(certificate.private_key))
}

/// Asks for listeners, takes what comes, and returns once the relay has heard that.
async fn takes_listeners(agent: &Agent, names: &[&str]) {
    let (requests, outgoing) = mpsc::channel(4);
    requests.send(request(ResourceKind::Listener, names, "")).await.unwrap();
    let mut client = AggregatedDiscoveryServiceClient::new(agent.proxy.clone());
    let opened = client.stream_aggregated_resources(ReceiverStream::new(outgoing)).await;
    let response = opened.unwrap().into_inner().message().await.unwrap().expect("listeners");
    assert!(!agent.heard.borrow().configured, "it has not answered yet");
    requests.send(request(ResourceKind::Listener, names, &response.nonce)).await.unwrap();
    agent.heard.clone().wait_for(|heard| heard.accepted == 1).await.unwrap();
}

/// The same in the delta variant, after `held` of an earlier stream.
async fn takes_listeners_delta(agent: &Agent, held: &[&str]) {
    let ask = |names: &[&str], nonce: &str| DeltaDiscoveryRequest {
        type_url: type_url(ResourceKind::Listener).into(),
        resource_names_subscribe: names.iter().map(|&name| name.to_owned()).collect(),
        response_nonce: nonce.into(),
        ..Default::default()
    };
    let (requests, outgoing) = mpsc::channel(4);
    let versions = held.iter().map(|&name| (name.to_owned(), "1".to_owned())).collect();
    let first = DeltaDiscoveryRequest { initial_resource_versions: versions, ..ask(&["*"], "") };
    requests.send(first).await.unwrap();
    let mut client = AggregatedDiscoveryServiceClient::new(agent.proxy.clone());
    let opened = client.delta_aggregated_resources(ReceiverStream::new(outgoing)).await;
    let response = opened.unwrap().into_inner().message().await.unwrap().expect("listeners");
    requests.send(ask(&[], &response.nonce)).await.unwrap();
    agent.heard.clone().wait_for(|heard| heard.accepted == 1).await.unwrap();
}

#[tokio::test]
async fn an_envoy_is_configured_by_its_inbound_listener_and_a_client_by_those_it_names() {
    const OTHER: &[Replica] = &[WELL];
    const INBOUND: &[Replica] = &[Replica { holds: "inbound", ..WELL }];
    for (replicas, names, configured) in
        [(OTHER, &[][..], false), (INBOUND, &[], true), (OTHER, &["hello.shop:80"], true)]
    {
        let agent = Agent::start(replicas).await;
        takes_listeners(&agent, names).await;
        assert_eq!(agent.heard.borrow().configured, configured, "{names:?} of {replicas:?}");
        agent.end.cancel();
    }
    for (replicas, held, configured) in
        [(OTHER, &[][..], false), (INBOUND, &[], true), (OTHER, &["inbound"], true)]
    {
        let agent = Agent::start(replicas).await;
        takes_listeners_delta(&agent, held).await;
        assert_eq!(agent.heard.borrow().configured, configured, "holding {held:?}: {replicas:?}");
        agent.end.cancel();
    }
}
