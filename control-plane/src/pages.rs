//! The admin pages of a control plane.

use crate::serve::Served;
use mesh::name::{ClusterId, Network, TrustDomain};
use runtime::admin::Pages;
use runtime::metrics::Metrics;
use runtime::readiness::Readiness;
use serde::Serialize;
use std::sync::Arc;
use xds::serve::Sessions;

/// `/config`, `/findings`, `/sessions`, `/views`, `/readyz`, `/metrics`.
pub(crate) fn pages(
    served: &Arc<Served>,
    sessions: &Sessions,
    readiness: &Readiness,
    metrics: &Metrics,
) -> Pages {
    let config = served.clone();
    let findings = served.clone();
    let (views, sessions) = (sessions.clone(), sessions.clone());
    Pages::new()
        .with_json("/config", move || summary(&config))
        .with_json("/findings", move || findings.world().map(|world| world.own.findings.clone()))
        .with_json("/sessions", move || sessions.list())
        .with_json("/views", move || {
            let mut views: Vec<_> = views.list().into_iter().map(|session| session.view).collect();
            views.sort();
            views.dedup();
            views
        })
        .with_readiness(readiness)
        .with_metrics(metrics)
}

/// What this control plane knows, by kind.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Summary {
    generation: u64,
    resources_computed: u64,
    cluster: ClusterId,
    uid: String,
    network: Network,
    trust_domain: TrustDomain,
    namespaces: usize,
    services: usize,
    endpoints: usize,
    workloads: usize,
    service_exports: usize,
    entries: usize,
    remote_gateways: usize,
    gateway_addresses: Vec<String>,
    destination_rules: usize,
    peer_authentications: usize,
    authorization_policies: usize,
    findings: usize,
}

fn summary(served: &Served) -> Option<Summary> {
    let world = served.world()?;
    let own = &world.own;
    let gateways = own.gateway_addresses.iter();
    Some(Summary {
        generation: served.generation(),
        resources_computed: served.computed(),
        cluster: own.mesh.cluster.clone(),
        uid: own.uid.clone(),
        network: own.mesh.network.clone(),
        trust_domain: own.mesh.trust_domain.clone(),
        namespaces: own.namespaces.len(),
        services: own.services.len(),
        endpoints: own.endpoints.values().map(Vec::len).sum(),
        workloads: own.workloads.len(),
        service_exports: own.service_exports.len(),
        entries: own.entries.len(),
        remote_gateways: own.remote_gateways.len(),
        gateway_addresses: gateways.map(ToString::to_string).collect(),
        destination_rules: own.destination_rules.len(),
        peer_authentications: own.peer_authentications.len(),
        authorization_policies: own.authorization_policies.len(),
        findings: own.findings.len(),
    })
}
