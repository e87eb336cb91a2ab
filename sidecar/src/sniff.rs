//! What a peer begins to say, without losing a byte of it: mutual TLS of the mesh, or anything else.

use bytes::BytesMut;
use proxy::peek::{HELLO_MAX, Peek, Reader};
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
    /// A ClientHello without one: an application's own TLS, or a peer that has no name for the mesh
    /// (gRPC offers `h2` only).
    Tls,
    /// Another protocol.
    Plain,
    /// Requests: HTTP/1, or HTTP/2 with prior knowledge.
    Http,
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
    // Each byte is looked at once, in however small pieces a peer sends them.
    let (mut hello, mut looked_at) = (Reader::new(), 0);
    loop {
        if read.len() < PREFACE.len() && PREFACE.starts_with(read) {
            // Not decided yet; no HTTP/1 request begins so.
        } else if read.starts_with(PREFACE) {
            return Ok(Sniffed::Http);
        } else if read.first().is_some_and(u8::is_ascii_uppercase) {
            if let Some(http) = is_http1(read) {
                return Ok(if http { Sniffed::Http } else { Sniffed::Plain });
            }
        } else {
            let piece = hello.push(&read[looked_at..]);
            looked_at = read.len();
            match piece {
                Peek::Hello(hello) => {
                    let ours = hello.alpn.iter().any(|name| name.starts_with(b"istio"));
                    return Ok(if ours { Sniffed::Mesh } else { Sniffed::Tls });
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

/// Longest request line that is waited for, bytes.
const LINE_MAX: usize = 8 * 1024;

/// Whether this begins an HTTP/1 request (RFC 9112 section 3): a method, a target, `HTTP/1.`; `None`
/// while it cannot be told.
fn is_http1(read: &[u8]) -> Option<bool> {
    /// Longest registered method, and some.
    const METHOD_MAX: usize = 20;
    let method = read.iter().take_while(|byte| byte.is_ascii_uppercase() || **byte == b'-').count();
    if method > METHOD_MAX {
        return Some(false);
    }
    match read.get(method) {
        None => return None,
        Some(b' ') => {}
        Some(_) => return Some(false),
    }
    let Some(end) = read.iter().position(|byte| *byte == b'\n') else {
        let printable = read.iter().all(|byte| matches!(byte, b' '..=b'~' | b'\r' | 0x80..));
        return if !printable || read.len() > LINE_MAX { Some(false) } else { None };
    };
    let line = read[..end].trim_ascii_end();
    let version = line.rsplit(|byte| *byte == b' ').next().unwrap_or_default();
    Some(version.starts_with(b"HTTP/1."))
}

#[cfg(test)]
mod tests {
    use super::is_http1;

    #[test]
    fn requests_are_told_from_other_words() {
        for (said, http) in [
            (&b"GET / HTTP/1.1\r\n"[..], Some(true)),
            (b"M-SEARCH * HTTP/1.1\r\n", Some(true)),
            (b"GET /a", None),
            (b"GE", None),
            (b"HELO there\r\n", Some(false)),
            (b"EHLO x\n", Some(false)),
            (b"P\x00\x01", Some(false)),
            (b"ABCDEFGHIJKLMNOPQRSTUVWXYZ", Some(false)),
            (b"SELECT \x00", Some(false)),
        ] {
            assert_eq!(is_http1(said), http, "{}", said.escape_ascii());
        }
    }
}
