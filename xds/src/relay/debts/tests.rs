//! What is owed, told the time: both variants, and what no relay can know.

use super::*;
use envoy_types::pb::envoy::service::discovery::v3::Resource;
use envoy_types::pb::google::protobuf::Any;
use std::time::Duration;

const HELLO: &str = "outbound|80||hello.shop.global";
const OTHER: &str = "outbound|80||other.shop.global";

/// One stream in the state of the world, second by second.
struct World {
    start: Instant,
    now: Instant,
    debts: Debts,
    clusters: Clusters,
}

impl World {
    fn new(clusters: &[&str]) -> Self {
        let start = Instant::now();
        let clusters = clusters.iter().map(|&name| name.to_owned()).collect();
        Self { start, now: start, debts: Debts::default(), clusters }
    }

    fn second(&mut self) {
        self.now += Duration::from_secs(1);
    }

    fn asks(&mut self, of: ResourceKind, names: &[&str], version: &str, nonce: &str) {
        self.second();
        let request = DiscoveryRequest {
            type_url: codec::type_url(of).into(),
            resource_names: names.iter().map(|&name| name.to_owned()).collect(),
            version_info: version.into(),
            response_nonce: nonce.into(),
            ..Default::default()
        };
        self.debts.asks_world(self.now, &request, &self.clusters);
    }

    fn tells(&mut self, of: ResourceKind, names: &[&str], nonce: &str) {
        self.second();
        let named = |&name: &&str| Any {
            type_url: codec::type_url(of).into(),
            value: Named { name: name.into() }.encode_to_vec(),
        };
        let response = DiscoveryResponse {
            type_url: codec::type_url(of).into(),
            resources: names.iter().map(named).collect(),
            nonce: nonce.into(),
            ..Default::default()
        };
        self.debts.tells_world(self.now, &response, &mut self.clusters);
    }

    /// Since which second an answer is owed.
    fn owed(&self) -> Option<u64> {
        self.debts.since().map(|since| (since - self.start).as_secs())
    }
}

#[test]
fn clusters_and_their_endpoints_are_owed_and_silence_after_them_is_not() {
    use ResourceKind::{Cluster, Endpoints, Listener, Route};
    let mut world = World::new(&[]);
    world.asks(Cluster, &[], "", "");
    assert_eq!(world.owed(), Some(1));
    world.tells(Cluster, &[HELLO], "1");
    world.asks(Cluster, &[], "v", "1");
    assert_eq!(world.owed(), None);
    world.asks(Endpoints, &[HELLO, "of-no-cluster"], "", "");
    assert_eq!(world.owed(), Some(4), "a cluster that was sent has endpoints");
    world.asks(Listener, &[], "", "");
    world.tells(Listener, &[], "2");
    world.asks(Listener, &[], "v", "2");
    assert_eq!(world.owed(), Some(5), "a response of another type settles nothing");
    world.tells(Endpoints, &[HELLO], "3");
    world.asks(Endpoints, &[HELLO, "of-no-cluster"], "v", "3");
    assert_eq!(world.owed(), None);
    world.asks(Route, &[HELLO], "", "");
    assert_eq!(world.owed(), Some(10), "so do its routes");
}

#[test]
fn what_may_not_exist_or_is_held_is_not_owed() {
    use ResourceKind::{Cluster, Endpoints, Listener, Secret};
    let mut world = World::new(&[HELLO, OTHER]);
    world.asks(Cluster, &[], "v", "");
    world.asks(Listener, &[], "v", "");
    world.asks(Endpoints, &[HELLO], "v", "");
    world.asks(Secret, &["any"], "", "");
    assert_eq!(world.owed(), None, "who comes back with versions may hear nothing");
    world.asks(Endpoints, &[HELLO, "of-no-cluster"], "v", "");
    assert_eq!(world.owed(), None);
    // After a reconnect too, a new name is answered.
    world.asks(Endpoints, &[HELLO, OTHER], "v", "");
    assert_eq!(world.owed(), Some(6));
    world.asks(Endpoints, &[HELLO], "v", "");
    assert_eq!(world.owed(), None, "it is wanted no longer");
    world.asks(Endpoints, &[HELLO, OTHER], "v", "");
    world.tells(Cluster, &[HELLO], "1");
    world.asks(Cluster, &[], "w", "1");
    assert_eq!(world.owed(), None, "its cluster is gone");
}

#[test]
fn the_time_the_proxy_takes_is_not_the_control_planes() {
    use ResourceKind::{Cluster, Listener};
    let mut world = World::new(&[]);
    world.asks(Cluster, &[], "", "");
    world.asks(Listener, &[], "", "");
    world.tells(Cluster, &[HELLO], "1");
    world.now += Duration::from_secs(600);
    assert_eq!(world.owed(), None, "listeners wait until the clusters are answered");
    world.asks(Cluster, &[], "v", "1");
    assert_eq!(world.owed(), Some(2 + 601), "and have waited one second of their own");
}

#[test]
fn each_name_of_a_delta_stream_is_owed() {
    let type_url = codec::type_url(ResourceKind::Endpoints);
    let ask = |names: &[&str], gone: &[&str], held: &[&str]| DeltaDiscoveryRequest {
        type_url: type_url.into(),
        resource_names_subscribe: names.iter().map(|&it| it.into()).collect(),
        resource_names_unsubscribe: gone.iter().map(|&it| it.into()).collect(),
        initial_resource_versions: held.iter().map(|&it| (it.into(), "v".into())).collect(),
        ..Default::default()
    };
    let (start, mut debts) = (Instant::now(), Debts::default());
    let at = |second| start + Duration::from_secs(second);
    debts.asks_delta(at(1), &ask(&["a", "b", "c", "d"], &[], &["d"]));
    assert_eq!(debts.since(), Some(at(1)));
    let tell = |debts: &mut Debts, second: u64, there: &[&str], absent: &[&str]| {
        let named = |&name: &&str| Resource { name: name.into(), ..Default::default() };
        let nonce = second.to_string();
        let response = DeltaDiscoveryResponse {
            type_url: type_url.into(),
            resources: there.iter().map(named).collect(),
            removed_resources: absent.iter().map(|&it| it.into()).collect(),
            nonce: nonce.clone(),
            ..Default::default()
        };
        debts.tells_delta(at(second), &response);
        let answer = DeltaDiscoveryRequest { response_nonce: nonce, ..ask(&[], &[], &[]) };
        debts.asks_delta(at(second), &answer);
    };
    tell(&mut debts, 2, &["a"], &[]);
    assert_eq!(debts.since(), Some(at(2)), "it goes on");
    tell(&mut debts, 3, &["a"], &["x"]);
    assert_eq!(debts.since(), Some(at(2)), "news of others is no answer");
    debts.asks_delta(at(4), &ask(&[], &["b"], &[]));
    assert_eq!(debts.since(), Some(at(2)));
    tell(&mut debts, 5, &[], &["c"]);
    assert_eq!(debts.since(), None, "the rest was held");

    let empty =
        |of| DeltaDiscoveryRequest { type_url: codec::type_url(of).into(), ..Default::default() };
    debts.asks_delta(at(6), &empty(ResourceKind::Secret));
    assert_eq!(debts.since(), None, "an empty request asks for nothing");
    debts.asks_delta(at(7), &empty(ResourceKind::Cluster));
    assert_eq!(debts.since(), Some(at(7)), "but for all clusters");
}
