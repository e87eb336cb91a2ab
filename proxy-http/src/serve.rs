//! The side that takes requests: limits, deadlines, and a clean end of each connection.

use crate::body::ResponseBody;
use crate::connection::STREAM_WINDOW;
use crate::farewell::Farewell;
use crate::grpc;
use crate::head_timer::{HEAD_TIMEOUT, HeadTimer, Reads};
use crate::idle::{Offered, Streams, Taken, Watch};
use crate::inbound::{self, Application};
use crate::last_words::HeardOut;
use crate::observed::Observed;
use crate::outbound::{self, Destination};
use crate::quiet::{QUIET, Requests};
use crate::refusal::{self, HeadMax};
use crate::version::{self, Heard, Wire};
use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use hyper::server::conn::http1::UpgradeableConnection;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use mesh::name::Identity;
use mesh::program::{ClusterName, ResourceName};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use proxy::Engine;
use proxy::drain::{Drain, Live};
use proxy::telemetry::{Party, Telemetry};
use runtime::metrics::Metrics;
use std::collections::HashMap;
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use trust::svid::Svid;

/// Longest request head that is looked at over HTTP/2, bytes, so that one over [`HeadMax`] is refused by
/// us and counted. h2 answers longer ones with 431 by itself, where nobody sees it, and ends the connection,
/// which is counted, at four times this.
const HEAD_LOOKED_AT: usize = 2 * HeadMax::CLIENT.bytes;
/// Streams a client may have open on one HTTP/2 connection; more are refused (`REFUSED_STREAM`). h2 does
/// that by itself, where nobody sees it; [`RESETS_OWN_MAX`] ends the connection of who goes on, and that is
/// counted.
const STREAMS_MAX: u32 = 1_024;
/// What a client may have sent on one HTTP/2 connection that nobody has read yet, bytes.
const CONNECTION_WINDOW: u32 = 4 * 1024 * 1024;
/// Streams a client may open and reset before we came to serve them (CVE-2023-44487).
const RESETS_PENDING_MAX: usize = 20;
/// Streams that we reset because of what a client sent (CVE-2025-8671).
const RESETS_OWN_MAX: usize = 256;
/// An HTTP/2 client is asked so often whether it lives, and has as long to answer: one that stops in
/// the middle of a frame, or reads nothing, does not.
const PING_EVERY: Duration = Duration::from_secs(20);
/// How often idle connections are looked through.
const SWEEP: Duration = Duration::from_secs(5);

/// What the HTTP side of a sidecar is built from.
#[derive(Debug)]
pub struct Options {
    pub engine: Engine,
    pub telemetry: Telemetry,
    pub metrics: Metrics,
    /// This workload, as metrics name it.
    pub me: Party,
    pub svid: watch::Receiver<Arc<Svid>>,
    /// Whom upgraded connections (WebSocket) belong to once they are no HTTP any more.
    pub drain: Drain,
    /// From which of our addresses an application is dialled, by the application's address.
    pub application_source: fn(IpAddr) -> Option<IpAddr>,
    /// A client that takes nothing of its response for so long, or sends nothing of a body that it
    /// announced, is given up; [`crate::IDLE_MAX`] by default.
    pub idle_max: Duration,
}

/// The HTTP side of one proxy. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Http(Arc<Shared>);

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) options: Options,
    pub(crate) counters: Counters,
    pub(crate) destinations: Mutex<HashMap<ClusterName, Arc<Destination>>>,
    pub(crate) applications: inbound::Pools,
}

/// Who sent a connection, and where it wanted to go.
#[derive(Debug, Clone)]
pub struct Downstream {
    pub peer: SocketAddr,
    /// The original destination.
    pub local: SocketAddr,
    /// Verified by mutual TLS.
    pub identity: Option<Identity>,
    /// The server name of its TLS, if any.
    pub server_name: Option<String>,
}

impl Downstream {
    /// What its requests' heads may be.
    pub(crate) fn head_max(&self) -> HeadMax {
        match self.identity {
            Some(_) => HeadMax::PEER,
            None => HeadMax::CLIENT,
        }
    }
}

/// `isthmus_http_attempts_total{reason}`, `isthmus_http_attempts_denied_total{reason}`,
/// `isthmus_http_limits_total{limit}`.
#[derive(Debug, Clone, Default)]
pub(crate) struct Counters {
    attempts: Family<Reason, Counter>,
    denied: Family<Reason, Counter>,
    limits: Family<Limit, Counter>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Limit {
    limit: String,
}

impl Counters {
    fn register(metrics: &Metrics) -> Self {
        let counters = Self::default();
        metrics.register(|registry| {
            registry.register(
                "isthmus_http_attempts",
                "Attempts after a request's first, by what made them necessary",
                counters.attempts.clone(),
            );
            registry.register(
                "isthmus_http_attempts_denied",
                "Attempts that were not made, by what denied them",
                counters.denied.clone(),
            );
            registry.register(
                "isthmus_http_limits",
                "Connections ended and requests refused because of a limit, by its name",
                counters.limits.clone(),
            );
        });
        counters
    }

    pub(crate) fn again(&self, reason: &'static str) {
        self.attempts.get_or_create(&Reason { reason }).inc();
    }

    /// A client went over the limit of this name.
    pub(crate) fn limit(&self, limit: String) {
        self.limits.get_or_create(&Limit { limit }).inc();
    }

    pub(crate) fn denied(&self, reason: &'static str) {
        self.denied.get_or_create(&Reason { reason }).inc();
    }
}

impl Http {
    /// Starts a task that closes idle connections; it ends with the last clone.
    pub fn new(options: Options) -> Self {
        let shared = Arc::new(Shared {
            counters: Counters::register(&options.metrics),
            options,
            destinations: Mutex::default(),
            applications: inbound::Pools::default(),
        });
        tokio::spawn(sweep(Arc::downgrade(&shared)));
        Self(shared)
    }

    /// Serves what an application sends: each request by the route of that name.
    pub async fn outbound<T>(&self, io: T, route: ResourceName, downstream: Downstream, live: &Live)
    where
        T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let shared = self.0.clone();
        let limits = self.0.limits();
        let held = live.held();
        let context = Arc::new(outbound::Context { shared, route, downstream, held });
        let service = move |request| {
            let context = context.clone();
            async move { outbound::answer(&context, request).await }
        };
        serve(io, live, &limits, HeadMax::CLIENT, service).await;
    }

    /// Serves what the mesh sends to an application of this workload.
    pub async fn inbound<T>(
        &self,
        io: T,
        application: Application,
        downstream: Downstream,
        live: &Live,
    ) where
        T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let limits = self.0.limits();
        let shared = self.0.clone();
        let most = downstream.head_max();
        let context = Arc::new(inbound::Context::new(shared, application, downstream, live.held()));
        let outstayed = context.outstayed();
        let service = move |request| {
            let context = context.clone();
            async move { inbound::answer(&context, request).await }
        };
        tokio::select! {
            () = serve(io, live, &limits, most, service) => {}
            () = outstayed => tracing::info!("a caller's answers were cut: policies deny it now"),
        }
    }
}

/// How long clients may stand still, and who counts those that did.
#[derive(Debug, Clone)]
pub(crate) struct Limits {
    pub(crate) idle_max: Duration,
    pub(crate) counters: Counters,
}

impl Shared {
    pub(crate) fn limits(&self) -> Limits {
        Limits { idle_max: self.options.idle_max, counters: self.counters.clone() }
    }
}

async fn serve<T, F, A>(io: T, live: &Live, limits: &Limits, most: HeadMax, service: F)
where
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    F: Fn(Request<Incoming>) -> A + Send + 'static,
    A: Future<Output = Response<ResponseBody>> + Send + 'static,
{
    let heard = tokio::select! {
        // What is there already counts, however late we come to look.
        biased;
        heard = version::hear(io) => heard,
        // Nothing was asked, nor was on its way.
        () = live.asked_to_end_for(QUIET) => return,
    };
    let counters = &limits.counters;
    let (wire, io) = match heard {
        Ok(Heard::Spoken(wire, io)) => (wire, io),
        Ok(Heard::Nothing) => return,
        Ok(Heard::Late(limit)) => {
            tracing::debug!(limit, "a downstream connection ended");
            counters.limit(limit.to_owned());
            return;
        }
        Err(problem) => {
            tracing::debug!(error = %problem, "a downstream connection ended");
            return;
        }
    };
    match wire {
        Wire::Http1 => {
            let (reads, watch) = (Reads::default(), Watch::default());
            let requests = Requests::new(reads.clone());
            let taken = Taken::new(watch.clone(), limits.clone());
            let io = TokioIo::new(HeardOut::new(io, watch.clone()));
            let io = Observed { io, observer: taken };
            let io = Observed { io, observer: reads.clone() };
            let timer = HeadTimer(reads.clone());
            let service = service_fn(|request| {
                let (answer, asked) = (service(request), requests.begin());
                let (watch, live) = (watch.clone(), &live);
                async move {
                    let mut answer = answer.await;
                    if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
                        watch.forget();
                    } else if live.is_asked_to_end() {
                        let close = HeaderValue::from_static("close");
                        answer.headers_mut().append(header::CONNECTION, close);
                    }
                    Ok::<_, Infallible>(answer.map(|body| Offered::whole(body, watch, asked)))
                }
            });
            let mut connection = hyper::server::conn::http1::Builder::new()
                .timer(timer)
                .header_read_timeout(HEAD_TIMEOUT)
                .max_headers(most.headers)
                .max_header_size(most.bytes)
                .serve_connection(io, service)
                .with_upgrades();
            let end =
                |connection: Pin<&mut _>| UpgradeableConnection::graceful_shutdown(connection);
            let time = async {
                live.asked_to_end().await;
                requests.quiet().await;
            };
            let problem = until_served(Pin::new(&mut connection), time, end, live).await;
            let limit = match problem {
                Some(problem) if problem.is_timeout() => Some(reads.limit()),
                Some(problem) if problem.is_parse_too_large() => {
                    connection.into_parts().map(|parts| refusal::outgrown(&parts.read_buf, most))
                }
                _ => None,
            };
            if let Some(limit) = limit {
                counters.limit(limit.to_owned());
            }
        }
        Wire::Http2 => {
            let service = service_fn(move |request: Request<Incoming>| {
                // hyper would send it, and the client take that for an error of the protocol.
                let bodiless = request.method() == Method::HEAD;
                let answer = service(request);
                let offered = move |body| match body {
                    ResponseBody::Local(_) if bodiless => ResponseBody::Local(Bytes::new()),
                    body => body,
                };
                async move {
                    Ok::<_, Infallible>(answer.await.map(|body| Offered::in_pieces(offered(body))))
                }
            });
            let farewell = Farewell::default();
            // A ping ends nothing while what is to be written finds no room: GOAWAY would wait behind it.
            let taken = Taken::new(Watch::default(), limits.clone());
            let io = Observed { io: TokioIo::new(io), observer: taken };
            let io = Observed { io, observer: farewell.clone() };
            let connection =
                hyper::server::conn::http2::Builder::new(Streams { limits: limits.clone() })
                    .timer(TokioTimer::new())
                    .max_concurrent_streams(STREAMS_MAX)
                    .initial_stream_window_size(STREAM_WINDOW)
                    .initial_connection_window_size(CONNECTION_WINDOW)
                    .max_header_list_size(HEAD_LOOKED_AT as u32)
                    .max_pending_accept_reset_streams(RESETS_PENDING_MAX)
                    .max_local_error_reset_streams(RESETS_OWN_MAX)
                    .keep_alive_interval(PING_EVERY)
                    .keep_alive_timeout(PING_EVERY)
                    .serve_connection(io, service);
            let mut connection = pin!(connection);
            let end = |connection: Pin<&mut _>| http2::Connection::graceful_shutdown(connection);
            let time = live.asked_to_end();
            let problem = until_served(connection.as_mut(), time, end, live).await;
            if let Some(limit) = problem.and_then(|it| grpc::own_limit(&it, &farewell.said())) {
                counters.limit(limit);
            }
        }
    }
}

/// Serves a connection to its end; from that time on it takes no new requests and ends after the last.
/// Returns what ended it before its time.
async fn until_served<C>(
    mut connection: Pin<&mut C>,
    time: impl Future<Output = ()>,
    end: impl Fn(Pin<&mut C>),
    live: &Live,
) -> Option<hyper::Error>
where
    C: Future<Output = hyper::Result<()>>,
{
    let (mut time, mut ending) = (pin!(time), false);
    loop {
        tokio::select! {
            // What is there already is read before time is called.
            biased;
            served = connection.as_mut() => {
                let problem = served.err()?;
                tracing::debug!(error = %problem, "a downstream connection ended");
                return Some(problem);
            }
            () = time.as_mut(), if !ending => {
                ending = true;
                end(connection.as_mut());
            }
            () = live.cut() => return None,
        }
    }
}

/// An answer of our own, with a sentence that says why.
pub(crate) fn local(status: StatusCode, sentence: &str) -> Response<ResponseBody> {
    Response::builder()
        .status(status)
        .header(header::CONTENT_TYPE, "text/plain; charset=utf-8")
        .body(ResponseBody::Local(Bytes::from(format!("isthmus: {sentence}\n"))))
        .expect("a literal header makes a response")
}

async fn sweep(shared: Weak<Shared>) {
    let mut ticks = tokio::time::interval(SWEEP);
    loop {
        ticks.tick().await;
        let Some(shared) = shared.upgrade() else { return };
        let now = Instant::now();
        shared.applications.sweep(now);
        let mut destinations = shared.destinations.lock().expect("no holder panics");
        // One that nobody uses has no health to remember either.
        destinations.retain(|_, destination| {
            let empty = destination.pool.sweep(now);
            !empty || Arc::strong_count(destination) > 1 || !destination.is_stale(now)
        });
    }
}
