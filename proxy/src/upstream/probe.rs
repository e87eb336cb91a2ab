//! Whether a gateway in use is alive: a handshake with the gateway itself, every second or so.
//!
//! It proves path, process and trust, not the services behind (decision 14). Three misses in a row,
//! the third confirmed by a second connection beside it, and the path is ejected for all
//! destinations; one success brings it back, slowly.

use super::connect::{Secure, reach};
use super::health::{GATEWAY_LIMITS, Path, Phase, average};
use super::outlier::{Change, Seen};
use crate::engine::Shared;
use mesh::name::Identity;
use mesh::sni::probe_host;
use rand::Rng as _;
use rustls_pki_types::ServerName;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::time::Instant;
use trust::tls::Expected;

/// Time between probes while all is well, milliseconds; ± 20 %.
const EVERY_MS: u64 = 1_000;
/// Time between probes while the last one missed.
const AGAIN: Duration = Duration::from_millis(100);
/// A probe's time: four times what probes usually take, within these bounds, milliseconds.
const PATIENCE_MS: std::ops::RangeInclusive<u64> = 600..=1_000;
/// Misses in a row that make a path dead.
const MISSES: u32 = 3;
/// A path that nobody wanted for so long is not probed, milliseconds.
const IN_USE_MS: u64 = 60_000;
/// Who a gateway is, beside its trust domain.
pub(crate) const GATEWAY_NAMESPACE: &str = "isthmus-system";
pub(crate) const GATEWAY_ACCOUNT: &str = "isthmus-gateway";

/// What one probe found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Probed {
    Alive,
    /// Nothing answered: refused, or silence.
    Missed,
    /// Something answered that is no gateway of ours: closed, or another identity.
    Foreign,
    /// We could not look: our own want of sockets says nothing about the path.
    Blind,
}

/// Counts misses: the part of the prober that needs no network.
#[derive(Debug, Default)]
pub(crate) struct Judge {
    misses: u32,
    /// It answered as ours once, so a foreign answer means that it is gone.
    proven: bool,
}

/// What to tell the path, and when to look again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ruling {
    pub(crate) tell: Option<Seen>,
    pub(crate) soon: bool,
}

impl Judge {
    /// True where the next probe needs a second connection beside it.
    pub(crate) fn wants_confirmation(&self) -> bool {
        self.misses + 1 >= MISSES
    }

    pub(crate) fn rule(&mut self, probed: Probed) -> Ruling {
        match probed {
            Probed::Alive => {
                self.misses = 0;
                self.proven = true;
                Ruling { tell: Some(Seen::Alive), soon: false }
            }
            // A foreign gateway closes names it does not know: by connection evidence only.
            Probed::Foreign if !self.proven => {
                self.misses = 0;
                Ruling { tell: None, soon: false }
            }
            Probed::Blind => Ruling { tell: None, soon: false },
            Probed::Missed | Probed::Foreign => {
                self.misses += 1;
                let dead = self.misses >= MISSES;
                let tell = if dead { Seen::Dead } else { Seen::Doubt };
                Ruling { tell: Some(tell), soon: !dead }
            }
        }
    }
}

/// Notes that somebody wants to go there, and sees to a prober for gateways.
pub(crate) fn touch(shared: &Arc<Shared>, path: &Arc<Path>) {
    path.used_at.store(shared.clock.now(), Ordering::Release);
    let begin = path.gateway
        && !path.probing.load(Ordering::Acquire)
        && !path.probing.swap(true, Ordering::AcqRel);
    if begin {
        tokio::spawn(run(Arc::downgrade(shared), path.clone(), shared.end.clone()));
    }
}

async fn run(shared: Weak<Shared>, path: Arc<Path>, end: tokio_util::sync::CancellationToken) {
    let mut judge = Judge { misses: 0, proven: path.proven.load(Ordering::Acquire) };
    let mut soon = false;
    loop {
        let wait = if soon {
            AGAIN
        } else {
            let jittered = rand::rng().random_range(EVERY_MS * 8 / 10..=EVERY_MS * 12 / 10);
            Duration::from_millis(jittered)
        };
        let woken = tokio::select! {
            () = end.cancelled() => return,
            () = path.kick.notified() => true,
            () = tokio::time::sleep(wait) => false,
        };
        let Some(shared) = shared.upgrade() else { return };
        let now = shared.clock.now();
        if !woken && now.saturating_sub(path.used_at.load(Ordering::Acquire)) > IN_USE_MS {
            path.probing.store(false, Ordering::Release);
            tell(&shared, &path, Seen::Unwatched);
            return;
        }
        let probed = probe(&shared, &path, judge.wants_confirmation()).await;
        let ruling = judge.rule(probed);
        path.proven.store(judge.proven, Ordering::Release);
        soon = ruling.soon;
        if let Some(seen) = ruling.tell {
            tell(&shared, &path, seen);
        }
        let took = (probed == Probed::Alive)
            .then(|| Duration::from_micros(path.probe_us.load(Ordering::Relaxed)));
        shared.numbers.probed(&path.key, probed, took);
    }
}

fn tell(shared: &Shared, path: &Path, seen: Seen) {
    if path.health.see(shared.clock.now(), GATEWAY_LIMITS, seen) != Change::None {
        shared.changed();
        tracing::info!(
            gateway = %path.key.0, announced_by = %path.key.1, ?seen,
            verdict = ?path.health.verdict(shared.clock.now()), "a probe changed a path's health",
        );
    }
}

/// One probe; with `confirm`, two side by side, and either's life is life.
async fn probe(shared: &Shared, path: &Path, confirm: bool) -> Probed {
    if !confirm {
        return one(shared, path).await;
    }
    match tokio::join!(one(shared, path), one(shared, path)) {
        (Probed::Alive, _) | (_, Probed::Alive) => Probed::Alive,
        (Probed::Foreign, _) | (_, Probed::Foreign) => Probed::Foreign,
        (Probed::Blind, _) | (_, Probed::Blind) => Probed::Blind,
        (Probed::Missed, Probed::Missed) => Probed::Missed,
    }
}

async fn one(shared: &Shared, path: &Path) -> Probed {
    let domains = path.domains.lock().expect("nothing panics in it").clone();
    let gateway = |domain| Identity {
        domain,
        namespace: GATEWAY_NAMESPACE.into(),
        account: GATEWAY_ACCOUNT.into(),
    };
    let expected: BTreeSet<Identity> = domains.into_iter().map(gateway).collect();
    let name = ServerName::try_from(probe_host(&path.key.1).as_str().to_owned())
        .expect("a host is a server name");
    let config = trust::tls::client_config(
        Some(shared.svid.clone()),
        shared.bundle.clone(),
        Expected::AnyOf(Arc::new(expected)),
        &[b"istio"],
    );
    let begun = Instant::now();
    let usual = path.probe_us.load(Ordering::Relaxed) / 1_000;
    let patience = (usual * 4).clamp(*PATIENCE_MS.start(), *PATIENCE_MS.end());
    let deadline = begun + Duration::from_millis(patience);
    let shaking = AtomicBool::new(false);
    match reach(path.key.0, Some(&Secure { config, name }), deadline, &shaking).await {
        Ok(_) => {
            let took = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
            average(&path.probe_us, took);
            Probed::Alive
        }
        Err(failure) if failure.ours => Probed::Blind,
        Err(failure) if failure.phase == Phase::Handshake && !failure.timed_out => Probed::Foreign,
        Err(_) => Probed::Missed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(judge: &mut Judge, probed: Probed) -> Option<Seen> {
        judge.rule(probed).tell
    }

    #[test]
    fn three_misses_in_a_row_are_a_death_and_one_success_a_return() {
        let mut judge = Judge::default();
        assert_eq!(rule(&mut judge, Probed::Missed), Some(Seen::Doubt));
        assert_eq!(rule(&mut judge, Probed::Missed), Some(Seen::Doubt));
        assert!(judge.wants_confirmation());
        assert_eq!(rule(&mut judge, Probed::Missed), Some(Seen::Dead));
        assert_eq!(rule(&mut judge, Probed::Alive), Some(Seen::Alive));
        assert_eq!(rule(&mut judge, Probed::Missed), Some(Seen::Doubt));
        assert!(!judge.wants_confirmation());
    }

    #[test]
    fn a_foreign_gateway_is_left_to_connection_evidence() {
        let mut judge = Judge::default();
        for _ in 0..10 {
            assert_eq!(rule(&mut judge, Probed::Foreign), None);
        }
        rule(&mut judge, Probed::Blind);
        // One that was ours and now answers as somebody else is gone.
        rule(&mut judge, Probed::Alive);
        rule(&mut judge, Probed::Foreign);
        rule(&mut judge, Probed::Foreign);
        assert_eq!(rule(&mut judge, Probed::Blind), None);
        assert_eq!(rule(&mut judge, Probed::Foreign), Some(Seen::Dead));
    }
}
