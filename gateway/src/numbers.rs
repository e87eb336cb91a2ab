//! The gateway's own numbers.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use runtime::metrics::Metrics;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

/// Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Numbers {
    refused: Family<Reason, Counter>,
    probes: Counter,
    pub(crate) live: Gauge,
}

impl Numbers {
    pub(crate) fn register(metrics: &Metrics) -> Self {
        let this = Self {
            refused: Family::default(),
            probes: Counter::default(),
            live: Gauge::default(),
        };
        metrics.register(|registry| {
            registry.register(
                "isthmus_gateway_sni_refused",
                "Connections closed without being forwarded, by reason",
                this.refused.clone(),
            );
            let probes = "Probes answered by the gateway itself";
            registry.register("isthmus_gateway_probes_answered", probes, this.probes.clone());
            let live = "Connections that live now";
            registry.register("isthmus_gateway_connections", live, this.live.clone());
        });
        this
    }

    pub(crate) fn refused(&self, reason: &'static str) {
        self.refused.get_or_create(&Reason { reason }).inc();
    }

    pub(crate) fn probe(&self) {
        self.probes.inc();
    }
}
