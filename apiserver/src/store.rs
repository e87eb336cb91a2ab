//! Objects by resource, namespace and name under one revision counter, with a bounded history for
//! watches, and a file where one is given.

use crate::journal::Journal;
use crate::object::{self, Object};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use tokio::sync::watch;

/// Changes that are kept for watches, and the sum of their sizes.
const HISTORY: usize = 10_000;
const HISTORY_BYTES: usize = 32 << 20;

/// `group/plural`.
pub(crate) type Resource = Arc<str>;

/// Namespace (empty: cluster scope) and name.
pub(crate) type Key = (String, String);

/// One object as it is stored, and as it is sent.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) value: Object,
    pub(crate) revision: u64,
    pub(crate) json: Bytes,
}

/// One change, as watches see it.
#[derive(Debug)]
pub(crate) struct Event {
    pub(crate) revision: u64,
    pub(crate) resource: Resource,
    pub(crate) before: Option<Arc<Entry>>,
    pub(crate) after: Option<Arc<Entry>>,
}

/// What is to become of one object; `None` deletes it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Change {
    #[serde(rename = "r")]
    pub(crate) resource: Resource,
    #[serde(rename = "k")]
    pub(crate) key: Key,
    #[serde(rename = "v")]
    pub(crate) value: Option<Object>,
}

/// A record of the file: changes with consecutive revisions, the last being `revision`.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    revision: u64,
    /// Objects keep the revisions they have: the file was rewritten.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    kept: bool,
    changes: Vec<Change>,
}

#[derive(Debug, Default)]
struct State {
    revision: u64,
    /// Watches may begin from here on.
    oldest: u64,
    objects: BTreeMap<Resource, BTreeMap<Key, Arc<Entry>>>,
    history: VecDeque<Arc<Event>>,
    history_bytes: usize,
}

/// The store. Reading never waits for the disk.
#[derive(Debug)]
pub(crate) struct Store {
    state: RwLock<State>,
    gate: Mutex<Option<Journal>>,
    revision: watch::Sender<u64>,
}

/// Asked for changes that are no longer kept; the oldest revision that is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct TooOld(pub u64);

impl Store {
    /// Memory only. `first` is above any revision an earlier life may have given out.
    pub(crate) fn in_memory(first: u64) -> Self {
        let state = State { revision: first, oldest: first, ..State::default() };
        Self {
            state: RwLock::new(state),
            gate: Mutex::new(None),
            revision: watch::Sender::new(first),
        }
    }

    /// On a file, which is made where there is none.
    pub(crate) fn open(path: &Path, first: u64) -> anyhow::Result<Self> {
        let (journal, records) = Journal::open(path)?;
        let mut state = State::default();
        for payload in records {
            let record: Record = serde_json::from_slice(&payload).map_err(|error| {
                anyhow::anyhow!(
                    "ISM7106 a record of the store {} is whole but is not ours: {error}. Fix: open it with the version that wrote it",
                    path.display()
                )
            })?;
            state.replay(record);
        }
        if state.revision == 0 {
            (state.revision, state.oldest) = (first, first);
        }
        let revision = watch::Sender::new(state.revision);
        Ok(Self { state: RwLock::new(state), gate: Mutex::new(Some(journal)), revision })
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn get(&self, resource: &str, key: &Key) -> Option<Arc<Entry>> {
        self.read().objects.get(resource)?.get(key).cloned()
    }

    /// Objects of a resource in key order, of one namespace or all, and the revision they are of.
    pub(crate) fn list(&self, resource: &str, namespace: Option<&str>) -> (Vec<Arc<Entry>>, u64) {
        let state = self.read();
        let Some(all) = state.objects.get(resource) else { return (vec![], state.revision) };
        let found = match namespace {
            None => all.values().cloned().collect(),
            Some(namespace) => all
                .range((namespace.to_owned(), String::new())..)
                .take_while(|((at, _), _)| at == namespace)
                .map(|(_, entry)| entry.clone())
                .collect(),
        };
        (found, state.revision)
    }

    /// Resources that hold anything.
    pub(crate) fn resources(&self) -> Vec<Resource> {
        let state = self.read();
        state.objects.iter().filter(|(_, all)| !all.is_empty()).map(|(r, _)| r.clone()).collect()
    }

    pub(crate) fn revision(&self) -> u64 {
        self.read().revision
    }

    /// Changes after `revision`, at most `most`, and up to where they were looked for.
    pub(crate) fn since(
        &self,
        revision: u64,
        most: usize,
    ) -> Result<(Vec<Arc<Event>>, u64), TooOld> {
        let state = self.read();
        if revision < state.oldest {
            return Err(TooOld(state.oldest));
        }
        let from = state.history.partition_point(|event| event.revision <= revision);
        let found: Vec<_> = state.history.range(from..).take(most).cloned().collect();
        let end = if found.len() < most { state.revision } else { found[most - 1].revision };
        Ok((found, end))
    }

    /// Told of every new revision.
    pub(crate) fn news(&self) -> watch::Receiver<u64> {
        self.revision.subscribe()
    }

    /// The right to write; one at a time.
    pub(crate) fn writer(&self) -> Writer<'_> {
        let gate = self.gate.lock().unwrap_or_else(PoisonError::into_inner);
        Writer { store: self, gate }
    }
}

/// Whoever holds it decides on what nobody else changes meanwhile.
pub(crate) struct Writer<'a> {
    store: &'a Store,
    gate: MutexGuard<'a, Option<Journal>>,
}

impl Writer<'_> {
    /// Makes all changes or none, on disk first. Returns what the objects became; of a deleted one,
    /// its last state at the revision of its end.
    pub(crate) fn commit(&mut self, mut changes: Vec<Change>) -> Result<Vec<Arc<Entry>>, String> {
        let first = self.store.revision() + 1;
        for (revision, change) in (first..).zip(&mut changes) {
            if let Some(value) = &mut change.value {
                object::set_meta(value, "resourceVersion", json!(revision.to_string()));
            }
        }
        let revision = first + changes.len() as u64 - 1;
        let record = Record { revision, kept: false, changes };
        if let Some(journal) = &mut *self.gate {
            let payload = serde_json::to_vec(&record).map_err(|error| error.to_string())?;
            journal.append(&payload)?;
        }
        let done = {
            let mut state = self.store.state.write().unwrap_or_else(PoisonError::into_inner);
            state.replay(record)
        };
        self.store.revision.send_replace(revision);
        self.compact();
        Ok(done)
    }

    fn compact(&mut self) {
        let Some(journal) = self.gate.as_mut().filter(|journal| journal.is_long()) else { return };
        let state = self.store.read();
        let records = state.objects.iter().flat_map(|(resource, all)| {
            all.iter().map(|(key, entry)| {
                let value = Some(entry.value.clone());
                Change { resource: resource.clone(), key: key.clone(), value }
            })
        });
        let revision = state.revision;
        // Revisions of deleted objects count too: the last record sets the counter.
        let last = Record { revision, kept: true, changes: vec![] };
        let records = records
            .map(|change| Record { revision, kept: true, changes: vec![change] })
            .chain([last]);
        let payloads = records.filter_map(|record| serde_json::to_vec(&record).ok());
        if let Err(error) = journal.rewrite(payloads) {
            tracing::warn!(%error, "the store could not be rewritten; it goes on growing");
        }
    }
}

impl State {
    fn replay(&mut self, record: Record) -> Vec<Arc<Entry>> {
        let count = record.changes.len() as u64;
        if self.revision == 0 {
            self.oldest = if record.kept { record.revision } else { record.revision - count };
        }
        let first = record.revision + 1 - count;
        let mut done = vec![];
        for (revision, change) in (first..).zip(record.changes) {
            let Change { resource, key, value } = change;
            let after = value.map(|value| {
                let own = object::text(&value, &["metadata", "resourceVersion"]).parse();
                let revision = if record.kept { own.unwrap_or(revision) } else { revision };
                entry(value, revision)
            });
            let all = self.objects.entry(resource.clone()).or_default();
            let before = match &after {
                Some(entry) => all.insert(key, entry.clone()),
                None => all.remove(&key),
            };
            let gone = before.as_ref().map(|entry| ended(entry, revision));
            done.extend(after.clone().or(gone));
            if !record.kept {
                self.remember(Event { revision, resource, before, after });
            }
        }
        self.revision = record.revision;
        done
    }

    fn remember(&mut self, event: Event) {
        self.history_bytes += size(&event);
        self.history.push_back(Arc::new(event));
        while self.history.len() > HISTORY || self.history_bytes > HISTORY_BYTES {
            let Some(old) = self.history.pop_front() else { break };
            self.history_bytes -= size(&old);
            self.oldest = old.revision;
        }
    }
}

fn size(event: &Event) -> usize {
    event.after.as_ref().or(event.before.as_ref()).map_or(0, |entry| entry.json.len()) + 256
}

fn entry(value: Object, revision: u64) -> Arc<Entry> {
    let json = serde_json::to_vec(&value).expect("JSON values have text").into();
    Arc::new(Entry { value, revision, json })
}

/// An object that was deleted, at the revision of its end.
pub(crate) fn ended(last: &Entry, revision: u64) -> Arc<Entry> {
    let mut value = last.value.clone();
    object::set_meta(&mut value, "resourceVersion", json!(revision.to_string()));
    entry(value, revision)
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
