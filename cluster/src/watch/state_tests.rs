//! Small worlds, and what is seen of their endpoints.

use super::*;
use crate::parse::check::object;
use crate::parse::{self, Parsed};
use expect_test::{Expect, expect};
use k8s_openapi::api::core::v1::{Node, Pod, Service as KubeService};
use kube::Resource;
use std::fmt::Write as _;

const MESH: &str = "{metadata: {namespace: isthmus-system, name: isthmus-mesh}, data: {cluster: east, \
    network: net-east, trustDomain: east.mesh, rootCertificates: '-----BEGIN CERTIFICATE-----'}}";
const SERVICE: &str = "{metadata: {namespace: shop, name: hello}, spec: {clusterIP: 10.96.0.7, ports: \
    [{name: http, port: 80}, {name: admin, port: 81}]}}";
const NODE: &str = "{metadata: {name: n1, labels: {topology.kubernetes.io/region: r1, \
    topology.kubernetes.io/zone: r1a}}}";

fn item<K: Resource, T>(object: K, parse: impl Fn(&K) -> Parsed<T>) -> Item<T> {
    (Key::of(&object), parse(&object))
}

fn fine<T>(value: Option<T>) -> Parsed<T> {
    Parsed { value, findings: Vec::new() }
}

fn service(yaml: &str) -> Item<ServiceFacts> {
    item(object(yaml), |service: &KubeService| {
        let (own, door) = (
            parse::service::parse(service),
            parse::gateway_service::parse(service, "isthmus-system"),
        );
        fine(Some(ServiceFacts { service: own.value, door: door.value }))
    })
}

fn slice(name: &str, port: u16, endpoints: &str) -> Item<Slice> {
    slice_of("IPv4", name, &format!("[{{name: http, port: {port}}}]"), endpoints)
}

fn slice_of(family: &str, name: &str, ports: &str, endpoints: &str) -> Item<Slice> {
    let yaml = format!(
        "{{metadata: {{namespace: shop, name: {name}, labels: {{kubernetes.io/service-name: hello}}}}, \
         addressType: {family}, ports: {ports}, endpoints: [{endpoints}]}}"
    );
    item(object(&yaml), parse::endpoint_slice::parse)
}

fn pod(name: &str, uid: &str, labels: &str) -> Item<PodFacts> {
    let yaml = format!(
        "{{metadata: {{namespace: shop, name: {name}, uid: {uid}, labels: {{{labels}}}}}, spec: \
         {{nodeName: n1, serviceAccountName: hello, containers: []}}}}"
    );
    item(object(&yaml), |pod: &Pod| fine(parse::pod::parse(pod)))
}

fn node(yaml: &str) -> Item<Locality> {
    item(object(yaml), |node: &Node| fine(parse::node::parse(node).map(|(_, locality)| locality)))
}

fn config(yaml: &str) -> Item<MeshConfig> {
    item(object(yaml), parse::mesh_config::parse)
}

fn all<T>(items: Vec<T>) -> Change<T> {
    Change::Replaced(items)
}

/// Every kind listed, only Service `hello` and one node there.
fn world() -> State {
    let mut state = State::new("isthmus-system");
    for input in [
        Input::MeshConfig(all(vec![config(MESH)])),
        Input::Service(all(vec![service(SERVICE)])),
        Input::Slice(all(vec![])),
        Input::Pod(all(vec![])),
        Input::Node(all(vec![node(NODE)])),
        Input::Namespace(all(vec![(Key::new("", "kube-system"), fine(Some("uid-1".into())))])),
        Input::Entry(all(vec![])),
        Input::Passthrough(all(vec![])),
        Input::RemoteGateway(all(vec![])),
        Input::PeerAuthentication(all(vec![])),
        Input::AuthorizationPolicy(all(vec![])),
        Input::DestinationRule(all(vec![])),
        Input::ClusterLink(all(vec![])),
    ] {
        state.apply(input);
        assert!(state.inventory().is_none(), "not every kind has been listed");
    }
    state.apply(Input::ServiceExport(all(vec![])));
    assert_eq!(state.inventory().unwrap().uid, "uid-1");
    state
}

const ONE: &str = "{addresses: [10.0.0.1], targetRef: {kind: Pod, name: hello-1, uid: u1}}";
const MESHED: &str = "security.istio.io/tlsMode: istio";

/// Applies news one after the other; shows the endpoints of `hello` after each, or that nothing new
/// was published.
#[track_caller]
fn check(state: &mut State, news: Vec<Input>, expected: Expect) {
    let mut seen = String::new();
    for input in news {
        state.apply(input);
        let Some(inventory) = state.inventory() else {
            seen.push_str("silence\n");
            continue;
        };
        let endpoints = inventory.endpoints.values().flatten();
        let lines: Vec<String> = endpoints
            .map(|endpoint| {
                let ports: Vec<String> =
                    endpoint.ports.iter().map(|(from, to)| format!("{from}->{to}")).collect();
                format!(
                    "{} {} pod={} account={} locality={} meshed={}",
                    endpoint.address,
                    ports.join(","),
                    endpoint.pod,
                    endpoint.account,
                    endpoint.locality,
                    endpoint.meshed
                )
            })
            .collect();
        writeln!(seen, "[{}]", lines.join("; ")).unwrap();
    }
    expected.assert_eq(&seen);
}

#[test]
fn an_address_is_ready_once_its_pod_is_known_and_gone_with_it() {
    let one = || Input::Slice(Change::Applied(slice("a", 8080, ONE)));
    check(
        &mut world(),
        vec![
            one(),
            Input::Pod(Change::Applied(pod("hello-1", "u1", MESHED))),
            one(),
            Input::Pod(Change::Applied(pod("hello-1", "u2", MESHED))),
            Input::Pod(Change::Applied(pod("hello-1", "u1", "app: x"))),
            Input::Pod(Change::Deleted(pod("hello-1", "u1", ""))),
        ],
        expect![[r#"
            silence
            [10.0.0.1 80->8080 pod=hello-1 account=hello locality=r1/r1a meshed=true]
            silence
            []
            [10.0.0.1 80->8080 pod=hello-1 account=hello locality=r1/r1a meshed=false]
            []
        "#]],
    );
}

#[test]
fn a_node_a_service_or_a_slice_changes_what_hangs_on_it() {
    let moved = NODE.replace("r1a", "r1b");
    let fewer = SERVICE.replace("name: http, port: 80", "name: http, port: 8000");
    let mut state = world();
    state.apply(Input::Pod(all(vec![pod("hello-1", "u1", MESHED)])));
    state.apply(Input::Slice(all(vec![slice("a", 8080, ONE)])));
    check(
        &mut state,
        vec![
            Input::Node(Change::Applied(node(&moved))),
            Input::Node(Change::Deleted(node(&moved))),
            Input::Service(Change::Applied(service(&fewer))),
            Input::Slice(all(vec![slice("a", 8081, ONE)])),
            Input::Service(Change::Deleted(service(&fewer))),
            Input::Service(Change::Applied(service(SERVICE))),
            Input::Slice(Change::Deleted(slice("a", 8081, ONE))),
        ],
        expect![[r#"
            [10.0.0.1 80->8080 pod=hello-1 account=hello locality=r1/r1b meshed=true]
            [10.0.0.1 80->8080 pod=hello-1 account=hello locality= meshed=true]
            [10.0.0.1 8000->8080 pod=hello-1 account=hello locality= meshed=true]
            [10.0.0.1 8000->8081 pod=hello-1 account=hello locality= meshed=true]
            []
            [10.0.0.1 80->8081 pod=hello-1 account=hello locality= meshed=true]
            []
        "#]],
    );
}

#[test]
fn slices_of_both_families_and_with_parts_of_the_ports_make_one_endpoint() {
    let six = "{addresses: ['fd00::1'], targetRef: {kind: Pod, name: hello-1}}";
    let only_six = "{addresses: ['fd00::2'], targetRef: {kind: Pod, name: hello-2}}";
    let http = "[{name: http, port: 8080}]";
    let mut state = world();
    let pods = vec![pod("hello-1", "u1", MESHED), pod("hello-2", "u2", "app: x")];
    state.apply(Input::Pod(all(pods)));
    check(
        &mut state,
        vec![
            Input::Slice(Change::Applied(slice_of(
                "IPv6",
                "b",
                http,
                &format!("{six}, {only_six}"),
            ))),
            Input::Slice(Change::Applied(slice("a", 8080, ONE))),
            Input::Slice(Change::Applied(slice_of("IPv4", "c", "[{name: admin, port: 9}]", ONE))),
            Input::Slice(Change::Applied(slice_of("IPv4", "d", "[{name: else, port: 7}]", ONE))),
            Input::Slice(Change::Applied(slice_of(
                "IPv4",
                "e",
                "[{name: http}]",
                "{addresses: [192.0.2.1], nodeName: n1}",
            ))),
        ],
        expect![[r#"
            [fd00::1 80->8080 pod=hello-1 account=hello locality=r1/r1a meshed=true; fd00::2 80->8080 pod=hello-2 account=hello locality=r1/r1a meshed=false]
            [10.0.0.1 80->8080 pod=hello-1 account=hello locality=r1/r1a meshed=true; fd00::2 80->8080 pod=hello-2 account=hello locality=r1/r1a meshed=false]
            [10.0.0.1 80->8080,81->9 pod=hello-1 account=hello locality=r1/r1a meshed=true; fd00::2 80->8080 pod=hello-2 account=hello locality=r1/r1a meshed=false]
            silence
            [10.0.0.1 80->8080,81->9 pod=hello-1 account=hello locality=r1/r1a meshed=true; 192.0.2.1 80->80 pod= account= locality=r1/r1a meshed=false; fd00::2 80->8080 pod=hello-2 account=hello locality=r1/r1a meshed=false]
        "#]],
    );
}

#[test]
fn a_bad_configuration_does_not_unmake_a_running_mesh() {
    let mut state = world();
    let bad = config("{metadata: {namespace: isthmus-system, name: isthmus-mesh}, data: {}}");
    state.apply(Input::MeshConfig(Change::Applied(bad)));
    let inventory = state.inventory().unwrap();
    assert_eq!(inventory.mesh.cluster.as_str(), "east");
    assert!(inventory.findings.iter().any(|finding| finding.code == 3020), "{inventory:?}");

    state.apply(Input::MeshConfig(all(vec![])));
    let inventory = state.inventory().unwrap();
    assert_eq!(inventory.mesh.cluster.as_str(), "east");
    let codes: Vec<u16> = inventory.findings.iter().map(|finding| finding.code).collect();
    assert_eq!(codes, [3023]);

    let other = MESH.replace("network: net-east", "network: net-2");
    state.apply(Input::MeshConfig(all(vec![config(&other)])));
    let inventory = state.inventory().unwrap();
    assert_eq!(inventory.mesh.network.as_str(), "net-2");
    assert!(inventory.findings.is_empty());
}

#[test]
fn a_start_without_configuration_says_what_it_waits_for() {
    let mut state = State::new("isthmus-system");
    assert_eq!(state.waiting(), None, "the list is not here yet");
    state.apply(Input::MeshConfig(all(vec![])));
    let expected = "ConfigMap isthmus-system/isthmus-mesh does not exist";
    assert_eq!(state.waiting().as_deref(), Some(expected));
    let bad = config("{metadata: {namespace: isthmus-system, name: isthmus-mesh}, data: {}}");
    state.apply(Input::MeshConfig(Change::Applied(bad)));
    assert!(state.waiting().unwrap().contains("data.cluster: it is missing"));
    state.apply(Input::MeshConfig(Change::Applied(config(MESH))));
    assert_eq!(state.waiting(), None);
}

#[test]
fn entries_are_read_again_when_the_mesh_says_where_they_stand() {
    let entry = |hosts: &str| {
        let yaml = format!(
            "{{apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {{namespace: shop, \
             name: out}}, spec: {{hosts: [{hosts}], ports: [{{number: 80}}], resolution: STATIC, \
             endpoints: [{{address: 192.0.2.1}}]}}}}"
        );
        item(object(&yaml), |entry: &DynamicObject| fine(Some(entry.clone())))
    };
    let mut state = world();
    state.apply(Input::Entry(all(vec![entry("a.example.com, x.shop.global")])));
    let inventory = state.inventory().unwrap();
    let only = inventory.entries.values().next().unwrap();
    assert_eq!(only.endpoints[0].network.as_str(), "net-east");
    assert_eq!(inventory.findings.len(), 1, "{:?}", inventory.findings);

    let other = MESH.replace("network: net-east", "network: net-2");
    state.apply(Input::MeshConfig(all(vec![config(&other)])));
    let inventory = state.inventory().unwrap();
    assert_eq!(inventory.entries.values().next().unwrap().endpoints[0].network.as_str(), "net-2");

    state.apply(Input::Entry(Change::Deleted(entry("a.example.com"))));
    let inventory = state.inventory().unwrap();
    assert!(inventory.entries.is_empty() && inventory.findings.is_empty());
}

#[test]
fn a_gateways_service_is_announced_for_the_own_network_only() {
    let gateway = |network: &str| {
        service(&format!(
            "{{metadata: {{namespace: isthmus-system, name: gw-{network}, labels: {{istio: \
             eastwestgateway, topology.istio.io/network: {network}}}}}, spec: {{ports: [{{name: tls, \
             port: 15443}}]}}, status: {{loadBalancer: {{ingress: [{{ip: 203.0.113.7}}]}}}}}}"
        ))
    };
    let mut state = world();
    state.apply(Input::Service(Change::Applied(gateway("net-west"))));
    assert!(state.inventory().unwrap().gateway_addresses.is_empty());
    state.apply(Input::Service(Change::Applied(gateway("net-east"))));
    let addresses = state.inventory().unwrap().gateway_addresses.clone();
    assert_eq!(addresses.len(), 1, "{addresses:?}");
    assert_eq!(addresses[0].to_string(), "203.0.113.7:15443");
}

#[test]
fn a_principal_is_told_until_its_trust_domain_is_linked() {
    let policy = object(
        "{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {namespace: shop, name: \
         callers}, spec: {rules: [{from: [{source: {principals: [west.mesh/ns/shop/sa/web]}}]}]}}",
    );
    let mut state = world();
    let policy = item(policy, parse::authorization_policy::parse);
    state.apply(Input::AuthorizationPolicy(Change::Applied(policy)));
    let inventory = state.inventory().unwrap();
    assert_eq!(inventory.authorization_policies.len(), 1);
    let codes = |inventory: &Inventory| -> Vec<u16> {
        inventory.findings.iter().map(|finding| finding.code).collect()
    };
    assert_eq!(codes(&inventory), [3421]);
    let door = RemoteGateway {
        object: ObjectRef::new("Gateway", "isthmus-system", "isthmus-west"),
        network: "net-west".parse().unwrap(),
        cluster: None,
        addresses: vec![],
        trust_domain: Some("west.mesh".parse().unwrap()),
        source_uid: None,
        published: true,
    };
    let key = Key::new("isthmus-system", "isthmus-west");
    state.apply(Input::RemoteGateway(Change::Applied((key.clone(), fine(Some(door))))));
    assert_eq!(codes(&state.inventory().unwrap()), [0; 0]);
    state.apply(Input::RemoteGateway(Change::Deleted((key, fine(None)))));
    assert_eq!(codes(&state.inventory().unwrap()), [3421]);
}
