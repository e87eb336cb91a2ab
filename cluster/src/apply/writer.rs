//! What to write when, without IO: desired against standing, at most five writes a second and
//! object, the first at once.

use super::object::Desired;
use crate::follow::Change;
use mesh::finding::ObjectRef;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Between two writes of one object; what changes meanwhile is merged.
pub(super) const INTERVAL: Duration = Duration::from_millis(200);
/// After an error; doubled up to [`RETRY_MAX`].
const RETRY_MIN: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(30);

/// What stands in the API server under one name.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Standing {
    pub(super) version: String,
    pub(super) uid: String,
    pub(super) term: Option<u64>,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) annotations: BTreeMap<String, String>,
    pub(super) spec: Value,
}

/// A request to make.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Act {
    pub(super) object: ObjectRef,
    pub(super) write: Write,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Write {
    Create(Value),
    Update(Value),
    Delete {
        uid: String,
        version: String,
    },
    /// After a conflict: what stands?
    Read,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wish {
    Create,
    Change,
    /// Only the term is old.
    Stamp,
    Delete,
    Read,
}

/// How a request went.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Outcome {
    /// Written; this stands now.
    Stands(Standing),
    /// Read; this stands.
    Seen(Standing),
    /// Read; nothing of ours stands there.
    Missing,
    /// Deleted.
    Gone,
    /// Somebody wrote in between.
    Conflict(String),
    /// The API server says no.
    Refused(String),
    /// No answer: it may have happened.
    Unknown(String),
    /// Not sent, the lease was about to end.
    Fenced,
}

/// An object the API server refuses.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ObjectProblem {
    pub object: ObjectRef,
    pub why: String,
}

#[derive(Default)]
pub(super) struct Writer {
    desired: Option<Arc<Desired>>,
    standing: BTreeMap<ObjectRef, Standing>,
    /// Kinds not listed yet.
    unlisted: BTreeSet<String>,
    tracks: BTreeMap<ObjectRef, Track>,
    /// Objects to look at; all others are as they should be.
    dirty: BTreeSet<ObjectRef>,
    term: Option<u64>,
}

/// What happened to one object lately.
#[derive(Default)]
struct Track {
    in_flight: bool,
    /// Not before.
    next: Option<Instant>,
    failures: u32,
    reread: bool,
    problem: Option<String>,
}

impl Writer {
    pub(super) fn new(kinds: [&str; 3]) -> Self {
        Self { unlisted: kinds.map(str::to_owned).into(), ..Self::default() }
    }

    pub(super) fn wants(&mut self, desired: Option<Arc<Desired>>) {
        let touched = |all: &Option<Arc<Desired>>| -> Vec<ObjectRef> {
            all.iter().flat_map(|one| one.objects.keys().cloned()).collect()
        };
        // Whatever is named before, now or standing: comparing is cheap, requests are not.
        self.dirty.extend(touched(&self.desired));
        self.dirty.extend(touched(&desired));
        self.dirty.extend(self.standing.keys().cloned());
        self.desired = desired;
    }

    pub(super) fn stands(&mut self, kind: &str, change: Change<Option<(ObjectRef, Standing)>>) {
        match change {
            Change::Replaced(all) => {
                self.unlisted.remove(kind);
                let gone: Vec<ObjectRef> =
                    self.standing.keys().filter(|object| object.kind == kind).cloned().collect();
                self.dirty.extend(gone.iter().cloned());
                for object in gone {
                    self.standing.remove(&object);
                }
                for (object, standing) in all.into_iter().flatten() {
                    self.dirty.insert(object.clone());
                    self.standing.insert(object, standing);
                }
                // What was never there is wanted as well.
                let wanted = self.desired.iter().flat_map(|one| one.objects.keys());
                self.dirty.extend(wanted.filter(|object| object.kind == kind).cloned());
            }
            Change::Applied(Some((object, standing))) => {
                self.dirty.insert(object.clone());
                let newer = self.standing.get(&object).is_none_or(|known| {
                    known.uid != standing.uid || !older(&standing.version, &known.version)
                });
                // A watch may tell what stood before our own write: that is no news.
                if newer {
                    self.standing.insert(object, standing);
                }
            }
            Change::Deleted(Some((object, standing))) => {
                let same =
                    self.standing.get(&object).is_some_and(|known| known.uid == standing.uid);
                if same {
                    self.standing.remove(&object);
                    self.dirty.insert(object);
                }
            }
            Change::Applied(None) | Change::Deleted(None) => {}
        }
    }

    /// At most `room` requests to make now, and when to ask again.
    pub(super) fn step(
        &mut self,
        now: Instant,
        term: u64,
        room: usize,
    ) -> (Vec<Act>, Option<Instant>) {
        if self.term != Some(term) {
            // A new leader first re-stamps what it owns (decision 4).
            self.term = Some(term);
            self.dirty.extend(self.standing.keys().cloned());
        }
        let Some(desired) = self.desired.clone().filter(|_| self.synced()) else {
            return (Vec::new(), None);
        };
        let mut urgent = Vec::new();
        let mut stamps = Vec::new();
        let mut settled = Vec::new();
        let mut wake: Option<Instant> = None;
        for object in &self.dirty {
            let track = self.tracks.get(object);
            if track.is_some_and(|track| track.in_flight) {
                continue; // Its end wakes us.
            }
            let Some(wish) = self.wish(&desired, object, term) else {
                settled.push(object.clone());
                continue;
            };
            if let Some(next) = track.and_then(|track| track.next).filter(|next| *next > now) {
                wake = Some(wake.map_or(next, |wake| wake.min(next)));
                continue;
            }
            if wish != Wish::Stamp {
                urgent.push((object.clone(), wish));
            } else if stamps.len() < room {
                stamps.push((object.clone(), wish));
            }
            // The rest is looked at when one of these is done.
            if urgent.len() >= room {
                break;
            }
        }
        for object in settled {
            self.dirty.remove(&object);
            if let Some(track) = self.tracks.get_mut(&object) {
                (track.problem, track.failures) = (None, 0);
                if track.next.is_none_or(|next| next <= now) {
                    self.tracks.remove(&object);
                }
            }
        }
        urgent.extend(stamps);
        urgent.truncate(room);
        let mut acts = Vec::new();
        for (object, wish) in urgent {
            let write = match (wish, desired.objects.get(&object), self.standing.get(&object)) {
                (Wish::Create, Some(body), _) => Write::Create(body.json(&object, None, term)),
                (Wish::Change | Wish::Stamp, Some(body), Some(standing)) => {
                    Write::Update(body.json(&object, Some(&standing.version), term))
                }
                (Wish::Delete, _, Some(standing)) => {
                    let (uid, version) = (standing.uid.clone(), standing.version.clone());
                    Write::Delete { uid, version }
                }
                (Wish::Read | Wish::Create | Wish::Change | Wish::Stamp | Wish::Delete, _, _) => {
                    Write::Read
                }
            };
            let track = self.tracks.entry(object.clone()).or_default();
            track.in_flight = true;
            track.reread = false;
            track.next = Some(now + INTERVAL);
            acts.push(Act { object, write });
        }
        (acts, wake)
    }

    /// What would make `object` right; `None` if it is.
    fn wish(&self, desired: &Desired, object: &ObjectRef, term: u64) -> Option<Wish> {
        if self.tracks.get(object).is_some_and(|track| track.reread) {
            return Some(Wish::Read);
        }
        match (desired.objects.get(object), self.standing.get(object)) {
            (Some(_), None) => Some(Wish::Create),
            (Some(body), Some(standing)) => {
                let Standing { labels, annotations, spec, .. } = standing;
                if !body.stands_in(&object.kind, labels, annotations, spec) {
                    return Some(Wish::Change);
                }
                (standing.term != Some(term)).then_some(Wish::Stamp)
            }
            (None, Some(_)) if desired.deletes(object) => Some(Wish::Delete),
            (None, _) => None,
        }
    }

    pub(super) fn done(&mut self, now: Instant, object: &ObjectRef, outcome: Outcome) {
        let track = self.tracks.entry(object.clone()).or_default();
        track.in_flight = false;
        self.dirty.insert(object.clone());
        let failed = |track: &mut Track, why: Option<String>| {
            let delay = RETRY_MIN.saturating_mul(1 << track.failures.min(8)).min(RETRY_MAX);
            track.failures += 1;
            track.next = Some(now + delay);
            track.problem = why;
        };
        match outcome {
            Outcome::Stands(standing) | Outcome::Seen(standing) => {
                (track.failures, track.problem) = (0, None);
                self.standing.insert(object.clone(), standing);
            }
            Outcome::Missing | Outcome::Gone => {
                (track.failures, track.problem) = (0, None);
                self.standing.remove(object);
            }
            Outcome::Conflict(why) => {
                // Twice in a row is somebody who fights over it, and worth telling.
                let told = (track.failures > 0).then_some(why);
                failed(track, told);
                track.reread = true;
                track.next = Some(now + INTERVAL);
            }
            Outcome::Refused(why) => failed(track, Some(why)),
            Outcome::Unknown(why) => {
                failed(track, Some(why));
                track.reread = true;
            }
            Outcome::Fenced => {}
        }
    }

    /// The spec of an ExportedService that stands.
    pub(super) fn export_of(&self, object: &ObjectRef) -> Option<&Value> {
        let standing = self.standing.get(object).filter(|_| object.kind == super::object::EXPORT);
        standing.map(|standing| &standing.spec)
    }

    pub(super) fn synced(&self) -> bool {
        self.unlisted.is_empty()
    }

    pub(super) fn pending(&self) -> usize {
        self.dirty.len()
    }

    pub(super) fn problems(&self) -> Vec<ObjectProblem> {
        let problem = |(object, track): (&ObjectRef, &Track)| {
            Some(ObjectProblem { object: object.clone(), why: track.problem.clone()? })
        };
        self.tracks.iter().filter_map(problem).collect()
    }
}

/// Versions of one object compare as numbers (KEP-5504); what is no number is never older.
fn older(a: &str, b: &str) -> bool {
    match (a.parse::<u128>(), b.parse::<u128>()) {
        (Ok(a), Ok(b)) => a < b,
        (Ok(_) | Err(_), _) => false,
    }
}

#[cfg(test)]
#[path = "writer_tests.rs"]
mod tests;
