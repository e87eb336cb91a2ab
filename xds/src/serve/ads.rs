//! One task per stream around a [`ServerSession`], in either variant of ADS.

use super::cache::Cache;
use super::sessions::{Counts, Limited, Registration, Sessions};
use super::{Changed, Peer, Source};
use crate::length;
use crate::node::Node;
use crate::session::server::{Encoded, Limits, Lookup, Next, ServerSession, Violation};
use crate::session::sotw::{self, Sotw};
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
    aggregated_discovery_service_server::AggregatedDiscoveryService,
};
use mesh::name::Identity;
use mesh::program::{ResourceKind, ResourceName};
use mesh::world::View;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc::error::SendTimeoutError;
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

type Responses<R> = ReceiverStream<Result<R, Status>>;

/// One variant of ADS: its messages, and how they reach the session.
trait Variant: Default + Send + 'static {
    type Request: Send + 'static;
    type Response: Send + 'static;
    /// As it stands in `/sessions` and logs.
    const NAME: &str;

    fn limits() -> Limits;
    fn node(request: &Self::Request) -> Option<&core::Node>;
    /// Type, and the reason where it is a refusal.
    fn refusal(request: &Self::Request) -> Option<(&str, &str)>;
    fn request(
        &mut self,
        session: &mut ServerSession,
        now: Instant,
        request: &Self::Request,
    ) -> Result<(), Violation>;
    fn next(
        &mut self,
        session: &mut ServerSession,
        now: Instant,
        lookup: &dyn Lookup,
    ) -> Next<Self::Response>;
    fn type_url(response: &Self::Response) -> &str;
}

/// The session as it is.
#[derive(Default)]
struct Delta;

impl Variant for Delta {
    type Request = DeltaDiscoveryRequest;
    type Response = DeltaDiscoveryResponse;
    const NAME: &str = "delta";

    fn limits() -> Limits {
        Limits::default()
    }

    fn node(request: &DeltaDiscoveryRequest) -> Option<&core::Node> {
        request.node.as_ref()
    }

    fn refusal(request: &DeltaDiscoveryRequest) -> Option<(&str, &str)> {
        request.error_detail.as_ref().map(|refusal| (&*request.type_url, &*refusal.message))
    }

    fn request(
        &mut self,
        session: &mut ServerSession,
        now: Instant,
        request: &DeltaDiscoveryRequest,
    ) -> Result<(), Violation> {
        session.request(now, request)
    }

    fn next(
        &mut self,
        session: &mut ServerSession,
        now: Instant,
        lookup: &dyn Lookup,
    ) -> Next<DeltaDiscoveryResponse> {
        session.next(now, lookup)
    }

    fn type_url(response: &DeltaDiscoveryResponse) -> &str {
        &response.type_url
    }
}

impl Variant for Sotw {
    type Request = DiscoveryRequest;
    type Response = DiscoveryResponse;
    const NAME: &str = "state of the world";

    fn limits() -> Limits {
        sotw::limits()
    }

    fn node(request: &DiscoveryRequest) -> Option<&core::Node> {
        request.node.as_ref()
    }

    fn refusal(request: &DiscoveryRequest) -> Option<(&str, &str)> {
        request.error_detail.as_ref().map(|refusal| (&*request.type_url, &*refusal.message))
    }

    fn request(
        &mut self,
        session: &mut ServerSession,
        now: Instant,
        request: &DiscoveryRequest,
    ) -> Result<(), Violation> {
        Self::request(self, session, now, request)
    }

    fn next(
        &mut self,
        session: &mut ServerSession,
        now: Instant,
        lookup: &dyn Lookup,
    ) -> Next<DiscoveryResponse> {
        Self::next(self, session, now, lookup)
    }

    fn type_url(response: &DiscoveryResponse) -> &str {
        &response.type_url
    }
}

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
    type StreamAggregatedResourcesStream = Responses<DiscoveryResponse>;
    type DeltaAggregatedResourcesStream = Responses<DeltaDiscoveryResponse>;

    async fn stream_aggregated_resources(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Responses<DiscoveryResponse>>, Status> {
        self.open::<Sotw>(request).await
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Responses<DeltaDiscoveryResponse>>, Status> {
        self.open::<Delta>(request).await
    }
}

impl Ads {
    /// Reads the first request, says whose stream this is, and starts its task.
    async fn open<V: Variant>(
        &self,
        request: Request<Streaming<V::Request>>,
    ) -> Result<Response<Responses<V::Response>>, Status> {
        let peer = request.extensions().get::<Peer>().and_then(|peer| peer.0.clone());
        let peer = peer.ok_or_else(|| {
            Status::unauthenticated(
                "ISM6032 xDS needs a client certificate with a SPIFFE identity of this mesh",
            )
        })?;
        let mut requests = request.into_inner();
        let counts = self.sessions.counts();
        let first = tokio::time::timeout(FIRST_REQUEST, requests.message())
            .await
            .map_err(|_| {
                counts.limited(Limited::FirstRequest);
                Status::deadline_exceeded("ISM6036 no first request within 10 s")
            })?
            .inspect_err(|status| unreadable(status, counts))?
            .ok_or_else(|| Status::cancelled("the stream ended before its first request"))?;
        let node = V::node(&first).cloned().unwrap_or_default();
        let node = Node::from_proto(&node).map_err(|e| Status::invalid_argument(e.to_string()))?;
        // Before the view is taken, so that no change falls between.
        let mut changes = self.source.changes();
        let seen = *changes.borrow_and_update();
        let view = self.source.view(&peer, &node).map_err(Status::permission_denied)?;
        tracing::info!(proxy = node.id(), %peer, variant = V::NAME, "xDS stream opened");
        let registration =
            self.sessions.open(node.id(), view, V::limits()).map_err(Status::resource_exhausted)?;
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
            variant: V::default(),
            rests_until: None,
        };
        tokio::spawn(one.run(first));
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

/// Counts a message that was too long.
fn unreadable(status: &Status, counts: &Counts) {
    if length::exceeded(status) {
        counts.limited(Limited::MessageBytes);
    }
}

struct Stream<V: Variant> {
    source: Arc<dyn Source>,
    cache: Arc<Cache>,
    peer: Identity,
    node: Node,
    registration: Registration,
    changes: watch::Receiver<u64>,
    /// The generation up to which the session has heard what changed.
    seen: u64,
    requests: Streaming<V::Request>,
    responses: mpsc::Sender<Result<V::Response, Status>>,
    end: CancellationToken,
    variant: V,
    /// Left unread until then: its identity refuses too much.
    rests_until: Option<Instant>,
}

impl<V: Variant> Stream<V> {
    async fn run(mut self, first: V::Request) {
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

    async fn exchange(&mut self, first: V::Request) -> Result<&'static str, Status> {
        let spread = rand::random_range(0.9..1.1);
        let age = tokio::time::sleep(STREAM_AGE.mul_f64(spread));
        tokio::pin!(age);
        let end = self.end.clone();
        self.request(&first)?;
        let mut slow = false;
        loop {
            let wake = match self.next() {
                Next::Send(response) => {
                    self.registration.counts().pushed(V::type_url(&response));
                    tokio::select! {
                        sent = self.responses.send_timeout(Ok(response), UNREAD) => match sent {
                            Ok(()) => continue,
                            Err(SendTimeoutError::Timeout(_)) => {
                                self.registration.counts().limited(Limited::Unread);
                                return Ok("the client does not read");
                            }
                            Err(SendTimeoutError::Closed(_)) => return Ok("the client is gone"),
                        },
                        () = end.cancelled() => return Ok("the server ends"),
                    }
                }
                Next::Wait(until) => until,
            };
            let now = Instant::now();
            let opens = self.registration.state().session.reads_at(now);
            if opens.is_some() && !slow {
                self.registration.counts().limited(Limited::Requests);
            }
            let rests = self.rests_until.filter(|until| *until > now);
            slow = opens.is_some();
            let opens = opens.max(rests);
            let rested = async {
                match wake.into_iter().chain(opens).min() {
                    Some(until) => tokio::time::sleep_until(until.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                // Unread, its requests fill its own window and nothing of ours.
                request = self.requests.message(), if opens.is_none() => match request {
                    Ok(Some(request)) => self.request(&request)?,
                    Ok(None) => return Ok("the client closed it"),
                    Err(status) => {
                        unreadable(&status, self.registration.counts());
                        return Err(status);
                    }
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

    fn request(&mut self, request: &V::Request) -> Result<(), Status> {
        if let Some((type_url, reason)) = V::refusal(request) {
            let reason: String = reason.chars().take(512).collect();
            let kind = type_url.rsplit('.').next();
            tracing::warn!(proxy = self.node.id(), kind, reason, "a proxy refused resources");
            self.registration.counts().rejected(type_url);
            self.rests_until = self.registration.refused(&self.peer, Instant::now());
        }
        let names = {
            let state = &mut *self.registration.state();
            let taken = self.variant.request(&mut state.session, Instant::now(), request);
            taken.map(|()| state.session.names())
        };
        let names = names.map_err(|violation| {
            self.registration.counts().limited(match violation {
                Violation::TooManyNames(_) => Limited::Names,
                Violation::NameTooLong { .. } => Limited::NameBytes,
            });
            Status::resource_exhausted(violation.to_string())
        })?;
        // Only now, for one request adds no more than a message holds, and its stream ends.
        self.registration.named(names).map_err(Status::resource_exhausted)
    }

    fn next(&mut self) -> Next<V::Response> {
        let state = &mut *self.registration.state();
        let lookup = Seen {
            source: &*self.source,
            cache: &self.cache,
            view: &state.view,
            generation: self.seen,
        };
        self.variant.next(&mut state.session, Instant::now(), &lookup)
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
