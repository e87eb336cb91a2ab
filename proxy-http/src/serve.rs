//! The side that takes requests: limits, deadlines, and a clean end of each connection.

use crate::body::ResponseBody;
use crate::head_timer::{HEAD_TIMEOUT, HeadTimer, Reads, Watched};
use crate::inbound::{self, Application};
use crate::outbound::{self, Destination};
use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
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
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use trust::svid::Svid;

/// Headers of one request; more are refused with 431.
const HEADERS_MAX: usize = 100;
/// Longest request head, bytes; longer ones are refused with 431.
const HEAD_MAX: usize = 64 * 1024;
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

/// `isthmus_http_attempts_total{reason}`, `isthmus_http_attempts_denied_total{reason}`.
#[derive(Debug, Clone, Default)]
pub(crate) struct Counters {
    attempts: Family<Reason, Counter>,
    denied: Family<Reason, Counter>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
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
        });
        counters
    }

    pub(crate) fn again(&self, reason: &'static str) {
        self.attempts.get_or_create(&Reason { reason }).inc();
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
        let context = Arc::new(outbound::Context { shared, route, downstream });
        let service = move |request| {
            let context = context.clone();
            async move { outbound::answer(&context, request).await }
        };
        serve(io, live, service).await;
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
        let context = Arc::new(inbound::Context::new(self.0.clone(), application, downstream));
        let service = move |request| {
            let context = context.clone();
            async move { inbound::answer(&context, request).await }
        };
        serve(io, live, service).await;
    }
}

async fn serve<T, F, A>(io: T, live: &Live, service: F)
where
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    F: Fn(Request<Incoming>) -> A + Send,
    A: Future<Output = Response<ResponseBody>> + Send,
{
    let reads = Reads::default();
    let io = Watched { io: TokioIo::new(io), reads: reads.clone() };
    let service = service_fn(|request| {
        let answer = service(request);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(HeadTimer(reads))
        .header_read_timeout(HEAD_TIMEOUT)
        .max_headers(HEADERS_MAX)
        .max_header_size(HEAD_MAX)
        .serve_connection(io, service)
        .with_upgrades();
    tokio::pin!(connection);
    let mut ending = false;
    loop {
        tokio::select! {
            served = connection.as_mut() => {
                if let Err(problem) = served {
                    tracing::debug!(error = %problem, "a downstream connection ended");
                }
                return;
            }
            () = live.asked_to_end(), if !ending => {
                ending = true;
                connection.as_mut().graceful_shutdown();
            }
            () = live.cut() => return,
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
