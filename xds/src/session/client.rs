//! The subscriber's half: what is wanted, what is held, and what the server must hear next.

use crate::codec;
use crate::session::server::SEND_ORDER;
use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse,
};
use envoy_types::pb::google::rpc::Status;
use mesh::program::{Resource, ResourceKind, ResourceName};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// One proxy's subscriptions, across any number of streams. Feed it wishes and
/// [`response`](Self::response)s; ask [`next`](Self::next) for requests until it has none.
#[derive(Debug)]
pub struct ClientSession {
    node: Node,
    introduced: bool,
    kinds: BTreeMap<ResourceKind, Kind>,
}

/// What one response brought.
#[derive(Debug, Default, PartialEq)]
pub struct Received {
    pub taken: Vec<(ResourceName, Resource)>,
    /// The server says these do not exist (any more).
    pub removed: Vec<ResourceName>,
    /// Sent, but unusable: the last good one stays in force.
    pub refused: Vec<(ResourceName, String)>,
}

#[derive(Debug, Default)]
struct Kind {
    wanted: BTreeSet<String>,
    /// Versions of what was taken and is wanted.
    held: BTreeMap<String, String>,
    /// Wanted, and neither a resource nor an absence has been heard on this stream.
    unanswered: BTreeSet<String>,
    /// The rest is about this stream.
    begun: bool,
    to_subscribe: BTreeSet<String>,
    to_unsubscribe: BTreeSet<String>,
    answers: VecDeque<Answer>,
}

#[derive(Debug)]
struct Answer {
    nonce: String,
    refusal: Option<String>,
}

/// Longest refusal that is sent, characters.
const REASON_MAX: usize = 2048;
const WILDCARD: &str = "*";

impl ClientSession {
    pub fn new(node: Node) -> Self {
        Self { node, introduced: false, kinds: BTreeMap::new() }
    }

    /// Wants a name; `*` wants all of its kind.
    pub fn subscribe(&mut self, name: &ResourceName) {
        let kind = self.kinds.entry(name.kind).or_default();
        if !kind.wanted.insert(name.name.clone()) {
            return;
        }
        kind.unanswered.insert(name.name.clone());
        // Where the server has not yet heard of the wish to leave: asking for what one is
        // subscribed to means "send it anew", so nothing is lost.
        kind.to_unsubscribe.remove(&name.name);
        kind.to_subscribe.insert(name.name.clone());
    }

    /// Ceases to want a name, and forgets what is held of it.
    pub fn unsubscribe(&mut self, name: &ResourceName) {
        let Some(kind) = self.kinds.get_mut(&name.kind) else { return };
        if !kind.wanted.remove(&name.name) {
            return;
        }
        kind.unanswered.remove(&name.name);
        if name.name == WILDCARD {
            let wanted = &kind.wanted;
            kind.held.retain(|held, _| wanted.contains(held));
        } else if !kind.wanted.contains(WILDCARD) {
            kind.held.remove(&name.name);
        }
        kind.to_subscribe.remove(&name.name);
        if kind.begun {
            kind.to_unsubscribe.insert(name.name.clone());
        }
    }

    /// Notes that a resource is held already, under this version (from disk).
    pub fn held(&mut self, name: &ResourceName, version: String) {
        let kind = self.kinds.entry(name.kind).or_default();
        kind.held.insert(name.name.clone(), version);
    }

    /// A new stream begins: everything is asked for again, with the versions held.
    pub fn reconnected(&mut self) {
        self.introduced = false;
        for kind in self.kinds.values_mut() {
            kind.begun = false;
            kind.answers.clear();
            kind.to_unsubscribe.clear();
            kind.to_subscribe = kind.wanted.clone();
            kind.unanswered = kind.wanted.clone();
            let Kind { wanted, held, .. } = kind;
            if !wanted.contains(WILDCARD) {
                held.retain(|name, _| wanted.contains(name));
            }
        }
    }

    /// Takes a response: each resource by itself, so that a bad one costs itself only.
    pub fn response(&mut self, response: DeltaDiscoveryResponse) -> Received {
        let mut received = Received::default();
        let Some(of) = codec::kind_of(&response.type_url) else { return received };
        let Some(kind) = self.kinds.get_mut(&of) else { return received };
        for resource in response.resources {
            let name = ResourceName::new(of, resource.name);
            if !kind.wants(&name.name) {
                continue;
            }
            kind.unanswered.remove(&name.name);
            let read = resource
                .resource
                .ok_or_else(|| format!("ISM6021 {name}: the response carries no resource"))
                .and_then(|any| codec::decode(of, &any).map_err(|error| error.to_string()));
            match read {
                Ok((inner, value)) if inner == name => {
                    kind.held.insert(name.name.clone(), resource.version);
                    received.taken.push((name, value));
                }
                Ok((inner, _)) => {
                    let reason = format!("ISM6022 {name}: the resource inside is {inner}");
                    received.refused.push((name, reason));
                }
                Err(reason) => received.refused.push((name, reason)),
            }
        }
        for name in response.removed_resources {
            if kind.wants(&name) {
                kind.unanswered.remove(&name);
                kind.held.remove(&name);
                received.removed.push(ResourceName::new(of, name));
            }
        }
        // A wildcard is answered by whatever comes.
        kind.unanswered.remove(WILDCARD);
        let reasons: Vec<&str> = received.refused.iter().map(|(_, why)| why.as_str()).collect();
        let refusal = (!reasons.is_empty())
            .then(|| reasons.join("; ").chars().take(REASON_MAX).collect::<String>());
        kind.answers.push_back(Answer { nonce: response.nonce, refusal });
        received
    }

    /// True where [`next`](Self::next) has a request.
    pub fn speaks(&self) -> bool {
        self.kinds.values().any(Kind::speaks)
    }

    /// The next request to send, if any.
    #[expect(clippy::should_implement_trait, reason = "more may come after None")]
    pub fn next(&mut self) -> Option<DeltaDiscoveryRequest> {
        let of = SEND_ORDER.into_iter().find(|of| self.kinds.get(of).is_some_and(Kind::speaks))?;
        let kind = self.kinds.get_mut(&of).expect("found a moment ago");
        let mut request = DeltaDiscoveryRequest {
            type_url: codec::type_url(of).to_owned(),
            resource_names_subscribe: std::mem::take(&mut kind.to_subscribe).into_iter().collect(),
            resource_names_unsubscribe: std::mem::take(&mut kind.to_unsubscribe)
                .into_iter()
                .collect(),
            ..Default::default()
        };
        if let Some(answer) = kind.answers.pop_front() {
            request.response_nonce = answer.nonce;
            request.error_detail = answer.refusal.map(|message| Status {
                code: tonic::Code::InvalidArgument as i32,
                message,
                details: Vec::new(),
            });
        }
        if !std::mem::replace(&mut kind.begun, true) {
            request.initial_resource_versions = kind.held.clone().into_iter().collect();
            // Unchanged resources are not sent again, so they are as good as answered.
            let Kind { unanswered, held, .. } = kind;
            unanswered.retain(|name| !held.contains_key(name));
        }
        if !std::mem::replace(&mut self.introduced, true) {
            request.node = Some(self.node.clone());
        }
        Some(request)
    }

    /// What to say on a new stream when nothing is wanted yet: who is there.
    pub fn hello(&mut self) -> DeltaDiscoveryRequest {
        self.introduced = true;
        // An empty first request of this type is no wildcard.
        let kind = ResourceKind::Secret;
        self.kinds.entry(kind).or_default().begun = true;
        DeltaDiscoveryRequest {
            node: Some(self.node.clone()),
            type_url: codec::type_url(kind).to_owned(),
            ..Default::default()
        }
    }

    /// True while the server owes an answer for a name.
    pub fn awaits(&self) -> bool {
        self.kinds.values().any(|kind| !kind.unanswered.is_empty())
    }

    /// For how many names the server owes an answer.
    pub fn owed(&self) -> usize {
        self.kinds.values().map(|kind| kind.unanswered.len()).sum()
    }

    /// Versions held, for inspection.
    pub fn versions(&self, kind: ResourceKind) -> impl Iterator<Item = (&str, &str)> {
        let held = self.kinds.get(&kind).map(|kind| kind.held.iter());
        held.into_iter().flatten().map(|(name, version)| (name.as_str(), version.as_str()))
    }
}

impl Kind {
    fn wants(&self, name: &str) -> bool {
        self.wanted.contains(name) || self.wanted.contains(WILDCARD)
    }

    fn speaks(&self) -> bool {
        !self.to_subscribe.is_empty() || !self.to_unsubscribe.is_empty() || !self.answers.is_empty()
    }
}
