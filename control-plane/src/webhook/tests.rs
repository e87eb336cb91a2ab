//! The webhook on a real socket: what an API server, and a stranger, are answered.

use super::*;
use crate::authority::{self, tests::cacerts};
use crate::place::tests::{ROOT, inventory};
use base64::Engine as _;
use runtime::metrics::Metrics;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_rustls::TlsConnector;
use trust::tls::{self, Clients, Expected};

/// A webhook whose API server answers `labels`.
struct Place {
    address: SocketAddr,
    metrics: Metrics,
    readiness: Readiness,
    client: TlsConnector,
    settings: watch::Sender<Result<Settings, String>>,
    _end: tokio_util::sync::DropGuard,
}

fn settings() -> Result<Settings, String> {
    let mut mesh = inventory().mesh;
    mesh.root_certificates = "-----BEGIN CERTIFICATE-----".into();
    let data = BTreeMap::from([("image".to_owned(), "isthmus:test".to_owned())]);
    Settings::new(&data, &mesh, ROOT).map_err(|error| error.to_string())
}

async fn webhook(labels: fn(&str) -> anyhow::Result<Option<NamespaceLabels>>) -> Place {
    let issuer = authority::issuer(&cacerts("east.mesh")).unwrap();
    let svid = authority::own_svid(&issuer, ROOT, &names(ROOT, None)).unwrap();
    let identity = svid.identity.clone();
    let (_, bundle) = watch::channel(Arc::new(issuer.bundle().clone()));
    let (_, svid) = watch::channel(Arc::new(svid));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (metrics, numbers) = (Metrics::new(), Numbers::default());
    metrics.register(|registry| numbers.register(registry));
    let (known, read) = watch::channel(settings());
    let cluster = Cluster {
        settings: Box::new(move |_| {
            let read = read.borrow().clone();
            Box::pin(async move { read.map_err(anyhow::Error::msg) })
        }),
        labels: Box::new(move |name| Box::pin(async move { labels(&name) })),
    };
    let (_own, own) = watch::channel(Some(Arc::new(inventory())));
    let (readiness, end) = (Readiness::new(), CancellationToken::new());
    wait_for_settings(&readiness);
    let expected = Expected::AnyOf(Arc::new([identity].into()));
    let webhook = Webhook {
        listener,
        tls: tls::server_config(svid, bundle.clone(), Clients::None, &[b"http/1.1"]),
        cluster,
        own,
        numbers,
        readiness: readiness.clone(),
        end: end.clone(),
    };
    tokio::spawn(async move {
        let _own = _own;
        webhook.run().await
    });
    let client = TlsConnector::from(tls::client_config(None, bundle, expected, &[b"http/1.1"]));
    Place { address, metrics, readiness, client, settings: known, _end: end.drop_guard() }
}

impl Place {
    /// Sends a request as it stands; the whole answer.
    async fn send(&self, request: &[u8]) -> String {
        let stream = TcpStream::connect(self.address).await.unwrap();
        let name = "isthmus-control-plane.isthmus-system.svc".try_into().unwrap();
        let mut stream = self.client.connect(name, stream).await.unwrap();
        // An answer may come before the whole of a request that is too long was read.
        let _ = stream.write_all(request).await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        String::from_utf8(answer).unwrap()
    }

    async fn post(&self, body: &str) -> String {
        let length = body.len();
        let head = format!(
            "POST /inject?timeout=10s HTTP/1.1\r\nHost: w\r\nConnection: close\r\n\
             Content-Length: {length}\r\n\r\n"
        );
        self.send([head.as_bytes(), body.as_bytes()].concat().as_slice()).await
    }

    /// The response to a review of `object`.
    async fn review(&self, kind: &str, object: &Value) -> Value {
        let review = json!({
            "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
            "request": {"uid": "u-1", "kind": {"group": "", "version": "v1", "kind": kind},
                "operation": "CREATE", "namespace": "shop", "object": object},
        });
        let answer = self.post(&review.to_string()).await;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200 "), "{answer}");
        let answer: Value = serde_json::from_str(body).unwrap();
        assert_eq!(answer["kind"], "AdmissionReview");
        let response = answer["response"].clone();
        assert_eq!((&response["uid"], &response["allowed"]), (&json!("u-1"), &json!(true)));
        response
    }

    #[track_caller]
    fn counted(&self, outcome: &str) {
        let line = format!("isthmus_injection_total{{outcome=\"{outcome}\"}} ");
        let text = self.metrics.encode();
        assert!(text.contains(&line), "{line} in {text}");
    }
}

fn enabled(_: &str) -> anyhow::Result<Option<NamespaceLabels>> {
    Ok(Some(NamespaceLabels::from([("istio-injection".into(), "enabled".into())])))
}

fn app() -> Value {
    json!({"metadata": {"generateName": "hello-"}, "spec": {"containers": [{"name": "app"}]}})
}

#[tokio::test]
async fn a_pod_gets_what_the_pure_function_says() {
    let place = webhook(enabled).await;
    place.readiness.ready().await;
    let response = place.review("Pod", &app()).await;
    assert_eq!(response["patchType"], "JSONPatch");
    let patch = base64::engine::general_purpose::STANDARD
        .decode(response["patch"].as_str().unwrap())
        .unwrap();
    let patch = serde_json::from_slice(&patch).unwrap();
    let enabled = enabled("shop").unwrap().unwrap();
    let cluster::inject::Injection::Inject { patch: ours, .. } =
        cluster::inject::inject(&app(), &enabled, &settings().unwrap())
    else {
        panic!("it is injected")
    };
    assert_eq!(ours, patch);
    place.counted("injected");
}

#[tokio::test]
async fn a_pod_that_cannot_have_one_is_admitted_with_a_warning() {
    let place = webhook(enabled).await;
    place.readiness.ready().await;
    let mut host = app();
    host["spec"]["hostNetwork"] = true.into();
    for (object, code, outcome) in [
        (host, "ISM2710", "host_network"),
        (json!({"spec": 7}), "ISM2717", "not_understood"),
        (Value::Null, "ISM2717", "not_understood"),
    ] {
        let response = place.review("Pod", &object).await;
        assert!(response["patch"].is_null());
        assert!(response["warnings"][0].as_str().unwrap().starts_with(code), "{response}");
        place.counted(outcome);
    }
    let response = place.review("Node", &app()).await;
    assert!(response["warnings"][0].as_str().unwrap().starts_with("ISM4021"), "{response}");
    place.counted("no_pod");
    // Who did not ask is told nothing.
    let mut out = app();
    out["metadata"]["labels"] = json!({"sidecar.istio.io/inject": "false"});
    let response = place.review("Pod", &out).await;
    assert!(response["patch"].is_null() && response["warnings"].is_null(), "{response}");
    place.counted("refused");
}

#[tokio::test]
async fn unknown_labels_are_no_way_into_plaintext() {
    let place = webhook(|_| Err(anyhow::anyhow!("the API server is down"))).await;
    place.readiness.ready().await;
    assert!(!place.review("Pod", &app()).await["patch"].is_null());
}

#[tokio::test]
async fn without_settings_nothing_is_answered() {
    let place = webhook(enabled).await;
    place.readiness.ready().await;
    // Bad ones later change nothing.
    place.settings.send(Err("ISM2704 gone".into())).unwrap();
    assert!(!place.review("Pod", &app()).await["patch"].is_null());

    let (known, settings) = watch::channel(None);
    let shared = Shared { cluster: nobody(), settings, numbers: Numbers::default() };
    let readiness = Readiness::new();
    wait_for_settings(&readiness);
    let (_own, own) = watch::channel(Some(Arc::new(inventory())));
    tokio::select! {
        never = follow(&shared, own, &known, &readiness) => match never {},
        () = readiness.ready() => {}
    }
    assert!(known.borrow().is_none(), "ready for proxies, and knows nothing to inject");
}

/// A cluster that has no ConfigMap.
fn nobody() -> Cluster {
    Cluster {
        settings: Box::new(|_| Box::pin(async { Err(anyhow::anyhow!("ISM2704 none")) })),
        labels: Box::new(|_| Box::pin(async { Ok(None) })),
    }
}

#[tokio::test]
async fn what_is_no_review_is_refused_and_nothing_breaks() {
    let place = webhook(enabled).await;
    place.readiness.ready().await;
    let deep = "[".repeat(100_000);
    let review = |version: &str, uid: &str| {
        json!({"apiVersion": version, "kind": "AdmissionReview", "request": {"uid": uid}})
            .to_string()
    };
    for body in [
        "",
        "{}",
        "not json",
        deep.as_str(),
        &review("admission.k8s.io/v1beta1", "u"),
        &review("admission.k8s.io/v1", ""),
        &review("admission.k8s.io/v1", &"u".repeat(1_000)),
    ] {
        let answer = place.post(body).await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    }
    let head = "POST /inject HTTP/1.1\r\nHost: w\r\nConnection: close\r\n";
    let long =
        format!("{head}Content-Length: {}\r\n\r\n{}", BODY_MAX + 1, "x".repeat(BODY_MAX + 1));
    let answer = place.send(long.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    for (request, status) in [
        ("GET /inject HTTP/1.1\r\nHost: w\r\nConnection: close\r\n\r\n", "405"),
        ("POST / HTTP/1.1\r\nHost: w\r\nConnection: close\r\nContent-Length: 0\r\n\r\n", "404"),
    ] {
        let answer = place.send(request.as_bytes()).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
    }
    for outcome in ["no_review", "body_too_large", "no_such_path"] {
        place.counted(outcome);
    }
    place.review("Pod", &app()).await;
}
