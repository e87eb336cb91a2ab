//! Whether this process can serve, and if not, what it still waits for.

use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::watch;

/// Named conditions; ready when all hold. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Readiness {
    waits: Arc<watch::Sender<BTreeMap<String, String>>>,
}

impl Readiness {
    pub fn new() -> Self {
        Self { waits: Arc::new(watch::Sender::new(BTreeMap::new())) }
    }

    /// From now on this process is not ready until [`Readiness::done`] for `what`;
    /// `why` is a short sentence for people.
    pub fn wait_for(&self, what: &str, why: &str) {
        self.waits.send_if_modified(|waits| {
            waits.insert(what.into(), why.into()).is_none_or(|before| before != why)
        });
    }

    pub fn done(&self, what: &str) {
        self.waits.send_if_modified(|waits| waits.remove(what).is_some());
    }

    /// What is still awaited, by name; empty when ready.
    pub fn awaited(&self) -> BTreeMap<String, String> {
        self.waits.borrow().clone()
    }

    pub fn is_ready(&self) -> bool {
        self.waits.borrow().is_empty()
    }

    /// Returns once ready.
    pub async fn ready(&self) {
        let mut seen = self.waits.subscribe();
        // The sender lives in `self`, so waiting cannot fail.
        let _ = seen.wait_for(BTreeMap::is_empty).await;
    }
}

impl Default for Readiness {
    fn default() -> Self {
        Self::new()
    }
}
