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
    check(
        "shop",
        OURS,
        PUBLISHED,
        expect![[r#"
            object: ServiceEntry shop/hello.shop.global
            hosts:
            - hello.shop.global
            - hello.shop.svc.clusterset.local
            addresses:
            - "240.240.7.2"
            - 2001:2::7
            ports:
            - number: 80
              protocol: http
              name: http
            - number: 443
              protocol: tcp
              name: tls
            endpoints:
            - cluster: west
              network: net-west
              locality: r2/r2a
              weight: 3
              account: hello
              labels:
                isthmus.dev/ports: 80-443
                isthmus.dev/trust-domain: west.mesh
                security.istio.io/tlsMode: istio
                subset.isthmus.dev/v1: "2"
                topology.istio.io/cluster: west
              ports:
              - 80
              - 443
              address: null
            subject_alt_names:
            - spiffe://west.mesh/ns/shop/sa/hello
            published: true
            service: shop/hello
            source_uid: null
            created: 1767323045
        "#]],
    );
}

#[test]
fn ours_may_stand_in_the_root_namespace_and_have_no_ports() {
    check(
        "isthmus-system",
        OURS,
        "{hosts: [hello.shop.west.global], resolution: STATIC}",
        expect![[r#"
            object: ServiceEntry isthmus-system/hello.shop.global
            hosts:
            - hello.shop.west.global
            addresses: []
            ports: []
            endpoints: []
            subject_alt_names: []
            published: true
            service: shop/hello
            source_uid: null
            created: 1767323045
        "#]],
    );
}

#[test]
fn a_label_without_the_field_manager_publishes_nothing() {
    check(
        "shop",
        "labels: {app.kubernetes.io/managed-by: isthmus-federation, isthmus.dev/service: hello, \
         isthmus.dev/service-namespace: shop}",
        PUBLISHED,
        expect![[r#"
            nothing
            Refused ISM3302 ServiceEntry shop/hello.shop.global spec.hosts[0]: hello.shop.global is reserved, names of the mesh are written by the federation controller only; it is left out. Fix: name another host; to offer a service to other clusters write a ServiceExport.
            Refused ISM3302 ServiceEntry shop/hello.shop.global spec.hosts[1]: hello.shop.svc.clusterset.local is reserved, names of the mesh are written by the federation controller only; it is left out. Fix: name another host; to offer a service to other clusters write a ServiceExport.
            Refused ISM3304 ServiceEntry shop/hello.shop.global spec.hosts: it has no usable host, and is not used. Fix: name at least one host.
        "#]],
    );
}

#[test]
fn claims_for_another_namespace_or_host_publish_nothing() {
    check(
        "other",
        OURS,
        PUBLISHED,
        expect![[r#"
        nothing
        Refused ISM3301 ServiceEntry other/hello.shop.global metadata.labels: it claims to be published by Isthmus, but its labels name no service of its namespace; it is read as a user's. Fix: delete it; the federation controller writes its own again.
        Refused ISM3302 ServiceEntry other/hello.shop.global spec.hosts[0]: hello.shop.global is reserved, names of the mesh are written by the federation controller only; it is left out. Fix: name another host; to offer a service to other clusters write a ServiceExport.
        Refused ISM3302 ServiceEntry other/hello.shop.global spec.hosts[1]: hello.shop.svc.clusterset.local is reserved, names of the mesh are written by the federation controller only; it is left out. Fix: name another host; to offer a service to other clusters write a ServiceExport.
        Refused ISM3304 ServiceEntry other/hello.shop.global spec.hosts: it has no usable host, and is not used. Fix: name at least one host.
    "#]],
    );
    check(
        "shop",
        OURS,
        "{hosts: [cart.shop.global, hello.shop.global], resolution: STATIC}",
        expect![[r#"
            object: ServiceEntry shop/hello.shop.global
            hosts:
            - hello.shop.global
            addresses: []
            ports: []
            endpoints: []
            subject_alt_names: []
            published: true
            service: shop/hello
            source_uid: null
            created: 1767323045
            Refused ISM3301 ServiceEntry shop/hello.shop.global spec.hosts[0]: cart.shop.global is no name of shop/hello; it is left out. Fix: delete the entry; the federation controller writes its own again.
        "#]],
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
        expect![[r#"
            object: ServiceEntry shop/hello.shop.global
            hosts:
            - api.example.com
            - old.shop.svc.cluster.local
            addresses:
            - "192.0.2.7"
            ports:
            - number: 443
              protocol: tcp
              name: tls
            endpoints:
            - cluster: east
              network: net-east
              locality: ""
              weight: 1
              account: ""
              labels: {}
              ports: []
              address: "192.0.2.9"
            - cluster: east
              network: net-east
              locality: r1/r1a
              weight: 5
              account: ""
              labels:
                app: old
              ports: []
              address: "192.0.2.8"
            subject_alt_names: []
            published: false
            service: null
            source_uid: null
            created: 0
        "#]],
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
        expect![[r#"
            object: ServiceEntry shop/hello.shop.global
            hosts:
            - fine.example.com
            addresses: []
            ports:
            - number: 80
              protocol: auto
              name: ""
            endpoints: []
            subject_alt_names: []
            published: false
            service: null
            source_uid: null
            created: 0
            Refused ISM3302 ServiceEntry shop/hello.shop.global spec.hosts[0]: hello.shop.global is reserved, names of the mesh are written by the federation controller only; it is left out. Fix: name another host; to offer a service to other clusters write a ServiceExport.
            Refused ISM3302 ServiceEntry shop/hello.shop.global spec.hosts[1]: global is reserved, names of the mesh are written by the federation controller only; it is left out. Fix: name another host; to offer a service to other clusters write a ServiceExport.
            Refused ISM3302 ServiceEntry shop/hello.shop.global spec.hosts[2]: a.b.svc.clusterset.local is reserved, names of the mesh are written by the federation controller only; it is left out. Fix: name another host; to offer a service to other clusters write a ServiceExport.
            Refused ISM3302 ServiceEntry shop/hello.shop.global spec.hosts[3]: kubernetes.default is reserved, it is the cluster's own API server; it is left out. Fix: name another host; to offer a service to other clusters write a ServiceExport.
            Refused ISM3302 ServiceEntry shop/hello.shop.global spec.hosts[4]: x.isthmus-system.svc.cluster.local is reserved, the mesh's own namespace is reserved; it is left out. Fix: name another host; to offer a service to other clusters write a ServiceExport.
            Refused ISM3302 ServiceEntry shop/hello.shop.global spec.hosts[5]: probe.east.isthmus.internal is reserved, it is a name of the mesh's own gateways; it is left out. Fix: name another host; to offer a service to other clusters write a ServiceExport.
            Refused ISM3303 ServiceEntry shop/hello.shop.global spec.hosts[6]: cart.other.svc.cluster.local is not a name of namespace shop; it is left out. Fix: write the entry in the namespace its host belongs to.
            Refused ISM3303 ServiceEntry shop/hello.shop.global spec.hosts[7]: cart.other.svc is not a name of namespace shop; it is left out. Fix: write the entry in the namespace its host belongs to.
            Refused ISM3303 ServiceEntry shop/hello.shop.global spec.hosts[8]: shop.svc.cluster.local is not a name of namespace shop; it is left out. Fix: write the entry in the namespace its host belongs to.
            Refused ISM3303 ServiceEntry shop/hello.shop.global spec.hosts[9]: x.cluster.local is not a name of namespace shop; it is left out. Fix: write the entry in the namespace its host belongs to.
            Refused ISM3300 ServiceEntry shop/hello.shop.global spec.hosts[10]: it is left out: a host is lower-case DNS labels joined by '.'; "*.example.com" is not: a label has another character. Fix: write one host in full; wildcards are not supported.
            Refused ISM3300 ServiceEntry shop/hello.shop.global spec.hosts[11]: it is left out: a host is lower-case DNS labels joined by '.'; "no host" is not: a label has another character. Fix: write one host in full; wildcards are not supported.
        "#]],
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
        expect![[r#"
            object: ServiceEntry shop/hello.shop.global
            hosts:
            - a.example.com
            addresses:
            - "192.0.2.1"
            ports:
            - number: 80
              protocol: http
              name: ""
            - number: 81
              protocol: tcp
              name: ""
            endpoints:
            - cluster: east
              network: net-east
              locality: ""
              weight: 1
              account: ""
              labels: {}
              ports: []
              address: "192.0.2.3"
            subject_alt_names: []
            published: false
            service: null
            source_uid: null
            created: 0
            Warning ISM3002 ServiceEntry shop/hello.shop.global spec.colour: this field is not supported; the rest of the object is used without it. Fix: remove it, or do not rely on it.
            Warning ISM3002 ServiceEntry shop/hello.shop.global spec.exportTo: this field is not supported; the rest of the object is used without it. Fix: remove it, or do not rely on it.
            Refused ISM3307 ServiceEntry shop/hello.shop.global spec.ports[0].number: 0 is no port number; this port is left out. Fix: write a number from 1 to 65535.
            Warning ISM3308 ServiceEntry shop/hello.shop.global spec.ports[1].targetPort: another target port is not supported; endpoints are called at the port's own number. Fix: let the endpoints listen there too.
            Refused ISM3307 ServiceEntry shop/hello.shop.global spec.ports[2].number: 80 is there twice; the first is used. Fix: list each port once.
            Warning ISM3309 ServiceEntry shop/hello.shop.global spec.ports[3].protocol: "CARRIER" is unknown; it is carried as TCP. Fix: write HTTP, HTTP2, GRPC, TLS, HTTPS, TCP or UDP.
            Refused ISM3307 ServiceEntry shop/hello.shop.global spec.ports[4].number: 70000 is no port number; this port is left out. Fix: write a number from 1 to 65535.
            Refused ISM3306 ServiceEntry shop/hello.shop.global spec.addresses[0]: "10.0.0.0/8" is not one address of a host; it is left out. Fix: write single addresses; ranges are not supported.
            Refused ISM3306 ServiceEntry shop/hello.shop.global spec.addresses[1]: "nonsense" is not one address of a host; it is left out. Fix: write single addresses; ranges are not supported.
            Refused ISM3306 ServiceEntry shop/hello.shop.global spec.addresses[2]: "0.0.0.0" is not one address of a host; it is left out. Fix: write single addresses; ranges are not supported.
            Refused ISM3310 ServiceEntry shop/hello.shop.global spec.endpoints[0].address: "db.example.com" is no address; this endpoint is left out. Fix: write an address; names and Unix sockets are not supported.
            Refused ISM3311 ServiceEntry shop/hello.shop.global spec.endpoints[1].network: this endpoint is left out: a network is an RFC 1123 label; "Bad_One" is not: only a-z, 0-9 and '-' are allowed. Fix: correct it.
            Warning ISM3312 ServiceEntry shop/hello.shop.global spec.endpoints[2].ports: ports of single endpoints are not supported; it is called at the port's own number. Fix: let it listen there too.
            Refused ISM3313 ServiceEntry shop/hello.shop.global spec.endpoints[3].labels.isthmus.dev/ports: "80-x" is no list of ports; this endpoint is left out. Fix: write port numbers joined by '-'.
            Refused ISM3314 ServiceEntry shop/hello.shop.global spec.subjectAltNames[0]: nobody is let in by it: an identity reads spiffe://DOMAIN/ns/NAMESPACE/sa/ACCOUNT, "me" does not. Fix: write SPIFFE identities of workloads.
        "#]],
    );
}

#[test]
fn no_port_no_host_no_static_no_entry() {
    check(
        "shop",
        "",
        "{hosts: [a.example.com], resolution: STATIC}",
        expect![[r#"
        nothing
        Refused ISM3304 ServiceEntry shop/hello.shop.global spec.ports: it has no usable port, and is not used. Fix: name at least one port.
    "#]],
    );
    check(
        "shop",
        "",
        "{ports: [{number: 80}], resolution: STATIC}",
        expect![[r#"
        nothing
        Refused ISM3304 ServiceEntry shop/hello.shop.global spec.hosts: it has no usable host, and is not used. Fix: name at least one host.
    "#]],
    );
    check(
        "shop",
        "",
        "{hosts: [a.example.com], ports: [{number: 80}], resolution: DNS}",
        expect![[r#"
            nothing
            Refused ISM3305 ServiceEntry shop/hello.shop.global spec.resolution: DNS is not supported, so calls to its hosts stay outside the mesh. Fix: write STATIC, with the addresses as endpoints.
        "#]],
    );
    check(
        "shop",
        "",
        "{hosts: 7}",
        expect![[r#"
        nothing
        Refused ISM3001 ServiceEntry shop/hello.shop.global spec: it cannot be read and is not used: invalid type: integer `7`, expected a sequence. Fix: write it as its CRD says; kubectl explain shows the fields.
    "#]],
    );
}
