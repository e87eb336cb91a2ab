//! What a hop may add, and what may not pass it.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::request::Parts;
use http::{Method, Uri, Version};
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
const HOP_BY_HOP: [HeaderName; 6] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::TE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// Why a request is not passed on: 400 with this sentence.
pub(crate) fn refusal(parts: &Parts) -> Option<&'static str> {
    let mut hosts = parts.headers.get_all(header::HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return Some("it has several Host headers");
    }
    if host.is_none() && parts.version == Version::HTTP_11 && parts.uri.authority().is_none() {
        return Some("it has no Host header");
    }
    if parts.method == Method::CONNECT {
        return Some("CONNECT is for proxies that are asked for, this one is not");
    }
    None
}

/// The request's wish to change protocols, `websocket` for example.
pub(crate) fn upgrade(headers: &HeaderMap) -> Option<HeaderValue> {
    let wants = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|token| token.trim().eq_ignore_ascii_case("upgrade"));
    wants.then(|| headers.get(header::UPGRADE).cloned()).flatten()
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

/// Makes a request what goes to the next hop: origin form, Host kept, one request id.
pub(crate) fn begin_request(parts: &mut Parts) {
    if let Some(authority) = parts.uri.authority() {
        // Absolute form: its authority wins over Host (RFC 9112 section 3.2.2).
        if let Ok(host) = HeaderValue::from_str(authority.as_str()) {
            parts.headers.insert(header::HOST, host);
        }
        let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
        parts.uri = path.parse().unwrap_or_else(|_| Uri::from_static("/"));
    }
    parts.version = Version::HTTP_11;
    if !parts.headers.contains_key(&REQUEST_ID) {
        parts.headers.insert(REQUEST_ID, request_id());
    }
    if !parts.headers.contains_key(&FORWARDED_PROTO) {
        parts.headers.insert(FORWARDED_PROTO, HeaderValue::from_static("http"));
    }
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
    use super::{begin_request, end_hop, refusal, upgrade};
    use http::{HeaderMap, HeaderValue, Request};

    fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        lines.iter().map(|(n, v)| (n.parse().unwrap(), HeaderValue::from_static(v))).collect()
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
        let wish = upgrade(&map);
        assert_eq!(wish, Some(HeaderValue::from_static("websocket")));
        end_hop(&mut map, wish.as_ref());
        assert_eq!(map["upgrade"], "websocket");
        assert_eq!(map["connection"], "upgrade");
        assert_eq!(upgrade(&headers(&[("upgrade", "websocket")])), None);
    }

    #[test]
    fn absolute_form_becomes_origin_form_with_its_host() {
        let request = Request::get("http://hello.shop.global/a?b=c").header("host", "other");
        let (mut parts, ()) = request.body(()).unwrap().into_parts();
        begin_request(&mut parts);
        assert_eq!(parts.uri, "/a?b=c");
        assert_eq!(parts.headers["host"], "hello.shop.global");
        assert_eq!(parts.headers["x-request-id"].len(), 36);
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
        assert!(refusal(&parts(&[])).is_some());
        assert!(refusal(&parts(&["a", "b"])).is_some());
        assert!(refusal(&parts(&["a"])).is_none());
    }
}
