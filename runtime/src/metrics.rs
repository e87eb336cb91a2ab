//! Numbers for Prometheus: one registry a process, OpenMetrics text on request.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use std::sync::{Arc, Mutex};

/// A shared registry. Cheap to clone; register at start, keep the handles.
#[derive(Debug, Clone)]
pub struct Metrics {
    registry: Arc<Mutex<Registry>>,
    pages_limited: Family<Limit, Counter>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Limit {
    limit: &'static str,
}

impl Default for Metrics {
    fn default() -> Self {
        let (mut registry, pages_limited) = (Registry::default(), Family::default());
        registry.register(
            "isthmus_pages_limited",
            "How often a limit of this process's pages (admin, metrics, health) was met, by the limit",
            Family::clone(&pages_limited),
        );
        let metrics = Self { registry: Arc::new(Mutex::new(registry)), pages_limited };
        // Shown before it is met.
        let _ = metrics.page_connections();
        metrics
    }
}

impl Metrics {
    pub fn new() -> Self {
        Self::default()
    }

    /// Raised whenever a page server has no room for another connection.
    pub(crate) fn page_connections(&self) -> Counter {
        self.pages_limited.get_or_create_owned(&Limit { limit: "connections" })
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
