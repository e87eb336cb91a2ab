//! From Kubernetes objects to what goes over the wire, held to files that people can read; and a real
//! Envoy accepts each resource that is in its dialect.
//!
//! `cargo xtask golden` writes the files anew: read the difference before you commit it.

#[path = "support/judge.rs"]
mod judge;

use expect_test::expect_file;
use kube::api::DynamicObject;
use mesh::compile::compile;
use mesh::name::Identity;
use mesh::program::Program;
use mesh::world::{Dialect, Role, View, World};
use xds::codec;

/// East's world as its control plane reads it.
fn world() -> World {
    let text = include_str!("golden/shop.yaml");
    let documents = text.split("\n---\n");
    let objects: Vec<DynamicObject> =
        documents.map(|text| serde_saphyr::from_str(text).unwrap()).collect();
    let inventory = cluster::watch::read(&objects, "isthmus-system").unwrap();
    let inventory = inventory.expect("ConfigMap and kube-system are there");
    assert_eq!(inventory.findings, [], "the golden world is a good one");
    World::new(inventory)
}

fn view(role: Role, dialect: Dialect, account: &str, pod: &str) -> View {
    let identity: Identity = account.parse().unwrap();
    View {
        role,
        dialect,
        cluster: "east".parse().unwrap(),
        network: "net-east".parse().unwrap(),
        locality: "eu/eu-a".to_owned().into(),
        namespace: identity.namespace.clone(),
        identity,
        workload: pod.to_owned(),
    }
}

/// Every kind of client, and the file that has what it gets.
fn clients() -> [(&'static str, View); 5] {
    let shop = "spiffe://east.mesh/ns/shop/sa/hello";
    let gateway = "spiffe://east.mesh/ns/isthmus-system/sa/isthmus-eastwestgateway";
    [
        ("sidecar.isthmus", view(Role::Sidecar, Dialect::Isthmus, shop, "hello-1")),
        ("gateway.isthmus", view(Role::Gateway, Dialect::Isthmus, gateway, "gateway-1")),
        ("sidecar.envoy", view(Role::Agent, Dialect::Envoy, shop, "hello-1")),
        ("client.grpc", view(Role::Agent, Dialect::Grpc, shop, "hello-1")),
        ("gateway.envoy", view(Role::Gateway, Dialect::Envoy, gateway, "gateway-1")),
    ]
}

fn text(program: &Program, dialect: Dialect) -> String {
    let resources = program.iter();
    let all: Vec<_> = resources
        .map(|(name, resource)| codec::resource_to_json(name, resource, dialect))
        .collect();
    format!("{}\n", serde_json::to_string_pretty(&all).unwrap())
}

#[test]
fn every_client_gets_what_the_files_say() {
    let world = world();
    for (name, view) in clients() {
        let program = compile(&world, &view);
        expect_file![format!("golden/{name}.json")].assert_eq(&text(&program, view.dialect));
    }
}

/// What our own proxies can be started from is what they are sent.
#[test]
fn our_files_are_read_back() {
    let world = world();
    for (_, view) in clients().into_iter().filter(|(_, view)| view.dialect == Dialect::Isthmus) {
        let program = compile(&world, &view);
        let read = codec::from_json(&text(&program, Dialect::Isthmus)).unwrap();
        assert_eq!(read, program);
    }
}

#[test]
fn a_real_envoy_accepts_every_golden_resource_of_its_dialect() {
    let Some(envoy) = judge::envoy() else { return };
    let world = world();
    let mut judged = 0;
    for (name, view) in clients().into_iter().filter(|(_, view)| view.dialect == Dialect::Envoy) {
        let program = compile(&world, &view);
        judged += program.len();
        let verdict = judge::validate(&envoy, name, &judge::bootstrap(&program));
        assert_eq!(verdict, Ok(()), "Envoy refuses {name}");
    }
    assert!(judged > 30, "only {judged} resources were judged");
}
