//! An HTTP probe as the kubelet makes it: one GET, any status from 200 to 399 is good, redirects to
//! the same place are followed, no certificate is verified (`k8s.io/kubernetes/pkg/probe/http`).

use super::{Found, HttpGet, Scheme, connect};
use rustls_pki_types::ServerName;
use std::fmt::Write as _;
use std::io;
use std::net::SocketAddr;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio_rustls::TlsConnector;

/// Longest head of an answer that is read, bytes; its body is not.
const HEAD_MAX: usize = 16 * 1024;
/// Redirects followed (the kubelet's number).
const REDIRECTS_MAX: usize = 10;

/// What of an answer decides.
#[derive(Debug, PartialEq, Eq)]
struct Head {
    status: u16,
    location: Option<String>,
}

pub(super) async fn ask(get: &HttpGet, to: SocketAddr) -> Found {
    let mut path = get.path.clone();
    for _ in 0..=REDIRECTS_MAX {
        let stream = connect(to).await?;
        let request = request(get, &path, to);
        let head = match get.scheme {
            Scheme::Http => exchange(stream, &request).await,
            Scheme::Https => {
                let tls = TlsConnector::from(trust::tls::unverified_client_config(&[b"http/1.1"]));
                match tls.connect(server_name(get, to), stream).await {
                    Ok(stream) => exchange(stream, &request).await,
                    Err(error) => return Err(format!("TLS with {to} failed: {error}")),
                }
            }
        };
        let head = head.map_err(|error| format!("asking {to} failed: {error}"))?;
        match local(&head, to) {
            Some(next) => path = next,
            None if (200..400).contains(&head.status) => {
                return Ok(format!("status {}", head.status));
            }
            None => return Err(format!("the application answered {}", head.status)),
        }
    }
    Err(format!("more than {REDIRECTS_MAX} redirects"))
}

/// The path that a redirect to the same place leads to. One to elsewhere is as good as an answer.
fn local(head: &Head, to: SocketAddr) -> Option<String> {
    if !matches!(head.status, 301 | 302 | 303 | 307 | 308) {
        return None;
    }
    let location = head.location.as_deref()?;
    let here = [format!("http://{to}"), format!("https://{to}")];
    let rest = here.iter().find_map(|here| location.strip_prefix(here.as_str()));
    let path = rest.unwrap_or(location);
    (path.starts_with('/') && !path.starts_with("//")).then(|| path.to_owned())
}

fn host(get: &HttpGet) -> Option<&str> {
    let is_host = |name: &str| name.eq_ignore_ascii_case("host");
    get.http_headers.iter().find(|header| is_host(&header.name)).map(|header| header.value.as_str())
}

fn server_name(get: &HttpGet, to: SocketAddr) -> ServerName<'static> {
    let name = host(get).and_then(|host| ServerName::try_from(host.to_owned()).ok());
    name.unwrap_or_else(|| ServerName::from(to.ip()))
}

fn request(get: &HttpGet, path: &str, to: SocketAddr) -> String {
    let mut text = format!("GET {} HTTP/1.1\r\nHost: {}\r\n", target(path), to);
    if let Some(host) = host(get) {
        text = format!("GET {} HTTP/1.1\r\nHost: {}\r\n", target(path), line(host));
    }
    let said =
        |name: &str| get.http_headers.iter().any(|header| header.name.eq_ignore_ascii_case(name));
    for (name, value) in [("User-Agent", "kube-probe/isthmus"), ("Accept", "*/*")] {
        if !said(name) {
            let _ = write!(text, "{name}: {value}\r\n");
        }
    }
    for header in &get.http_headers {
        let (name, value) = (line(&header.name), line(&header.value));
        // Ours says how the answer ends; a name with other characters would be two headers.
        let token = name.bytes().all(|b| b.is_ascii_graphic() && b != b':') && !name.is_empty();
        if token && !["host", "connection"].contains(&name.to_ascii_lowercase().as_str()) {
            let _ = write!(text, "{name}: {value}\r\n");
        }
    }
    text + "Connection: close\r\n\r\n"
}

/// One line's worth of a text.
fn line(text: &str) -> String {
    text.chars().filter(|c| !matches!(c, '\r' | '\n' | '\0')).collect()
}

/// A request target of a probe's path: begins with a slash, and has no character that ends it.
fn target(path: &str) -> String {
    let mut text = String::from(if path.starts_with('/') { "" } else { "/" });
    for byte in path.split('#').next().unwrap_or_default().bytes() {
        if byte.is_ascii_graphic() {
            text.push(char::from(byte));
        } else {
            let _ = write!(text, "%{byte:02X}");
        }
    }
    text
}

async fn exchange(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    request: &str,
) -> io::Result<Head> {
    stream.write_all(request.as_bytes()).await?;
    stream.flush().await?;
    let mut read = Vec::new();
    let mut buffer = [0; 2_048];
    loop {
        while let Some(end) = find(&read, b"\r\n\r\n") {
            let head = parse(&read[..end])?;
            // An interim answer: the real one follows (RFC 9110, 15.2).
            if !(100..200).contains(&head.status) {
                return Ok(head);
            }
            read.drain(..end + 4);
        }
        if read.len() >= HEAD_MAX {
            return parse(&read); // Its status is known, whatever else it has to say.
        }
        let count = stream.read(&mut buffer).await?;
        if count == 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "it closed without an answer",
            ));
        }
        read.extend_from_slice(&buffer[..count]);
    }
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

fn parse(head: &[u8]) -> io::Result<Head> {
    let text = String::from_utf8_lossy(head);
    let mut lines = text.split("\r\n");
    let first = lines.next().unwrap_or_default();
    let status =
        first.strip_prefix("HTTP/1.").and_then(|rest| rest.split(' ').nth(1)?.parse().ok());
    let status: u16 = status
        .filter(|status| (100..600).contains(status))
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "that is no answer of HTTP/1"))?;
    let location = lines.find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("location").then(|| value.trim().to_owned())
    });
    Ok(Head { status, location })
}

#[cfg(test)]
mod tests {
    use super::super::Header;
    use super::*;

    #[test]
    fn a_request_says_what_the_probe_says() {
        let get = HttpGet {
            path: "healthz?full=1 yes#part".into(),
            port: 8080,
            scheme: Scheme::Http,
            http_headers: [("X-Probe", "a\r\nEvil: b"), ("Host", "shop"), ("bad name", "x")]
                .map(|(name, value)| Header { name: name.into(), value: value.into() })
                .to_vec(),
        };
        let to = "10.244.0.5:8080".parse().unwrap();
        let text = request(&get, &get.path, to);
        assert_eq!(
            text,
            "GET /healthz?full=1%20yes HTTP/1.1\r\nHost: shop\r\nUser-Agent: kube-probe/isthmus\r\n\
             Accept: */*\r\nX-Probe: aEvil: b\r\nConnection: close\r\n\r\n"
        );
    }

    #[test]
    fn only_redirects_to_the_same_place_are_followed() {
        let to = "10.244.0.5:8080".parse().unwrap();
        let next =
            |status, location: &str| local(&Head { status, location: Some(location.into()) }, to);
        assert_eq!(next(302, "/login"), Some("/login".into()));
        assert_eq!(next(308, "http://10.244.0.5:8080/x"), Some("/x".into()));
        for elsewhere in ["https://login.example.com/", "//other/x", "http://10.244.0.5:80801/"] {
            assert_eq!(next(302, elsewhere), None, "{elsewhere}");
        }
        assert_eq!(next(200, "/login"), None);
    }

    #[test]
    fn what_is_no_answer_is_refused() {
        assert_eq!(parse(b"HTTP/1.1 204 No Content").unwrap().status, 204);
        assert_eq!(parse(b"HTTP/1.0 301 x\r\nLOCATION: /y").unwrap().location, Some("/y".into()));
        for text in ["", "SSH-2.0-x", "HTTP/1.1 2000 x", "HTTP/1.1 abc", "HTTP/2 200"] {
            assert!(parse(text.as_bytes()).is_err(), "{text}");
        }
    }
}
