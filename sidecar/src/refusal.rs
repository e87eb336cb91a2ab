//! Connections that are not served: closed with a reset, counted by reason, said in the log.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use proxy::tunnel::reset;
use runtime::metrics::Metrics;
use std::fmt::Display;
use std::net::SocketAddr;
use tokio::net::TcpStream;

/// `isthmus_sidecar_refused_total{direction,reason}`.
#[derive(Debug, Clone, Default)]
pub(crate) struct Refusals(Family<Labels, Counter>);

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    direction: &'static str,
    reason: &'static str,
}

impl Refusals {
    pub(crate) fn register(metrics: &Metrics) -> Self {
        let refusals = Self::default();
        metrics.register(|registry| {
            registry.register(
                "isthmus_sidecar_refused",
                "Connections that were not served, by direction and reason",
                refusals.0.clone(),
            );
        });
        refusals
    }

    pub(crate) fn count(&self, direction: &'static str, reason: &'static str) {
        self.0.get_or_create(&Labels { direction, reason }).inc();
    }

    /// Resets the connection, so that its client knows at once.
    pub(crate) fn refuse(
        &self,
        stream: TcpStream,
        direction: &'static str,
        reason: &'static str,
        destination: Option<SocketAddr>,
        detail: &dyn Display,
    ) {
        self.count(direction, reason);
        let destination = destination.map(|address| address.to_string());
        tracing::info!(direction, reason, destination, %detail, "a connection was refused");
        reset(&stream);
    }
}
