//! How many connections to one destination are begun at once: a crowd must not stifle itself.
//!
//! A handshake costs a processor a millisecond or so on either side. When hundreds of requests lose
//! their path at once and each begins a handshake, all of them are slow. So a few begin, and the
//! others wait a moment: the first connections that are done serve them, for a tenth of the cost
//! ([`crate::pool::Pool::wait`]). The moment is short, since on a long way (a handshake takes three
//! round trips) connections in plenty are what serves a crowd.

use std::time::Duration;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout;

/// As many begin at once.
const FEW: usize = 8;
/// Longest wait for a turn; then it is this caller's in any case.
const WAIT_MAX: Duration = Duration::from_millis(50);
/// Longest turn: who has not answered by then costs no processor any more, and must not keep others
/// from trying.
pub(crate) const TURN_MAX: Duration = Duration::from_millis(50);

/// The turns of one destination.
#[derive(Debug)]
pub(crate) struct Dials {
    turns: Semaphore,
}

/// The right to dial; given back when dropped.
#[derive(Debug)]
pub(crate) struct Turn<'a> {
    /// `None` for who waited long enough.
    _permit: Option<SemaphorePermit<'a>>,
    /// It did not come at once: what was true before may not be any more.
    pub(crate) waited: bool,
}

impl Default for Dials {
    fn default() -> Self {
        Self { turns: Semaphore::new(FEW) }
    }
}

impl Dials {
    /// Returns when it is this caller's turn, first come first served, after 50 ms at the latest.
    pub(crate) async fn turn(&self) -> Turn<'_> {
        if let Ok(permit) = self.turns.try_acquire() {
            return Turn { _permit: Some(permit), waited: false };
        }
        let permit = timeout(WAIT_MAX, self.turns.acquire()).await;
        Turn { _permit: permit.ok().and_then(Result::ok), waited: true }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt as _;

    #[tokio::test(start_paused = true)]
    async fn few_begin_at_once_and_nobody_waits_for_long() {
        let dials = Dials::default();
        let mut turns = Vec::new();
        for _ in 0..FEW {
            turns.push(dials.turn().now_or_never().expect("it is free"));
        }
        assert!(turns.iter().all(|turn| !turn.waited));
        let mut next = Box::pin(dials.turn());
        assert!((&mut next).now_or_never().is_none());
        turns.pop();
        assert!(next.now_or_never().expect("one was given back").waited);
        let begun = tokio::time::Instant::now();
        let all: Vec<_> = futures::future::join_all((0..100).map(|_| dials.turn())).await;
        assert_eq!(begun.elapsed(), WAIT_MAX);
        assert_eq!(all.iter().filter(|turn| turn.waited).count(), 99);
    }
}
