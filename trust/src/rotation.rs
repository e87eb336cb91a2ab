//! When to renew a certificate: at half of its life, give or take, and after a failure again soon.

use crate::svid::Svid;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::watch;

/// First pause after a failure; it doubles …
const RETRY_MIN: Duration = Duration::from_secs(1);
/// … up to this.
const RETRY_MAX: Duration = Duration::from_secs(300);
/// Longest single wait: clocks jump and machines sleep, so due dates are looked at again.
const WAIT_MAX: Duration = Duration::from_secs(60);
/// Share of the half-life by which renewals spread, to either side: a whole cluster that started
/// at once must not come back at once.
const SPREAD: f64 = 0.1;

/// What happened. `chance` is a random number from 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Input {
    /// Time has passed.
    Tick,
    /// There is a new certificate.
    Renewed { not_before: SystemTime, not_after: SystemTime, chance: f64 },
    /// Renewing failed.
    Failed { chance: f64 },
    /// Whatever the dates say: the authority or the roots have changed.
    Hurry,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Ask for a certificate; come back with `Renewed` or `Failed`.
    Renew,
    /// Come back with `Tick` after so long.
    Wait(Duration),
}

/// The state between renewals. Without a certificate it is due at once.
#[derive(Debug, Clone)]
pub struct Rotation {
    due: SystemTime,
    ends: Option<SystemTime>,
    retry: Duration,
    asked: bool,
}

impl Default for Rotation {
    fn default() -> Self {
        Self { due: SystemTime::UNIX_EPOCH, ends: None, retry: RETRY_MIN, asked: false }
    }
}

impl Rotation {
    pub fn new() -> Self {
        Self::default()
    }

    /// Feed what happened, get what to do.
    pub fn step(&mut self, now: SystemTime, input: Input) -> Action {
        match input {
            Input::Tick => {}
            Input::Hurry => self.due = now,
            Input::Renewed { not_before, not_after, chance } => {
                self.asked = false;
                self.retry = RETRY_MIN;
                self.ends = Some(not_after);
                let half = not_after.duration_since(not_before).unwrap_or_default() / 2;
                let share = 1.0 - SPREAD + 2.0 * SPREAD * chance.clamp(0.0, 1.0);
                // A server that hands out certificates past their half must not be asked in a loop.
                self.due = (not_before + half.mul_f64(share)).max(now + RETRY_MIN);
            }
            Input::Failed { chance } => {
                self.asked = false;
                // The nearer the end, the more often: a tenth of what is left at most.
                let left = self
                    .ends
                    .map_or(RETRY_MAX, |ends| ends.duration_since(now).unwrap_or_default() / 10);
                let pause = self.retry.min(left).max(RETRY_MIN);
                self.due = now + pause.mul_f64(0.5 + 0.5 * chance.clamp(0.0, 1.0));
                self.retry = (self.retry * 2).min(RETRY_MAX);
            }
        }
        match self.due.duration_since(now) {
            Ok(wait) if !wait.is_zero() => Action::Wait(wait.min(WAIT_MAX)),
            _ if self.asked => Action::Wait(WAIT_MAX),
            _ => {
                self.asked = true;
                Action::Renew
            }
        }
    }
}

/// Asks `renew` until it gives a certificate: the first of a process.
pub async fn first<E: std::fmt::Display>(mut renew: impl AsyncFnMut() -> Result<Svid, E>) -> Svid {
    let mut rotation = Rotation::new();
    let mut input = Input::Tick;
    loop {
        match rotation.step(SystemTime::now(), input) {
            Action::Wait(wait) => {
                tokio::time::sleep(wait).await;
                input = Input::Tick;
            }
            Action::Renew => match renew().await {
                Ok(svid) => return svid,
                Err(error) => {
                    tracing::warn!(%error, "no workload certificate yet, asking again");
                    input = Input::Failed { chance: rand::random() };
                }
            },
        }
    }
}

/// Keeps the certificate in `svids` fresh for ever; each `hurry` brings the next renewal forward.
/// After a failure the old one stays until its end, and beyond: who verifies decides.
pub async fn keep<E: std::fmt::Display>(
    svids: &watch::Sender<Arc<Svid>>,
    mut hurry: watch::Receiver<u64>,
    mut renew: impl AsyncFnMut() -> Result<Svid, E>,
) {
    let renewed = |svid: &Svid| Input::Renewed {
        not_before: svid.not_before,
        not_after: svid.not_after,
        chance: rand::random(),
    };
    let mut rotation = Rotation::new();
    let mut input = renewed(&svids.borrow());
    let mut hurried = true;
    loop {
        match rotation.step(SystemTime::now(), input) {
            Action::Wait(wait) => {
                input = tokio::select! {
                    () = tokio::time::sleep(wait) => Input::Tick,
                    changed = hurry.changed(), if hurried => match changed {
                        Ok(()) => Input::Hurry,
                        Err(_) => {
                            hurried = false;
                            Input::Tick
                        }
                    },
                };
            }
            Action::Renew => match renew().await {
                Ok(svid) => {
                    tracing::info!(identity = %svid.identity, "workload certificate renewed");
                    input = renewed(&svid);
                    svids.send_replace(Arc::new(svid));
                }
                Err(error) => {
                    let ends = svids.borrow().not_after;
                    let left = ends.duration_since(SystemTime::now()).unwrap_or_default();
                    tracing::warn!(%error, left_seconds = left.as_secs(),
                        "renewing the workload certificate failed, asking again");
                    input = Input::Failed { chance: rand::random() };
                }
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000 + seconds)
    }

    fn seconds(action: Action) -> f64 {
        match action {
            Action::Renew => 0.0,
            Action::Wait(wait) => wait.as_secs_f64(),
        }
    }

    fn renewed(chance: f64) -> Input {
        Input::Renewed { not_before: at(0), not_after: at(200), chance }
    }

    #[test]
    fn renews_at_half_life_with_spread() {
        for (chance, due) in [(0.0, 90), (0.5, 100), (1.0, 110)] {
            let mut rotation = Rotation::new();
            assert_eq!(rotation.step(at(0), Input::Tick), Action::Renew, "nothing there yet");
            assert_eq!(seconds(rotation.step(at(0), renewed(chance))), 60.0, "looks at the clock");
            let early = rotation.step(at(due - 1), Input::Tick);
            assert!((seconds(early) - 1.0).abs() < 0.01, "{early:?}");
            assert_eq!(rotation.step(at(due + 1), Input::Tick), Action::Renew);
            assert_ne!(rotation.step(at(due + 2), Input::Tick), Action::Renew, "asked once");
        }
    }

    #[test]
    fn failures_are_repeated_ever_slower_but_in_time() {
        let mut rotation = Rotation::new();
        rotation.step(at(0), renewed(0.5));
        assert_eq!(rotation.step(at(101), Input::Tick), Action::Renew);
        let mut now = 101.0;
        let mut pauses = Vec::new();
        while now < 199.0 {
            let time = at(0) + Duration::from_secs_f64(now);
            let pause = seconds(rotation.step(time, Input::Failed { chance: 1.0 }));
            pauses.push(pause);
            now += pause;
            let time = at(0) + Duration::from_secs_f64(now + 0.001);
            assert_eq!(rotation.step(time, Input::Tick), Action::Renew);
        }
        assert_eq!(pauses[..3], [1.0, 2.0, 4.0]);
        assert!(pauses.iter().all(|pause| *pause <= 9.9), "{pauses:?}");
        assert!(pauses.len() > 20, "ever more often towards the end: {pauses:?}");
    }

    #[test]
    fn hurry_and_a_stale_answer() {
        let mut rotation = Rotation::new();
        rotation.step(at(0), renewed(0.5));
        assert_eq!(rotation.step(at(1), Input::Hurry), Action::Renew);
        // The server answers with the certificate of before: not asked again in a loop.
        assert_eq!(seconds(rotation.step(at(150), renewed(0.5))), 1.0);
    }

    #[test]
    fn a_clock_that_jumps_is_noticed() {
        let mut rotation = Rotation::new();
        let day = Input::Renewed { not_before: at(0), not_after: at(86_400), chance: 0.5 };
        assert_eq!(rotation.step(at(0), day), Action::Wait(WAIT_MAX));
        assert_eq!(rotation.step(at(80_000), Input::Tick), Action::Renew);
    }
}
