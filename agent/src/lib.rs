//! What a proxy needs before it can run: its identity, its configuration, its last good state.

use mesh::name::{ClusterId, TrustDomain};
use mesh::program::{ResourceName, Snapshot};
use mesh::world::Role;
use runtime::readiness::Readiness;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use trust::bundle::Bundle;
use trust::svid::Svid;

/// Who this proxy is, and where identity and configuration come from.
#[derive(Debug, Clone)]
pub struct AgentConfig {
    pub role: Role,
    pub cluster: ClusterId,
    pub trust_domain: TrustDomain,
    pub namespace: String,
    pub pod: String,
    /// Service account.
    pub account: String,
    /// The pod's address, part of the xDS node id.
    pub address: IpAddr,
    /// Root certificates, PEM.
    pub root_certificates: PathBuf,
    pub source: Source,
    /// Names every proxy of this role follows from its start on (its listeners, its zone).
    pub follow: Vec<ResourceName>,
}

#[derive(Debug, Clone)]
pub enum Source {
    /// A control plane: SVID by CSR with the token, configuration by xDS over mTLS.
    ControlPlane {
        address: SocketAddr,
        /// File of the service account token, audience `istio-ca`; read again for every request.
        token: PathBuf,
        /// Folder for the last good configuration and identity (files 0600); `None` keeps none.
        state: Option<PathBuf>,
    },
    /// Files that an operator wrote: a JSON list of xDS resources, and an SVID.
    Files { resources: PathBuf, chain: PathBuf, key: PathBuf },
}

/// What [`start`] hands over; all of it goes on being renewed until `end`.
#[derive(Debug)]
pub struct Agent {
    pub svid: watch::Receiver<Arc<Svid>>,
    pub bundle: watch::Receiver<Arc<Bundle>>,
    pub snapshot: watch::Receiver<Arc<Snapshot>>,
    /// Names to subscribe to on demand; `None` where the configuration is a file.
    pub want: Option<mpsc::Sender<ResourceName>>,
}

/// Returns once there is an SVID; `readiness` says meanwhile what is awaited (`identity`,
/// `configuration`) and why. Errors are those that waiting cannot mend.
pub async fn start(
    config: AgentConfig,
    readiness: &Readiness,
    end: CancellationToken,
) -> anyhow::Result<Agent> {
    let _ = (config, readiness, end);
    todo!("agent")
}
