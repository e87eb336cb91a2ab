//! One proxy's view of its Program: resources by name, asked for on first use, and the upstreams
//! whose health outlives every swap of the Program.

use crate::telemetry::Numbers;
use crate::upstream::health::{Key, Path};
use crate::upstream::outlier::Millis;
use crate::upstream::{Ask, ConnectFailed, Established, Upstream};
use crate::wanted::{NAMES_MAX, Wanted};
use dashmap::DashMap;
use mesh::name::{ClusterId, Network};
use mesh::program::{ClusterName, Resource, ResourceName, Snapshot, Want};
use runtime::metrics::Metrics;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use trust::bundle::Bundle;
use trust::svid::Svid;

/// Longest wait for a name that is used for the first time.
pub const WAIT_MAX: Duration = Duration::from_secs(1);

/// What an engine is built from.
#[derive(Debug)]
pub struct Options {
    pub metrics: Metrics,
    pub svid: watch::Receiver<Arc<Svid>>,
    pub bundle: watch::Receiver<Arc<Bundle>>,
    /// Where this proxy runs: an endpoint of another network is another path.
    pub cluster: ClusterId,
    pub network: Network,
    pub snapshot: watch::Receiver<Arc<Snapshot>>,
    /// Takes names to begin and cease following; `None` where the Program is a file and complete.
    pub want: Option<mpsc::Sender<Want>>,
}

/// Why a resource cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotHere {
    #[error("the control plane says that {0} does not exist")]
    Absent(ResourceName),
    #[error("{0} was not used before and no control plane answers, so it cannot be had now")]
    NotConnected(ResourceName),
    #[error("the control plane did not answer for {0} within 1 s")]
    TimedOut(ResourceName),
    #[error("{0} is not in this proxy's configuration file")]
    NotInFile(ResourceName),
    #[error("this proxy already follows {0} names, the most it may")]
    TooMany(usize),
    #[error("{0} is of another kind than its name says")]
    WrongKind(ResourceName),
}

/// Cheap to clone; all clones share upstreams, health and TLS configurations.
#[derive(Debug, Clone)]
pub struct Engine {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    shared: Arc<Shared>,
    wanted: Option<Wanted>,
    upstreams: DashMap<ClusterName, Upstream>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.shared.end.cancel();
    }
}

/// What upstreams and probers share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) svid: watch::Receiver<Arc<Svid>>,
    pub(crate) bundle: watch::Receiver<Arc<Bundle>>,
    pub(crate) cluster: ClusterId,
    pub(crate) network: Network,
    pub(crate) snapshot: watch::Receiver<Arc<Snapshot>>,
    pub(crate) clock: Clock,
    pub(crate) numbers: Numbers,
    pub(crate) end: CancellationToken,
    /// Grows whenever anybody's health changes: plans of load are good for one epoch.
    pub(crate) epoch: AtomicU64,
    paths: DashMap<Key, Arc<Path>>,
}

/// Milliseconds since the engine began, from 1 on.
#[derive(Debug)]
pub(crate) struct Clock(Instant);

impl Clock {
    pub(crate) fn now(&self) -> Millis {
        u64::try_from(self.0.elapsed().as_millis()).unwrap_or(u64::MAX - 1) + 1
    }
}

impl Shared {
    pub(crate) fn changed(&self) {
        self.epoch.fetch_add(1, Ordering::AcqRel);
    }

    pub(crate) fn path(&self, key: &Key, new: impl FnOnce() -> Path) -> Arc<Path> {
        if let Some(path) = self.paths.get(key) {
            return path.clone();
        }
        self.paths.entry(key.clone()).or_insert_with(|| Arc::new(new())).clone()
    }

    /// Paths that no destination names any more and nobody probes.
    pub(crate) fn forget_paths(&self) {
        self.paths.retain(|_, path| Arc::strong_count(path) > 1);
    }
}

impl Engine {
    /// Probers start when a gateway is first used; they end with the last clone.
    pub fn new(options: Options) -> Self {
        let Options { metrics, svid, bundle, cluster, network, snapshot, want } = options;
        let shared = Shared {
            svid,
            bundle,
            cluster,
            network,
            snapshot,
            clock: Clock(Instant::now()),
            numbers: Numbers::register(&metrics),
            end: CancellationToken::new(),
            epoch: AtomicU64::new(0),
            paths: DashMap::new(),
        };
        let inner = Inner {
            shared: Arc::new(shared),
            wanted: want.map(Wanted::new),
            upstreams: DashMap::new(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// A resource by name: at once if known; else asked for, for at most 1 s while a control plane
    /// answers, and failing at once while none does (decision 6).
    pub async fn resource(&self, name: &ResourceName) -> Result<Arc<Resource>, NotHere> {
        let found = |snapshot: &Snapshot| {
            if let Some(resource) = snapshot.program.get(name) {
                return Some(Ok(resource.clone()));
            }
            snapshot.absent.contains(name).then(|| Err(NotHere::Absent(name.clone())))
        };
        let mut snapshots = self.inner.shared.snapshot.clone();
        let known = snapshots.borrow_and_update().clone();
        if let Some(answer) = found(&known) {
            return answer;
        }
        let Some(wanted) = &self.inner.wanted else {
            return Err(NotHere::NotInFile(name.clone()));
        };
        if !wanted.follow(name, &known.absent) {
            return Err(NotHere::TooMany(NAMES_MAX));
        }
        let answer = async {
            loop {
                {
                    let snapshot = snapshots.borrow_and_update();
                    if let Some(answer) = found(&snapshot) {
                        return answer;
                    }
                    if !snapshot.connected {
                        return Err(NotHere::NotConnected(name.clone()));
                    }
                }
                if snapshots.changed().await.is_err() {
                    return Err(NotHere::NotConnected(name.clone()));
                }
            }
        };
        match tokio::time::timeout(WAIT_MAX, answer).await {
            Ok(answer) => answer,
            Err(_) => Err(NotHere::TimedOut(name.clone())),
        }
    }

    /// The destination of that name with its endpoints (asked for as by [`Engine::resource`]).
    pub async fn upstream(&self, name: &ClusterName) -> Result<Upstream, NotHere> {
        if let Some(known) = self.inner.upstreams.get(name)
            && known.is_in(&self.inner.shared.snapshot.borrow().program)
        {
            return Ok(known.clone());
        }
        let upstream = match self.inner.upstreams.get(name) {
            Some(upstream) => upstream.clone(),
            None => Upstream::new(self.inner.shared.clone(), name.clone()),
        };
        let (cluster, endpoints) = tokio::join!(
            self.resource(&upstream.inner.cluster_resource),
            self.resource(&upstream.inner.endpoints_resource),
        );
        if !matches!(*cluster?, Resource::Cluster(_)) {
            return Err(NotHere::WrongKind(upstream.inner.cluster_resource.clone()));
        }
        if !matches!(*endpoints?, Resource::Endpoints(_)) {
            return Err(NotHere::WrongKind(upstream.inner.endpoints_resource.clone()));
        }
        // Only names that exist are kept, and the first of two that raced.
        Ok(self.inner.upstreams.entry(name.clone()).or_insert(upstream).clone())
    }

    /// [`Engine::upstream`], then [`Upstream::connect`].
    pub async fn connect(
        &self,
        name: &ClusterName,
        ask: &Ask,
    ) -> Result<Established, ConnectFailed> {
        self.upstream(name).await?.connect(ask).await
    }

    /// What this proxy runs now.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.inner.shared.snapshot.borrow().clone()
    }

    /// Destinations used so far, by name.
    pub(crate) fn upstreams(&self) -> Vec<Upstream> {
        let mut all: Vec<Upstream> =
            self.inner.upstreams.iter().map(|entry| entry.value().clone()).collect();
        all.sort_by(|a, b| a.name().cmp(b.name()));
        all
    }

    pub(crate) fn now(&self) -> Millis {
        self.inner.shared.clock.now()
    }
}
