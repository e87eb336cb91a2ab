//! What a peer begins to say, without losing a byte of it: mutual TLS of the mesh, or anything else.

use bytes::BytesMut;
use proxy::peek::{HELLO_MAX, Peek, peek};
use std::io;
use std::time::Duration;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// From the first byte of a ClientHello to its last.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);

/// What the first bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sniffed {
    /// A ClientHello with one of Istio's ALPN names: the mesh's mutual TLS.
    Mesh,
    /// Another protocol, or an application's own TLS.
    Plain,
    /// HTTP/2 with prior knowledge.
    Http2,
    /// It ended without a word.
    Ended,
}

/// Reads the beginning of `stream` into `read`. Cancelled, nothing is lost: what was read is there.
pub(crate) async fn sniff(stream: &mut TcpStream, read: &mut BytesMut) -> io::Result<Sniffed> {
    // The first byte has no deadline here: whoever waits for it decides how long.
    if stream.read_buf(read).await? == 0 {
        return Ok(Sniffed::Ended);
    }
    timeout(HELLO_TIMEOUT, go_on(stream, read)).await.map_err(|_| {
        io::Error::new(io::ErrorKind::TimedOut, "half a ClientHello, and no more in 5 s")
    })?
}

async fn go_on(stream: &mut TcpStream, read: &mut BytesMut) -> io::Result<Sniffed> {
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    loop {
        if read.len() < PREFACE.len() && PREFACE.starts_with(read) {
            // Not decided yet; no HTTP/1 request begins so.
        } else if read.starts_with(PREFACE) {
            return Ok(Sniffed::Http2);
        } else {
            match peek(read) {
                Peek::Hello(hello) => {
                    let ours = hello.alpn.iter().any(|name| name.starts_with(b"istio"));
                    return Ok(if ours { Sniffed::Mesh } else { Sniffed::Plain });
                }
                Peek::Refused(_) => return Ok(Sniffed::Plain),
                Peek::More => {}
            }
        }
        // Longer than any ClientHello is none; peek says so too.
        if read.len() > HELLO_MAX || stream.read_buf(read).await? == 0 {
            return Ok(Sniffed::Plain);
        }
    }
}
