//! What is served: the newest world, computed once per name and part of a view, and published as
//! soon as it has changed.

use crate::place::place;
use mesh::compile::{self, Cache};
use mesh::inventory::Inventory;
use mesh::name::Identity;
use mesh::program::{Resource, ResourceKind, ResourceName};
use mesh::world::{View, World};
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use xds::node::Node;
use xds::serve::{Changed, Source};

/// Between two publications there is at least this …
const GAP_MIN: Duration = Duration::from_millis(1);
/// … and at most this: an own endpoint's change has 100 ms to reach every proxy.
const GAP_MAX: Duration = Duration::from_millis(10);
/// How often all that was computed is forgotten: it is computed again when asked for.
const FORGET: Duration = Duration::from_secs(600);

/// The newest world and what was computed from it.
#[derive(Debug)]
pub(crate) struct Served {
    /// `None` until the first inventory.
    cache: Mutex<Option<Kept>>,
    generation: watch::Sender<u64>,
    root_namespace: String,
}

#[derive(Debug)]
struct Kept {
    cache: Cache,
    /// When all that was computed was last forgotten.
    forgotten: Instant,
}

impl Served {
    pub(crate) fn new(root_namespace: &str) -> Self {
        Self {
            cache: Mutex::new(None),
            generation: watch::Sender::new(0),
            root_namespace: root_namespace.to_owned(),
        }
    }

    /// Takes a new inventory. True if any client may see a difference; then the generation is a
    /// new one.
    pub(crate) fn publish(&self, inventory: Arc<Inventory>) -> bool {
        // Indexing is the long part and needs no lock.
        let world = World::new(inventory);
        {
            let mut cache = self.lock();
            match &mut *cache {
                None => {
                    *cache = Some(Kept { cache: Cache::new(world), forgotten: Instant::now() });
                }
                Some(Kept { cache, forgotten }) => {
                    // A pod that moved changes who a client is, not what a resource says.
                    let moved = cache.world().own.workloads != world.own.workloads;
                    let affected = cache.update(world);
                    // Pods and localities that are gone leave their own keys behind.
                    if forgotten.elapsed() > FORGET {
                        cache.retain(|_| false);
                        *forgotten = Instant::now();
                    }
                    if affected.is_empty() && !moved {
                        return false;
                    }
                }
            }
        }
        self.generation.send_modify(|generation| *generation += 1);
        true
    }

    pub(crate) fn world(&self) -> Option<World> {
        self.lock().as_ref().map(|kept| kept.cache.world().clone())
    }

    pub(crate) fn generation(&self) -> u64 {
        *self.generation.borrow()
    }

    /// How many resources were computed, ever.
    pub(crate) fn computed(&self) -> u64 {
        self.lock().as_ref().map_or(0, |kept| kept.cache.computed())
    }

    fn lock(&self) -> MutexGuard<'_, Option<Kept>> {
        self.cache.lock().expect("computing does not panic")
    }
}

impl Source for Served {
    fn view(&self, peer: &Identity, node: &Node) -> Result<View, String> {
        let world = self.world().ok_or_else(|| {
            "ISM4007 the control plane has not read its own API server yet. \
             Fix: none needed, the proxy asks again; /readyz of the control plane says what it waits for"
                .to_owned()
        })?;
        place(&world.own, &self.root_namespace, peer, node)
    }

    fn resource(&self, view: &View, name: &ResourceName) -> Option<Arc<Resource>> {
        self.lock().as_mut()?.cache.resource(view, name)
    }

    fn names(&self, view: &View, kind: ResourceKind) -> Vec<ResourceName> {
        self.world().map(|world| compile::names(&world, view, kind)).unwrap_or_default()
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.generation.subscribe()
    }

    fn changed_since(&self, generation: u64) -> Changed {
        if generation >= self.generation() {
            return Changed::Names(Arc::new(BTreeSet::new()));
        }
        // What was not touched comes from the cache as the same `Arc`, so this costs lookups only.
        Changed::All
    }
}

/// Publishes every inventory: the first at once, more of them merged while one is being taken in.
pub(crate) async fn follow(
    served: Arc<Served>,
    mut inventory: watch::Receiver<Option<Arc<Inventory>>>,
) {
    let mut pace = Pace::default();
    loop {
        let newest = inventory.borrow_and_update().clone();
        if let Some(newest) = newest {
            let begun = Instant::now();
            let served = served.clone();
            // Milliseconds of work for a large cluster: not on the threads that carry streams.
            let publish = tokio::task::spawn_blocking(move || served.publish(newest));
            publish.await.expect("publishing does not panic");
            pace.published(Instant::now(), begun.elapsed());
        }
        if inventory.changed().await.is_err() {
            return;
        }
        tokio::time::sleep_until(pace.due(Instant::now()).into()).await;
    }
}

/// When to publish next: at once after a rest, later while publishing is dear.
#[derive(Debug, Default)]
struct Pace {
    next: Option<Instant>,
}

impl Pace {
    fn due(&self, now: Instant) -> Instant {
        self.next.map_or(now, |next| next.max(now))
    }

    fn published(&mut self, now: Instant, cost: Duration) {
        self.next = Some(now + (cost * 2).clamp(GAP_MIN, GAP_MAX));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::place::tests::{ROOT, inventory, node};
    use mesh::world::Role;

    #[test]
    fn publishes_at_once_and_then_at_a_pace() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut pace = Pace::default();
        assert_eq!(pace.due(at(0)), at(0));
        pace.published(at(0), Duration::from_micros(10));
        assert_eq!(pace.due(at(0)), at(1));
        assert_eq!(pace.due(at(50)), at(50));
        pace.published(at(50), Duration::from_millis(3));
        assert_eq!(pace.due(at(51)), at(56));
        pace.published(at(60), Duration::from_secs(1));
        assert_eq!(pace.due(at(61)), at(70));
    }

    #[test]
    fn equal_news_is_silence() {
        let served = Served::new(ROOT);
        let hello: Identity = "spiffe://east.mesh/ns/shop/sa/hello".parse().unwrap();
        let early = served.view(&hello, &node("hello-0", Role::Sidecar)).unwrap_err();
        assert!(early.starts_with("ISM4007"));
        let changes = served.changes();
        assert!(served.publish(Arc::new(inventory())));
        assert_eq!(*changes.borrow(), 1);
        served.view(&hello, &node("hello-0", Role::Sidecar)).unwrap();
        assert!(!served.publish(Arc::new(inventory())));
        assert_eq!(*changes.borrow(), 1);
        assert_eq!(served.changed_since(0), Changed::All);
        assert_eq!(served.changed_since(1), Changed::Names(Arc::default()));
        let mut moved = inventory();
        moved.workloads.pop_first();
        assert!(served.publish(Arc::new(moved)));
        assert_eq!(*changes.borrow(), 2);
    }

    #[tokio::test]
    async fn every_inventory_reaches_the_generation() {
        let served = Arc::new(Served::new(ROOT));
        let (sender, receiver) = watch::channel(None);
        let mut changes = served.changes();
        let following = tokio::spawn(follow(served.clone(), receiver));
        let mut news = inventory();
        sender.send_replace(Some(Arc::new(news.clone())));
        changes.changed().await.unwrap();
        // Many at once may be merged; the last always counts.
        while news.workloads.pop_first().is_some() {
            sender.send_replace(Some(Arc::new(news.clone())));
        }
        loop {
            changes.changed().await.unwrap();
            if served.world().is_some_and(|world| world.own.workloads.is_empty()) {
                break;
            }
        }
        drop(sender);
        following.await.unwrap();
    }
}
