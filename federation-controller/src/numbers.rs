//! The controller's metrics.

use crate::renew::Failures;
use cluster::api::cluster_link::ClusterLinkStatus;
use cluster::apply::Progress;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use runtime::metrics::Metrics;
use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, EncodeLabelSet)]
struct OfCondition {
    cluster: String,
    condition: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, EncodeLabelSet)]
struct OfCluster {
    cluster: String,
}

/// All of them. Cheap to clone.
#[derive(Debug, Default)]
pub(crate) struct Numbers {
    state: Family<OfCondition, Gauge>,
    since: Family<OfCondition, Gauge>,
    heartbeat: Family<OfCluster, Gauge>,
    services: Family<OfCluster, Gauge>,
    endpoints: Family<OfCluster, Gauge>,
    renewals_failed: Family<OfCluster, Gauge>,
    leading: Gauge,
    pending: Gauge,
    written: Gauge,
    refused: Gauge,
    own_age: Gauge,
    shown: BTreeSet<OfCluster>,
    conditions: BTreeSet<OfCondition>,
}

impl Numbers {
    pub(crate) fn new(metrics: &Metrics) -> Self {
        let numbers = Self::default();
        metrics.register(|registry| {
            registry.register(
                "isthmus_link_state",
                "A condition of a link: 1 True, 0 False, -1 Unknown",
                numbers.state.clone(),
            );
            registry.register(
                "isthmus_link_state_age_seconds",
                "Time since that condition last changed",
                numbers.since.clone(),
            );
            registry.register(
                "isthmus_link_heartbeat_age_seconds",
                "Time since a linked API server last answered; -1 if never",
                numbers.heartbeat.clone(),
            );
            registry.register(
                "isthmus_link_services",
                "Services imported over a link",
                numbers.services.clone(),
            );
            registry.register(
                "isthmus_link_endpoints",
                "Ready endpoints behind them",
                numbers.endpoints.clone(),
            );
            registry.register(
                "isthmus_link_renewal_failures",
                "Attempts in a row that did not renew a link's credential; absent while it is fresh",
                numbers.renewals_failed.clone(),
            );
            registry.register(
                "isthmus_federation_leading",
                "1 where this replica writes",
                numbers.leading.clone(),
            );
            registry.register(
                "isthmus_federation_pending_writes",
                "Objects that differ from the plan",
                numbers.pending.clone(),
            );
            registry.register(
                "isthmus_federation_writes",
                "Writes since the start",
                numbers.written.clone(),
            );
            registry.register(
                "isthmus_federation_refused_objects",
                "Objects the own API server refuses",
                numbers.refused.clone(),
            );
            registry.register(
                "isthmus_own_api_server_age_seconds",
                "Time since the own API server last answered; -1 if never",
                numbers.own_age.clone(),
            );
        });
        numbers
    }

    pub(crate) fn links(&mut self, links: &BTreeMap<String, ClusterLinkStatus>, now: SystemTime) {
        let mut shown = BTreeSet::new();
        let mut conditions = BTreeSet::new();
        for (name, status) in links {
            let cluster = OfCluster { cluster: name.clone() };
            let link = crate::status::shown(name, status, now);
            let heartbeat = link.heartbeat_age_seconds.and_then(|age| i64::try_from(age).ok());
            self.heartbeat.get_or_create(&cluster).set(heartbeat.unwrap_or(-1));
            self.services.get_or_create(&cluster).set(status.services.into());
            self.endpoints.get_or_create(&cluster).set(status.endpoints.into());
            shown.insert(cluster);
            for condition in link.conditions {
                let label = OfCondition { cluster: name.clone(), condition: condition.kind };
                let value = match condition.status.as_str() {
                    "True" => 1,
                    "False" => 0,
                    _ => -1,
                };
                self.state.get_or_create(&label).set(value);
                self.since
                    .get_or_create(&label)
                    .set(i64::try_from(condition.age_seconds).unwrap_or(i64::MAX));
                conditions.insert(label);
            }
        }
        for gone in self.shown.difference(&shown) {
            self.heartbeat.remove(gone);
            self.services.remove(gone);
            self.endpoints.remove(gone);
        }
        for gone in self.conditions.difference(&conditions) {
            self.state.remove(gone);
            self.since.remove(gone);
        }
        (self.shown, self.conditions) = (shown, conditions);
    }

    pub(crate) fn renewals(&self, failed: &Failures) {
        self.renewals_failed.clear();
        for (name, failure) in &**failed {
            let cluster = OfCluster { cluster: name.clone() };
            self.renewals_failed.get_or_create(&cluster).set(failure.attempts.into());
        }
    }

    pub(crate) fn writing(&self, leading: bool, progress: &Progress) {
        let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        self.leading.set(leading.into());
        self.pending.set(count(progress.pending));
        self.written.set(i64::try_from(progress.written).unwrap_or(i64::MAX));
        self.refused.set(count(progress.problems.len()));
    }

    pub(crate) fn own_age(&self, seconds: Option<u64>) {
        self.own_age.set(seconds.and_then(|age| i64::try_from(age).ok()).unwrap_or(-1));
    }
}
