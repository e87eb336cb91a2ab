//! The workload of every scenario: says over HTTP and TCP which cluster and pod it is.

use crate::exact;
use anyhow::{Context, Result};
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{Stream, StreamExt};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

/// Who answers.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    #[arg(long)]
    pub cluster: String,
    #[arg(long)]
    pub pod: String,
    /// HTTP/1.1, and HTTP/2 with prior knowledge.
    #[arg(long, default_value = "0.0.0.0:8080")]
    pub http: SocketAddr,
    /// The same on other ports.
    #[arg(long, value_delimiter = ',')]
    pub also: Vec<SocketAddr>,
    /// TCP, the server speaks first: one JSON line, then every line comes back.
    #[arg(long, default_value = "0.0.0.0:9000")]
    pub tcp: SocketAddr,
}

/// What it answers, as JSON.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Answer {
    pub cluster: String,
    pub pod: String,
    pub path: String,
    /// The address that connected, as the application sees it.
    pub peer: String,
    /// Request headers as they arrived, lower-case names.
    pub headers: BTreeMap<String, String>,
    /// Octets of the request's body.
    pub received: usize,
}

/// Serves until the process ends. `/stream?ms=N` sends its body in ten pieces, N ms apart;
/// `/slow?ms=N` waits before the head; `/status?code=N` answers with that status.
pub fn run(options: Options) -> BoxFuture<'static, Result<()>> {
    Box::pin(work(options))
}

async fn work(options: Options) -> Result<()> {
    let mut http = Vec::new();
    for address in [options.http].into_iter().chain(options.also.iter().copied()) {
        let listener = TcpListener::bind(address).await;
        http.push(listener.with_context(|| format!("hello cannot listen on {address}"))?);
    }
    let tcp = TcpListener::bind(options.tcp)
        .await
        .with_context(|| format!("hello cannot listen on {}", options.tcp))?;
    let banner = serde_json::json!({"cluster": options.cluster, "pod": options.pod}).to_string();
    let lines = async {
        loop {
            let (stream, _) = tcp.accept().await?;
            tokio::spawn(echo_lines(stream, banner.clone()));
        }
    };
    let requests = futures::future::try_join_all(http.into_iter().map(|http| {
        let options = options.clone();
        async move {
            loop {
                let (stream, peer) = http.accept().await?;
                stream.set_nodelay(true)?;
                tokio::spawn(serve(options.clone(), stream, peer));
            }
            #[expect(unreachable_code, reason = "says what the loop's errors are")]
            anyhow::Ok(())
        }
    }));
    tokio::select! { end = lines => end, end = requests => end.map(|_| ()) }
}

async fn serve(options: Options, stream: TcpStream, peer: SocketAddr) {
    let service = service_fn(move |request| {
        let options = options.clone();
        async move { Ok::<_, Infallible>(answer(&options, peer, request).await) }
    });
    // A peer that goes away mid-request is the peer's affair.
    let _ = auto::Builder::new(TokioExecutor::new())
        .http1()
        .timer(TokioTimer::new())
        .serve_connection_with_upgrades(TokioIo::new(stream), service)
        .await;
}

type Frames = std::pin::Pin<Box<dyn Stream<Item = Result<Frame<Bytes>, Infallible>> + Send + Sync>>;

async fn echo_lines(stream: TcpStream, banner: String) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let (read, mut write) = stream.into_split();
    write.write_all(format!("{banner}\n").as_bytes()).await?;
    let mut lines = BufReader::new(read).lines();
    while let Some(line) = lines.next_line().await? {
        write.write_all(format!("{line}\n").as_bytes()).await?;
    }
    Ok(())
}

/// `/exact/sink` checks the pattern of [`exact`] and says how long it was, `/exact/source` sends it,
/// `/exact/echo` and `/exact/upgrade` send back what comes, `/exact/refuse` does not take it,
/// `/exact/say` says its number.
async fn exactly(
    mut request: Request<Incoming>,
    bytes: u64,
) -> Response<BoxBody<Bytes, Infallible>> {
    let say = |text: String| Response::new(Full::new(Bytes::from(text)).boxed());
    match request.uri().path() {
        "/exact/sink" => match exact::check(request.into_body(), Duration::ZERO).await {
            Ok((received, _)) => say(received.to_string()),
            Err(problem) => say(format!("{problem:#}")),
        },
        // Unread, so that the kernel resets who goes on sending.
        "/exact/refuse" => {
            let mut response = say("too much".to_owned());
            *response.status_mut() = StatusCode::PAYLOAD_TOO_LARGE;
            response.headers_mut().insert("connection", HeaderValue::from_static("close"));
            response
        }
        "/exact/source" => Response::new(BodyExt::boxed(exact::body(bytes))),
        "/exact/echo" => {
            let body = request.into_body();
            let frames = futures::stream::unfold(body, |mut body| async move {
                // A request that breaks off breaks its answer off: what came is all there is.
                let frame = body.frame().await?.ok()?;
                Some((Ok(frame), body))
            });
            Response::new(BodyExt::boxed(StreamBody::new(Box::pin(frames) as Frames)))
        }
        "/exact/upgrade" => {
            let upgrading = hyper::upgrade::on(&mut request);
            tokio::spawn(async move {
                let Ok(stream) = upgrading.await else { return };
                let (mut read, mut write) = tokio::io::split(TokioIo::new(stream));
                // A peer that goes away is the peer's affair.
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
            let mut response = say(String::new());
            *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
            let headers = response.headers_mut();
            headers.insert("connection", HeaderValue::from_static("upgrade"));
            headers.insert("upgrade", HeaderValue::from_static("websocket"));
            response
        }
        _ => say(format!("number {bytes}\n")),
    }
}

async fn answer(
    options: &Options,
    peer: SocketAddr,
    request: Request<Incoming>,
) -> Response<BoxBody<Bytes, Infallible>> {
    let number = |name: &str| -> Option<u64> {
        let query = request.uri().query()?;
        let pair = |part: &str| part.split_once('=').map(|(k, v)| (k.to_owned(), v.to_owned()));
        query.split('&').filter_map(pair).find(|(k, _)| k == name)?.1.parse().ok()
    };
    if request.uri().path().starts_with("/exact/") {
        let bytes = number("bytes").unwrap_or(0);
        return exactly(request, bytes).await;
    }
    let (wait, code) = (Duration::from_millis(number("ms").unwrap_or(0)), number("code"));
    let (path, method) = (request.uri().path().to_owned(), request.method().clone());
    let headers = request
        .headers()
        .iter()
        .map(|(name, value)| {
            (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned())
        })
        .collect();
    let received = match request.into_body().collect().await {
        Ok(body) => body.to_bytes().len(),
        Err(_) => 0,
    };
    let body = Answer {
        cluster: options.cluster.clone(),
        pod: options.pod.clone(),
        path: path.clone(),
        peer: peer.to_string(),
        headers,
        received,
    };
    let text = serde_json::to_vec(&body).expect("strings and numbers are JSON");
    let mut response = Response::builder()
        .header("content-type", "application/json")
        .header("x-hello-cluster", &options.cluster)
        .header("x-hello-pod", &options.pod);
    if path == "/status" {
        let code = code.and_then(|code| u16::try_from(code).ok());
        let code = code.and_then(|code| StatusCode::from_u16(code).ok());
        response = response.status(code.unwrap_or(StatusCode::OK));
    }
    if path == "/slow" {
        tokio::time::sleep(wait).await;
    }
    let body = if path == "/stream" && method != Method::HEAD {
        let size = text.len().div_ceil(10);
        let pieces: Vec<Bytes> = text.chunks(size).map(Bytes::copy_from_slice).collect();
        let paced = futures::stream::iter(pieces).then(move |piece| async move {
            tokio::time::sleep(wait).await;
            Ok(Frame::data(piece))
        });
        BodyExt::boxed(StreamBody::new(paced))
    } else {
        BodyExt::boxed(Full::new(Bytes::from(text)))
    };
    response.body(body).expect("a fixed head is valid")
}
