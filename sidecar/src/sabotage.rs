//! Breaks one pillar of this sidecar on purpose, so that a test can show that its verdicts notice.
//!
//! `ISTHMUS_SABOTAGE=retries`: no second attempt is made for a request. `=failover`: only the nearest
//! copies are known. It changes the configuration this sidecar runs, never whom it believes: there is
//! no such switch for identities.

use anyhow::bail;
use mesh::program::{Endpoints, Program, Resource, Route, Snapshot};
use std::sync::Arc;
use tokio::sync::watch;

const VARIABLE: &str = "ISTHMUS_SABOTAGE";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pillar {
    Retries,
    Failover,
}

/// What the sidecar is to run: `snapshot` itself, unless the environment asks for sabotage.
pub(crate) fn maybe(
    snapshot: watch::Receiver<Arc<Snapshot>>,
) -> anyhow::Result<watch::Receiver<Arc<Snapshot>>> {
    let pillar = match std::env::var(VARIABLE).as_deref() {
        Err(_) | Ok("") => return Ok(snapshot),
        Ok("retries") => Pillar::Retries,
        Ok("failover") => Pillar::Failover,
        Ok(other) => bail!("ISM1036 {VARIABLE}={other:?} is no pillar. Fix: unset it"),
    };
    tracing::warn!(
        ?pillar,
        "SABOTAGE: this sidecar runs without it on purpose ({VARIABLE} is set)"
    );
    Ok(follow(snapshot, pillar))
}

fn follow(
    mut snapshot: watch::Receiver<Arc<Snapshot>>,
    pillar: Pillar,
) -> watch::Receiver<Arc<Snapshot>> {
    let broken = watch::Sender::new(Arc::new(broken(&snapshot.borrow_and_update(), pillar)));
    let out = broken.subscribe();
    tokio::spawn(async move {
        while snapshot.changed().await.is_ok() {
            let now = self::broken(&snapshot.borrow_and_update(), pillar);
            broken.send_replace(Arc::new(now));
        }
    });
    out
}

fn broken(snapshot: &Snapshot, pillar: Pillar) -> Snapshot {
    let program: Program = snapshot
        .program
        .iter()
        .map(|(name, resource)| (name.clone(), without(resource, pillar)))
        .collect();
    Snapshot { program, ..snapshot.clone() }
}

fn without(resource: &Arc<Resource>, pillar: Pillar) -> Arc<Resource> {
    match (pillar, &**resource) {
        (Pillar::Retries, Resource::Route(route)) => {
            let mut route: Route = route.clone();
            // A minute of patience with the first attempt is no second one.
            (route.retry.attempts, route.retry.hedge_ms) = (0, 60_000);
            Arc::new(Resource::Route(route))
        }
        (Pillar::Failover, Resource::Endpoints(endpoints)) => {
            let mut endpoints: Endpoints = endpoints.clone();
            endpoints.groups.retain(|group| group.priority == 0);
            Arc::new(Resource::Endpoints(endpoints))
        }
        (Pillar::Retries | Pillar::Failover, _) => resource.clone(),
    }
}
