//! Who is connected, what was sent to whom, and what they said to it.

use crate::codec;
use crate::session::server::{Limits, Pace, SEND_ORDER, ServerSession, TypeStatus};
use mesh::name::Identity;
use mesh::program::ResourceKind;
use mesh::world::View;
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

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
    limited: [AtomicU64; Limited::ALL.len()],
}

/// A limit that somebody has met.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Limited {
    /// Streams of all proxies together; one more was refused.
    Streams,
    /// Streams of one identity; one more was refused.
    StreamsPerIdentity,
    /// Streams of one pod; one more was refused.
    StreamsPerWorkload,
    /// Names one stream subscribes to; the stream was ended.
    Names,
    /// Length of a name; the stream was ended.
    NameBytes,
    /// Requests of one stream; it was left unread for a moment.
    Requests,
    /// Refusals (NACKs) of one identity; the stream was left unread for a while.
    Refusals,
}

impl Limited {
    pub const ALL: [Self; 7] = [
        Self::Streams,
        Self::StreamsPerIdentity,
        Self::StreamsPerWorkload,
        Self::Names,
        Self::NameBytes,
        Self::Requests,
        Self::Refusals,
    ];

    /// Its name as a label of metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Streams => "streams",
            Self::StreamsPerIdentity => "streams_per_identity",
            Self::StreamsPerWorkload => "streams_per_workload",
            Self::Names => "names",
            Self::NameBytes => "name_bytes",
            Self::Requests => "requests",
            Self::Refusals => "nacks",
        }
    }
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

    pub(super) fn limited(&self, limit: Limited) {
        self.limited[limit as usize].fetch_add(1, Relaxed);
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
/// Streams of one service account, which many pods may share: an eighth of all.
const STREAMS_PER_IDENTITY: usize = STREAMS_MAX / 8;
/// Refusals (NACKs) of one identity, over all its streams: so many at once …
const NACK_BURST: u32 = 100;
/// … and then one per so long. Whoever refuses more is left unread meanwhile.
const NACK_EVERY: Duration = Duration::from_secs(1);
/// Identities whose refusals are remembered; beyond it, those that may refuse freely are forgotten.
const IDENTITIES_MAX: usize = 10_000;

fn nack_limits() -> Limits {
    Limits { request_burst: NACK_BURST, request_every: NACK_EVERY, ..Limits::default() }
}

#[derive(Debug, Default)]
struct Registry {
    next: u64,
    open: BTreeMap<u64, Arc<Open>>,
    refusals: BTreeMap<Identity, Pace>,
}

#[derive(Debug)]
pub(super) struct Open {
    proxy: String,
    identity: Identity,
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
        self.counts.limited[Limited::Requests as usize].load(Relaxed)
    }

    /// How often each limit was met.
    pub fn limited(&self) -> BTreeMap<Limited, u64> {
        let counts = &self.counts.limited;
        Limited::ALL.into_iter().map(|it| (it, counts[it as usize].load(Relaxed))).collect()
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
        let refuse = |limit, why| {
            self.counts.limited(limit);
            Err(why)
        };
        if registry.open.len() >= STREAMS_MAX {
            return refuse(
                Limited::Streams,
                format!("ISM6034 there are {STREAMS_MAX} xDS streams already"),
            );
        }
        let (mut of_pod, mut of_identity) = (0, 0);
        for open in registry.open.values() {
            of_pod += usize::from(open.proxy == proxy);
            of_identity += usize::from(open.identity == view.identity);
        }
        if of_pod >= STREAMS_PER_WORKLOAD {
            return refuse(
                Limited::StreamsPerWorkload,
                format!("ISM6035 {proxy} has {STREAMS_PER_WORKLOAD} xDS streams already"),
            );
        }
        if of_identity >= STREAMS_PER_IDENTITY {
            return refuse(
                Limited::StreamsPerIdentity,
                format!(
                    "ISM6033 {} has {STREAMS_PER_IDENTITY} xDS streams already. \
                     Fix: give its workloads service accounts of their own",
                    view.identity
                ),
            );
        }
        let id = registry.next;
        registry.next += 1;
        let identity = view.identity.clone();
        let state = State { view, session: ServerSession::new(limits) };
        let open =
            Arc::new(Open { proxy, identity, since: Instant::now(), state: Mutex::new(state) });
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

    /// Counts a refusal of `peer`, and says until when its stream is to be left unread.
    pub(super) fn refused(&self, peer: &Identity, now: Instant) -> Option<Instant> {
        let limits = nack_limits();
        let rests = {
            let refusals = &mut self.sessions.registry().refusals;
            if refusals.len() >= IDENTITIES_MAX {
                refusals.retain(|_, pace| pace.opens(now, &limits).is_some());
            }
            let pace = refusals.entry(peer.clone()).or_default();
            pace.count(now, &limits);
            pace.opens(now, &limits)
        };
        if rests.is_some() {
            self.counts().limited(Limited::Refusals);
        }
        rests
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.sessions.registry().open.remove(&self.id);
    }
}
