//! The wire: TLS, HTTP/1.1, limits on what strangers send, and answers.

use crate::identity::User;
use crate::operation::{self, Ask, Operation};
use crate::refusal::Refusal;
use crate::server::{Outcome, Server};
use crate::view::View;
use crate::watch::Stream;
use crate::wire::Impatient;
use crate::{discovery, openapi};
use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited, StreamBody};
use hyper::body::{Body as _, Frame, Incoming};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

/// Longest body that is read.
pub(crate) const BODY_MAX: usize = 3 << 20;
/// How much of a longer one is read away, so that its sender sees the answer.
const DRAINED_MAX: usize = 256 << 20;
const BODY_PATIENCE: Duration = Duration::from_secs(30);
const HANDSHAKE_PATIENCE: Duration = Duration::from_secs(10);
/// For a head, and between requests: longer than clients keep an idle connection, so that they close it.
const HEAD_PATIENCE: Duration = Duration::from_secs(100);
const HEAD_MAX: usize = 64 << 10;
const HEADERS_MAX: usize = 100;
/// Open at once; more are closed unanswered.
const CONNECTIONS_MAX: usize = 4096;
/// Fewer than connections: who watches cannot lock out who asks.
pub(crate) const WATCHES_MAX: usize = 2048;
/// Bodies in memory at once.
const BODIES_MAX: usize = 100;

type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;

/// What all connections share.
pub(crate) struct Wire {
    pub(crate) server: Arc<Server>,
    pub(crate) end: CancellationToken,
    watches: Arc<Semaphore>,
    bodies: Arc<Semaphore>,
    write_patience: Duration,
}

impl Wire {
    pub(crate) fn new(
        server: Arc<Server>,
        end: CancellationToken,
        write_patience: Duration,
    ) -> Self {
        let watches = Arc::new(Semaphore::new(WATCHES_MAX));
        let bodies = Arc::new(Semaphore::new(BODIES_MAX));
        Self { server, end, watches, bodies, write_patience }
    }
}

/// Serves until the end; then connections have a moment to finish.
pub(crate) async fn serve(listener: TcpListener, tls: TlsAcceptor, wire: Arc<Wire>) {
    let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut tasks = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            () = wire.end.cancelled() => break,
            Some(_) = tasks.join_next(), if !tasks.is_empty() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    let Ok(permit) = connections.clone().try_acquire_owned() else { continue };
                    let (tls, wire) = (tls.clone(), wire.clone());
                    tasks.spawn(async move {
                        let _permit = permit;
                        connection(stream, tls, wire).await;
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "no connection can be accepted");
                    // Most often no file descriptors: waits until one is free.
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            },
        }
    }
    drop(listener);
    let all = async { while tasks.join_next().await.is_some() {} };
    if tokio::time::timeout(Duration::from_secs(2), all).await.is_err() {
        tasks.abort_all();
    }
}

async fn connection(stream: TcpStream, tls: TlsAcceptor, wire: Arc<Wire>) {
    let _ = stream.set_nodelay(true);
    let stream = Impatient::new(stream, wire.write_patience);
    let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE_PATIENCE, tls.accept(stream)).await else {
        return;
    };
    let end = wire.end.clone();
    let service = hyper::service::service_fn(move |request| {
        let wire = wire.clone();
        async move { Ok::<_, Infallible>(answer(wire, request).await) }
    });
    let serving = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_PATIENCE)
        .max_buf_size(HEAD_MAX)
        .max_headers(HEADERS_MAX)
        .serve_connection(TokioIo::new(stream), service);
    let mut serving = std::pin::pin!(serving);
    let done = tokio::select! {
        done = serving.as_mut() => done,
        () = end.cancelled() => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = done {
        tracing::debug!(%error, "a connection ended");
    }
}

async fn answer(wire: Arc<Wire>, request: Request<Incoming>) -> Answer {
    let head = *request.method() == Method::HEAD;
    let answer = match respond(&wire, request).await {
        Ok(answer) => answer,
        Err(refusal) => refused(&refusal),
    };
    if head { answer.map(|_| full(Bytes::new())) } else { answer }
}

async fn respond(wire: &Arc<Wire>, request: Request<Incoming>) -> Result<Answer, Refusal> {
    let server = &wire.server;
    let (head, body) = request.into_parts();
    let bearer =
        head.headers.get(header::AUTHORIZATION).map(|text| text.to_str().unwrap_or_default());
    let token = bearer.and_then(|text| text.strip_prefix("Bearer ")).map(str::trim);
    let user = match (bearer, token) {
        (Some(_), None) => return Err(Refusal::unauthorized()),
        _ => server.authenticate(token)?,
    };
    let (path, query) = (head.uri.path(), head.uri.query().unwrap_or_default());
    let registry = server.registry();
    let ask = operation::parse(&head.method, path, query, &head.headers, &registry);
    let mut operation = match ask {
        Ok(Ask::Operation(operation)) => operation,
        Ok(other) => {
            server.admit_path(&user, path)?;
            return page(wire, other, &head.headers);
        }
        Err(refusal) => {
            // What is there is no stranger's business.
            if refusal.code == 404 && !path.starts_with("/api/") && !path.starts_with("/apis/") {
                server.admit_path(&user, path)?;
            } else if user == User::anonymous() {
                return Err(Refusal::new(
                    403,
                    "Forbidden",
                    format!("forbidden: User \"system:anonymous\" cannot get path {path:?}"),
                ));
            }
            return Err(refusal);
        }
    };
    server.admit(&user, &operation)?;
    let include = operation.params.text("includeObject").to_owned();
    let view = View::wanted(&head.headers, &include, jiff::Timestamp::now())?;
    let outcome = if operation.verb.writes() {
        let Ok(_permit) = wire.bodies.clone().try_acquire_owned() else {
            return Err(Refusal::too_many("too many requests, please try again later"));
        };
        let bytes = read(body).await?;
        operation.body = operation::body(operation.verb, &head.headers, &bytes)?;
        drop(bytes);
        let server = server.clone();
        tokio::task::spawn_blocking(move || {
            server.perform(&user, operation, jiff::Timestamp::now())
        })
        .await
        .map_err(|_| Refusal::internal("the operation did not end"))??
    } else {
        server.perform(&user, operation, jiff::Timestamp::now())?
    };
    render(wire, outcome, view)
}

/// The whole body, within its limits.
async fn read(mut body: Incoming) -> Result<Bytes, Refusal> {
    let announced = body.size_hint().lower();
    let collected = tokio::time::timeout(BODY_PATIENCE, async {
        if announced > BODY_MAX as u64 {
            drain(&mut body).await;
            return Err(Refusal::too_large(BODY_MAX));
        }
        let whole = Limited::new(&mut body, BODY_MAX).collect().await;
        match whole {
            Ok(whole) => Ok(whole.to_bytes()),
            Err(error) if error.is::<LengthLimitError>() => {
                drain(&mut body).await;
                Err(Refusal::too_large(BODY_MAX))
            }
            Err(error) => Err(Refusal::bad_request(format!("the body cannot be read: {error}"))),
        }
    });
    collected.await.unwrap_or_else(|_| {
        Err(Refusal::new(408, "Timeout", "the request's body did not come in 30 seconds"))
    })
}

async fn drain(body: &mut Incoming) {
    let mut seen = 0;
    while let Some(Ok(frame)) = body.frame().await {
        seen += frame.data_ref().map_or(0, Bytes::len);
        if seen > DRAINED_MAX {
            return;
        }
    }
}

fn page(wire: &Wire, ask: Ask, headers: &http::HeaderMap) -> Result<Answer, Refusal> {
    let registry = wire.server.registry();
    match ask {
        Ask::Health => Ok(text(200, "ok")),
        Ask::Version => Ok(json_answer(200, &crate::version())),
        Ask::OpenApi(path) if path == openapi::V2 && openapi::wants_protobuf(headers) => {
            // A message all of whose fields are absent.
            let mut answer = text(200, "");
            let media = HeaderValue::from_static(openapi::V2_PROTOBUF);
            answer.headers_mut().insert(header::CONTENT_TYPE, media);
            Ok(answer)
        }
        Ask::OpenApi(path) => Ok(json_answer(200, &openapi::answer(&registry, &path)?)),
        Ask::Discovery(path) => {
            let view = View::wanted(headers, "", jiff::Timestamp::now())?;
            let aggregated = matches!(view, View::Aggregated);
            let found = discovery::answer(&registry, &path, aggregated)?;
            let mut answer = json_answer(200, &found);
            if found["kind"] == "APIGroupDiscoveryList" {
                let media = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
                answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(media));
            }
            Ok(answer)
        }
        Ask::Operation(Operation { kind, .. }) => {
            Err(Refusal::internal(format!("{} is no page", kind.plural)))
        }
    }
}

fn render(wire: &Arc<Wire>, outcome: Outcome, view: View) -> Result<Answer, Refusal> {
    match outcome {
        Outcome::Object { code, entry, kind, warnings } => {
            let same = entry.value["apiVersion"] == kind.api_version().as_str();
            let mut answer = match view {
                View::Whole if same => bytes(code, entry.json.clone()),
                view => json_answer(code, &view.one(&kind, &entry.value)),
            };
            warn(&mut answer, &warnings);
            Ok(answer)
        }
        Outcome::Value { code, value, warnings } => {
            let mut answer = json_answer(code, &value);
            warn(&mut answer, &warnings);
            Ok(answer)
        }
        Outcome::List { kind, entries, revision, next, left } => {
            let mut list = json!({"resourceVersion": revision.to_string()});
            if let Some(next) = next {
                list["continue"] = json!(next);
                list["remainingItemCount"] = json!(left);
            }
            let objects = entries.iter().map(|entry| &entry.value);
            Ok(json_answer(200, &view.many(&kind, objects, list)))
        }
        Outcome::Watch(watch) => {
            let Ok(permit) = wire.watches.clone().try_acquire_owned() else {
                return Err(Refusal::too_many(format!(
                    "{WATCHES_MAX} watches are open, which is all this server keeps"
                )));
            };
            let stream = Stream::new(wire.server.clone(), watch, view);
            Ok(streamed(stream, permit, wire.end.clone()))
        }
    }
}

fn streamed(stream: Stream, permit: OwnedSemaphorePermit, end: CancellationToken) -> Answer {
    let lines = futures::stream::unfold((stream, permit, end), |(mut stream, permit, end)| async {
        let lines = tokio::select! {
            lines = stream.next() => lines?,
            () = end.cancelled() => return None,
        };
        Some((Ok(Frame::data(lines)), (stream, permit, end)))
    });
    let mut answer = Response::new(StreamBody::new(lines).boxed_unsync());
    let media = HeaderValue::from_static("application/json");
    answer.headers_mut().insert(header::CONTENT_TYPE, media);
    answer
}

fn full(bytes: Bytes) -> UnsyncBoxBody<Bytes, Infallible> {
    Full::new(bytes).boxed_unsync()
}

fn bytes(code: u16, json: Bytes) -> Answer {
    let mut answer = Response::new(full(json));
    *answer.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let media = HeaderValue::from_static("application/json");
    answer.headers_mut().insert(header::CONTENT_TYPE, media);
    let headers = answer.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    answer
}

fn json_answer(code: u16, value: &Value) -> Answer {
    bytes(code, value.to_string().into())
}

fn text(code: u16, words: &str) -> Answer {
    let mut answer = bytes(code, Bytes::copy_from_slice(words.as_bytes()));
    let media = HeaderValue::from_static("text/plain; charset=utf-8");
    answer.headers_mut().insert(header::CONTENT_TYPE, media);
    answer
}

fn refused(refusal: &Refusal) -> Answer {
    if refusal.message == "404 page not found" {
        return text(404, "404 page not found\n");
    }
    let mut answer = json_answer(refusal.code, &refusal.status());
    if let Some(seconds) = refusal.retry_after {
        answer.headers_mut().insert(header::RETRY_AFTER, seconds.into());
    }
    answer
}

fn warn(answer: &mut Answer, warnings: &[String]) {
    for warning in warnings {
        let quoted = warning.replace('\\', "\\\\").replace('"', "\\\"");
        if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{quoted}\"")) {
            answer.headers_mut().append(header::WARNING, value);
        }
    }
}
