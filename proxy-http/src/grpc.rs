//! gRPC as a proxy meets it: how a call is known, how long it may take, and how its client is told
//! that it failed (gRPC over HTTP/2: `PROTOCOL-HTTP2.md`).

use crate::refusal;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Response, StatusCode};
use std::error::Error;
use std::fmt::Write as _;
use std::time::Duration;

const STATUS: HeaderName = HeaderName::from_static("grpc-status");
const MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
const TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
/// Longest message of ours, in bytes before it is escaped.
const MESSAGE_MAX: usize = 1_024;

/// Those of gRPC's codes that a proxy gives by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Status {
    Cancelled = 1,
    Unknown = 2,
    DeadlineExceeded = 4,
    PermissionDenied = 7,
    ResourceExhausted = 8,
    Unimplemented = 12,
    Internal = 13,
    Unavailable = 14,
    Unauthenticated = 16,
}

impl Status {
    /// By `http-grpc-status-mapping.md`; a proxy's own 504 is the caller's time being over.
    pub(crate) fn of(code: StatusCode) -> Self {
        match code.as_u16() {
            400 => Self::Internal,
            401 => Self::Unauthenticated,
            403 => Self::PermissionDenied,
            404 => Self::Unimplemented,
            431 => Self::ResourceExhausted,
            504 => Self::DeadlineExceeded,
            429 | 502 | 503 => Self::Unavailable,
            _ => Self::Unknown,
        }
    }

    /// For a response that broke off: what its sender said by `RST_STREAM`, and that it is gone
    /// where the whole connection ended (`PROTOCOL-HTTP2.md`, "Errors").
    pub(crate) fn of_broken(problem: &hyper::Error) -> Self {
        let Some(problem) = in_h2(problem) else { return Self::Unavailable };
        if !problem.is_reset() {
            return Self::Unavailable;
        }
        match problem.reason() {
            Some(h2::Reason::CANCEL) => Self::Cancelled,
            Some(h2::Reason::REFUSED_STREAM) => Self::Unavailable,
            Some(h2::Reason::ENHANCE_YOUR_CALM) => Self::ResourceExhausted,
            Some(h2::Reason::INADEQUATE_SECURITY) => Self::PermissionDenied,
            Some(_) | None => Self::Internal,
        }
    }
}

/// The HTTP/2 error in a chain of errors.
pub(crate) fn in_h2(problem: &hyper::Error) -> Option<&h2::Error> {
    let mut cause = problem.source();
    while let Some(error) = cause {
        if let Some(found) = error.downcast_ref::<h2::Error>() {
            return Some(found);
        }
        cause = error.source();
    }
    None
}

/// The server did nothing with this request (RFC 9113 section 8.7): it refused the stream, or began to
/// go away before it came to it.
pub(crate) fn is_refused(problem: &hyper::Error) -> bool {
    let Some(problem) = in_h2(problem) else { return false };
    let reason = problem.reason();
    if problem.is_reset() {
        return problem.is_remote() && reason == Some(h2::Reason::REFUSED_STREAM);
    }
    problem.is_go_away() && problem.is_remote() && reason == Some(h2::Reason::NO_ERROR)
}

/// Names of limits that h2 keeps, by what it says of them in GOAWAY's debug data.
const FLOODS: [(&[u8], &str); 5] = [
    (b"header_list_way_too_large", refusal::TOO_LONG),
    (b"too_many_continuations", "continuations"),
    (b"too_many_data_frames", "data_frames"),
    (b"too_many_internal_resets", "resets_own"),
    (b"too_many_resets", "resets"),
];

/// The name of the limit for which we ended a connection, which ended with these bytes of ours: all
/// floods have one code, and h2 says in GOAWAY alone which it was.
pub(crate) fn own_limit(problem: &hyper::Error, last: &[u8]) -> Option<String> {
    let found = in_h2(problem).filter(|found| found.is_library())?;
    let reason = found.reason()?;
    if reason == h2::Reason::NO_ERROR {
        return None;
    }
    let known = FLOODS.iter().find(|(said, _)| last.ends_with(said));
    Some(match known {
        Some((_, limit)) => (*limit).to_owned(),
        None => format!("{reason:?}").to_ascii_lowercase(),
    })
}

/// `application/grpc`, with what codec ever; not gRPC-Web, whose trailers are in its body.
pub(crate) fn is_call(headers: &HeaderMap) -> bool {
    let Some(kind) = headers.get(header::CONTENT_TYPE) else { return false };
    let rest = kind.as_bytes().strip_prefix(b"application/grpc");
    rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';' | b' ')))
}

/// How long the caller waits: up to eight digits and a unit (`PROTOCOL-HTTP2.md`, "Timeout").
pub(crate) fn patience(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(TIMEOUT)?.to_str().ok()?;
    let unit = text.chars().next_back()?;
    let digits = text.strip_suffix(unit)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    Some(match unit {
        'H' => Duration::from_secs(count * 3_600),
        'M' => Duration::from_secs(count * 60),
        'S' => Duration::from_secs(count),
        'm' => Duration::from_millis(count),
        'u' => Duration::from_micros(count),
        'n' => Duration::from_nanos(count),
        _ => return None,
    })
}

/// What a response's trailers, or the headers of one without a body, say.
pub(crate) fn status_in(headers: &HeaderMap) -> Option<u16> {
    headers.get(STATUS)?.to_str().ok()?.parse().ok()
}

/// The end of a call that failed on its way.
pub(crate) fn trailers(status: Status, message: &str) -> HeaderMap {
    let mut trailers = HeaderMap::with_capacity(2);
    trailers.insert(STATUS, HeaderValue::from(status as u16));
    trailers.insert(MESSAGE, escape(message));
    trailers
}

/// Makes an answer of our own one that a gRPC client understands: 200, and the truth in what it
/// takes for trailers.
/// Its body has to be empty.
pub(crate) fn tell<B>(response: &mut Response<B>, message: &str) -> Status {
    let status = Status::of(response.status());
    *response.status_mut() = StatusCode::OK;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.remove(header::CONTENT_LENGTH);
    headers.extend(trailers(status, message));
    status
}

/// Percent-encoded where it is not printable ASCII (`PROTOCOL-HTTP2.md`, "Status-Message").
fn escape(message: &str) -> HeaderValue {
    let mut text = String::with_capacity(message.len());
    for byte in message.bytes().take(MESSAGE_MAX) {
        match byte {
            b'%' | ..b' ' | 0x7f.. => {
                // Writing into a String cannot fail.
                let _ = write!(text, "%{byte:02X}");
            }
            _ => text.push(char::from(byte)),
        }
    }
    HeaderValue::try_from(text).expect("printable ASCII makes a header")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: &'static str, value: &'static str) -> HeaderMap {
        [(HeaderName::from_static(name), HeaderValue::from_static(value))].into_iter().collect()
    }

    #[test]
    fn calls_are_known_by_their_content_type() {
        for (kind, call) in [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("application/grpc;charset=utf-8", true),
            ("application/grpc-web", false),
            ("application/json", false),
        ] {
            assert_eq!(is_call(&headers("content-type", kind)), call, "{kind}");
        }
    }

    #[test]
    fn time_outs_are_read_as_the_protocol_writes_them() {
        let of = |text| patience(&headers("grpc-timeout", text));
        assert_eq!(of("250m"), Some(Duration::from_millis(250)));
        assert_eq!(of("99999999H"), Some(Duration::from_secs(99_999_999 * 3_600)));
        for wrong in ["", "m", "1", "1x", "-1S", "123456789S", "1.5S", "1 S"] {
            assert_eq!(of(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_message_survives_as_printable_ascii() {
        assert_eq!(escape("100 % für\nalle"), "100 %25 f%C3%BCr%0Aalle");
        assert_eq!(escape(&"ü".repeat(5_000)).len(), MESSAGE_MAX * 3);
    }

    #[test]
    fn our_own_answer_becomes_a_status() {
        let mut response = Response::new(());
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        assert_eq!(tell(&mut response, "no way"), Status::Unavailable);
        assert_eq!(response.status(), 200);
        assert_eq!(status_in(response.headers()), Some(14));
        assert_eq!(response.headers()["grpc-message"], "no way");
    }
}
