//! One proxy's view of its Program: resources by name, asked for on first use, and the upstreams
//! whose health outlives every swap of the Program.

use crate::upstream::{Ask, ConnectFailed, Established, Upstream};
use mesh::name::{ClusterId, Network};
use mesh::program::{ClusterName, Resource, ResourceName, Snapshot};
use runtime::metrics::Metrics;
use std::sync::Arc;
use tokio::sync::{mpsc, watch};
use trust::bundle::Bundle;
use trust::svid::Svid;

/// What an engine is built from.
#[derive(Debug)]
pub struct Options {
    pub metrics: Metrics,
    pub svid: watch::Receiver<Arc<Svid>>,
    pub bundle: watch::Receiver<Arc<Bundle>>,
    /// Where this proxy runs: an endpoint of another network is another path.
    pub cluster: ClusterId,
    pub network: Network,
    pub snapshot: watch::Receiver<Arc<Snapshot>>,
    /// Takes names to subscribe to; `None` where the Program is a file and complete.
    pub want: Option<mpsc::Sender<ResourceName>>,
}

/// Why a resource cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotHere {
    #[error("the control plane says that {0} does not exist")]
    Absent(ResourceName),
    #[error("{0} was not used before and no control plane answers, so it cannot be had now")]
    NotConnected(ResourceName),
    #[error("the control plane did not answer for {0} within 1 s")]
    TimedOut(ResourceName),
    #[error("{0} is not in this proxy's configuration file")]
    NotInFile(ResourceName),
    #[error("this proxy already follows {0} names, the most it may")]
    TooMany(usize),
    #[error("{0} is of another kind than its name says")]
    WrongKind(ResourceName),
}

/// Cheap to clone; all clones share upstreams, health and TLS configurations.
#[derive(Debug, Clone)]
pub struct Engine {}

impl Engine {
    /// Starts the prober too; it ends with the last clone.
    pub fn new(options: Options) -> Self {
        let _ = options;
        todo!("engine")
    }

    /// A resource by name: at once if known; else asked for, for at most 1 s while a control plane
    /// answers, and failing at once while none does (decision 6).
    pub async fn resource(&self, name: &ResourceName) -> Result<Arc<Resource>, NotHere> {
        let _ = name;
        todo!("engine")
    }

    /// The destination of that name with its endpoints (asked for as by [`Engine::resource`]).
    pub async fn upstream(&self, name: &ClusterName) -> Result<Upstream, NotHere> {
        let _ = name;
        todo!("engine")
    }

    /// [`Engine::upstream`], then [`Upstream::connect`].
    pub async fn connect(
        &self,
        name: &ClusterName,
        ask: &Ask,
    ) -> Result<Established, ConnectFailed> {
        let _ = (name, ask);
        todo!("engine")
    }

    /// What this proxy runs now.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        todo!("engine")
    }
}
