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
    shares: Shares,
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
    /// Names all streams of one identity subscribe to; the stream that asked for more was ended.
    NamesPerIdentity,
    /// Length of a name; the stream was ended.
    NameBytes,
    /// Requests of one stream; it was left unread for a moment.
    Requests,
    /// Refusals (NACKs) of one identity; the stream was left unread for a while.
    Refusals,
    /// How long a new stream may stay silent; it was ended.
    FirstRequest,
    /// How long a client may leave a response unread; the stream was ended.
    Unread,
    /// Length of a message; the stream was ended.
    MessageBytes,
}

impl Limited {
    /// Every limit, in the order of its counter.
    pub const ALL: [Self; 11] = [
        Self::Streams,
        Self::StreamsPerIdentity,
        Self::StreamsPerWorkload,
        Self::Names,
        Self::NamesPerIdentity,
        Self::NameBytes,
        Self::Requests,
        Self::Refusals,
        Self::FirstRequest,
        Self::Unread,
        Self::MessageBytes,
    ];

    /// Its name as a label of metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Streams => "streams",
            Self::StreamsPerIdentity => "streams_per_identity",
            Self::StreamsPerWorkload => "streams_per_workload",
            Self::Names => "names",
            Self::NamesPerIdentity => "names_per_identity",
            Self::NameBytes => "name_bytes",
            Self::Requests => "requests",
            Self::Refusals => "nacks",
            Self::FirstRequest => "first_request",
            Self::Unread => "unread",
            Self::MessageBytes => "message_bytes",
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

/// What proxies may cost one control plane, by whose they are: no identity takes what all share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shares {
    /// Streams of all proxies together.
    pub streams: usize,
    /// Streams of one pod: one in use, and room for those that died unnoticed.
    pub streams_per_workload: usize,
    /// Streams of one service account, which many pods may share: an eighth of all.
    pub streams_per_identity: usize,
    /// Names all streams of one identity subscribe to. A thousand for each stream it may have, or
    /// a hundred gateways of 10,000 service ports; some hundreds of megabytes at the worst, where
    /// its streams without this limit could hold a hundred million names.
    pub names_per_identity: usize,
    /// Refusals (NACKs) of one identity, over all its streams: so many at once …
    pub nack_burst: u32,
    /// … and then one per so long. Whoever refuses more is left unread meanwhile.
    pub nack_every: Duration,
}

impl Default for Shares {
    fn default() -> Self {
        let streams = 16_384;
        Self {
            streams,
            streams_per_workload: 4,
            streams_per_identity: streams / 8,
            names_per_identity: 1 << 21,
            nack_burst: 100,
            nack_every: Duration::from_secs(1),
        }
    }
}

/// Identities whose refusals are remembered; beyond it, those that may refuse freely are forgotten.
const IDENTITIES_MAX: usize = 10_000;

#[derive(Debug, Default)]
struct Registry {
    next: u64,
    open: BTreeMap<u64, Arc<Open>>,
    refusals: BTreeMap<Identity, Pace>,
    /// Names subscribed, over all streams of an identity; those that have none are not here.
    names: BTreeMap<Identity, usize>,
}

impl Registry {
    /// One stream's names are now `new` where they were `old`.
    fn renamed(&mut self, identity: &Identity, old: usize, new: usize) {
        let others = self.names_of(identity) - old;
        if others + new == 0 {
            self.names.remove(identity);
        } else {
            self.names.insert(identity.clone(), others + new);
        }
    }

    fn names_of(&self, identity: &Identity) -> usize {
        self.names.get(identity).copied().unwrap_or_default()
    }
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
    /// Its share of the names of its identity.
    names: usize,
}

impl Sessions {
    /// None are open yet, and these are the limits. [`Default`] has those that are shipped.
    pub fn new(shares: Shares) -> Self {
        Self { shares, ..Self::default() }
    }

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
        let Shares { streams, streams_per_workload, streams_per_identity, .. } = self.shares;
        let mut registry = self.registry();
        let refuse = |limit, why| {
            self.counts.limited(limit);
            Err(why)
        };
        if registry.open.len() >= streams {
            return refuse(
                Limited::Streams,
                format!("ISM6034 there are {streams} xDS streams already"),
            );
        }
        let (mut of_pod, mut of_identity) = (0, 0);
        for open in registry.open.values() {
            of_pod += usize::from(open.proxy == proxy);
            of_identity += usize::from(open.identity == view.identity);
        }
        if of_pod >= streams_per_workload {
            return refuse(
                Limited::StreamsPerWorkload,
                format!("ISM6035 {proxy} has {streams_per_workload} xDS streams already"),
            );
        }
        if of_identity >= streams_per_identity {
            return refuse(
                Limited::StreamsPerIdentity,
                format!(
                    "ISM6033 {} has {streams_per_identity} xDS streams already. \
                     Fix: give its workloads service accounts of their own",
                    view.identity
                ),
            );
        }
        let id = registry.next;
        registry.next += 1;
        let identity = view.identity.clone();
        let session = ServerSession::new(limits, view.dialect);
        let state = State { view, session };
        let open =
            Arc::new(Open { proxy, identity, since: Instant::now(), state: Mutex::new(state) });
        registry.open.insert(id, Arc::clone(&open));
        Ok(Registration { sessions: self.clone(), id, open, names: 0 })
    }

    pub(super) fn counts(&self) -> &Counts {
        &self.counts
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
        let Shares { nack_burst, nack_every, .. } = self.sessions.shares;
        let limits =
            Limits { request_burst: nack_burst, request_every: nack_every, ..Limits::default() };
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

    /// Notes how many names its stream subscribes to; a sentence where its identity then has too
    /// many. Its share is then what it was before, and given back when it goes.
    pub(super) fn named(&mut self, names: usize) -> Result<(), String> {
        if names == self.names {
            return Ok(());
        }
        let limit = self.sessions.shares.names_per_identity;
        let identity = &self.open.identity;
        let mut registry = self.sessions.registry();
        // Whoever asks for fewer is never refused.
        let others = registry.names_of(identity) - self.names;
        if names > self.names && others + names > limit {
            drop(registry);
            self.counts().limited(Limited::NamesPerIdentity);
            return Err(format!(
                "ISM6039 the streams of {identity} subscribe to more than {limit} names together. \
                 Fix: subscribe to what is used, or give its workloads service accounts of their \
                 own"
            ));
        }
        registry.renamed(identity, self.names, names);
        self.names = names;
        Ok(())
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let mut registry = self.sessions.registry();
        registry.open.remove(&self.id);
        registry.renamed(&self.open.identity, self.names, 0);
    }
}
