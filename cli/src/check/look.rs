//! Asks everybody at once, each for no longer than the check may take.

use super::seen::{Cluster, ControlPlane, Controller, Door, Page, Seen};
use super::{At, Call};
use cluster::operator::Operator;
use cluster::operator::look::Wants;
use futures::future::{join_all, join3};
use mesh::name::{ClusterId, TrustDomain};
use runtime::page;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;
use trust::bundle::Bundle;
use trust::probe::gateway;

/// Name of the federation controllers' Lease.
const LEASE: &str = "isthmus-federation";
/// Gateway addresses probed of one cluster.
const DOORS_MAX: usize = 16;

/// Shares of the whole time: an API server's first answer, all of its answers, then the gateways.
const FIRST: f64 = 0.4;
const ALL: f64 = 0.7;
const PROBE: f64 = 0.25;

pub(super) async fn look(call: &Call, operators: Vec<Operator>) -> Seen {
    let whole = f64::from(call.wait);
    let share = |part: f64| Duration::from_secs_f64(whole * part);
    let wants = Wants {
        root_namespace: call.root_namespace.clone(),
        ca_namespace: call.ca_namespace.clone(),
        lease: LEASE.into(),
        first: share(FIRST),
        all: share(ALL),
        rights: call.pre,
        inventory: true,
        pods: !call.pre,
    };
    let clusters = operators.iter().map(|operator| cluster(call, operator, &wants));
    let clusters = join_all(clusters).await;
    let doors = join_all(doors(&clusters).into_iter().map(|door| probe(door, share(PROBE)))).await;
    let now = jiff::Timestamp::now().as_second();
    let root_namespace = call.root_namespace.clone();
    Seen { clusters, doors, now, root_namespace, pre: call.pre }
}

async fn cluster(call: &Call, operator: &Operator, wants: &Wants) -> Cluster {
    let at = |places: &[At]| places.iter().find(|at| at.context == operator.context).cloned();
    let control_plane = at(&call.control_plane);
    let controller = at(&call.controller);
    let (look, control_plane, controller) = join3(
        operator.look(wants),
        async {
            let at = control_plane?;
            let (waits, sessions) =
                tokio::join!(ready(&at, wants.first), json(&at, "/sessions", wants.first));
            Some(ControlPlane { place: at.text, waits, sessions })
        },
        async {
            let at = controller?;
            let (waits, links, dns) = tokio::join!(
                ready(&at, wants.first),
                json(&at, "/links", wants.first),
                json(&at, "/dns", wants.first)
            );
            Some(Controller { place: at.text, waits, links, dns })
        },
    )
    .await;
    Cluster {
        context: operator.context.clone(),
        server: operator.server.clone(),
        look: look.map(Box::new),
        control_plane,
        controller,
    }
}

async fn read(at: &At, path: &str, limit: Duration) -> Result<String, String> {
    match tokio::time::timeout(limit, page::read(&at.place, path)).await {
        Ok(text) => text.map_err(|error| format!("{error:#}")),
        Err(_) => Err(format!("no answer within {} s", limit.as_secs_f32())),
    }
}

/// What a program waits for; empty when it is ready.
async fn ready(at: &At, limit: Duration) -> Result<String, String> {
    match read(at, "/readyz", limit).await {
        Ok(_) => Ok(String::new()),
        // The page is there, and says what is awaited.
        Err(why) => match why.split_once("waiting for ") {
            Some((_, waits)) => Ok(format!("waiting for {waits}")),
            None => Err(why),
        },
    }
}

async fn json(at: &At, path: &str, limit: Duration) -> Page {
    let text = read(at, path, limit).await?;
    serde_json::from_str(&text).map_err(|error| format!("the page {path} is not JSON: {error}"))
}

/// A gateway to probe: whose it should be, and how it would prove that.
struct Ask {
    cluster: ClusterId,
    domain: TrustDomain,
    bundle: Bundle,
    address: SocketAddr,
}

/// Every gateway that is announced: by its own cluster, or, while that is silent, by what the others
/// last heard of it.
fn doors(clusters: &[Cluster]) -> Vec<Ask> {
    let mut asks: BTreeMap<(ClusterId, SocketAddr), Ask> = BTreeMap::new();
    let mut add = |cluster: &ClusterId, domain: &TrustDomain, bundle: &Bundle, address| {
        let known = asks.keys().filter(|(of, _)| of == cluster).count();
        if known < DOORS_MAX {
            asks.entry((cluster.clone(), address)).or_insert_with(|| Ask {
                cluster: cluster.clone(),
                domain: domain.clone(),
                bundle: bundle.clone(),
                address,
            });
        }
    };
    let looks = || clusters.iter().filter_map(Cluster::look);
    for own in looks().filter_map(|look| look.inventory.as_ref().ok()) {
        let Ok(bundle) = Bundle::from_pem(&own.mesh.root_certificates) else { continue };
        for address in own.gateway_addresses.iter().filter_map(|address| address.socket()) {
            add(&own.mesh.cluster, &own.mesh.trust_domain, &bundle, address);
        }
    }
    let heard = clusters.iter().filter(|cluster| cluster.look().is_none());
    let silent: Vec<&str> = heard.map(|cluster| cluster.context.as_str()).collect();
    for look in looks().filter(|_| !silent.is_empty()) {
        let mesh = look.mesh.as_ref().ok().and_then(|(mesh, _)| mesh.as_ref());
        let bundle = mesh.and_then(|mesh| Bundle::from_pem(&mesh.root_certificates).ok());
        let (Some(bundle), Ok(links)) = (bundle, &look.links) else { continue };
        for status in links.iter().filter_map(|link| link.status.as_ref()) {
            let (Ok(id), Ok(domain)) = (status.cluster.parse(), status.trust_domain.parse()) else {
                continue;
            };
            if clusters.iter().any(|it| it.look().is_some() && it.id() == status.cluster) {
                continue;
            }
            for address in status.gateways.iter().filter_map(|text| text.parse().ok()) {
                add(&id, &domain, &bundle, address);
            }
        }
    }
    asks.into_values().collect()
}

async fn probe(ask: Ask, limit: Duration) -> Door {
    let probed = gateway(ask.address, &ask.cluster, &ask.domain, &ask.bundle, limit).await;
    Door { cluster: ask.cluster.to_string(), address: ask.address.to_string(), probed }
}
