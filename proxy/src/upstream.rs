//! A destination: its settings, its endpoints and what we know of their health.

use crate::engine::NotHere;
use mesh::name::{ClusterId, Identity};
use mesh::program::{Cluster, ClusterName, LbEndpoint};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// How a connection is wanted.
#[derive(Debug, Clone, Default)]
pub struct Ask {
    /// ALPN towards meshed endpoints: `istio` for TCP, `istio-http/1.1` for HTTP.
    pub alpn: Vec<u8>,
    /// Bytes as they come, no TLS of our own, also to meshed endpoints: a gateway's way.
    pub raw: bool,
    /// Dial this one first (from [`Upstream::pick`]).
    pub first: Option<Picked>,
    /// Endpoints that this request has tried already: taken only when nothing else is left.
    pub avoid: Vec<(SocketAddr, ClusterId)>,
}

/// One endpoint dialled, and how it went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    pub endpoint: SocketAddr,
    pub cluster: ClusterId,
    pub after: Duration,
    /// Empty for the attempt that won.
    pub problem: String,
}

/// A connection that is ready for the first byte.
#[derive(Debug)]
pub struct Established {
    pub stream: Stream,
    /// Counts as a connection of the upstream while held, and as one active use of the endpoint.
    pub in_flight: InFlight,
    pub endpoint: LbEndpoint,
    /// Who answered, verified; `None` without TLS.
    pub identity: Option<Identity>,
    /// From dialling the winner to the end of its handshake.
    pub handshake: Duration,
    /// All that were dialled, in order.
    pub attempts: Vec<Attempt>,
}

/// TCP, or TLS over it.
#[derive(Debug)]
pub enum Stream {
    Plain(TcpStream),
    Tls(Box<tokio_rustls::client::TlsStream<TcpStream>>),
}

/// Why no connection came about.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ConnectFailed {
    #[error(transparent)]
    NotHere(#[from] NotHere),
    #[error("{cluster} has no endpoint that may be dialled: {reason}")]
    NoEndpoint { cluster: ClusterName, reason: String },
    #[error("{cluster} has {limit} connections, the most it may")]
    Overflow { cluster: ClusterName, limit: u32 },
    #[error("no endpoint of {cluster} answered: {}", sentence(attempts))]
    AllFailed { cluster: ClusterName, attempts: Vec<Attempt> },
}

fn sentence(attempts: &[Attempt]) -> String {
    let one =
        |a: &Attempt| format!("{} in {} after {:?}: {}", a.endpoint, a.cluster, a.after, a.problem);
    attempts.iter().map(one).collect::<Vec<_>>().join("; ")
}

impl ConnectFailed {
    /// Envoy's response flag: `NC` no cluster, `UH` no healthy upstream, `UO` overflow, `UF` failure.
    pub fn flag(&self) -> &'static str {
        match self {
            Self::NotHere(_) => "NC",
            Self::NoEndpoint { .. } => "UH",
            Self::Overflow { .. } => "UO",
            Self::AllFailed { .. } => "UF",
        }
    }
}

/// How a use of an endpoint ended; feeds ejection and suspicion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Response headers came, status below 500; or a TCP connection carried bytes.
    Success,
    /// Response headers with a 5xx status. Never counts against a gateway.
    ServerError,
    /// The connection ended before response headers.
    Reset,
    /// No response headers within the hedge delay.
    Slow,
    /// Nothing learned (the client left).
    Cancelled,
}

/// One destination. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Upstream {}

/// An endpoint chosen by the load balancer.
#[derive(Debug, Clone)]
pub struct Picked {}

impl Picked {
    pub fn endpoint(&self) -> &LbEndpoint {
        todo!("engine")
    }

    /// Key for pools of connections: stays the same over swaps of the Program.
    pub fn key(&self) -> (SocketAddr, ClusterId) {
        todo!("engine")
    }

    /// From now on this endpoint serves one more request, until the guard goes.
    pub fn begin(&self) -> InFlight {
        todo!("engine")
    }

    /// False once the endpoint is ejected or gone from the Program: do not reuse its connections.
    pub fn is_usable(&self) -> bool {
        todo!("engine")
    }
}

/// One active use of an endpoint.
#[derive(Debug)]
pub struct InFlight {}

impl InFlight {
    /// Tells what became of it; may be said several times (a hedge fires, then an answer comes).
    pub fn report(&self, outcome: Outcome) {
        let _ = outcome;
        todo!("engine")
    }
}

impl Upstream {
    /// Its settings in the Program of now.
    pub fn cluster(&self) -> Arc<Cluster> {
        todo!("engine")
    }

    /// Chooses an endpoint by priority, locality and policy, none of `avoid` unless nothing else is left.
    pub fn pick(&self, avoid: &[(SocketAddr, ClusterId)]) -> Result<Picked, ConnectFailed> {
        let _ = avoid;
        todo!("engine")
    }

    /// Races attempts 250 ms apart, the third at the latest into another network, each limited to 1 s;
    /// the first whose handshake *with the workload* ends wins (decision 14).
    pub async fn connect(&self, ask: &Ask) -> Result<Established, ConnectFailed> {
        let _ = ask;
        todo!("engine")
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        match self.get_mut() {
            Self::Plain(s) => Pin::new(s).poll_read(cx, buf),
            Self::Tls(s) => Pin::new(s).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(s) => Pin::new(s).poll_write(cx, buf),
            Self::Tls(s) => Pin::new(s).poll_write(cx, buf),
        }
    }
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        match self.get_mut() {
            Self::Plain(s) => Pin::new(s).poll_flush(cx),
            Self::Tls(s) => Pin::new(s).poll_flush(cx),
        }
    }
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        match self.get_mut() {
            Self::Plain(s) => Pin::new(s).poll_shutdown(cx),
            Self::Tls(s) => Pin::new(s).poll_shutdown(cx),
        }
    }
}
