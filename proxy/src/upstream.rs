//! A destination: its settings, its endpoints and what we know of their health.

pub(crate) mod connect;
pub(crate) mod health;
pub(crate) mod outlier;
pub(crate) mod pick;
pub(crate) mod probe;
mod stream;
mod view;

use crate::engine::{NotHere, Shared};
use arc_swap::ArcSwapOption;
pub use connect::{ATTEMPT_MAX, ATTEMPTS_MAX, STAGGER, tune};
pub use health::Key;
use health::{Evidence, Seat};
use mesh::name::{ClusterId, Identity, Network};
use mesh::program::{Cluster, ClusterName, LbEndpoint, Program, Resource, ResourceName};
use outlier::{Limits, Verdict};
use pick::{Candidate, Plan, Stage};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
pub use stream::Stream;
pub(crate) use view::View;

/// How a connection is wanted.
#[derive(Debug, Clone, Default)]
pub struct Ask {
    /// ALPN towards meshed endpoints: `istio` for TCP, `istio-http/1.1` for HTTP.
    pub alpn: Vec<u8>,
    /// Bytes as they come, no TLS of our own, also to meshed endpoints: a gateway's way.
    pub raw: bool,
    /// Dial this one first (from [`Upstream::pick`]).
    pub first: Option<Picked>,
    /// Endpoints that this request has tried already: taken only when nothing else is left.
    pub avoid: Vec<Key>,
}

/// One endpoint dialled, and how it went.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Attempt {
    pub endpoint: SocketAddr,
    pub cluster: ClusterId,
    pub after: Duration,
    /// Empty for the attempt that won.
    pub problem: String,
}

/// A connection that is ready for the first byte.
#[derive(Debug)]
pub struct Established {
    pub stream: Stream,
    pub picked: Picked,
    /// One active use of the endpoint, begun already; drop it when the use ends.
    pub in_flight: InFlight,
    /// Counts as a connection of the upstream while held.
    pub slot: Slot,
    pub endpoint: LbEndpoint,
    /// Who answered, verified; `None` without TLS.
    pub identity: Option<Identity>,
    /// From dialling the winner to the end of its handshake.
    pub handshake: Duration,
    /// All that were dialled, in order.
    pub attempts: Vec<Attempt>,
}

/// Why no connection came about.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ConnectFailed {
    #[error(transparent)]
    NotHere(#[from] NotHere),
    #[error("{cluster} has no endpoint that may be dialled: {reason}")]
    NoEndpoint { cluster: ClusterName, reason: String },
    #[error("{cluster} has {limit} connections, the most it may")]
    Overflow { cluster: ClusterName, limit: u32 },
    #[error("no endpoint of {cluster} answered: {}", sentence(attempts))]
    AllFailed { cluster: ClusterName, attempts: Vec<Attempt> },
}

fn sentence(attempts: &[Attempt]) -> String {
    let one =
        |a: &Attempt| format!("{} in {} after {:?}: {}", a.endpoint, a.cluster, a.after, a.problem);
    attempts.iter().map(one).collect::<Vec<_>>().join("; ")
}

impl ConnectFailed {
    /// Envoy's response flag: `NC` no cluster, `UH` no healthy upstream, `UO` overflow, `UF` failure.
    pub fn flag(&self) -> &'static str {
        match self {
            Self::NotHere(_) => "NC",
            Self::NoEndpoint { .. } => "UH",
            Self::Overflow { .. } => "UO",
            Self::AllFailed { .. } => "UF",
        }
    }

    /// What was dialled before giving up.
    pub fn attempts(&self) -> &[Attempt] {
        match self {
            Self::AllFailed { attempts, .. } => attempts,
            Self::NotHere(_) | Self::NoEndpoint { .. } | Self::Overflow { .. } => &[],
        }
    }
}

/// How a use of an endpoint ended; feeds ejection and suspicion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Response headers came, status below 500; or a TCP connection carried bytes.
    Success,
    /// Response headers with a 5xx status. Never counts against a gateway.
    ServerError,
    /// The connection ended before response headers.
    Reset,
    /// No response headers within the hedge delay.
    Slow,
    /// Nothing learned (the client left).
    Cancelled,
}

/// One destination. Cheap to clone; follows the Program by itself.
#[derive(Debug, Clone)]
pub struct Upstream {
    pub(crate) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) shared: Arc<Shared>,
    pub(crate) name: ClusterName,
    pub(crate) cluster_resource: ResourceName,
    pub(crate) endpoints_resource: ResourceName,
    pub(crate) view: ArcSwapOption<View>,
    /// Seats by key: they outlive the Program they came with. The lock is also the right to
    /// build a view.
    pub(crate) seats: Mutex<HashMap<Key, Arc<Seat>>>,
    turns: AtomicU64,
    connections: Arc<AtomicU32>,
}

/// An endpoint chosen by the load balancer.
#[derive(Debug, Clone)]
pub struct Picked {
    upstream: Upstream,
    endpoint: Arc<LbEndpoint>,
    pub(crate) seat: Arc<Seat>,
}

impl Picked {
    pub fn endpoint(&self) -> &LbEndpoint {
        &self.endpoint
    }

    /// Key for pools of connections: stays the same over swaps of the Program.
    pub fn key(&self) -> Key {
        self.seat.path.key.clone()
    }

    /// Copies of the service that may be reached through it: several where it is a gateway.
    pub fn behind(&self) -> usize {
        let weight = if self.endpoint.gateway { self.endpoint.weight } else { 1 };
        usize::try_from(weight).unwrap_or(usize::MAX)
    }

    /// From now on this endpoint serves one more request, until the guard goes.
    pub fn begin(&self) -> InFlight {
        self.seat.active.fetch_add(1, Ordering::AcqRel);
        // Requests on pooled connections are use too: their gateway must be watched.
        if self.seat.path.gateway {
            probe::touch(&self.upstream.inner.shared, &self.seat.path);
        }
        InFlight { picked: self.clone() }
    }

    /// Nothing speaks against it now.
    pub fn is_sound(&self) -> bool {
        let now = self.upstream.inner.shared.clock.now();
        self.is_usable() && matches!(self.seat.verdict(now), Verdict::Healthy(_))
    }

    /// False once the endpoint is ejected or gone from the Program: do not reuse its connections.
    pub fn is_usable(&self) -> bool {
        let view = self.upstream.view();
        let known = view.seats.iter().any(|(_, seat)| Arc::ptr_eq(seat, &self.seat));
        known && self.seat.verdict(self.upstream.inner.shared.clock.now()) != Verdict::Ejected
    }
}

/// One active use of an endpoint.
#[derive(Debug)]
pub struct InFlight {
    picked: Picked,
}

impl InFlight {
    /// Tells what became of it; may be said several times (a hedge fires, then an answer comes).
    pub fn report(&self, outcome: Outcome) {
        let upstream = &self.picked.upstream;
        let evidence = match outcome {
            Outcome::Success => Evidence::Answered,
            Outcome::ServerError => Evidence::ServerError,
            Outcome::Reset => Evidence::Reset,
            Outcome::Slow => Evidence::Slow,
            Outcome::Cancelled => return,
        };
        if evidence == Evidence::ServerError && !upstream.may_eject(&self.picked) {
            return;
        }
        upstream.see(&self.picked, evidence);
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.picked.seat.active.fetch_sub(1, Ordering::AcqRel);
    }
}

/// One of the connections an upstream may have (`connectionPool.tcp.maxConnections`).
#[derive(Debug)]
pub struct Slot {
    connections: Arc<AtomicU32>,
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.connections.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Upstream {
    pub(crate) fn new(shared: Arc<Shared>, name: ClusterName) -> Self {
        let inner = Inner {
            shared,
            cluster_resource: view::cluster_resource(&name),
            endpoints_resource: view::endpoints_resource(&name),
            name,
            view: ArcSwapOption::empty(),
            seats: Mutex::default(),
            turns: AtomicU64::new(0),
            connections: Arc::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    pub fn name(&self) -> &ClusterName {
        &self.inner.name
    }

    /// Whether its settings and its endpoints are both there, each of its kind.
    pub(crate) fn is_in(&self, program: &Program) -> bool {
        let of = |name: &ResourceName| program.get(name).map(|resource| &**resource);
        matches!(of(&self.inner.cluster_resource), Some(Resource::Cluster(_)))
            && matches!(of(&self.inner.endpoints_resource), Some(Resource::Endpoints(_)))
    }

    /// Its settings in the Program of now.
    pub fn cluster(&self) -> Arc<Cluster> {
        self.view().settings.cluster.clone()
    }

    /// Chooses an endpoint by priority, locality and policy; one of `avoid` only when nothing
    /// else is left.
    pub fn pick(&self, avoid: &[Key]) -> Result<Picked, ConnectFailed> {
        let view = self.view();
        let now = self.inner.shared.clock.now();
        // Four misses are more than chance; then look closely.
        for _ in 0..4 {
            let plan = view.plan(now, &self.inner.shared);
            let Some(at) = self.choose(&view, &plan.plan) else { break };
            if avoid.contains(&view.seats[at].1.path.key) {
                break;
            }
            if self.claim(&view, at, now) {
                return Ok(self.picked(&view, at));
            }
        }
        self.pick_closely(&view, |at| avoid.contains(&view.seats[at].1.path.key))
    }

    /// As [`Upstream::pick`], but in none of `networks` where another one has an endpoint.
    pub(crate) fn pick_abroad(
        &self,
        avoid: &[Key],
        networks: &[Network],
    ) -> Result<Picked, ConnectFailed> {
        let view = self.view();
        self.pick_closely(&view, |at| {
            let (endpoint, seat) = &view.seats[at];
            networks.contains(&endpoint.network) || avoid.contains(&seat.path.key)
        })
        .or_else(|_| self.pick(avoid))
    }

    /// Another endpoint than `slow`, which does not answer: in another network where `slow` is a
    /// gateway, since what silences one gateway often silences its whole cluster.
    pub fn pick_elsewhere(&self, slow: &Picked, avoid: &[Key]) -> Option<Picked> {
        let avoid: Vec<Key> = avoid.iter().cloned().chain([slow.key()]).collect();
        let other = if slow.endpoint.gateway {
            self.pick_abroad(&avoid, std::slice::from_ref(&slow.endpoint.network))
        } else {
            self.pick(&avoid)
        };
        other.ok().filter(|other| !avoid.contains(&other.key()))
    }

    fn pick_closely(
        &self,
        view: &View,
        barred: impl Fn(usize) -> bool,
    ) -> Result<Picked, ConnectFailed> {
        let now = self.inner.shared.clock.now();
        let stages = [
            (Stage::Sound, true),
            (Stage::Doubtful, true),
            (Stage::Sound, false),
            (Stage::Doubtful, false),
            (Stage::Busy, true),
            (Stage::Busy, false),
            (Stage::Last, true),
            (Stage::Last, false),
        ];
        for (stage, bar) in stages {
            let plan = Plan::new(&view.groups, stage, |at| {
                let seat = &view.seats[at].1;
                // Who is dead or had its try must not stand before those of lower priorities.
                let too_bad = match stage {
                    Stage::Sound | Stage::Doubtful => false,
                    Stage::Busy => !seat.is_busy(now),
                    Stage::Last => !seat.path.is_last_resort_due(now),
                };
                Candidate { barred: too_bad || bar && barred(at), ..view.candidate(at, now) }
            });
            for _ in 0..4 {
                let Some(at) = self.choose(view, &plan) else { break };
                let granted = match stage {
                    Stage::Sound => self.claim(view, at, now),
                    Stage::Doubtful | Stage::Busy => true,
                    Stage::Last => view.seats[at].1.path.claim_last_resort(now),
                };
                if granted {
                    return Ok(self.picked(view, at));
                }
            }
        }
        Err(self.nobody(&view.why_nobody(now)))
    }

    fn choose(&self, view: &View, plan: &Plan) -> Option<usize> {
        plan.choose(
            view.settings.cluster.load_balancing,
            || self.inner.turns.fetch_add(1, Ordering::Relaxed),
            |at| {
                let (endpoint, seat) = &view.seats[at];
                (seat.active.load(Ordering::Relaxed), endpoint.weight.max(1))
            },
        )
    }

    /// A suspect whose trial is due is for one only.
    fn claim(&self, view: &View, at: usize, now: u64) -> bool {
        let seat = &view.seats[at].1;
        match seat.verdict(now) {
            Verdict::Healthy(_) => true,
            Verdict::TrialDue => {
                let claimed = seat.claim_trial(now);
                self.inner.shared.changed();
                claimed
            }
            Verdict::Suspect | Verdict::Ejected => false,
        }
    }

    fn picked(&self, view: &View, at: usize) -> Picked {
        let (endpoint, seat) = &view.seats[at];
        Picked { upstream: self.clone(), endpoint: endpoint.clone(), seat: seat.clone() }
    }

    fn nobody(&self, reason: &str) -> ConnectFailed {
        ConnectFailed::NoEndpoint { cluster: self.name().clone(), reason: reason.into() }
    }

    fn has_other_than(&self, tried: &[Key]) -> bool {
        let view = self.view();
        let now = self.inner.shared.clock.now();
        view.seats.iter().any(|(_, seat)| {
            !tried.contains(&seat.path.key) && seat.verdict(now) != Verdict::Ejected
        })
    }

    pub(crate) fn see(&self, picked: &Picked, evidence: Evidence) {
        let shared = &self.inner.shared;
        let limits = Limits::from(&self.view().settings.cluster.outlier);
        if picked.seat.see(shared.clock.now(), limits, evidence) {
            shared.changed();
            tracing::info!(
                cluster = %self.name(), endpoint = %picked.endpoint.address,
                announced_by = %picked.endpoint.cluster, ?evidence,
                verdict = ?picked.seat.verdict(shared.clock.now()), "health changed",
            );
        }
        shared.numbers.evidence(&picked.endpoint.cluster, evidence);
    }

    /// `max_ejection_percent`: whether one more of its locality may be ejected by responses.
    fn may_eject(&self, picked: &Picked) -> bool {
        let view = self.view();
        let percent = view.settings.cluster.outlier.max_ejection_percent;
        if percent >= 100 || picked.endpoint.gateway {
            return true;
        }
        let now = self.inner.shared.clock.now();
        let same = |at: &usize| Arc::ptr_eq(&view.seats[*at].1, &picked.seat);
        let Some(group) = view.groups.iter().find(|group| group.seats.iter().any(same)) else {
            return true;
        };
        let ejected = |at: &&usize| view.seats[**at].1.verdict(now) == Verdict::Ejected;
        let after = group.seats.iter().filter(ejected).count() + 1;
        after * 100 <= group.seats.len() * percent as usize
    }

    /// Somebody wants to go there: gateways are probed while this is so.
    fn touch(&self, picked: &Picked) {
        probe::touch(&self.inner.shared, &picked.seat.path);
        for (_, seat) in &self.view().seats {
            // Who is avoided for now must be watched too, or it would never come home.
            let now = self.inner.shared.clock.now();
            if seat.path.gateway && !matches!(seat.verdict(now), Verdict::Healthy(_)) {
                probe::touch(&self.inner.shared, &seat.path);
            }
        }
    }

    fn slot(&self) -> Result<Slot, ConnectFailed> {
        let limit = self.cluster().pool.max_connections;
        let slot = Slot { connections: self.inner.connections.clone() };
        if slot.connections.fetch_add(1, Ordering::AcqRel) >= limit && limit > 0 {
            return Err(ConnectFailed::Overflow { cluster: self.name().clone(), limit });
        }
        Ok(slot)
    }
}
