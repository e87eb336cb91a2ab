//! What a cluster tells the others: per exported service its ports, accounts and ready counts.

use crate::inventory::{GatewayAddress, Inventory};
use crate::name::{ClusterId, Locality, Network, Protocol, ServiceName, TrustDomain};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// One exported service as other clusters see it: the spec of an `ExportedService` object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExportedService {
    pub name: ServiceName,
    /// Sorted by number; never UDP.
    pub ports: Vec<ExportedPort>,
    /// Service accounts of its ready meshed endpoints (kept while there is none, see `exports`).
    pub accounts: BTreeSet<String>,
    /// Subset name to its labels.
    pub subsets: BTreeMap<String, BTreeMap<String, String>>,
    /// Ready meshed endpoints per locality; localities without one are absent.
    pub localities: Vec<LocalityCount>,
    /// Seconds since the epoch of the Service's creation; the older wins a conflict.
    pub created: i64,
    /// Why it cannot be called from other clusters, in full sentences; empty when it can.
    pub problems: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExportedPort {
    pub number: u16,
    pub name: String,
    pub protocol: Protocol,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LocalityCount {
    pub locality: Locality,
    pub ready: u32,
    /// Ready endpoints per subset name.
    pub subsets: BTreeMap<String, u32>,
}

/// All that one linked cluster tells us, and what its link allows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exports {
    /// Name of the ClusterLink, and label `isthmus.dev/link` of what it publishes.
    pub link: String,
    pub cluster: ClusterId,
    /// UID of the remote's Namespace `kube-system`.
    pub uid: String,
    pub network: Network,
    pub trust_domain: TrustDomain,
    pub services: BTreeMap<ServiceName, ExportedService>,
    pub gateways: Vec<GatewayAddress>,
    pub import: ImportPolicy,
    /// False until one whole list has been seen: then nothing of this cluster may be deleted, and
    /// what it published before stays as it is (decision 13: never publish less because we know less).
    pub synced: bool,
}

/// What a link may announce here: `spec.import` of its ClusterLink.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImportPolicy {
    /// Namespaces it may announce services of; `*` for all; empty for none.
    pub namespaces: BTreeSet<String>,
    /// CIDRs its gateways' addresses must lie in; empty for any address that is not loopback,
    /// link-local, multicast, unspecified or within this cluster's VIP range.
    pub gateway_ranges: Vec<ipnet::IpNet>,
}

/// What `own` exports: every Service with a ServiceExport of its name.
pub fn exports(own: &Inventory) -> BTreeMap<ServiceName, ExportedService> {
    let _ = own;
    todo!("mesh")
}
