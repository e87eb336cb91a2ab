//! Injection on a real API server: what is stored is what `isthmus inject` would print, pods are never
//! started in plaintext by accident, and nothing of ours keeps other pods from starting.

// Its faults are played elsewhere.
#[path = "../../cluster/tests/own/server.rs"]
mod server;

#[path = "../../cluster/tests/inject/pods.rs"]
#[allow(dead_code, reason = "broken pods are no API server's affair")]
mod pods;

use base64::Engine as _;
use cluster::inject::{Injection, NamespaceLabels, Settings, apply, inject, read_settings};
use kube::Client;
use kube::api::DeleteParams;
use kube::client::Body;
use serde_json::{Value, json};
use server::port::Port;
use server::{Server, api};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;
use trust::root;

const PASSPHRASE: &str = "a long passphrase for tests";
const WEBHOOK: &str = include_str!("../../deploy/base/webhook.yaml");
/// Generated pods that a real API server judges.
const SAMPLE: u64 = 120;

async fn create(client: &Client, version: &str, kind: &str, object: Value) {
    server::create(client, "test", version, kind, object).await;
}

fn base64(text: &str) -> String {
    base64::engine::general_purpose::STANDARD.encode(text)
}

/// The webhook's manifest with another place to call, since no Service leads anywhere here.
fn configuration(port: u16, roots: &str) -> Value {
    let mut object: Value = serde_saphyr::from_str(WEBHOOK).unwrap();
    for webhook in object["webhooks"].as_array_mut().unwrap() {
        assert_eq!(webhook["clientConfig"]["service"]["path"], "/inject");
        let url = format!("https://localhost:{port}/inject");
        webhook["clientConfig"] = json!({"url": url, "caBundle": base64(roots)});
    }
    object
}

/// A pod is created or refused; its warnings.
struct Created {
    answer: Result<Value, String>,
    warnings: Vec<String>,
}

async fn post(client: &Client, namespace: &str, pod: &Value, dry_run: bool) -> Created {
    let query = if dry_run { "?dryRun=All" } else { "" };
    let request = http::Request::post(format!("/api/v1/namespaces/{namespace}/pods{query}"))
        .header("content-type", "application/json")
        .body(Body::from(serde_json::to_vec(pod).unwrap()))
        .unwrap();
    let response = client.send(request).await.unwrap();
    let warnings = response.headers().get_all("warning").iter();
    let warnings = warnings.map(|value| value.to_str().unwrap().to_owned()).collect();
    let status = response.status();
    let body = response.into_body().collect_bytes().await.unwrap();
    let body: Value = serde_json::from_slice(&body).unwrap();
    let said = body["message"].as_str().unwrap_or_default().to_owned();
    Created { answer: if status.is_success() { Ok(body) } else { Err(said) }, warnings }
}

/// What of a stored pod is its author's and injection's.
fn told(pod: &Value) -> Value {
    let mut spec = pod["spec"].clone();
    // The API server names it at random, and mounts it into every container that has none.
    let token =
        |name: &Value| name.as_str().is_some_and(|name| name.starts_with("kube-api-access-"));
    spec["volumes"].as_array_mut().unwrap().retain(|volume| !token(&volume["name"]));
    for list in ["containers", "initContainers"] {
        for container in spec[list].as_array_mut().into_iter().flatten() {
            if let Some(mounts) = container["volumeMounts"].as_array_mut() {
                mounts.retain(|mount| !token(&mount["name"]));
            }
            let fields = container.as_object_mut().unwrap();
            if fields.get("volumeMounts").is_some_and(|mounts| mounts == &json!([])) {
                fields.remove("volumeMounts");
            }
        }
    }
    json!({
        "labels": pod["metadata"]["labels"], "annotations": pod["metadata"]["annotations"], "spec": spec,
    })
}

struct Mesh {
    server: Server,
    client: Client,
    roots: String,
    port: u16,
    _ports: [Port; 4],
    settings: Settings,
    end: CancellationToken,
    running: tokio::task::JoinHandle<anyhow::Result<()>>,
}

impl Mesh {
    /// A cluster with a control plane that serves the webhook.
    async fn start(programs: &std::path::Path) -> Self {
        let server = Server::start(programs).await;
        let client = server.client().await;
        for (name, labels) in [
            ("isthmus-system", json!({})),
            ("isthmus-ca", json!({})),
            ("shop", json!({"istio-injection": "enabled"})),
            ("plain", json!({})),
        ] {
            create(
                &client,
                "v1",
                "Namespace",
                json!({"metadata": {"name": name, "labels": labels}}),
            )
            .await;
            // No controller manager makes it here.
            let account = json!({"metadata": {"name": "default", "namespace": name}});
            create(&client, "v1", "ServiceAccount", account).await;
        }
        let root = root::create("Example", PASSPHRASE).unwrap();
        let (pem, key) = (&root.certificate_pem, &root.encrypted_key_pem);
        let domain = "east.mesh".parse().unwrap();
        let validity = root::INTERMEDIATE_VALIDITY;
        let made = root::issue_intermediate(pem, key, PASSPHRASE, &domain, validity).unwrap();
        let cacerts = json!({
            "metadata": {"name": "cacerts", "namespace": "isthmus-ca"},
            "stringData": {"ca-cert.pem": made.ca_cert, "ca-key.pem": made.ca_key.reveal(),
                "root-cert.pem": made.root_cert, "cert-chain.pem": made.cert_chain},
        });
        create(&client, "v1", "Secret", cacerts).await;
        let map = |name: &str, data: Value| json!({"metadata": {"name": name, "namespace": "isthmus-system"}, "data": data});
        let mesh = json!({"cluster": "east", "network": "net-east", "trustDomain": "east.mesh",
            "rootCertificates": root.certificate_pem});
        create(&client, "v1", "ConfigMap", map("isthmus-mesh", mesh)).await;
        let image = json!({"image": "localhost/isthmus:test", "imagePullPolicy": "IfNotPresent"});
        create(&client, "v1", "ConfigMap", map("isthmus-injection", image)).await;

        let ports = [Port::held(), Port::held(), Port::held(), Port::held()];
        let [listen, admin, metrics, webhook] = ports.each_ref().map(|port| port.address);
        let config = format!(
            "kubeconfig: {}\nlisten: {listen}\nadmin: {admin}\nmetrics: {metrics}\n\
             webhook: {{listen: '{webhook}', names: [localhost]}}\n",
            server.kubeconfig().display(),
        );
        let config = serde_saphyr::from_str(&config).unwrap();
        let end = CancellationToken::new();
        let running = tokio::spawn(control_plane::run(config, end.clone()));
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let place: runtime::page::Place = metrics.to_string().parse().unwrap();
            match runtime::page::read(&place, "/readyz").await {
                Ok(_) => break,
                Err(error) => assert!(Instant::now() < deadline, "not ready: {error:#}"),
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let settings = read_settings(&client, "isthmus-system", None).await.unwrap();
        let (roots, port) = (root.certificate_pem, webhook.port());
        Self { server, client, roots, port, _ports: ports, settings, end, running }
    }

    /// Installs the webhook, and waits until the API server calls it, or refuses for `refusal`.
    async fn install(&self, port: u16, roots: &str, refusal: Option<&str>) {
        let (version, kind) = ("admissionregistration.k8s.io/v1", "MutatingWebhookConfiguration");
        create(&self.client, version, kind, configuration(port, roots)).await;
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let created = post(&self.client, "shop", &app("probe"), true).await;
            let seen = match (&created.answer, refusal) {
                (Ok(pod), None) => {
                    !pod["metadata"]["annotations"]["isthmus.dev/injected"].is_null()
                }
                (Err(why), Some(refusal)) => why.contains(refusal),
                (Ok(_), Some(_)) | (Err(_), None) => false,
            };
            if seen {
                return;
            }
            assert!(Instant::now() < deadline, "{refusal:?}: {:?}", created.answer);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

fn app(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": "hello"}},
        "spec": {"containers": [{"name": "app", "image": "hello:1",
            "ports": [{"name": "http", "containerPort": 8080}],
            "livenessProbe": {"httpGet": {"path": "/live", "port": "http"}},
            "readinessProbe": {"grpc": {"port": 9000}}, "startupProbe": {"tcpSocket": {"port": 8080}}}],
            "initContainers": [{"name": "migrate", "image": "m:1"}]}})
}

fn enabled() -> NamespaceLabels {
    NamespaceLabels::from([("istio-injection".into(), "enabled".into())])
}

#[tokio::test(flavor = "multi_thread")]
async fn the_webhook_on_a_real_api_server() {
    let Some(programs) = server::programs() else { return };
    let mesh = Mesh::start(&programs).await;
    generated_pods_are_accepted(&mesh).await;
    mesh.install(mesh.port, &mesh.roots, None).await;
    the_stored_pod_is_what_inject_prints(&mesh).await;
    who_is_asked_about_is_who_the_rules_mean(&mesh).await;
    what_cannot_be_injected_is_admitted_with_a_warning(&mesh).await;
    a_foreign_or_expired_certificate_stops_only_who_asked(&mesh).await;
    a_webhook_that_is_gone_stops_only_who_asked(mesh).await;
}

/// Before there is a webhook: a real API server takes what the function makes of generated pods.
async fn generated_pods_are_accepted(mesh: &Mesh) {
    let mut judged = 0;
    for seed in 0..SAMPLE {
        let pod = pods::valid(seed);
        let Injection::Inject { patch, .. } = inject(&pod, &enabled(), &mesh.settings) else {
            continue;
        };
        let as_it_was = post(&mesh.client, "plain", &pod, true).await.answer;
        as_it_was.unwrap_or_else(|why| panic!("the generator made no pod: {why}\n{pod:#}"));
        let injected = post(&mesh.client, "plain", &apply(&pod, &patch), true).await.answer;
        injected.unwrap_or_else(|why| panic!("{why}\n{:#}", apply(&pod, &patch)));
        judged += 1;
    }
    assert!(judged >= 50, "{judged}");
    println!("a real API server accepted {judged} generated pods with sidecars");
}

async fn the_stored_pod_is_what_inject_prints(mesh: &Mesh) {
    for seed in [None, Some(3), Some(4), Some(5), Some(6), Some(7), Some(8)] {
        let pod = seed.map_or_else(|| app("equal"), pods::valid);
        let by_webhook = post(&mesh.client, "shop", &pod, false).await.answer.unwrap();
        let printed = match inject(&pod, &enabled(), &mesh.settings) {
            Injection::Inject { patch, .. } => apply(&pod, &patch),
            Injection::Leave(_) => pod.clone(),
        };
        // Where its labels ask for themselves, the webhook finds that it has its sidecar.
        let by_hand = post(&mesh.client, "plain", &printed, false).await.answer.unwrap();
        assert_eq!(told(&by_webhook), told(&by_hand), "{seed:?}");
        if seed.is_none() {
            let first = &by_webhook["spec"]["initContainers"];
            assert_eq!(
                (&first[0]["name"], &first[1]["name"]),
                (&json!("isthmus-init"), &json!("isthmus-proxy"))
            );
            let probe = &by_webhook["spec"]["containers"][0]["livenessProbe"]["httpGet"];
            assert_eq!(
                (&probe["path"], &probe["port"]),
                (&json!("/app-health/app/livez"), &json!(15020))
            );
        }
        for namespace in ["shop", "plain"] {
            let name = pod["metadata"]["name"].as_str().unwrap();
            let now = DeleteParams::default().grace_period(0);
            api(&mesh.client, "v1", "Pod", namespace).delete(name, &now).await.unwrap();
        }
    }
}

/// The selectors of the manifest and the rules of the function, through a real API server.
async fn who_is_asked_about_is_who_the_rules_mean(mesh: &Mesh) {
    let values: [(&str, &[&str]); 3] = [
        ("istio-injection", &["enabled", "disabled"]),
        ("isthmus.dev/inject", &["enabled", "disabled"]),
        ("istio.io/rev", &["isthmus", "stable"]),
    ];
    let on_pods: [(&str, &[&str]); 3] = [
        ("sidecar.istio.io/inject", &["true", "false"]),
        ("isthmus.dev/inject", &["enabled", "disabled"]),
        ("istio.io/rev", &["isthmus", "stable"]),
    ];
    // Every combination of a label that is absent or has one of two values.
    let all = |labels: [(&str, &[&str]); 3]| -> Vec<NamespaceLabels> {
        (0..27)
            .map(|number| {
                let digits = [number % 3, number / 3 % 3, number / 9];
                let said = labels.iter().zip(digits).filter(|(_, digit)| *digit > 0);
                said.map(|((name, values), digit)| ((*name).into(), values[digit - 1].into()))
                    .collect()
            })
            .collect()
    };
    for (index, labels) in all(values).into_iter().enumerate() {
        let namespace = format!("rules-{index}");
        let object = json!({"metadata": {"name": namespace, "labels": labels}});
        create(&mesh.client, "v1", "Namespace", object).await;
        let account = json!({"metadata": {"name": "default", "namespace": namespace}});
        create(&mesh.client, "v1", "ServiceAccount", account).await;
        for pod_labels in all(on_pods) {
            let mut pod = app("asks");
            pod["metadata"]["labels"] = json!(pod_labels);
            let stored = post(&mesh.client, &namespace, &pod, true).await.answer.unwrap();
            let injected = !stored["metadata"]["annotations"]["isthmus.dev/injected"].is_null();
            let meant = matches!(inject(&pod, &labels, &mesh.settings), Injection::Inject { .. });
            assert_eq!(injected, meant, "namespace {labels:?}, pod {pod_labels:?}");
        }
    }
}

async fn what_cannot_be_injected_is_admitted_with_a_warning(mesh: &Mesh) {
    let with = |path: &str, value: Value| {
        let mut pod = app("odd");
        let (parent, key) = path.rsplit_once('/').unwrap();
        pod.pointer_mut(parent).unwrap()[key] = value;
        pod
    };
    for (pod, code) in [
        (with("/spec/hostNetwork", json!(true)), "ISM2710"),
        (with("/spec/containers/0/name", json!("istio-proxy")), "ISM2711"),
        (with("/metadata/annotations", json!({"sidecar.istio.io/status": "{}"})), "ISM2711"),
        (with("/spec/securityContext", json!({"runAsUser": 1337})), "ISM2712"),
    ] {
        let mut pod = pod;
        if code == "ISM2710" {
            pod["spec"]["containers"][0].as_object_mut().unwrap().remove("ports");
            pod["spec"]["containers"][0].as_object_mut().unwrap().remove("livenessProbe");
        }
        let created = post(&mesh.client, "shop", &pod, true).await;
        let stored = created.answer.unwrap();
        assert!(stored["metadata"]["annotations"]["isthmus.dev/injected"].is_null());
        let said =
            created.warnings.iter().any(|text| text.contains(code) && text.contains("Fix: "));
        assert!(said, "{code}: {:?}", created.warnings);
    }
    // A pod that is injected, and not quite as meant.
    let pod = with("/spec/dnsPolicy", json!("Default"));
    let warnings = post(&mesh.client, "shop", &pod, true).await.warnings;
    assert!(warnings.iter().any(|text| text.contains("ISM2721")), "{warnings:?}");
}

/// Pods that do not ask start whatever is wrong with the webhook, system namespaces above all.
async fn others_start(client: &Client) {
    for namespace in ["plain", "isthmus-system"] {
        let created = post(client, namespace, &app("other"), true).await;
        created.answer.unwrap_or_else(|why| panic!("{namespace}: {why}"));
    }
    let mut labelled = app("labelled");
    labelled["metadata"]["labels"] = json!({"sidecar.istio.io/inject": "true"});
    post(client, "isthmus-system", &labelled, true).await.answer.unwrap();
    let mut out = app("out");
    out["metadata"]["labels"] = json!({"sidecar.istio.io/inject": "false"});
    post(client, "shop", &out, true).await.answer.unwrap();
}

async fn a_foreign_or_expired_certificate_stops_only_who_asked(mesh: &Mesh) {
    let foreign = root::create("Foreign", PASSPHRASE).unwrap().certificate_pem;
    mesh.install(mesh.port, &foreign, Some("x509: certificate signed by unknown authority")).await;
    others_start(&mesh.client).await;
    let (port, certificate) = expired().await;
    mesh.install(port, &certificate, Some("x509: certificate has expired")).await;
    others_start(&mesh.client).await;
    mesh.install(mesh.port, &mesh.roots, None).await;
}

/// A server whose certificate, trusted as it stands, expired in 2001.
async fn expired() -> (u16, String) {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(["localhost".to_owned()]).unwrap();
    params.not_before = rcgen::date_time_ymd(2000, 1, 1);
    params.not_after = rcgen::date_time_ymd(2001, 1, 1);
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let certificate = params.self_signed(&key).unwrap();
    let config = rustls::ServerConfig::builder_with_provider(Arc::new(
        rustls::crypto::aws_lc_rs::default_provider(),
    ))
    .with_safe_default_protocol_versions()
    .unwrap()
    .with_no_client_auth()
    .with_single_cert(
        vec![certificate.der().clone()],
        rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
    )
    .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let _ = acceptor.accept(stream).await; // The API server leaves.
        }
    });
    (port, certificate.pem())
}

async fn a_webhook_that_is_gone_stops_only_who_asked(mesh: Mesh) {
    let Mesh { server, client, end, running, .. } = mesh;
    end.cancel();
    running.await.unwrap().unwrap();
    let refused = post(&client, "shop", &app("waits"), false).await.answer.unwrap_err();
    assert!(
        refused.contains("failed calling webhook \"namespace.inject.isthmus.dev\""),
        "{refused}"
    );
    others_start(&client).await;
    // Nothing half made is left.
    let left = api(&client, "v1", "Pod", "shop").get_opt("waits").await.unwrap();
    assert!(left.is_none());
    drop(server);
}
