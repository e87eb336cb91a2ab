//! How many connections to one destination are begun at once: a crowd must not stifle itself.
//!
//! A handshake costs a processor a millisecond or so on either side. When hundreds of requests lose
//! their path at once and each begins a handshake, all of them are slow. So a few begin, and the
//! others wait a moment: the first connections that are done serve them, for a tenth of the cost
//! ([`crate::pool::Pool::wait`]). The moment is short, since on a long way (a handshake takes three
//! round trips) connections in plenty are what serves a crowd.
//!
//! But not in any number: where handshakes come faster than both ends can finish them, each takes
//! longer than callers wait, none is ever finished, and the crowd never gets smaller. So a bound
//! holds that no wait lifts, wide enough for long ways and below what one processor can do.

use std::time::Duration;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{sleep, timeout};

/// As many begin at once.
const FEW: usize = 8;
/// Longest wait for a turn; then it is this caller's in any case.
const WAIT_MAX: Duration = Duration::from_millis(50);
/// Longest turn: who has not answered by then costs no processor any more, and must not keep others
/// from trying.
const TURN_MAX: Duration = Duration::from_millis(50);
/// As many are under way at once, those that waited long enough too.
const CROWD: usize = 32;
/// A dial counts for so long at most: then it is late, and who waits must see for himself. With
/// [`CROWD`] these are 128 dials a second where nothing answers.
const CROWD_TURN_MAX: Duration = proxy::upstream::STAGGER;

/// The turns of one destination.
#[derive(Debug)]
pub(crate) struct Dials {
    turns: Semaphore,
    crowd: Semaphore,
}

/// The right to dial; given back when dropped.
#[derive(Debug)]
pub(crate) struct Turn<'a> {
    /// `None` for who waited long enough.
    few: Option<SemaphorePermit<'a>>,
    crowd: Option<SemaphorePermit<'a>>,
    /// It did not come at once: what was true before may not be any more.
    pub(crate) waited: bool,
}

impl Default for Dials {
    fn default() -> Self {
        Self { turns: Semaphore::new(FEW), crowd: Semaphore::new(CROWD) }
    }
}

impl Dials {
    /// Returns when it is this caller's turn, first come first served: after 50 ms at the latest,
    /// unless a whole crowd is dialling.
    pub(crate) async fn turn(&self) -> Turn<'_> {
        if let (Ok(few), Ok(crowd)) = (self.turns.try_acquire(), self.crowd.try_acquire()) {
            return Turn { few: Some(few), crowd: Some(crowd), waited: false };
        }
        let few = timeout(WAIT_MAX, self.turns.acquire()).await.ok().and_then(Result::ok);
        // It is never closed.
        let crowd = self.crowd.acquire().await.ok();
        Turn { few, crowd, waited: true }
    }
}

impl Turn<'_> {
    /// Gives back what a dial that has not ended must not keep from others, when it is time; never
    /// returns.
    pub(crate) async fn pass_on(mut self) -> std::convert::Infallible {
        sleep(TURN_MAX).await;
        self.few = None;
        sleep(CROWD_TURN_MAX.saturating_sub(TURN_MAX)).await;
        self.crowd = None;
        std::future::pending().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt as _;
    use tokio::time::Instant;

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
        let begun = Instant::now();
        let all: Vec<_> = futures::future::join_all((0..20).map(|_| dials.turn())).await;
        assert_eq!(begun.elapsed(), WAIT_MAX);
        assert_eq!(all.iter().filter(|turn| turn.waited).count(), 19);
    }

    #[tokio::test(start_paused = true)]
    async fn a_crowd_that_nobody_answers_dials_128_times_a_second() {
        let dials = Dials::default();
        let begun = Instant::now();
        let dial = || async {
            let turn = dials.turn().await;
            let at = begun.elapsed();
            let never = async { match turn.pass_on().await {} };
            // Nobody answers for a second.
            let _ = timeout(Duration::from_secs(1), never).await;
            at
        };
        let begins = futures::future::join_all((0..1_000).map(|_| dial())).await;
        let within = |end: Duration| begins.iter().filter(|at| **at <= end).count();
        assert_eq!(within(Duration::from_millis(200)), CROWD);
        assert!((120..=160).contains(&within(Duration::from_secs(1))));
        assert_eq!(within(Duration::from_secs(9)), 1_000, "all have their turn");
    }
}
