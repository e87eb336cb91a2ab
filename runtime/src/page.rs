//! Reads another process's page: one GET, bounded in time and size.

use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::rt::TokioIo;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

/// A whole read may take this long.
const READ_MAX: Duration = Duration::from_secs(10);
/// Longest page, bytes: a configuration of some ten thousand services.
const PAGE_MAX: usize = 256 * 1024 * 1024;

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

/// Reads the page at `path` (with its query).
///
/// # Errors
/// When nobody listens there, the page is not 200, too long or too slow; each says so.
pub async fn read(place: &Place, path: &str) -> Result<String> {
    let reading = async {
        match place {
            Place::Tcp(address) => {
                let stream = TcpStream::connect(address)
                    .await
                    .with_context(|| format!("ISM1006 nothing answers at {address}"))?;
                get(stream, path).await
            }
            Place::Unix(socket) => {
                let stream = UnixStream::connect(socket)
                    .await
                    .with_context(|| format!("ISM1006 nothing answers at {}", socket.display()))?;
                get(stream, path).await
            }
        }
    };
    tokio::time::timeout(READ_MAX, reading)
        .await
        .with_context(|| format!("ISM1006 {place:?} did not answer {path} within {READ_MAX:?}"))?
}

async fn get(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    path: &str,
) -> Result<String> {
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let driver = tokio::spawn(connection);
    let request =
        Request::get(path).header(header::HOST, "localhost").body(Empty::<Bytes>::new())?;
    let response = sender.send_request(request).await?;
    let status = response.status();
    let body = Limited::new(response.into_body(), PAGE_MAX).collect().await;
    driver.abort();
    let body =
        body.map_err(|e| anyhow::anyhow!("the page {path} could not be read: {e}"))?.to_bytes();
    let text = String::from_utf8(body.to_vec()).context("the page is not UTF-8")?;
    if status != StatusCode::OK {
        bail!("ISM1007 the page {path} answered {status}: {}", text.trim());
    }
    Ok(text)
}
