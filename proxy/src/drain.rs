//! A listener's end: unready, no new connections, the old ones get their time, then a cut.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// Counts live connections and ends them. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Drain {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    live: AtomicUsize,
    none_left: Notify,
    asked: CancellationToken,
    cut: CancellationToken,
}

/// One live connection; gone when dropped.
#[derive(Debug)]
pub struct Live {
    shared: Arc<Shared>,
    held: Option<Held>,
}

/// What a connection holds as long as it lives, in whatever form.
pub type Held = Arc<dyn Any + Send + Sync>;

impl Drain {
    pub fn new() -> Self {
        Self::default()
    }

    /// Registers a connection; hold the guard as long as it lives.
    pub fn live(&self) -> Live {
        self.shared.live.fetch_add(1, Ordering::AcqRel);
        Live { shared: self.shared.clone(), held: None }
    }

    /// How many connections live now.
    pub fn count(&self) -> usize {
        self.shared.live.load(Ordering::Acquire)
    }

    /// Asks connections to end, waits until none lives or `limit` passed, then cuts the rest.
    /// Returns how many were cut.
    pub async fn drain(&self, limit: Duration) -> usize {
        self.shared.asked.cancel();
        let _ = tokio::time::timeout(limit, self.none()).await;
        let cut = self.count();
        self.shared.cut.cancel();
        // What was cut ends in its next step; give it the chance to write its last log line.
        let _ = tokio::time::timeout(Duration::from_secs(1), self.none()).await;
        cut
    }

    async fn none(&self) {
        loop {
            let changed = self.shared.none_left.notified();
            if self.count() == 0 {
                return;
            }
            changed.await;
        }
    }
}

impl Live {
    /// Keeps this as long as the connection lives.
    pub fn holding(mut self, held: impl Any + Send + Sync) -> Self {
        self.held = Some(Arc::new(held));
        self
    }

    /// What it holds, for what comes of the connection and outlives it: an upgraded one.
    pub fn held(&self) -> Option<Held> {
        self.held.clone()
    }

    /// Draining has begun: finish the request at hand, take no other.
    pub async fn asked_to_end(&self) {
        self.shared.asked.cancelled().await;
    }

    /// The same, and what was on its way by then has had `time` to come.
    pub async fn asked_to_end_for(&self, time: Duration) {
        self.asked_to_end().await;
        tokio::time::sleep(time).await;
    }

    /// The same as a state.
    pub fn is_asked_to_end(&self) -> bool {
        self.shared.asked.is_cancelled()
    }

    /// The drain's time is over: drop everything.
    pub async fn cut(&self) {
        self.shared.cut.cancelled().await;
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        if self.shared.live.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.shared.none_left.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn waits_for_the_last_and_cuts_what_stays() {
        let drain = Drain::new();
        let (one, two) = (drain.live(), drain.live());
        let begun = tokio::time::Instant::now();
        tokio::spawn(async move {
            one.asked_to_end().await;
            tokio::time::sleep(Duration::from_secs(3)).await;
        });
        let stubborn = tokio::spawn(async move { two.cut().await });
        assert_eq!(drain.drain(Duration::from_secs(30)).await, 1);
        assert!(begun.elapsed() >= Duration::from_secs(30));
        stubborn.await.unwrap();
        assert_eq!(drain.count(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn ends_at_once_when_nobody_is_left() {
        let drain = Drain::new();
        let live = drain.live();
        let begun = tokio::time::Instant::now();
        tokio::spawn(async move {
            live.asked_to_end().await;
            drop(live);
        });
        assert_eq!(drain.drain(Duration::from_secs(30)).await, 0);
        assert!(begun.elapsed() < Duration::from_secs(1));
    }
}
