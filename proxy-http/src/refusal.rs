//! Requests that are not passed on, because they could mean two things or are too large.

use http::header;
use http::request::Parts;
use http::uri::{Authority, PathAndQuery};
use http::{HeaderValue, Method, StatusCode, Version};
use std::borrow::Cow;

/// What a request's head may be; what is more is refused with 431.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HeadMax {
    pub(crate) headers: usize,
    pub(crate) bytes: usize,
}

impl HeadMax {
    /// An application's.
    pub(crate) const CLIENT: Self = Self { headers: 100, bytes: 64 * 1024 };
    /// A mesh peer's, who was sent what a client may send, and has added what proxies add.
    pub(crate) const PEER: Self = Self { headers: 116, bytes: 68 * 1024 };
}

/// Name of the limit where a request has too many headers.
const TOO_MANY: &str = "headers_count";
/// Name of the limit where a request's head is too long.
pub(crate) const TOO_LONG: &str = "headers_size";

/// Why a request is not passed on.
#[derive(Debug)]
pub(crate) struct Refused {
    pub(crate) status: StatusCode,
    pub(crate) why: Cow<'static, str>,
    /// The name of the limit that it is over.
    pub(crate) limit: Option<&'static str>,
}

/// Why a request is not passed on, if it is not.
pub(crate) fn of(parts: &Parts, most: HeadMax) -> Option<Refused> {
    let bad = |why: &'static str| {
        Some(Refused { status: StatusCode::BAD_REQUEST, why: why.into(), limit: None })
    };
    let mut hosts = parts.headers.get_all(header::HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return bad("it has several Host headers");
    }
    let authority = parts.uri.authority().map(Authority::as_str);
    match (host, authority) {
        (None, None) if parts.version != Version::HTTP_10 => return bad("it has no Host header"),
        // RFC 9113 section 8.3.1; in HTTP/1.1 the request line wins (RFC 9112 section 3.2.2).
        (Some(host), Some(authority))
            if parts.version == Version::HTTP_2
                && !host.as_bytes().eq_ignore_ascii_case(authority.as_bytes()) =>
        {
            return bad("its :authority and its Host header differ");
        }
        _ => {}
    }
    // RFC 9112 section 3.2: what cannot be a host is refused. Without one it may be empty.
    let named = |host: &HeaderValue| Authority::try_from(host.as_bytes()).ok();
    if host.is_some_and(|host| !host.is_empty() && named(host).is_none()) {
        return bad("its Host header names no host");
    }
    if authority.is_some_and(|authority| authority.contains('@'))
        || host.is_some_and(|host| host.as_bytes().contains(&b'@'))
    {
        return bad("its authority has user information");
    }
    // hyper decodes what ends with `chunked`, and undoes no other coding (RFC 9112 section 6.1).
    let codings = parts.headers.get_all(header::TRANSFER_ENCODING);
    if codings.iter().any(|value| !value.as_bytes().eq_ignore_ascii_case(b"chunked"))
        || codings.iter().count() > 1
    {
        return bad("its Transfer-Encoding is not chunked alone");
    }
    let lengths = parts.headers.get_all(header::CONTENT_LENGTH);
    if lengths.iter().any(|value| !value.as_bytes().iter().all(u8::is_ascii_digit))
        || lengths.iter().count() > 1
    {
        return bad("its Content-Length is not one number");
    }
    if parts.method == Method::CONNECT {
        return bad("CONNECT is for proxies that are asked for, this one is not");
    }
    let path = parts.uri.path();
    let whole = path == "*" && parts.method == Method::OPTIONS;
    if !(whole || path.starts_with('/')) {
        return bad("its path does not begin with a slash");
    }
    let status = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
    let HeadMax { headers, bytes } = most;
    if parts.headers.len() > headers {
        let why = format!("it has over {headers} headers").into();
        return Some(Refused { status, why, limit: Some(TOO_MANY) });
    }
    // Of HTTP/1.1 hyper has measured the bytes.
    if parts.version == Version::HTTP_2 && list_size(parts) >= bytes {
        let why = format!("its headers are over {} KiB", bytes / 1024).into();
        return Some(Refused { status, why, limit: Some(TOO_LONG) });
    }
    None
}

/// The size of a request's header list (RFC 9113 section 6.5.2).
fn list_size(parts: &Parts) -> usize {
    const EACH: usize = 32;
    let uri = &parts.uri;
    let pseudo = [
        (":method", parts.method.as_str()),
        (":scheme", uri.scheme_str().unwrap_or_default()),
        (":authority", uri.authority().map_or("", Authority::as_str)),
        (":path", uri.path_and_query().map_or("", PathAndQuery::as_str)),
    ];
    let pseudo = pseudo.iter().map(|(name, value)| name.len() + value.len() + EACH);
    let fields = parts.headers.iter();
    pseudo.chain(fields.map(|(name, value)| name.as_str().len() + value.len() + EACH)).sum()
}

/// Which limit a head of HTTP/1.1 is over that hyper found too large, by as much of it as was read:
/// hyper says no more than that.
pub(crate) fn outgrown(head: &[u8], most: HeadMax) -> &'static str {
    let lines = head.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii_end);
    let lines = lines.skip_while(|line| line.is_empty()).take_while(|line| !line.is_empty());
    // The first is the request line.
    if lines.skip(1).count() > most.headers { TOO_MANY } else { TOO_LONG }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;

    const MOST: HeadMax = HeadMax::CLIENT;

    #[test]
    fn a_host_is_one_host_and_a_body_has_one_framing() {
        let refused = |name: &'static str, value: &'static str| {
            let mut lines = vec![("host", "a:80"), (name, value)];
            lines.retain(|(other, kept)| *other != name || *kept == value);
            let mut request = Request::get("/");
            for (name, value) in lines {
                request = request.header(name, value);
            }
            let (parts, ()) = request.body(()).unwrap().into_parts();
            of(&parts, MOST).map(|refused| refused.why)
        };
        for fine in ["a", "a.b:80", "[::1]:80", "a_b", ""] {
            assert_eq!(refused("host", fine), None, "{fine:?}");
        }
        for wrong in ["a b", "a, b", "a/b", "b@a", "a?b", "a#b"] {
            assert!(refused("host", wrong).is_some(), "{wrong:?}");
        }
        for (coding, fine) in
            [("chunked", true), ("Chunked", true), ("gzip, chunked", false), ("", false)]
        {
            assert_eq!(refused("transfer-encoding", coding).is_none(), fine, "{coding:?}");
        }
        assert_eq!(refused("content-length", "5"), None);
        assert!(refused("content-length", "5, 5").is_some());
    }

    #[test]
    fn a_head_is_too_large_by_its_lines_or_by_its_bytes() {
        let head = |count: usize| format!("\r\nGET / HTTP/1.1\r\n{}", "a: b\r\n".repeat(count));
        assert_eq!(outgrown(head(101).as_bytes(), MOST), "headers_count");
        assert_eq!(outgrown((head(100) + "a").as_bytes(), MOST), "headers_count", "one has begun");
        assert_eq!(outgrown(head(100).as_bytes(), MOST), "headers_size");
        let body = "\r\n".to_owned() + &"line\n".repeat(200);
        assert_eq!(
            outgrown((head(100) + &body).as_bytes(), MOST),
            "headers_size",
            "what follows is none"
        );
        assert_eq!(outgrown(b"", MOST), "headers_size");
    }

    #[test]
    fn a_request_without_one_host_is_refused() {
        let parts = |hosts: &[&str]| {
            let mut request = Request::get("/");
            for host in hosts {
                request = request.header("host", *host);
            }
            request.body(()).unwrap().into_parts().0
        };
        assert!(of(&parts(&[]), MOST).is_some());
        assert!(of(&parts(&["a", "b"]), MOST).is_some());
        assert!(of(&parts(&["a"]), MOST).is_none());
    }
}
