//! Gateways with a name instead of an address (cloud load balancers) become addresses.
//!
//! What a name leads to is written into our own API server with the plan, so the last good answer
//! outlives a resolver that fails, and this process. `mesh::federate` judges each address.

use dns::Found;
use mesh::export::Exports;
use mesh::inventory::GatewayAddress;
use mesh::name::Hostname;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Addresses by name: the last good answer of each.
pub(crate) type Table = Arc<BTreeMap<Hostname, BTreeSet<IpAddr>>>;

/// An answer is asked for again after its TTL, but not more often …
const TTL_MIN: Duration = Duration::from_secs(5);
/// … and not more seldom.
const TTL_MAX: Duration = Duration::from_secs(300);
/// After a failure; doubled up to [`RETRY_MAX`].
const RETRY_MIN: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(30);
/// Names resolved at once: a stranger writes them.
pub(crate) const NAMES_MAX: usize = 256;

/// Names that gateways of these links have.
pub(crate) fn names(links: &[Exports]) -> BTreeSet<Hostname> {
    let gateways = links.iter().flat_map(|link| &link.gateways);
    let names = gateways.filter(|address| address.socket().is_none());
    names.filter_map(|address| address.host.parse().ok()).take(NAMES_MAX).collect()
}

/// Puts addresses in the place of names; a name without one stays.
pub(crate) fn put(links: &mut [Exports], table: &Table) {
    for link in links {
        let gateways = std::mem::take(&mut link.gateways);
        link.gateways = gateways.into_iter().flat_map(|address| of(address, table)).collect();
    }
}

fn of(address: GatewayAddress, table: &Table) -> Vec<GatewayAddress> {
    let name = address.socket().is_none().then(|| address.host.parse::<Hostname>().ok()).flatten();
    match name.and_then(|name| table.get(&name)) {
        None => vec![address],
        Some(found) => {
            let at = |ip: &IpAddr| GatewayAddress { host: ip.to_string(), port: address.port };
            found.iter().map(at).collect()
        }
    }
}

/// Keeps what `wanted` lead to in `table` until `end`.
pub(crate) async fn keep(
    upstreams: Vec<SocketAddr>,
    mut wanted: watch::Receiver<BTreeSet<Hostname>>,
    table: watch::Sender<Table>,
    end: CancellationToken,
) {
    let mut names = Names::default();
    let mut asking: JoinSet<(Hostname, anyhow::Result<Found>)> = JoinSet::new();
    loop {
        names.want(&wanted.borrow_and_update(), Instant::now());
        let (due, wake) = names.due(Instant::now());
        for name in due {
            let upstreams = upstreams.clone();
            asking.spawn(async move {
                let found = dns::lookup(&upstreams, &name).await;
                (name, found)
            });
        }
        table.send_if_modified(|known| {
            let next = names.table();
            let news = **known != next;
            if news {
                *known = Arc::new(next);
            }
            news
        });
        let rested = async {
            match wake {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = end.cancelled() => return,
            changed = wanted.changed() => if changed.is_err() { return },
            Some(done) = asking.join_next() => {
                let (name, found) = done.expect("asking does not panic");
                if let Err(error) = &found {
                    tracing::warn!(
                        name = name.as_str(),
                        error = format!("{error:#}"),
                        "ISM2406 a gateway's name is not resolved, what it led to is kept. \
                         Fix: see that this cluster's resolvers answer for it"
                    );
                }
                names.done(Instant::now(), &name, found.ok());
            }
            () = rested => {}
        }
    }
}

/// When each name is asked for, and its last good answer; without IO.
#[derive(Debug, Default)]
struct Names(BTreeMap<Hostname, Known>);

#[derive(Debug)]
struct Known {
    addresses: BTreeSet<IpAddr>,
    /// `None` while it is being asked for.
    due: Option<Instant>,
    failures: u32,
}

impl Names {
    fn want(&mut self, wanted: &BTreeSet<Hostname>, now: Instant) {
        self.0.retain(|name, _| wanted.contains(name));
        for name in wanted {
            let new = || Known { addresses: BTreeSet::new(), due: Some(now), failures: 0 };
            self.0.entry(name.clone()).or_insert_with(new);
        }
    }

    /// Names to ask for now, each of which comes back with [`Self::done`]; and when to look again.
    fn due(&mut self, now: Instant) -> (Vec<Hostname>, Option<Instant>) {
        let mut due = Vec::new();
        for (name, known) in &mut self.0 {
            if known.due.is_some_and(|at| at <= now) {
                known.due = None;
                due.push(name.clone());
            }
        }
        (due, self.0.values().filter_map(|known| known.due).min())
    }

    /// `None` is a failure, which changes nothing of what is known.
    fn done(&mut self, now: Instant, name: &Hostname, found: Option<Found>) {
        let Some(known) = self.0.get_mut(name) else { return };
        let rest = match found {
            Some(found) => {
                (known.addresses, known.failures) = (found.addresses, 0);
                found.ttl.clamp(TTL_MIN, TTL_MAX)
            }
            None => {
                let rest = RETRY_MIN.saturating_mul(1 << known.failures.min(8)).min(RETRY_MAX);
                known.failures = known.failures.saturating_add(1);
                rest
            }
        };
        known.due = Some(now + rest);
    }

    fn table(&self) -> BTreeMap<Hostname, BTreeSet<IpAddr>> {
        let known = self.0.iter().filter(|(_, known)| !known.addresses.is_empty());
        known.map(|(name, known)| (name.clone(), known.addresses.clone())).collect()
    }
}

/// Nameservers of the machine or pod (`/etc/resolv.conf`), three at most as libc has it.
pub(crate) fn system() -> Vec<SocketAddr> {
    nameservers(&std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default())
}

fn nameservers(text: &str) -> Vec<SocketAddr> {
    let named = text.lines().filter_map(|line| line.trim().strip_prefix("nameserver"));
    let addresses = named.filter_map(|rest| rest.trim().parse::<IpAddr>().ok());
    addresses.map(|ip| SocketAddr::new(ip, 53)).take(3).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use mesh::zone::Zone;

    fn host(text: &str) -> Hostname {
        text.parse().unwrap()
    }

    fn found(address: &str, ttl: u64) -> Option<Found> {
        let addresses = [address.parse().unwrap()].into();
        Some(Found { addresses, ttl: Duration::from_secs(ttl) })
    }

    #[test]
    fn an_answer_is_kept_for_its_ttl_and_through_failures() {
        let (mut names, start) = (Names::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        let lb = host("lb.example.com");
        names.want(&[lb.clone()].into(), at(0));
        assert_eq!(names.due(at(0)).0, std::slice::from_ref(&lb));
        assert!(names.due(at(0)).0.is_empty(), "it is being asked for");
        assert!(names.table().is_empty());
        names.done(at(0), &lb, found("203.0.113.7", 60));
        assert_eq!(names.due(at(59)), (vec![], Some(at(60))));
        assert_eq!(names.due(at(60)).0, std::slice::from_ref(&lb));
        let mut pauses = Vec::new();
        let mut now = at(60);
        for _ in 0..7 {
            names.done(now, &lb, None);
            let wake = names.due(now).1.unwrap();
            pauses.push((wake - now).as_secs());
            now = wake;
            assert_eq!(names.due(now).0, std::slice::from_ref(&lb));
            assert_eq!(names.table()[&lb], found("203.0.113.7", 0).unwrap().addresses);
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 30, 30]);
        // A TTL of nothing is no reason to ask all the time, nor one of a week to sleep.
        for (ttl, rest) in [(0, 5), (604_800, 300)] {
            names.done(now, &lb, found("203.0.113.8", ttl));
            assert_eq!(names.due(now).1, Some(now + Duration::from_secs(rest)));
            names.0.get_mut(&lb).unwrap().due = None;
        }
        names.want(&BTreeSet::new(), now);
        names.done(now, &lb, found("203.0.113.9", 60));
        assert!(names.table().is_empty(), "nobody wants it any more");
    }

    #[test]
    fn nameservers_are_read_as_libc_reads_them() {
        let text = "# nameserver 192.0.2.1\nsearch x\nnameserver 192.0.2.2\n nameserver\t2001:db8::3\nnameserver no\n";
        let all: Vec<String> = nameservers(text).iter().map(ToString::to_string).collect();
        assert_eq!(all, ["192.0.2.2:53", "[2001:db8::3]:53"]);
    }

    /// A real resolver on loopback, whose zone is ours to change, and to take away.
    #[tokio::test]
    async fn a_name_follows_its_records_and_outlives_its_resolver() {
        let zone = |address: &str| {
            let names = [(host("lb.example.com"), vec![address.parse().unwrap()])].into();
            Arc::new(Zone { names, ..Zone::default() })
        };
        let (zones, receiver) = watch::channel(zone("203.0.113.7"));
        let server = dns::Server::bind(dns::Options {
            listen: vec!["127.0.0.1:0".parse().unwrap()],
            upstreams: vec![],
            allow: vec![],
            zone: receiver,
            metrics: Default::default(),
        })
        .unwrap();
        let (upstreams, end) = (server.addresses(), CancellationToken::new());
        let serving = tokio::spawn(server.run(end.clone()));
        let lb = host("lb.example.com");
        let answer = dns::lookup(&upstreams, &lb).await.unwrap();
        assert_eq!(Some(&answer), found("203.0.113.7", mesh::zone::TTL.into()).as_ref());
        assert!(dns::lookup(&upstreams, &host("nobody.svc.clusterset.local")).await.is_err());

        let stop = CancellationToken::new();
        let (wants, wanted) = watch::channel(BTreeSet::new());
        let (send, mut table) = watch::channel(Table::default());
        let keeping = tokio::spawn(keep(upstreams.clone(), wanted, send, stop.clone()));
        wants.send_replace([lb.clone()].into());
        let known = table.wait_for(|table| table.contains_key(&lb)).await.unwrap().clone();
        let mut links = [crate::links::tests::exports_at("lb.example.com")];
        put(&mut links, &known);
        let seen: Vec<String> = links[0].gateways.iter().map(ToString::to_string).collect();
        assert_eq!(seen, ["203.0.113.7:15444"]);
        assert!(names(&links).is_empty());

        zones.send_replace(zone("203.0.113.8"));
        let again = dns::lookup(&upstreams, &lb).await.unwrap();
        assert_eq!(again.addresses, found("203.0.113.8", 0).unwrap().addresses);
        end.cancel();
        serving.await.unwrap();
        assert!(dns::lookup(&upstreams, &lb).await.is_err(), "nobody answers");
        assert!(table.borrow().contains_key(&lb), "what was good is kept");
        stop.cancel();
        keeping.await.unwrap();
    }
}
