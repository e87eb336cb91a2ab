//! Published objects as Istio and the Gateway API read them.

use super::*;
use expect_test::{Expect, expect};
use mesh::inventory::{GatewayAddress, ServicePort};
use mesh::name::Locality;

fn check(value: &Value, expected: Expect) {
    expected.assert_eq(&serde_saphyr::to_string(value).unwrap());
}

pub(super) fn entry() -> ServiceEntry {
    let service = ServiceName::new("shop", "hello").unwrap();
    ServiceEntry {
        object: ObjectRef::new(ENTRY, "shop", "hello.shop.global"),
        hosts: vec![service.global_host(), service.clusterset_host()],
        addresses: vec!["240.240.1.2".parse().unwrap(), "2001:2::102".parse().unwrap()],
        ports: vec![ServicePort { number: 80, protocol: Protocol::Http, name: "http".into() }],
        endpoints: vec![EntryEndpoint {
            cluster: "west".parse().unwrap(),
            network: "net-west".parse().unwrap(),
            locality: Locality::from("eu/eu-1".to_owned()),
            weight: 3,
            account: "hello".into(),
            labels: BTreeMap::from([(label::TLS_MODE.to_owned(), "istio".to_owned())]),
            ports: BTreeSet::from([80, 443]),
            address: None,
        }],
        subject_alt_names: vec!["spiffe://west.mesh/ns/shop/sa/hello".parse().unwrap()],
        published: true,
        service: Some(service),
        source_uid: None,
        created: 17,
    }
}

#[test]
fn an_entry() {
    let body = entry_body(&entry());
    check(
        &body.json(&entry().object, Some("41"), 7),
        expect![[r#"
            apiVersion: networking.istio.io/v1
            kind: ServiceEntry
            metadata:
              annotations:
                isthmus.dev/term: "7"
              labels:
                app.kubernetes.io/managed-by: isthmus-federation
                isthmus.dev/service: hello
                isthmus.dev/service-namespace: shop
                istio.io/rev: isthmus
              name: hello.shop.global
              namespace: shop
              resourceVersion: "41"
            spec:
              addresses:
              - "240.240.1.2"
              - 2001:2::102
              endpoints:
              - labels:
                  isthmus.dev/ports: 80-443
                  security.istio.io/tlsMode: istio
                  topology.istio.io/cluster: west
                locality: eu/eu-1
                network: net-west
                serviceAccount: hello
                weight: 3
              hosts:
              - hello.shop.global
              - hello.shop.svc.clusterset.local
              location: MESH_INTERNAL
              ports:
              - name: http
                number: 80
                protocol: HTTP
              resolution: STATIC
              subjectAltNames:
              - spiffe://west.mesh/ns/shop/sa/hello
        "#]],
    );
}

#[test]
fn an_entry_that_rests() {
    let rest = Resting {
        host: "hello.shop.global".parse().unwrap(),
        addresses: entry().addresses,
        until: 1_000_000_000,
    };
    let body = resting_body(&rest);
    check(
        &body.json(&entry().object, Some("42"), 7),
        expect![[r#"
            apiVersion: networking.istio.io/v1
            kind: ServiceEntry
            metadata:
              annotations:
                isthmus.dev/rests-until: "2001-09-09T01:46:40Z"
                isthmus.dev/term: "7"
              labels:
                app.kubernetes.io/managed-by: isthmus-federation
                istio.io/rev: isthmus
              name: hello.shop.global
              namespace: shop
              resourceVersion: "42"
            spec:
              addresses:
              - "240.240.1.2"
              - 2001:2::102
              hosts:
              - hello.shop.global
              location: MESH_INTERNAL
              resolution: STATIC
        "#]],
    );
    // Waking it is a difference, even where the rest is equal.
    let awake = Body { annotations: BTreeMap::new(), ..body.clone() };
    assert!(!awake.stands_in(ENTRY, &body.labels, &body.annotations, &body.spec));
    assert!(body.stands_in(ENTRY, &body.labels, &body.annotations, &body.spec));
}

#[test]
fn a_uid_that_is_no_label_is_left_out() {
    let label = |uid: &str| source(Some(&uid.to_owned())).map(|(_, uid)| uid);
    let real = "5f0d5a0e-7a0e-4c8e-9f4e-0b1c2d3e4f50";
    assert_eq!(label(real).as_deref(), Some(real));
    for wrong in ["", "-a", "a b", "a/b", "\u{e4}", &"a".repeat(64)] {
        assert_eq!(label(wrong), None, "{wrong}");
    }
    assert_eq!(source(None), None);
}

#[test]
fn an_entry_without_copies_has_no_empty_lists() {
    let mut bare = entry();
    (bare.addresses, bare.ports, bare.endpoints, bare.subject_alt_names) = Default::default();
    let spec = entry_body(&bare).spec;
    let keys: Vec<&String> = spec.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["hosts", "location", "resolution"]);
}

fn gateway() -> RemoteGateway {
    RemoteGateway {
        object: ObjectRef::new(GATEWAY, "isthmus-system", "isthmus-west"),
        network: "net-west".parse().unwrap(),
        cluster: Some("west".parse().unwrap()),
        addresses: vec![
            GatewayAddress { host: "203.0.113.7".into(), port: 15443 },
            GatewayAddress { host: "gw.example.com".into(), port: 15443 },
        ],
        trust_domain: Some("west.mesh".parse().unwrap()),
        source_uid: Some("u-w".into()),
        published: true,
    }
}

#[test]
fn a_gateway() {
    let body = gateway_body(&gateway());
    check(
        &body.json(&gateway().object, None, 1),
        expect![[r#"
            apiVersion: gateway.networking.k8s.io/v1
            kind: Gateway
            metadata:
              annotations:
                isthmus.dev/term: "1"
                isthmus.dev/trust-domain: west.mesh
              labels:
                app.kubernetes.io/managed-by: isthmus-federation
                isthmus.dev/source-uid: u-w
                topology.istio.io/cluster: west
                topology.istio.io/network: net-west
              name: isthmus-west
              namespace: isthmus-system
            spec:
              addresses:
              - type: IPAddress
                value: "203.0.113.7"
              - type: Hostname
                value: gw.example.com
              gatewayClassName: istio-remote
              listeners:
              - name: tls
                port: 15443
                protocol: TLS
                tls:
                  mode: Passthrough
        "#]],
    );
}

#[test]
fn what_a_crd_adds_is_no_difference_and_what_a_person_changes_is() {
    let body = gateway_body(&gateway());
    let mut stands = body.spec.clone();
    stands["listeners"][0]["allowedRoutes"] = json!({"namespaces": {"from": "Same"}});
    assert!(body.stands_in(GATEWAY, &body.labels, &body.annotations, &stands));
    stands["addresses"][0]["value"] = "10.0.0.1".into();
    assert!(!body.stands_in(GATEWAY, &body.labels, &body.annotations, &stands));
    let mut fewer = body.spec.clone();
    fewer["addresses"].as_array_mut().unwrap().pop();
    assert!(!body.stands_in(GATEWAY, &body.labels, &body.annotations, &fewer));

    let body = entry_body(&entry());
    let mut more = body.spec.clone();
    more["endpoints"][0]["labels"]["subset.isthmus.dev/v1"] = "3".into();
    assert!(
        !body.stands_in(ENTRY, &body.labels, &body.annotations, &more),
        "a label too many is old news"
    );
    let mut labels = body.labels.clone();
    labels.insert("team".into(), "shop".into());
    assert!(body.stands_in(ENTRY, &labels, &body.annotations, &body.spec), "others may label it");
    labels.remove(label::REVISION);
    assert!(!body.stands_in(ENTRY, &labels, &body.annotations, &body.spec));
}
