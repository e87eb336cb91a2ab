//! Asks another process's page: one GET or POST, bounded in time and size.

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::rt::TokioIo;
use std::fmt::{self, Display, Formatter};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

/// A whole read may take this long.
const READ_MAX: Duration = Duration::from_secs(10);
/// Longest page, bytes: a configuration of some ten thousand services.
const PAGE_MAX: usize = 256 * 1024 * 1024;
/// Longest sentence of somebody else that is repeated, characters.
const SAID_MAX: usize = 200;

/// Where a process shows its pages: `HOST:PORT`, `http://HOST:PORT` or `unix:PATH`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    Tcp(String),
    Unix(PathBuf),
}

impl FromStr for Place {
    type Err = anyhow::Error;
    fn from_str(text: &str) -> Result<Self> {
        if let Some(path) = text.strip_prefix("unix:") {
            return Ok(Self::Unix(path.into()));
        }
        let address = text.strip_prefix("http://").unwrap_or(text).trim_end_matches('/');
        ensure!(
            address
                .rsplit_once(':')
                .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok()),
            "an admin place reads HOST:PORT or unix:PATH; {text:?} does not"
        );
        Ok(Self::Tcp(address.to_owned()))
    }
}

impl Display for Place {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => f.write_str(address),
            Self::Unix(socket) => write!(f, "unix:{}", socket.display()),
        }
    }
}

/// What a page answered, whatever its status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub status: StatusCode,
    pub text: String,
}

impl Answer {
    pub fn is_ok(&self) -> bool {
        self.status == StatusCode::OK
    }

    /// Its first line that says something, at most 200 characters.
    pub fn said(&self) -> String {
        let mut lines = self.text.lines().map(str::trim);
        let said = lines.find(|line| !line.is_empty()).unwrap_or_default();
        said.chars().take(SAID_MAX).collect()
    }
}

/// Reads the page at `path` (with its query).
///
/// # Errors
/// When nobody listens there, the page is not 200, too long or too slow; each says so.
pub async fn read(place: &Place, path: &str) -> Result<String> {
    let answer = get(place, path, READ_MAX).await?;
    ensure!(
        answer.is_ok(),
        "ISM1007 the page {path} of {place} answered {}: {}. Fix: name the admin port of the right \
         program",
        answer.status,
        answer.said()
    );
    Ok(answer.text)
}

/// Reads the page at `path` (with its query) within `limit`, whatever its status.
///
/// # Errors
/// When nobody listens there, or what answers is no page, too long or too slow; each says so.
pub async fn get(place: &Place, path: &str, limit: Duration) -> Result<Answer> {
    ask(place, Method::GET, path, limit).await
}

/// Posts nothing to the page at `path` (with its query): an order. As [`get`] otherwise.
///
/// # Errors
/// As of [`get`].
pub async fn post(place: &Place, path: &str, limit: Duration) -> Result<Answer> {
    ask(place, Method::POST, path, limit).await
}

async fn ask(place: &Place, method: Method, path: &str, limit: Duration) -> Result<Answer> {
    let asking = async {
        match place {
            Place::Tcp(address) => {
                let stream = TcpStream::connect(address)
                    .await
                    .with_context(|| format!("ISM1006 nothing answers at {address}"))?;
                talk(stream, place, method, path).await
            }
            Place::Unix(socket) => {
                let stream = UnixStream::connect(socket)
                    .await
                    .with_context(|| format!("ISM1006 nothing answers at {}", socket.display()))?;
                talk(stream, place, method, path).await
            }
        }
    };
    tokio::time::timeout(limit, asking).await.map_err(|_| silent(place, path, limit))?
}

fn silent(place: &Place, path: &str, limit: Duration) -> anyhow::Error {
    anyhow::anyhow!(
        "ISM1006 {place} did not answer {path} within {limit:?}. Fix: name the admin port of a \
         program that runs, or the port that is forwarded to it"
    )
}

async fn talk(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    place: &Place,
    method: Method,
    path: &str,
) -> Result<Answer> {
    let foreign = || {
        format!(
            "ISM1007 {place} does not answer {path} as a program's admin port does. Fix: name the \
             admin port of the right program, which speaks plain HTTP"
        )
    };
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.with_context(foreign)?;
    let driver = tokio::spawn(connection);
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, "localhost")
        .body(Empty::<Bytes>::new())?;
    let response = sender.send_request(request).await.with_context(foreign)?;
    let status = response.status();
    let body = Limited::new(response.into_body(), PAGE_MAX).collect().await;
    driver.abort();
    let body =
        body.map_err(|e| anyhow::anyhow!("the page {path} could not be read: {e}"))?.to_bytes();
    let text = String::from_utf8(body.to_vec()).context("the page is not UTF-8")?;
    Ok(Answer { status, text })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    #[tokio::test]
    async fn who_answers_otherwise_is_named_as_it_was_given() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let place = listener.local_addr().unwrap().to_string();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            _ = stream.read(&mut [0; 64]).await;
            stream.write_all(b"\x15\x03\x01 no HTTP\r\n\r\n").await.unwrap();
        });
        let said = read(&place.parse().unwrap(), "/config").await.unwrap_err().to_string();
        let whole = ["ISM1007", &place, "/config", "Fix: "];
        assert!(whole.iter().all(|word| said.contains(word)), "{said}");
        let unix: Place = "unix:/run/a.sock".parse().unwrap();
        assert_eq!(unix.to_string(), "unix:/run/a.sock");
    }

    #[test]
    fn who_is_silent_is_named_too() {
        let said = silent(&"127.0.0.1:18999".parse().unwrap(), "/config", READ_MAX).to_string();
        assert!(said.starts_with("ISM1006 127.0.0.1:18999 did not answer"), "{said}");
        assert!(said.contains("Fix: "), "{said}");
    }
}
