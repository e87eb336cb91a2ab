//! The mutating webhook: the API server asks about each new pod that wants a sidecar, and is told how
//! to change it. What becomes of a pod is `cluster::inject`'s to decide; this is the door to it.
//!
//! In doubt a pod is admitted as it is, with a warning that its author sees. Only where we know
//! nothing of our own cluster yet we do not answer, so that no pod starts in plaintext by accident
//! (docs/adr/0012).

mod review;

use crate::numbers::Numbers;
use cluster::inject::{NamespaceLabels, Settings};
use futures::future::BoxFuture;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use mesh::inventory::Inventory;
use review::Review;
use runtime::places::Places;
use runtime::readiness::Readiness;
use rustls::ServerConfig;
use serde::Deserialize;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

/// Longest AdmissionReview that is read, bytes: an API server takes requests of 3 MiB, and sends an
/// update's old object beside the new one.
const BODY_MAX: usize = 8 * 1024 * 1024;
/// From TCP's accept to the end of TLS's handshake.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// A connection may be idle, or send the head of a request, for so long.
const HEAD: Duration = Duration::from_secs(60);
/// From a request's head to its answer; the API server waits 10 s.
const ANSWER: Duration = Duration::from_secs(8);
/// How long the API server has to tell a namespace's labels.
const LABELS: Duration = Duration::from_secs(2);
/// Connections at once; each has one request at a time. More are closed.
const CONNECTIONS_MAX: usize = 256;
/// Of these from one address: a stranger in the cluster must not keep API servers out.
const PER_SOURCE_MAX: usize = 64;
/// How often the settings are read again, and after a failure at first.
const RELOAD: Duration = Duration::from_secs(10);
const RETRY: Duration = Duration::from_secs(1);

/// In the control plane's configuration.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Config {
    #[serde(default = "listen")]
    pub listen: SocketAddr,
    /// Names by which API servers call us, besides those of Service `isthmus-control-plane`.
    #[serde(default)]
    pub names: Vec<String>,
}

fn listen() -> SocketAddr {
    SocketAddr::from(([0, 0, 0, 0], 15017))
}

/// The names in the control plane's certificate; the first is what an API server expects of a
/// webhook's Service.
pub(crate) fn names(root_namespace: &str, config: Option<&Config>) -> Vec<String> {
    let service = format!("{}.{root_namespace}.svc", crate::authority::ACCOUNT);
    let more = config.map(|config| config.names.clone()).unwrap_or_default();
    [service.clone(), format!("{service}.cluster.local")].into_iter().chain(more).collect()
}

/// What the webhook asks of its cluster.
pub(crate) struct Cluster {
    /// Settings, given what the cluster says of itself where that is known.
    pub(crate) settings:
        Box<dyn Fn(Arc<Inventory>) -> BoxFuture<'static, anyhow::Result<Settings>> + Send + Sync>,
    /// Labels of a namespace, `None` where it does not exist.
    pub(crate) labels: Box<
        dyn Fn(String) -> BoxFuture<'static, anyhow::Result<Option<NamespaceLabels>>> + Send + Sync,
    >,
}

/// All that the webhook needs.
pub(crate) struct Webhook {
    pub(crate) listener: TcpListener,
    pub(crate) tls: Arc<ServerConfig>,
    pub(crate) cluster: Cluster,
    pub(crate) own: watch::Receiver<Option<Arc<Inventory>>>,
    pub(crate) numbers: Numbers,
    pub(crate) readiness: Readiness,
    pub(crate) end: CancellationToken,
}

/// What requests share.
struct Shared {
    cluster: Cluster,
    settings: watch::Receiver<Option<Arc<Settings>>>,
    numbers: Numbers,
}

impl Webhook {
    /// Serves until the end, and never returns.
    pub(crate) async fn run(self) -> Infallible {
        let Self { listener, tls, cluster, own, numbers, readiness, end } = self;
        let (known, settings) = watch::channel(None);
        let shared = Arc::new(Shared { cluster, settings, numbers });
        let follow = follow(&shared, own, &known, &readiness);
        let accept = accept(listener, TlsAcceptor::from(tls), shared.clone(), end);
        tokio::join!(follow, accept).0
    }
}

/// Not ready before the settings were asked for once.
pub(crate) fn wait_for_settings(readiness: &Readiness) {
    readiness.wait_for("injection", "ConfigMap isthmus-injection has not been read");
}

/// Keeps the settings; a bad or absent ConfigMap leaves the last good ones. Readiness waits for the
/// first answer only: proxies are served also where nothing can be injected.
async fn follow(
    shared: &Shared,
    mut own: watch::Receiver<Option<Arc<Inventory>>>,
    known: &watch::Sender<Option<Arc<Settings>>>,
    readiness: &Readiness,
) -> Infallible {
    let mut said = String::new();
    loop {
        let mesh = own.wait_for(Option::is_some).await.ok().and_then(|mesh| mesh.clone());
        // Whoever watches has ended: nothing changes any more.
        let Some(mesh) = mesh else { return std::future::pending().await };
        let read = (shared.cluster.settings)(mesh).await;
        let pause = match read {
            Ok(settings) => {
                said.clear();
                known.send_if_modified(|old| {
                    let differs = old.as_deref() != Some(&settings);
                    if differs {
                        tracing::info!(image = settings.image, "injection settings");
                        *old = Some(Arc::new(settings));
                    }
                    differs
                });
                RELOAD
            }
            Err(error) => {
                let error = format!("{error:#}");
                shared.numbers.renewal_failed("injection");
                if error != said {
                    tracing::warn!(error, "the injection settings cannot be used");
                    said = error;
                }
                RETRY
            }
        };
        readiness.done("injection");
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            changed = own.changed() => if changed.is_err() {
                return std::future::pending().await;
            },
        }
    }
}

async fn accept(
    listener: TcpListener,
    tls: TlsAcceptor,
    shared: Arc<Shared>,
    end: CancellationToken,
) -> Infallible {
    let places = Places::new(CONNECTIONS_MAX, PER_SOURCE_MAX);
    loop {
        let accepted = tokio::select! {
            () = end.cancelled() => return std::future::pending().await,
            accepted = listener.accept() => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, or a client that left already: neither may end the loop.
                tracing::warn!(%error, "accepting a webhook connection failed");
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            }
        };
        let Some(place) = places.take(peer.ip()) else {
            shared.numbers.connection_refused("webhook_full");
            continue;
        };
        let (tls, shared, end) = (tls.clone(), shared.clone(), end.clone());
        tokio::spawn(async move {
            let _place = place;
            tokio::select! {
                () = end.cancelled() => {}
                () = converse(stream, tls, shared) => {}
            }
        });
    }
}

/// One connection, request after request.
async fn converse(stream: TcpStream, tls: TlsAcceptor, shared: Arc<Shared>) {
    let _ = stream.set_nodelay(true); // Costs latency only.
    let stream = match timeout(HANDSHAKE, tls.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            // An API server that does not trust our certificate shows here first.
            tracing::warn!(%error, "a TLS handshake with the webhook failed");
            return shared.numbers.connection_refused("webhook_handshake");
        }
        Err(_) => return shared.numbers.connection_refused("webhook_late"),
    };
    let service = service_fn(move |request| {
        let shared = shared.clone();
        async move { Ok::<_, Infallible>(shared.serve(request).await) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = connection.await {
        tracing::debug!(%error, "a webhook connection ended");
    }
}

impl Shared {
    async fn serve(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        match timeout(ANSWER, self.answer(request)).await {
            Ok(Ok(body)) => respond(StatusCode::OK, "application/json", body),
            Ok(Err((status, outcome, why))) => {
                self.numbers.injection(outcome);
                tracing::warn!(outcome, why, "a webhook request was not answered");
                respond(status, "text/plain; charset=utf-8", why)
            }
            Err(_) => {
                self.numbers.injection("late");
                let why = format!("no answer within {} s", ANSWER.as_secs());
                respond(StatusCode::SERVICE_UNAVAILABLE, "text/plain; charset=utf-8", why)
            }
        }
    }

    async fn answer(
        &self,
        request: Request<Incoming>,
    ) -> Result<String, (StatusCode, &'static str, String)> {
        // Istio's path may go on (`/inject/cluster/NAME`).
        let path = request.uri().path();
        if path != "/inject" && !path.starts_with("/inject/") {
            return Err((StatusCode::NOT_FOUND, "no_such_path", "only /inject\n".into()));
        }
        if request.method() != Method::POST {
            let why = "an AdmissionReview comes by POST\n".into();
            return Err((StatusCode::METHOD_NOT_ALLOWED, "no_review", why));
        }
        let body = Limited::new(request.into_body(), BODY_MAX).collect().await;
        let body = body.map_err(|error| {
            if error.is::<LengthLimitError>() {
                let why = format!("more than {BODY_MAX} bytes\n");
                (StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", why)
            } else {
                (StatusCode::BAD_REQUEST, "no_review", format!("{error}\n"))
            }
        })?;
        let review = Review::read(&body.to_bytes())
            .map_err(|why| (StatusCode::BAD_REQUEST, "no_review", why))?;
        let settings = self.settings.borrow().clone().ok_or_else(|| {
            let why = "ISM4020 the injection settings of this cluster are not known, and a pod \
                       without a sidecar would speak in plaintext. Fix: ConfigMap isthmus-injection; \
                       the control plane's log says what is wrong with it\n";
            (StatusCode::SERVICE_UNAVAILABLE, "no_settings", why.to_owned())
        })?;
        let labels = self.labels(&review.namespace).await;
        let (answer, outcome) = review.decide(labels, settings).await;
        self.numbers.injection(outcome);
        Ok(answer)
    }

    /// Labels of the pod's namespace. Where they cannot be had, the API server's own choice stands:
    /// by the webhook's selectors it asks only about pods that want a sidecar.
    async fn labels(&self, namespace: &str) -> NamespaceLabels {
        let asked = || NamespaceLabels::from([("istio-injection".into(), "enabled".into())]);
        let why = match timeout(LABELS, (self.cluster.labels)(namespace.to_owned())).await {
            Ok(Ok(labels)) => return labels.unwrap_or_else(asked),
            Ok(Err(error)) => format!("{error:#}"),
            Err(_) => format!("no answer within {} s", LABELS.as_secs()),
        };
        tracing::warn!(
            namespace,
            why,
            "its labels are not known; the pod is taken to be asked for"
        );
        asked()
    }
}

fn respond(status: StatusCode, kind: &'static str, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    response
}

#[cfg(test)]
mod tests;
