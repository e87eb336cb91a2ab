//! What a foreign proxy finds on its agent's socket: ADS, passed on to the control plane, and the
//! workload's own certificate over SDS.
//!
//! The proxy needs no secret to start: it speaks plaintext gRPC to the socket, the agent speaks
//! mutual TLS to the control plane. Messages are passed on as they are, in both variants of ADS.

use crate::codec;
use crate::length::{self, REQUEST_MAX, RESPONSE_MAX};
use crate::subscribe::{Connector, KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT, channel};
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
    aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
    aggregated_discovery_service_server::{
        AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
    },
};
use envoy_types::pb::envoy::service::secret::v3::secret_discovery_service_server::SecretDiscoveryServiceServer;
use futures::{Stream, StreamExt};
use mesh::program::ResourceKind;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Server};
use tonic::{Request, Response, Status, Streaming};

mod debts;
mod listeners;
mod sds;
mod variants;

pub use crate::subscribe::WATCHDOG;
use debts::{Clusters, Debts};
use listeners::Listeners;
pub use sds::KeyPair;
use variants::{Asks, Tells};

/// How long dialling the control plane may take.
const CONNECT: Duration = Duration::from_secs(10);
/// Longest reason of a refusal that is kept, characters.
const REASON_MAX: usize = 512;
/// Streams of one connection: ADS, and one for each secret.
const STREAMS_PER_CONNECTION: u32 = 16;

/// What the proxy has said so far, over all its streams.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Heard {
    /// It has taken the listeners it serves by: the inbound one (a gateway's, its one), or those it
    /// names. It serves once it has their routes and secrets, too, which only itself can tell.
    pub configured: bool,
    /// Responses it took.
    pub accepted: u64,
    /// Responses it refused (NACK).
    pub refused: u64,
    /// The last refusal: type and reason.
    pub refusal: Option<String>,
    pub limited: Limited,
}

/// How often each limit on what is passed on was met; the stream was ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limited {
    /// It asked for more secrets than a workload has.
    pub secrets: u64,
    /// Length of one of its messages: 4 MiB.
    pub request_bytes: u64,
    /// Length of one of the control plane's: 64 MiB.
    pub response_bytes: u64,
}

impl Limited {
    /// Each with its name as a label of metrics.
    pub fn named(self) -> [(&'static str, u64); 3] {
        let Self { secrets, request_bytes, response_bytes } = self;
        [("secrets", secrets), ("request_bytes", request_bytes), ("response_bytes", response_bytes)]
    }
}

/// Counts the end of a stream whose proxy sent what was too long.
fn unreadable(status: &Status, heard: &watch::Sender<Heard>) {
    if length::exceeded(status) {
        heard.send_modify(|heard| heard.limited.request_bytes += 1);
    }
}

/// Serves until `end`. `incoming` yields local connections whose peers were checked; `connector`
/// dials the control plane with the workload's certificate.
pub async fn serve<IO>(
    incoming: impl Stream<Item = IO> + Send + 'static,
    connector: Connector,
    certificate: watch::Receiver<Arc<KeyPair>>,
    heard: watch::Sender<Heard>,
    end: CancellationToken,
) -> anyhow::Result<()>
where
    IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let incoming = incoming.map(|io| Ok::<_, io::Error>(crate::serve::Accepted::new(io, None)));
    let heard = Arc::new(heard);
    let clusters = Arc::default();
    let relay = Relay { connector, heard: Arc::clone(&heard), clusters, end: end.clone() };
    let ads = AggregatedDiscoveryServiceServer::new(relay)
        .max_decoding_message_size(REQUEST_MAX)
        .max_encoding_message_size(usize::MAX);
    let sds = SecretDiscoveryServiceServer::new(sds::Secrets::new(certificate, heard, end.clone()))
        .max_decoding_message_size(REQUEST_MAX);
    let serving = Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .max_concurrent_streams(STREAMS_PER_CONNECTION)
        .add_service(ads)
        .add_service(sds)
        .serve_with_incoming_shutdown(incoming, end.clone().cancelled_owned());
    tokio::select! {
        served = serving => Ok(served?),
        // Streams end with `end` themselves; nothing here is worth waiting for.
        () = end.cancelled() => Ok(()),
    }
}

struct Relay {
    connector: Connector,
    heard: Arc<watch::Sender<Heard>>,
    clusters: Arc<Mutex<Clusters>>,
    end: CancellationToken,
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Relay {
    type StreamAggregatedResourcesStream = ReceiverStream<Result<DiscoveryResponse, Status>>;
    type DeltaAggregatedResourcesStream = ReceiverStream<Result<DeltaDiscoveryResponse, Status>>;

    async fn stream_aggregated_resources(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        let open = |channel, outgoing| async move {
            client(channel).stream_aggregated_resources(ReceiverStream::new(outgoing)).await
        };
        Ok(Response::new(self.pass_on(request.into_inner(), open)))
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let open = |channel, outgoing| async move {
            client(channel).delta_aggregated_resources(ReceiverStream::new(outgoing)).await
        };
        Ok(Response::new(self.pass_on(request.into_inner(), open)))
    }
}

fn client(channel: Channel) -> AggregatedDiscoveryServiceClient<Channel> {
    AggregatedDiscoveryServiceClient::new(channel).max_decoding_message_size(RESPONSE_MAX)
}

impl Relay {
    /// Starts one stream's task: the proxy's requests go up, what `open` brings goes down.
    fn pass_on<Q, R, F>(
        &self,
        requests: Streaming<Q>,
        open: impl FnOnce(Channel, mpsc::Receiver<Q>) -> F + Send + 'static,
    ) -> ReceiverStream<Result<R, Status>>
    where
        Q: Asks,
        R: Tells,
        F: Future<Output = Result<Response<Streaming<R>>, Status>> + Send,
    {
        let (down, stream) = mpsc::channel(1);
        let (connector, heard, end) =
            (self.connector.clone(), Arc::clone(&self.heard), self.end.clone());
        let clusters = Arc::clone(&self.clusters);
        tokio::spawn(async move {
            let passing = exchange(requests, open, &connector, &heard, &clusters, &down);
            let over = tokio::select! {
                over = passing => over,
                () = end.cancelled() => Status::unavailable("the agent ends"),
            };
            tracing::info!(cause = over.message(), "the proxy's xDS stream ended");
            // A proxy that is gone does not hear it.
            let _ = down.try_send(Err(over));
        });
        ReceiverStream::new(stream)
    }
}

/// One stream from dialling to its end; returns why it ended.
async fn exchange<Q, R, F>(
    mut requests: Streaming<Q>,
    open: impl FnOnce(Channel, mpsc::Receiver<Q>) -> F,
    connector: &Connector,
    heard: &watch::Sender<Heard>,
    clusters: &Mutex<Clusters>,
    down: &mpsc::Sender<Result<R, Status>>,
) -> Status
where
    Q: Asks,
    R: Tells,
    F: Future<Output = Result<Response<Streaming<R>>, Status>>,
{
    let (outgoing, upward) = mpsc::channel(16);
    let debts = Mutex::new(Debts::default());
    let listeners = Mutex::new(Listeners::default());
    // Since when the control plane owes an answer.
    let (owed, mut owes) = watch::channel(None::<Instant>);
    let note = |said: &dyn Fn(&mut Debts)| {
        let mut debts = debts.lock().expect("no holder panics");
        said(&mut debts);
        let since = debts.since();
        owed.send_if_modified(|shown| std::mem::replace(shown, since) != since);
    };
    let up = async {
        loop {
            let request = match requests.message().await {
                Ok(Some(request)) => request,
                Ok(None) => return Status::cancelled("the proxy closed it"),
                Err(status) => {
                    unreadable(&status, heard);
                    return status;
                }
            };
            listen(&request, heard, &listeners);
            note(&|debts| request.asks(Instant::now(), debts, clusters));
            if outgoing.send(request).await.is_err() {
                // The other half says why.
                std::future::pending::<()>().await;
            }
        }
    };
    let down = async {
        let dialled = async {
            let channel = channel(connector)
                .await
                .map_err(|error| Status::unavailable(crate::issue::wire::chain(&error)))?;
            open(channel, upward).await
        };
        let mut responses = match tokio::time::timeout(CONNECT, dialled).await {
            Ok(Ok(responses)) => responses.into_inner(),
            Ok(Err(status)) => return status,
            Err(_) => return Status::unavailable("the control plane did not answer within 10 s"),
        };
        loop {
            let response = tokio::select! {
                response = responses.message() => response,
                () = stuck(&mut owes) => {
                    return Status::unavailable("the control plane owes an answer for 45 s");
                }
            };
            match response {
                Ok(Some(response)) => {
                    note(&|debts| response.tells(Instant::now(), debts, clusters));
                    if codec::kind_of(response.type_url()) == Some(ResourceKind::Listener) {
                        response.of_listeners(&mut listeners.lock().expect("no holder panics"));
                    }
                    if down.send(Ok(response)).await.is_err() {
                        return Status::cancelled("the proxy is gone");
                    }
                }
                Ok(None) => return Status::unavailable("the control plane closed it"),
                Err(status) => {
                    if length::exceeded(&status) {
                        heard.send_modify(|heard| heard.limited.response_bytes += 1);
                    }
                    return status;
                }
            }
        }
    };
    tokio::select! {
        over = up => over,
        over = down => over,
    }
}

/// Returns once an answer has been owed for [`WATCHDOG`].
async fn stuck(owes: &mut watch::Receiver<Option<Instant>>) {
    loop {
        let since = *owes.borrow_and_update();
        let late = async {
            match since {
                Some(since) => tokio::time::sleep_until(since + WATCHDOG).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = late => return,
            changed = owes.changed() => if changed.is_err() {
                std::future::pending::<()>().await;
            },
        }
    }
}

/// Notes what a request says about what the proxy was sent.
fn listen(request: &impl Asks, heard: &watch::Sender<Heard>, listeners: &Mutex<Listeners>) {
    let answer = request.answers();
    if codec::kind_of(request.type_url()) == Some(ResourceKind::Listener) {
        let mut listeners = listeners.lock().expect("no holder panics");
        let held = request.of_listeners(&mut listeners);
        let taken = answer.is_some_and(|(nonce, why)| listeners.answers(nonce, why.is_none()));
        if held || taken {
            heard.send_if_modified(|heard| !std::mem::replace(&mut heard.configured, true));
        }
    }
    match answer {
        None => (),
        Some((_, None)) => heard.send_modify(|heard| heard.accepted += 1),
        Some((_, Some(reason))) => {
            let reason: String = reason.chars().take(REASON_MAX).collect();
            let name = request.type_url().rsplit('.').next().unwrap_or_default();
            tracing::warn!(kind = name, reason, "the proxy refused resources");
            heard.send_modify(|heard| {
                heard.refused += 1;
                heard.refusal = Some(format!("{name}: {reason}"));
            });
        }
    }
}
