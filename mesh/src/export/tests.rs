//! What a cluster says it exports, and what it says it cannot.

use crate::export::exports;
use crate::fixture::clusters;
use expect_test::{Expect, expect};
use std::fmt::Write;

#[track_caller]
fn check(text: &str, expected: Expect) {
    let all = clusters(text);
    let mut seen = String::new();
    for service in exports(&all["east"]).values() {
        write!(seen, "{}:", service.name).unwrap();
        for port in &service.ports {
            write!(seen, " {}/{}/{}", port.number, port.protocol, port.name).unwrap();
        }
        writeln!(seen, " as {:?}", service.accounts).unwrap();
        for count in &service.localities {
            writeln!(seen, "  {} x{} {:?}", count.locality, count.ready, count.subsets).unwrap();
        }
        for problem in &service.problems {
            writeln!(seen, "  ! {problem}").unwrap();
        }
    }
    expected.assert_eq(&seen);
}

#[test]
fn ready_meshed_copies_are_counted_by_locality_and_subset() {
    check(
        "east service shop/hello 10.96.0.1 80/http/web 9000/tcp/raw
         east service shop/quiet 10.96.0.2 80/http
         east pod shop/hello a 10.244.0.1 eu/a version=v1
         east pod shop/hello b 10.244.0.2 eu/a version=v2 account=other
         east pod shop/hello c 10.244.0.3 eu/b version=v2
         east pod shop/hello d 10.244.0.4 eu/b version=v2 unmeshed
         east rule shop/hello hello.shop.svc.cluster.local subset=v1:version=v1 subset=v2:version=v2
         east rule pay/hello hello.shop.svc.cluster.local subset=foreign:version=v1
         east export shop/hello",
        expect![[r#"
            shop/hello: 80/http/web 9000/tcp/raw as {"hello", "other"}
              eu/a x2 {"v1": 1, "v2": 1}
              eu/b x1 {"v2": 1}
        "#]],
    );
}

#[test]
fn what_cannot_be_called_says_why() {
    check(
        "east service shop/db none 5432/tcp
         east service shop/cdn external 443/tcp
         east service shop/dns 10.96.0.3 53/udp/dns 53/tcp/dns-tcp
         east service shop/plain 10.96.0.4 80/http
         east service shop/sticky 10.96.0.5 80/http affinity
         east service default/kubernetes 10.96.0.6 443/tcp
         east pod shop/plain p 10.244.0.1 eu/a unmeshed
         east pod shop/sticky s 10.244.0.2 eu/a
         east pod shop/db d 10.244.0.3 eu/a
         east export shop/db
         east export shop/cdn
         east export shop/dns
         east export shop/plain
         east export shop/sticky
         east export shop/absent
         east export default/kubernetes",
        expect![[r#"
            default/kubernetes: as {}
              ! ISM3201 this name is every cluster's own and is never exported. Fix: export a Service of another name; delete the ServiceExport of this one
            shop/cdn: as {}
              ! ISM3203 an ExternalName Service has no endpoints of this cluster. Fix: export a Service that selects pods, or let each cluster name the external host itself
            shop/db: as {}
              ! ISM3202 a headless Service has no one address to call from other clusters. Fix: add a Service with a ClusterIP for them and export that
            shop/dns: 53/tcp/dns-tcp as {}
              ! ISM3204 port 53 is UDP, which gateways do not carry; it is left out. Fix: offer it over TCP too
              ! ISM3205 it has no ready endpoint. Fix: start or mend its pods; others see it at once
            shop/plain: 80/http/ as {}
              ! ISM3206 none of its 1 ready endpoints is in the mesh, and other clusters call over mTLS only. Fix: run its pods with a sidecar
            shop/sticky: 80/http/ as {"sticky"}
              eu/a x1 {}
              ! ISM3207 sessionAffinity ClientIP is not kept across clusters. Fix: keep sessions in the application
        "#]],
    );
}

#[test]
fn a_subset_that_makes_no_tls_name_is_left_out() {
    let long = "v".repeat(63);
    check(
        &format!(
            "east service shop/hello 10.96.0.1 80/http
             east pod shop/hello a 10.244.0.1 eu/a version=v1
             east rule shop/hello hello.shop.svc.cluster.local subset={long}:version=v1 subset=Big:version=v1 subset=fine:version=v1
             east export shop/hello"
        ),
        expect![[r#"
            shop/hello: 80/http/ as {"hello"}
              eu/a x1 {"fine": 1}
              ! ISM3209 subset "Big" of DestinationRule shop/hello is left out, it makes no name in TLS: outbound_.80_.Big_.hello.shop.svc.cluster.local. Fix: rename it to at most 62 of a-z, 0-9 and '-', or shorten the Service's name
              ! ISM3209 subset "vvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvv" of DestinationRule shop/hello is left out, it makes no name in TLS: outbound_.80_.vvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvv_.hello.shop.svc.cluster.local. Fix: rename it to at most 62 of a-z, 0-9 and '-', or shorten the Service's name
        "#]],
    );
}
