//! The own cluster on a real API server: what is published, how fast, and through which faults.

#[path = "own/server.rs"]
mod server;

use cluster::watch::{self, Options, Watched};
use futures::StreamExt as _;
use kube::Client;
use kube::api::{
    ApiResource, DeleteParams, DynamicObject, GroupVersionKind, Patch, PatchParams, PostParams,
};
use mesh::finding::ObjectRef;
use mesh::inventory::Inventory;
use mesh::name::ServiceName;
use serde_json::{Value, json};
use server::{Server, api};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// A watch rests 6 s at most between two attempts; the rest is for a server that has just started.
const FRESH_MAX: Duration = Duration::from_secs(30);

#[tokio::test]
async fn the_own_cluster_through_its_api_servers_faults() {
    let Some(programs) = server::programs() else { return };
    let mut server = Server::start(&programs).await;
    let client = server.client().await;
    let end = CancellationToken::new();
    let _stop = end.clone().drop_guard();
    for name in ["isthmus-system", "shop", "other"] {
        create(&client, "v1", "Namespace", json!({"metadata": {"name": name}})).await;
    }
    let mut watched = watch::own(client.clone(), Options::default(), end);

    waits_for_its_configuration(&client, &mut watched).await;
    objects_good_and_bad(&client, &mut watched).await;
    endpoints_are_published_at_once(&client, &mut watched).await;
    kinds_installed_later_are_found(&client, &mut watched).await;
    tokens_and_secrets(&client).await;
    a_killed_server_is_found_and_forgiven(&mut server, &client, &mut watched).await;
    a_hung_server_is_found_and_forgiven(&server, &client, &mut watched).await;
}

/// No CRD is installed yet, and there is no ConfigMap: the process says what it waits for.
async fn waits_for_its_configuration(client: &Client, watched: &mut Watched) {
    let health = watched
        .health
        .wait_for(|health| health.fresh() && health.waiting.len() == 1)
        .await
        .unwrap()
        .clone();
    assert!(health.reachable(), "{health:?}");
    assert_eq!(health.waiting, ["ConfigMap isthmus-system/isthmus-mesh does not exist"]);
    for kind in [
        "ServiceEntry",
        "Gateway",
        "PeerAuthentication",
        "AuthorizationPolicy",
        "DestinationRule",
        "ServiceExport",
    ] {
        let kind = &health.kinds[kind];
        assert!(kind.synced && kind.note.as_deref() == Some("not installed"), "{health:?}");
    }
    assert!(watched.inventory.borrow().is_none());
    create(
        client,
        "v1",
        "ConfigMap",
        json!({
            "metadata": {"namespace": "isthmus-system", "name": "isthmus-mesh"},
            "data": {"cluster": "east", "network": "net-east", "trustDomain": "east.mesh",
                "rootCertificates": "-----BEGIN CERTIFICATE-----"},
        }),
    )
    .await;
    let inventory = until(watched, |_| true).await;
    assert_eq!(inventory.mesh.cluster.as_str(), "east");
    assert!(!inventory.uid.is_empty() && inventory.namespaces.contains("shop"), "{inventory:?}");
    watched.health.wait_for(|health| health.waiting.is_empty()).await.unwrap();
}

async fn objects_good_and_bad(client: &Client, watched: &mut Watched) {
    create(
        client,
        "v1",
        "Node",
        json!({"metadata": {"name": "n1", "labels": {
        "topology.kubernetes.io/region": "r1", "topology.kubernetes.io/zone": "r1a"}}}),
    )
    .await;
    create(client, "v1", "ServiceAccount", meta("shop", "hello")).await;
    create(
        client,
        "v1",
        "Service",
        json!({
            "metadata": {"namespace": "shop", "name": "hello"},
            "spec": {"ports": [{"name": "http", "port": 80, "targetPort": 8080}]},
        }),
    )
    .await;
    create(
        client,
        "v1",
        "Service",
        json!({
            "metadata": {"namespace": "shop", "name": "odd", "annotations": {
                "networking.istio.io/traffic-distribution": "PreferMoon"}},
            "spec": {"type": "ExternalName", "externalName": "example.com"},
        }),
    )
    .await;
    create(
        client,
        "v1",
        "Pod",
        json!({
            "metadata": {"namespace": "shop", "name": "hello-1",
                "labels": {"app": "hello", "security.istio.io/tlsMode": "istio"}},
            "spec": {"nodeName": "n1", "serviceAccountName": "hello",
                "containers": [{"name": "app", "image": "none"}]},
        }),
    )
    .await;
    let status = json!({"status": {"phase": "Running", "podIP": "10.244.1.5",
        "podIPs": [{"ip": "10.244.1.5"}]}});
    api(client, "v1", "Pod", "shop")
        .patch_status("hello-1", &PatchParams::default(), &Patch::Merge(&status))
        .await
        .unwrap();
    create(client, "discovery.k8s.io/v1", "EndpointSlice", slice(true)).await;
    let inventory = until(watched, |inventory| ready(inventory) == 1).await;
    let endpoint = &inventory.endpoints[&hello()][0];
    assert_eq!(endpoint.address.to_string(), "10.244.1.5");
    assert_eq!(endpoint.ports[&80], 8080);
    assert_eq!(endpoint.locality.to_string(), "r1/r1a");
    assert_eq!((endpoint.account.as_str(), endpoint.meshed), ("hello", true));
    let odd = |inventory: &Inventory| finding(inventory, "Service", "odd", 3012);
    until(watched, odd).await;
}

/// Judged beside a bare watch of the same object: what it takes is the machine's and its API server's.
async fn endpoints_are_published_at_once(client: &Client, watched: &mut Watched) {
    let slices = api(client, "discovery.k8s.io/v1", "EndpointSlice", "shop");
    let (heard, mut bare) = tokio::sync::watch::channel(None);
    let watching = tokio::spawn(bare_watch(slices.clone(), heard));
    bare.wait_for(Option::is_some).await.unwrap();
    let (mut delays, mut ours) = (Vec::new(), Vec::new());
    for round in 0..40 {
        let wanted = round % 2 == 0;
        let patch = json!({"endpoints": slice(!wanted)["endpoints"]});
        slices.patch("hello-a", &PatchParams::default(), &Patch::Merge(&patch)).await.unwrap();
        let acknowledged = Instant::now();
        until(watched, |inventory| ready(inventory) == usize::from(!wanted)).await;
        let published = Instant::now();
        let heard = bare.wait_for(|heard| heard.is_some_and(|(ready, _)| ready != wanted));
        let (_, heard) = heard.await.unwrap().unwrap();
        delays.push(published - acknowledged);
        // Nobody looked before the change was acknowledged.
        ours.push(published.saturating_duration_since(heard.max(acknowledged)));
    }
    watching.abort();
    delays.sort();
    ours.sort();
    let (median, longest) = (delays[delays.len() / 2], delays[delays.len() - 1]);
    println!(
        "own endpoint change -> Inventory: median {median:?}, longest {longest:?}, of it ours {:?}",
        ours[ours.len() / 2]
    );
    assert!(ours[ours.len() / 2] < Duration::from_millis(50), "ours {ours:?} of {delays:?}");
}

/// Tells whether the slice's endpoint is ready, and when that was heard.
async fn bare_watch(
    slices: kube::Api<DynamicObject>,
    heard: tokio::sync::watch::Sender<Option<(bool, Instant)>>,
) {
    let mut changes = std::pin::pin!(kube::runtime::watcher::watch_object(slices, "hello-a"));
    while let Some(change) = changes.next().await {
        let now = Instant::now();
        // A watch that failed begins anew.
        let Ok(Some(slice)) = change else { continue };
        let ready = slice.data["endpoints"][0]["conditions"]["ready"] == true;
        heard.send_replace(Some((ready, now)));
    }
}

/// CRDs appear in a running cluster; bad objects cost themselves only.
async fn kinds_installed_later_are_found(client: &Client, watched: &mut Watched) {
    for (group, version, kind) in [
        ("networking.istio.io", "v1", "ServiceEntry"),
        ("networking.istio.io", "v1", "Gateway"),
        ("networking.istio.io", "v1", "DestinationRule"),
        ("security.istio.io", "v1", "PeerAuthentication"),
        ("security.istio.io", "v1", "AuthorizationPolicy"),
        ("gateway.networking.k8s.io", "v1", "Gateway"),
        // The older version alone: it is found too.
        ("multicluster.x-k8s.io", "v1alpha1", "ServiceExport"),
        ("isthmus.dev", "v1alpha1", "ClusterLink"),
    ] {
        install(client, group, version, kind).await;
    }
    let istio = "networking.istio.io/v1";
    let entry = |name: &str, host: &str| {
        json!({"metadata": {"namespace": "shop", "name": name}, "spec": {"hosts": [host],
            "ports": [{"number": 443, "name": "tls", "protocol": "TLS"}], "resolution": "STATIC"}})
    };
    create(client, istio, "ServiceEntry", entry("good", "api.example.com")).await;
    create(client, istio, "ServiceEntry", entry("foreign", "cart.other.svc.cluster.local")).await;
    create(client, istio, "ServiceEntry", entry("reserved", "hello.shop.global")).await;
    let bad = json!({"metadata": {"namespace": "shop", "name": "nonsense"}, "spec": {"hosts": 7}});
    create(client, istio, "ServiceEntry", bad).await;
    create(client, istio, "ServiceEntry", published()).await;
    create(
        client,
        istio,
        "DestinationRule",
        json!({"metadata": {"namespace": "shop", "name": "hello"},
        "spec": {"host": "hello", "subsets": [{"name": "v1", "labels": {"version": "v1"}}],
            "trafficPolicy": {"tls": {"mode": "SIMPLE"}}}}),
    )
    .await;
    create(
        client,
        istio,
        "Gateway",
        json!({
        "metadata": {"namespace": "isthmus-system", "name": "cross-network"},
        "spec": {"selector": {"istio": "eastwestgateway"}, "servers": [{"port": {"number": 15443},
            "hosts": ["*.global"], "tls": {"mode": "AUTO_PASSTHROUGH"}}]}}),
    )
    .await;
    create(
        client,
        "gateway.networking.k8s.io/v1",
        "Gateway",
        json!({
        "metadata": {"namespace": "isthmus-system", "name": "west",
            "labels": {"topology.istio.io/network": "net-west"}},
        "spec": {"gatewayClassName": "istio-remote", "addresses": [{"value": "203.0.113.7"}],
            "listeners": [{"name": "tls", "port": 15443, "protocol": "TLS"}]}}),
    )
    .await;
    create(client, "security.istio.io/v1", "PeerAuthentication", json!({
        "metadata": {"namespace": "shop", "name": "default"}, "spec": {"mtls": {"mode": "DISABLE"}}}))
    .await;
    create(
        client,
        "security.istio.io/v1",
        "AuthorizationPolicy",
        json!({
        "metadata": {"namespace": "shop", "name": "callers"}, "spec": {"action": "DENY", "rules": [
            {"from": [{"source": {"principals": ["moon.mesh/ns/shop/sa/client"]}}],
             "to": [{"operation": {"paths": ["/admin"]}}]}]}}),
    )
    .await;
    create(client, "multicluster.x-k8s.io/v1alpha1", "ServiceExport", meta("shop", "hello")).await;
    for (namespace, complete) in [("isthmus-system", true), ("shop", false)] {
        let link = json!({"metadata": {"namespace": namespace, "name": "west"},
            "spec": {"accepted": true}, "status": {"complete": complete}});
        create(client, "isthmus.dev/v1alpha1", "ClusterLink", link).await;
    }

    // Kinds that were not installed are asked for again every 30 s.
    let inventory = until(watched, |inventory| {
        inventory.entries.len() == 2
            && inventory.destination_rules.len() == 1
            && inventory.passthrough_hosts.len() == 1
            && inventory.remote_gateways.len() == 1
            && inventory.peer_authentications.len() == 1
            && inventory.authorization_policies.len() == 1
            && inventory.service_exports.contains(&hello())
            && !inventory.links.is_empty()
    })
    .await;
    for (kind, name, code) in [
        ("ServiceEntry", "foreign", 3303),
        ("ServiceEntry", "reserved", 3302),
        ("ServiceEntry", "nonsense", 3001),
        ("DestinationRule", "hello", 3083),
        ("PeerAuthentication", "default", 3073),
        ("AuthorizationPolicy", "callers", 3403),
        ("AuthorizationPolicy", "callers", 3421),
    ] {
        assert!(finding(&inventory, kind, name, code), "{kind} {name}: {:#?}", inventory.findings);
    }
    // Of the root namespace alone: elsewhere anybody could hold back the answers of DNS.
    let link = mesh::inventory::Link { accepted: true, complete: true };
    assert_eq!(inventory.links, [("west".to_owned(), link)].into());
    let ours = &inventory.entries[&ObjectRef::new("ServiceEntry", "shop", "hello.shop.global")];
    assert!(ours.published && ours.service == Some(hello()), "{ours:?}");
    let good = &inventory.entries[&ObjectRef::new("ServiceEntry", "shop", "good")];
    assert!(!good.published, "{good:?}");

    let entries = api(client, istio, "ServiceEntry", "shop");
    entries.delete("good", &DeleteParams::default()).await.unwrap();
    until(watched, |inventory| inventory.entries.len() == 1).await;
}

async fn tokens_and_secrets(client: &Client) {
    let hour = Duration::from_secs(3600);
    let token = cluster::token::request(client, "shop", "hello", "istio-ca", Some("hello-1"), hour);
    let token = token.await.unwrap();
    let reviewed = cluster::token::review(client, &token, "istio-ca").await.unwrap();
    assert_eq!((reviewed.namespace.as_str(), reviewed.account.as_str()), ("shop", "hello"));
    assert_eq!(reviewed.pod.as_deref(), Some("hello-1"));
    let error = cluster::token::review(client, &token, "other").await.unwrap_err().to_string();
    assert!(error.contains("ISM2312") && !error.contains(&token), "{error}");
    let error = cluster::token::review(client, "forged", "istio-ca").await.unwrap_err().to_string();
    assert!(error.contains("ISM2312"), "{error}");

    let missing = cluster::secret::read_cacerts(client, "isthmus-system").await.unwrap_err();
    assert!(missing.to_string().contains("ISM2302"), "{missing}");
    let pem = "-----BEGIN X-----";
    create(
        client,
        "v1",
        "Secret",
        json!({
        "metadata": {"namespace": "isthmus-system", "name": "cacerts"},
        "stringData": {"ca-cert.pem": pem, "ca-key.pem": pem, "root-cert.pem": pem,
            "cert-chain.pem": pem}}),
    )
    .await;
    let cacerts = cluster::secret::read_cacerts(client, "isthmus-system").await.unwrap();
    assert_eq!(cacerts.ca_key, pem);
}

async fn a_killed_server_is_found_and_forgiven(
    server: &mut Server,
    client: &Client,
    watched: &mut Watched,
) {
    let before = watched.inventory.borrow_and_update().clone();
    let killed = Instant::now();
    server.kill();
    unreachable_within(watched, killed, Duration::from_secs(15), "killed").await;
    server.restart().await;
    let restarted = Instant::now();
    watched.health.wait_for(|health| health.fresh()).await.unwrap();
    println!("fresh {:?} after the restart", restarted.elapsed());
    assert!(restarted.elapsed() < FRESH_MAX);
    let after = watched.inventory.borrow().clone();
    assert_eq!(before, after, "nothing was withdrawn, nothing invented");
    flip(client, watched).await;
}

async fn a_hung_server_is_found_and_forgiven(
    server: &Server,
    client: &Client,
    watched: &mut Watched,
) {
    let before = watched.inventory.borrow_and_update().clone();
    let stopped = Instant::now();
    server.stop();
    unreachable_within(watched, stopped, Duration::from_secs(35), "stopped").await;
    assert!(!watched.inventory.has_changed().unwrap() && before == *watched.inventory.borrow());
    server.resume();
    let resumed = Instant::now();
    watched.health.wait_for(|health| health.fresh()).await.unwrap();
    println!("fresh {:?} after SIGCONT", resumed.elapsed());
    assert!(resumed.elapsed() < FRESH_MAX);
    flip(client, watched).await;
}

async fn unreachable_within(watched: &mut Watched, since: Instant, limit: Duration, what: &str) {
    let health = tokio::time::timeout(limit, watched.health.wait_for(|health| !health.reachable()));
    let health = health.await.unwrap_or_else(|_| panic!("{what}: not seen within {limit:?}"));
    let health = health.unwrap().clone();
    println!("{what}: unreachable seen after {:?}", since.elapsed());
    assert!(health.kinds.values().all(|kind| kind.synced), "what is known stays: {health:?}");
    assert!(health.age(Instant::now()).is_some() && !health.fresh());
}

/// An endpoint goes, and comes back.
async fn flip(client: &Client, watched: &mut Watched) {
    let slices = api(client, "discovery.k8s.io/v1", "EndpointSlice", "shop");
    for is_ready in [false, true] {
        let patch = json!({"endpoints": slice(is_ready)["endpoints"]});
        slices.patch("hello-a", &PatchParams::default(), &Patch::Merge(&patch)).await.unwrap();
        until(watched, |inventory| ready(inventory) == usize::from(is_ready)).await;
    }
}

async fn until(watched: &mut Watched, wanted: impl Fn(&Inventory) -> bool) -> Arc<Inventory> {
    let health = watched.health.clone();
    let is = |inventory: &Option<Arc<Inventory>>| inventory.as_ref().is_some_and(|it| wanted(it));
    let found = tokio::time::timeout(Duration::from_secs(60), watched.inventory.wait_for(is)).await;
    match found {
        Ok(found) => found.unwrap().clone().expect("it was wanted"),
        Err(_) => panic!("not seen within 60 s; {:#?}", *health.borrow()),
    }
}

fn ready(inventory: &Inventory) -> usize {
    inventory.endpoints.get(&hello()).map_or(0, Vec::len)
}

fn finding(inventory: &Inventory, kind: &str, name: &str, code: u16) -> bool {
    let object = ObjectRef::new(kind, "shop", name);
    inventory.findings.iter().any(|finding| finding.object == object && finding.code == code)
}

fn hello() -> ServiceName {
    ServiceName::new("shop", "hello").unwrap()
}

fn meta(namespace: &str, name: &str) -> Value {
    json!({"metadata": {"namespace": namespace, "name": name}})
}

fn slice(ready: bool) -> Value {
    json!({
        "metadata": {"namespace": "shop", "name": "hello-a",
            "labels": {"kubernetes.io/service-name": "hello"}},
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080}],
        "endpoints": [{"addresses": ["10.244.1.5"], "conditions": {"ready": ready},
            "targetRef": {"kind": "Pod", "namespace": "shop", "name": "hello-1"}, "nodeName": "n1"}],
    })
}

fn published() -> Value {
    json!({
        "metadata": {"namespace": "shop", "name": "hello.shop.global", "labels": {
            "app.kubernetes.io/managed-by": "isthmus-federation", "isthmus.dev/service": "hello",
            "isthmus.dev/service-namespace": "shop"}},
        "spec": {"hosts": ["hello.shop.global"], "addresses": ["240.240.7.2"], "resolution": "STATIC",
            "ports": [{"number": 80, "name": "http", "protocol": "HTTP"}], "endpoints": [{
                "network": "net-west", "locality": "r2/r2a", "weight": 3, "serviceAccount": "hello",
                "labels": {"topology.istio.io/cluster": "west", "security.istio.io/tlsMode": "istio"}}]},
    })
}

/// Applied as our federation controller does, so that its own entries are told from others' only by
/// what they say of themselves.
async fn create(client: &Client, version: &str, kind: &str, object: Value) {
    server::create(client, "isthmus-federation", version, kind, object).await;
}

/// A CRD that takes anything, and the wait until it is served.
async fn install(client: &Client, group: &str, version: &str, kind: &str) {
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
    let plural = &resource.plural;
    let schema = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    let crd: DynamicObject = serde_json::from_value(json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("{plural}.{group}"),
            "annotations": {"api-approved.kubernetes.io": "unapproved, test-only"}},
        "spec": {"group": group, "scope": "Namespaced",
            "names": {"kind": kind, "plural": plural, "singular": kind.to_lowercase()},
            "versions": [{"name": version, "served": true, "storage": true,
                "schema": {"openAPIV3Schema": schema}}]},
    }))
    .unwrap();
    let crds = api(client, "apiextensions.k8s.io/v1", "CustomResourceDefinition", "");
    crds.create(&PostParams::default(), &crd).await.unwrap();
    let served = api(client, &format!("{group}/{version}"), kind, "shop");
    let deadline = Instant::now() + Duration::from_secs(30);
    let mut every = tokio::time::interval(Duration::from_millis(50));
    while let Err(error) = served.list(&Default::default()).await {
        assert!(Instant::now() < deadline, "{plural}.{group}: {error}");
        every.tick().await;
    }
}
