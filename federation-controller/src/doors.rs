//! Knocks at the gateways of linked clusters every few seconds, as this cluster's callers do: whether
//! the way to them is open is seen from inside only.

use mesh::inventory::Inventory;
use mesh::name::{ClusterId, TrustDomain};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use trust::bundle::Bundle;
use trust::probe::{self, Probed};

/// What every gateway said last, by the cluster whose it is announced to be.
pub(crate) type Doors = Arc<BTreeMap<ClusterId, BTreeMap<SocketAddr, Door>>>;

/// One gateway, from inside this cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Door {
    Open,
    /// Nothing answers there, and how that was noticed.
    Silent(String),
    /// Something answers that is not that cluster's gateway.
    Foreign(String),
}

/// Between two rounds; one comes at once where what is announced changes, and sooner while somebody is
/// shut: that it is open again is awaited.
const EVERY: Duration = Duration::from_secs(10);
const EVERY_SHUT: Duration = Duration::from_secs(2);
/// How soon a change is noticed: no more rounds than that, whatever others announce.
const LOOK: Duration = Duration::from_secs(1);
/// For one gateway, both tries.
const LIMIT: Duration = Duration::from_secs(4);
/// Gateways of one cluster, in the order of their addresses; and of all at once: others write them.
const DOORS_MAX: usize = 16;
const AT_ONCE: usize = 32;

/// Where to knock, and who should answer.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Announced {
    domain: TrustDomain,
    addresses: BTreeSet<SocketAddr>,
}

/// Knocks until `end`; `told` is `None` until the first round is over.
pub(crate) async fn keep(
    own: watch::Receiver<Option<Arc<Inventory>>>,
    told: watch::Sender<Option<Doors>>,
    end: CancellationToken,
) {
    let mut tick = tokio::time::interval(LOOK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut last: Option<(BTreeMap<ClusterId, Announced>, Instant, Duration)> = None;
    loop {
        tokio::select! {
            () = end.cancelled() => return,
            _ = tick.tick() => {}
        }
        let Some(own) = own.borrow().clone() else { continue };
        let all = announced(&own);
        let rests = |(before, at, rest): &(_, Instant, _)| *before == all && at.elapsed() < *rest;
        let roots = Bundle::from_pem(&own.mesh.root_certificates);
        let (false, Ok(roots)) = (last.as_ref().is_some_and(rests), roots) else { continue };
        let found = tokio::select! {
            () = end.cancelled() => return,
            found = round(&all, &roots) => found,
        };
        let shut = found.values().flat_map(BTreeMap::values).any(|door| *door != Door::Open);
        last = Some((all, Instant::now(), if shut { EVERY_SHUT } else { EVERY }));
        told.send_if_modified(|before| {
            let news = before.as_deref() != Some(&found);
            if news {
                *before = Some(Arc::new(found));
            }
            news
        });
    }
}

/// The gateways that this cluster's callers dial: what stands, after all policies.
fn announced(own: &Inventory) -> BTreeMap<ClusterId, Announced> {
    let ours = own.remote_gateways.values().filter(|gateway| gateway.published);
    let one = |gateway: &mesh::inventory::RemoteGateway| {
        let sockets = gateway.addresses.iter().filter_map(|address| address.socket());
        let addresses: BTreeSet<SocketAddr> =
            sockets.collect::<BTreeSet<_>>().into_iter().take(DOORS_MAX).collect();
        let domain = gateway.trust_domain.clone()?;
        (!addresses.is_empty())
            .then_some((gateway.cluster.clone()?, Announced { domain, addresses }))
    };
    ours.filter_map(one).collect()
}

/// All of them once.
async fn round(
    all: &BTreeMap<ClusterId, Announced>,
    roots: &Bundle,
) -> BTreeMap<ClusterId, BTreeMap<SocketAddr, Door>> {
    let turns = Arc::new(Semaphore::new(AT_ONCE));
    let mut knocks = JoinSet::new();
    for (cluster, announced) in all {
        for address in &announced.addresses {
            let (cluster, domain, address) = (cluster.clone(), announced.domain.clone(), *address);
            let (roots, turns) = (roots.clone(), turns.clone());
            knocks.spawn(async move {
                let _turn = turns.acquire().await.expect("nobody closes it");
                let door = match probe::gateway(address, &cluster, &domain, &roots, LIMIT).await {
                    Probed::Alive(_) => Door::Open,
                    Probed::Missed(why) => Door::Silent(why),
                    Probed::Foreign(why) => Door::Foreign(why),
                };
                (cluster, address, door)
            });
        }
    }
    let mut found: BTreeMap<_, BTreeMap<_, _>> = BTreeMap::new();
    while let Some(knocked) = knocks.join_next().await {
        let (cluster, address, door) = knocked.expect("knocking does not panic");
        found.entry(cluster).or_default().insert(address, door);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::links::tests::{own, root};
    use mesh::finding::ObjectRef;
    use mesh::inventory::{GatewayAddress, RemoteGateway};

    fn gateway(cluster: &str, published: bool, addresses: &[SocketAddr]) -> RemoteGateway {
        let at = |address: &SocketAddr| GatewayAddress {
            host: address.ip().to_string(),
            port: address.port(),
        };
        RemoteGateway {
            object: ObjectRef::new("Gateway", "isthmus-system", cluster),
            network: cluster.parse().unwrap(),
            cluster: Some(cluster.parse().unwrap()),
            addresses: addresses.iter().map(at).collect(),
            trust_domain: Some(format!("{cluster}.example").parse().unwrap()),
            source_uid: None,
            published,
        }
    }

    fn with(gateways: impl IntoIterator<Item = RemoteGateway>) -> Inventory {
        let mut own = own(&root("mesh"));
        own.remote_gateways =
            gateways.into_iter().map(|gateway| (gateway.object.clone(), gateway)).collect();
        own
    }

    #[test]
    fn what_stands_is_knocked_at_and_no_more_of_it_than_sixteen() {
        let address = |last: u8| SocketAddr::from(([192, 0, 2, last], 15443));
        let many: Vec<SocketAddr> = (1..40).map(address).collect();
        let own = with([
            gateway("west", true, &many),
            gateway("north", true, &[]),
            gateway("foreign", false, &many),
        ]);
        let all = announced(&own);
        assert_eq!(all.keys().map(ClusterId::as_str).collect::<Vec<_>>(), ["west"]);
        let west = &all[&"west".parse().unwrap()];
        assert_eq!(west.domain.as_str(), "west.example");
        assert!(west.addresses.iter().copied().eq((1..=16).map(address)));
    }

    #[tokio::test]
    async fn a_closed_port_and_a_stranger_are_told_apart() {
        let stranger = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let closed = {
            let closing = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            closing.local_addr().unwrap()
        };
        let answers = stranger.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = stranger.accept().await {
                let hello = b"SSH-2.0-stranger\r\n";
                let _ = tokio::io::AsyncWriteExt::write_all(&mut stream, hello).await;
            }
        });
        let own = Arc::new(with([gateway("west", true, &[answers, closed])]));
        let (_own, inventory) = watch::channel(Some(own));
        let (told, mut doors) = watch::channel(None);
        let end = CancellationToken::new();
        tokio::spawn(keep(inventory, told, end.clone()));
        let found = doors.wait_for(Option::is_some).await.unwrap().clone().unwrap();
        let west = &found[&"west".parse().unwrap()];
        assert!(matches!(&west[&closed], Door::Silent(why) if why.contains("refused")), "{west:?}");
        assert!(matches!(west[&answers], Door::Foreign(_)), "{west:?}");
        end.cancel();
    }
}
