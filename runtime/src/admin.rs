//! Pages about a process: GET only, on loopback or a Unix socket; metrics and health on ports of
//! their own, which show nothing else.

use crate::metrics::Metrics;
use crate::places::Places;
use crate::readiness::Readiness;
use anyhow::Context as _;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::metrics::counter::Counter;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UnixListener, UnixStream};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// Connections served at once per page server; more are closed.
const CONNECTIONS_MAX: usize = 512;
/// Of these from one address: a stranger must not keep the kubelet out, which ends pods whose health it
/// cannot ask for.
const PER_SOURCE_MAX: usize = 32;
/// A client has this long to send its request head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// And this long for all of its visit, with the time that a page takes which has to ask somebody.
const VISIT_MAX: Duration = Duration::from_secs(300);

/// What a page shows: its query string in, a content type and a body out.
pub type Page = Arc<dyn Fn(&str) -> Body + Send + Sync>;

/// A page that has to ask somebody first: nothing of the request goes into it.
pub type Asked = Arc<dyn Fn() -> Pin<Box<dyn Future<Output = Body> + Send>> + Send + Sync>;

/// A page's content.
#[derive(Debug)]
pub enum Body {
    Json(String),
    Text(String),
    OpenMetrics(String),
    /// 503 with a text.
    Unavailable(String),
}

/// Pages by path. `/` lists them.
#[derive(Clone, Default)]
pub struct Pages {
    pages: BTreeMap<String, Page>,
    asked: BTreeMap<String, Asked>,
    /// Connections closed for [`CONNECTIONS_MAX`] or [`PER_SOURCE_MAX`].
    full: Counter,
}

impl std::fmt::Debug for Pages {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.pages.keys().chain(self.asked.keys())).finish()
    }
}

impl Pages {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn with(mut self, path: &str, page: impl Fn(&str) -> Body + Send + Sync + 'static) -> Self {
        self.pages.insert(path.into(), Arc::new(page));
        self
    }

    /// A page whose content takes a while, which is the page's own to bound.
    pub fn with_asked<F>(mut self, path: &str, page: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Body> + Send + 'static,
    {
        self.asked.insert(path.into(), Arc::new(move || Box::pin(page())));
        self
    }

    /// A page that shows a value as JSON.
    pub fn with_json<T: serde::Serialize>(
        self,
        path: &str,
        value: impl Fn() -> T + Send + Sync + 'static,
    ) -> Self {
        self.with(path, move |_| match serde_json::to_string_pretty(&value()) {
            Ok(text) => Body::Json(text),
            Err(e) => Body::Unavailable(format!("cannot be shown as JSON: {e}")),
        })
    }

    /// `/readyz`: 200 `ok`, or 503 with one awaited thing a line. Also under Istio's name.
    pub fn with_readiness(self, readiness: &Readiness) -> Self {
        let page = |readiness: Readiness| {
            move |_: &str| {
                let awaited = readiness.awaited();
                if awaited.is_empty() {
                    return Body::Text("ok\n".into());
                }
                let lines =
                    awaited.iter().map(|(what, why)| format!("waiting for {what}: {why}\n"));
                Body::Unavailable(lines.collect())
            }
        };
        self.with("/readyz", page(readiness.clone()))
            .with("/healthz/ready", page(readiness.clone()))
    }

    /// Counts the limits of these pages there, without showing a page of them.
    pub fn counted_in(mut self, metrics: &Metrics) -> Self {
        self.full = metrics.page_connections();
        self
    }

    /// `/metrics`, and the names under which Envoy and Istio show them.
    pub fn with_metrics(self, metrics: &Metrics) -> Self {
        let page = |metrics: Metrics| move |_: &str| Body::OpenMetrics(metrics.encode());
        self.counted_in(metrics)
            .with("/metrics", page(metrics.clone()))
            .with("/stats/prometheus", page(metrics.clone()))
    }

    async fn answer(&self, method: &Method, path: &str, query: &str) -> Response<Full<Bytes>> {
        if method != Method::GET {
            return respond(StatusCode::METHOD_NOT_ALLOWED, TEXT, "only GET\n".into());
        }
        let body = if let Some(page) = self.pages.get(path) {
            page(query)
        } else if let Some(page) = self.asked.get(path) {
            page().await
        } else {
            let paths = self.pages.keys().chain(self.asked.keys());
            let list: String = paths.map(|path| format!("{path}\n")).collect();
            let status = if path == "/" { StatusCode::OK } else { StatusCode::NOT_FOUND };
            return respond(status, TEXT, list);
        };
        match body {
            Body::Json(text) => respond(StatusCode::OK, "application/json", text),
            Body::Text(text) => respond(StatusCode::OK, TEXT, text),
            Body::OpenMetrics(text) => respond(
                StatusCode::OK,
                "application/openmetrics-text; version=1.0.0; charset=utf-8",
                text,
            ),
            Body::Unavailable(text) => respond(StatusCode::SERVICE_UNAVAILABLE, TEXT, text),
        }
    }
}

const TEXT: &str = "text/plain; charset=utf-8";

fn respond(status: StatusCode, kind: &str, text: String) -> Response<Full<Bytes>> {
    Response::builder()
        .status(status)
        .header(header::CONTENT_TYPE, kind)
        .body(Full::new(Bytes::from(text)))
        .expect("a checked status and a literal header make a response")
}

/// Where pages are shown.
#[derive(Debug, Clone)]
pub enum Listen {
    /// Admin pages must be on loopback; [`serve`] refuses another address unless `public`.
    Tcp {
        address: SocketAddr,
        public: bool,
    },
    Unix(PathBuf),
}

/// Binds and serves until `end`. Returns the bound TCP address at once; serving goes on behind.
pub async fn serve(
    listen: Listen,
    pages: Pages,
    end: CancellationToken,
) -> anyhow::Result<Option<SocketAddr>> {
    match listen {
        Listen::Tcp { address, public } => {
            anyhow::ensure!(
                public || address.ip().is_loopback(),
                "ISM1004 admin pages are for this machine only, {address} is not loopback. \
                 Fix: use 127.0.0.1 or a Unix socket"
            );
            let listener = bind_tcp(address)?;
            let bound = listener.local_addr().context("a bound socket has an address")?;
            tokio::spawn(accept_loop(listener, pages, public, end));
            Ok(Some(bound))
        }
        Listen::Unix(path) => {
            // A socket file left by a process that was killed would make bind fail for ever.
            let _ = std::fs::remove_file(&path);
            let listener = UnixListener::bind(&path).with_context(|| {
                format!(
                    "ISM1005 cannot listen on {}. Fix: choose a writable folder",
                    path.display()
                )
            })?;
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))
                .with_context(|| format!("cannot protect {}", path.display()))?;
            tokio::spawn(accept_loop(listener, pages, false, end));
            Ok(None)
        }
    }
}

/// Connections that wait to be accepted, as many as Linux allows unless told otherwise
/// (`net.core.somaxconn`): one for which there is no room knocks again only after a second.
const BACKLOG: u32 = 4_096;

/// Binds a TCP listener, with an error that says which address and what to do.
pub fn bind_tcp(address: SocketAddr) -> anyhow::Result<TcpListener> {
    let bind = || {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        // A restarted program takes its port back from connections that are still ending.
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    bind().with_context(|| {
        format!(
            "ISM1005 cannot listen on {address}. Fix: stop what holds it \
             (`ss -ltnp sport = :{}` shows it), or configure another port",
            address.port()
        )
    })
}

trait Accept: Send + Sync + 'static {
    type Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static;
    /// With where it comes from.
    fn next(&self) -> impl Future<Output = std::io::Result<(Self::Stream, IpAddr)>> + Send;
}

impl Accept for TcpListener {
    type Stream = TcpStream;
    async fn next(&self) -> std::io::Result<(TcpStream, IpAddr)> {
        self.accept().await.map(|(stream, peer)| (stream, peer.ip()))
    }
}

impl Accept for UnixListener {
    type Stream = UnixStream;
    async fn next(&self) -> std::io::Result<(UnixStream, IpAddr)> {
        let here = Ipv4Addr::LOCALHOST.into();
        self.accept().await.map(|(stream, _)| (stream, here))
    }
}

async fn accept_loop(listener: impl Accept, pages: Pages, public: bool, end: CancellationToken) {
    let places = Places::new(CONNECTIONS_MAX, PER_SOURCE_MAX);
    loop {
        let accepted = tokio::select! {
            () = end.cancelled() => return,
            accepted = listener.next() => accepted,
        };
        let (stream, source) = match accepted {
            Ok(accepted) => accepted,
            Err(e) => {
                // Out of descriptors, or a client that left already: neither may end the loop.
                tracing::warn!(error = %e, "accepting an admin connection failed");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let Some(place) = places.take(source) else {
            pages.full.inc();
            continue;
        };
        let (pages, end) = (pages.clone(), end.clone());
        // Who is on this machine may look for as long as he likes.
        let visit_max = if public { VISIT_MAX } else { Duration::MAX };
        tokio::spawn(async move {
            let _place = place;
            let service = service_fn(move |request: Request<Incoming>| {
                let pages = pages.clone();
                async move {
                    let (method, uri) = (request.method(), request.uri());
                    let query = uri.query().unwrap_or_default();
                    let response = pages.answer(method, uri.path(), query).await;
                    Ok::<_, std::convert::Infallible>(response)
                }
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_TIMEOUT)
                // Where strangers come, a place is held for one answer, not from one to the next.
                .keep_alive(!public)
                .serve_connection(TokioIo::new(stream), service);
            tokio::select! {
                _ = timeout(visit_max, connection) => {}
                () = end.cancelled() => {}
            }
        });
    }
}
