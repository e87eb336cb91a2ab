//! The publisher's half: what one client asked for, what it has been told, and what is next.

use crate::codec;
use crate::serve::Changed;
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource,
};
use envoy_types::pb::google::protobuf::Any;
use mesh::program::{ResourceKind, ResourceName};
use mesh::world::Dialect;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

mod kind;
mod pace;

use kind::Kind;
pub(crate) use pace::Pace;

/// One stream's state. Feed it [`request`](Self::request)s and [`changed`](Self::changed), and
/// ask [`next`](Self::next) until it says to wait.
///
/// Order (make before break): what is new goes out as [`SEND_ORDER`] says, what is gone in the
/// reverse order and only when nothing that might refer to it is still due. A type with an
/// unanswered response waits, and what may refer to it waits along.
///
/// Endpoints refer to nothing and never wait for clusters, for an Envoy may wait for them with its
/// answer: while a cluster that is new or sent anew warms, which takes its endpoints, none of
/// Envoy's answers about clusters leave it (Envoy, `ClusterManagerImpl::updateClusterCounts`).
#[derive(Debug)]
pub struct ServerSession {
    limits: Limits,
    dialect: Dialect,
    kinds: BTreeMap<ResourceKind, Kind>,
    responses: u64,
    pace: Pace,
}

/// Clusters and endpoints before who refers to them.
pub const SEND_ORDER: [ResourceKind; 6] = [
    ResourceKind::Secret,
    ResourceKind::Cluster,
    ResourceKind::Endpoints,
    ResourceKind::Listener,
    ResourceKind::Route,
    ResourceKind::Zone,
];

/// What one stream may cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Names subscribed, all types together. A gateway of 10,000 service ports asks for 20,000.
    pub names: usize,
    /// Length of one name, bytes.
    pub name_bytes: usize,
    /// A response is closed once its resources exceed so many bytes; a single greater resource
    /// travels alone.
    pub response_bytes: usize,
    /// Requests a stream may make at once: a proxy that starts asks for each name by itself …
    pub request_burst: u32,
    /// … and then one per so long. More are left unread: the client is slowed, not cut off.
    pub request_every: Duration,
    /// After the n-th refusal in a row a type rests for this times 2^(n-1) …
    pub nack_rest: Duration,
    /// … but never longer than this.
    pub nack_rest_max: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            names: 65_536,
            name_bytes: 512,
            response_bytes: 1 << 20,
            request_burst: 1_000,
            request_every: Duration::from_millis(5),
            nack_rest: Duration::from_millis(100),
            nack_rest_max: Duration::from_secs(10),
        }
    }
}

/// What a session serves from, as its client sees it.
pub trait Lookup {
    fn resource(&self, name: &ResourceName) -> Option<Encoded>;
    /// What a wildcard covers.
    fn names(&self, kind: ResourceKind) -> Vec<ResourceName>;
    /// For `system_version_info`: by it people compare sent and acked.
    fn generation(&self) -> u64;
}

/// A resource ready to send.
#[derive(Debug, Clone, PartialEq)]
pub struct Encoded {
    /// Of its content: equal content, equal version, whoever serves it.
    pub version: String,
    pub any: Any,
}

/// What to do now.
#[derive(Debug, Clone, PartialEq)]
pub enum Next<R = DeltaDiscoveryResponse> {
    Send(R),
    /// Nothing until a request, a change, or this moment.
    Wait(Option<Instant>),
}

/// What ends a stream.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    #[error(
        "ISM6030 this stream subscribes to more than {0} names. Fix: subscribe to what is used"
    )]
    TooManyNames(usize),
    #[error("ISM6031 a resource name has {found} bytes, the limit is {limit}")]
    NameTooLong { found: usize, limit: usize },
}

/// One resource type of one session, for `/sessions` and `isthmus proxy-status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TypeStatus {
    pub kind: ResourceKind,
    /// Names asked for, not counting a wildcard.
    pub subscribed: usize,
    pub wildcard: bool,
    /// Resources the client has been sent and that still exist.
    pub resources: usize,
    /// `system_version_info` of the last response; empty before the first.
    pub sent: String,
    /// The last version the client took; behind `sent` while it has not answered or has refused.
    pub acked: String,
    /// Why the last answer was a refusal; gone with the next acceptance.
    pub nack: Option<String>,
    pub nacks: u64,
    /// How long the last response has been unanswered, milliseconds; 0 when answered.
    pub lag_ms: u64,
}

impl ServerSession {
    pub fn new(limits: Limits, dialect: Dialect) -> Self {
        Self { limits, dialect, kinds: BTreeMap::new(), responses: 0, pace: Pace::default() }
    }

    /// Takes an answer, new names, names no longer wanted, or all of them at once. Types we do
    /// not serve are passed over: a client of a newer Envoy may ask for more than there is.
    pub fn request(
        &mut self,
        now: Instant,
        request: &DeltaDiscoveryRequest,
    ) -> Result<(), Violation> {
        self.pace.count(now, &self.limits);
        let Some(of) = codec::kind_of(&request.type_url) else { return Ok(()) };
        self.within_limits(of, request)?;
        let trusted = self.trusts(of);
        let kind = self.kinds.entry(of).or_default();
        if !request.response_nonce.is_empty() {
            let refusal = request.error_detail.as_ref().map(|status| status.message.as_str());
            kind.answered(now, &request.response_nonce, refusal, &self.limits);
        }
        kind.subscriptions(of, request, trusted);
        Ok(())
    }

    /// Whether what the client says it holds from an earlier stream is not sent again. An Envoy's
    /// endpoints are: it may hold them while a cluster that replaced another waits for them.
    pub(super) fn trusts(&self, of: ResourceKind) -> bool {
        !(self.warms() && of == ResourceKind::Endpoints)
    }

    /// Whether a cluster that is sent anew is not used before its endpoints are sent anew too,
    /// though they may not have changed (Envoy, "xDS protocol": resource warming).
    fn warms(&self) -> bool {
        self.dialect == Dialect::Envoy
    }

    /// Names subscribed, all types together.
    pub fn names(&self) -> usize {
        self.kinds.values().map(|kind| kind.explicit.len()).sum()
    }

    /// When the next request may be read; `None` is now.
    pub fn reads_at(&self, now: Instant) -> Option<Instant> {
        self.pace.opens(now, &self.limits)
    }

    /// News: these may differ from what was told.
    pub fn changed(&mut self, changed: &Changed) {
        match changed {
            Changed::All => self.kinds.values_mut().for_each(Kind::all_due),
            Changed::Names(names) => {
                for name in names.iter() {
                    if let Some(kind) = self.kinds.get_mut(&name.kind) {
                        kind.due(&name.name);
                    }
                }
            }
        }
    }

    /// The next response, if one may go out now.
    pub fn next(&mut self, now: Instant, lookup: &dyn Lookup) -> Next {
        let (warms, mut held) = (self.warms(), false);
        let mut wake: Option<Instant> = None;
        let mut sleep = |until: Instant| wake = Some(wake.map_or(until, |wake| wake.min(until)));
        for of in SEND_ORDER {
            let Some(kind) = self.kinds.get_mut(&of) else { continue };
            if !kind.is_due() || (held && of != ResourceKind::Endpoints) {
                continue;
            }
            if let Some(until) = kind.resting(now) {
                // A client that refuses its clusters is not kept from its routes.
                sleep(until);
                continue;
            }
            if kind.waits_for_answer() {
                // What comes later in the order may refer to what could not be sent yet.
                held = true;
                continue;
            }
            if let Some(news) = kind.news(of, lookup, self.limits.response_bytes) {
                if warms && of == ResourceKind::Cluster {
                    self.again(ResourceKind::Endpoints, &news.replaced);
                }
                return Next::Send(self.respond(now, of, news.resources, news.absent, lookup));
            }
        }
        for of in SEND_ORDER.into_iter().rev() {
            let Some(kind) = self.kinds.get_mut(&of) else { continue };
            // Whoever may refer to what is gone hears its own news first.
            if kind.is_due() && kind.resting(now).is_none() {
                break;
            }
            if kind.leaving.is_empty() {
                continue;
            }
            if let Some(until) = kind.resting(now) {
                sleep(until);
                continue;
            }
            if kind.waits_for_answer() {
                break;
            }
            let gone = kind.farewell();
            return Next::Send(self.respond(now, of, Vec::new(), gone, lookup));
        }
        Next::Wait(wake)
    }

    /// As if the client had accepted the response of that nonce, which it was not sent.
    pub(super) fn taken(&mut self, now: Instant, of: ResourceKind, nonce: &str) {
        if let Some(kind) = self.kinds.get_mut(&of) {
            kind.answered(now, nonce, None, &self.limits);
        }
    }

    /// Sends these anew, where they are asked for by name.
    fn again(&mut self, of: ResourceKind, names: &[String]) {
        if let Some(kind) = self.kinds.get_mut(&of) {
            names.iter().for_each(|name| kind.again(name));
        }
    }

    pub fn status(&self, now: Instant) -> Vec<TypeStatus> {
        self.kinds.iter().map(|(of, kind)| kind.status(*of, now)).collect()
    }

    fn respond(
        &mut self,
        now: Instant,
        of: ResourceKind,
        resources: Vec<Resource>,
        removed_resources: Vec<String>,
        lookup: &dyn Lookup,
    ) -> DeltaDiscoveryResponse {
        self.responses += 1;
        let nonce = format!("{:x}", self.responses);
        let version = lookup.generation().to_string();
        let kind = self.kinds.get_mut(&of).expect("only kinds asked for are answered");
        kind.sent(now, &nonce, &version);
        DeltaDiscoveryResponse {
            system_version_info: version,
            type_url: codec::type_url(of).to_owned(),
            nonce,
            resources,
            removed_resources,
            ..Default::default()
        }
    }

    fn within_limits(
        &self,
        of: ResourceKind,
        request: &DeltaDiscoveryRequest,
    ) -> Result<(), Violation> {
        let names = request.resource_names_subscribe.iter();
        for name in names.chain(request.initial_resource_versions.keys()) {
            if name.len() > self.limits.name_bytes {
                let (found, limit) = (name.len(), self.limits.name_bytes);
                return Err(Violation::NameTooLong { found, limit });
            }
        }
        let have = self.names();
        let known = self.kinds.get(&of).map(|kind| &kind.explicit);
        let new: BTreeSet<&String> = request
            .resource_names_subscribe
            .iter()
            .filter(|name| known.is_none_or(|known| !known.contains(*name)))
            .collect();
        let limit = self.limits.names;
        if have + new.len() > limit || request.initial_resource_versions.len() > limit {
            return Err(Violation::TooManyNames(limit));
        }
        Ok(())
    }
}
