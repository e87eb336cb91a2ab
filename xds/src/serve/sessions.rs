//! Who is connected, what was sent to whom, and what they said to it.

use crate::codec;
use crate::session::server::{Limits, SEND_ORDER, ServerSession, TypeStatus};
use mesh::name::Identity;
use mesh::program::ResourceKind;
use mesh::world::View;
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

/// All open sessions, for `/sessions` and `isthmus proxy-status`.
#[derive(Debug, Clone, Default)]
pub struct Sessions {
    registry: Arc<Mutex<Registry>>,
    counts: Arc<Counts>,
}

/// What was sent and refused, since the start and over all streams.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counted {
    /// Responses sent.
    pub pushes: u64,
    /// Responses refused by a proxy (NACK).
    pub rejects: u64,
}

/// Counted as it happens, without a lock.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pushes: [AtomicU64; SEND_ORDER.len()],
    rejects: [AtomicU64; SEND_ORDER.len()],
    slowed: AtomicU64,
}

impl Counts {
    fn add(to: &[AtomicU64; SEND_ORDER.len()], type_url: &str) {
        let kind = codec::kind_of(type_url);
        if let Some(place) = SEND_ORDER.iter().position(|of| Some(*of) == kind) {
            to[place].fetch_add(1, Relaxed);
        }
    }

    pub(super) fn pushed(&self, type_url: &str) {
        Self::add(&self.pushes, type_url);
    }

    pub(super) fn rejected(&self, type_url: &str) {
        Self::add(&self.rejects, type_url);
    }

    pub(super) fn slowed(&self) {
        self.slowed.fetch_add(1, Relaxed);
    }
}

/// One proxy's stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Session {
    /// Node id.
    pub proxy: String,
    pub identity: Identity,
    pub view: View,
    /// How long it has been open, milliseconds.
    pub age_ms: u64,
    pub types: Vec<TypeStatus>,
}

/// Streams of all proxies together.
const STREAMS_MAX: usize = 16_384;
/// Streams of one pod: one in use, and room for those that died unnoticed.
const STREAMS_PER_WORKLOAD: usize = 4;

#[derive(Debug, Default)]
struct Registry {
    next: u64,
    open: BTreeMap<u64, Arc<Open>>,
}

#[derive(Debug)]
pub(super) struct Open {
    proxy: String,
    since: Instant,
    state: Mutex<State>,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) view: View,
    pub(super) session: ServerSession,
}

/// Removes its session when it goes.
#[derive(Debug)]
pub(super) struct Registration {
    sessions: Sessions,
    id: u64,
    open: Arc<Open>,
}

impl Sessions {
    /// By type.
    pub fn counted(&self) -> BTreeMap<ResourceKind, Counted> {
        let Counts { pushes, rejects, .. } = &*self.counts;
        let both = pushes.iter().zip(rejects);
        let both = both.map(|(pushes, rejects)| Counted {
            pushes: pushes.load(Relaxed),
            rejects: rejects.load(Relaxed),
        });
        SEND_ORDER.into_iter().zip(both).collect()
    }

    /// How often a stream was left unread for a moment, since it asked too often.
    pub fn slowed(&self) -> u64 {
        self.counts.slowed.load(Relaxed)
    }

    /// Sorted by proxy.
    pub fn list(&self) -> Vec<Session> {
        let open: Vec<_> = self.registry().open.values().map(Arc::clone).collect();
        let now = Instant::now();
        let mut list: Vec<Session> = open
            .iter()
            .map(|open| {
                let state = open.state();
                let age = now.saturating_duration_since(open.since);
                Session {
                    proxy: open.proxy.clone(),
                    identity: state.view.identity.clone(),
                    view: state.view.clone(),
                    age_ms: u64::try_from(age.as_millis()).unwrap_or(u64::MAX),
                    types: state.session.status(now),
                }
            })
            .collect();
        list.sort_by(|a, b| a.proxy.cmp(&b.proxy));
        list
    }

    /// A sentence where there are too many.
    pub(super) fn open(
        &self,
        proxy: String,
        view: View,
        limits: Limits,
    ) -> Result<Registration, String> {
        let mut registry = self.registry();
        if registry.open.len() >= STREAMS_MAX {
            return Err(format!("ISM6034 there are {STREAMS_MAX} xDS streams already"));
        }
        let same = |open: &&Arc<Open>| open.proxy == proxy;
        if registry.open.values().filter(same).count() >= STREAMS_PER_WORKLOAD {
            return Err(format!("ISM6035 {proxy} has {STREAMS_PER_WORKLOAD} xDS streams already"));
        }
        let id = registry.next;
        registry.next += 1;
        let state = State { view, session: ServerSession::new(limits) };
        let open = Arc::new(Open { proxy, since: Instant::now(), state: Mutex::new(state) });
        registry.open.insert(id, Arc::clone(&open));
        Ok(Registration { sessions: self.clone(), id, open })
    }

    fn registry(&self) -> MutexGuard<'_, Registry> {
        self.registry.lock().expect("no holder panics")
    }
}

impl Open {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder panics")
    }
}

impl Registration {
    pub(super) fn counts(&self) -> &Counts {
        &self.sessions.counts
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.open.state()
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.sessions.registry().open.remove(&self.id);
    }
}
