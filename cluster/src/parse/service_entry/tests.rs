//! What entries become, ours and the users', the bad ones too.

use super::*;
use crate::parse::check::{object, show};
use expect_test::{Expect, expect};

#[track_caller]
fn check(namespace: &str, meta: &str, spec: &str, expected: Expect) {
    let entry = format!(
        "{{apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {{namespace: {namespace}, \
         name: hello.shop.global, {meta}}}, spec: {spec}}}"
    );
    let (cluster, network) = ("east".parse().unwrap(), "net-east".parse().unwrap());
    let place = Place { root_namespace: "isthmus-system", cluster: &cluster, network: &network };
    expected.assert_eq(&show(&parse(&object(&entry), place)));
}

const OURS: &str = "creationTimestamp: '2026-01-02T03:04:05Z', labels: {app.kubernetes.io/managed-by: \
    isthmus-federation, istio.io/rev: isthmus, isthmus.dev/service: hello, \
    isthmus.dev/service-namespace: shop}, managedFields: [{manager: isthmus-federation, operation: \
    Apply}]";

const PUBLISHED: &str = "{hosts: [hello.shop.global, hello.shop.svc.clusterset.local], addresses: \
    [240.240.7.2, '2001:2::7'], ports: [{number: 80, name: http, protocol: HTTP}, {number: 443, name: \
    tls, protocol: TLS}], location: MESH_INTERNAL, resolution: STATIC, endpoints: [{network: net-west, \
    locality: r2/r2a, weight: 3, serviceAccount: hello, labels: {topology.istio.io/cluster: west, \
    security.istio.io/tlsMode: istio, isthmus.dev/trust-domain: west.mesh, isthmus.dev/ports: 80-443, \
    subset.isthmus.dev/v1: '2'}}], subjectAltNames: ['spiffe://west.mesh/ns/shop/sa/hello']}";

#[test]
fn ours_is_read_back_whole() {
    check("shop", OURS, PUBLISHED, expect![[""]]);
}

#[test]
fn ours_may_stand_in_the_root_namespace_and_have_no_ports() {
    check(
        "isthmus-system",
        OURS,
        "{hosts: [hello.shop.west.global], resolution: STATIC}",
        expect![[""]],
    );
}

#[test]
fn a_label_without_the_field_manager_publishes_nothing() {
    check(
        "shop",
        "labels: {app.kubernetes.io/managed-by: isthmus-federation, isthmus.dev/service: hello, \
         isthmus.dev/service-namespace: shop}",
        PUBLISHED,
        expect![[""]],
    );
}

#[test]
fn claims_for_another_namespace_or_host_publish_nothing() {
    check("other", OURS, PUBLISHED, expect![[""]]);
    check(
        "shop",
        OURS,
        "{hosts: [cart.shop.global, hello.shop.global], resolution: STATIC}",
        expect![[""]],
    );
}

#[test]
fn a_users_entry() {
    check(
        "shop",
        "",
        "{hosts: [API.example.com, old.shop.svc.cluster.local], addresses: [192.0.2.7/32], ports: \
         [{number: 443, name: tls, protocol: TLS}], resolution: STATIC, endpoints: [{address: \
         192.0.2.9}, {address: 192.0.2.8, locality: r1/r1a, weight: 5, labels: {app: old}}]}",
        expect![[""]],
    );
}

#[test]
fn reserved_and_foreign_hosts_are_refused() {
    check(
        "shop",
        "",
        "{hosts: [hello.shop.global, global, a.b.svc.clusterset.local, kubernetes.default, \
         x.isthmus-system.svc.cluster.local, probe.east.isthmus.internal, cart.other.svc.cluster.local, \
         cart.other.svc, shop.svc.cluster.local, x.cluster.local, '*.example.com', 'no host', \
         fine.example.com], ports: [{number: 80}], resolution: STATIC}",
        expect![[""]],
    );
}

#[test]
fn each_mistake_costs_itself_only() {
    check(
        "shop",
        "",
        "{hosts: [a.example.com], addresses: [10.0.0.0/8, nonsense, 0.0.0.0, 192.0.2.1], ports: [{number: 0}, \
         {number: 80, protocol: HTTP, targetPort: 8080}, {number: 80}, {number: 81, protocol: CARRIER}, \
         {number: 70000}], resolution: STATIC, endpoints: [{address: db.example.com}, {address: \
         192.0.2.2, network: Bad_One}, {address: 192.0.2.3, ports: {http: 8080}}, {labels: \
         {isthmus.dev/ports: 80-x}}], subjectAltNames: [me], exportTo: ['.'], colour: red}",
        expect![[""]],
    );
}

#[test]
fn no_port_no_host_no_static_no_entry() {
    check("shop", "", "{hosts: [a.example.com], resolution: STATIC}", expect![[""]]);
    check("shop", "", "{ports: [{number: 80}], resolution: STATIC}", expect![[""]]);
    check(
        "shop",
        "",
        "{hosts: [a.example.com], ports: [{number: 80}], resolution: DNS}",
        expect![[""]],
    );
    check("shop", "", "{hosts: 7}", expect![[""]]);
}
