//! What the names of the mesh mean in DNS: a table, and the answer to one question.

use crate::inventory::Inventory;
use crate::name::Hostname;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Seconds an answer may be kept (Istio's DNS proxy says 30 too).
pub const TTL: u32 = 30;

/// All names one cluster answers for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Zone {
    /// Addresses by name. A name with no address exists (NODATA).
    pub names: BTreeMap<Hostname, Vec<IpAddr>>,
    /// Namespaces known here or in a linked cluster: `.global` names below them are ours.
    pub namespaces: BTreeSet<String>,
    /// Every accepted link has delivered a whole list: only then is an absent name NXDOMAIN.
    pub complete: bool,
}

/// What was asked for; other types of a known name are NODATA.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecordType {
    A,
    Aaaa,
    Other,
}

/// What to say, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    V4(Vec<Ipv4Addr>),
    V6(Vec<Ipv6Addr>),
    /// The name exists, not with this type.
    NoData,
    /// Ours, and certain that it does not exist.
    NxDomain,
    /// Ours, absent, and a link has not been heard yet.
    ServFail,
    /// Not ours: ask upstream.
    Forward,
}

/// The zone of one cluster: own Services, and what the federation published; `complete` is the
/// caller's to know (all accepted links synced).
pub fn zone(own: &Inventory, complete: bool) -> Zone {
    let _ = (own, complete);
    todo!("mesh")
}

/// Answers one question. `name` is lower case without trailing dot.
pub fn answer(zone: &Zone, name: &str, record: RecordType) -> Answer {
    let _ = (zone, name, record);
    todo!("mesh")
}
