//! A watch: what changed after a revision, as one client may see it, line by line.

use crate::object::Object;
use crate::refusal::Refusal;
use crate::server::{Server, Start, Watch};
use crate::store::{Entry, Event, ended};
use crate::view::View;
use bytes::{Bytes, BytesMut};
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch::Receiver;
use tokio::time::Instant;

/// Changes looked at in one step, and bytes gathered in it: what waits for a slow client stays small.
const STEP: usize = 200;
const STEP_BYTES: usize = 256 << 10;

/// Longest life of a watch that names none, and the pause between two bookmarks.
const LIFE: Duration = Duration::from_secs(45 * 60);
const BOOKMARKS: Duration = Duration::from_secs(30);

/// One client's watch. It holds a revision, not a queue: who reads nothing costs nothing, and who comes back after
/// the history has moved on is told so.
pub(crate) struct Stream {
    server: Arc<Server>,
    watch: Watch,
    view: View,
    news: Receiver<u64>,
    /// Everything up to here was told.
    told: u64,
    marked: u64,
    /// What is there and was not told yet.
    first: VecDeque<Arc<Entry>>,
    /// A bookmark follows it.
    announce: bool,
    end: Instant,
    bookmark: Instant,
    over: bool,
}

impl Stream {
    pub(crate) fn new(server: Arc<Server>, watch: Watch, view: View) -> Self {
        // Subscribed before anything is read: no change falls in between.
        let news = server.store.news();
        let (first, told) = match watch.from {
            Start::After(revision) => (VecDeque::new(), revision),
            Start::Now { .. } => {
                let namespace = Some(&*watch.namespace).filter(|namespace| !namespace.is_empty());
                let (entries, revision) = server.store.list(&watch.kind.resource, namespace);
                (entries.into(), revision)
            }
        };
        let announce = watch.from == (Start::Now { marked: true });
        let now = Instant::now();
        let life = watch.seconds.map_or(LIFE, |seconds| Duration::from_secs(seconds).min(2 * LIFE));
        Self {
            server,
            watch,
            view,
            news,
            told,
            marked: told,
            first,
            announce,
            end: now + life,
            bookmark: now + BOOKMARKS,
            over: false,
        }
    }

    /// The next lines; `None` when it is over. Nothing is lost where the future is dropped.
    pub(crate) async fn next(&mut self) -> Option<Bytes> {
        loop {
            if self.over || Instant::now() >= self.end {
                return None;
            }
            if let Some(lines) = self.begin() {
                return Some(lines);
            }
            self.news.mark_unchanged();
            match self.server.store.since(self.told, STEP) {
                Ok((events, upto)) => {
                    let mut lines = BytesMut::new();
                    self.told = upto;
                    for event in &events {
                        self.tell(event, &mut lines);
                        if lines.len() > STEP_BYTES {
                            self.told = event.revision;
                            break;
                        }
                    }
                    if !lines.is_empty() {
                        self.marked = self.told;
                        return Some(lines.freeze());
                    }
                    if events.len() == STEP {
                        continue;
                    }
                }
                Err(too_old) => {
                    self.over = true;
                    let status = Refusal::expired(self.told, too_old.0).status();
                    return Some(line("ERROR", &status));
                }
            }
            tokio::select! {
                changed = self.news.changed() => if changed.is_err() { return None },
                () = tokio::time::sleep_until(self.end) => {
                    self.over = true;
                    // A last word, so that the next watch begins here.
                    return (self.watch.bookmarks && self.marked < self.told).then(|| self.mark(false));
                }
                () = tokio::time::sleep_until(self.bookmark), if self.watch.bookmarks => {
                    self.bookmark = Instant::now() + BOOKMARKS;
                    if self.marked < self.told {
                        return Some(self.mark(false));
                    }
                }
            }
        }
    }

    /// The next lines of what is there; `None` when all was told.
    fn begin(&mut self) -> Option<Bytes> {
        let mut lines = BytesMut::new();
        while lines.len() < STEP_BYTES {
            let Some(entry) = self.first.pop_front() else { break };
            if self.watch.selector.fits(&entry.value) {
                lines.extend_from_slice(&self.line("ADDED", &entry.value));
            }
        }
        if self.first.is_empty() && std::mem::take(&mut self.announce) {
            lines.extend_from_slice(&self.mark(true));
        }
        (!lines.is_empty()).then(|| lines.freeze())
    }

    fn tell(&mut self, event: &Event, lines: &mut BytesMut) {
        if event.resource != self.watch.kind.resource {
            return;
        }
        let fits = |entry: &&Arc<Entry>| {
            let namespace = crate::object::namespace(&entry.value);
            (self.watch.namespace.is_empty() || self.watch.namespace == namespace)
                && self.watch.selector.fits(&entry.value)
        };
        let before = event.before.as_ref().filter(fits);
        let after = event.after.as_ref().filter(fits);
        let (word, entry) = match (before, after) {
            (None, Some(after)) => ("ADDED", after.clone()),
            (Some(_), Some(after)) => ("MODIFIED", after.clone()),
            (Some(before), None) => ("DELETED", ended(before, event.revision)),
            (None, None) => return,
        };
        let line = self.line(word, &entry.value);
        lines.extend_from_slice(&line);
    }

    fn line(&mut self, word: &str, object: &Object) -> Bytes {
        line(word, &self.view.streamed(&self.watch.kind, object))
    }

    fn mark(&mut self, initial: bool) -> Bytes {
        self.marked = self.told;
        let mut metadata =
            json!({"resourceVersion": self.told.to_string(), "creationTimestamp": null});
        if initial {
            metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let kind = &self.watch.kind;
        let mark: Value =
            json!({"kind": kind.kind, "apiVersion": kind.api_version(), "metadata": metadata});
        line("BOOKMARK", &self.view.marked(kind, mark))
    }
}

fn line(word: &str, object: &Value) -> Bytes {
    let mut line = BytesMut::new();
    line.extend_from_slice(format!("{{\"type\":{word:?},\"object\":").as_bytes());
    line.extend_from_slice(object.to_string().as_bytes());
    line.extend_from_slice(b"}\n");
    line.freeze()
}
