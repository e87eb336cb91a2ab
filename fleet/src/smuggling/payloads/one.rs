//! HTTP/1.1: framing, header lines, chunks and request lines (RFC 9112).

use super::Meant::{AtMostOne, One, Pair, Refused};
use super::{Meant, Names, Payload, Wire};

const fn row(name: &'static str, meant: Meant, make: fn(&Names) -> Vec<u8>) -> Payload {
    Payload::new(name, Wire::One, meant, make)
}

/// A POST with these header lines and this body.
fn post(names: &Names, lines: &str, body: &str) -> Vec<u8> {
    let (path, host) = (names.path(), &names.host);
    format!("POST {path} HTTP/1.1\r\nHost: {host}\r\n{lines}\r\n{body}").into_bytes()
}

/// A GET with these header lines, and the canary behind it.
fn get(names: &Names, lines: &str) -> Vec<u8> {
    let (path, host, canary) = (names.path(), &names.host, names.canary());
    format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n{lines}\r\n{canary}").into_bytes()
}

/// This request line, a Host, and the canary behind it.
fn line(names: &Names, line: &str) -> Vec<u8> {
    format!("{line}\r\nHost: {}\r\n\r\n{}", names.host, names.canary()).into_bytes()
}

/// Who goes by the length takes the canary for a body; who goes by this line does not.
fn coded(names: &Names, line: &str) -> Vec<u8> {
    let body = format!("0\r\n\r\n{}", names.canary());
    post(names, &format!("Content-Length: {}\r\n{line}", body.len()), &body)
}

/// The length as it is written here, and the canary as a body.
fn counted(names: &Names, lines: fn(usize) -> String) -> Vec<u8> {
    let body = names.canary();
    post(names, &lines(body.len()), &body)
}

/// A chunked body that begins with `chunks`; the canary follows.
fn chunked(names: &Names, chunks: &str) -> Vec<u8> {
    post(names, "Transfer-Encoding: chunked\r\n", &format!("{chunks}{}", names.canary()))
}

/// The canary as the data of a chunk whose header is written by `head`, with what comes after it.
fn in_chunk(names: &Names, lines: &str, head: fn(usize) -> String, end: &str) -> Vec<u8> {
    let canary = names.canary();
    post(names, lines, &format!("{}{canary}\r\n{end}", head(canary.len())))
}

const CHUNKED: &str = "Transfer-Encoding: chunked\r\n";

#[rustfmt::skip]
pub(super) const PAYLOADS: &[Payload] = &[
    row("control: one GET", One, |n| format!("GET {} HTTP/1.1\r\nHost: {}\r\n\r\n", n.path(), n.host).into()),
    row("control: a pair, pipelined", Pair, |n| {
        let (path, second, host) = (n.path(), n.second(), &n.host);
        format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\nGET {second} HTTP/1.1\r\nHost: {host}\r\n\r\n").into()
    }),
    row("control: chunked, canary in a chunk", One, |n| in_chunk(n, CHUNKED, |l| format!("{l:x}\r\n"), "0\r\n\r\n")),
    row("control: length, canary as body", One, |n| counted(n, |l| format!("Content-Length: {l}\r\n"))),

    row("CL.TE", AtMostOne, |n| coded(n, CHUNKED)),
    row("CL.TE, TE first", AtMostOne, |n| {
        let body = format!("0\r\n\r\n{}", n.canary());
        post(n, &format!("{CHUNKED}Content-Length: {}\r\n", body.len()), &body)
    }),
    row("TE.CL", AtMostOne, |n| in_chunk(n, "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n", |l| format!("{l:x}\r\n"), "0\r\n\r\n")),
    row("TE.CL, TE first", AtMostOne, |n| in_chunk(n, "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n", |l| format!("{l:x}\r\n"), "0\r\n\r\n")),
    row("TE: xchunked", Refused, |n| coded(n, "Transfer-Encoding: xchunked\r\n")),
    row("TE: chunked, identity", Refused, |n| coded(n, "Transfer-Encoding: chunked, identity\r\n")),
    row("TE: identity, chunked", Refused, |n| coded(n, "Transfer-Encoding: identity, chunked\r\n")),
    row("TE: gzip, chunked", Refused, |n| coded(n, "Transfer-Encoding: gzip, chunked\r\n")),
    row("TE: chunked, chunked", Refused, |n| coded(n, "Transfer-Encoding: chunked, chunked\r\n")),
    row("TE: chunked, twice", Refused, |n| coded(n, "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n")),
    row("TE: chunked, then identity", Refused, |n| coded(n, "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n")),
    row("TE: identity, then chunked", Refused, |n| coded(n, "Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n")),
    row("TE: empty, then chunked", Refused, |n| coded(n, "Transfer-Encoding:\r\nTransfer-Encoding: chunked\r\n")),
    row("TE: quoted", Refused, |n| coded(n, "Transfer-Encoding: \"chunked\"\r\n")),
    row("TE: with a parameter", Refused, |n| coded(n, "Transfer-Encoding: chunked;q=1\r\n")),
    row("TE: trailing comma", Refused, |n| coded(n, "Transfer-Encoding: chunked,\r\n")),
    row("TE: leading comma", Refused, |n| coded(n, "Transfer-Encoding: ,chunked\r\n")),
    row("TE: space before the colon", Refused, |n| coded(n, "Transfer-Encoding : chunked\r\n")),
    row("TE: tab before the colon", Refused, |n| coded(n, "Transfer-Encoding\t: chunked\r\n")),
    row("TE: tab after the colon", AtMostOne, |n| coded(n, "Transfer-Encoding:\tchunked\r\n")),
    row("TE: vertical tab", Refused, |n| coded(n, "Transfer-Encoding: \x0bchunked\r\n")),
    row("TE: NUL after it", Refused, |n| coded(n, "Transfer-Encoding: chunked\0\r\n")),
    row("TE: on a folded line", Refused, |n| coded(n, "X-Folded: 1\r\n Transfer-Encoding: chunked\r\n")),
    row("TE: its value folded", Refused, |n| coded(n, "Transfer-Encoding:\r\n chunked\r\n")),
    row("TE: with an underscore", AtMostOne, |n| coded(n, "Transfer_Encoding: chunked\r\n")),
    row("TE: behind a bare LF", AtMostOne, |n| coded(n, "X-Bare: 1\nTransfer-Encoding: chunked\r\n")),
    row("TE: behind a bare CR", Refused, |n| coded(n, "X-Bare: 1\rTransfer-Encoding: chunked\r\n")),
    row("TE: named by Connection", AtMostOne, |n| coded(n, "Connection: Transfer-Encoding\r\nTransfer-Encoding: chunked\r\n")),
    row("TE: in HTTP/1.0", Refused, |n| String::from_utf8_lossy(&coded(n, CHUNKED)).replacen("HTTP/1.1", "HTTP/1.0", 1).into()),
    row("TE: with a GET", AtMostOne, |n| String::from_utf8_lossy(&coded(n, CHUNKED)).replacen("POST", "GET", 1).into()),

    row("CL: two that differ", Refused, |n| counted(n, |l| format!("Content-Length: {l}\r\nContent-Length: 0\r\n"))),
    row("CL: two that differ, 0 first", Refused, |n| counted(n, |l| format!("Content-Length: 0\r\nContent-Length: {l}\r\n"))),
    row("CL: the same twice", AtMostOne, |n| counted(n, |l| format!("Content-Length: {l}\r\nContent-Length: {l}\r\n"))),
    row("CL: a list", Refused, |n| counted(n, |l| format!("Content-Length: {l}, 0\r\n"))),
    row("CL: a list of the same", Refused, |n| counted(n, |l| format!("Content-Length: {l}, {l}\r\n"))),
    row("CL: plus", Refused, |n| counted(n, |l| format!("Content-Length: +{l}\r\n"))),
    row("CL: minus", Refused, |n| counted(n, |_| "Content-Length: -0\r\n".into())),
    row("CL: hexadecimal", Refused, |n| counted(n, |l| format!("Content-Length: 0x{l:x}\r\n"))),
    row("CL: two words", Refused, |n| counted(n, |l| format!("Content-Length: 0 {l}\r\n"))),
    row("CL: a fraction", Refused, |n| counted(n, |_| "Content-Length: 0.0\r\n".into())),
    row("CL: over 64 bits", Refused, |n| counted(n, |_| "Content-Length: 18446744073709551616\r\n".into())),
    row("CL: 64 bits", Refused, |n| counted(n, |_| "Content-Length: 18446744073709551615\r\n".into())),
    row("CL: empty", Refused, |n| counted(n, |_| "Content-Length:\r\n".into())),
    row("CL: space before the colon", Refused, |n| counted(n, |l| format!("Content-Length : {l}\r\n"))),
    row("CL: leading zeros", AtMostOne, |n| counted(n, |l| format!("Content-Length: 000{l}\r\n"))),
    row("CL: its value folded", Refused, |n| counted(n, |l| format!("Content-Length: 0\r\n {l}\r\n"))),
    row("CL: with a GET", AtMostOne, |n| String::from_utf8_lossy(&counted(n, |l| format!("Content-Length: {l}\r\n"))).replacen("POST", "GET", 1).into()),
    row("CL: with a HEAD", AtMostOne, |n| String::from_utf8_lossy(&counted(n, |l| format!("Content-Length: {l}\r\n"))).replacen("POST", "HEAD", 1).into()),
    row("CL: named by Connection", AtMostOne, |n| counted(n, |l| format!("Connection: Content-Length\r\nContent-Length: {l}\r\n"))),
    row("CL: after Expect", AtMostOne, |n| counted(n, |l| format!("Expect: 100-continue\r\nContent-Length: {l}\r\n"))),

    row("chunk: over 64 bits", AtMostOne, |n| chunked(n, "10000000000000000\r\n\r\n")),
    row("chunk: 0x0", AtMostOne, |n| chunked(n, "0x0\r\n\r\n")),
    row("chunk: -0", AtMostOne, |n| chunked(n, "-0\r\n\r\n")),
    row("chunk: +0", AtMostOne, |n| chunked(n, "+0\r\n\r\n")),
    row("chunk: space before 0", AtMostOne, |n| chunked(n, " 0\r\n\r\n")),
    row("chunk: no size", AtMostOne, |n| chunked(n, "\r\n\r\n")),
    row("chunk: 0 and noise", AtMostOne, |n| chunked(n, "0z\r\n\r\n")),
    row("chunk: 0 bare LF", AtMostOne, |n| chunked(n, "0\n\n")),
    row("chunk: 0 bare CR", AtMostOne, |n| chunked(n, "0\r\r")),
    row("chunk: 0 CR CR LF", AtMostOne, |n| chunked(n, "0\r\r\n\r\r\n")),
    row("chunk: LF in an extension", AtMostOne, |n| chunked(n, "2;\nxx\r\n0\r\n\r\n")),
    row("chunk: CR in an extension", AtMostOne, |n| chunked(n, "2;a\rb\r\nxx\r\n0\r\n\r\n")),
    row("chunk: longer than it says", AtMostOne, |n| chunked(n, "2\r\nxxxx\r\n0\r\n\r\n")),
    row("chunk: no CR LF after its data", AtMostOne, |n| chunked(n, "2\r\nxx0\r\n\r\n")),
    row("chunk: bare LF after its data", AtMostOne, |n| chunked(n, "2\r\nxx\n0\n\n")),
    row("chunk: an extension", AtMostOne, |n| in_chunk(n, CHUNKED, |l| format!("{l:x};name=\"0\"\r\n"), "0\r\n\r\n")),
    row("chunk: an extension of 32 KiB", AtMostOne, |n| chunked(n, &format!("2;{}\r\nxx\r\n", "x".repeat(32 * 1024)))),
    row("chunk: space after its size", AtMostOne, |n| in_chunk(n, CHUNKED, |l| format!("{l:x} \r\n"), "0\r\n\r\n")),
    row("chunk: leading zeros", AtMostOne, |n| in_chunk(n, CHUNKED, |l| format!("{l:032x}\r\n"), "0\r\n\r\n")),
    row("chunk: framing in trailers", AtMostOne, |n| in_chunk(n, CHUNKED, |l| format!("{l:x}\r\n"), "0\r\nContent-Length: 5\r\nTransfer-Encoding: identity\r\n\r\n")),
    row("chunk: a trailer without a name", AtMostOne, |n| chunked(n, "0\r\n: x\r\n\r\n")),
    row("chunk: a bare CR in a trailer", AtMostOne, |n| chunked(n, "0\r\nx: y\rz: 1\r\n\r\n")),

    row("header: NUL in a value", Refused, |n| get(n, "X-Nul: a\0b\r\n")),
    row("header: bare CR in a value", Refused, |n| get(n, "X-Cr: a\rb\r\n")),
    row("header: space in a name", Refused, |n| get(n, "X Space: 1\r\n")),
    row("header: no name", Refused, |n| get(n, ": 1\r\n")),
    row("header: no colon", Refused, |n| get(n, "X-None\r\n")),
    row("header: a bracket in a name", Refused, |n| get(n, "X(1): 1\r\n")),
    row("header: not ASCII in a name", Refused, |n| get(n, "X-\u{e4}: 1\r\n")),
    row("header: folded", Refused, |n| get(n, "X-Folded: 1\r\n 2\r\n")),
    row("header: first line is folded", Refused, |n| format!("GET {} HTTP/1.1\r\n Host: {}\r\n\r\n{}", n.path(), n.host, n.canary()).into()),
    row("header: 120 of them", Refused, |n| get(n, &"X-Many: 1\r\n".repeat(120))),

    row("Host: two that differ", Refused, |n| get(n, "Host: other.shop.global\r\n")),
    row("Host: the same twice", Refused, |n| get(n, &format!("Host: {}\r\n", n.host))),
    row("Host: none", Refused, |n| format!("GET {} HTTP/1.1\r\n\r\n{}", n.path(), n.canary()).into()),
    row("Host: a list", Refused, |n| format!("GET {} HTTP/1.1\r\nHost: {}, other\r\n\r\n{}", n.path(), n.host, n.canary()).into()),
    row("Host: two words", Refused, |n| format!("GET {} HTTP/1.1\r\nHost: {} other\r\n\r\n{}", n.path(), n.host, n.canary()).into()),
    row("Host: a path", Refused, |n| format!("GET {} HTTP/1.1\r\nHost: {}/canary\r\n\r\n{}", n.path(), n.host, n.canary()).into()),
    row("Host: user information", Refused, |n| format!("GET {} HTTP/1.1\r\nHost: {}:80@other\r\n\r\n{}", n.path(), n.host, n.canary()).into()),
    row("Host: space before the colon", Refused, |n| format!("GET {} HTTP/1.1\r\nHost : {}\r\n\r\n{}", n.path(), n.host, n.canary()).into()),
    row("absolute form, another Host", One, |n| format!("GET http://other.shop.global{} HTTP/1.1\r\nHost: {}\r\n\r\n", n.path(), n.host).into()).to("other.shop.global"),
    row("absolute form, user information", Refused, |n| line(n, &format!("GET http://a@{}{} HTTP/1.1", n.host, n.path()))),
    row("absolute form, no path", One, |n| format!("GET http://other.shop.global?{} HTTP/1.1\r\nHost: {}\r\n\r\n", n.path(), n.host).into()).to("other.shop.global"),
    row("authority form", Refused, |n| line(n, "GET other.shop.global:80 HTTP/1.1")),
    row("CONNECT", Refused, |n| line(n, "CONNECT other.shop.global:80 HTTP/1.1")),

    row("line: two spaces", Refused, |n| line(n, &format!("GET  {} HTTP/1.1", n.path()))),
    row("line: tabs", Refused, |n| line(n, &format!("GET\t{}\tHTTP/1.1", n.path()))),
    row("line: a space in the path", Refused, |n| line(n, &format!("GET {} x HTTP/1.1", n.path()))),
    row("line: NUL in the path", Refused, |n| line(n, &format!("GET {}\0 HTTP/1.1", n.path()))),
    row("line: a fourth word", Refused, |n| line(n, &format!("GET {} HTTP/1.1 x", n.path()))),
    row("line: HTTP/1.2", Refused, |n| line(n, &format!("GET {} HTTP/1.2", n.path()))),
    row("line: HTTP/2.0", Refused, |n| line(n, &format!("GET {} HTTP/2.0", n.path()))),
    row("line: HTTP/1.1 in small letters", Refused, |n| line(n, &format!("GET {} http/1.1", n.path()))),
    row("line: HTTP/0.9", Refused, |n| line(n, &format!("GET {}", n.path()))),
    row("line: a path without a slash", Refused, |n| line(n, &format!("GET x{} HTTP/1.1", n.path()))),
    row("line: a bracket in the method", Refused, |n| line(n, &format!("GE(T {} HTTP/1.1", n.path()))),
    row("line: bare LFs", AtMostOne, |n| format!("GET {} HTTP/1.1\nHost: {}\n\n", n.path(), n.host).into()),
    row("line: after CR LF", AtMostOne, |n| format!("\r\n\r\nGET {} HTTP/1.1\r\nHost: {}\r\n\r\n", n.path(), n.host).into()),
    row("line: CR LF, percent-encoded", AtMostOne, |n| format!("GET {}%20HTTP/1.1%0d%0a%0d%0aGET%20/canary HTTP/1.1\r\nHost: {}\r\n\r\n", n.path(), n.host).into()),
    row("upgrade to h2c", AtMostOne, |n| {
        let (path, host) = (n.path(), &n.host);
        let mut bytes = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n").into_bytes();
        bytes.extend(super::two::hidden(n));
        bytes
    }),
];
