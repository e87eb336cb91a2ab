//! The names a sidecar answers: the zone of its configuration, as soon as there is one.

use crate::config::Config;
use crate::loopback::Table;
use dns::{Options, Server};
use ipnet::IpNet;
use mesh::program::{Resource, ResourceName, Snapshot};
use mesh::zone::Zone;
use runtime::metrics::Metrics;
use std::sync::Arc;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// A bound DNS server, and where its zone is put.
#[derive(Debug)]
pub(crate) struct Names {
    server: Server,
    zone: watch::Sender<Arc<Zone>>,
    slots: Option<Arc<Table>>,
}

impl Names {
    /// Binds; `None` where the file does not ask for DNS.
    pub(crate) fn bind(
        config: &Config,
        slots: Option<Arc<Table>>,
        metrics: &Metrics,
    ) -> anyhow::Result<Option<Self>> {
        let Some(dns) = &config.dns else { return Ok(None) };
        let (zone, receiver) = watch::channel(Arc::default());
        // Captured questions keep the pod's address as their source.
        let mut allow: Vec<IpNet> = config.pod_addresses.iter().map(|ip| (*ip).into()).collect();
        let loopback = ["127.0.0.0/8", "::1/128"];
        allow.extend(loopback.map(|net| net.parse::<IpNet>().expect("a literal CIDR")));
        let server = Server::bind(Options {
            listen: config.dns_listen(),
            upstreams: dns.upstreams()?,
            allow,
            zone: receiver,
            metrics: metrics.clone(),
        })?;
        Ok(Some(Self { server, zone, slots }))
    }

    /// Answers from the zone that `snapshot` has, and follows it; `live` where a control plane keeps
    /// it, not a file. Before the first zone nothing is answered: a mesh name must not be asked of
    /// strangers because we do not know it yet.
    pub(crate) async fn run(
        self,
        mut snapshot: watch::Receiver<Arc<Snapshot>>,
        live: bool,
        end: CancellationToken,
    ) {
        let Self { server, zone, slots } = self;
        let known = |snapshot: &Arc<Snapshot>| {
            snapshot.program.contains_key(&ResourceName::zone())
                || snapshot.absent.contains(&ResourceName::zone())
        };
        tokio::select! {
            () = end.cancelled() => return,
            // A configuration from a file never changes: an error says that it is all there is.
            _ = snapshot.wait_for(known) => {}
        }
        let follow = async {
            loop {
                let new = zone_of(&snapshot.borrow_and_update(), live);
                if let Some(new) = new {
                    let new = match &slots {
                        Some(slots) => slots.zone(&new).into(),
                        None => new,
                    };
                    zone.send_if_modified(|old| {
                        let differs = **old != *new;
                        if differs {
                            *old = new;
                        }
                        differs
                    });
                }
                if snapshot.changed().await.is_err() {
                    return std::future::pending().await;
                }
            }
        };
        tokio::select! {
            () = server.run(end) => {}
            () = follow => {}
        }
    }
}

/// While no control plane answers, what the last zone lacks may exist by now: its names stay, and
/// no name is said not to exist (decisions 10 and 13).
fn zone_of(snapshot: &Snapshot, live: bool) -> Option<Arc<Zone>> {
    let zone = served(snapshot)?;
    let current = snapshot.connected || !live;
    Some(Arc::new(Zone { complete: zone.complete && current, ..zone.clone() }))
}

/// The zone as the control plane served it.
pub(crate) fn served(snapshot: &Snapshot) -> Option<&Zone> {
    match &**snapshot.program.get(&ResourceName::zone())? {
        Resource::Zone(zone) => Some(zone),
        Resource::Listener(_)
        | Resource::Route(_)
        | Resource::Cluster(_)
        | Resource::Endpoints(_)
        | Resource::Secret(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_zone_without_its_control_plane_denies_nothing() {
        let zone = Resource::Zone(Zone { complete: true, ..Zone::default() });
        let program = [(ResourceName::zone(), Arc::new(zone))].into_iter().collect();
        let mut snapshot = Snapshot { program, ..Snapshot::default() };
        let complete = |snapshot: &Snapshot, live| zone_of(snapshot, live).unwrap().complete;
        assert!(!complete(&snapshot, true), "told before, and nobody says it is still so");
        assert!(complete(&snapshot, false), "a file is all there is");
        snapshot.connected = true;
        assert!(complete(&snapshot, true));
    }
}
