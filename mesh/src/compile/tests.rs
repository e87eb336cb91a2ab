//! One world, many views; and what a change may cost.

use super::{Cache, affected, compile, names, resource, view_part};
use crate::federate::mesh_text;
use crate::fixture::{clusters, linked, view, world};
use crate::inventory::Inventory;
use crate::program::{ClusterName, Listener, Resource, ResourceKind, ResourceName};
use expect_test::{Expect, expect};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::sync::Arc;

const THREE: &str = "
    east cluster net-east gateway=203.0.113.1:15443
    west cluster net-west gateway=203.0.113.2:15443 gateway=203.0.113.3:15443
    north cluster net-north gateway=203.0.113.4:15443
    east service shop/hello 10.96.0.1 80/http/web
    east pod shop/hello e1 10.244.0.1 eu/a node=n1
    east pod shop/hello e2 10.244.0.2 eu/b node=n2
    east pod shop/hello e3 10.244.0.3 us/c node=n3 unmeshed
    west service shop/hello 10.96.0.7 80/http/web
    west pod shop/hello w1 10.244.0.1 us/a
    west pod shop/hello w2 10.244.0.2 us/a
    west pod shop/hello w3 10.244.0.3 us/b
    north service shop/hello 10.96.0.7 80/http/web
    north pod shop/hello n1 10.244.0.1 eu/a account=polar
    west export shop/hello
    north export shop/hello";

fn show(resource: Option<Arc<Resource>>) -> String {
    let Some(resource) = resource else { return "absent".into() };
    let mut seen = String::new();
    match &*resource {
        Resource::Endpoints(all) => {
            for group in &all.groups {
                write!(seen, "{} {} x{}:", group.priority, group.locality, group.weight).unwrap();
                for copy in &group.endpoints {
                    let tls = if copy.tls { "" } else { " plain" };
                    write!(seen, " {} {} x{}{tls}", copy.cluster, copy.address, copy.weight)
                        .unwrap();
                }
                writeln!(seen).unwrap();
            }
        }
        Resource::Cluster(it) => {
            writeln!(seen, "{} {:?} {} ms", it.sni, it.load_balancing, it.connect_timeout_ms)
                .unwrap();
            for (cluster, identities) in &it.server_identities {
                let names: Vec<String> = identities.iter().map(ToString::to_string).collect();
                writeln!(seen, "{cluster}: {}", names.join(" ")).unwrap();
            }
        }
        Resource::Listener(Listener::Inbound(it)) => {
            let domains: Vec<&str> = it.trust_domains.iter().map(|it| it.as_str()).collect();
            writeln!(seen, "{:?} for {}", it.mtls, domains.join(" ")).unwrap();
            for (port, how) in &it.ports {
                writeln!(seen, "{port} {:?} http={} {}", how.mtls, how.http, how.service).unwrap();
            }
        }
        Resource::Listener(Listener::Gateway(it)) => {
            writeln!(seen, "probe {}", it.probe).unwrap();
            for (sni, cluster) in &it.routes {
                writeln!(seen, "{sni} -> {cluster}").unwrap();
            }
        }
        Resource::Listener(Listener::Outbound(_))
        | Resource::Route(_)
        | Resource::Secret(_)
        | Resource::Zone(_) => writeln!(seen, "{resource:?}").unwrap(),
    }
    seen
}

fn endpoints(host: &str) -> ResourceName {
    ResourceName::new(ResourceKind::Endpoints, format!("outbound|80||{host}"))
}

fn cluster(host: &str) -> ResourceName {
    ResourceName::new(ResourceKind::Cluster, format!("outbound|80||{host}"))
}

#[track_caller]
fn check(text: &str, who: &str, name: ResourceName, expected: Expect) {
    let all = clusters(text);
    let own = linked(&all, "east");
    let view = view(&own, who);
    expected.assert_eq(&show(resource(&world(own), &view, &name)));
}

const ZONE_A: &str = "sidecar shop/web eu/a";

#[test]
fn global_names_mean_all_exporters_nearest_first() {
    let exported = format!("{THREE}\n east export shop/hello");
    check(
        &exported,
        ZONE_A,
        endpoints("hello.shop.global"),
        expect![[r#"
        0 eu/a x2: east 10.244.0.1:8080 x2
        1 eu/b x2: east 10.244.0.2:8080 x2
        2 eu/a x2: north 203.0.113.4:15443 x2
        3 us/a x4: west 203.0.113.2:15443 x2 west 203.0.113.3:15443 x2
        3 us/b x2: west 203.0.113.2:15443 x1 west 203.0.113.3:15443 x1
    "#]],
    );
    check(
        &exported,
        "sidecar shop/web us/a",
        endpoints("hello.shop.global"),
        expect![[r#"
        0 eu/a x2: east 10.244.0.1:8080 x2
        0 eu/b x2: east 10.244.0.2:8080 x2
        1 us/a x4: west 203.0.113.2:15443 x2 west 203.0.113.3:15443 x2
        1 us/b x2: west 203.0.113.2:15443 x1 west 203.0.113.3:15443 x1
        2 eu/a x2: north 203.0.113.4:15443 x2
    "#]],
    );
    check(
        THREE,
        ZONE_A,
        endpoints("hello.shop.global"),
        expect![[r#"
        0 eu/a x2: north 203.0.113.4:15443 x2
        1 us/a x4: west 203.0.113.2:15443 x2 west 203.0.113.3:15443 x2
        1 us/b x2: west 203.0.113.2:15443 x1 west 203.0.113.3:15443 x1
    "#]],
    );
    check(
        THREE,
        ZONE_A,
        endpoints("hello.shop.svc.clusterset.local"),
        expect![[r#"
        0 eu/a x2: north 203.0.113.4:15443 x2
        1 us/a x4: west 203.0.113.2:15443 x2 west 203.0.113.3:15443 x2
        1 us/b x2: west 203.0.113.2:15443 x1 west 203.0.113.3:15443 x1
    "#]],
    );
    check(
        THREE,
        ZONE_A,
        endpoints("hello.shop.west.global"),
        expect![[r#"
        0 us/a x4: west 203.0.113.2:15443 x2 west 203.0.113.3:15443 x2
        0 us/b x2: west 203.0.113.2:15443 x1 west 203.0.113.3:15443 x1
    "#]],
    );
    check(THREE, ZONE_A, endpoints("hello.shop.east.global"), expect!["absent"]);
    check(
        &exported,
        ZONE_A,
        endpoints("hello.shop.east.global"),
        expect![[r#"
        0 eu/a x1: east 10.244.0.1:8080 x1
        1 eu/b x1: east 10.244.0.2:8080 x1
    "#]],
    );
}

#[test]
fn local_names_mean_local_copies_until_both_sides_consent() {
    let local = "hello.shop.svc.cluster.local";
    check(
        THREE,
        ZONE_A,
        endpoints(local),
        expect![[r#"
        0 eu/a x1: east 10.244.0.1:8080 x1
        1 eu/b x1: east 10.244.0.2:8080 x1
        2 us/c x1: east 10.244.0.3:8080 x1 plain
    "#]],
    );
    let exported = format!("{THREE}\n east export shop/hello");
    check(
        &exported,
        ZONE_A,
        endpoints(local),
        expect![[r#"
        0 eu/a x2: east 10.244.0.1:8080 x2
        1 eu/b x2: east 10.244.0.2:8080 x2
        2 us/c x2: east 10.244.0.3:8080 x2 plain
        3 eu/a x2: north 203.0.113.4:15443 x2
        4 us/a x4: west 203.0.113.2:15443 x2 west 203.0.113.3:15443 x2
        4 us/b x2: west 203.0.113.2:15443 x1 west 203.0.113.3:15443 x1
    "#]],
    );
    let merged = THREE.replace("net-east gateway", "net-east merge gateway");
    check(
        &merged,
        ZONE_A,
        endpoints(local),
        expect![[r#"
        0 eu/a x2: east 10.244.0.1:8080 x2
        1 eu/b x2: east 10.244.0.2:8080 x2
        2 us/c x2: east 10.244.0.3:8080 x2 plain
        3 eu/a x2: north 203.0.113.4:15443 x2
        4 us/a x4: west 203.0.113.2:15443 x2 west 203.0.113.3:15443 x2
        4 us/b x2: west 203.0.113.2:15443 x1 west 203.0.113.3:15443 x1
    "#]],
    );
}

#[test]
fn traffic_distribution_brings_the_node_first() {
    let near =
        THREE.replace("10.96.0.1 80/http/web", "10.96.0.1 80/http/web prefer=PreferSameNode");
    let local = "hello.shop.svc.cluster.local";
    check(
        &near,
        "sidecar shop/e2 eu/b",
        endpoints(local),
        expect![[r#"
        0 eu/b x1: east 10.244.0.2:8080 x1
        1 eu/a x1: east 10.244.0.1:8080 x1
        2 us/c x1: east 10.244.0.3:8080 x1 plain
    "#]],
    );
}

#[test]
fn no_gateway_means_no_way() {
    let text = THREE.replace("net-north gateway=203.0.113.4:15443", "net-north");
    check(
        &text,
        ZONE_A,
        endpoints("hello.shop.global"),
        expect![[r#"
        0 us/a x4: west 203.0.113.2:15443 x2 west 203.0.113.3:15443 x2
        0 us/b x2: west 203.0.113.2:15443 x1 west 203.0.113.3:15443 x1
    "#]],
    );
    check(&text, ZONE_A, endpoints("hello.shop.north.global"), expect![]);
}

#[test]
fn servers_are_known_by_their_cluster() {
    let exported = format!("{THREE}\n east export shop/hello");
    check(
        &exported,
        ZONE_A,
        cluster("hello.shop.global"),
        expect![[r#"
        outbound_.80_._.hello.shop.global LeastRequest 1000 ms
        east: spiffe://east.mesh/ns/shop/sa/hello
        north: spiffe://north.mesh/ns/shop/sa/polar
        west: spiffe://west.mesh/ns/shop/sa/hello
    "#]],
    );
    check(
        THREE,
        ZONE_A,
        cluster("hello.shop.svc.cluster.local"),
        expect![[r#"
        outbound_.80_._.hello.shop.svc.cluster.local LeastRequest 1000 ms
        east: spiffe://east.mesh/ns/shop/sa/hello
    "#]],
    );
    check(
        THREE,
        ZONE_A,
        cluster("hello.shop.north.global"),
        expect![[r#"
        outbound_.80_._.hello.shop.north.global LeastRequest 1000 ms
        north: spiffe://north.mesh/ns/shop/sa/polar
    "#]],
    );
    // One trust domain for all (Istio's way): still each cluster's own accounts.
    let shared = exported
        .replace("net-west ", "net-west domain=cluster.local ")
        .replace("net-north ", "net-north domain=cluster.local ");
    check(
        &shared,
        ZONE_A,
        cluster("hello.shop.global"),
        expect![[r#"
        outbound_.80_._.hello.shop.global LeastRequest 1000 ms
        east: spiffe://east.mesh/ns/shop/sa/hello
        north: spiffe://cluster.local/ns/shop/sa/polar
        west: spiffe://cluster.local/ns/shop/sa/hello
    "#]],
    );
}

#[test]
fn rules_reach_all_forms_of_a_service() {
    let local = "hello.shop.svc.cluster.local";
    let text = format!(
        "{THREE}
        east rule shop/hello {local} lb=RANDOM timeout=50 subset=v1:version=v1
        east rule web/hello {local} lb=ROUND_ROBIN"
    );
    check(
        &text,
        ZONE_A,
        cluster("hello.shop.global"),
        expect![[r#"
        outbound_.80_._.hello.shop.global Random 50 ms
        north: spiffe://north.mesh/ns/shop/sa/polar
        west: spiffe://west.mesh/ns/shop/sa/hello
    "#]],
    );
    check(
        &text,
        "sidecar web/w eu/a",
        cluster("hello.shop.global"),
        expect![[r#"
        outbound_.80_._.hello.shop.global RoundRobin 1000 ms
        north: spiffe://north.mesh/ns/shop/sa/polar
        west: spiffe://west.mesh/ns/shop/sa/hello
    "#]],
    );
    let own_rule = format!("{text}\n east rule shop/global hello.shop.global timeout=70");
    check(
        &own_rule,
        ZONE_A,
        cluster("hello.shop.global"),
        expect![[r#"
        outbound_.80_._.hello.shop.global LeastRequest 70 ms
        north: spiffe://north.mesh/ns/shop/sa/polar
        west: spiffe://west.mesh/ns/shop/sa/hello
    "#]],
    );
    let subset = |subset| {
        ResourceName::new(ResourceKind::Endpoints, format!("outbound|80|{subset}|{local}"))
    };
    check(&text, ZONE_A, subset("v1"), expect![]);
    check(&text, ZONE_A, subset("v2"), expect!["absent"]);
}

#[test]
fn a_listener_stands_at_each_virtual_address() {
    let text = format!("{THREE}\n east service shop/raw 10.96.0.3 53/udp 54/tcp");
    let listener = |name: &str| ResourceName::new(ResourceKind::Listener, name);
    check(
        &text,
        ZONE_A,
        listener("10.96.0.1_80"),
        expect![[r#"
        Listener(Outbound(OutboundListener { address: 10.96.0.1:80, host: Hostname("hello.shop.svc.cluster.local"), target: Http { route: "outbound|80||hello.shop.svc.cluster.local" } }))
    "#]],
    );
    check(
        &text,
        ZONE_A,
        listener("10.96.0.3_54"),
        expect![[r#"
        Listener(Outbound(OutboundListener { address: 10.96.0.3:54, host: Hostname("raw.shop.svc.cluster.local"), target: Tcp { cluster: ClusterName { direction: Outbound, port: 54, subset: "", host: "raw.shop.svc.cluster.local" } } }))
    "#]],
    );
    for absent in ["10.96.0.3_53", "10.96.0.1_81", "10.96.0.9_80", "10.96.0.1_080", "gateway", ""] {
        check(&text, ZONE_A, listener(absent), expect!["absent"]);
    }
}

#[test]
fn peer_authentication_is_port_over_workload_over_namespace_over_mesh() {
    let text = "
        east service shop/hello 10.96.0.1 80/http 9000/tcp
        east pod shop/hello h 10.244.0.1 eu/a app=hello
        east pod shop/hello g 10.244.0.2 eu/a app=other
        west cluster net-west domain=caller.mesh";
    let mesh = format!("{text}\n east peerauth isthmus-system/mesh STRICT");
    let whole = format!("{mesh}\n east peerauth shop/all DISABLE");
    let one = format!(
        "{whole}\n east peerauth shop/hello PERMISSIVE app=hello port=8080:STRICT port=7:DISABLE"
    );
    let h = "sidecar shop/h eu/a";
    check(
        text,
        h,
        ResourceName::inbound(),
        expect![[r#"
        Permissive for caller.mesh east.mesh
        8080 Permissive http=true shop/hello
        9000 Permissive http=false shop/hello
    "#]],
    );
    check(
        &mesh,
        h,
        ResourceName::inbound(),
        expect![[r#"
        Strict for caller.mesh east.mesh
        8080 Strict http=true shop/hello
        9000 Strict http=false shop/hello
    "#]],
    );
    check(
        &whole,
        h,
        ResourceName::inbound(),
        expect![[r#"
        Disable for caller.mesh east.mesh
        8080 Disable http=true shop/hello
        9000 Disable http=false shop/hello
    "#]],
    );
    check(
        &one,
        h,
        ResourceName::inbound(),
        expect![[r#"
        Permissive for caller.mesh east.mesh
        7 Disable http=false 
        8080 Strict http=true shop/hello
        9000 Permissive http=false shop/hello
    "#]],
    );
    check(
        &one,
        "sidecar shop/g eu/a",
        ResourceName::inbound(),
        expect![[r#"
        Disable for caller.mesh east.mesh
        8080 Disable http=true shop/hello
        9000 Disable http=false shop/hello
    "#]],
    );
    check(&one, "sidecar shop/nobody eu/a", ResourceName::inbound(), expect!["absent"]);
}

#[test]
fn a_gateway_opens_exports_alone() {
    let gateway = "gateway isthmus-system/gw eu/a";
    let text = format!(
        "{THREE}
        east service shop/secret 10.96.0.8 80/http
        east rule shop/hello hello.shop.svc.cluster.local subset=v1:version=v1
        east pod shop/hello e4 10.244.0.4 eu/a version=v1
        east export shop/hello"
    );
    check(
        &text,
        gateway,
        ResourceName::gateway(),
        expect![[r#"
        probe probe.east.isthmus.internal
        outbound_.80_._.hello.shop.east.global -> outbound_.80_._.hello.shop.svc.cluster.local
        outbound_.80_._.hello.shop.global -> outbound_.80_._.hello.shop.svc.cluster.local
        outbound_.80_._.hello.shop.svc.cluster.local -> outbound_.80_._.hello.shop.svc.cluster.local
        outbound_.80_._.hello.shop.svc.clusterset.local -> outbound_.80_._.hello.shop.svc.cluster.local
        outbound_.80_.v1_.hello.shop.east.global -> outbound_.80_.v1_.hello.shop.svc.cluster.local
        outbound_.80_.v1_.hello.shop.global -> outbound_.80_.v1_.hello.shop.svc.cluster.local
        outbound_.80_.v1_.hello.shop.svc.cluster.local -> outbound_.80_.v1_.hello.shop.svc.cluster.local
        outbound_.80_.v1_.hello.shop.svc.clusterset.local -> outbound_.80_.v1_.hello.shop.svc.cluster.local
    "#]],
    );
    let closed = format!("{text}\n east passthrough other.shop.svc.cluster.local");
    check(
        &closed,
        gateway,
        ResourceName::gateway(),
        expect![[r#"
        probe probe.east.isthmus.internal
    "#]],
    );
    let open = |name: &str| ResourceName::new(ResourceKind::Endpoints, name);
    let hello = "outbound_.80_._.hello.shop.svc.cluster.local";
    check(
        &text,
        gateway,
        open(hello),
        expect![[r#"
        0 eu/a x2: east 10.244.0.1:8080 x1 plain east 10.244.0.4:8080 x1 plain
        1 eu/b x1: east 10.244.0.2:8080 x1 plain
    "#]],
    );
    check(
        &text,
        gateway,
        open("outbound_.80_.v1_.hello.shop.svc.cluster.local"),
        expect![[r#"
        0 eu/a x1: east 10.244.0.4:8080 x1 plain
    "#]],
    );
    check(&closed, gateway, open(hello), expect!["absent"]);
    check(&text, ZONE_A, open(hello), expect!["absent"]);
    check(&text, gateway, endpoints("hello.shop.global"), expect!["absent"]);
    check(&text, gateway, open("outbound_.80_._.secret.shop.svc.cluster.local"), expect!["absent"]);
}

#[test]
fn every_name_that_is_listed_can_be_had() {
    let text = format!(
        "{THREE}\n east export shop/hello\n east service shop/cdn external 443/tcp
        east service shop/db none 5432/tcp 53/udp
        east rule shop/hello hello.shop.svc.cluster.local subset=v1:version=v1"
    );
    let own = linked(&clusters(&text), "east");
    for who in [ZONE_A, "sidecar shop/e1 eu/a", "gateway isthmus-system/gw eu/a"] {
        let (world, view) = (world(own.clone()), view(&own, who));
        let kinds = [
            ResourceKind::Secret,
            ResourceKind::Cluster,
            ResourceKind::Endpoints,
            ResourceKind::Listener,
            ResourceKind::Route,
            ResourceKind::Zone,
        ];
        for name in kinds.into_iter().flat_map(|kind| names(&world, &view, kind)) {
            let made = resource(&world, &view, &name);
            assert!(made.is_some(), "{name}");
            if let Resource::Route(route) = &*made.unwrap() {
                assert_eq!(route.name.parse::<ClusterName>().as_ref(), Ok(&route.cluster));
            }
        }
    }
}

/// The promise of decision 5: cost grows with distinct keys, not with services or proxies.
#[test]
fn one_endpoint_change_computes_at_most_three_resources_per_key() {
    let mut text = String::from("east cluster net-east\n");
    for n in 0..5_000 {
        let (high, low) = (n / 250, n % 250);
        writeln!(text, "east service ns{}/s{n} 10.{high}.{low}.1 80/http", n % 50).unwrap();
        writeln!(text, "east pod ns{}/s{n} p{n} 10.244.{high}.{low} eu/a", n % 50).unwrap();
    }
    let own = clusters(&text).remove("east").unwrap();
    // 200 proxies in 4 zones, each with 5 services in use.
    let views: Vec<_> = (0..200)
        .map(|n| {
            view(&own, &format!("sidecar ns{}/p{n} eu/{}", n % 50, ["a", "b", "c", "d"][n % 4]))
        })
        .collect();
    let wanted = |n: usize| {
        let hosts = [7, n, n + 1, n + 2, n + 3];
        hosts.map(|n| format!("outbound|80||s{n}.ns{}.svc.cluster.local", n % 50)).map(|name| {
            [ResourceKind::Cluster, ResourceKind::Endpoints, ResourceKind::Route]
                .map(|kind| ResourceName::new(kind, name.clone()))
        })
    };
    let ask = |cache: &mut Cache| {
        for (n, view) in views.iter().enumerate() {
            for name in wanted(n).into_iter().flatten() {
                assert!(cache.resource(view, &name).is_some());
            }
            cache.resource(view, &ResourceName::inbound());
        }
    };
    let mut cache = Cache::new(world(own.clone()));
    ask(&mut cache);
    let before = cache.computed();
    ask(&mut cache);
    assert_eq!(cache.computed(), before, "asking again computes nothing");

    let mut next = own.clone();
    let name = crate::fixture::service("ns7/s7");
    next.endpoints.get_mut(&name).unwrap()[0].address = "10.244.99.99".parse().unwrap();
    cache.update(world(next));
    ask(&mut cache);
    let computed = cache.computed() - before;
    // Keys of that service's copies: four zones on one network; and the pod's own inbound.
    assert!(computed <= 3 * 4, "{computed} resources were computed for four distinct keys");
    assert!(computed >= 4, "{computed}: the change must be seen from each zone");
}

#[test]
fn equal_news_keeps_the_pointer() {
    let own = linked(&clusters(THREE), "east");
    let view = view(&own, ZONE_A);
    let mut cache = Cache::new(world(own.clone()));
    let name = endpoints("hello.shop.svc.cluster.local");
    let first = cache.resource(&view, &name).unwrap();
    let mut next = own;
    // A remote copy more changes the family, but not what this name means here.
    next.entries.values_mut().for_each(|entry| entry.endpoints.clear());
    assert!(!cache.update(world(next)).is_empty());
    assert!(Arc::ptr_eq(&first, &cache.resource(&view, &name).unwrap()));
}

#[test]
fn a_rule_for_a_service_that_is_only_elsewhere_is_news() {
    let text = THREE.replace("east service", "west service").replace("east pod", "west pod");
    let ruled =
        format!("{text}\n east rule isthmus-system/r hello.shop.svc.cluster.local timeout=9");
    let own = linked(&clusters(&text), "east");
    let view = view(&own, ZONE_A);
    let mut cache = Cache::new(world(own));
    let timeout =
        |cache: &mut Cache| match &*cache.resource(&view, &cluster("hello.shop.global")).unwrap() {
            Resource::Cluster(cluster) => cluster.connect_timeout_ms,
            other => panic!("{other:?}"),
        };
    assert_eq!(timeout(&mut cache), 1_000);
    cache.update(world(linked(&clusters(&ruled), "east")));
    assert_eq!(timeout(&mut cache), 9);
}

fn views(own: &Inventory) -> Vec<crate::world::View> {
    let pods = own.workloads.keys().take(3);
    let mut who: Vec<String> =
        pods.map(|pod| format!("sidecar {}/{} eu/a", pod.namespace, pod.name)).collect();
    who.extend(["sidecar shop/x us/a", "gateway isthmus-system/g eu/a"].map(Into::into));
    who.iter().map(|who| view(own, who)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn what_is_not_affected_is_equal(a in mesh_text(), b in mesh_text(), mix in 0..9) {
        let (a, b) = (linked(&clusters(&a), "east"), linked(&clusters(&b), "east"));
        // Single differences, too: all of `a` but one part.
        let b = match mix {
            0 => b,
            1 => Inventory { endpoints: b.endpoints, ..a.clone() },
            2 => Inventory { entries: b.entries, ..a.clone() },
            3 => Inventory { remote_gateways: b.remote_gateways, ..a.clone() },
            4 => Inventory { destination_rules: b.destination_rules, ..a.clone() },
            5 => Inventory { service_exports: b.service_exports, ..a.clone() },
            6 => Inventory { workloads: b.workloads, ..a.clone() },
            7 => Inventory { services: b.services, ..a.clone() },
            _ => Inventory {
                peer_authentications: b.peer_authentications,
                passthrough_hosts: b.passthrough_hosts,
                ..a.clone()
            },
        };
        let (old, new) = (world(a.clone()), world(b));
        let affected = affected(&old, &new);
        for view in views(&a) {
            let mut all = compile(&old, &view);
            all.extend(compile(&new, &view));
            for name in all.keys() {
                let parts = [view_part(&old, &view, name), view_part(&new, &view, name)];
                let touched = parts.iter().any(|part| affected.touches(name, part));
                if !touched && parts[0] == parts[1] {
                    prop_assert_eq!(
                        resource(&old, &view, name),
                        resource(&new, &view, name),
                        "{}",
                        name
                    );
                }
            }
        }
    }

    /// Each cluster gets the share of its ready copies, however many gateways it has.
    #[test]
    fn weights_conserve_capacity(text in mesh_text()) {
        let own = linked(&clusters(&text), "east");
        let world = world(own.clone());
        let view = view(&own, ZONE_A);
        for entry in own.entries.values() {
            for port in &entry.ports {
                let name = ClusterName::outbound(port.number, "", &entry.hosts[0]).to_string();
                let name = ResourceName::new(ResourceKind::Endpoints, name);
                let made = resource(&world, &view, &name).unwrap();
                let Resource::Endpoints(made) = &*made else { unreachable!() };
                let mut ready: BTreeMap<&str, u64> = BTreeMap::new();
                for copy in entry.endpoints.iter().filter(|copy| copy.serves(port.number)) {
                    *ready.entry(copy.cluster.as_str()).or_default() += u64::from(copy.weight);
                }
                let mut got: BTreeMap<&str, u64> = BTreeMap::new();
                for copy in made.groups.iter().flat_map(|group| &group.endpoints) {
                    if copy.gateway {
                        *got.entry(copy.cluster.as_str()).or_default() += u64::from(copy.weight);
                    }
                }
                prop_assert_eq!(got.keys().collect::<Vec<_>>(), ready.keys().collect::<Vec<_>>());
                let units: BTreeSet<u64> = got.iter().map(|(id, sum)| sum / ready[id]).collect();
                prop_assert!(units.len() <= 1, "{:?} of {:?}", got, ready);
                prop_assert!(got.iter().all(|(id, sum)| sum % ready[id] == 0));
                let mut priorities: Vec<u32> = made.groups.iter().map(|it| it.priority).collect();
                priorities.dedup();
                prop_assert_eq!(&priorities, &(0..priorities.len() as u32).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn equal_parts_of_views_get_equal_resources(text in mesh_text()) {
        let own = linked(&clusters(&text), "east");
        let world = world(own.clone());
        let views = views(&own);
        for one in &views {
            for name in compile(&world, one).keys() {
                for other in &views {
                    if view_part(&world, one, name) == view_part(&world, other, name) {
                        prop_assert_eq!(resource(&world, one, name), resource(&world, other, name));
                    }
                }
            }
        }
    }
}
