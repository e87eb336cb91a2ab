//! The workload's certificate in numbers: how long it lives, and whether it is renewed.

use crate::socket;
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

/// Registers what a foreign proxy said of its configuration, and what happens at the socket.
pub(crate) fn register_relay(
    metrics: &Metrics,
    heard: watch::Receiver<Heard>,
    socket: &socket::Numbers,
) {
    let socket::Numbers { refused, full } = socket.clone();
    metrics.register(|registry| {
        registry.register(
            "isthmus_agent_peers_refused",
            "Connections to the agent's socket by users who may not use it",
            refused,
        );
        registry.register_collector(Box::new(Said { heard, full }));
    });
}

/// Looked at when somebody asks.
#[derive(Debug)]
struct Said {
    heard: watch::Receiver<Heard>,
    full: Counter,
}

impl Collector for Said {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Heard { accepted, refused, limited, .. } = self.heard.borrow().clone();
        let mut count = |name: &str, help: &str, value: u64| {
            let encoder = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            ConstCounter::new(value).encode(encoder)
        };
        count("isthmus_agent_xds_accepted", "Responses the proxy took", accepted)?;
        count("isthmus_agent_xds_rejected", "Responses the proxy refused", refused)?;
        let help = "How often a limit of what a foreign proxy may ask was met, by the limit";
        let name = "isthmus_agent_limited";
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        let connections = [("connections", self.full.get())];
        for (limit, count) in connections.into_iter().chain(limited.named()) {
            ConstCounter::new(count).encode(family.encode_family(&[("limit", limit)])?)?;
        }
        Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;
    use xds::relay::Limited;

    #[test]
    fn each_limit_of_the_socket_has_a_number_of_its_own() {
        let (metrics, counted) = (Metrics::new(), socket::Numbers::default());
        let (heard, hears) = watch::channel(Heard::default());
        register_relay(&metrics, hears, &counted);
        counted.refused.inc_by(2);
        counted.full.inc_by(3);
        heard.send_modify(|heard| {
            heard.limited = Limited { secrets: 5, request_bytes: 7, response_bytes: 11 };
        });
        let text = metrics.encode();
        for line in [
            "isthmus_agent_peers_refused_total 2",
            "isthmus_agent_limited_total{limit=\"connections\"} 3",
            "isthmus_agent_limited_total{limit=\"secrets\"} 5",
            "isthmus_agent_limited_total{limit=\"request_bytes\"} 7",
            "isthmus_agent_limited_total{limit=\"response_bytes\"} 11",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
    }
}
