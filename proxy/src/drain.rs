//! A listener's end: unready, no new connections, the old ones get their time, then a cut.

use std::time::Duration;

/// Counts live connections and ends them. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Drain {}

/// One live connection; gone when dropped.
#[derive(Debug)]
pub struct Live {}

impl Drain {
    pub fn new() -> Self {
        todo!("engine")
    }

    /// Registers a connection; hold the guard as long as it lives.
    pub fn live(&self) -> Live {
        todo!("engine")
    }

    /// Asks connections to end, waits until none lives or `limit` passed, then cuts the rest.
    /// Returns how many were cut.
    pub async fn drain(&self, limit: Duration) -> usize {
        let _ = limit;
        todo!("engine")
    }
}

impl Live {
    /// Draining has begun: finish the request at hand, take no other.
    pub async fn asked_to_end(&self) {
        todo!("engine")
    }

    /// The drain's time is over: drop everything.
    pub async fn cut(&self) {
        todo!("engine")
    }
}

impl Default for Drain {
    fn default() -> Self {
        Self::new()
    }
}
