//! Our own programs' watchers against the server, with the rights they have, and through its restart.

use crate::port::Port;
use crate::rows::definitions;
use crate::support::{Running, apply};
use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::api::{Api, PostParams};
use serde_json::{Value, json};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

fn slice(addresses: &[&str]) -> Value {
    let endpoints: Vec<Value> = addresses
        .iter()
        .map(|address| json!({"addresses": [address], "conditions": {"ready": true}}))
        .collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": "hello-1", "namespace": "shop", "labels": {"kubernetes.io/service-name": "hello"}},
        "addressType": "IPv4", "endpoints": endpoints,
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_is_watched_by_its_roles_and_through_a_restart() {
    let Some(definitions) = definitions() else { return };
    let port = Port::held();
    let server = Running::with(|config| {
        config.listen = port.address;
        config.store = Some(config.kubeconfig.with_file_name("objects"));
        config.allow_loopback_endpoints = true;
    })
    .await;
    let client = server.client().await;
    for definition in definitions {
        apply(&client, &definition).await.unwrap();
    }
    for name in ["isthmus-system", "istio-system", "shop"] {
        let namespace =
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
        apply(&client, &namespace).await.unwrap();
    }
    let roles = concat!(
        include_str!("../../../deploy/base/roles.yaml"),
        "---\n",
        include_str!("../../../deploy/istio-system-secrets.yaml"),
    );
    for part in roles.split("\n---") {
        let object: Value = serde_saphyr::from_str(part).unwrap();
        apply(&client, &object).await.unwrap();
    }
    let mesh = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "isthmus-mesh", "namespace": "isthmus-system"},
        "data": {"cluster": "east", "network": "east", "trustDomain": "east.mesh"},
    });
    apply(&client, &mesh).await.unwrap();
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "hello", "namespace": "shop"},
        "spec": {"selector": {"app": "hello"}, "ports": [{"name": "http", "port": 8080}]},
    });
    apply(&client, &service).await.unwrap();
    apply(&client, &slice(&["127.1.7.1"])).await.unwrap();

    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), "isthmus-system");
    let made = accounts
        .create_token_request(
            "isthmus-control-plane",
            &PostParams::default(),
            &TokenRequest::default(),
        )
        .await
        .unwrap();
    let own = server.client_with(&made.status.unwrap().token.unwrap()).await;
    let end = CancellationToken::new();
    let watched = cluster::watch::own(own, cluster::watch::Options::default(), end.clone());
    let mut inventory = watched.inventory;
    let mut sees = async |count: usize| {
        let found = inventory.wait_for(|inventory| {
            inventory.as_ref().is_some_and(|inventory| {
                inventory.endpoints.values().map(Vec::len).sum::<usize>() == count
            })
        });
        let found = tokio::time::timeout(Duration::from_secs(60), found).await;
        drop(found.unwrap_or_else(|_| panic!("never {count} endpoints")).unwrap());
    };
    sees(1).await;
    apply(&client, &slice(&["127.1.7.1", "127.1.7.2"])).await.unwrap();
    sees(2).await;

    // It comes back as it was: keys, tokens, objects; and the watch goes on.
    let server = server.restart().await;
    let client = server.client().await;
    apply(&client, &slice(&["127.1.7.1", "127.1.7.2", "127.1.7.3"])).await.unwrap();
    sees(3).await;
    end.cancel();
    server.stop().await;
}
