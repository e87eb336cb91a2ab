//! The access log: one JSON object a line to standard output, in Envoy's keys.

use serde::Serialize;

/// One connection or request. Fields of a stranger's making are cut at 256 bytes when written.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Line {
    /// RFC 3339, UTC, milliseconds.
    pub start_time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    /// 0 for TCP.
    pub response_code: u16,
    /// Envoy's flags, `-` for none.
    pub response_flags: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub response_code_details: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connection_termination_details: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upstream_transport_failure_reason: Option<String>,
    pub bytes_received: u64,
    pub bytes_sent: u64,
    /// Milliseconds.
    pub duration: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upstream_service_time: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub x_forwarded_for: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_agent: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub authority: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upstream_host: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upstream_cluster: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upstream_local_address: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub downstream_local_address: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub downstream_remote_address: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requested_server_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub route_name: Option<String>,
    /// Ours: peers as verified.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upstream_peer_uri_san: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub downstream_peer_uri_san: Option<String>,
    /// Ours: how often an upstream was dialled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upstream_request_attempt_count: Option<u32>,
}
