//! How many attempts beyond the first a destination gets, so that retries cannot become the load.

use mesh::program::Retry;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

/// Seconds of the constant part that may be saved up.
const SAVED_SECONDS: f64 = 10.0;
/// Attempts away from suspected endpoints at once, per destination: as many requests as a large
/// gateway holds when it hangs, each leaving once.
const AWAY_MAX: usize = 1024;

/// Attempts after bytes were sent: a share of requests, and so many a second (decision 14).
#[derive(Debug)]
pub(crate) struct Budget {
    state: Mutex<State>,
    away: AtomicUsize,
}

#[derive(Debug)]
struct State {
    tokens: f64,
    at: Instant,
}

/// One attempt's permission; an attempt away from a suspected endpoint counts while it lasts.
#[derive(Debug)]
pub(crate) struct Away<'a>(&'a AtomicUsize);

impl Drop for Away<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Budget {
    /// Starts with one second's worth.
    pub(crate) fn new(retry: &Retry, now: Instant) -> Self {
        let tokens = f64::from(retry.budget_per_second);
        Self { state: Mutex::new(State { tokens, at: now }), away: AtomicUsize::new(0) }
    }

    /// A request came: its share is added.
    pub(crate) fn deposit(&self, retry: &Retry, now: Instant) {
        let mut state = self.state.lock().expect("no holder panics");
        state.accrue(retry, now, f64::from(retry.budget_percent) / 100.0);
    }

    /// Takes one attempt, or says no.
    pub(crate) fn withdraw(&self, retry: &Retry, now: Instant) -> bool {
        let mut state = self.state.lock().expect("no holder panics");
        state.accrue(retry, now, 0.0);
        let enough = state.tokens >= 1.0;
        if enough {
            state.tokens -= 1.0;
        }
        enough
    }

    /// An attempt away from an endpoint under suspicion: bounded by how many there are at once.
    pub(crate) fn away(&self) -> Option<Away<'_>> {
        let before = self.away.fetch_add(1, Ordering::AcqRel);
        let permit = Away(&self.away);
        (before < AWAY_MAX).then_some(permit)
    }
}

impl State {
    fn accrue(&mut self, retry: &Retry, now: Instant, extra: f64) {
        let rate = f64::from(retry.budget_per_second);
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.at = now;
        // The share of requests needs room even where the constant part is 0.
        let most = (rate * SAVED_SECONDS).max(f64::from(retry.budget_percent));
        self.tokens = (self.tokens + rate * passed + extra).min(most);
    }
}

#[cfg(test)]
mod tests {
    use super::Budget;
    use mesh::program::Retry;
    use std::time::{Duration, Instant};

    fn taken(budget: &Budget, retry: &Retry, now: Instant) -> usize {
        (0..10_000).take_while(|_| budget.withdraw(retry, now)).count()
    }

    #[test]
    fn a_fifth_of_requests_and_ten_a_second() {
        let retry = Retry::default();
        let start = Instant::now();
        let budget = Budget::new(&retry, start);
        assert_eq!(taken(&budget, &retry, start), 10);
        for _ in 0..100 {
            budget.deposit(&retry, start);
        }
        assert!((19..=20).contains(&taken(&budget, &retry, start)), "20 % of 100");
        assert_eq!(taken(&budget, &retry, start + Duration::from_secs(2)), 20);
        assert_eq!(taken(&budget, &retry, start + Duration::from_secs(3600)), 100, "saved: 10 s");
    }

    #[test]
    fn without_a_budget_nothing_is_tried_again() {
        let retry = Retry { budget_percent: 0, budget_per_second: 0, ..Retry::default() };
        let now = Instant::now();
        let budget = Budget::new(&retry, now);
        budget.deposit(&retry, now);
        assert!(!budget.withdraw(&retry, now + Duration::from_secs(60)));
    }

    #[test]
    fn attempts_away_are_bounded_while_they_last() {
        let budget = Budget::new(&Retry::default(), Instant::now());
        let held: Vec<_> = (0..1024).map(|_| budget.away().expect("below the bound")).collect();
        assert!(budget.away().is_none());
        drop(held);
        assert!(budget.away().is_some());
    }
}
