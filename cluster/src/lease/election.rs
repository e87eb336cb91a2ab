//! The election, without IO: what a replica sees of the lease, and what it may conclude.

use super::Leading;
use std::time::{Duration, Instant};

/// The lease as the API server shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Record {
    /// `NAME_PROCESS`; empty once released.
    pub(super) holder: String,
    /// `leaseTransitions`.
    pub(super) term: u64,
    pub(super) duration: Duration,
    /// `resourceVersion`: any write changes it.
    pub(super) version: String,
}

/// A write of the lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wish {
    pub(super) holder: String,
    pub(super) term: u64,
    /// It changes hands.
    pub(super) takes: bool,
}

pub(super) struct Election {
    name: String,
    holder: String,
    lease: Duration,
    /// The lease, and when it was first seen so: another's clock is never compared with ours.
    seen: Option<(Record, Instant)>,
    leading: Option<Leading>,
}

impl Election {
    pub(super) fn new(name: &str, process: &str, lease: Duration) -> Self {
        let holder = format!("{name}_{process}");
        Self { name: name.into(), holder, lease, seen: None, leading: None }
    }

    /// The lease was read.
    pub(super) fn observe(&mut self, now: Instant, record: Option<Record>) {
        let Some(record) = record else {
            self.seen = None;
            self.leading = None;
            return;
        };
        if record.holder != self.holder {
            self.leading = None;
        }
        if self.seen.as_ref().is_none_or(|(seen, _)| *seen != record) {
            self.seen = Some((record, now));
        }
    }

    /// What to write now, if anything.
    pub(super) fn wish(&self, now: Instant) -> Option<Wish> {
        let wish = |term, takes| Some(Wish { holder: self.holder.clone(), term, takes });
        let Some((record, since)) = &self.seen else { return wish(1, true) };
        if record.holder == self.holder {
            return wish(record.term, false);
        }
        let free = record.holder.is_empty();
        // Our own former process: its name is ours alone, and it is gone.
        let former = record.holder.rsplit_once('_').is_some_and(|(name, _)| name == self.name);
        let expired = now.saturating_duration_since(*since) >= record.duration;
        if free || former || expired { wish(record.term + 1, true) } else { None }
    }

    /// What to write at the end: nobody holds it.
    pub(super) fn release(&self, _now: Instant) -> Option<Wish> {
        let (record, _) = self.seen.as_ref()?;
        (record.holder == self.holder).then(|| Wish {
            holder: String::new(),
            term: record.term,
            takes: false,
        })
    }

    /// A wish was granted; it was asked for at `asked`.
    pub(super) fn won(&mut self, asked: Instant, now: Instant, record: Record, wish: &Wish) {
        self.leading = (!wish.holder.is_empty() && record.holder == self.holder)
            .then(|| Leading { term: wish.term, until: asked + self.lease });
        self.seen = Some((record, now));
    }

    /// Whether this replica leads at `now`.
    pub(super) fn leading(&self, now: Instant) -> Option<Leading> {
        self.leading.filter(|leading| now < leading.until)
    }
}

#[cfg(test)]
#[path = "election_tests.rs"]
mod tests;
