//! Requests of this workload's application on their first step, into the mesh.

mod acquire;
mod exchange;

use crate::body::{Ended, Relay, ResponseBody};
use crate::budget::Budget;
use crate::dials::Dials;
use crate::grpc;
use crate::headers::{self, UNSERVED};
use crate::inbound::{is_idempotent, reply, unreceived};
use crate::latency::Latency;
use crate::payload;
use crate::pool::Pool;
use crate::received::Received;
use crate::record::Record;
use crate::refusal;
use crate::serve::{Downstream, Shared};
use crate::upgrade;
use crate::version::Wire;
use exchange::{Answer, Exchange};
use http::{HeaderValue, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use mesh::name::{ClusterId, Identity};
use mesh::program::{ClusterName, LbEndpoint, Resource, ResourceName, Retry, Route};
use proxy::NotHere;
use proxy::drain::Held;
use proxy::telemetry::{Conversation, Http, Party, Reporter, workload};
use proxy::upstream::Slot;
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Consecutive uses of an endpoint without a response that put it under suspicion.
const SUSPECT_AFTER: u32 = 3;
/// Endpoints whose failures are remembered, per destination; beyond that all is forgotten once.
const SUSPECTS_MAX: usize = 4_096;
/// A destination that nobody used for this long is forgotten.
const STALE_AFTER: Duration = Duration::from_secs(300);

/// Which endpoint: its address, and the cluster that announced it.
pub(crate) type Key = proxy::upstream::Key;

/// What all requests to one destination share.
#[derive(Debug)]
pub(crate) struct Destination {
    name: ClusterName,
    pub(crate) pool: Arc<Pool<(Key, Wire), Peer>>,
    budget: Budget,
    latency: Latency,
    /// Uses without a response in a row, by endpoint.
    suspects: Mutex<HashMap<Key, u32>>,
    /// Requests that wait for a connection.
    pending: AtomicUsize,
    dials: Dials,
    used: Mutex<Instant>,
}

/// Who is at the other end of a connection; the same for all its requests.
#[derive(Debug)]
pub(crate) struct Peer {
    endpoint: LbEndpoint,
    identity: Option<Identity>,
    metrics: Http,
    /// Counts among the destination's connections while this one lives.
    _slot: Slot,
}

impl Destination {
    fn new(name: ClusterName, retry: &Retry) -> Self {
        let now = Instant::now();
        Self {
            name,
            pool: Arc::default(),
            budget: Budget::new(retry, now),
            latency: Latency::default(),
            suspects: Mutex::default(),
            pending: AtomicUsize::new(0),
            dials: Dials::default(),
            used: Mutex::new(now),
        }
    }

    pub(crate) fn is_stale(&self, now: Instant) -> bool {
        let used = *self.used.lock().expect("no holder panics");
        now.saturating_duration_since(used) > STALE_AFTER
    }

    fn suspect(&self, key: &Key) {
        let mut suspects = self.suspects.lock().expect("no holder panics");
        if suspects.len() >= SUSPECTS_MAX {
            suspects.clear();
        }
        *suspects.entry(key.clone()).or_default() += 1;
    }

    fn trust(&self, key: &Key) {
        self.suspects.lock().expect("no holder panics").remove(key);
    }

    fn is_suspect(&self, key: &Key) -> bool {
        let suspects = self.suspects.lock().expect("no holder panics");
        suspects.get(key).is_some_and(|count| *count >= SUSPECT_AFTER)
    }

    /// How long a response may take before another path is tried.
    fn hedge_delay(&self, retry: &Retry) -> Duration {
        let least = Duration::from_millis(retry.hedge_ms);
        self.latency.p99().map_or(least, |p99| p99.max(least))
    }

    fn wait(&self, limit: u32) -> Option<Waiting<'_>> {
        let before = self.pending.fetch_add(1, Ordering::AcqRel);
        let waiting = Waiting(&self.pending);
        (before < limit as usize).then_some(waiting)
    }
}

/// One request that waits for a connection.
struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// One connection of an application.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) shared: Arc<Shared>,
    pub(crate) route: ResourceName,
    pub(crate) downstream: Downstream,
    /// What the client's connection holds.
    pub(crate) held: Option<Held>,
}

impl Context {
    /// The route as it is now: a change takes effect at the next request of a kept connection.
    async fn route(&self) -> Result<Route, NotHere> {
        match &*self.shared.options.engine.resource(&self.route).await? {
            Resource::Route(route) => Ok(route.clone()),
            Resource::Listener(_)
            | Resource::Cluster(_)
            | Resource::Endpoints(_)
            | Resource::Secret(_)
            | Resource::Zone(_) => Err(NotHere::WrongKind(self.route.clone())),
        }
    }

    fn destination(&self, route: &Route) -> Arc<Destination> {
        let mut destinations = self.shared.destinations.lock().expect("no holder panics");
        let destination = destinations
            .entry(route.cluster.clone())
            .or_insert_with(|| Arc::new(Destination::new(route.cluster.clone(), &route.retry)));
        *destination.used.lock().expect("no holder panics") = Instant::now();
        destination.clone()
    }

    /// Looked up once per connection to an endpoint, and for answers of our own.
    fn metrics(&self, name: &ClusterName, peer: Option<(&LbEndpoint, Option<&Identity>)>) -> Http {
        let options = &self.shared.options;
        let mut names = name.host.split('.').map(str::to_owned);
        let service_name = names.next().unwrap_or_default();
        let service_namespace = names.next().unwrap_or_default();
        let destination = peer.map_or_else(Party::default, |(endpoint, identity)| Party {
            workload: workload(&endpoint.workload).to_owned(),
            namespace: identity
                .map_or_else(|| service_namespace.clone(), |identity| identity.namespace.clone()),
            principal: identity.map(ToString::to_string).unwrap_or_default(),
            app: identity.map(|identity| identity.account.clone()).unwrap_or_default(),
            cluster: Some(endpoint.cluster.clone()),
        });
        options.telemetry.http(&Conversation {
            reporter: Reporter::Source,
            source: options.me.clone(),
            destination,
            service: name.host.clone(),
            service_name,
            service_namespace,
            mutual_tls: peer.is_some_and(|(_, identity)| identity.is_some()),
        })
    }

    /// What we say about ourselves to the sidecar at the other end.
    fn source(&self) -> Option<HeaderValue> {
        let me = &self.shared.options.me;
        let cluster = me.cluster.as_ref().map(ClusterId::as_str).unwrap_or_default();
        HeaderValue::try_from(format!("{cluster};{}", me.workload)).ok()
    }
}

pub(crate) async fn answer(
    context: &Context,
    mut request: Request<Incoming>,
) -> Response<ResponseBody> {
    let client = hyper::upgrade::on(&mut request);
    let (mut parts, incoming) = request.into_parts();
    let wish = headers::upgrade(&parts);
    let refusal = refusal::of(&parts, refusal::HeadMax::CLIENT);
    let came = parts.version;
    let trailers = headers::takes_trailers(&parts.headers);
    let mut record = Record::begin(&parts);
    headers::begin_request(&mut parts);
    headers::end_hop(&mut parts.headers, wish.as_ref());
    headers::leave(&mut parts.headers, None);
    record.line.request_id = headers::id(&parts.headers);
    record.line.downstream_remote_address = Some(context.downstream.peer.to_string());
    record.line.downstream_local_address = Some(context.downstream.local.to_string());
    record.line.route_name = Some(context.route.name.clone());
    if let Some(refused) = refusal {
        if let Some(limit) = refused.limit {
            context.shared.counters.limit(limit.to_owned());
        }
        return reply(record, refused.status, "DPE", &refused.why, None);
    }
    let route = match context.route().await {
        Ok(route) => route,
        Err(problem) => {
            let sentence = format!("no route: {problem}");
            return reply(record, StatusCode::SERVICE_UNAVAILABLE, "NR", &sentence, None);
        }
    };
    record.line.upstream_cluster = Some(route.cluster.to_string());
    record.metrics = Some(context.metrics(&route.cluster, None));
    let upstream = match context.shared.options.engine.upstream(&route.cluster).await {
        Ok(upstream) => upstream,
        Err(problem) => {
            let sentence = format!("no destination: {problem}");
            return reply(record, StatusCode::SERVICE_UNAVAILABLE, "NC", &sentence, None);
        }
    };
    let destination = context.destination(&route);
    destination.budget.deposit(&route.retry, Instant::now());
    let wire = Wire::towards(upstream.cluster().protocol, came, record.grpc);
    if wire == Wire::Http2 && wish.is_some() {
        // There is no switching on HTTP/2; who asks must live with an answer (RFC 9110 section 7.8).
        headers::end_hop(&mut parts.headers, None);
    }
    let repeatable = wish.is_none() && is_idempotent(&parts.method);
    let body = Received::request(incoming, came, &context.shared.limits());
    let payload = match payload::keep(body, route.retry.body_max).await {
        Ok(payload) => payload,
        Err(broken) => return unreceived(record, &broken),
    };
    let limit = (route.timeout_ms > 0).then(|| Duration::from_millis(route.timeout_ms));
    let patience = grpc::patience(&parts.headers).filter(|_| record.grpc);
    let limit = limit.into_iter().chain(patience).min();
    let begun = tokio::time::Instant::from(record.begun);
    let deadline = limit.and_then(|limit| begun.checked_add(limit));

    let exchange = Exchange {
        context,
        upstream: &upstream,
        destination: &destination,
        retry: &route.retry,
        repeatable,
        parts: &parts,
        wire,
        trailers,
        payload,
        requested: record.requested.clone(),
    };
    let exchanged = match deadline {
        None => exchange.run().await,
        Some(at) => match tokio::time::timeout_at(at, exchange.run()).await {
            Ok(exchanged) => exchanged,
            Err(_) => {
                let took = limit.unwrap_or_default().as_millis();
                let sentence = format!("{} did not answer within {took} ms", route.cluster.host);
                return reply(record, StatusCode::GATEWAY_TIMEOUT, "UT", &sentence, None);
            }
        },
    };
    exchange.payload.forget();
    let Answer { mut response, connection, in_flight, attempts } = match exchanged {
        Ok(answer) => answer,
        Err(failure) => {
            record.line.upstream_request_attempt_count = Some(failure.attempts);
            if let Some(peer) = &failure.peer {
                record.line.upstream_host = Some(peer.endpoint.address.to_string());
                record.metrics = Some(peer.metrics.clone());
            }
            record.line.upstream_transport_failure_reason = Some(failure.reason.clone());
            let sentence = format!("{}: {}", route.cluster.host, failure.reason);
            return reply(record, failure.status, failure.flags, &sentence, None);
        }
    };
    // It is not for applications.
    response.headers_mut().remove(&UNSERVED);
    let peer = connection.about.clone();
    record.answered(&response);
    record.metrics = Some(peer.metrics.clone());
    let line = &mut record.line;
    line.upstream_host = Some(peer.endpoint.address.to_string());
    line.upstream_peer_uri_san = peer.identity.as_ref().map(ToString::to_string);
    line.upstream_request_attempt_count = Some(attempts);
    let service_time = u64::try_from(record.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
    line.upstream_service_time = Some(service_time);

    if let (StatusCode::SWITCHING_PROTOCOLS, Some(client)) =
        (response.status(), wish.as_ref().map(|_| client))
    {
        let server = hyper::upgrade::on(&mut response);
        let held = (context.held.clone(), connection, in_flight);
        let drain = &context.shared.options.drain;
        upgrade::join(client, server, drain, record, held, std::future::pending());
        // What was chosen, which may be less than was asked for (RFC 9110 section 7.8).
        let chosen = response.headers().get(header::UPGRADE).cloned().or(wish);
        headers::end_hop(response.headers_mut(), chosen.as_ref());
        return response.map(|_| ResponseBody::Local(bytes::Bytes::new()));
    }
    headers::end_response(&mut response, came);
    let pool = upstream.cluster().pool.clone();
    let most = pool.max_requests_per_connection;
    let idle = Duration::from_millis(pool.idle_timeout_ms);
    let answered = std::mem::take(response.version_mut());
    let grpc = record.grpc;
    response.map(|inner| {
        let finish = move |ended, passed| {
            record.end(ended, passed);
            // A stream that ended early costs its connection nothing; a message does.
            if ended == Ended::Whole || connection.wire() == Wire::Http2 {
                let key = (peer.endpoint.address, peer.endpoint.cluster.clone());
                let spent = most > 0 && connection.served() >= most;
                destination.pool.give((key, connection.wire()), connection, idle, spent);
            }
            // The endpoint served this request until now.
            drop(in_flight);
        };
        ResponseBody::Relay(Box::new(Relay::new(
            Received::new(inner, answered),
            grpc,
            deadline,
            finish,
        )))
    })
}
