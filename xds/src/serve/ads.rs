//! One task per stream around a [`ServerSession`].
//!
//! [`ServerSession`]: crate::session::server::ServerSession

use super::cache::Cache;
use super::sessions::{Registration, Sessions};
use super::{Changed, Peer, Source};
use crate::node::Node;
use crate::session::server::{Encoded, Limits, Lookup, Next};
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
    aggregated_discovery_service_server::AggregatedDiscoveryService,
};
use mesh::name::Identity;
use mesh::program::{ResourceKind, ResourceName};
use mesh::world::View;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

/// A stream ends after this, give or take a tenth, so that proxies spread over replicas.
const STREAM_AGE: Duration = Duration::from_secs(30 * 60);
/// How long a new stream may stay silent.
const FIRST_REQUEST: Duration = Duration::from_secs(10);
/// How long a client may leave a response unread.
const UNREAD: Duration = Duration::from_secs(30);

type Responses = ReceiverStream<Result<DeltaDiscoveryResponse, Status>>;

pub(super) struct Ads {
    source: Arc<dyn Source>,
    sessions: Sessions,
    cache: Arc<Cache>,
    end: CancellationToken,
}

impl Ads {
    pub(super) fn new(source: Arc<dyn Source>, sessions: Sessions, end: CancellationToken) -> Self {
        Self { source, sessions, cache: Arc::default(), end }
    }
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Ads {
    type StreamAggregatedResourcesStream = ReceiverStream<Result<DiscoveryResponse, Status>>;
    type DeltaAggregatedResourcesStream = Responses;

    async fn stream_aggregated_resources(
        &self,
        _: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        Err(Status::unimplemented(
            "ISM6033 state-of-the-world xDS is not served. Fix: set `api_type: DELTA_GRPC` in the ADS configuration",
        ))
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Responses>, Status> {
        let peer = request.extensions().get::<Peer>().and_then(|peer| peer.0.clone());
        let peer = peer.ok_or_else(|| {
            Status::unauthenticated(
                "ISM6032 xDS needs a client certificate with a SPIFFE identity of this mesh",
            )
        })?;
        let mut requests = request.into_inner();
        let first = tokio::time::timeout(FIRST_REQUEST, requests.message())
            .await
            .map_err(|_| Status::deadline_exceeded("ISM6036 no first request within 10 s"))??
            .ok_or_else(|| Status::cancelled("the stream ended before its first request"))?;
        let node = first.node.clone().unwrap_or_default();
        let node = Node::from_proto(&node).map_err(|e| Status::invalid_argument(e.to_string()))?;
        // Before the view is taken, so that no change falls between.
        let mut changes = self.source.changes();
        let seen = *changes.borrow_and_update();
        let view = self.source.view(&peer, &node).map_err(Status::permission_denied)?;
        tracing::info!(proxy = node.id(), %peer, "xDS stream opened");
        let registration = self
            .sessions
            .open(node.id(), view, Limits::default())
            .map_err(Status::resource_exhausted)?;
        let (responses, stream) = mpsc::channel(1);
        let one = Stream {
            source: Arc::clone(&self.source),
            cache: Arc::clone(&self.cache),
            peer,
            node,
            registration,
            changes,
            seen,
            requests,
            responses,
            end: self.end.clone(),
        };
        tokio::spawn(one.run(first));
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

struct Stream {
    source: Arc<dyn Source>,
    cache: Arc<Cache>,
    peer: Identity,
    node: Node,
    registration: Registration,
    changes: watch::Receiver<u64>,
    /// The generation up to which the session has heard what changed.
    seen: u64,
    requests: Streaming<DeltaDiscoveryRequest>,
    responses: mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>,
    end: CancellationToken,
}

impl Stream {
    async fn run(mut self, first: DeltaDiscoveryRequest) {
        let cause = match self.exchange(first).await {
            Ok(cause) => cause.to_owned(),
            Err(status) => {
                let cause = status.message().to_owned();
                // A client that is gone does not hear it.
                let _ = self.responses.try_send(Err(status));
                cause
            }
        };
        tracing::info!(proxy = self.node.id(), peer = %self.peer, cause, "xDS stream ended");
    }

    async fn exchange(&mut self, first: DeltaDiscoveryRequest) -> Result<&'static str, Status> {
        let spread = rand::random_range(0.9..1.1);
        let age = tokio::time::sleep(STREAM_AGE.mul_f64(spread));
        tokio::pin!(age);
        let end = self.end.clone();
        self.request(&first)?;
        let mut slow = false;
        loop {
            let wake = match self.next() {
                Next::Send(response) => {
                    self.registration.counts().pushed(&response.type_url);
                    tokio::select! {
                        sent = self.responses.send_timeout(Ok(response), UNREAD) => {
                            if sent.is_err() {
                                return Ok("the client does not read, or is gone");
                            }
                            continue;
                        }
                        () = end.cancelled() => return Ok("the server ends"),
                    }
                }
                Next::Wait(until) => until,
            };
            let opens = self.registration.state().session.reads_at(Instant::now());
            if opens.is_some() && !slow {
                self.registration.counts().slowed();
            }
            slow = opens.is_some();
            let rested = async {
                match wake.into_iter().chain(opens).min() {
                    Some(until) => tokio::time::sleep_until(until.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                // Unread, its requests fill its own window and nothing of ours.
                request = self.requests.message(), if opens.is_none() => match request? {
                    Some(request) => self.request(&request)?,
                    None => return Ok("the client closed it"),
                },
                changed = self.changes.changed() => {
                    if changed.is_err() {
                        return Ok("the source ended");
                    }
                    self.changed();
                }
                () = rested => (),
                () = &mut age => return Ok("it is old enough"),
                () = end.cancelled() => return Ok("the server ends"),
            }
        }
    }

    fn request(&self, request: &DeltaDiscoveryRequest) -> Result<(), Status> {
        if let Some(refusal) = &request.error_detail {
            let reason: String = refusal.message.chars().take(512).collect();
            let kind = request.type_url.rsplit('.').next();
            tracing::warn!(proxy = self.node.id(), kind, reason, "a proxy refused resources");
            self.registration.counts().rejected(&request.type_url);
        }
        let state = &mut *self.registration.state();
        state
            .session
            .request(Instant::now(), request)
            .map_err(|violation| Status::resource_exhausted(violation.to_string()))
    }

    fn next(&self) -> Next {
        let state = &mut *self.registration.state();
        let lookup = Seen {
            source: &*self.source,
            cache: &self.cache,
            view: &state.view,
            generation: self.seen,
        };
        state.session.next(Instant::now(), &lookup)
    }

    fn changed(&mut self) {
        let now = *self.changes.borrow_and_update();
        let changed = self.source.changed_since(self.seen);
        self.seen = now;
        let state = &mut *self.registration.state();
        // Never less because we know less: a pod that is gone from an inventory keeps what its
        // proxy has until the proxy is gone too.
        match self.source.view(&self.peer, &self.node) {
            Ok(view) if view != state.view => {
                state.view = view;
                state.session.changed(&Changed::All);
            }
            Ok(_) | Err(_) => state.session.changed(&changed),
        }
    }
}

/// The source as one view sees it.
struct Seen<'a> {
    source: &'a dyn Source,
    cache: &'a Cache,
    view: &'a View,
    generation: u64,
}

impl Lookup for Seen<'_> {
    fn resource(&self, name: &ResourceName) -> Option<Encoded> {
        let resource = self.source.resource(self.view, name)?;
        Some(self.cache.encode(name, &resource, self.view.dialect))
    }

    fn names(&self, kind: ResourceKind) -> Vec<ResourceName> {
        self.source.names(self.view, kind)
    }

    fn generation(&self) -> u64 {
        self.generation
    }
}
