//! Istio's metric families with its standard labels; handles are looked up once per connection.

use mesh::name::ClusterId;
use runtime::metrics::Metrics;
use std::time::Duration;

/// Who told the metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reporter {
    Source,
    Destination,
}

/// One side of a conversation. Unknown fields stay empty and are shown as `unknown`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Party {
    pub workload: String,
    pub namespace: String,
    pub principal: String,
    pub app: String,
    pub cluster: Option<ClusterId>,
}

/// All standard labels but those of a single response.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Conversation {
    pub reporter: Reporter,
    pub source: Party,
    pub destination: Party,
    /// Host: `hello.shop.global`.
    pub service: String,
    pub service_name: String,
    pub service_namespace: String,
    pub mutual_tls: bool,
}

/// The families. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Telemetry {}

/// Counters of one TCP conversation.
#[derive(Debug, Clone)]
pub struct Tcp {}

/// Counters of one HTTP conversation.
#[derive(Debug, Clone)]
pub struct Http {}

impl Telemetry {
    pub fn register(metrics: &Metrics) -> Self {
        let _ = metrics;
        todo!("engine")
    }
    pub fn tcp(&self, conversation: &Conversation, flags: &str) -> Tcp {
        let _ = (conversation, flags);
        todo!("engine")
    }
    pub fn http(&self, conversation: &Conversation) -> Http {
        let _ = conversation;
        todo!("engine")
    }
}

impl Tcp {
    pub fn opened(&self) {}
    pub fn closed(&self, sent: u64, received: u64) {
        let _ = (sent, received);
    }
}

impl Http {
    /// `request_bytes` and `response_bytes` are of bodies.
    pub fn done(
        &self,
        code: u16,
        flags: &str,
        took: Duration,
        request_bytes: u64,
        response_bytes: u64,
    ) {
        let _ = (code, flags, took, request_bytes, response_bytes);
    }
}
