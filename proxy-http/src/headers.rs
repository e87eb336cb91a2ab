//! What a hop may add, and what may not pass it.

use crate::version::Wire;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::request::Parts;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Request, Response, StatusCode, Uri, Version};
use mesh::name::Identity;
use std::fmt::Write as _;

/// Who called, as a certificate proved it (Envoy's name and form).
const XFCC: HeaderName = HeaderName::from_static("x-forwarded-client-cert");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Ours, between two sidecars only: the caller's cluster and workload, for metrics.
pub(crate) const SOURCE: HeaderName = HeaderName::from_static("x-isthmus-source");
/// Ours, between two sidecars only: why a 503 came from the sidecar and not from the application.
pub(crate) const UNSERVED: HeaderName = HeaderName::from_static("x-isthmus-unserved");
/// A value of [`UNSERVED`]: the application never saw the request.
pub(crate) const UNSENT: HeaderValue = HeaderValue::from_static("unsent");
/// A value of [`UNSERVED`]: it broke off before the response began.
pub(crate) const RESET: HeaderValue = HeaderValue::from_static("reset");

/// Names that concern one connection only (RFC 9110 section 7.6.1), besides those that
/// `Connection` names. hyper frames each hop's messages anew.
const HOP_BY_HOP: [HeaderName; 7] = [
    header::CONNECTION,
    HeaderName::from_static("http2-settings"),
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::TE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// The request's wish to change protocols, `websocket` for example. HTTP/2 has none of this, and a
/// wish for it (`h2c`, which RFC 9113 gave up) would take requests past who looks at them.
pub(crate) fn upgrade(parts: &Parts) -> Option<HeaderValue> {
    let headers = &parts.headers;
    if parts.version != Version::HTTP_11 {
        return None;
    }
    let wants = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|token| token.trim().eq_ignore_ascii_case("upgrade"));
    let protocol = wants.then(|| headers.get(header::UPGRADE).cloned()).flatten()?;
    let lower = protocol.as_bytes().to_ascii_lowercase();
    (!lower.split(|byte| *byte == b',').any(|name| name.trim_ascii().starts_with(b"h2")))
        .then_some(protocol)
}

/// The client can take trailers (RFC 9110 section 10.1.4); gRPC servers ask for this word.
pub(crate) fn takes_trailers(headers: &HeaderMap) -> bool {
    headers
        .get_all(header::TE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|token| token.trim().eq_ignore_ascii_case("trailers"))
}

/// Removes what concerns one hop; a switch of protocols, where `upgrade` is given, goes on.
pub(crate) fn end_hop(headers: &mut HeaderMap, upgrade: Option<&HeaderValue>) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|token| token.trim().parse().ok())
        // Naming these would take from the next hop what it needs to route and to trust.
        .filter(|name| *name != header::HOST && *name != XFCC && *name != header::CONTENT_LENGTH)
        .collect();
    for name in named.iter().chain(&HOP_BY_HOP) {
        headers.remove(name);
    }
    if let Some(protocol) = upgrade {
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, protocol.clone());
    }
}

/// Removes what concerns one hop from a response. A server that asks for another protocol says which
/// (RFC 9110 section 15.5.22), as a wish for one was passed on to it; HTTP/2 has no such word.
pub(crate) fn end_response<B>(response: &mut Response<B>, came: Version) {
    let asks = response.status() == StatusCode::UPGRADE_REQUIRED && came == Version::HTTP_11;
    let headers = response.headers_mut();
    let offer = headers.get(header::UPGRADE).filter(|_| asks).cloned();
    end_hop(headers, offer.as_ref());
}

/// Removes from trailers what a message's head alone may say: who merges them into the head must learn
/// nothing from them of framing, of where the message goes, or of who sent it (RFC 9110 section 6.5.1).
pub(crate) fn end_trailers(trailers: &mut HeaderMap) {
    const HEAD_ONLY: [HeaderName; 6] =
        [header::CONTENT_LENGTH, header::HOST, header::TRAILER, XFCC, SOURCE, UNSERVED];
    for name in HOP_BY_HOP.iter().chain(&HEAD_ONLY) {
        trailers.remove(name);
    }
}

/// Makes a request what goes to the next hop: origin form, Host kept, one request id.
pub(crate) fn begin_request(parts: &mut Parts) {
    if let Some(authority) = parts.uri.authority() {
        // Absolute form: its authority wins over Host (RFC 9112 section 3.2.2).
        if let Ok(host) = HeaderValue::from_str(authority.as_str()) {
            parts.headers.insert(header::HOST, host);
        }
        let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
        // `http://host?query` has an empty path, which no request line can have.
        let slash = if path.starts_with('/') || path == "*" { "" } else { "/" };
        parts.uri = format!("{slash}{path}").parse().unwrap_or_else(|_| Uri::from_static("/"));
    }
    parts.version = Version::HTTP_11;
    if !parts.headers.contains_key(&REQUEST_ID) {
        parts.headers.insert(REQUEST_ID, request_id());
    }
    if !parts.headers.contains_key(&FORWARDED_PROTO) {
        parts.headers.insert(FORWARDED_PROTO, HeaderValue::from_static("http"));
    }
}

/// The request of one attempt, as its hop writes it. `host` stands in where the request names none.
pub(crate) fn frame<B>(
    parts: &Parts,
    wire: Wire,
    trailers: bool,
    host: &str,
    body: B,
) -> Request<B> {
    let mut request = Request::new(body);
    *request.method_mut() = parts.method.clone();
    *request.headers_mut() = parts.headers.clone();
    let headers = request.headers_mut();
    match wire {
        Wire::Http1 => {
            // HTTP/2 may send a cookie in several pieces (RFC 9113 section 8.2.3).
            let mut cookies = headers.get_all(header::COOKIE).iter();
            if let (Some(first), Some(second)) = (cookies.next(), cookies.next()) {
                let all: Vec<&[u8]> =
                    [first, second].into_iter().chain(cookies).map(HeaderValue::as_bytes).collect();
                if let Ok(joined) = HeaderValue::from_bytes(&all.join(&b"; "[..])) {
                    headers.insert(header::COOKIE, joined);
                }
            }
            if let (false, Ok(host)) = (headers.contains_key(header::HOST), host.try_into()) {
                // HTTP/1.0 need not name one, and HTTP/1.1 must (RFC 9112 section 3.2).
                headers.insert(header::HOST, host);
            }
            *request.uri_mut() = parts.uri.clone();
        }
        Wire::Http2 => {
            let named = headers.remove(header::HOST);
            let named = named.as_ref().and_then(|host| host.to_str().ok()).unwrap_or(host);
            if trailers {
                headers.insert(header::TE, HeaderValue::from_static("trailers"));
            }
            let mut uri = parts.uri.clone().into_parts();
            uri.scheme = Some(Scheme::HTTP);
            uri.authority = named.parse::<Authority>().ok();
            uri.path_and_query.get_or_insert(PathAndQuery::from_static("/"));
            *request.version_mut() = Version::HTTP_2;
            // `OPTIONS *` and names that are no authority are left as they came; hyper refuses them.
            *request.uri_mut() = Uri::from_parts(uri).unwrap_or_else(|_| parts.uri.clone());
        }
    }
    request
}

/// Outbound: what an application says about certificates is nobody's proof.
pub(crate) fn leave(headers: &mut HeaderMap, source: Option<&HeaderValue>) {
    headers.remove(XFCC);
    headers.remove(&SOURCE);
    if let Some(source) = source {
        headers.insert(SOURCE, source.clone());
    }
}

/// Inbound: says who the peer proved to be; without a proof nobody may say anything.
pub(crate) fn arrive(headers: &mut HeaderMap, proof: Option<&HeaderValue>) {
    headers.remove(XFCC);
    headers.remove(&SOURCE);
    if let Some(proof) = proof {
        headers.insert(XFCC, proof.clone());
    }
}

/// `By=…;URI=…` of [`XFCC`]: identities consist of characters a header may have.
pub(crate) fn proof(own: &Identity, peer: &Identity) -> HeaderValue {
    HeaderValue::from_str(&format!("By={own};URI={peer}"))
        .expect("identities are lower-case letters, digits and ':/.-_'")
}

/// A random UUID (RFC 9562, version 4), as Envoy makes them.
fn request_id() -> HeaderValue {
    let mut bytes: [u8; 16] = rand::random();
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let mut text = String::with_capacity(36);
    for (index, byte) in bytes.iter().enumerate() {
        if [4, 6, 8, 10].contains(&index) {
            text.push('-');
        }
        // Writing into a String cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    HeaderValue::try_from(text).expect("hexadecimal digits and hyphens make a header")
}

/// One text header, for the log.
pub(crate) fn text(headers: &HeaderMap, name: impl header::AsHeaderName) -> Option<String> {
    headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned)
}

/// The request id that [`begin_request`] made sure of.
pub(crate) fn id(headers: &HeaderMap) -> Option<String> {
    text(headers, &REQUEST_ID)
}

#[cfg(test)]
mod tests {
    use super::{begin_request, end_hop, end_trailers, frame, upgrade};
    use crate::version::Wire;
    use http::{HeaderMap, HeaderValue, Request};

    fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        lines.iter().map(|(n, v)| (n.parse().unwrap(), HeaderValue::from_static(v))).collect()
    }

    fn with(headers: HeaderMap) -> http::request::Parts {
        let mut parts = Request::new(()).into_parts().0;
        parts.headers = headers;
        parts
    }

    #[test]
    fn a_request_is_framed_as_its_hop_writes_it() {
        let mut parts = with(headers(&[("host", "hello.shop"), ("x-kept", "1")]));
        parts.uri = "/a?b".parse().unwrap();
        parts.headers.append("cookie", HeaderValue::from_static("a=1"));
        parts.headers.append("cookie", HeaderValue::from_static("b=2"));
        let one = frame(&parts, Wire::Http1, true, "10.0.0.1:80", ());
        assert_eq!(one.uri(), "/a?b");
        assert_eq!(one.headers()["host"], "hello.shop");
        assert_eq!(one.headers()["cookie"], "a=1; b=2");
        assert!(!one.headers().contains_key("te"));
        let two = frame(&parts, Wire::Http2, true, "10.0.0.1:80", ());
        assert_eq!(two.uri(), "http://hello.shop/a?b");
        assert!(!two.headers().contains_key("host"));
        assert_eq!(two.headers()["te"], "trailers");
        parts.headers.remove("host");
        let named = frame(&parts, Wire::Http1, true, "10.0.0.1:80", ());
        assert_eq!(named.headers()["host"], "10.0.0.1:80", "as HTTP/1.1 must");
        assert_eq!(
            frame(&parts, Wire::Http2, false, "10.0.0.1:80", ()).uri(),
            "http://10.0.0.1:80/a?b"
        );
    }

    #[test]
    fn what_concerns_one_hop_ends_there() {
        let mut map = HeaderMap::new();
        for (name, value) in [
            ("connection", "close, X-Secret"),
            ("connection", "host, x-forwarded-client-cert"),
            ("x-secret", "1"),
            ("te", "trailers"),
            ("transfer-encoding", "chunked"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "keep-alive"),
            ("upgrade", "h2c"),
            ("http2-settings", "AAMAAABkAAQAAP__"),
            ("host", "hello.shop.global"),
            ("x-forwarded-client-cert", "By=a"),
            ("x-kept", "2"),
        ] {
            map.append(http::HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        end_hop(&mut map, None);
        let mut left: Vec<&str> = map.keys().map(|name| name.as_str()).collect();
        left.sort_unstable();
        assert_eq!(left, ["host", "x-forwarded-client-cert", "x-kept"]);
    }

    #[test]
    fn a_switch_of_protocols_goes_on() {
        let mut map = headers(&[("connection", "keep-alive, Upgrade"), ("upgrade", "websocket")]);
        let wish = upgrade(&with(map.clone()));
        assert_eq!(wish, Some(HeaderValue::from_static("websocket")));
        for gone in ["h2c", "websocket, h2c", "H2C"] {
            map.insert("upgrade", HeaderValue::from_static(gone));
            assert_eq!(upgrade(&with(map.clone())), None, "{gone}");
        }
        map.insert("upgrade", HeaderValue::from_static("websocket"));
        end_hop(&mut map, wish.as_ref());
        assert_eq!(map["upgrade"], "websocket");
        assert_eq!(map["connection"], "upgrade");
        assert_eq!(upgrade(&with(headers(&[("upgrade", "websocket")]))), None);
    }

    #[test]
    fn absolute_form_becomes_origin_form_with_its_host() {
        let request = Request::get("http://hello.shop.global/a?b=c").header("host", "other");
        let (mut parts, ()) = request.body(()).unwrap().into_parts();
        begin_request(&mut parts);
        assert_eq!(parts.uri, "/a?b=c");
        assert_eq!(parts.headers["host"], "hello.shop.global");
        assert_eq!(parts.headers["x-request-id"].len(), 36);
        let (mut parts, ()) = Request::get("http://a?b=c").body(()).unwrap().into_parts();
        begin_request(&mut parts);
        assert_eq!(parts.uri, "/?b=c", "an empty path is a slash on the wire");
    }

    #[test]
    fn trailers_say_nothing_that_belongs_into_a_head() {
        let mut trailers = headers(&[
            ("grpc-status", "0"),
            ("content-length", "5"),
            ("transfer-encoding", "chunked"),
            ("host", "other"),
            ("x-forwarded-client-cert", "URI=spiffe://forged"),
            ("x-isthmus-source", "west;web"),
        ]);
        end_trailers(&mut trailers);
        assert_eq!(trailers, headers(&[("grpc-status", "0")]));
    }
}
