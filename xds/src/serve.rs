//! The control plane's side of xDS: ADS in both variants (delta, and state of the world) and the
//! certificate service on accepted streams.

use crate::issue::{Issue, wire::CertificateService};
use crate::length::REQUEST_MAX;
use crate::node::Node;
use crate::subscribe::{KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT};
use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_server::AggregatedDiscoveryServiceServer;
use futures::{Stream, StreamExt};
use mesh::name::Identity;
use mesh::program::{Resource, ResourceKind, ResourceName};
use mesh::world::View;
use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;

mod accepted;
mod ads;
mod cache;
mod sessions;

pub(crate) use accepted::{Accepted, Peer};
pub use sessions::{Counted, Limited, Session, Sessions, Shares};

/// What there is to serve. Called often and from many tasks: answers come from memory.
pub trait Source: Send + Sync {
    /// Who this is, or a sentence why it is refused (ISM code first). `peer` is proven by its
    /// certificate; `node` is only said, so it is checked against a live pod of that account.
    /// Asked again on every change; a refusal then leaves the view as it was.
    fn view(&self, peer: &Identity, node: &Node) -> Result<View, String>;

    /// `None`: it does not exist for this client. Equal resources had better be the same `Arc`,
    /// for then they are encoded once.
    fn resource(&self, view: &View, name: &ResourceName) -> Option<Arc<Resource>>;

    /// What a wildcard subscription covers.
    fn names(&self, view: &View, kind: ResourceKind) -> Vec<ResourceName>;

    /// The generation of what is served; it only grows.
    fn changes(&self) -> watch::Receiver<u64>;

    /// What may differ since `generation`, for any view. More than the truth costs time only.
    fn changed_since(&self, generation: u64) -> Changed;
}

/// Which names a change touches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Changed {
    All,
    Names(Arc<BTreeSet<ResourceName>>),
}

/// A proxy opens one stream, asks for a certificate now and then, and has room to reconnect.
const STREAMS_PER_CONNECTION: u32 = 16;
/// Streams end by themselves before (`ads::STREAM_AGE`); this is for whoever ignores that.
const CONNECTION_AGE: Duration = Duration::from_secs(35 * 60);
const CONNECTION_GRACE: Duration = Duration::from_secs(30);
/// How long open streams may take to end after `end`.
const DRAIN: Duration = Duration::from_secs(5);

/// Serves until `end`, then lets streams finish for at most 5 s. `incoming` yields streams that
/// are already TLS, with the verified identity of who dialled where there is one: ADS refuses
/// those without, the certificate service looks at the token. How many connections there may be
/// is `incoming`'s to limit.
pub async fn serve<IO>(
    incoming: impl Stream<Item = (IO, Option<Identity>)> + Send + 'static,
    source: Arc<dyn Source>,
    issuer: Option<Arc<dyn Issue>>,
    sessions: Sessions,
    end: CancellationToken,
) -> anyhow::Result<()>
where
    IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let incoming = incoming.map(|(io, peer)| Ok::<_, io::Error>(Accepted::new(io, peer)));
    let ads = AggregatedDiscoveryServiceServer::new(ads::Ads::new(source, sessions, end.clone()))
        .max_decoding_message_size(REQUEST_MAX)
        // Responses are cut at `Limits::response_bytes`, but one resource is never cut.
        .max_encoding_message_size(usize::MAX);
    let serving = Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .max_concurrent_streams(STREAMS_PER_CONNECTION)
        .initial_stream_window_size(64 * 1024)
        .initial_connection_window_size(1 << 20)
        .http2_max_header_list_size(32 * 1024)
        .max_connection_age(CONNECTION_AGE)
        .max_connection_age_grace(CONNECTION_GRACE)
        .add_service(ads)
        .add_optional_service(issuer.map(CertificateService))
        .serve_with_incoming_shutdown(incoming, end.clone().cancelled_owned());
    let late = async {
        end.cancelled().await;
        tokio::time::sleep(DRAIN).await;
    };
    tokio::select! {
        served = serving => Ok(served?),
        () = late => Ok(()),
    }
}
