//! The control plane in numbers, under Istio's names where Istio has one.

use crate::serve::Served;
use cluster::watch::WatchHealth;
use mesh::program::ResourceKind;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Instant, SystemTime};
use tokio::sync::watch;
use trust::issue::Issuer;
use xds::serve::{Counted, Limited, Sessions};

/// What is counted as it happens. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Numbers {
    pub(crate) requested: Counter,
    pub(crate) issued: Counter,
    issue_refused: Family<Reason, Counter>,
    connections_refused: Family<Reason, Counter>,
    renewals_failed: Family<Reason, Counter>,
    injections: Family<Injected, Counter>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Injected {
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

impl Numbers {
    pub(crate) fn register(&self, registry: &mut Registry) {
        let Self { requested, issued, issue_refused, connections_refused, .. } = self;
        let Self { renewals_failed, injections, .. } = self;
        registry.register(
            "isthmus_injection",
            "Pods the webhook was asked about, by what became of them",
            injections.clone(),
        );
        registry.register("citadel_server_csr_count", "Certificates asked for", requested.clone());
        registry.register(
            "citadel_server_success_cert_issuance_count",
            "Certificates issued",
            issued.clone(),
        );
        registry.register(
            "isthmus_control_plane_certificates_refused",
            "Certificates refused, by reason",
            issue_refused.clone(),
        );
        registry.register(
            "isthmus_control_plane_connections_refused",
            "Connections closed before they were served, by reason",
            connections_refused.clone(),
        );
        registry.register(
            "isthmus_control_plane_renewal_failures",
            "Attempts that renewed neither: authority (Secret cacerts), certificate (its own)",
            renewals_failed.clone(),
        );
    }

    /// `outcome` is `injected`, why a pod was left alone, or why the question was not answered.
    pub(crate) fn injection(&self, outcome: &'static str) {
        self.injections.get_or_create(&Injected { outcome }).inc();
    }

    /// `reason` is what was to be renewed.
    pub(crate) fn renewal_failed(&self, reason: &'static str) {
        self.renewals_failed.get_or_create(&Reason { reason }).inc();
    }

    pub(crate) fn issue_refused(&self, reason: &'static str) {
        self.issue_refused.get_or_create(&Reason { reason }).inc();
    }

    #[cfg(test)]
    pub(crate) fn issues_refused(&self, reason: &'static str) -> u64 {
        self.issue_refused.get_or_create(&Reason { reason }).get()
    }

    pub(crate) fn connection_refused(&self, reason: &'static str) {
        self.connections_refused.get_or_create(&Reason { reason }).inc();
    }
}

/// What is looked at when somebody asks.
pub(crate) struct Live {
    pub(crate) served: Arc<Served>,
    pub(crate) sessions: Sessions,
    pub(crate) issuer: watch::Receiver<Option<Arc<Issuer>>>,
    pub(crate) health: watch::Receiver<WatchHealth>,
}

impl fmt::Debug for Live {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Live")
    }
}

impl Collector for Live {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut gauge = |name: &str, help: &str, value: i64| {
            let gauge = ConstGauge::new(value);
            let encoder = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            gauge.encode(encoder)
        };
        let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        let sessions = self.sessions.list();
        let slowed = i64::try_from(self.sessions.slowed()).unwrap_or(i64::MAX);
        let help = "How often a stream was left unread for a moment, since it asked too often";
        gauge("isthmus_control_plane_streams_slowed", help, slowed)?;
        limited(&self.sessions.limited(), &mut encoder)?;
        let mut gauge = |name: &str, help: &str, value: i64| {
            let gauge = ConstGauge::new(value);
            let encoder = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            gauge.encode(encoder)
        };
        gauge("pilot_xds", "Proxies connected over xDS", count(sessions.len()))?;
        if let Some(world) = self.served.world() {
            let own = &world.own;
            let services = count(own.services.len() + own.entries.len());
            gauge("pilot_services", "Services known", services)?;
            gauge("isthmus_control_plane_findings", "Findings", count(own.findings.len()))?;
        }
        let generation = i64::try_from(self.served.generation()).unwrap_or(i64::MAX);
        gauge("isthmus_control_plane_generation", "Changes published", generation)?;
        let computed = i64::try_from(self.served.computed()).unwrap_or(i64::MAX);
        gauge("isthmus_control_plane_resources_computed", "Resources computed, ever", computed)?;
        let health = self.health.borrow().clone();
        let reachable = i64::from(health.reachable());
        gauge("isthmus_api_server_reachable", "1 if the own API server answers", reachable)?;
        if let Some(age) = health.age(Instant::now()) {
            let age = i64::try_from(age.as_secs()).unwrap_or(i64::MAX);
            gauge("isthmus_api_server_age_seconds", "Since the own API server was heard", age)?;
        }
        if let Some(issuer) = self.issuer.borrow().clone() {
            let now = seconds(SystemTime::now());
            gauge(
                "citadel_server_root_cert_expiry_seconds",
                "Until the root certificate expires; negative if it has",
                issuer.bundle().expires() - now,
            )?;
            gauge(
                "citadel_server_cert_chain_expiry_seconds",
                "Until the intermediate certificate expires; negative if it has",
                seconds(issuer.expires()) - now,
            )?;
        }
        pushes(&self.sessions.counted(), &mut encoder)
    }
}

/// Istio's word for a type.
fn short(kind: ResourceKind) -> &'static str {
    match kind {
        ResourceKind::Secret => "sds",
        ResourceKind::Cluster => "cds",
        ResourceKind::Endpoints => "eds",
        ResourceKind::Listener => "lds",
        ResourceKind::Route => "rds",
        ResourceKind::Zone => "nds",
    }
}

/// How often a limit of xDS was met, by the limit's name.
fn limited(limits: &BTreeMap<Limited, u64>, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let help = "How often a limit on xDS streams was met, by the limit";
    let name = "isthmus_control_plane_xds_limited";
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    for (limit, count) in limits {
        let labels = [("limit", limit.name())];
        ConstCounter::new(*count).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}

/// What was sent and refused, under Istio's names. These are counters without OpenMetrics' `_total`,
/// which Istio's own do not have either: so they are of no declared type.
fn pushes(
    counted: &BTreeMap<ResourceKind, Counted>,
    encoder: &mut DescriptorEncoder<'_>,
) -> fmt::Result {
    let number = |n: u64| ConstGauge::new(i64::try_from(n).unwrap_or(i64::MAX));
    let help = "Responses sent to proxies, by type";
    let mut family =
        encoder.encode_descriptor("pilot_xds_pushes", help, None, MetricType::Unknown)?;
    for (kind, counted) in counted {
        let labels = [("type", short(*kind))];
        number(counted.pushes).encode(family.encode_family(&labels)?)?;
    }
    let all = counted.values().map(|counted| counted.rejects).sum();
    let help = "Responses refused by proxies";
    let total =
        encoder.encode_descriptor("pilot_total_xds_rejects", help, None, MetricType::Unknown)?;
    number(all).encode(total)?;
    for (kind, counted) in counted {
        let (kind, help) = (short(*kind), "Responses of this type refused by proxies");
        let name = format!("pilot_xds_{kind}_reject");
        let one = encoder.encode_descriptor(&name, help, None, MetricType::Unknown)?;
        number(counted.rejects).encode(one)?;
    }
    Ok(())
}

fn seconds(time: SystemTime) -> i64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use runtime::metrics::Metrics;

    /// One type's worth of news.
    #[derive(Debug)]
    struct Some;

    impl Collector for Some {
        fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
            let of = |pushes, rejects| Counted { pushes, rejects };
            let counted =
                [(ResourceKind::Cluster, of(7, 2)), (ResourceKind::Endpoints, of(9, 1))].into();
            limited(&[(Limited::Refusals, 3)].into(), &mut encoder)?;
            pushes(&counted, &mut encoder)
        }
    }

    #[test]
    fn pushes_and_rejects_have_istios_names() {
        let metrics = Metrics::new();
        metrics.register(|registry| registry.register_collector(Box::new(Some)));
        let text = metrics.encode();
        for line in [
            "isthmus_control_plane_xds_limited_total{limit=\"nacks\"} 3",
            "pilot_xds_pushes{type=\"cds\"} 7",
            "pilot_xds_pushes{type=\"eds\"} 9",
            "pilot_total_xds_rejects 3",
            "pilot_xds_cds_reject 2",
            "pilot_xds_eds_reject 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
    }
}
