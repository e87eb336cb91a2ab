//! A proxy's side of xDS: dials, subscribes to what is used, and keeps the last good snapshot
//! while nobody answers.

use crate::node::Node;
use futures::future::BoxFuture;
use hyper_util::rt::TokioIo;
use mesh::program::{Program, ResourceName, Snapshot, Want};
use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tonic::codegen::Service;
use tonic::transport::{Channel, Endpoint};

mod driver;
mod warming;

use driver::Driver;

/// A control plane that owes an answer for so long is stuck, though its HTTP/2 stack may not be: its
/// stream is left, for another that a load balancer leads to another replica (F17).
pub const WATCHDOG: Duration = Duration::from_secs(45);
/// HTTP/2 ping so often …
pub(crate) const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);
/// … and its answer awaited so long.
pub(crate) const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// What a subscriber holds. Dropping every `want` changes nothing; `end` ends it.
#[derive(Debug, Clone)]
pub struct Subscription {
    /// What is known, only ever whole: a listener is shown once its clusters and endpoints are
    /// here (make before break), and what it replaces goes only then.
    pub snapshot: watch::Receiver<Arc<Snapshot>>,
    pub want: mpsc::Sender<Want>,
    /// Resources the server sent and we refused, with the reason, until a good one replaces them.
    pub refusals: watch::Receiver<Arc<BTreeMap<ResourceName, String>>>,
}

/// Dials a control plane and returns a stream that is already TLS, the server verified.
#[derive(Clone)]
pub struct Connector(Arc<dyn Fn() -> BoxFuture<'static, io::Result<BoxedIo>> + Send + Sync>);

impl Connector {
    pub fn new<F, Fut, IO>(dial: F) -> Self
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = io::Result<IO>> + Send + 'static,
        IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        Self(Arc::new(move || {
            let dialled = dial();
            Box::pin(async move { Ok(Box::new(dialled.await?) as BoxedIo) })
        }))
    }

    pub async fn dial(&self) -> io::Result<BoxedIo> {
        (self.0)().await
    }
}

impl std::fmt::Debug for Connector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Connector")
    }
}

/// Any duplex byte stream.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}
pub type BoxedIo = Box<dyn Io>;

/// Starts a subscription that knows nothing yet.
pub fn start(node: Node, connector: Connector, end: CancellationToken) -> Subscription {
    start_from(node, connector, Program::new(), end)
}

/// Starts from what was known before a restart: shown at once with `connected: false`, subscribed
/// again under the versions it has, so that an unchanged program costs one round trip.
pub fn start_from(
    node: Node,
    connector: Connector,
    known: Program,
    end: CancellationToken,
) -> Subscription {
    let (want, wants) = mpsc::channel(WANTS);
    let (driver, snapshot, refusals) = Driver::new(&node, known);
    tokio::spawn(driver.run(connector, wants, end));
    Subscription { snapshot, want, refusals }
}

/// Wishes that may wait; whoever sends more waits with them, or is told so.
const WANTS: usize = 1024;

/// One HTTP/2 connection over a freshly dialled stream, with keepalive: a peer that is stopped,
/// or behind a black hole, is found within 30 s.
pub async fn channel(connector: &Connector) -> Result<Channel, tonic::transport::Error> {
    // The name is never resolved: the connector knows where to dial.
    Endpoint::from_static("http://control-plane.isthmus.internal")
        .connect_timeout(Duration::from_secs(10))
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .connect_with_connector(Dial(connector.clone()))
        .await
}

struct Dial(Connector);

impl Service<tonic::codegen::http::Uri> for Dial {
    type Response = TokioIo<BoxedIo>;
    type Error = io::Error;
    type Future = BoxFuture<'static, io::Result<TokioIo<BoxedIo>>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: tonic::codegen::http::Uri) -> Self::Future {
        let connector = self.0.clone();
        Box::pin(async move { Ok(TokioIo::new(connector.dial().await?)) })
    }
}
