//! The roles of `deploy/` on a real API server: what each program may read, by its own token.

// Not in the process of `own`, whose figures are times.
#[path = "own/server.rs"]
mod server;

use k8s_openapi::api::core::v1::Secret;
use kube::api::{ListParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use server::{Server, api};
use std::time::{Duration, Instant};

const ROLES: &str = concat!(
    include_str!("../../deploy/base/roles.yaml"),
    "---\n",
    include_str!("../../deploy/istio-system-secrets.yaml"),
);

async fn create(client: &Client, version: &str, kind: &str, object: Value) {
    server::create(client, "test", version, kind, object).await;
}

/// A client with the token of one of our accounts.
async fn program(server: &Server, admin: &Client, account: &str) -> Client {
    let hour = Duration::from_secs(3600);
    let audience = "https://kubernetes.default.svc";
    let token =
        cluster::token::request(admin, "isthmus-system", account, audience, None, hour).await;
    cluster::client::connect(&server.kubeconfig_of(&token.unwrap())).await.unwrap()
}

/// Asks until it is granted: a role is in force a moment after it was written.
async fn granted<T, E: std::fmt::Debug>(what: &str, ask: impl AsyncFn() -> Result<T, E>) -> T {
    let deadline = Instant::now() + Duration::from_secs(30);
    let mut every = tokio::time::interval(Duration::from_millis(50));
    loop {
        every.tick().await;
        match ask().await {
            Ok(value) => return value,
            Err(error) => assert!(Instant::now() < deadline, "{what}: {error:?}"),
        }
    }
}

/// What the API server says this client may do to Secrets of a namespace.
async fn may(client: &Client, verb: &str, namespace: &str) -> bool {
    let review = serde_json::from_value(json!({
        "metadata": {},
        "spec": {"resourceAttributes": {
            "verb": verb, "resource": "secrets", "name": "cacerts", "namespace": namespace}}}));
    let reviews = api(client, "authorization.k8s.io/v1", "SelfSubjectAccessReview", "");
    let answer = reviews.create(&PostParams::default(), &review.unwrap()).await.unwrap();
    answer.data["status"]["allowed"].as_bool().unwrap()
}

#[track_caller]
fn forbidden<T: std::fmt::Debug>(what: &str, answer: Result<T, kube::Error>) {
    match answer {
        Err(kube::Error::Api(status)) if status.code == 403 => {}
        other => panic!("{what} is not forbidden: {other:?}"),
    }
}

#[tokio::test]
async fn only_the_control_plane_reads_the_signing_key() {
    let Some(programs) = server::programs() else { return };
    let server = Server::start(&programs).await;
    let admin = server.client().await;
    for name in ["isthmus-system", "istio-system"] {
        create(&admin, "v1", "Namespace", json!({"metadata": {"name": name}})).await;
    }
    for text in ROLES.split("\n---\n") {
        let object: Value = serde_saphyr::from_str(text).unwrap();
        let said = |key: &str| object[key].as_str().unwrap().to_owned();
        create(&admin, &said("apiVersion"), &said("kind"), object.clone()).await;
    }
    let key = cluster::secret::NAMESPACE;
    let pem = "-----BEGIN X-----";
    let cacerts = json!({
        "metadata": {"namespace": key, "name": "cacerts"},
        "stringData": {"ca-cert.pem": pem, "ca-key.pem": pem, "root-cert.pem": pem,
            "cert-chain.pem": pem}});
    create(&admin, "v1", "Secret", cacerts).await;

    let control_plane = program(&server, &admin, "isthmus-control-plane").await;
    let controller = program(&server, &admin, "isthmus-federation-controller").await;
    let gateway = program(&server, &admin, "isthmus-gateway").await;
    let secrets = |client: &Client, namespace: &str| -> Api<Secret> {
        Api::namespaced(client.clone(), namespace)
    };
    let (all, post) = (ListParams::default(), PostParams::default());
    // First what each must, so that the roles are known to be in force: the controller has remote
    // secrets where people put them.
    let read =
        granted("cacerts", async || cluster::secret::read_cacerts(&control_plane, key).await);
    assert_eq!(read.await.ca_key, pem);
    for namespace in ["isthmus-system", "istio-system"] {
        granted(namespace, async || secrets(&controller, namespace).list(&all).await).await;
    }

    // What each must not: the key itself, by any verb that shows it.
    for (name, client) in [("the controller", &controller), ("a gateway", &gateway)] {
        forbidden(&format!("{name}: get"), secrets(client, key).get("cacerts").await);
        forbidden(&format!("{name}: list"), secrets(client, key).list(&all).await);
        for verb in ["watch", "update", "patch", "create", "delete"] {
            assert!(!may(client, verb, key).await, "{name} may {verb} Secrets in {key}");
        }
    }
    // Nor the ways around: a token of an account that may, a pod that runs as it, another role.
    let request = serde_json::from_value(json!({"spec": {"audiences": []}})).unwrap();
    let accounts: Api<k8s_openapi::api::core::v1::ServiceAccount> =
        Api::namespaced(controller.clone(), "isthmus-system");
    let token = accounts.create_token_request("isthmus-control-plane", &post, &request).await;
    forbidden("a token for the control plane", token.map(|_| ()));
    let pod = serde_json::from_value(json!({
        "metadata": {"name": "p"},
        "spec": {"serviceAccountName": "isthmus-control-plane",
            "containers": [{"name": "c", "image": "i"}]}}));
    let pods = api(&controller, "v1", "Pod", "isthmus-system");
    forbidden("a pod", pods.create(&post, &pod.unwrap()).await);
    let binding = serde_json::from_value(json!({
        "metadata": {"name": "b"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role",
            "name": "isthmus-control-plane"}}));
    let bindings = api(&controller, "rbac.authorization.k8s.io/v1", "RoleBinding", key);
    forbidden("a binding", bindings.create(&post, &binding.unwrap()).await);

    // The key's reader reads no credential of a link.
    forbidden("links' credentials", secrets(&control_plane, "isthmus-system").list(&all).await);
}
