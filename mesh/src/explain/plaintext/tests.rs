//! What callers without a name are told, beside what the sidecars in front of the pods get.

use crate::authorize::{Caller, admit};
use crate::compile::resource;
use crate::explain::{Explanation, Verdict, why};
use crate::fixture::{clusters, view, world};
use crate::inventory::{Inventory, WorkloadName};
use crate::program::{Listener, Resource, ResourceName};
use crate::world::{View, World};
use expect_test::{Expect, expect};
use std::net::SocketAddr;

/// `hello` is called by its address, `db` is headless; `web` has a sidecar, `tools` has none.
const WORLD: &str = "
    east cluster net-east
    east service shop/hello 10.96.0.1 80/http
    east service shop/db none 5432/tcp 80/http
    east pod shop/hello e1 10.244.0.1 eu/a app=hello
    east pod shop/hello e2 10.244.0.2 eu/a app=hello version=v2
    east pod shop/db d1 10.244.1.1 eu/a app=db
    east pod shop/db d2 10.244.1.2 eu/a app=db version=v2
    east pod shop/clients web 10.244.2.1 eu/a
    east pod shop/clients tools 10.244.2.2 eu/a unmeshed";
const NAMED: &str = "east policy shop/named ALLOW rule principal=*";
/// Clients and what they call, all of it in plaintext.
const PLAIN: [(&str, &str, u16); 5] = [
    ("tools", "hello", 80),
    ("tools", "10.244.0.1", 8080),
    ("tools", "db", 5432),
    ("web", "10.244.0.1", 8080),
    ("web", "db", 5432),
];

fn own(facts: &str) -> Inventory {
    clusters(&format!("{WORLD}\n{facts}")).remove("east").unwrap()
}

fn client(own: &Inventory, pod: &str) -> View {
    view(own, &format!("sidecar shop/{pod} eu/a"))
}

fn ask(facts: &str, pod: &str, host: &str, port: u16) -> Explanation {
    let own = own(facts);
    let client = client(&own, pod);
    why(&world(own), &client, host, port, &[])
}

fn verdict(facts: &str, pod: &str, host: &str, port: u16) -> Verdict {
    ask(facts, pod, host, port).verdict
}

#[track_caller]
fn check(facts: &str, pod: &str, host: &str, port: u16, expected: Expect) {
    expected.assert_eq(&format!("{}\n", ask(facts, pod, host, port)));
}

#[test]
fn who_proves_no_name_is_denied_by_policies_that_ask_for_one() {
    for (pod, host, port) in PLAIN {
        assert_eq!(verdict("", pod, host, port), Verdict::NotCarried, "{pod} {host}");
        let found = ask(NAMED, pod, host, port);
        assert_eq!(found.verdict, Verdict::Unreachable, "{found}");
        let said = found.to_string();
        let denied = "denies the caller: no rule matches of AuthorizationPolicy shop/named; the \
                      caller is nobody that proves a name (plaintext)";
        assert!(said.contains(denied), "{said}");
    }
    assert_eq!(verdict(NAMED, "web", "hello", 80), Verdict::Reachable, "it proves one");
}

#[test]
fn plaintext_has_the_address_of_its_client() {
    let denied = "east policy shop/no DENY rule ip=10.244.2.2";
    let allowed = "east policy shop/yes ALLOW rule ip=10.244.2.2";
    for (pod, host, port) in PLAIN {
        let (no, yes) = match pod {
            "tools" => (Verdict::Unreachable, Verdict::NotCarried),
            _ => (Verdict::NotCarried, Verdict::Unreachable),
        };
        assert_eq!(verdict(denied, pod, host, port), no, "{pod} {host}");
        assert_eq!(verdict(allowed, pod, host, port), yes, "{pod} {host}");
    }
}

#[test]
fn a_client_of_both_families_calls_from_the_one_it_calls() {
    let mut own = own("east policy shop/no DENY rule ip=fd00::2");
    let mut add = |pod: &str, address: &str| {
        let name = WorkloadName { namespace: "shop".into(), name: pod.into() };
        own.workloads.get_mut(&name).unwrap().addresses.push(address.parse().unwrap());
    };
    add("tools", "fd00::2");
    add("e1", "fd00::1");
    let client = client(&own, "tools");
    let world = world(own);
    let verdict = |host: &str| why(&world, &client, host, 8080, &[]).verdict;
    assert_eq!(verdict("10.244.0.1"), Verdict::NotCarried);
    assert_eq!(verdict("fd00::1"), Verdict::Unreachable);
}

#[test]
fn some_pods_take_it_and_others_do_not() {
    let denied = "east policy shop/no DENY version=v2 rule";
    let strict = "east peerauth shop/v2 STRICT version=v2";
    for facts in [denied, strict] {
        for (pod, host, port) in
            [("tools", "hello", 80), ("tools", "db", 5432), ("web", "db", 5432)]
        {
            assert_eq!(verdict(facts, pod, host, port), Verdict::Partly, "{facts}: {pod} {host}");
        }
        assert_eq!(verdict(facts, "web", "10.244.0.1", 8080), Verdict::NotCarried, "{facts}");
        assert_eq!(verdict(facts, "web", "10.244.0.2", 8080), Verdict::Unreachable, "{facts}");
    }
}

#[test]
fn pods_of_a_headless_service_are_called_at_the_port_that_is_asked() {
    let strict = |port: u16| format!("east peerauth shop/db UNSET app=db port={port}:STRICT");
    for pod in ["web", "tools"] {
        assert_eq!(verdict("east peerauth shop/all STRICT", pod, "db", 80), Verdict::Unreachable);
        assert_eq!(verdict(&strict(80), pod, "db", 80), Verdict::Unreachable);
        // Nothing leads from a Service's port to its target where no address of it is called.
        assert_eq!(verdict(&strict(8080), pod, "db", 80), Verdict::NotCarried);
        let denied = "east policy shop/no DENY app=db rule port=80";
        assert_eq!(verdict(denied, pod, "db", 80), Verdict::Unreachable);
        assert_eq!(verdict(denied, pod, "db", 5432), Verdict::NotCarried);
    }
}

#[test]
fn nothing_stands_before_a_pod_without_a_sidecar() {
    let facts = format!("east peerauth shop/all STRICT\n{NAMED}");
    let found = ask(&facts, "web", "10.244.2.2", 80);
    assert_eq!(found.verdict, Verdict::NotCarried, "{found}");
    let said = found.to_string();
    assert!(said.contains("pod shop/tools") && !said.contains("STRICT"), "{said}");
    let facts = format!("east pod shop/db d3 10.244.1.3 eu/a unmeshed\n{facts}");
    assert_eq!(verdict(&facts, "web", "db", 5432), Verdict::Partly);
}

/// What the sidecar of a pod does with plaintext, by the listener that it gets.
fn enforced(world: &World, client: &View, pod: &str, to: SocketAddr) -> bool {
    let sidecar = view(&world.own, &format!("sidecar shop/{pod} eu/a"));
    let Some(Resource::Listener(Listener::Inbound(listener))) =
        resource(world, &sidecar, &ResourceName::inbound()).as_deref().cloned()
    else {
        panic!("{pod} has no listener")
    };
    let source = WorkloadName { namespace: "shop".into(), name: client.workload.clone() };
    let source = world.own.workloads[&source].addresses[0];
    let caller = Caller { identity: None, source, destination: to, server_name: None };
    admit(&listener, &caller).allows()
}

#[test]
fn an_explanation_agrees_with_the_sidecars_on_plaintext() {
    for facts in [
        "",
        NAMED,
        "east peerauth shop/all STRICT",
        "east peerauth shop/all DISABLE",
        "east peerauth shop/v2 STRICT version=v2",
        "east peerauth shop/hello UNSET app=hello port=8080:STRICT",
        "east peerauth shop/all STRICT\neast peerauth shop/db STRICT app=db port=5432:PERMISSIVE",
        "east policy shop/no DENY version=v2 rule !principal=*",
        "east policy shop/no DENY rule ip=10.244.2.1",
        "east policy shop/yes ALLOW app=db rule ip=10.244.2.1 port=5432",
        "east policy shop/yes ALLOW rule to-ip=10.244.1.1 rule to-ip=10.244.0.1",
        "east policy shop/ask CUSTOM rule port=5432",
    ] {
        let world = world(own(facts));
        for pod in ["web", "tools"] {
            let client = client(&world.own, pod);
            let verdict = |host: &str, port| why(&world, &client, host, port, &[]).verdict;
            let takes = |pod, address: &str, port| {
                let to = SocketAddr::new(address.parse().unwrap(), port);
                // Else the client's sidecar would carry it, over mTLS.
                let carried = resource(&world, &client, &ResourceName::outbound(to.ip(), port));
                assert!(carried.is_none(), "{to}");
                enforced(&world, &client, pod, to)
            };
            let ends = |all: &[bool]| match (all.contains(&true), all.contains(&false)) {
                (true, true) => Verdict::Partly,
                (true, false) => Verdict::NotCarried,
                (false, _) => Verdict::Unreachable,
            };
            let (e1, e2) = (takes("e1", "10.244.0.1", 8080), takes("e2", "10.244.0.2", 8080));
            assert_eq!(verdict("10.244.0.1", 8080), ends(&[e1]), "{facts}: {pod}");
            assert_eq!(verdict("10.244.0.2", 8080), ends(&[e2]), "{facts}: {pod}");
            let (d1, d2) = (takes("d1", "10.244.1.1", 5432), takes("d2", "10.244.1.2", 5432));
            assert_eq!(verdict("db", 5432), ends(&[d1, d2]), "{facts}: {pod}");
            if pod == "tools" {
                assert_eq!(verdict("hello", 80), ends(&[e1, e2]), "{facts}: {pod}");
            }
        }
    }
}

#[test]
fn plaintext_is_explained_pod_by_pod() {
    let facts = "east policy shop/no DENY version=v2 rule !principal=*";
    check(
        facts,
        "tools",
        "hello",
        80,
        expect![[r#"
        hello:80
          the search list completes it to hello.shop.svc.cluster.local
          hello.shop.svc.cluster.local is a Service of this cluster; its addresses: 10.96.0.1
          pod tools has no sidecar: kube-proxy picks a copy of this cluster, and the call goes there in plaintext
          pod e1 takes port 8080 over mTLS or in plaintext (no PeerAuthentication)
          pod e1, port 8080, lets everybody in (no ALLOW policy selects it); the caller is nobody that proves a name (plaintext)
          pod e2 takes port 8080 over mTLS or in plaintext (no PeerAuthentication)
          pod e2, port 8080, denies the caller by rules[0] of AuthorizationPolicy shop/no; the caller is nobody that proves a name (plaintext)
        Some calls are denied, for a denial is not tried elsewhere; the last steps say which.
    "#]],
    );
    check(
        facts,
        "web",
        "10.244.0.2",
        8080,
        expect![[r#"
        10.244.0.2:8080
          10.244.0.2 is not known here: it is the address of pod shop/e2, not of a service: it is called in plaintext
          pod e2 takes port 8080 over mTLS or in plaintext (no PeerAuthentication)
          pod e2, port 8080, denies the caller by rules[0] of AuthorizationPolicy shop/no; the caller is nobody that proves a name (plaintext)
        It cannot be called; the last steps say why.
    "#]],
    );
    let strict = format!("{facts}\neast peerauth shop/db UNSET app=db port=80:STRICT");
    check(
        facts,
        "web",
        "db",
        5432,
        expect![[r#"
        db:5432
          the search list completes it to db.shop.svc.cluster.local
          db.shop.svc.cluster.local is a Service of this cluster; its addresses: none
          db.shop.svc.cluster.local has no virtual address: it is headless, its pods are dialled by their own addresses, in plaintext
          pod d1 takes port 5432 over mTLS or in plaintext (no PeerAuthentication)
          pod d1, port 5432, lets everybody in (no ALLOW policy selects it); the caller is nobody that proves a name (plaintext)
          pod d2 takes port 5432 over mTLS or in plaintext (no PeerAuthentication)
          pod d2, port 5432, denies the caller by rules[0] of AuthorizationPolicy shop/no; the caller is nobody that proves a name (plaintext)
        Some calls are denied, for a denial is not tried elsewhere; the last steps say which.
    "#]],
    );
    check(
        &strict,
        "web",
        "db",
        80,
        expect![[r#"
        db:80
          the search list completes it to db.shop.svc.cluster.local
          db.shop.svc.cluster.local is a Service of this cluster; its addresses: none
          db.shop.svc.cluster.local has no virtual address: it is headless, its pods are dialled by their own addresses, in plaintext
          pod d1 takes port 80 over mTLS only (PeerAuthentication shop/db)
          pod d2 takes port 80 over mTLS only (PeerAuthentication shop/db)
        It cannot be called; the last steps say why.
    "#]],
    );
}
