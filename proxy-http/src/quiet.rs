//! When a connection between requests may be closed under its client: HTTP/1.1 cannot say that no other
//! request is taken except with an answer, and what is on its way is lost.

use crate::head_timer::Reads;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::time::sleep;

/// A connection on which nothing came for so long is closed: longer than a request travels between any
/// two regions, so that one which was sent before would be here.
pub(crate) const QUIET: Duration = Duration::from_secs(1);

/// The requests of one connection.
#[derive(Debug, Clone)]
pub(crate) struct Requests {
    reads: Reads,
    counts: Arc<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    begun: AtomicU64,
    ended: AtomicU64,
}

/// One request, until its answer has ended.
#[derive(Debug)]
pub(crate) struct Asked(Arc<Counts>);

impl Drop for Asked {
    fn drop(&mut self) {
        self.0.ended.fetch_add(1, Ordering::Relaxed);
    }
}

impl Requests {
    /// Of the connection whose reads these are.
    pub(crate) fn new(reads: Reads) -> Self {
        Self { reads, counts: Arc::default() }
    }

    pub(crate) fn begin(&self) -> Asked {
        self.counts.begun.fetch_add(1, Ordering::Relaxed);
        Asked(self.counts.clone())
    }

    /// Returns once no request is under way and nothing was read for [`QUIET`], which it may notice as
    /// much later.
    pub(crate) async fn quiet(&self) {
        loop {
            let before = self.seen();
            sleep(QUIET).await;
            let (reads, begun, ended) = self.seen();
            if (reads, begun, ended) == before && begun == ended {
                return;
            }
        }
    }

    /// Reads, and requests that began and that ended.
    fn seen(&self) -> (u64, u64, u64) {
        let Counts { begun, ended } = &*self.counts;
        (self.reads.count(), begun.load(Ordering::Relaxed), ended.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observed::Observer as _;
    use tokio::time::Instant;

    #[tokio::test(start_paused = true)]
    async fn each_byte_and_each_request_is_waited_for() {
        let mut reads = Reads::default();
        let requests = Requests::new(reads.clone());
        let begun = Instant::now();
        let asked = requests.begin();
        let client = async move {
            sleep(QUIET * 7 / 2).await;
            drop(asked);
            // The head of another begins to come.
            sleep(QUIET).await;
            reads.read();
        };
        tokio::join!(requests.quiet(), client);
        assert_eq!(begun.elapsed(), QUIET * 6);
    }
}
