//! All that one control plane knows, indexed by host; and who asks.

use crate::inventory::Inventory;
use crate::name::{ClusterId, Identity, Locality, Network};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Who asks, in full: nothing else may shape what one client gets (ARCHITECTURE.md, B6).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct View {
    pub role: Role,
    pub dialect: Dialect,
    pub cluster: ClusterId,
    pub network: Network,
    pub locality: Locality,
    pub namespace: String,
    /// From the client's certificate.
    pub identity: Identity,
    /// The pod's name, checked against a live pod of that account.
    pub workload: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    Sidecar,
    Gateway,
    /// A foreign proxy.
    Agent,
}

/// Which of the two listed ways of writing the same resources a client reads (decision 5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dialect {
    Isthmus,
    Envoy,
}

/// One cluster's inventory, indexed for compilation. Cheap to clone.
#[derive(Debug, Clone)]
pub struct World {
    pub own: Arc<Inventory>,
}

impl World {
    /// Indexes an inventory.
    pub fn new(own: Arc<Inventory>) -> Self {
        Self { own }
    }
}
