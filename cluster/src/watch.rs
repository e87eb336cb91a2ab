//! The own cluster: all kinds watched, joined and published as one `Inventory`.

use crate::heard::KindHealth;
use kube::Client;
use mesh::inventory::Inventory;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// How to watch the own cluster.
#[derive(Debug, Clone)]
pub struct Options {
    /// `isthmus-system` unless told otherwise.
    pub root_namespace: String,
}

impl Default for Options {
    fn default() -> Self {
        Self { root_namespace: "isthmus-system".into() }
    }
}

/// What a watched cluster looks like, and how fresh that is.
#[derive(Debug, Clone)]
pub struct Watched {
    /// `None` until every kind has been listed once and the mesh is configured; never again after.
    pub inventory: watch::Receiver<Option<Arc<Inventory>>>,
    pub health: watch::Receiver<WatchHealth>,
}

/// How fresh an inventory is, per kind.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WatchHealth {
    /// By kind: `Service`, `Pod`, …
    pub kinds: BTreeMap<&'static str, KindHealth>,
    /// What the first inventory still waits for, as sentences; empty once there is one.
    pub waiting: Vec<String>,
}

impl WatchHealth {
    /// At least one watch is being answered.
    pub fn reachable(&self) -> bool {
        self.kinds.values().any(|kind| !kind.silent && kind.heard.is_some())
    }

    /// Time since the API server was last heard at all; `None` if never.
    pub fn age(&self, now: Instant) -> Option<Duration> {
        let last = self.kinds.values().filter_map(|kind| kind.heard).map(|heard| heard.at).max()?;
        Some(now.saturating_duration_since(last))
    }
}

/// Watches the own cluster until `end`.
pub fn own(client: Client, options: Options, end: CancellationToken) -> Watched {
    let _ = (client, options, end);
    todo!()
}
