//! The server's machine against an Envoy that warms its clusters: whatever changes, and in whatever
//! order the two speak, Envoy is never left waiting for endpoints that do not come.
//!
//! The Envoy here is a model of its delta mux and cluster manager (Envoy 1.40,
//! `NewGrpcMuxImpl`, `ClusterManagerImpl::updateClusterCounts`): a name that is watched already is
//! not asked for again, and while a cluster warms nothing about clusters leaves it.

#[path = "support/served.rs"]
mod served;
mod support;

use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse,
};
use mesh::name::Protocol;
use mesh::program::*;
use mesh::world::Dialect;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use served::World;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Instant;
use xds::codec;
use xds::serve::Changed;
use xds::session::server::{Limits, Lookup, Next, ServerSession};

/// One type of the mux.
#[derive(Default)]
struct Subscription {
    begun: bool,
    held: BTreeMap<String, String>,
    subscribe: Vec<String>,
    unsubscribe: Vec<String>,
    acks: VecDeque<String>,
}

#[derive(Default)]
struct Envoy {
    listeners: Subscription,
    clusters: Subscription,
    endpoints: Subscription,
    warming: BTreeSet<String>,
}

impl Envoy {
    fn of(&mut self, kind: ResourceKind) -> &mut Subscription {
        match kind {
            ResourceKind::Listener => &mut self.listeners,
            ResourceKind::Cluster => &mut self.clusters,
            ResourceKind::Endpoints => &mut self.endpoints,
            other => panic!("no Envoy here asks for {other:?}"),
        }
    }

    /// What it says next about this type, if anything and if it may.
    fn request(&mut self, kind: ResourceKind) -> Option<DeltaDiscoveryRequest> {
        let paused = kind == ResourceKind::Cluster && !self.warming.is_empty();
        let names: Vec<String> = self.clusters.held.keys().cloned().collect();
        let mux = self.of(kind);
        if paused && mux.begun {
            return None;
        }
        let mut request =
            DeltaDiscoveryRequest { type_url: codec::type_url(kind).into(), ..Default::default() };
        if !std::mem::replace(&mut mux.begun, true) {
            if kind == ResourceKind::Endpoints {
                if names.is_empty() {
                    mux.begun = false;
                    return None;
                }
                request.resource_names_subscribe = names;
            }
            request.initial_resource_versions = mux.held.clone().into_iter().collect();
            mux.subscribe.clear();
            mux.unsubscribe.clear();
            return Some(request);
        }
        request.response_nonce = mux.acks.pop_front().unwrap_or_default();
        request.resource_names_subscribe = std::mem::take(&mut mux.subscribe);
        request.resource_names_unsubscribe = std::mem::take(&mut mux.unsubscribe);
        let says = !request.response_nonce.is_empty()
            || !request.resource_names_subscribe.is_empty()
            || !request.resource_names_unsubscribe.is_empty();
        says.then_some(request)
    }

    fn response(&mut self, response: DeltaDiscoveryResponse) {
        let kind = codec::kind_of(&response.type_url).unwrap();
        for resource in response.resources {
            let before = self.of(kind).held.insert(resource.name.clone(), resource.version.clone());
            match kind {
                // Equal to what it has, a cluster is left alone.
                ResourceKind::Cluster if before.as_ref() == Some(&resource.version) => (),
                ResourceKind::Cluster => {
                    if before.is_none() {
                        self.endpoints.unsubscribe.retain(|name| *name != resource.name);
                        self.endpoints.subscribe.push(resource.name.clone());
                    }
                    self.warming.insert(resource.name);
                }
                _ => _ = self.warming.remove(&resource.name),
            }
        }
        for name in response.removed_resources {
            self.of(kind).held.remove(&name);
            // That there are no endpoints is an answer too.
            self.warming.remove(&name);
            if kind == ResourceKind::Cluster {
                self.endpoints.held.remove(&name);
                self.endpoints.subscribe.retain(|asked| *asked != name);
                self.endpoints.unsubscribe.push(name);
            }
        }
        self.of(kind).acks.push_back(response.nonce);
    }

    /// Its stream broke; its clusters and what warms are as they were.
    fn reconnected(&mut self) {
        for mux in [&mut self.listeners, &mut self.clusters, &mut self.endpoints] {
            mux.begun = false;
            mux.acks.clear();
        }
    }
}

/// The two, and what is under way between them.
struct Pair {
    world: World,
    server: ServerSession,
    envoy: Envoy,
    up: VecDeque<DeltaDiscoveryRequest>,
    down: VecDeque<DeltaDiscoveryResponse>,
}

const KINDS: [ResourceKind; 3] =
    [ResourceKind::Cluster, ResourceKind::Endpoints, ResourceKind::Listener];

fn session() -> ServerSession {
    // Two clusters fill a response.
    ServerSession::new(Limits { response_bytes: 500, ..Limits::default() }, Dialect::Envoy)
}

impl Pair {
    fn new() -> Self {
        let (up, down) = (VecDeque::new(), VecDeque::new());
        Self {
            world: World(Program::new(), Dialect::Envoy),
            server: session(),
            envoy: Envoy::default(),
            up,
            down,
        }
    }

    fn set(&mut self, name: ResourceName, resource: Resource) {
        self.world.0.insert(name.clone(), Arc::new(resource));
        self.touched(name);
    }

    fn touched(&mut self, name: ResourceName) {
        self.server.changed(&Changed::Names(Arc::new(BTreeSet::from([name]))));
    }

    fn envoy_speaks(&mut self, kind: ResourceKind) -> bool {
        let request = self.envoy.request(kind);
        let spoke = request.is_some();
        self.up.extend(request);
        spoke
    }

    fn server_hears(&mut self) -> bool {
        let Some(request) = self.up.pop_front() else { return false };
        self.server.request(Instant::now(), &request).unwrap();
        true
    }

    fn server_speaks(&mut self) -> bool {
        match self.server.next(Instant::now(), &self.world) {
            Next::Send(response) => self.down.push_back(response),
            Next::Wait(None) => return false,
            Next::Wait(Some(_)) => panic!("nothing was refused"),
        }
        true
    }

    fn envoy_hears(&mut self) -> bool {
        let response = self.down.pop_front();
        response.map(|response| self.envoy.response(response)).is_some()
    }

    /// Until nobody has anything to say. No time passes.
    fn settle(&mut self) {
        loop {
            let spoke = KINDS.map(|kind| self.envoy_speaks(kind));
            let rest = [self.server_hears(), self.server_speaks(), self.envoy_hears()];
            if spoke == [false; 3] && rest == [false; 3] {
                return;
            }
        }
    }

    #[track_caller]
    fn converged(&mut self, when: &str) {
        assert_eq!(self.envoy.warming, BTreeSet::new(), "{when}: warms without end");
        for kind in [ResourceKind::Cluster, ResourceKind::Listener] {
            let there: BTreeMap<String, String> = self
                .world
                .names(kind)
                .into_iter()
                .map(|name| (name.name.clone(), self.world.resource(&name).unwrap().version))
                .collect();
            assert_eq!(self.envoy.of(kind).held, there, "{when}: {kind:?}");
        }
    }

    fn reconnect(&mut self) {
        self.up.clear();
        self.down.clear();
        self.server = session();
        self.envoy.reconnected();
    }
}

fn name(kind: ResourceKind, n: u16) -> ResourceName {
    let of = match kind {
        ResourceKind::Listener => format!("240.240.7.{n}_80"),
        _ => host(n).to_string(),
    };
    ResourceName::new(kind, of)
}

fn host(n: u16) -> ClusterName {
    format!("outbound|80||h{n}.shop.global").parse().unwrap()
}

fn cluster(n: u16, connect_timeout_ms: u64) -> Resource {
    let cluster = support::cluster(host(n), Protocol::Tcp);
    Resource::Cluster(Cluster { connect_timeout_ms, ..cluster })
}

fn listener(n: u16, to: u16) -> Resource {
    Resource::Listener(Listener::Outbound(OutboundListener {
        address: format!("240.240.7.{n}:80").parse().unwrap(),
        host: support::host("hello.shop.global"),
        target: OutboundTarget::Tcp { cluster: host(to) },
    }))
}

fn there(pair: &mut Pair, n: u16) {
    pair.set(name(ResourceKind::Cluster, n), cluster(n, 1));
    let endpoints = Resource::Endpoints(support::endpoints(host(n)));
    pair.set(name(ResourceKind::Endpoints, n), endpoints);
}

#[test]
fn endpoints_of_a_warming_cluster_do_not_wait_for_the_next_cluster() {
    let mut pair = Pair::new();
    pair.settle();
    there(&mut pair, 1);
    assert!(pair.server_speaks() && pair.envoy_hears(), "Envoy learns of cluster 1");
    // Before it has asked for its endpoints there is a second cluster, and a listener.
    there(&mut pair, 2);
    pair.set(name(ResourceKind::Listener, 1), listener(1, 2));
    pair.settle();
    pair.converged("two clusters");
}

#[test]
fn a_cluster_that_is_sent_anew_has_its_endpoints_sent_anew() {
    let mut pair = Pair::new();
    there(&mut pair, 1);
    pair.settle();
    pair.set(name(ResourceKind::Cluster, 1), cluster(1, 2));
    pair.settle();
    pair.converged("a changed cluster");
}

#[test]
fn a_stream_that_broke_while_a_cluster_warmed_brings_its_endpoints() {
    let mut pair = Pair::new();
    there(&mut pair, 1);
    pair.settle();
    pair.set(name(ResourceKind::Cluster, 1), cluster(1, 2));
    assert!(pair.server_speaks() && pair.envoy_hears(), "Envoy learns of the change");
    pair.reconnect();
    pair.settle();
    pair.converged("a new stream");
}

#[test]
fn whatever_changes_in_whatever_order_no_cluster_warms_without_end() {
    for seed in 0..400 {
        let mut chance = StdRng::seed_from_u64(seed);
        let mut pair = Pair::new();
        for step in 0..300 {
            let n = chance.random_range(1..6);
            match chance.random_range(0..20) {
                0 => there(&mut pair, n),
                1 => pair.set(name(ResourceKind::Cluster, n), cluster(n, step)),
                2 => {
                    for kind in [ResourceKind::Cluster, ResourceKind::Endpoints] {
                        pair.world.0.remove(&name(kind, n));
                        pair.touched(name(kind, n));
                    }
                }
                3 => pair.set(name(ResourceKind::Listener, n), listener(n, n)),
                4 if chance.random_ratio(1, 5) => pair.reconnect(),
                5 => pair.server.changed(&Changed::All),
                6..11 => _ = pair.envoy_speaks(KINDS[chance.random_range(0..3)]),
                11..14 => _ = pair.server_hears(),
                14..17 => _ = pair.server_speaks(),
                _ => _ = pair.envoy_hears(),
            }
        }
        pair.settle();
        pair.converged(&format!("seed {seed}"));
    }
}
