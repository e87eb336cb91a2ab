//! Admin pages of a proxy: `/clusters` with endpoints and their health, `/config` as xDS JSON.

use crate::engine::Engine;
use crate::upstream::outlier::Verdict;
use mesh::name::{ClusterId, Network};
use mesh::program::{ClusterName, Program};
use runtime::admin::Pages;
use serde::Serialize;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;

/// One destination as it is now.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterStatus {
    pub name: ClusterName,
    pub endpoints: Vec<EndpointStatus>,
}

/// One endpoint of it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointStatus {
    pub address: SocketAddr,
    pub cluster: ClusterId,
    pub network: Network,
    pub priority: u32,
    pub weight: u32,
    pub gateway: bool,
    /// `healthy`, `returning`, `suspect` or `ejected`.
    pub health: &'static str,
    /// Percent of its weight, below 100 while it comes home.
    pub share: u64,
    /// Ejections not forgotten yet, of the address and of the address in this destination.
    pub ejections: u32,
    /// Requests and tunnels in flight.
    pub active: u32,
    /// Moving averages, milliseconds; absent before the first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub handshake_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub probe_ms: Option<f64>,
}

impl Engine {
    /// All destinations used so far, with the health of their endpoints.
    pub fn status(&self) -> Vec<ClusterStatus> {
        let now = self.now();
        let millis = |us: u64| (us > 0).then(|| us as f64 / 1_000.0);
        let of = |upstream: crate::Upstream| {
            let view = upstream.view();
            let mut endpoints = Vec::with_capacity(view.seats.len());
            for group in &view.groups {
                for &at in &group.seats {
                    let (endpoint, seat) = &view.seats[at];
                    let (health, share) = match seat.verdict(now) {
                        Verdict::Healthy(100) => ("healthy", 100),
                        Verdict::Healthy(share) => ("returning", share),
                        Verdict::Suspect | Verdict::TrialDue => ("suspect", 0),
                        Verdict::Ejected => ("ejected", 0),
                    };
                    endpoints.push(EndpointStatus {
                        address: endpoint.address,
                        cluster: endpoint.cluster.clone(),
                        network: endpoint.network.clone(),
                        priority: group.priority,
                        weight: endpoint.weight,
                        gateway: endpoint.gateway,
                        health,
                        share,
                        ejections: seat.path.health.ejections() + seat.health.ejections(),
                        active: seat.active.load(Ordering::Relaxed),
                        handshake_ms: millis(seat.path.handshake_us()),
                        probe_ms: millis(seat.path.probe_us.load(Ordering::Relaxed)),
                    });
                }
            }
            ClusterStatus { name: upstream.name().clone(), endpoints }
        };
        self.upstreams().into_iter().map(of).collect()
    }
}

/// Adds `/clusters`, and `/config`: the Program as `json` writes it (xDS JSON, from the binary).
pub fn with_engine(
    pages: Pages,
    engine: &Engine,
    json: impl Fn(&Program) -> serde_json::Value + Send + Sync + 'static,
) -> Pages {
    let (clusters, config) = (engine.clone(), engine.clone());
    pages
        .with_json("/clusters", move || clusters.status())
        .with_json("/config", move || json(&config.snapshot().program))
}
