//! State-of-the-world conversations with the server's machine: what is whole, what is silent, and
//! in which order a replacement arrives.

#[path = "support/served.rs"]
mod served;
mod support;

use envoy_types::pb::envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse};
use envoy_types::pb::google::rpc::Status;
use mesh::name::Protocol;
use mesh::program::*;
use mesh::world::Dialect;
use served::World;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};
use xds::codec;
use xds::serve::Changed;
use xds::session::server::{Next, ServerSession, TypeStatus};
use xds::session::sotw::{self, Sotw};

/// One stream, and a client that answers as it is told.
struct Talk {
    now: Instant,
    world: World,
    session: ServerSession,
    sotw: Sotw,
}

impl Talk {
    fn new(program: Program) -> Self {
        Self::of(Dialect::Envoy, program)
    }

    fn of(dialect: Dialect, program: Program) -> Self {
        let session = ServerSession::new(sotw::limits(), dialect);
        Self {
            now: Instant::now(),
            world: World(program, Dialect::Isthmus),
            session,
            sotw: Sotw::default(),
        }
    }

    fn send(&mut self, request: &DiscoveryRequest) {
        self.sotw.request(&mut self.session, self.now, request).unwrap();
    }

    /// A first request, with what the client says it holds.
    fn ask(&mut self, kind: ResourceKind, names: &[&str], version: &str) {
        self.send(&request(kind, names, version, ""));
    }

    fn next(&mut self) -> Option<DiscoveryResponse> {
        match self.sotw.next(&mut self.session, self.now, &self.world) {
            Next::Send(response) => Some(response),
            Next::Wait(_) => None,
        }
    }

    fn ack(&mut self, response: &DiscoveryResponse, names: &[&str]) {
        let kind = codec::kind_of(&response.type_url).unwrap();
        self.send(&request(kind, names, &response.version_info, &response.nonce));
    }

    fn edit(&mut self, name: ResourceName, value: Option<Resource>) {
        match value {
            Some(value) => self.world.0.insert(name, Arc::new(value)),
            None => self.world.0.remove(&name),
        };
        self.session.changed(&Changed::All);
    }

    fn status(&self, kind: ResourceKind) -> TypeStatus {
        self.session.status(self.now).into_iter().find(|it| it.kind == kind).unwrap()
    }
}

fn request(kind: ResourceKind, names: &[&str], version: &str, nonce: &str) -> DiscoveryRequest {
    DiscoveryRequest {
        type_url: codec::type_url(kind).to_owned(),
        resource_names: names.iter().map(|&name| name.to_owned()).collect(),
        version_info: version.to_owned(),
        response_nonce: nonce.to_owned(),
        ..Default::default()
    }
}

fn names(response: &DiscoveryResponse) -> BTreeSet<String> {
    let kind = codec::kind_of(&response.type_url).unwrap();
    response.resources.iter().map(|any| codec::decode(kind, any).unwrap().0.name).collect()
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

const HELLO: &str = "outbound|80||hello.shop.global";
const OTHER: &str = "outbound|80||other.shop.global";
const LISTENER: &str = "240.240.7.2_80";

fn of(kind: ResourceKind, name: &str) -> ResourceName {
    ResourceName::new(kind, name)
}

fn cluster(name: &str, connect_timeout_ms: u64) -> Resource {
    let cluster = support::cluster(name.parse().unwrap(), Protocol::Tcp);
    Resource::Cluster(Cluster { connect_timeout_ms, ..cluster })
}

fn endpoints(name: &str) -> Resource {
    Resource::Endpoints(support::endpoints(name.parse().unwrap()))
}

fn listener(to: &str) -> Resource {
    Resource::Listener(Listener::Outbound(OutboundListener {
        address: "240.240.7.2:80".parse().unwrap(),
        host: support::host("hello.shop.global"),
        target: OutboundTarget::Tcp { cluster: to.parse().unwrap() },
    }))
}

/// One listener, its cluster, its endpoints.
fn program() -> Program {
    let all = [
        (of(ResourceKind::Listener, LISTENER), listener(HELLO)),
        (of(ResourceKind::Cluster, HELLO), cluster(HELLO, 1_000)),
        (of(ResourceKind::Endpoints, HELLO), endpoints(HELLO)),
    ];
    all.into_iter().map(|(name, value)| (name, Arc::new(value))).collect()
}

/// A client that has all of [`program`], and its last response of each type.
fn settled() -> (Talk, [DiscoveryResponse; 3]) {
    let mut talk = Talk::new(program());
    talk.ask(ResourceKind::Cluster, &[], "");
    let clusters = talk.next().unwrap();
    assert_eq!(names(&clusters), set(&[HELLO]));
    talk.ack(&clusters, &[]);
    talk.ask(ResourceKind::Endpoints, &[HELLO], "");
    let members = talk.next().unwrap();
    assert_eq!(names(&members), set(&[HELLO]));
    talk.ack(&members, &[HELLO]);
    talk.ask(ResourceKind::Listener, &[], "");
    let listeners = talk.next().unwrap();
    assert_eq!(names(&listeners), set(&[LISTENER]));
    talk.ack(&listeners, &[]);
    assert_eq!(talk.next(), None, "an acknowledged world is silence");
    (talk, [clusters, members, listeners])
}

#[test]
fn what_is_whole_is_sent_whole_and_once() {
    let (mut talk, [clusters, ..]) = settled();
    talk.session.changed(&Changed::All);
    assert_eq!(talk.next(), None, "equal news is silence");
    talk.edit(of(ResourceKind::Cluster, OTHER), Some(cluster(OTHER, 1_000)));
    let more = talk.next().unwrap();
    assert_eq!(names(&more), set(&[HELLO, OTHER]), "an addition brings the rest along");
    assert_ne!(more.version_info, clusters.version_info);
    assert_ne!(more.nonce, clusters.nonce);
    talk.ack(&more, &[]);
    talk.edit(of(ResourceKind::Cluster, OTHER), None);
    let less = talk.next().unwrap();
    assert_eq!(names(&less), set(&[HELLO]), "what is gone is gone from the whole");
    assert_eq!(less.version_info, clusters.version_info, "equal content, equal version");
}

#[test]
fn a_client_that_comes_back_with_its_version_is_not_sent_it_again() {
    let (_, responses) = settled();
    for dialect in [Dialect::Grpc, Dialect::Envoy] {
        let mut again = Talk::of(dialect, program());
        for (response, names) in responses.iter().zip([&[][..], &[HELLO], &[]]) {
            let kind = codec::kind_of(&response.type_url).unwrap();
            again.ask(kind, names, &response.version_info);
            let sent = again.next();
            // Of what is asked for by name a version says too little: a client may have asked for
            // less since, and dropped the rest.
            assert_eq!(sent.is_some(), !names.is_empty(), "{dialect:?}: {kind:?}");
            if let Some(sent) = sent {
                again.ack(&sent, names);
            }
        }
        again.edit(of(ResourceKind::Cluster, HELLO), Some(cluster(HELLO, 7)));
        assert!(again.next().is_some(), "news is still news");
    }
    let mut stale = Talk::new(program());
    stale.ask(ResourceKind::Cluster, &[], "of another world");
    assert_eq!(names(&stale.next().unwrap()), set(&[HELLO]));
}

#[test]
fn a_replacement_is_there_before_what_it_replaces_goes() {
    let (mut talk, _) = settled();
    talk.world.0.remove(&of(ResourceKind::Cluster, HELLO));
    talk.world.0.remove(&of(ResourceKind::Endpoints, HELLO));
    talk.edit(of(ResourceKind::Cluster, OTHER), Some(cluster(OTHER, 1_000)));
    talk.edit(of(ResourceKind::Endpoints, OTHER), Some(endpoints(OTHER)));
    talk.edit(of(ResourceKind::Listener, LISTENER), Some(listener(OTHER)));
    let both = talk.next().unwrap();
    assert_eq!(names(&both), set(&[HELLO, OTHER]), "the old cluster stays while it is in use");
    talk.ack(&both, &[]);
    talk.send(&request(ResourceKind::Endpoints, &[HELLO, OTHER], "", ""));
    // The new listener comes next; only when it is taken does the old cluster go.
    let mut seen = Vec::new();
    while let Some(response) = talk.next() {
        let kind = codec::kind_of(&response.type_url).unwrap();
        seen.push((kind, names(&response)));
        let subscribed: &[&str] =
            if kind == ResourceKind::Endpoints { &[HELLO, OTHER] } else { &[] };
        talk.ack(&response, subscribed);
    }
    let order: Vec<ResourceKind> = seen.iter().map(|(kind, _)| *kind).collect();
    let place = |of: ResourceKind| order.iter().rposition(|kind| *kind == of);
    assert!(place(ResourceKind::Listener) < place(ResourceKind::Cluster), "{seen:?}");
    assert_eq!(seen.last(), Some(&(ResourceKind::Cluster, set(&[OTHER]))), "{seen:?}");
}

#[test]
fn a_refusal_leaves_the_last_accepted_and_is_not_repeated() {
    let (mut talk, [before, ..]) = settled();
    let accepted = talk.status(ResourceKind::Cluster).acked;
    talk.edit(of(ResourceKind::Cluster, HELLO), Some(cluster(HELLO, 7)));
    let refused = talk.next().unwrap();
    let refusal = Status { message: "no".into(), ..Default::default() };
    talk.send(&DiscoveryRequest {
        error_detail: Some(refusal),
        ..request(ResourceKind::Cluster, &[], &before.version_info, &refused.nonce)
    });
    let status = talk.status(ResourceKind::Cluster);
    assert_eq!((status.nack.as_deref(), status.nacks, status.acked), (Some("no"), 1, accepted));
    talk.now += Duration::from_secs(60);
    talk.session.changed(&Changed::All);
    let repeated = std::iter::from_fn(|| talk.next())
        .filter(|it| it.type_url == codec::type_url(ResourceKind::Cluster))
        .count();
    assert_eq!(repeated, 0, "what was refused is not sent again as it is");
    talk.edit(of(ResourceKind::Cluster, HELLO), Some(cluster(HELLO, 8)));
    let mended = std::iter::from_fn(|| talk.next())
        .find(|it| it.type_url == codec::type_url(ResourceKind::Cluster))
        .expect("another content is tried");
    talk.ack(&mended, &[]);
    assert_eq!(talk.status(ResourceKind::Cluster).nack, None);
}

#[test]
fn an_answer_to_an_older_response_says_nothing() {
    let (mut talk, [old, ..]) = settled();
    talk.edit(of(ResourceKind::Cluster, OTHER), Some(cluster(OTHER, 1_000)));
    let new = talk.next().unwrap();
    talk.ack(&old, &["nobody"]);
    talk.edit(of(ResourceKind::Cluster, OTHER), None);
    assert_eq!(talk.next(), None, "the newer response is still unanswered");
    talk.ack(&new, &[]);
    assert_eq!(names(&talk.next().unwrap()), set(&[HELLO]), "and the wildcard still holds");
}

#[test]
fn a_cluster_sent_anew_has_its_endpoints_sent_anew() {
    let (mut talk, _) = settled();
    talk.edit(of(ResourceKind::Cluster, HELLO), Some(cluster(HELLO, 7)));
    let clusters = talk.next().unwrap();
    talk.ack(&clusters, &[]);
    let members = talk.next().expect("Envoy waits for them");
    assert_eq!(names(&members), set(&[HELLO]));
}

#[test]
fn names_come_and_go_by_the_last_request() {
    let (mut talk, [_, members, _]) = settled();
    talk.edit(of(ResourceKind::Endpoints, OTHER), Some(endpoints(OTHER)));
    assert_eq!(talk.next(), None, "nobody asked");
    talk.ack(&members, &[HELLO, OTHER]);
    let more = talk.next().unwrap();
    assert_eq!(names(&more), set(&[OTHER]), "only what is new");
    talk.ack(&more, &[OTHER]);
    talk.edit(of(ResourceKind::Endpoints, HELLO), None);
    talk.edit(of(ResourceKind::Endpoints, OTHER), None);
    assert_eq!(talk.next(), None, "that an assignment is gone cannot be said");
    assert_eq!(talk.status(ResourceKind::Endpoints).subscribed, 1);
    // A listener by name, as gRPC asks: the whole is what was named and is there.
    let mut grpc = Talk::new(program());
    grpc.ask(ResourceKind::Listener, &["none", LISTENER], "");
    assert_eq!(names(&grpc.next().unwrap()), set(&[LISTENER]));
}

#[test]
fn names_are_limited_in_this_variant_too() {
    let mut talk = Talk::new(program());
    let long = "x".repeat(sotw::limits().name_bytes + 1);
    let request = request(ResourceKind::Endpoints, &[&long], "", "");
    assert!(talk.sotw.request(&mut talk.session, talk.now, &request).is_err());
}
