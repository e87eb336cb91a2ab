//! The names a sidecar answers: the zone of its configuration, as soon as there is one.

use crate::config::Config;
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
}

impl Names {
    /// Binds; `None` where the file does not ask for DNS.
    pub(crate) fn bind(config: &Config, metrics: &Metrics) -> anyhow::Result<Option<Self>> {
        let Some(dns) = &config.dns else { return Ok(None) };
        let (zone, receiver) = watch::channel(Arc::default());
        // Captured questions keep the pod's address as their source.
        let mut allow: Vec<IpNet> = config.pod_addresses.iter().map(|ip| (*ip).into()).collect();
        let loopback = ["127.0.0.0/8", "::1/128"];
        allow.extend(loopback.map(|net| net.parse::<IpNet>().expect("a literal CIDR")));
        let server = Server::bind(Options {
            listen: dns.listen.all(),
            upstreams: dns.upstreams.clone(),
            allow,
            zone: receiver,
            metrics: metrics.clone(),
        })?;
        Ok(Some(Self { server, zone }))
    }

    /// Answers from the zone that `snapshot` has, and follows it. Before the first zone nothing is
    /// answered: a mesh name must not be asked of strangers because we do not know it yet.
    pub(crate) async fn run(
        self,
        mut snapshot: watch::Receiver<Arc<Snapshot>>,
        end: CancellationToken,
    ) {
        let Self { server, zone } = self;
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
                let new = zone_of(&snapshot.borrow_and_update());
                if let Some(new) = new {
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

fn zone_of(snapshot: &Snapshot) -> Option<Arc<Zone>> {
    match &**snapshot.program.get(&ResourceName::zone())? {
        Resource::Zone(zone) => Some(Arc::new(zone.clone())),
        Resource::Listener(_)
        | Resource::Route(_)
        | Resource::Cluster(_)
        | Resource::Endpoints(_)
        | Resource::Secret(_) => None,
    }
}
