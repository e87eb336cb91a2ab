//! What is remembered of addresses, beyond every swap of the Program: paths, seats, and evidence.
//!
//! A *path* is one address of one cluster, shared by all destinations; a *seat* is that address in
//! one destination. Behind a gateway's path stand many services, so what may be the service's
//! fault counts against the seat only; the path falls by connects and probes (decision 12).

use super::outlier::{Change, Health, Limits, Millis, Seen, Verdict};
use mesh::name::{ClusterId, TrustDomain};
use mesh::program::{LbEndpoint, OutlierDetection};
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::Notify;

/// Names an endpoint beyond swaps of the Program.
pub type Key = (SocketAddr, ClusterId);

/// One address of one cluster.
#[derive(Debug)]
pub(crate) struct Path {
    pub(crate) key: Key,
    pub(crate) gateway: bool,
    pub(crate) health: Health,
    /// Moving average of connect and handshake, microseconds; 0 before the first.
    handshake_us: AtomicU64,
    /// The same of probes.
    pub(crate) probe_us: AtomicU64,
    /// When a connection was last wanted here.
    pub(crate) used_at: AtomicU64,
    /// A prober is at work.
    pub(crate) probing: AtomicBool,
    /// A probe has succeeded once: it is a gateway of ours, and silence means something.
    pub(crate) proven: AtomicBool,
    /// Probe now.
    pub(crate) kick: Notify,
    /// Trust domains of those who answer behind it: its own SVID is of one of them.
    pub(crate) domains: Mutex<BTreeSet<TrustDomain>>,
    /// When it was last dialled although everything was ejected.
    last_resort_at: AtomicU64,
    /// Its last failure was a handshake that took too long: TCP is through, so somebody lives there
    /// who has too much to do.
    busy: AtomicBool,
}

/// One address in one destination.
#[derive(Debug)]
pub(crate) struct Seat {
    pub(crate) path: Arc<Path>,
    pub(crate) health: Health,
    /// Requests and tunnels in flight.
    pub(crate) active: AtomicU32,
}

/// While everything is ejected, one attempt per endpoint is let through so often, milliseconds.
const LAST_RESORT_MS: u64 = 200;

/// Gateways have limits of their own: no service's settings speak for a path of many.
pub(crate) const GATEWAY_LIMITS: Limits =
    Limits { consecutive_5xx: 0, consecutive_local: 3, base_ejection_ms: 5_000 };

impl From<&OutlierDetection> for Limits {
    fn from(outlier: &OutlierDetection) -> Self {
        Self {
            consecutive_5xx: outlier.consecutive_5xx,
            consecutive_local: outlier.consecutive_local,
            base_ejection_ms: outlier.base_ejection_ms,
        }
    }
}

/// How far an attempt had come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    Connect,
    Handshake,
}

/// What was seen of a seat, in the words of whoever saw it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Evidence {
    /// Connected, with a handshake where one is due.
    Connected {
        took_us: u64,
    },
    /// Not connected: refused, reset or wrong identity, or nothing for so long.
    Failed {
        phase: Phase,
        timed_out: bool,
        took: Duration,
    },
    /// The next attempt had to be started.
    Late(Phase),
    Answered,
    ServerError,
    Reset,
    /// No response headers in time.
    Slow,
}

impl Path {
    pub(crate) fn new(endpoint: &LbEndpoint) -> Self {
        Self {
            key: (endpoint.address, endpoint.cluster.clone()),
            gateway: endpoint.gateway,
            health: Health::default(),
            handshake_us: AtomicU64::new(0),
            probe_us: AtomicU64::new(0),
            used_at: AtomicU64::new(0),
            probing: AtomicBool::new(false),
            proven: AtomicBool::new(false),
            kick: Notify::new(),
            domains: Mutex::new(BTreeSet::new()),
            last_resort_at: AtomicU64::new(0),
            busy: AtomicBool::new(false),
        }
    }

    pub(crate) fn handshake_us(&self) -> u64 {
        self.handshake_us.load(Ordering::Relaxed)
    }

    pub(crate) fn is_last_resort_due(&self, now: Millis) -> bool {
        let last = self.last_resort_at.load(Ordering::Acquire);
        last == 0 || now >= last + LAST_RESORT_MS
    }

    /// True once in [`LAST_RESORT_MS`].
    pub(crate) fn claim_last_resort(&self, now: Millis) -> bool {
        let last = self.last_resort_at.load(Ordering::Acquire);
        self.is_last_resort_due(now)
            && self
                .last_resort_at
                .compare_exchange(last, now.max(1), Ordering::AcqRel, Ordering::Acquire)
                .is_ok()
    }
}

/// A moving average: an eighth of the news (as TCP's SRTT, RFC 6298).
pub(crate) fn average(cell: &AtomicU64, value: u64) {
    let before = cell.load(Ordering::Relaxed);
    let after = if before == 0 { value } else { (before * 7 + value) / 8 };
    cell.store(after.max(1), Ordering::Relaxed);
}

impl Seat {
    pub(crate) fn new(path: Arc<Path>) -> Self {
        Self { path, health: Health::default(), active: AtomicU32::new(0) }
    }

    /// The worse of path and seat.
    pub(crate) fn verdict(&self, now: Millis) -> Verdict {
        use Verdict::{Ejected, Healthy, Suspect, TrialDue};
        match (self.path.health.verdict(now), self.health.verdict(now)) {
            (Ejected, _) | (_, Ejected) => Ejected,
            (Suspect, _) | (_, Suspect) => Suspect,
            (TrialDue, _) | (_, TrialDue) => TrialDue,
            (Healthy(path), Healthy(seat)) => Healthy(path.min(seat)),
        }
    }

    /// Set aside for being slow only: no probe says that it is dead, and it takes connections.
    pub(crate) fn is_busy(&self, now: Millis) -> bool {
        let dead = self.path.gateway && self.path.health.verdict(now) == Verdict::Ejected;
        !dead && self.path.busy.load(Ordering::Acquire)
    }

    pub(crate) fn changes_at(&self, now: Millis) -> Millis {
        self.path.health.changes_at(now).min(self.health.changes_at(now))
    }

    pub(crate) fn claim_trial(&self, now: Millis) -> bool {
        let due = |health: &Health| health.verdict(now) == Verdict::TrialDue;
        (!due(&self.path.health) || self.path.health.claim_trial(now))
            && (!due(&self.health) || self.health.claim_trial(now))
    }

    /// Weighs evidence; true when somebody's verdict changed.
    pub(crate) fn see(&self, now: Millis, limits: Limits, evidence: Evidence) -> bool {
        if let Evidence::Connected { took_us } = evidence {
            average(&self.path.handshake_us, took_us);
        }
        let failure = match evidence {
            Evidence::Failed { took, .. } => {
                let took = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
                Seen::LocalFailure(now.saturating_sub(took))
            }
            _ => Seen::LocalFailure(now),
        };
        match evidence {
            Evidence::Failed { phase: Phase::Handshake, timed_out: true, .. } => {
                self.path.busy.store(true, Ordering::Release);
            }
            Evidence::Failed { .. } | Evidence::Connected { .. } => {
                self.path.busy.store(false, Ordering::Release);
            }
            _ => {}
        }
        let path = |seen| {
            let limits = if self.path.gateway { GATEWAY_LIMITS } else { limits };
            self.path.health.see(now, limits, seen)
        };
        let changes = if self.path.gateway {
            let seat = |seen| self.health.see(now, limits, seen);
            match evidence {
                Evidence::Connected { .. } => [path(Seen::Connected), seat(Seen::Connected)],
                Evidence::Answered | Evidence::ServerError => {
                    [path(Seen::Success), seat(Seen::Success)]
                }
                Evidence::Failed { phase: Phase::Connect, .. } => {
                    self.path.kick.notify_one();
                    [path(failure), Change::None]
                }
                Evidence::Failed { phase: Phase::Handshake, timed_out, .. } => {
                    self.path.kick.notify_one();
                    // A foreign gateway answers no probe: its silence in handshakes is all we get.
                    let foreign = timed_out && !self.path.proven.load(Ordering::Acquire);
                    let path = if foreign { path(failure) } else { Change::None };
                    [path, seat(failure)]
                }
                Evidence::Late(Phase::Connect) => {
                    self.path.kick.notify_one();
                    [path(Seen::Doubt), Change::None]
                }
                Evidence::Late(Phase::Handshake) | Evidence::Reset | Evidence::Slow => {
                    self.path.kick.notify_one();
                    [Change::None, seat(Seen::Doubt)]
                }
            }
        } else {
            let seen = match evidence {
                Evidence::Connected { .. } => Seen::Connected,
                Evidence::Answered => Seen::Success,
                Evidence::ServerError => Seen::ServerError,
                Evidence::Failed { .. } | Evidence::Reset => failure,
                Evidence::Late(_) | Evidence::Slow => Seen::Doubt,
            };
            [path(seen), Change::None]
        };
        changes != [Change::None; 2]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits =
        Limits { consecutive_5xx: 2, consecutive_local: 3, base_ejection_ms: 5_000 };

    fn seats(gateway: bool) -> [Seat; 2] {
        let endpoint = LbEndpoint {
            address: "203.0.113.7:15443".parse().unwrap(),
            cluster: "west".parse().unwrap(),
            network: "west".parse().unwrap(),
            weight: 1,
            tls: true,
            gateway,
            workload: String::new(),
        };
        let path = Arc::new(Path::new(&endpoint));
        [Seat::new(path.clone()), Seat::new(path)]
    }

    #[test]
    fn a_gateway_is_never_ejected_by_responses() {
        let [one, _] = seats(true);
        for _ in 0..100 {
            one.see(1, LIMITS, Evidence::ServerError);
            one.see(1, LIMITS, Evidence::Reset);
        }
        assert_ne!(one.verdict(1), Verdict::Ejected);
        let [pod, _] = seats(false);
        pod.see(1, LIMITS, Evidence::ServerError);
        pod.see(1, LIMITS, Evidence::ServerError);
        assert_eq!(pod.verdict(1), Verdict::Ejected);
    }

    #[test]
    fn one_service_behind_a_gateway_does_not_speak_for_the_others() {
        let [one, other] = seats(true);
        one.path.proven.store(true, Ordering::Release);
        for _ in 0..3 {
            let failed =
                Evidence::Failed { phase: Phase::Handshake, timed_out: true, took: Duration::ZERO };
            one.see(1, LIMITS, failed);
        }
        assert_eq!(one.verdict(1), Verdict::Ejected);
        assert_eq!(other.verdict(1), Verdict::Healthy(100));
        // But who cannot even be connected to is dead for all.
        for _ in 0..3 {
            one.see(
                1,
                LIMITS,
                Evidence::Failed { phase: Phase::Connect, timed_out: false, took: Duration::ZERO },
            );
        }
        assert_eq!(other.verdict(1), Verdict::Ejected);
    }

    #[test]
    fn silence_of_a_gateway_that_answers_no_probe_counts_for_all() {
        let [one, other] = seats(true);
        for _ in 0..3 {
            one.see(
                1,
                LIMITS,
                Evidence::Failed { phase: Phase::Handshake, timed_out: true, took: Duration::ZERO },
            );
        }
        assert_eq!(other.verdict(1), Verdict::Ejected);
    }

    #[test]
    fn busy_is_who_takes_connections_and_is_not_proven_dead() {
        let fails = |phase, timed_out| Evidence::Failed { phase, timed_out, took: Duration::ZERO };
        for gateway in [true, false] {
            let [seat, _] = seats(gateway);
            assert!(!seat.is_busy(1), "nothing was seen of it");
            seat.see(1, LIMITS, fails(Phase::Handshake, true));
            assert!(seat.is_busy(1));
            seat.see(1, LIMITS, fails(Phase::Connect, false));
            assert!(!seat.is_busy(1), "it refuses connections now");
            seat.see(1, LIMITS, fails(Phase::Handshake, true));
            seat.see(1, LIMITS, Evidence::Connected { took_us: 1 });
            assert!(!seat.is_busy(1), "its handshakes end again");
        }
        let [hung, _] = seats(true);
        hung.see(1, LIMITS, fails(Phase::Handshake, true));
        hung.path.health.see(1, GATEWAY_LIMITS, Seen::Dead);
        assert!(!hung.is_busy(1), "a probe says that it is dead");
    }

    #[test]
    fn the_last_resort_is_rationed() {
        let [one, _] = seats(false);
        assert!(one.path.claim_last_resort(10));
        assert!(!one.path.claim_last_resort(150));
        assert!(one.path.claim_last_resort(210));
    }
}
