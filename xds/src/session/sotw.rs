//! State-of-the-world xDS over the delta machine: a request names all that is wanted, and a
//! response of listeners or clusters carries all there is.
//!
//! Order, pauses, limits and refusals are the delta machine's; this only translates. Versions are
//! of content: a client that comes back with the version it holds, to whichever replica, is not
//! sent the same again. What cannot be said here is that a route, an assignment or a secret is
//! gone: clients learn that from what referred to it.

use super::server::{Limits, Lookup, Next, ServerSession, Violation};
use crate::codec;
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use envoy_types::pb::google::protobuf::Any;
use mesh::program::ResourceKind;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

const WILDCARD: &str = "*";

/// What one stream needs beside its [`ServerSession`].
#[derive(Debug, Default)]
pub struct Sotw {
    kinds: BTreeMap<ResourceKind, Kind>,
}

#[derive(Debug, Default)]
struct Kind {
    names: BTreeSet<String>,
    wildcard: bool,
    held: BTreeMap<String, Held>,
    /// What the client brought from an earlier stream; looked at once.
    claimed: Option<String>,
    /// Of the last response that was sent; empty before the first.
    nonce: String,
}

/// One resource the client has.
#[derive(Debug)]
struct Held {
    version: String,
    /// Kept for types whose responses are always whole.
    any: Option<Any>,
}

/// What a session of this variant may cost: responses are never cut, for half a world would be
/// read as a world of half.
pub fn limits() -> Limits {
    Limits { response_bytes: usize::MAX, ..Limits::default() }
}

/// Types of which a response is the whole: what it lacks is gone.
fn whole(of: ResourceKind) -> bool {
    match of {
        ResourceKind::Listener | ResourceKind::Cluster => true,
        ResourceKind::Secret
        | ResourceKind::Endpoints
        | ResourceKind::Route
        | ResourceKind::Zone => false,
    }
}

impl Sotw {
    /// As [`ServerSession::request`]. An answer to an older response says nothing (the xDS
    /// protocol's rule on stale nonces): its sender repeats what it wants in the next one.
    pub fn request(
        &mut self,
        session: &mut ServerSession,
        now: Instant,
        request: &DiscoveryRequest,
    ) -> Result<(), Violation> {
        let mut delta = DeltaDiscoveryRequest::default();
        let Some(of) = codec::kind_of(&request.type_url) else {
            return session.request(now, &delta);
        };
        let first = !self.kinds.contains_key(&of);
        let kind = self.kinds.entry(of).or_default();
        let stale = !request.response_nonce.is_empty() && request.response_nonce != kind.nonce;
        if stale && !first {
            return session.request(now, &delta);
        }
        if first {
            // Of what is asked for by name a version says too little: its client may have asked for
            // less since, and dropped the rest (grpc-go does).
            let names = &request.resource_names;
            let all = names.is_empty() || names.iter().any(|name| name == WILDCARD);
            let claim = Some(&request.version_info).filter(|claim| !claim.is_empty());
            kind.claimed = claim.filter(|_| all && session.trusts(of)).cloned();
        } else {
            delta.response_nonce.clone_from(&request.response_nonce);
            delta.error_detail.clone_from(&request.error_detail);
        }
        delta.type_url.clone_from(&request.type_url);
        kind.subscriptions(of, first, &request.resource_names, &mut delta);
        session.request(now, &delta)
    }

    /// As [`ServerSession::next`].
    pub fn next(
        &mut self,
        session: &mut ServerSession,
        now: Instant,
        lookup: &dyn Lookup,
    ) -> Next<DiscoveryResponse> {
        loop {
            let delta = match session.next(now, lookup) {
                Next::Send(delta) => delta,
                Next::Wait(until) => return Next::Wait(until),
            };
            if let Some(response) = self.translate(session, now, delta) {
                return Next::Send(response);
            }
        }
    }

    /// `None` where there is nothing to say in this variant, or the client knows it.
    fn translate(
        &mut self,
        session: &mut ServerSession,
        now: Instant,
        delta: DeltaDiscoveryResponse,
    ) -> Option<DiscoveryResponse> {
        let of = codec::kind_of(&delta.type_url).expect("our own response");
        let kind = self.kinds.get_mut(&of).expect("only what was asked for is answered");
        let mut fresh = Vec::new();
        for resource in delta.resources {
            let any = resource.resource.expect("our own response");
            let held = Held { version: resource.version, any: whole(of).then(|| any.clone()) };
            fresh.push(any);
            kind.held.insert(resource.name, held);
        }
        for name in &delta.removed_resources {
            kind.held.remove(name);
        }
        let version = kind.version();
        let known = kind.claimed.take().is_some_and(|claim| claim == version);
        if known || (!whole(of) && fresh.is_empty()) {
            session.taken(now, of, &delta.nonce);
            return None;
        }
        kind.nonce.clone_from(&delta.nonce);
        let resources = if whole(of) {
            kind.held.values().filter_map(|held| held.any.clone()).collect()
        } else {
            fresh
        };
        Some(DiscoveryResponse {
            version_info: version,
            resources,
            type_url: delta.type_url,
            nonce: delta.nonce,
            ..Default::default()
        })
    }
}

impl Kind {
    /// Takes the names of a request, and writes what they change into `delta`.
    fn subscriptions(
        &mut self,
        of: ResourceKind,
        first: bool,
        names: &[String],
        delta: &mut DeltaDiscoveryRequest,
    ) {
        let mut asked: BTreeSet<String> = names.iter().cloned().collect();
        // No names mean all, for these two, until a name is said.
        let implied = whole(of) && names.is_empty() && (first || self.wildcard);
        let wildcard = asked.remove(WILDCARD) || implied;
        delta.resource_names_subscribe = asked.difference(&self.names).cloned().collect();
        delta.resource_names_unsubscribe = self.names.difference(&asked).cloned().collect();
        if wildcard != self.wildcard {
            let list = if wildcard {
                &mut delta.resource_names_subscribe
            } else {
                &mut delta.resource_names_unsubscribe
            };
            list.push(WILDCARD.to_owned());
        }
        (self.names, self.wildcard) = (asked, wildcard);
        if !self.wildcard {
            let Self { held, names, .. } = self;
            held.retain(|name, _| names.contains(name));
        }
    }

    /// Of all the client holds: equal content, equal version, whoever serves it.
    fn version(&self) -> String {
        let mut digest = Sha256::new();
        for (name, held) in &self.held {
            // Lengths keep neighbours apart.
            digest.update(name.len().to_be_bytes());
            digest.update(name);
            digest.update(held.version.len().to_be_bytes());
            digest.update(&held.version);
        }
        hex::encode(&digest.finalize()[..8])
    }
}
