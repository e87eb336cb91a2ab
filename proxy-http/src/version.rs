//! Which HTTP a hop speaks: heard from a client's first bytes, or chosen for the next hop.

use crate::head_timer::{HEAD_TIMEOUT, IDLE_TIMEOUT, TOO_IDLE, TOO_SLOW};
use crate::idle::Watch;
use crate::last_words::HeardOut;
use bytes::BytesMut;
use http::Version;
use mesh::name::Protocol;
use proxy::prefixed::Prefixed;
use std::io;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::time::{Instant, timeout_at};

/// What an HTTP/2 client with prior knowledge says first (RFC 9113 section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// How messages are framed on one connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Wire {
    Http1,
    Http2,
}

impl Wire {
    /// What a meshed endpoint is asked to speak (Istio's names).
    pub(crate) fn alpn(self) -> &'static [u8] {
        match self {
            Self::Http1 => b"istio-http/1.1",
            Self::Http2 => b"istio-h2",
        }
    }

    /// For the next hop, by what the port says of itself and how the request came. gRPC needs
    /// HTTP/2, whatever a port's name says (Istio would send it on as HTTP/1.1, and it would fail).
    pub(crate) fn towards(protocol: Protocol, came: Version, grpc: bool) -> Self {
        match protocol {
            Protocol::Http2 | Protocol::Grpc => Self::Http2,
            _ if grpc => Self::Http2,
            Protocol::Http => Self::Http1,
            Protocol::Auto | Protocol::Tcp | Protocol::Udp if came == Version::HTTP_2 => {
                Self::Http2
            }
            Protocol::Auto | Protocol::Tcp | Protocol::Udp => Self::Http1,
        }
    }
}

/// What a client's first bytes make of its connection.
#[derive(Debug)]
pub(crate) enum Heard<T> {
    /// It speaks this; nothing of what it said is lost.
    Spoken(Wire, Prefixed<T>),
    /// It left, or speaks neither HTTP/1 nor HTTP/2.
    Nothing,
    /// It said too little for too long: the name of that limit.
    Late(&'static str),
}

/// Reads until it is clear what the client speaks, an hour at most for its first byte, and no longer
/// than for a request head from there to the last that is needed.
pub(crate) async fn hear<T>(mut io: T) -> io::Result<Heard<T>>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let mut read = BytesMut::with_capacity(PREFACE.len());
    let (mut deadline, mut limit) = (Instant::now() + IDLE_TIMEOUT, TOO_IDLE);
    while PREFACE.starts_with(&read) && read.len() < PREFACE.len() {
        // No more than the preface: what follows is read where it is wanted.
        let mut rest = (&mut io).take((PREFACE.len() - read.len()) as u64);
        match timeout_at(deadline, rest.read_buf(&mut read)).await {
            Ok(Ok(0)) if read.is_empty() => return Ok(Heard::Nothing),
            // Half a request is the HTTP/1 server's to complain about.
            Ok(Ok(0)) => break,
            Ok(Ok(_)) if limit == TOO_SLOW => {}
            Ok(Ok(_)) => (deadline, limit) = (Instant::now() + HEAD_TIMEOUT, TOO_SLOW),
            Ok(Err(problem)) => return Err(problem),
            Err(_) => return Ok(Heard::Late(limit)),
        }
    }
    if is_neither(&read) {
        HeardOut::new(io, Watch::default()).shutdown().await?;
        return Ok(Heard::Nothing);
    }
    let wire = if read.starts_with(PREFACE) { Wire::Http2 } else { Wire::Http1 };
    Ok(Heard::Spoken(wire, Prefixed::new(read.freeze(), io)))
}

/// The beginning of a line whose third word cannot become `HTTP/1.`: an answer in HTTP/1 would be noise
/// to whoever said it (RFC 9113 section 3.4 wants such a connection closed).
fn is_neither(read: &[u8]) -> bool {
    let line = read.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let version = line.splitn(3, |byte| *byte == b' ').nth(2);
    !read.starts_with(PREFACE)
        && version.is_some_and(|version| {
            let known = version.len().min(b"HTTP/1.".len());
            version[..known] != b"HTTP/1."[..known]
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn heard(parts: &[&[u8]]) -> Option<(Wire, Vec<u8>)> {
        let (mut client, server) = tokio::io::duplex(64);
        let listening = tokio::spawn(hear(server));
        for part in parts {
            client.write_all(part).await.unwrap();
            tokio::task::yield_now().await;
        }
        drop(client);
        let heard = listening.await.unwrap().unwrap();
        let Heard::Spoken(wire, mut io) = heard else { return None };
        let mut all = Vec::new();
        io.read_to_end(&mut all).await.unwrap();
        Some((wire, all))
    }

    #[tokio::test]
    async fn every_byte_is_heard_and_none_is_lost() {
        for cut in 0..PREFACE.len() {
            let (first, rest) = PREFACE.split_at(cut);
            let (wire, all) = heard(&[first, rest, b"more"]).await.unwrap();
            assert_eq!((wire, all), (Wire::Http2, [PREFACE, b"more"].concat()), "cut at {cut}");
        }
        for said in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"P", b"GET / HTTP/1.0\r\n"] {
            assert_eq!(heard(&[said]).await.unwrap(), (Wire::Http1, said.to_vec()));
        }
        for said in [&b""[..], b"INVALID CONNECTION PREFACE\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nXX"] {
            assert_eq!(heard(&[said]).await, None);
        }
    }

    #[test]
    fn the_port_decides_and_grpc_over_it() {
        use Protocol::{Auto, Grpc, Http, Http2};
        let (one, two) = (Version::HTTP_11, Version::HTTP_2);
        for (protocol, came, grpc, wire) in [
            (Http, two, false, Wire::Http1),
            (Http, two, true, Wire::Http2),
            (Http2, one, false, Wire::Http2),
            (Grpc, one, false, Wire::Http2),
            (Auto, one, false, Wire::Http1),
            (Auto, two, false, Wire::Http2),
        ] {
            assert_eq!(Wire::towards(protocol, came, grpc), wire, "{protocol} {came:?} {grpc}");
        }
    }
}
