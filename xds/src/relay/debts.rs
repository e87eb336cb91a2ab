//! What the control plane owes a foreign proxy on one stream, as far as a relay can know: told the
//! time, so that it can be tested without one.
//!
//! What can be known. In the delta variant each name that is asked for and not held is answered,
//! by a resource or by its absence. In the state of the world silence is an answer: to a request
//! with a version (nothing has changed since), and to a name that does not exist. So an answer is
//! owed
//! - to the first request of listeners or clusters without a version: these are whole, and sent
//!   even where they are empty;
//! - to endpoints and routes that are asked for anew and bear the name of a cluster the control
//!   plane has sent: it has those wherever it has the cluster (`mesh::compile` makes all three of
//!   one service's port). Other names may not exist, and a false alarm would end a good stream
//!   every 45 s.
//!
//! What cannot be known: whether a control plane that says nothing to a client that comes back
//! with all its versions is stuck, or has no news. It is found at the next name that is asked for.

use crate::codec;
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use mesh::program::ResourceKind;
use prost::Message as _;
use std::collections::{BTreeMap, BTreeSet};
use tokio::time::Instant;

const WILDCARD: &str = "*";

/// One stream's.
#[derive(Debug, Default)]
pub(super) struct Debts {
    kinds: BTreeMap<ResourceKind, Kind>,
    /// Types with a response the proxy has not answered, and which. The control plane may wait for
    /// it before it says more (make before break).
    unanswered: BTreeMap<ResourceKind, String>,
    /// Since when the proxy lets it wait.
    waits: Option<Instant>,
}

#[derive(Debug, Default)]
struct Kind {
    begun: bool,
    /// What the last request in the state of the world named, of endpoints and routes.
    asked: BTreeSet<String>,
    owed: Option<Owed>,
}

#[derive(Debug)]
struct Owed {
    since: Instant,
    /// Empty where any response of the type will do.
    names: BTreeSet<String>,
}

/// The names of the clusters last sent to this agent's proxy, over all its streams: on the next one
/// it may come back with their version and hear nothing of them.
pub(super) type Clusters = BTreeSet<String>;

impl Kind {
    fn owes(&mut self, now: Instant, names: BTreeSet<String>) {
        let owed = self.owed.get_or_insert_with(|| Owed { since: now, names: BTreeSet::new() });
        owed.names.extend(names);
    }

    /// These are owed no longer, and where they were all, nothing is. What remains is owed from
    /// `progress` on.
    fn settle(&mut self, progress: Option<Instant>, settled: impl Fn(&str) -> bool) {
        let Some(owed) = self.owed.as_mut().filter(|owed| !owed.names.is_empty()) else { return };
        let before = owed.names.len();
        owed.names.retain(|name| !settled(name));
        if owed.names.is_empty() {
            self.owed = None;
        } else if let Some(now) = progress.filter(|_| owed.names.len() < before) {
            owed.since = now;
        }
    }
}

impl Debts {
    /// Since when an answer has been owed that nothing on the proxy's side holds up.
    pub(super) fn since(&self) -> Option<Instant> {
        let since = self.kinds.values().filter_map(|kind| Some(kind.owed.as_ref()?.since)).min();
        since.filter(|_| self.waits.is_none())
    }

    pub(super) fn asks_delta(&mut self, now: Instant, request: &DeltaDiscoveryRequest) {
        // Types nobody here serves are met by silence.
        let Some(of) = codec::kind_of(&request.type_url) else { return };
        self.answers(now, of, &request.response_nonce);
        let kind = self.kinds.entry(of).or_default();
        let first = !std::mem::replace(&mut kind.begun, true);
        let gone = &request.resource_names_unsubscribe;
        kind.settle(None, |name| gone.iter().any(|gone| gone == name));
        let (names, held) = (&request.resource_names_subscribe, &request.initial_resource_versions);
        let new = names.iter().filter(|name| !held.contains_key(*name));
        let new: BTreeSet<String> = new.cloned().collect();
        if !new.is_empty() {
            kind.owes(now, new);
        } else if first && whole(of) && names.is_empty() {
            // Before "*" was a name, an empty first request of these two types meant it.
            kind.owes(now, BTreeSet::from([WILDCARD.to_owned()]));
        }
    }

    pub(super) fn tells_delta(&mut self, now: Instant, response: &DeltaDiscoveryResponse) {
        let Some(of) = codec::kind_of(&response.type_url) else { return };
        self.told(now, of, &response.nonce);
        let names = response.resources.iter().map(|resource| &resource.name);
        let mut names: BTreeSet<&str> =
            names.chain(&response.removed_resources).map(String::as_str).collect();
        // A wildcard is answered by whatever comes.
        names.insert(WILDCARD);
        if let Some(kind) = self.kinds.get_mut(&of) {
            kind.settle(Some(now), |name| names.contains(name));
        }
    }

    pub(super) fn asks_world(
        &mut self,
        now: Instant,
        request: &DiscoveryRequest,
        clusters: &Clusters,
    ) {
        let Some(of) = codec::kind_of(&request.type_url) else { return };
        self.answers(now, of, &request.response_nonce);
        let kind = self.kinds.entry(of).or_default();
        let first = !std::mem::replace(&mut kind.begun, true);
        // What it names with the version of an earlier stream it may hold.
        let held = first && !request.version_info.is_empty();
        match of {
            ResourceKind::Listener | ResourceKind::Cluster if first && !held => {
                kind.owes(now, BTreeSet::new());
            }
            ResourceKind::Endpoints | ResourceKind::Route => {
                let asked: BTreeSet<String> = request.resource_names.iter().cloned().collect();
                let sent = |name: &&String| clusters.contains(*name);
                let new: BTreeSet<String> =
                    asked.difference(&kind.asked).filter(sent).cloned().collect();
                kind.settle(None, |name| !asked.contains(name));
                kind.asked = asked;
                if !held && !new.is_empty() {
                    kind.owes(now, new);
                }
            }
            ResourceKind::Listener
            | ResourceKind::Cluster
            | ResourceKind::Secret
            | ResourceKind::Zone => (),
        }
    }

    pub(super) fn tells_world(
        &mut self,
        now: Instant,
        response: &DiscoveryResponse,
        clusters: &mut Clusters,
    ) {
        let Some(of) = codec::kind_of(&response.type_url) else { return };
        self.told(now, of, &response.nonce);
        if let Some(kind) = self.kinds.get_mut(&of) {
            // A response has all that is due; names it lacks may have gone meanwhile.
            kind.owed = None;
        }
        if of == ResourceKind::Cluster {
            let names = response.resources.iter().filter_map(|any| Named::decode(&*any.value).ok());
            *clusters = names.map(|named| named.name).collect();
            // What went with its cluster is not answered.
            for of in [ResourceKind::Endpoints, ResourceKind::Route] {
                if let Some(kind) = self.kinds.get_mut(&of) {
                    kind.settle(None, |name| !clusters.contains(name));
                }
            }
        }
    }

    fn told(&mut self, now: Instant, of: ResourceKind, nonce: &str) {
        self.unanswered.insert(of, nonce.to_owned());
        self.waits.get_or_insert(now);
    }

    /// The time the proxy took is not the control plane's.
    fn answers(&mut self, now: Instant, of: ResourceKind, nonce: &str) {
        if self.unanswered.get(&of).is_some_and(|unanswered| unanswered == nonce) {
            self.unanswered.remove(&of);
        }
        if !self.unanswered.is_empty() {
            return;
        }
        let Some(waits) = self.waits.take() else { return };
        for owed in self.kinds.values_mut().filter_map(|kind| kind.owed.as_mut()) {
            owed.since += now.saturating_duration_since(waits.max(owed.since));
        }
    }
}

/// Types of which a response is all there is.
fn whole(of: ResourceKind) -> bool {
    matches!(of, ResourceKind::Listener | ResourceKind::Cluster)
}

/// A resource of any type with a name, which is its first field, as far as that.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Named {
    #[prost(string, tag = "1")]
    pub(super) name: String,
}

#[cfg(test)]
mod tests;
