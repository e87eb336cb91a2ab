//! One world, many views.

mod laws;

use super::resource;
use crate::fixture::{clusters, linked, view, world};
use crate::inventory::{MtlsMode, WorkloadName};
use crate::program::{Listener, Resource, ResourceKind, ResourceName};
use crate::world::{Dialect, View};
use expect_test::{Expect, expect};
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
                writeln!(seen, "{port} {:?} {} {}", how.mtls, how.protocol, how.service).unwrap();
            }
            for (what, policies) in
                [("deny", &it.authorization.deny), ("allow", &it.authorization.allow)]
            {
                for policy in policies {
                    writeln!(seen, "{what} {} rules={}", policy.object, policy.rules.len())
                        .unwrap();
                }
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
fn a_workload_is_told_the_policies_that_select_it() {
    let text = "
        east service shop/hello 10.96.0.1 80/http
        east pod shop/hello h 10.244.0.1 eu/a app=hello
        east policy shop/b DENY app=hello rule rule port=8080
        east policy shop/a ALLOW rule
        east policy shop/c ALLOW app=other rule
        east policy pay/d DENY rule
        east policy isthmus-system/z CUSTOM";
    check(
        text,
        "sidecar shop/h eu/a",
        ResourceName::inbound(),
        expect![[r#"
            Permissive for east.mesh
            8080 Permissive http shop/hello
            deny AuthorizationPolicy isthmus-system/z rules=0
            deny AuthorizationPolicy shop/b rules=2
            allow AuthorizationPolicy shop/a rules=1
        "#]],
    );
}

#[test]
fn an_envoy_of_a_pod_of_both_families_listens_on_both() {
    let text = "east pod shop/hello h 10.244.0.1 eu/a app=hello
        east pod shop/hello g 10.244.0.2 eu/a app=other";
    let mut own = linked(&clusters(text), "east");
    let h = WorkloadName { namespace: "shop".into(), name: "h".into() };
    own.workloads.get_mut(&h).unwrap().addresses.push("fd00:10:244::1".parse().unwrap());
    let world = world(own);
    let on_both = |who: &str, dialect| {
        let view = View { dialect, ..view(&world.own, who) };
        let inbound = resource(&world, &view, &ResourceName::inbound()).unwrap();
        let Resource::Listener(Listener::Inbound(listener)) = &*inbound else { panic!("{who}") };
        listener.ipv6
    };
    assert!(on_both("sidecar shop/h eu/a", Dialect::Envoy));
    assert!(!on_both("sidecar shop/g eu/a", Dialect::Envoy));
    assert!(!on_both("sidecar shop/h eu/a", Dialect::Isthmus), "its configuration says");
}

#[test]
fn of_several_peer_authentications_the_oldest_is_in_force() {
    let mode = |policies: &str| {
        let text = format!(
            "east service shop/hello 10.96.0.1 80/http
             east pod shop/hello h 10.244.0.1 eu/a app=hello
             east pod isthmus-system/own o 10.244.0.2 eu/a app=own
             {}",
            policies.replace("peerauth", "\neast peerauth")
        );
        let world = world(linked(&clusters(&text), "east"));
        ["shop/h", "isthmus-system/o"].map(|pod| {
            let (namespace, name) = pod.split_once('/').unwrap();
            let pod = WorkloadName { namespace: namespace.into(), name: name.into() };
            super::inbound::Policy::of(&world, &world.own.workloads[&pod]).mode
        })
    };
    use MtlsMode::{Disable, Permissive, Strict};
    for (policies, expected) in [
        (
            "peerauth shop/b STRICT created=1 peerauth shop/a PERMISSIVE created=2",
            [Strict, Permissive],
        ),
        ("peerauth shop/b STRICT created=2 peerauth shop/a PERMISSIVE created=1", [Permissive; 2]),
        (
            "peerauth shop/b STRICT app=hello created=1 peerauth shop/a DISABLE app=hello created=2",
            [Strict, Permissive],
        ),
        (
            "peerauth isthmus-system/b STRICT created=1 peerauth isthmus-system/a DISABLE created=2",
            [Strict; 2],
        ),
        // None for single workloads there.
        (
            "peerauth isthmus-system/b STRICT peerauth isthmus-system/own DISABLE app=own",
            [Strict; 2],
        ),
        ("peerauth shop/b STRICT peerauth shop/a DISABLE", [Disable, Permissive]),
    ] {
        assert_eq!(mode(policies), expected, "{policies}");
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
            8080 Permissive http shop/hello
            9000 Permissive tcp shop/hello
        "#]],
    );
    check(
        &mesh,
        h,
        ResourceName::inbound(),
        expect![[r#"
            Strict for caller.mesh east.mesh
            8080 Strict http shop/hello
            9000 Strict tcp shop/hello
        "#]],
    );
    check(
        &whole,
        h,
        ResourceName::inbound(),
        expect![[r#"
            Disable for caller.mesh east.mesh
            8080 Disable http shop/hello
            9000 Disable tcp shop/hello
        "#]],
    );
    check(
        &one,
        h,
        ResourceName::inbound(),
        expect![[r#"
            Permissive for caller.mesh east.mesh
            7 Disable tcp 
            8080 Strict http shop/hello
            9000 Permissive tcp shop/hello
        "#]],
    );
    check(
        &one,
        "sidecar shop/g eu/a",
        ResourceName::inbound(),
        expect![[r#"
            Disable for caller.mesh east.mesh
            8080 Disable http shop/hello
            9000 Disable tcp shop/hello
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
            0 eu/a x2: east 10.244.0.1:8080 x1 east 10.244.0.4:8080 x1
            1 eu/b x1: east 10.244.0.2:8080 x1
        "#]],
    );
    check(
        &text,
        gateway,
        open("outbound_.80_.v1_.hello.shop.svc.cluster.local"),
        expect![[r#"
            0 eu/a x1: east 10.244.0.4:8080 x1
        "#]],
    );
    check(&closed, gateway, open(hello), expect!["absent"]);
    check(&text, ZONE_A, open(hello), expect!["absent"]);
    check(&text, gateway, endpoints("hello.shop.global"), expect!["absent"]);
    check(&text, gateway, open("outbound_.80_._.secret.shop.svc.cluster.local"), expect!["absent"]);
}
