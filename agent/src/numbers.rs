//! The workload's certificate in numbers: how long it lives, and whether it is renewed.

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::gauge::ConstGauge;
use runtime::metrics::Metrics;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::watch;
use trust::svid::Svid;
use xds::relay::Heard;

/// Registers both; the counter is to be raised by each attempt that fails.
pub(crate) fn register(metrics: &Metrics, svid: watch::Receiver<Arc<Svid>>, failed: Counter) {
    metrics.register(|registry| {
        registry.register(
            "isthmus_certificate_renewal_failures",
            "Attempts that did not renew the workload's certificate",
            failed,
        );
        registry.register_collector(Box::new(Life(svid)));
    });
}

/// Registers what a foreign proxy said of its configuration; the counter is to be raised for each
/// connection to the socket by another user.
pub(crate) fn register_relay(metrics: &Metrics, heard: watch::Receiver<Heard>, refused: Counter) {
    metrics.register(|registry| {
        registry.register(
            "isthmus_agent_peers_refused",
            "Connections to the agent's socket by users who may not use it",
            refused,
        );
        registry.register_collector(Box::new(Said(heard)));
    });
}

/// Looked at when somebody asks.
#[derive(Debug)]
struct Said(watch::Receiver<Heard>);

impl Collector for Said {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Heard { accepted, refused, .. } = self.0.borrow().clone();
        let mut count = |name: &str, help: &str, value: u64| {
            let encoder = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            ConstCounter::new(value).encode(encoder)
        };
        count("isthmus_agent_xds_accepted", "Responses the proxy took", accepted)?;
        count("isthmus_agent_xds_rejected", "Responses the proxy refused", refused)
    }
}

/// Looked at when somebody asks.
#[derive(Debug)]
struct Life(watch::Receiver<Arc<Svid>>);

impl Collector for Life {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let (now, ends) = (SystemTime::now(), self.0.borrow().not_after);
        let whole = |time: Duration| i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
        let left = match ends.duration_since(now) {
            Ok(left) => whole(left),
            Err(past) => -whole(past.duration()),
        };
        // The name Istio's own agent has for it.
        let one = encoder.encode_descriptor(
            "istio_agent_cert_expiry_seconds",
            "Until the workload's certificate expires; negative if it has",
            None,
            MetricType::Gauge,
        )?;
        ConstGauge::new(left).encode(one)
    }
}
