//! What to write into our own API server about the others: `.global` ServiceEntries and gateways.

use crate::export::Exports;
use crate::finding::{Finding, ObjectRef};
use crate::inventory::{Inventory, RemoteGateway, ServiceEntry};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// What should stand in our own API server, whole: what is ours there and not in it is deleted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    pub entries: BTreeMap<ObjectRef, ServiceEntry>,
    pub gateways: BTreeMap<ObjectRef, RemoteGateway>,
    /// Ours, no longer wanted, and every source that ever fed it is synced or gone.
    pub deletions: BTreeSet<ObjectRef>,
    /// Why something was left out or changed; sorted.
    pub findings: Vec<Finding>,
    /// Per link: services imported, endpoints behind them, and those refused by its policy.
    pub links: BTreeMap<String, LinkSummary>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LinkSummary {
    pub services: u32,
    pub endpoints: u32,
    pub refused: u32,
}

/// Plans our own API server's content from what `own` has and what the accepted `links` export.
///
/// A link that is not synced keeps what it published before. A cluster without a link (removed)
/// loses its endpoints. Law: planning again over an applied plan changes nothing.
pub fn plan(own: &Inventory, links: &[Exports]) -> Plan {
    let _ = (own, links);
    todo!("mesh")
}
