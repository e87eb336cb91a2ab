//! The publisher's half.
use serde::Serialize;

/// One resource type of one session, for `/sessions` and `isthmus proxy-status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TypeStatus {
    pub kind: mesh::program::ResourceKind,
    /// Names asked for, not counting a wildcard.
    pub subscribed: usize,
    pub wildcard: bool,
    /// Resources the client has been sent and that still exist.
    pub resources: usize,
    /// `system_version_info` of the last response; empty before the first.
    pub sent: String,
    /// The last version the client took; behind `sent` while it has not answered or has refused.
    pub acked: String,
    /// Why the last answer was a refusal; gone with the next acceptance.
    pub nack: Option<String>,
    pub nacks: u64,
    /// How long the last response has been unanswered, milliseconds; 0 when answered.
    pub lag_ms: u64,
}
