//! The control plane's side of xDS: delta ADS and the certificate service on accepted streams.

use crate::issue::Issue;
use crate::node::Node;
use crate::session::server::TypeStatus;
use futures::Stream;
use mesh::name::Identity;
use mesh::program::{Resource, ResourceKind, ResourceName};
use mesh::world::View;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// What there is to serve. Called often and from many tasks: answers come from memory.
pub trait Source: Send + Sync {
    /// Who this is, or a sentence why it is refused (ISM code first). `peer` is proven by its
    /// certificate; `node` is only said, so it is checked against a live pod of that account.
    /// Asked again on every change; a refusal then leaves the view as it was.
    fn view(&self, peer: &Identity, node: &Node) -> Result<View, String>;

    /// `None`: it does not exist for this client.
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

/// All open sessions, for `/sessions` and `isthmus proxy-status`.
#[derive(Debug, Clone, Default)]
pub struct Sessions(Arc<Mutex<BTreeMap<u64, Session>>>);

/// One proxy's stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Session {
    /// Node id.
    pub proxy: String,
    pub identity: Identity,
    pub view: View,
    /// How long it has been open, milliseconds.
    pub age_ms: u64,
    pub types: Vec<TypeStatus>,
}

impl Sessions {
    /// Sorted by proxy.
    pub fn list(&self) -> Vec<Session> {
        let open = self.0.lock().expect("no holder panics");
        let mut list: Vec<Session> = open.values().cloned().collect();
        list.sort_by(|a, b| a.proxy.cmp(&b.proxy));
        list
    }
}

/// Serves until `end`, then lets streams finish for at most 5 s. `incoming` yields streams that
/// are already TLS, with the verified identity of who dialled where there is one: ADS refuses
/// those without, the certificate service looks at the token.
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
    let _ = (source, issuer, sessions, end);
    futures::pin_mut!(incoming);
    todo!("xds: the server")
}

/// Who dialled, as a request's extension.
#[derive(Debug, Clone)]
pub(crate) struct Peer(pub Option<Identity>);
