//! The own cluster: all kinds watched, joined and published as one `Inventory`.

mod join;
mod kinds;
mod state;
mod store;

use crate::heard::{Heard, KindHealth, SILENCE};
use kube::Client;
use mesh::inventory::Inventory;
use state::{Input, State};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Watches the own cluster until `end`.
///
/// A change is published at once; changes that wait while an inventory is made are merged into the
/// next. What was known stays through errors, relists and silence; an equal inventory is no news.
pub fn own(client: Client, options: Options, end: CancellationToken) -> Watched {
    let (inventory, watched) = watch::channel(None);
    let (health, heard) = watch::channel(WatchHealth::default());
    tokio::spawn(run(client, options, inventory, health, end));
    Watched { inventory: watched, health: heard }
}

/// What a list of objects is to a control plane, without an API server: for tests, and to look at what a
/// change would do. `None` where there is no (good) ConfigMap `isthmus-mesh` or no `kube-system`.
pub fn read(
    objects: &[kube::api::DynamicObject],
    root_namespace: &str,
) -> anyhow::Result<Option<Arc<Inventory>>> {
    kinds::read(objects, root_namespace)
}

/// How to watch the own cluster.
#[derive(Debug, Clone)]
pub struct Options {
    /// `isthmus-system` unless told otherwise.
    pub root_namespace: String,
}

impl Options {
    /// Those of a program that is told its root namespace.
    ///
    /// # Errors
    /// Where it is another than policies of the whole mesh are read in: they would hold for that
    /// namespace's workloads alone.
    pub fn of(root_namespace: &str) -> anyhow::Result<Self> {
        let root = mesh::export::ROOT_NAMESPACE;
        anyhow::ensure!(
            root_namespace == root,
            "ISM2328 rootNamespace is {root_namespace:?}, and what holds for the whole mesh is read in \
             {root} alone. Fix: leave rootNamespace out, and install in {root}"
        );
        Ok(Self::default())
    }
}

impl Default for Options {
    fn default() -> Self {
        Self { root_namespace: mesh::export::ROOT_NAMESPACE.into() }
    }
}

/// What a watched cluster looks like, and how fresh that is.
#[derive(Debug, Clone)]
pub struct Watched {
    /// `None` until every kind has been listed once and the mesh is configured; never again after.
    pub inventory: watch::Receiver<Option<Arc<Inventory>>>,
    pub health: watch::Receiver<WatchHealth>,
}

/// How fresh an inventory is, per kind.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WatchHealth {
    /// By kind: `Service`, `Pod`, …
    pub kinds: BTreeMap<&'static str, KindHealth>,
    /// What the first inventory still waits for, as sentences; empty once there is one.
    pub waiting: Vec<String>,
}

impl WatchHealth {
    /// At least one watch is being answered. Kinds that are not installed do not count: they are
    /// asked for so rarely that they would hide an outage.
    pub fn reachable(&self) -> bool {
        let watched = |kind: &&KindHealth| kind.note.is_none() && kind.heard.is_some();
        self.kinds.values().filter(watched).any(|kind| !kind.silent)
    }

    /// Time since the API server was last heard at all; `None` if never.
    pub fn age(&self, now: Instant) -> Option<Duration> {
        let last = self.kinds.values().filter_map(|kind| kind.heard).map(|heard| heard.at).max()?;
        Some(now.saturating_duration_since(last))
    }

    /// Waiting changes nothing: the credential may not read a kind, or all is read and something is
    /// not there.
    pub fn hopeless(&self) -> bool {
        let denied = self.kinds.values().any(|kind| kind.denied);
        let read = !self.kinds.is_empty() && self.kinds.values().all(|kind| kind.synced);
        !self.waiting.is_empty() && (denied || read)
    }

    /// All kinds are listed, and all are heard: what is published is what there is.
    pub fn fresh(&self) -> bool {
        !self.kinds.is_empty()
            && self.kinds.values().all(|kind| kind.synced && !kind.silent && kind.error.is_none())
    }
}

/// How often health is looked at; an outage shows at most so much later.
const HEALTH_EVERY: Duration = Duration::from_millis(250);
/// News in flight between the followers and the one who joins them.
const QUEUE: usize = 1024;

async fn run(
    client: Client,
    options: Options,
    inventory: watch::Sender<Option<Arc<Inventory>>>,
    health: watch::Sender<WatchHealth>,
    end: CancellationToken,
) {
    let (send, mut news) = mpsc::channel::<Input>(QUEUE);
    let mut followers = JoinSet::new();
    // A child, so that the followers end with us however we end.
    let followed = end.child_token();
    let _guard = followed.clone().drop_guard();
    let heard = kinds::spawn(&client, &options.root_namespace, &send, &followed, &mut followers);
    drop(send);
    let mut state = State::new(&options.root_namespace);
    let mut tick = tokio::time::interval(HEALTH_EVERY);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut batch = Vec::new();
    loop {
        tokio::select! {
            () = end.cancelled() => return,
            count = news.recv_many(&mut batch, QUEUE) => {
                if count == 0 {
                    // Followers end only when told to, or by a bug, which must not look like health.
                    tracing::error!("nobody watches the API server any more");
                    return;
                }
                for input in batch.drain(..) {
                    state.apply(input);
                }
                if let Some(next) = state.inventory() {
                    inventory.send_replace(Some(next));
                }
            }
            Some(ended) = followers.join_next() => {
                if let Err(error) = ended && error.is_panic() {
                    std::panic::resume_unwind(error.into_panic());
                }
            }
            _ = tick.tick() => (),
        }
        let published = inventory.borrow().is_some();
        publish_health(&health, &heard, &state, published);
    }
}

fn publish_health(
    health: &watch::Sender<WatchHealth>,
    heard: &BTreeMap<&'static str, Heard>,
    state: &State,
    published: bool,
) {
    let now = Instant::now();
    let kinds: BTreeMap<_, _> =
        heard.iter().map(|(kind, heard)| (*kind, heard.health(now))).collect();
    let waiting = if published { Vec::new() } else { waiting(&kinds, state) };
    let next = WatchHealth { kinds, waiting };
    health.send_if_modified(|known| {
        let news = *known != next && differs(known, &next);
        if news {
            *known = next;
        }
        news
    });
}

/// Every second of a healthy watch is no news: a new age alone is told only when it is a second on.
fn differs(known: &WatchHealth, next: &WatchHealth) -> bool {
    let quiet = |kind: &KindHealth| KindHealth { heard: None, error: None, ..kind.clone() };
    let step = |known: &KindHealth, next: &KindHealth| match (known.heard, next.heard) {
        (Some(known), Some(next)) => {
            next.at.saturating_duration_since(known.at) >= Duration::from_secs(1)
        }
        (known, next) => known != next,
    };
    known.waiting != next.waiting
        || known.kinds.len() != next.kinds.len()
        || known.kinds.values().zip(next.kinds.values()).any(|(known, next)| {
            quiet(known) != quiet(next) || known.error != next.error || step(known, next)
        })
}

fn waiting(kinds: &BTreeMap<&'static str, KindHealth>, state: &State) -> Vec<String> {
    let unsynced = kinds.iter().filter(|(_, health)| !health.synced);
    let mut waiting: Vec<String> = unsynced
        .map(|(kind, health)| match &health.error {
            Some(error) => format!("{kind} cannot be listed: {error}"),
            None => format!("{kind} has not been listed yet"),
        })
        .collect();
    waiting.extend(state.waiting());
    waiting
}

// A silence is told before the next request after it would have failed.
const _: () = assert!(SILENCE.as_secs() > crate::follow::WATCH_SECONDS as u64);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::heard::Moment;

    #[test]
    fn a_rarely_asked_kind_does_not_hide_an_outage() {
        let silent = KindHealth {
            synced: true,
            heard: Some(Moment::now()),
            silent: true,
            ..KindHealth::default()
        };
        let resting =
            KindHealth { silent: false, note: Some("not installed".into()), ..silent.clone() };
        let mut health = WatchHealth::default();
        assert!(!health.reachable() && !health.fresh(), "nothing was heard yet");
        health.kinds = BTreeMap::from([("Pod", silent.clone()), ("ServiceEntry", resting)]);
        assert!(!health.reachable() && !health.fresh());
        health.kinds.insert("Pod", KindHealth { silent: false, ..silent });
        assert!(health.reachable() && health.fresh());
        assert!(health.age(Instant::now()).unwrap() < Duration::from_secs(5));
    }

    #[test]
    fn who_may_not_read_a_kind_need_not_wait() {
        let read = KindHealth { synced: true, ..KindHealth::default() };
        let asked = KindHealth::default();
        let mut health = WatchHealth {
            kinds: BTreeMap::from([("Pod", asked.clone()), ("Service", read.clone())]),
            waiting: vec!["Pod has not been listed yet".into()],
        };
        assert!(!health.hopeless());
        health.kinds.insert("Pod", KindHealth { denied: true, ..asked });
        assert!(health.hopeless());
        health.kinds.insert("Pod", read);
        health.waiting = vec!["ConfigMap nope/isthmus-mesh does not exist".into()];
        assert!(health.hopeless());
        health.waiting.clear();
        assert!(!health.hopeless());
    }
}
