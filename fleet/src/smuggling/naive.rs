//! A proxy as they should not be: of HTTP/1.1 it knows the first `Content-Length` and forwards the rest
//! as it comes; HTTP/2 it rewrites as HTTP/1.1 without a look at names, values and lengths. Behind it
//! the table's canaries arrive, which shows that they can.

use anyhow::{Context, Result};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

/// Octets of HTTP/2's preface.
const PREFACE: usize = 24;
/// A client that says nothing for so long has said all.
const PAUSE: Duration = Duration::from_millis(200);

/// A running proxy; it ends with the process.
pub(super) struct Naive {
    pub(super) address: SocketAddr,
    believed: Arc<Mutex<Vec<String>>>,
}

impl Naive {
    /// Starts one on loopback in front of `to`.
    pub(super) async fn start(to: String) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.context("a port on loopback")?;
        let naive = Self { address: listener.local_addr()?, believed: Arc::default() };
        let believed = naive.believed.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (to, believed) = (to.clone(), believed.clone());
                // A connection that breaks is the client's affair.
                tokio::spawn(async move { relay(client, &to, &believed).await });
            }
        });
        Ok(naive)
    }

    /// Paths of the requests it has forwarded, as far as it knows.
    pub(super) fn believed(&self) -> Vec<String> {
        self.believed.lock().expect("no holder panics").clone()
    }
}

async fn relay(client: TcpStream, to: &str, believed: &Mutex<Vec<String>>) -> Result<()> {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = TcpStream::connect(to).await?.into_split();
    let back = async { tokio::io::copy(&mut from_server, &mut to_client).await };
    let there = async {
        let mut read = Vec::new();
        from_client.read_buf(&mut read).await?;
        if read.starts_with(b"PRI") {
            // Who sends the table writes a whole stream at once and says no more.
            while let Ok(Ok(1..)) = timeout(PAUSE, from_client.read_buf(&mut read)).await {}
            let (target, request) = downgraded(&read);
            believed.lock().expect("no holder panics").push(target);
            return to_server.write_all(&request).await;
        }
        loop {
            let end = loop {
                if let Some(at) = read.windows(4).position(|four| four == b"\r\n\r\n") {
                    break at + 4;
                }
                if from_client.read_buf(&mut read).await? == 0 {
                    // What is left is forwarded all the same.
                    return to_server.write_all(&read).await;
                }
            };
            let head = String::from_utf8_lossy(&read[..end]).into_owned();
            let length = head.to_ascii_lowercase().lines().find_map(length_in).unwrap_or(0);
            while read.len() < end + length {
                if from_client.read_buf(&mut read).await? == 0 {
                    return to_server.write_all(&read).await;
                }
            }
            let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
            believed.lock().expect("no holder panics").push(path);
            to_server.write_all(&read[..end + length]).await?;
            read.drain(..end + length);
        }
    };
    tokio::select! {
        end = back => { end?; }
        // The answers to what was sent still come.
        end = async { there.await?; std::future::pending::<std::io::Result<()>>().await } => end?,
    }
    Ok(())
}

/// The target of an HTTP/2 request, and what is made of it: pseudo headers are words of the request line,
/// fields are lines, DATA is the body.
fn downgraded(mut bytes: &[u8]) -> (String, Vec<u8>) {
    bytes = bytes.get(PREFACE..).unwrap_or_default();
    let (mut fields, mut body) = (Vec::new(), Vec::new());
    while let [a, b, c, kind, _, _, _, _, _, rest @ ..] = bytes {
        let length = usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c);
        let Some((payload, after)) = rest.split_at_checked(length) else { break };
        match kind {
            0 => body.extend(payload),
            // What comes after the body is left out.
            1 if fields.is_empty() => fields = literals(payload),
            _ => {}
        }
        bytes = after;
    }
    let pseudo = |name: &str| -> String {
        let found = fields.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.clone()).unwrap_or_default()
    };
    let target = pseudo(":path");
    let (method, host) = (pseudo(":method"), pseudo(":authority"));
    let mut head = format!("{method} {target} HTTP/1.1\r\nHost: {host}\r\n");
    for (name, value) in fields.iter().filter(|(name, _)| !name.starts_with(':')) {
        head += &format!("{name}: {value}\r\n");
    }
    let framed = fields.iter().any(|(name, _)| {
        ["content-length", "transfer-encoding"].contains(&name.to_ascii_lowercase().as_str())
    });
    if !framed && !body.is_empty() {
        head += &format!("Content-Length: {}\r\n", body.len());
    }
    (target, [head.as_bytes(), b"\r\n", &body[..]].concat())
}

/// Fields that are literals without indexing, as the table writes them.
fn literals(mut block: &[u8]) -> Vec<(String, String)> {
    let mut fields = Vec::new();
    while let Some((0, rest)) = block.split_first() {
        let Some((name, rest)) = text(rest) else { break };
        let Some((value, rest)) = text(rest) else { break };
        fields.push((name, value));
        block = rest;
    }
    fields
}

/// A length and so many octets (RFC 7541 section 5.2), not compressed.
fn text(block: &[u8]) -> Option<(String, &[u8])> {
    let (first, mut rest) = block.split_first()?;
    let mut length = usize::from(*first);
    if length == 127 {
        let mut shift = 0;
        loop {
            let (next, after) = rest.split_first()?;
            length += usize::from(next & 127) << shift;
            (rest, shift) = (after, shift + 7);
            if next & 128 == 0 || shift > 21 {
                break;
            }
        }
    }
    let (text, rest) = rest.split_at_checked(length)?;
    Some((String::from_utf8_lossy(text).into_owned(), rest))
}

fn length_in(line: &str) -> Option<usize> {
    line.strip_prefix("content-length:")?.trim().parse().ok().filter(|length| *length < 65_536)
}
