//! Names of pods, as clients of this cluster and of others write them.

use crate::explain::{Explanation, Verdict, why};
use crate::fixture::{clusters, linked, view, world};
use expect_test::{Expect, expect};

/// A StatefulSet `db` behind a headless Service of that name, and pods that its DNS does not name.
const WORLD: &str = "
    east cluster net-east
    west cluster net-west gateway=203.0.113.2:15443
    east service shop/db none 5432/tcp app=db
    east service shop/odd 10.96.0.3 80/http app=odd
    east pod shop/db db-0 10.244.1.1 eu/a app=db hostname=db-0
    east pod shop/db db-1 10.244.1.2 eu/a app=db hostname=db-1
    east pod shop/db db-2 10.244.1.3 eu/a app=db hostname=db-2 unready
    east pod shop/odd odd-0 10.244.1.4 eu/a app=odd
    east pod shop/clients web 10.244.2.1 eu/a
    west service shop/hello 10.96.0.7 80/http
    west pod shop/hello w1 10.244.0.1 us/a
    west export shop/hello";

fn ask(facts: &str, host: &str) -> Explanation {
    let own = linked(&clusters(&format!("{WORLD}\n{facts}")), "east");
    let client = view(&own, "sidecar shop/web eu/a");
    why(&world(own), &client, host, 5432, &[])
}

#[track_caller]
fn check(host: &str, expected: Expect) {
    expected.assert_eq(&format!("{}\n", ask("", host)));
}

#[test]
fn a_pod_of_a_stateful_set_is_called_by_its_own_address() {
    check(
        "db-0.db.shop.svc.cluster.local",
        expect![[r#"
        db-0.db.shop.svc.cluster.local:5432
          db-0.db.shop.svc.cluster.local is one pod of a Service of this cluster; its addresses: 10.244.1.1
          db-0.db.shop.svc.cluster.local has no virtual address: it is one pod's, which is dialled by its own address, in plaintext
          pod db-0 takes port 5432 over mTLS or in plaintext (no PeerAuthentication)
          pod db-0, port 5432, lets everybody in (no ALLOW policy selects it); the caller is nobody that proves a name (plaintext)
        The mesh does not carry it; it goes where DNS sends it.
    "#]],
    );
    for short in ["db-0.db", "db-0.db.shop", "db-0.db.shop.svc", "DB-0.db.shop.svc.cluster.local."]
    {
        let found = ask("", short);
        assert_eq!(found.verdict, Verdict::NotCarried, "{found}");
        assert!(found.to_string().contains("10.244.1.1"), "{found}");
    }
    let strict = ask("east peerauth shop/all STRICT", "db-0.db");
    assert_eq!(strict.verdict, Verdict::Unreachable, "{strict}");
    assert!(!strict.to_string().contains("pod db-1"), "{strict}");
    // As CoreDNS names an endpoint that has no host name.
    let dashed = ask("", "10-244-1-4.odd.shop");
    assert_eq!(dashed.verdict, Verdict::NotCarried, "{dashed}");
}

#[test]
fn a_pods_name_that_leads_nowhere_says_why() {
    check(
        "db-2.db",
        expect![[r#"
        db-2.db:5432
          the search list completes it to db-2.db.shop.svc.cluster.local
          db-2.db.shop.svc.cluster.local leads nowhere: pod shop/db-2 is not ready, and DNS names ready ones alone. Fix: see what it waits for (kubectl describe pod db-2 -n shop); pods that must find each other before they are ready want publishNotReadyAddresses: true in Service shop/db
        It cannot be called; the last steps say why.
    "#]],
    );
    check(
        "db-9.db",
        expect![[r#"
        db-9.db:5432
          the search list completes it to db-9.db.shop.svc.cluster.local
          db-9.db.shop.svc.cluster.local leads nowhere: there is no pod db-9 behind Service shop/db. Fix: start it, or name one that is ready: db-0, db-1
        It cannot be called; the last steps say why.
    "#]],
    );
    check(
        "odd-0.odd",
        expect![[r#"
        odd-0.odd:5432
          the search list completes it to odd-0.odd.shop.svc.cluster.local
          odd-0.odd.shop.svc.cluster.local leads nowhere: pod shop/odd-0 is behind Service shop/odd without a name there. Fix: start it by a StatefulSet whose serviceName is odd (or with hostname: odd-0 and subdomain: odd)
        It cannot be called; the last steps say why.
    "#]],
    );
    check(
        "web.db",
        expect![[r#"
        web.db:5432
          the search list completes it to web.db.shop.svc.cluster.local
          web.db.shop.svc.cluster.local leads nowhere: pod shop/web is there, and Service shop/db selects others, app=db. Fix: correct the Service's selector or the pod's labels, or name the pod's own Service
        It cannot be called; the last steps say why.
    "#]],
    );
}

#[test]
fn where_no_pod_is_ready_the_service_says_why() {
    let none = "
        east service shop/q none 80/http app=q
        east pod shop/q q-1 10.244.1.9 eu/a app=q hostname=q-1 unready";
    let found = ask(none, "q-0.q");
    let json = serde_json::to_value(&found).unwrap();
    assert_eq!(json["verdict"], "unreachable");
    let steps = &json["steps"];
    let gone = serde_json::json!({"step": "noPod", "host": "q-0.q.shop.svc.cluster.local",
        "pod": "q-0", "service": "shop/q", "reason": {"noSuch": {"named": []}}});
    let reason = serde_json::json!({"noneReady": {"selector": {"app": "q"}, "pods": ["q-1"]}});
    assert_eq!((&steps[1], &steps[2]["reason"]), (&gone, &reason), "{found}");
}

#[test]
fn the_mesh_has_no_name_for_one_pod() {
    check(
        "db-0.db.shop.global",
        expect![[r#"
        db-0.db.shop.global:5432
          db-0.db.shop.global is not known here: names of the mesh stand for services, and none for one pod of shop/db. Fix: in the pod's own cluster call db-0.db.shop.svc.cluster.local; for others give the pod a Service of its own (with a ClusterIP, and the selector statefulset.kubernetes.io/pod-name: db-0) and export that
        It cannot be called; the last steps say why.
    "#]],
    );
    let said = |host: &str| {
        let found = ask("", host);
        assert_eq!(found.verdict, Verdict::Unreachable, "{found}");
        found.to_string().contains("stand for services")
    };
    for host in [
        "db-0.db.shop.east.global",
        "db-0.db.shop.svc.clusterset.local",
        "db-0.east.db.shop.svc.clusterset.local",
        // Headless Services of other clusters are not known here.
        "q-0.queue.shop.global",
        "q-0.queue.shop.west.global",
    ] {
        assert!(said(host), "{host}");
    }
    for host in ["hello.shop.south.global", "cart.shop.west.global", "db.shop.global"] {
        assert!(!said(host), "{host}");
    }
}
