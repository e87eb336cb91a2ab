//! Bytes that can be checked wherever they come out, and the tries that carry them: long bodies, both
//! ways at once, pipelines, upgrades, readers that are slow.

use crate::load::dial;
use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{StreamExt, stream};
use http::{HeaderMap, HeaderValue, Request};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Body, Frame, Incoming};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde::{Deserialize, Serialize};
use std::convert::Infallible;
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Octets of one piece of a body.
const PIECE: usize = 64 * 1024;
const MIB: u64 = 1024 * 1024;
/// A long body.
const LONG: u64 = 1024 * MIB;
/// Longest time for one try.
const TRY_MAX: Duration = Duration::from_secs(120);

/// Whom to try.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// A host whose ports are those of [`PORTS`].
    #[arg(long)]
    pub host: String,
}

/// Port, name and target of the service that is tried: every way to say what a port speaks.
pub const PORTS: [(u16, &str, u16); 4] =
    [(80, "http", 8080), (82, "http2", 8082), (83, "web", 8083), (84, "lines", 9000)];

/// How one try went.
#[derive(Debug, Serialize, Deserialize)]
pub struct Tried {
    pub name: String,
    /// `None` where every byte came out as it went in.
    pub problem: Option<String>,
    pub took_ms: u64,
}

/// The piece of the pattern that begins at `offset`, a multiple of 8: every eight octets are a mixed
/// count (SplitMix64), so that what is lost, doubled or moved shows.
pub fn piece(offset: u64, length: usize) -> Bytes {
    let mut bytes = Vec::with_capacity(length + 8);
    for block in 0..(length as u64).div_ceil(8) {
        let mut mixed = (offset / 8 + block).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bytes.extend_from_slice(&(mixed ^ (mixed >> 27)).to_le_bytes());
    }
    bytes.truncate(length);
    bytes.into()
}

/// A body of the pattern's first `total` octets.
pub fn body(
    total: u64,
) -> impl Body<Data = Bytes, Error = Infallible> + Send + Sync + Unpin + 'static {
    let pieces = stream::iter((0..total).step_by(PIECE)).map(move |offset| {
        let length = usize::try_from(total - offset).map_or(PIECE, |rest| rest.min(PIECE));
        Ok(Frame::data(piece(offset, length)))
    });
    StreamBody::new(pieces)
}

/// Compares what comes in with the pattern.
#[derive(Debug, Default)]
pub struct Check {
    pub received: u64,
    buffer: Vec<u8>,
}

impl Check {
    pub fn take(&mut self, data: &[u8]) -> Result<()> {
        self.buffer.extend_from_slice(data);
        let whole = self.buffer.len() / 8 * 8;
        let wanted = piece(self.received, whole);
        ensure!(self.buffer[..whole] == wanted[..], "octets differ after {}", self.received);
        self.buffer.drain(..whole);
        self.received += whole as u64;
        Ok(())
    }

    /// Everything has come; how much that was.
    pub fn end(self) -> Result<u64> {
        let wanted = piece(self.received, self.buffer.len());
        ensure!(self.buffer[..] == wanted[..], "the last octets differ");
        Ok(self.received + self.buffer.len() as u64)
    }
}

/// Reads a whole body of the pattern, pausing after each piece.
pub async fn check<B>(mut body: B, pause: Duration) -> Result<(u64, HeaderMap)>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::error::Error + Send + Sync + 'static,
{
    let (mut check, mut trailers) = (Check::default(), HeaderMap::new());
    while let Some(frame) = body.frame().await {
        match frame?.into_data() {
            Ok(data) => check.take(&data)?,
            Err(frame) => trailers = frame.into_trailers().unwrap_or_default(),
        }
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
    }
    Ok((check.end()?, trailers))
}

type Try = (&'static str, fn(String) -> BoxFuture<'static, Result<()>>);

/// All tries, in order.
const TRIES: &[Try] = &[
    ("HTTP/1.1: 1 GiB up, chunked", |host| Box::pin(upload(host, 80, Wire::One))),
    ("HTTP/1.1: 1 GiB down, chunked", |host| Box::pin(download(host, 80, Wire::One, LONG, 0))),
    ("HTTP/1.1: 1 GiB that is refused at its beginning, 10 times", |host| Box::pin(refused(host))),
    ("HTTP/1.1: 64 MiB both ways at once", |host| Box::pin(echo(host, 80, Wire::One))),
    ("HTTP/1.1: 8 MiB to a slow reader", |host| {
        Box::pin(download(host, 80, Wire::One, 8 * MIB, 10))
    }),
    ("HTTP/1.1: 20 requests in one write", |host| Box::pin(pipeline(host))),
    ("HTTP/1.1: 100-continue", |host| Box::pin(continued(host))),
    ("WebSocket: 16 MiB both ways", |host| Box::pin(upgraded(host))),
    ("HTTP/2 to an HTTP/1.1 port: 64 MiB both ways", |host| Box::pin(echo(host, 80, Wire::Two))),
    ("HTTP/2: 1 GiB up", |host| Box::pin(upload(host, 82, Wire::Two))),
    ("HTTP/2: 64 MiB both ways, trailers", |host| Box::pin(echo(host, 82, Wire::Two))),
    ("HTTP/1.1 to an HTTP/2 port: 8 MiB down", |host| {
        Box::pin(download(host, 82, Wire::One, 8 * MIB, 0))
    }),
    ("a port that says nothing: HTTP/1.1", |host| Box::pin(echo(host, 83, Wire::One))),
    ("a port that says nothing: HTTP/2", |host| Box::pin(echo(host, 83, Wire::Two))),
    ("a port that says nothing: the server speaks first", |host| Box::pin(server_first(host))),
];

/// Makes every try; returns how each went.
pub async fn run(options: &Options) -> Vec<Tried> {
    let mut all = Vec::new();
    for (name, attempt) in TRIES {
        let begun = Instant::now();
        let end = timeout(TRY_MAX, attempt(options.host.clone())).await;
        let problem = match end {
            Ok(Ok(())) => None,
            Ok(Err(problem)) => Some(format!("{problem:#}")),
            Err(_) => Some(format!("it did not end within {TRY_MAX:?}")),
        };
        let took_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        all.push(Tried { name: (*name).to_owned(), problem, took_ms });
    }
    all
}

#[derive(Clone, Copy)]
enum Wire {
    One,
    Two,
}

async fn send<B>(
    host: &str,
    port: u16,
    wire: Wire,
    path: &str,
    body: B,
) -> Result<http::Response<Incoming>>
where
    B: Body<Data = Bytes, Error = Infallible> + Send + Unpin + 'static,
{
    let io = TokioIo::new(dial(&format!("{host}:{port}"), None).await?);
    let method = if body.is_end_stream() { "GET" } else { "POST" };
    let request = Request::builder().method(method).header("te", "trailers");
    let response = match wire {
        Wire::One => {
            let request = request.uri(path).header("host", host).body(body)?;
            let (mut sender, connection) = http1::handshake(io).await?;
            tokio::spawn(connection);
            sender.send_request(request).await?
        }
        Wire::Two => {
            let request = request.uri(format!("http://{host}{path}")).body(body)?;
            let (mut sender, connection) = http2::handshake(TokioExecutor::new(), io).await?;
            tokio::spawn(connection);
            sender.send_request(request).await?
        }
    };
    ensure!(response.status().is_success(), "it was answered with {}", response.status());
    Ok(response)
}

async fn upload(host: String, port: u16, wire: Wire) -> Result<()> {
    let response = send(&host, port, wire, "/exact/sink", body(LONG)).await?;
    let said = response.into_body().collect().await?.to_bytes();
    ensure!(said == format!("{LONG}"), "the server says {}", String::from_utf8_lossy(&said));
    Ok(())
}

/// Its server does not read it, and leaves: what it said must come all the same.
async fn refused(host: String) -> Result<()> {
    for round in 0..10 {
        let stream = dial(&format!("{host}:80"), None).await?;
        let (mut from, mut into) = stream.into_split();
        let head = format!(
            "POST /exact/refuse HTTP/1.1\r\nhost: {host}\r\ncontent-length: {LONG}\r\n\r\n"
        );
        let sending = tokio::spawn(async move {
            into.write_all(head.as_bytes()).await?;
            for offset in (0..LONG).step_by(PIECE) {
                into.write_all(&piece(offset, PIECE)).await?;
            }
            std::io::Result::Ok(())
        });
        let mut said = String::new();
        let read = from.read_to_string(&mut said).await;
        sending.abort();
        let whole = said.starts_with("HTTP/1.1 413 ") && said.ends_with("too much");
        ensure!(whole, "round {round} was answered {said:?}, {read:?}");
    }
    Ok(())
}

async fn download(host: String, port: u16, wire: Wire, total: u64, pause_ms: u64) -> Result<()> {
    let path = format!("/exact/source?bytes={total}");
    let response = send(&host, port, wire, &path, http_body_util::Empty::new()).await?;
    let (received, _) = check(response.into_body(), Duration::from_millis(pause_ms)).await?;
    ensure!(received == total, "{received} of {total} octets came");
    Ok(())
}

async fn echo(host: String, port: u16, wire: Wire) -> Result<()> {
    const TOTAL: u64 = 64 * MIB;
    let mut trailers = HeaderMap::new();
    trailers.insert("x-said", HeaderValue::from_static("everything"));
    let said = match wire {
        Wire::One => None,
        Wire::Two => Some(Ok(Frame::trailers(trailers))),
    };
    let frames = stream::iter((0..TOTAL).step_by(PIECE))
        .map(|offset| Ok(Frame::data(piece(offset, PIECE))))
        .chain(stream::iter(said));
    let response = send(&host, port, wire, "/exact/echo", StreamBody::new(frames)).await?;
    let (received, trailers) = check(response.into_body(), Duration::ZERO).await?;
    ensure!(received == TOTAL, "{received} of {TOTAL} octets came back");
    if let (Wire::Two, 82) = (wire, port) {
        ensure!(trailers.contains_key("x-said"), "no trailers came back");
    }
    Ok(())
}

async fn pipeline(host: String) -> Result<()> {
    let mut stream = dial(&format!("{host}:80"), None).await?;
    let mut all = String::new();
    for number in 0..20 {
        let close = if number == 19 { "connection: close\r\n" } else { "" };
        all += &format!("GET /exact/say?bytes={number} HTTP/1.1\r\nhost: {host}\r\n{close}\r\n");
    }
    stream.write_all(all.as_bytes()).await?;
    let mut answered = String::new();
    stream.read_to_string(&mut answered).await?;
    let said: Vec<&str> = answered.lines().filter(|line| line.starts_with("number ")).collect();
    // A body ends where the next head begins.
    let said: Vec<&str> =
        said.iter().map(|line| line.split("HTTP/1.1").next().unwrap_or_default()).collect();
    let wanted: Vec<String> = (0..20).map(|number| format!("number {number}")).collect();
    ensure!(said == wanted, "answers came as {said:?}");
    Ok(())
}

async fn continued(host: String) -> Result<()> {
    let stream = dial(&format!("{host}:80"), None).await?;
    let mut stream = BufReader::new(stream);
    let head = format!(
        "POST /exact/sink HTTP/1.1\r\nhost: {host}\r\ncontent-length: {PIECE}\r\nexpect: \
         100-continue\r\nconnection: close\r\n\r\n"
    );
    stream.get_mut().write_all(head.as_bytes()).await?;
    let mut line = String::new();
    stream.read_line(&mut line).await?;
    ensure!(line.starts_with("HTTP/1.1 100"), "it was answered with {line:?}");
    stream.get_mut().write_all(&piece(0, PIECE)).await?;
    let mut rest = String::new();
    stream.read_to_string(&mut rest).await?;
    ensure!(rest.contains(" 200 OK\r\n") && rest.contains(&PIECE.to_string()), "{rest}");
    Ok(())
}

async fn upgraded(host: String) -> Result<()> {
    const TOTAL: u64 = 16 * MIB;
    let mut stream = BufReader::new(dial(&format!("{host}:80"), None).await?);
    let head = format!(
        "GET /exact/upgrade HTTP/1.1\r\nhost: {host}\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    stream.get_mut().write_all(head.as_bytes()).await?;
    let mut line = String::new();
    stream.read_line(&mut line).await?;
    ensure!(line.starts_with("HTTP/1.1 101"), "it was answered with {line:?}");
    while line.trim() != "" {
        line.clear();
        stream.read_line(&mut line).await?;
    }
    let (mut read, mut write) = tokio::io::split(stream);
    let speaking = async {
        for offset in (0..TOTAL).step_by(PIECE) {
            write.write_all(&piece(offset, PIECE)).await?;
        }
        write.flush().await?;
        anyhow::Ok(())
    };
    let hearing = async {
        let (mut check, mut buffer, mut heard) = (Check::default(), vec![0; PIECE], 0);
        while heard < TOTAL {
            let length = read.read(&mut buffer).await?;
            if length == 0 {
                bail!("it ended after {heard} octets");
            }
            check.take(&buffer[..length])?;
            heard += length as u64;
        }
        Ok(())
    };
    tokio::try_join!(speaking, hearing).map(|_| ())
}

async fn server_first(host: String) -> Result<()> {
    let stream: TcpStream = dial(&format!("{host}:84"), None).await?;
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    stream.read_line(&mut line).await.context("reading the server's first word")?;
    ensure!(line.contains("cluster"), "the server began with {line:?}");
    stream.get_mut().write_all(b"hello\n").await?;
    line.clear();
    stream.read_line(&mut line).await?;
    ensure!(line == "hello\n", "the server said {line:?}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{Check, piece};

    #[test]
    fn what_is_lost_doubled_or_moved_shows() {
        let whole = [piece(0, 64), piece(64, 30)].concat();
        let of = |parts: &[&[u8]]| {
            let mut check = Check::default();
            parts.iter().try_for_each(|part| check.take(part))?;
            check.end()
        };
        assert_eq!(of(&[&whole[..13], &whole[13..]]).unwrap(), 94);
        assert!(of(&[&whole[..13], &whole[14..]]).is_err(), "one is lost");
        assert!(of(&[&whole[..16], &whole[8..]]).is_err(), "eight are doubled");
        assert!(of(&[&whole[8..]]).is_err(), "the beginning is lost");
    }
}
