//! gRPC streams as load: some stay open and talk all the time, others are begun at a steady rate.
//!
//! They call `FullDuplexCall` of gRPC's interop server over one HTTP/2 connection, as a gRPC channel
//! does.

use crate::load::micros_now;
use anyhow::{Context, Result, bail};
use bytes::Bytes;
use futures::future::BoxFuture;
use http::{HeaderMap, Request};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde::{Deserialize, Serialize};
use std::convert::Infallible;
use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{Instant, interval, sleep, timeout};

/// A `StreamingOutputCallRequest` that asks for one response of eight bytes, in gRPC's framing.
const PING: &[u8] = b"\0\0\0\0\x04\x12\x02\x08\x08";
/// Between two words of a stream that stays open.
const PACE: Duration = Duration::from_millis(100);

/// What to open.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// `HOST:PORT` of the interop server.
    #[arg(long)]
    pub target: String,
    /// Streams that stay open.
    #[arg(long)]
    pub open: u32,
    /// Streams begun a second, each for one word and its answer.
    #[arg(long)]
    pub begun: f64,
    #[arg(long)]
    pub seconds: f64,
    /// Where the records go as JSON lines.
    #[arg(long)]
    pub out: PathBuf,
}

/// How one stream went.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Record {
    pub stays_open: bool,
    /// Since the epoch.
    pub start_us: u64,
    /// To its first answer; `None` where none came.
    pub answered_us: Option<u64>,
    /// To its end.
    pub took_us: u64,
    /// `grpc-status`; `None` where the stream ended without.
    pub status: Option<u32>,
    /// Why it has none.
    pub problem: String,
}

type Words = StreamBody<futures::stream::BoxStream<'static, Result<Frame<Bytes>, Infallible>>>;

/// Runs the load to its end.
pub fn run(options: Options) -> BoxFuture<'static, Result<()>> {
    Box::pin(work(options))
}

async fn work(options: Options) -> Result<()> {
    let stream = TcpStream::connect(&options.target).await?;
    stream.set_nodelay(true)?;
    let (sender, connection) = handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let (records, mut told) = mpsc::unbounded_channel();
    let end = Instant::now() + Duration::from_secs_f64(options.seconds);
    let start = |stays_open: bool| {
        let (sender, records, target) = (sender.clone(), records.clone(), options.target.clone());
        tokio::spawn(async move {
            let until = stays_open.then_some(end);
            // Nobody listens any more once the load is over.
            let _ = records.send(one(sender, &target, until).await);
        });
    };
    for _ in 0..options.open {
        start(true);
    }
    let mut tick = interval(Duration::from_secs_f64(1.0 / options.begun));
    while Instant::now() < end {
        tick.tick().await;
        start(false);
    }
    drop(records);
    let mut out = std::fs::File::create(&options.out)
        .with_context(|| format!("writing {}", options.out.display()))?;
    let limit = Duration::from_secs(15);
    while let Some(record) = timeout(limit, told.recv()).await.context("a stream never ended")? {
        writeln!(out, "{}", serde_json::to_string(&record)?)?;
    }
    Ok(())
}

async fn one(sender: SendRequest<Words>, target: &str, until: Option<Instant>) -> Record {
    let (begun, start_us) = (Instant::now(), micros_now());
    let mut answered_us = None;
    let mut answered = || {
        answered_us.get_or_insert_with(|| micros(begun.elapsed()));
    };
    let (status, problem) = match talk(sender, target, until, &mut answered).await {
        Ok(status) => (Some(status), String::new()),
        Err(problem) => (None, format!("{problem:#}")),
    };
    let took_us = micros(begun.elapsed());
    Record { stays_open: until.is_some(), start_us, answered_us, took_us, status, problem }
}

fn micros(took: Duration) -> u64 {
    u64::try_from(took.as_micros()).unwrap_or(u64::MAX)
}

/// Talks until `until`, or one word; returns `grpc-status`.
async fn talk(
    mut sender: SendRequest<Words>,
    target: &str,
    until: Option<Instant>,
    answered: &mut (dyn FnMut() + Send),
) -> Result<u32> {
    let (words, mut said) = mpsc::channel(4);
    let frames = futures::stream::poll_fn(move |cx| said.poll_recv(cx));
    let speaking = tokio::spawn(async move {
        loop {
            // Who listens no more has had its status.
            if words.send(Ok(Frame::data(Bytes::from_static(PING)))).await.is_err() {
                return;
            }
            match until {
                Some(end) if Instant::now() < end => sleep(PACE).await,
                _ => return,
            }
        }
    });
    let request = Request::post(format!("http://{target}/grpc.testing.TestService/FullDuplexCall"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(StreamBody::new(Box::pin(frames) as futures::stream::BoxStream<'static, _>))?;
    let response = sender.send_request(request).await?;
    let (parts, mut body) = response.into_parts();
    let mut status = status_of(&parts.headers);
    while let Some(frame) = body.frame().await {
        match frame?.into_trailers() {
            Ok(trailers) => status = status_of(&trailers),
            Err(_) => answered(),
        }
    }
    speaking.abort();
    match status {
        Some(status) => Ok(status),
        None => bail!("the stream ended without a status, HTTP {}", parts.status),
    }
}

fn status_of(headers: &HeaderMap) -> Option<u32> {
    headers.get("grpc-status")?.to_str().ok()?.parse().ok()
}
