//! A control plane that is stuck is left for another one by our own proxies, within 45 s: one that
//! takes a stream and is silent, one that falls silent later, and one that only repeats itself.

mod support;

use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use futures::StreamExt as _;
use futures::stream::BoxStream;
use mesh::program::{ResourceKind, ResourceName, Want};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use support::plane::node;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};
use xds::codec::type_url;
use xds::subscribe::{self, Connector, Subscription, WATCHDOG};

/// One replica of a control plane: it takes every stream.
#[derive(Clone, Copy)]
struct Replica {
    /// How many requests for names it answers, before it answers none.
    answers: usize,
    /// Whether it says its first answer again every 10 s.
    repeats: bool,
}

const SILENT: Replica = Replica { answers: 0, repeats: false };
const WELL: Replica = Replica { answers: usize::MAX, repeats: false };

#[tonic::async_trait]
impl AggregatedDiscoveryService for Replica {
    type StreamAggregatedResourcesStream = BoxStream<'static, Result<DiscoveryResponse, Status>>;
    type DeltaAggregatedResourcesStream =
        BoxStream<'static, Result<DeltaDiscoveryResponse, Status>>;

    async fn stream_aggregated_resources(
        &self,
        _: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        Err(Status::unimplemented("not asked for"))
    }

    /// Whatever is asked for does not exist.
    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let (mut requests, replica) = (request.into_inner(), *self);
        let (send, responses) = mpsc::channel(4);
        tokio::spawn(async move {
            let (mut left, mut said) = (replica.answers, 0);
            let mut first: Option<Vec<String>> = None;
            let mut again = tokio::time::interval(Duration::from_secs(10));
            loop {
                let names = tokio::select! {
                    request = requests.message() => match request {
                        Ok(Some(request)) => request.resource_names_subscribe,
                        Ok(None) | Err(_) => return,
                    },
                    _ = again.tick(), if replica.repeats => {
                        let Some(first) = first.clone() else { continue };
                        left += 1;
                        first
                    }
                };
                if names.is_empty() || left == 0 {
                    continue;
                }
                (left, said) = (left - 1, said + 1);
                first.get_or_insert_with(|| names.clone());
                let response = DeltaDiscoveryResponse {
                    type_url: type_url(ResourceKind::Listener).to_owned(),
                    nonce: said.to_string(),
                    removed_resources: names,
                    ..Default::default()
                };
                if send.send(Ok(response)).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(responses).boxed()))
    }
}

/// A proxy that dials `replicas` in turn, the last one from then on, and how often it did.
fn proxy(replicas: &'static [Replica]) -> (Subscription, Arc<AtomicUsize>) {
    let dialled = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&dialled);
    let connector = Connector::new(move || {
        let turn = count.fetch_add(1, Ordering::SeqCst).min(replicas.len() - 1);
        let (near, far) = tokio::io::duplex(64 * 1024);
        let incoming = futures::stream::iter([Ok::<_, io::Error>(far)])
            // Without an end: a server whose listener is over shuts down.
            .chain(futures::stream::pending());
        let service = AggregatedDiscoveryServiceServer::new(replicas[turn]);
        tokio::spawn(Server::builder().add_service(service).serve_with_incoming(incoming));
        async move { Ok(near) }
    });
    (subscribe::start(node(), connector, CancellationToken::new()), dialled)
}

fn name(number: u16) -> ResourceName {
    ResourceName::outbound("240.240.9.9".parse().unwrap(), number)
}

async fn want(proxy: &Subscription, name: &ResourceName) {
    proxy.want.send(Want::Subscribe(name.clone())).await.unwrap();
}

/// How long until the proxy hears that there is no `name`.
async fn answered(proxy: &Subscription, name: &ResourceName) -> Duration {
    let start = Instant::now();
    let mut snapshot = proxy.snapshot.clone();
    let heard = snapshot.wait_for(|shown| shown.connected && shown.absent.contains(name));
    let heard = tokio::time::timeout(WATCHDOG * 10, heard).await;
    heard.expect("no replica that answers was found").unwrap();
    start.elapsed()
}

/// The watchdog's time, and a moment to dial.
#[track_caller]
fn left_in_time(waited: Duration) {
    assert!(WATCHDOG <= Duration::from_secs(45), "the promise is 45 s");
    assert!((WATCHDOG..WATCHDOG + Duration::from_secs(1)).contains(&waited), "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn a_control_plane_that_never_answers_is_left() {
    let (proxy, dialled) = proxy(&[SILENT, WELL]);
    want(&proxy, &name(1)).await;
    left_in_time(answered(&proxy, &name(1)).await);
    assert_eq!(dialled.load(Ordering::SeqCst), 2);
}

#[tokio::test(start_paused = true)]
async fn a_control_plane_that_answers_once_is_left_at_the_next_question() {
    let (proxy, dialled) = proxy(&[Replica { answers: 1, ..SILENT }, WELL]);
    want(&proxy, &name(1)).await;
    assert!(answered(&proxy, &name(1)).await < Duration::from_secs(1));
    // It owes nothing, and is not left.
    tokio::time::sleep(WATCHDOG * 4).await;
    assert_eq!(dialled.load(Ordering::SeqCst), 1);
    assert!(proxy.snapshot.borrow().connected);
    want(&proxy, &name(2)).await;
    left_in_time(answered(&proxy, &name(2)).await);
    assert_eq!(dialled.load(Ordering::SeqCst), 2);
}

#[tokio::test(start_paused = true)]
async fn a_control_plane_that_only_repeats_itself_is_left() {
    let (proxy, dialled) = proxy(&[Replica { answers: 1, repeats: true }, WELL]);
    want(&proxy, &name(1)).await;
    assert!(answered(&proxy, &name(1)).await < Duration::from_secs(1));
    tokio::time::sleep(WATCHDOG * 4).await;
    assert_eq!(dialled.load(Ordering::SeqCst), 1);
    want(&proxy, &name(2)).await;
    left_in_time(answered(&proxy, &name(2)).await);
    assert_eq!(dialled.load(Ordering::SeqCst), 2);
}

#[tokio::test(start_paused = true)]
async fn one_stuck_replica_after_another_is_left() {
    let (proxy, dialled) = proxy(&[SILENT, Replica { answers: 1, ..SILENT }, WELL]);
    want(&proxy, &name(1)).await;
    left_in_time(answered(&proxy, &name(1)).await);
    want(&proxy, &name(2)).await;
    left_in_time(answered(&proxy, &name(2)).await);
    assert_eq!(dialled.load(Ordering::SeqCst), 3);
}
