//! Numbers for Prometheus: one registry a process, OpenMetrics text on request.

use prometheus_client::registry::Registry;
use std::sync::{Arc, Mutex};

/// A shared registry. Cheap to clone; register at start, keep the handles.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    registry: Arc<Mutex<Registry>>,
}

impl Metrics {
    pub fn new() -> Self {
        Self::default()
    }

    /// Registers through `with`. Names without `_total`: the encoder adds it to counters.
    pub fn register(&self, with: impl FnOnce(&mut Registry)) {
        with(&mut self.registry.lock().expect("no registration panics"));
    }

    /// OpenMetrics text.
    pub fn encode(&self) -> String {
        let mut text = String::new();
        let registry = self.registry.lock().expect("no registration panics");
        // Writing into a String cannot fail.
        let _ = prometheus_client::encoding::text::encode(&mut text, &registry);
        text
    }
}
