//! HTTP/2: pseudo headers, names, values and lengths, and what becomes of them as HTTP/1.1 (RFC 9113
//! sections 8.2 and 8.3).

use super::Meant::{AtMostOne, One, Refused};
use super::{Meant, Names, Payload, Wire};

const fn row(name: &'static str, meant: Meant, make: fn(&Names) -> Vec<u8>) -> Payload {
    Payload::new(name, Wire::Two, meant, make)
}

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

type Field<'a> = (&'a str, &'a str);

/// One frame (RFC 9113 section 4.1).
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a short frame").to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// Fields as literals without indexing, not compressed (RFC 7541 section 6.2.2).
fn block(fields: &[Field<'_>]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            // An integer with a prefix of 7 bits (section 5.1).
            match text.len() {
                short @ 0..127 => block.push(short as u8),
                long => {
                    block.push(127);
                    let mut rest = long - 127;
                    while rest > 127 {
                        block.push((rest % 128) as u8 | 128);
                        rest /= 128;
                    }
                    block.push(rest as u8);
                }
            }
            block.extend(text.as_bytes());
        }
    }
    block
}

/// A connection with one stream: these fields, then this body (`None`: the fields end it).
fn stream(fields: &[Field<'_>], body: Option<&str>) -> Vec<u8> {
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend(frame(SETTINGS, 0, 0, &[]));
    let ends = if body.is_none() { END_STREAM } else { 0 };
    bytes.extend(frame(HEADERS, END_HEADERS | ends, 1, &block(fields)));
    if let Some(body) = body {
        bytes.extend(frame(DATA, END_STREAM, 1, body.as_bytes()));
    }
    bytes
}

/// A GET, with these fields besides.
fn get(names: &Names, more: &[Field<'_>]) -> Vec<u8> {
    let path = names.path();
    let own =
        [(":method", "GET"), (":scheme", "http"), (":path", &path), (":authority", &names.host)];
    stream(&[&own, more].concat(), None)
}

/// A POST whose body is the canary, with these fields besides.
fn post(names: &Names, more: &[Field<'_>], before: &str) -> Vec<u8> {
    let path = names.path();
    let own =
        [(":method", "POST"), (":scheme", "http"), (":path", &path), (":authority", &names.host)];
    stream(&[&own, more].concat(), Some(&format!("{before}{}", names.canary())))
}

/// A GET with other pseudo headers.
fn pseudo(method: &str, scheme: &str, path: &str, authority: &str) -> Vec<u8> {
    let fields =
        [(":method", method), (":scheme", scheme), (":path", path), (":authority", authority)];
    stream(&fields, None)
}

/// The canary as a stream of its own.
pub(super) fn hidden(names: &Names) -> Vec<u8> {
    pseudo("GET", "http", &names.hidden(), &names.host)
}

/// The end of a request line, and the canary without its own end.
fn split(names: &Names) -> String {
    format!(" HTTP/1.1\r\nHost: {}\r\n\r\nGET {}", names.host, names.hidden())
}

#[rustfmt::skip]
pub(super) const PAYLOADS: &[Payload] = &[
    row("control: one GET", One, |n| get(n, &[])),
    row("control: canary as body, no length", One, |n| post(n, &[], "")),
    row("control: canary as body, length", One, |n| post(n, &[("content-length", &n.canary().len().to_string())], "")),
    row("body that ends a chunked one", One, |n| post(n, &[], "0\r\n\r\n")),
    row("body of a GET", AtMostOne, |n| {
        let (path, body) = (n.path(), n.canary());
        stream(&[(":method", "GET"), (":scheme", "http"), (":path", &path), (":authority", &n.host)], Some(&body))
    }),
    row("pseudo: two paths", Refused, |n| get(n, &[(":path", &n.hidden())])),
    row("pseudo: two methods", Refused, |n| get(n, &[(":method", "POST")])),
    row("pseudo: two authorities", Refused, |n| get(n, &[(":authority", "other.shop.global")])),
    row("pseudo: a late path", Refused, |n| stream(&[(":method", "GET"), (":scheme", "http"), (":authority", &n.host), ("x-first", "1"), (":path", &n.path())], None)),
    row("pseudo: unknown", Refused, |n| get(n, &[(":other", "1")])),
    row("pseudo: of a response", Refused, |n| get(n, &[(":status", "200")])),
    row("pseudo: no path", Refused, |n| stream(&[(":method", "GET"), (":scheme", "http"), (":authority", &n.host)], None)),
    row("pseudo: no method", Refused, |n| stream(&[(":scheme", "http"), (":path", &n.path()), (":authority", &n.host)], None)),
    row("pseudo: no scheme", Refused, |n| stream(&[(":method", "GET"), (":path", &n.path()), (":authority", &n.host)], None)),
    row("pseudo: no authority, no host", Refused, |n| stream(&[(":method", "GET"), (":scheme", "http"), (":path", &n.path())], None)),
    row("pseudo: :protocol", Refused, |n| get(n, &[(":protocol", "websocket")])),
    row(":path empty", Refused, |n| pseudo("GET", "http", "", &n.host)),
    row(":path without a slash", Refused, |n| pseudo("GET", "http", &n.path()[1..], &n.host)),
    row(":path with a space", Refused, |n| pseudo("GET", "http", &format!("{} HTTP/1.1", n.path()), &n.host)),
    row(":path with CR LF", Refused, |n| pseudo("GET", "http", &format!("{}{}", n.path(), split(n)), &n.host)),
    row(":path with LF", Refused, |n| pseudo("GET", "http", &format!("{}{}", n.path(), split(n).replace('\r', "")), &n.host)),
    row(":path with NUL", Refused, |n| pseudo("GET", "http", &format!("{}\0", n.path()), &n.host)),
    row(":path in absolute form", Refused, |n| pseudo("GET", "http", &format!("http://other{}", n.path()), &n.host)),
    row(":path is an asterisk", Refused, |n| pseudo("GET", "http", "*", &n.host)),
    row(":method with a space", Refused, |n| pseudo(&format!("GET {}", n.path()), "http", &n.path(), &n.host)),
    row(":method with CR LF", Refused, |n| pseudo(&format!("GET {}{} HTTP/1.1\r\nX: ", n.path(), split(n)), "http", &n.path(), &n.host)),
    row(":method CONNECT", Refused, |n| pseudo("CONNECT", "http", &n.path(), &n.host)),
    row(":scheme with a request in it", Refused, |n| pseudo("GET", &format!("http://other{}?", n.hidden()), &n.path(), &n.host)),
    row(":authority with CR LF", Refused, |n| pseudo("GET", "http", &n.path(), &format!("{}\r\nx: 1", n.host))),
    row(":authority with user information", Refused, |n| pseudo("GET", "http", &n.path(), &format!("{}:80@other", n.host))),
    row(":authority with a path", Refused, |n| pseudo("GET", "http", &n.path(), &format!("{}{}", n.host, n.hidden()))),
    row(":authority empty", Refused, |n| pseudo("GET", "http", &n.path(), "")),
    row("host differs from :authority", Refused, |n| get(n, &[("host", "other.shop.global")])),
    row("host, two that differ, no :authority", Refused, |n| stream(&[(":method", "GET"), (":scheme", "http"), (":path", &n.path()), ("host", &n.host), ("host", "other")], None)),
    row("host with two words, no :authority", Refused, |n| stream(&[(":method", "GET"), (":scheme", "http"), (":path", &n.path()), ("host", &format!("{} other", n.host))], None)),
    row("content-length 0 with DATA", AtMostOne, |n| post(n, &[("content-length", "0")], "")),
    row("content-length shorter than DATA", AtMostOne, |n| post(n, &[("content-length", "5")], "xxxxx")),
    row("content-length longer than DATA", AtMostOne, |n| post(n, &[("content-length", "5000")], "")),
    row("content-length without DATA", Refused, |n| get(n, &[("content-length", "5")])),
    row("content-length, two that differ", Refused, |n| post(n, &[("content-length", &n.canary().len().to_string()), ("content-length", "0")], "")),
    row("content-length, the same twice", AtMostOne, |n| { let l = n.canary().len().to_string(); post(n, &[("content-length", &l), ("content-length", &l)], "") }),
    row("content-length with a plus", Refused, |n| post(n, &[("content-length", &format!("+{}", n.canary().len()))], "")),
    row("content-length, a list", Refused, |n| post(n, &[("content-length", &format!("{0}, {0}", n.canary().len()))], "")),
    row("transfer-encoding", Refused, |n| post(n, &[("transfer-encoding", "chunked")], "0\r\n\r\n")),
    row("connection", Refused, |n| get(n, &[("connection", "keep-alive")])),
    row("connection names content-length", Refused, |n| post(n, &[("connection", "content-length")], "")),
    row("proxy-connection", Refused, |n| get(n, &[("proxy-connection", "keep-alive")])),
    row("keep-alive", Refused, |n| get(n, &[("keep-alive", "timeout=5")])),
    row("upgrade", Refused, |n| get(n, &[("upgrade", "websocket")])),
    row("te: chunked", Refused, |n| get(n, &[("te", "chunked")])),
    row("name with capitals", Refused, |n| get(n, &[("X-Capitals", "1")])),
    row("name with CR LF", Refused, |n| get(n, &[("x: 1\r\ntransfer-encoding", "chunked")])),
    row("name with a colon", Refused, |n| get(n, &[("transfer-encoding: chunked", "1")])),
    row("name with a space", Refused, |n| get(n, &[("transfer-encoding ", "chunked")])),
    row("name is empty", Refused, |n| get(n, &[("", "1")])),
    row("value with CR LF", Refused, |n| post(n, &[("x-value", "1\r\ntransfer-encoding: chunked")], "0\r\n\r\n")),
    row("value with LF", Refused, |n| post(n, &[("x-value", "1\ntransfer-encoding: chunked")], "0\r\n\r\n")),
    row("value with CR", Refused, |n| post(n, &[("x-value", "1\rtransfer-encoding: chunked")], "0\r\n\r\n")),
    row("value with NUL", Refused, |n| get(n, &[("x-value", "1\0")])),
    row("value with the end of a head", Refused, |n| get(n, &[("x-value", &format!("1\r\n\r\n{}", n.canary()))])),
    row("cookie with CR LF", Refused, |n| get(n, &[("cookie", "a=1"), ("cookie", "b=2\r\nx: 1")])),
    row("expect: 100-continue", AtMostOne, |n| post(n, &[("expect", "100-continue")], "")),
    row("trailers with a pseudo header", AtMostOne, |n| trailers(n, &[(":path", &n.hidden())])),
    row("trailers with framing", AtMostOne, |n| trailers(n, &[("transfer-encoding", "chunked"), ("content-length", "5")])),
    row("trailers with CR LF", AtMostOne, |n| trailers(n, &[("x-value", &format!("1\r\n\r\n{}", n.canary()))])),
];

/// A POST that ends with these fields.
fn trailers(names: &Names, fields: &[Field<'_>]) -> Vec<u8> {
    let path = names.path();
    let own =
        [(":method", "POST"), (":scheme", "http"), (":path", &path), (":authority", &names.host)];
    let mut bytes = stream(&own, Some(""));
    // The empty DATA frame at its end does not end the stream here.
    let flags = bytes.len() - 5;
    bytes[flags] = 0;
    bytes.extend(frame(HEADERS, END_HEADERS | END_STREAM, 1, &block(fields)));
    bytes
}
