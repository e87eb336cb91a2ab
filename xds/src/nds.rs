//! The name table of a sidecar's DNS: Istio's `istio.networking.nds.v1`, and two fields of ours.

use std::collections::BTreeMap;

/// Type URL of [`NameTable`].
pub const TYPE_URL: &str = "type.googleapis.com/istio.networking.nds.v1.NameTable";

/// Addresses by host (Istio `pkg/dns/proto/nds.proto`). Tags from 15001 on are ours and unknown
/// to Istio, whose clients skip them.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct NameTable {
    #[prost(btree_map = "string, message", tag = "1")]
    pub table: BTreeMap<String, NameInfo>,
    /// `mesh::zone::Zone::complete`.
    #[prost(bool, tag = "15001")]
    pub complete: bool,
    /// `mesh::zone::Zone::namespaces`.
    #[prost(string, repeated, tag = "15002")]
    pub namespaces: Vec<String>,
}

/// One host of a [`NameTable`].
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct NameInfo {
    #[prost(string, repeated, tag = "1")]
    pub ips: Vec<String>,
    #[prost(string, tag = "2")]
    pub registry: String,
    #[prost(string, tag = "3")]
    pub shortname: String,
    #[prost(string, tag = "4")]
    pub namespace: String,
}
