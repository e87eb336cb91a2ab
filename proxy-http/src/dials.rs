//! How many connections to one destination are begun at once: a crowd must not stifle itself.
//!
//! A handshake costs a processor a millisecond or so on either side. When a thousand requests lose
//! their path at once and each begins a handshake, all of them are slow, time out together and are
//! begun again. So connections grow as TCP's window does in slow start: as many may be under way as
//! there are already, and never fewer than a few; meanwhile each connection that is done serves who
//! waits ([`crate::pool::Pool::wait`]).

use std::sync::Mutex;
use std::time::Duration;
use tokio::sync::{Semaphore, SemaphorePermit};

/// As many may always be under way.
const LEAST: usize = 16;
/// Longest turn: who has not answered by then costs no processor any more, and must not keep others
/// from trying.
pub(crate) const TURN_MAX: Duration = Duration::from_millis(50);

/// The turns of one destination.
#[derive(Debug)]
pub(crate) struct Dials {
    turns: Semaphore,
    /// Turns there are, taken or not.
    size: Mutex<usize>,
}

/// The right to dial; given back when dropped.
#[derive(Debug)]
pub(crate) struct Turn<'a> {
    _permit: SemaphorePermit<'a>,
    /// It did not come at once: what was true before may not be any more.
    pub(crate) waited: bool,
}

impl Default for Dials {
    fn default() -> Self {
        Self { turns: Semaphore::new(LEAST), size: Mutex::new(LEAST) }
    }
}

impl Dials {
    /// Returns when it is this caller's turn, first come first served. `connections` counts those
    /// there are and those under way.
    pub(crate) async fn turn(&self, connections: usize) -> Turn<'_> {
        self.fit(connections);
        if let Ok(permit) = self.turns.try_acquire() {
            return Turn { _permit: permit, waited: false };
        }
        let permit = self.turns.acquire().await.expect("it is never closed");
        Turn { _permit: permit, waited: true }
    }

    /// Lets as many be under way as there are; called whenever their number has changed.
    pub(crate) fn fit(&self, connections: usize) {
        let mut size = self.size.lock().expect("no holder panics");
        let under_way = size.saturating_sub(self.turns.available_permits());
        let wanted = LEAST.max(connections.saturating_sub(under_way));
        if wanted > *size {
            self.turns.add_permits(wanted - *size);
            *size = wanted;
        } else if wanted * 2 < *size {
            *size -= self.turns.forget_permits(*size - wanted);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now<T>(future: impl Future<Output = T>) -> Option<T> {
        use futures::FutureExt as _;
        future.now_or_never()
    }

    #[test]
    fn few_begin_at_once_and_as_many_more_as_there_are() {
        let dials = Dials::default();
        let mut turns: Vec<_> = (0..LEAST).map(|n| now(dials.turn(n)).expect("free")).collect();
        assert!(turns.iter().all(|turn| !turn.waited));
        assert!(now(dials.turn(LEAST)).is_none(), "those under way are no connections yet");
        // All of them are established: twice as many may follow.
        turns.clear();
        let more: Vec<_> = (0..40).map_while(|n| now(dials.turn(40 + n))).collect();
        assert_eq!(more.len(), 40);
        assert!(now(dials.turn(80)).is_none());
    }

    #[test]
    fn turns_go_when_connections_go() {
        let dials = Dials::default();
        dials.fit(1_000);
        assert_eq!(dials.turns.available_permits(), 1_000);
        dials.fit(10);
        assert_eq!(dials.turns.available_permits(), LEAST);
    }

    #[tokio::test]
    async fn who_waits_gets_the_turn_of_who_ends_or_gives_up() {
        let dials = Dials::default();
        let mut turns: Vec<_> = (0..LEAST).map(|n| now(dials.turn(n)).expect("free")).collect();
        let mut first = Box::pin(dials.turn(LEAST));
        let mut second = Box::pin(dials.turn(LEAST));
        assert!(now(&mut first).is_none() && now(&mut second).is_none());
        turns.pop();
        // The first gives up with its turn in hand.
        drop(first);
        assert!(second.await.waited);
    }
}
