//! A gRPC probe: `grpc.health.v1.Health/Check` in the clear, good when the answer is SERVING.

use super::{Found, connect};
use bytes::{BufMut as _, Bytes, BytesMut};
use http::Request;
use std::net::SocketAddr;

/// Longest answer that is read, bytes: one has five of framing and two of content.
const ANSWER_MAX: usize = 1_024;
/// `ServingStatus.SERVING` (grpc/health/v1/health.proto).
const SERVING: u64 = 1;

pub(super) async fn ask(service: &str, to: SocketAddr) -> Found {
    let stream = connect(to).await?;
    let failed = |error: h2::Error| format!("gRPC with {to} failed: {error}");
    let (mut client, connection) = h2::client::handshake(stream).await.map_err(failed)?;
    tokio::select! {
        ended = connection => Err(match ended {
            Ok(()) => format!("{to} closed the connection without an answer"),
            Err(error) => failed(error),
        }),
        found = check(&mut client, service, to) => found,
    }
}

async fn check(
    client: &mut h2::client::SendRequest<Bytes>,
    service: &str,
    to: SocketAddr,
) -> Found {
    let failed = |error: h2::Error| format!("gRPC with {to} failed: {error}");
    let request = Request::post(format!("http://{to}/grpc.health.v1.Health/Check"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("user-agent", "kube-probe/isthmus")
        .body(())
        .expect("an address and literal headers make a request");
    let (answer, mut body) = client.send_request(request, false).map_err(failed)?;
    body.send_data(question(service), true).map_err(failed)?;
    let answer = answer.await.map_err(failed)?;
    if answer.status() != 200 {
        return Err(format!("the application answered HTTP status {}", answer.status()));
    }
    let code = |headers: &http::HeaderMap| {
        let code = headers.get("grpc-status")?;
        Some(String::from_utf8_lossy(code.as_bytes()).into_owned())
    };
    let refused = |code: String| format!("the application answered gRPC status {code}");
    // An answer without a body has its status in its head.
    if let Some(code) = code(answer.headers()).filter(|code| code != "0") {
        return Err(refused(code));
    }
    let mut stream = answer.into_body();
    let mut read = BytesMut::new();
    while let Some(data) = stream.data().await {
        let data = data.map_err(failed)?;
        let _ = stream.flow_control().release_capacity(data.len());
        if read.len() + data.len() > ANSWER_MAX {
            return Err(format!("the answer is longer than {ANSWER_MAX} bytes"));
        }
        read.put(data);
    }
    let trailers = stream.trailers().await.map_err(failed)?;
    match trailers.as_ref().and_then(code) {
        Some(code) if code != "0" => return Err(refused(code)),
        Some(_) | None => {}
    }
    match status(&read) {
        Some(SERVING) => Ok("SERVING".into()),
        Some(other) => Err(format!("the application's health is {other}, not SERVING")),
        None => Err("the answer is no HealthCheckResponse".into()),
    }
}

/// `HealthCheckRequest { service = 1 }`, framed by gRPC.
fn question(service: &str) -> Bytes {
    let mut message = BytesMut::new();
    if !service.is_empty() {
        message.put_u8(0x0a);
        let mut length = service.len();
        while length > 0x7f {
            message.put_u8((length & 0x7f) as u8 | 0x80);
            length >>= 7;
        }
        message.put_u8(length as u8);
        message.put_slice(service.as_bytes());
    }
    let mut framed = BytesMut::new();
    framed.put_u8(0); // Not compressed.
    framed.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    framed.put(message);
    framed.freeze()
}

/// `HealthCheckResponse.status`: field 1, a varint; an empty message is UNKNOWN (0).
fn status(framed: &[u8]) -> Option<u64> {
    let (head, message) = framed.split_at_checked(5)?;
    let length = u32::from_be_bytes(head[1..5].try_into().ok()?);
    if head[0] != 0 || usize::try_from(length).ok()? != message.len() {
        return None;
    }
    match message {
        [] => Some(0),
        [0x08, value] if *value < 0x80 => Some(u64::from(*value)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wire_form_is_grpcs() {
        assert_eq!(question("").as_ref(), [0, 0, 0, 0, 0]);
        assert_eq!(question("db").as_ref(), [0, 0, 0, 0, 4, 0x0a, 2, b'd', b'b']);
        let long = question(&"x".repeat(200));
        assert_eq!(long[..8], [0, 0, 0, 0, 203, 0x0a, 0xc8, 1]);
        assert_eq!(status(&[0, 0, 0, 0, 2, 8, 1]), Some(SERVING));
        assert_eq!(status(&[0, 0, 0, 0, 0]), Some(0));
        for wrong in [&[][..], &[1, 0, 0, 0, 2, 8, 1], &[0, 0, 0, 0, 9, 8, 1], &[0, 0, 0, 0, 1, 8]]
        {
            assert_eq!(status(wrong), None, "{wrong:?}");
        }
    }
}
