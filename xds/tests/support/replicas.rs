//! Replicas of a control plane that get stuck, each in its way, and how they are dialled.

use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Resource,
};
use envoy_types::pb::google::protobuf::Any;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use mesh::program::ResourceKind;
use prost::Message as _;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};
use xds::codec::type_url;
use xds::subscribe::Connector;

/// One replica of a control plane: it takes every stream.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Replica {
    /// How many questions it answers, before it answers none.
    pub(crate) answers: usize,
    /// A type it does not answer at all.
    pub(crate) but: Option<ResourceKind>,
    /// Whether it says its first answer again every 10 s.
    pub(crate) repeats: bool,
    /// The name of its one resource, of every type.
    pub(crate) holds: &'static str,
    /// What each state of the world weighs beside its one resource, bytes.
    pub(crate) ballast: usize,
}

pub(crate) const SILENT: Replica =
    Replica { answers: 0, but: None, repeats: false, holds: CLUSTER, ballast: 0 };
pub(crate) const WELL: Replica = Replica { answers: usize::MAX, ..SILENT };
pub(crate) const CLUSTER: &str = "outbound|80||hello.shop.global";

type Responses<T> = BoxStream<'static, Result<T, Status>>;

#[tonic::async_trait]
impl AggregatedDiscoveryService for Replica {
    type StreamAggregatedResourcesStream = Responses<DiscoveryResponse>;
    type DeltaAggregatedResourcesStream = Responses<DeltaDiscoveryResponse>;

    /// Of every type there is [`Replica::holds`].
    async fn stream_aggregated_resources(
        &self,
        requests: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        // All of them have their name in the first field.
        let named = Cluster { name: self.holds.into(), ..Default::default() }.encode_to_vec();
        let ballast = self.ballast;
        Ok(self.talk(requests, move |DiscoveryRequest { type_url, response_nonce, .. }, nonce| {
            let resource = Any { type_url: type_url.clone(), value: named.clone() };
            let response = DiscoveryResponse {
                resources: vec![resource],
                type_url: type_url.clone(),
                version_info: "x".repeat(ballast),
                nonce,
                ..Default::default()
            };
            response_nonce.is_empty().then_some((type_url, response))
        }))
    }

    /// Whatever is asked for by name does not exist; who asks for all gets [`Replica::holds`].
    async fn delta_aggregated_resources(
        &self,
        requests: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let held = Resource { name: self.holds.into(), ..Default::default() };
        Ok(self.talk(requests, move |request: DeltaDiscoveryRequest, nonce| {
            let names = request.resource_names_subscribe;
            let asks = !names.is_empty();
            let (all, absent) = names.into_iter().partition::<Vec<_>, _>(|name| name == "*");
            let response = DeltaDiscoveryResponse {
                type_url: request.type_url.clone(),
                nonce,
                resources: all.iter().map(|_| held.clone()).collect(),
                removed_resources: absent,
                ..Default::default()
            };
            asks.then_some((request.type_url, response))
        }))
    }
}

impl Replica {
    /// `answer` tells type and answer where a request is a question.
    fn talk<Q: Clone + Send + 'static, A: Send + 'static>(
        self,
        requests: Request<Streaming<Q>>,
        answer: impl Fn(Q, String) -> Option<(String, A)> + Send + 'static,
    ) -> Response<Responses<A>> {
        let mut requests = requests.into_inner();
        let (send, responses) = mpsc::channel(4);
        tokio::spawn(async move {
            let (mut left, mut said) = (self.answers, 1_u64);
            let mut first: Option<Q> = None;
            let mut again = tokio::time::interval(Duration::from_secs(10));
            loop {
                let question = tokio::select! {
                    request = requests.message() => match request {
                        Ok(Some(request)) => request,
                        Ok(None) | Err(_) => return,
                    },
                    _ = again.tick(), if self.repeats => {
                        let Some(first) = first.clone() else { continue };
                        left += 1;
                        first
                    }
                };
                let Some((of, response)) = answer(question.clone(), said.to_string()) else {
                    continue;
                };
                if left == 0 || self.but.is_some_and(|but| of == type_url(but)) {
                    continue;
                }
                (left, said) = (left - 1, said + 1);
                first.get_or_insert(question);
                if send.send(Ok(response)).await.is_err() {
                    return;
                }
            }
        });
        Response::new(ReceiverStream::new(responses).boxed())
    }
}

/// Dials `replicas` in turn, the last one from then on, and counts how often.
pub(crate) fn dial(replicas: &'static [Replica]) -> (Connector, Arc<AtomicUsize>) {
    let dialled = Arc::new(AtomicUsize::new(0));
    let count = dialled.clone();
    let connector = Connector::new(move || {
        let turn = count.fetch_add(1, Ordering::SeqCst).min(replicas.len() - 1);
        let (near, far) = tokio::io::duplex(64 * 1024);
        let incoming = futures::stream::iter([Ok::<_, io::Error>(far)])
            // Without an end: a server whose listener is over shuts down.
            .chain(futures::stream::pending());
        let service = AggregatedDiscoveryServiceServer::new(replicas[turn])
            .max_encoding_message_size(usize::MAX);
        tokio::spawn(Server::builder().add_service(service).serve_with_incoming(incoming));
        async move { Ok(near) }
    });
    (connector, dialled)
}
