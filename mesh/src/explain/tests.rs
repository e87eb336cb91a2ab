//! Explanations as an operator reads them.

use super::{Verdict, why};
use crate::fixture::{clusters, linked, view, world};
use expect_test::{Expect, expect};

const WORLD: &str = "
    east cluster net-east gateway=203.0.113.1:15443
    west cluster net-west gateway=203.0.113.2:15443 gateway=203.0.113.3:15443
    north cluster net-north
    east service shop/hello 10.96.0.1 80/http/web
    east service shop/cart 10.96.0.2 80/http 53/udp
    east service shop/db none 5432/tcp
    east pod shop/hello e1 10.244.0.1 eu/a
    east pod shop/hello e2 10.244.0.2 eu/b unmeshed
    west service shop/hello 10.96.0.7 80/http/web
    west pod shop/hello w1 10.244.0.1 us/a
    west pod shop/hello w2 10.244.0.2 us/a
    north service shop/hello 10.96.0.7 80/http/web
    north pod shop/hello n1 10.244.0.1 eu/a
    west export shop/hello
    north export shop/hello";

#[track_caller]
fn check(host: &str, port: u16, expected: Expect) {
    let own = linked(&clusters(WORLD), "east");
    let view = view(&own, "sidecar shop/web eu/a");
    let mut text = why(&world(own), &view, host, port, &[]).to_string();
    text.push('\n');
    expected.assert_eq(&text);
}

#[test]
fn a_call_is_explained_to_its_endpoints() {
    check(
        "hello.shop.global",
        80,
        expect![[r#"
            hello.shop.global:80
              hello.shop.global is a service of all clusters that export it; its addresses: 240.240.246.140, 2001:2:0:83ac:d8c1:f745:d257:8ab
              listener 240.240.246.140_80 takes it as http
              route outbound|80||hello.shop.global: up to 3 more attempts, a second one after 300 ms
              cluster outbound|80||hello.shop.global, balanced by LEAST_REQUEST (no DestinationRule)
              1 in north, eu/a (another network in the same region): unreachable, no gateway of its cluster with a usable IP address is known here, mTLS, not used
              2 in west, us/a (another network): through gateway 203.0.113.2:15443, 203.0.113.3:15443, mTLS, priority 0
              in north the server must be spiffe://north.mesh/ns/shop/sa/hello
              in west the server must be spiffe://west.mesh/ns/shop/sa/hello
              in west its own AuthorizationPolicies decide, which were not looked at (--peer and its context does)
            It can be called.
        "#]],
    );
    check(
        "hello",
        80,
        expect![[r#"
            hello:80
              the search list completes it to hello.shop.svc.cluster.local
              hello.shop.svc.cluster.local is a Service of this cluster; its addresses: 10.96.0.1
              listener 10.96.0.1_80 takes it as http
              route outbound|80||hello.shop.svc.cluster.local: up to 3 more attempts, a second one after 300 ms
              cluster outbound|80||hello.shop.svc.cluster.local, balanced by LEAST_REQUEST (no DestinationRule)
              hello.shop.svc.cluster.local means this cluster's copies alone, since it is not exported here; hello.shop.global means all exporters'
              1 in east, eu/a (same zone): directly at 10.244.0.1:8080, mTLS, priority 0
              1 in east, eu/b (same region): directly at 10.244.0.2:8080, plaintext (not in the mesh), priority 1
              in east the server must be spiffe://east.mesh/ns/shop/sa/hello
              pod e1 takes port 8080 over mTLS or in plaintext (no PeerAuthentication)
              pod e1, port 8080, lets everybody in (no ALLOW policy selects it); the caller is spiffe://east.mesh/ns/shop/sa/web
            It can be called.
        "#]],
    );
}

#[test]
fn a_call_that_cannot_be_says_what_would_help() {
    check(
        "hello.shop.north.global",
        80,
        expect![[r#"
            hello.shop.north.global:80
              hello.shop.north.global is one cluster's copies of a service; its addresses: 240.240.91.139, 2001:2:0:b274:ca26:c0eb:1f27:b6b5
              listener 240.240.91.139_80 takes it as http
              route outbound|80||hello.shop.north.global: up to 3 more attempts, a second one after 300 ms
              cluster outbound|80||hello.shop.north.global, balanced by LEAST_REQUEST (no DestinationRule)
              1 in north, eu/a (another network in the same region): unreachable, no gateway of its cluster with a usable IP address is known here, mTLS, not used
              in north the server must be spiffe://north.mesh/ns/shop/sa/hello
            It cannot be called; the last steps say why.
        "#]],
    );
    check(
        "cart.shop.global",
        80,
        expect![[r#"
        cart.shop.global:80
          cart.shop.global is not known here: shop/cart is here but not exported (isthmus export shop/cart), the linked clusters north, west announce no such service here: not exported there, not in spec.import.namespaces of the link, or not heard yet (isthmus status)
        It cannot be called; the last steps say why.
    "#]],
    );
    check(
        "hello.pay.global",
        80,
        expect![[r#"
        hello.pay.global:80
          hello.pay.global is not known here: there is shop/hello, the linked clusters north, west announce no such service here: not exported there, not in spec.import.namespaces of the link, or not heard yet (isthmus status)
        It cannot be called; the last steps say why.
    "#]],
    );
    check(
        "hello.shop.south.global",
        80,
        expect![[r#"
        hello.shop.south.global:80
          hello.shop.south.global is not known here: shop/hello is here but not exported (isthmus export shop/hello), shop/hello is exported by north, west
        It cannot be called; the last steps say why.
    "#]],
    );
    check(
        "cart.shop",
        81,
        expect![[r#"
        cart.shop:81
          the search list completes it to cart.shop.svc.cluster.local
          cart.shop.svc.cluster.local is a Service of this cluster; its addresses: 10.96.0.2
          cart.shop.svc.cluster.local has no port 81; it offers 80
        It cannot be called; the last steps say why.
    "#]],
    );
    check(
        "cart.shop",
        53,
        expect![[r#"
        cart.shop:53
          the search list completes it to cart.shop.svc.cluster.local
          cart.shop.svc.cluster.local is a Service of this cluster; its addresses: 10.96.0.2
          port 53 of cart.shop.svc.cluster.local is UDP, which proxies do not carry; it offers 80
        It cannot be called; the last steps say why.
    "#]],
    );
    check(
        "db",
        5432,
        expect![[r#"
            db:5432
              the search list completes it to db.shop.svc.cluster.local
              db.shop.svc.cluster.local is a Service of this cluster; its addresses: none
              db.shop.svc.cluster.local has no virtual address: it is headless, its pods are dialled by their own addresses, in plaintext
              Service shop/db has no endpoints: it has no selector, and nobody has written any. Fix: give it the labels of its pods as spec.selector, or write an EndpointSlice
            It cannot be called; the last steps say why.
        "#]],
    );
    check(
        "example.com",
        443,
        expect![[r#"
            example.com:443
              example.com is not known here: it is no name of the mesh, upstream DNS decides
            The mesh does not carry it; it goes where DNS sends it.
        "#]],
    );
}

#[test]
fn the_rule_that_decides_is_named() {
    let text = WORLD.replace(" unmeshed", " version=v2");
    let steps = |policies: &str| {
        let own = linked(&clusters(&format!("{text}\n{policies}")), "east");
        let view = view(&own, "sidecar shop/web eu/a");
        let found = why(&world(own), &view, "hello", 80, &[]);
        let lines = found.to_string();
        let lines = lines.lines().filter(|line| line.contains("the caller"));
        (found.verdict, lines.map(|line| line.trim().to_owned()).collect::<Vec<_>>())
    };
    let who = "; the caller is spiffe://east.mesh/ns/shop/sa/web";
    let web = "rule principal=cluster.local/ns/shop/sa/web";
    let line = |pod: &str, what: &str| format!("pod {pod}, port 8080, {what}{who}");
    let open = "lets everybody in (no ALLOW policy selects it)";
    // One copy denies: the other can still be called.
    let (verdict, lines) = steps(&format!("east policy shop/no DENY version=v2 rule port=1 {web}"));
    let denied = "denies the caller by rules[1] of AuthorizationPolicy shop/no";
    assert_eq!((verdict, lines), (Verdict::Reachable, vec![line("e1", open), line("e2", denied)]));
    let (verdict, lines) = steps("east policy shop/callers ALLOW rule namespace=pay");
    let none = "denies the caller: no rule matches of AuthorizationPolicy shop/callers";
    assert_eq!((verdict, lines), (Verdict::Unreachable, vec![line("e1", none), line("e2", none)]));
    let (verdict, lines) = steps(&format!("east policy shop/callers ALLOW {web}"));
    let by = "lets the caller in by rules[0] of AuthorizationPolicy shop/callers";
    assert_eq!((verdict, lines), (Verdict::Reachable, vec![line("e1", by), line("e2", by)]));
}

#[test]
fn the_policy_that_set_a_ports_mode_is_named() {
    let text = WORLD.replace("e1 10.244.0.1 eu/a", "e1 10.244.0.1 eu/a app=hello");
    let text = format!("{text}\neast pod shop/cart tools 10.244.0.9 eu/a unmeshed");
    let modes = |pod: &str, policies: &str| {
        let own = linked(&clusters(&format!("{text}\n{policies}")), "east");
        let view = view(&own, &format!("sidecar shop/{pod} eu/a"));
        let found = why(&world(own), &view, "hello", 80, &[]).to_string();
        let lines = found.lines().filter(|line| line.contains("takes port"));
        lines.map(|line| line.trim().to_owned()).collect::<Vec<_>>()
    };
    let port = "east peerauth shop/hello UNSET app=hello port=8080:STRICT";
    let other = "east peerauth shop/hello STRICT app=hello port=9090:DISABLE";
    let open = "east peerauth shop/all PERMISSIVE";
    for (policies, expected) in [
        (port.to_owned(), "over mTLS only (PeerAuthentication shop/hello)"),
        (format!("{open}\n{port}"), "over mTLS only (PeerAuthentication shop/hello)"),
        (
            format!("{open}\n{}", port.replace("8080", "9090")),
            "over mTLS or in plaintext (PeerAuthentication shop/all)",
        ),
        (other.to_owned(), "over mTLS only (PeerAuthentication shop/hello)"),
        (port.replace("8080", "9090"), "over mTLS or in plaintext (no PeerAuthentication)"),
    ] {
        for pod in ["web", "tools"] {
            let expected = format!("pod e1 takes port 8080 {expected}");
            assert_eq!(modes(pod, &policies), [expected], "{pod}: {policies}");
        }
    }
}

#[test]
fn copies_that_are_called_first_decide() {
    let text = WORLD.replace("e2 10.244.0.2 eu/b unmeshed", "e2 10.244.0.2 eu/a version=v2");
    let verdict = |policies: &str| {
        let facts = format!("{text}\neast export shop/hello\n{policies}");
        let own = linked(&clusters(&facts), "east");
        let view = view(&own, "sidecar shop/web eu/a");
        why(&world(own), &view, "hello.shop.global", 80, &[]).verdict
    };
    let web = "rule principal=cluster.local/ns/shop/sa/web";
    assert_eq!(verdict(""), Verdict::Reachable);
    // West would let it in, and is not asked: a denial is an answer.
    assert_eq!(verdict(&format!("east policy shop/no DENY {web}")), Verdict::Unreachable);
    assert_eq!(verdict(&format!("east policy shop/no DENY version=v2 {web}")), Verdict::Partly);
}

#[test]
fn an_address_is_not_asked_of_dns() {
    check(
        "10.96.0.99",
        80,
        expect![[r#"
        10.96.0.99:80
          10.96.0.99 is not known here: no Service or ServiceEntry has this address
        The mesh does not carry it; it goes there as it is.
    "#]],
    );
    check(
        "10.244.0.1",
        8080,
        expect![[r#"
            10.244.0.1:8080
              10.244.0.1 is not known here: it is the address of pod shop/e1, not of a service: it is called in plaintext
              pod e1 takes port 8080 over mTLS or in plaintext (no PeerAuthentication)
              pod e1, port 8080, lets everybody in (no ALLOW policy selects it); the caller is nobody that proves a name (plaintext)
            The mesh does not carry it; it goes there as it is.
        "#]],
    );
    check(
        "hellö.shop.global",
        80,
        expect![[r#"
        hellö.shop.global:80
          hellö.shop.global is not known here: it is no name that DNS can have (ASCII, labels of 63)
        It cannot be called; the last steps say why.
    "#]],
    );
    let own = linked(&clusters(&format!("{WORLD}\neast peerauth shop/all STRICT")), "east");
    let view = view(&own, "sidecar shop/web eu/a");
    let found = why(&world(own), &view, "10.244.0.1", 8080, &[]);
    assert_eq!(found.verdict, Verdict::Unreachable, "{found}");
    assert!(found.to_string().contains("pod shop/e1"), "{found}");
}

#[test]
fn a_peer_that_was_seen_names_its_rule() {
    let steps = |policies: &str, peers: &[&str]| {
        let all = clusters(&format!("{WORLD}\n{policies}"));
        let own = linked(&all, "east");
        let view = view(&own, "sidecar shop/web eu/a");
        let peers: Vec<_> = peers.iter().map(|peer| world(linked(&all, peer))).collect();
        let found = why(&world(own), &view, "hello.shop.west.global", 80, &peers);
        let lines = found.to_string();
        let lines =
            lines.lines().filter(|line| line.contains("caller") || line.contains("own Auth"));
        (found.verdict, lines.map(|line| line.trim().to_owned()).collect::<Vec<_>>())
    };
    let web = "rule principal=east.mesh/ns/shop/sa/web";
    let who = "; the caller is spiffe://east.mesh/ns/shop/sa/web";
    let line = |pod: &str, what: &str| format!("pod {pod} of west, port 8080, {what}{who}");
    let (verdict, lines) = steps(&format!("west policy shop/no DENY {web}"), &["west", "north"]);
    let denied = "denies the caller by rules[0] of AuthorizationPolicy shop/no";
    let both = vec![line("w1", denied), line("w2", denied)];
    assert_eq!((verdict, lines), (Verdict::Unreachable, both));
    let (verdict, lines) = steps("", &["west"]);
    let open = "lets everybody in (no ALLOW policy selects it)";
    assert_eq!((verdict, lines), (Verdict::Reachable, vec![line("w1", open), line("w2", open)]));
    // Who is not looked at may let it in.
    let (verdict, lines) = steps(&format!("west policy shop/no DENY {web}"), &["north"]);
    assert_eq!(verdict, Verdict::Reachable);
    assert!(lines.len() == 1 && lines[0].contains("were not looked at"), "{lines:?}");
}

#[test]
fn an_explanation_agrees_with_what_the_proxy_gets() {
    let own = linked(&clusters(WORLD), "east");
    let view = view(&own, "sidecar shop/web eu/a");
    let world = world(own);
    let explained = why(&world, &view, "hello", 80, &[]);
    let json = serde_json::to_value(&explained).unwrap();
    assert_eq!(json["verdict"], "reachable");
    assert_eq!(json["steps"][0]["step"], "completed");
    let verdict = |host: &str| why(&world, &view, host, 80, &[]).verdict;
    assert_eq!(verdict("10.96.0.1"), Verdict::Reachable);
    assert_eq!(verdict("HELLO.shop.Global."), Verdict::Reachable);
    assert_eq!(verdict("hello.shop.north.global"), Verdict::Unreachable);
    assert_eq!(verdict("10.96.0.99"), Verdict::NotCarried);
}

#[test]
fn a_pod_without_a_sidecar_reaches_what_is_here() {
    let check = |facts: &str, host: &str, expected: Expect| {
        let text = format!("{WORLD}\neast pod shop/cart tools 10.244.0.9 eu/a unmeshed\n{facts}");
        let own = linked(&clusters(&text), "east");
        let mut view = view(&own, "sidecar shop/web eu/a");
        view.workload = "tools".into();
        expected.assert_eq(&format!("{}\n", why(&world(own), &view, host, 80, &[])));
    };
    check(
        "",
        "hello.shop.global",
        expect![[r#"
        hello.shop.global:80
          hello.shop.global is a service of all clusters that export it; its addresses: 240.240.246.140, 2001:2:0:83ac:d8c1:f745:d257:8ab
          pod tools has no sidecar: the cluster's DNS answers NXDOMAIN, since its copies are in north, west, where only a sidecar leads. Fix: let the pod have one (label its namespace istio-injection=enabled, then start it anew)
        It cannot be called; the last steps say why.
    "#]],
    );
    check(
        "",
        "hello.shop.west.global",
        expect![[r#"
        hello.shop.west.global:80
          hello.shop.west.global is one cluster's copies of a service; its addresses: 240.240.142.229, 2001:2:0:333e:5611:5683:c29f:6d1b
          pod tools has no sidecar: the cluster's DNS answers NXDOMAIN, since its copies are in west, where only a sidecar leads. Fix: let the pod have one (label its namespace istio-injection=enabled, then start it anew)
        It cannot be called; the last steps say why.
    "#]],
    );
    check(
        "east peerauth shop/all STRICT",
        "hello",
        expect![[r#"
            hello:80
              the search list completes it to hello.shop.svc.cluster.local
              hello.shop.svc.cluster.local is a Service of this cluster; its addresses: 10.96.0.1
              pod tools has no sidecar: kube-proxy picks a copy of this cluster, and the call goes there in plaintext
              pod e1 takes port 8080 over mTLS only (PeerAuthentication shop/all)
            Some calls are denied, for a denial is not tried elsewhere; the last steps say which.
        "#]],
    );
    check(
        "east export shop/hello",
        "hello.shop.global",
        expect![[r#"
            hello.shop.global:80
              hello.shop.global is a service of all clusters that export it; its addresses: 240.240.246.140, 2001:2:0:83ac:d8c1:f745:d257:8ab
              pod tools has no sidecar: where the cluster's DNS forwards the name (isthmus dns patch) it leads to this cluster's copies alone, in plaintext; those of north, west need a sidecar
              pod e1 takes port 8080 over mTLS or in plaintext (no PeerAuthentication)
              pod e1, port 8080, lets everybody in (no ALLOW policy selects it); the caller is nobody that proves a name (plaintext)
            The mesh does not carry it; it goes where DNS sends it.
        "#]],
    );
    check(
        "east export shop/hello",
        "hello.shop.east.global",
        expect![[r#"
            hello.shop.east.global:80
              hello.shop.east.global is one cluster's copies of a service; its addresses: 240.240.33.97, 2001:2:0:7ed3:dc0b:9aa2:157f:610f
              pod tools has no sidecar: where the cluster's DNS forwards the name (isthmus dns patch) it leads to this cluster's copies alone, in plaintext
              pod e1 takes port 8080 over mTLS or in plaintext (no PeerAuthentication)
              pod e1, port 8080, lets everybody in (no ALLOW policy selects it); the caller is nobody that proves a name (plaintext)
            The mesh does not carry it; it goes where DNS sends it.
        "#]],
    );
}
