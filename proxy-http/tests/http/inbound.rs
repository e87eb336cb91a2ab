//! From the mesh to an application.

use crate::port::Port;
use crate::world::{Client, Copy, Does, PATIENCE, accept, bind, identity, options, raw};
use bytes::Bytes;
use http_body_util::Full;
use mesh::authorize::{Authorization, Caller, Policy, Rule};
use mesh::finding::ObjectRef;
use mesh::inventory::MtlsMode;
use mesh::name::Protocol;
use mesh::program::{InboundListener, Listener, Resource};
use proxy::admission::{Admission, Rules};
use proxy::drain::Drain;
use proxy_http::{Application, Downstream, Http};
use runtime::metrics::Metrics;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::watch;

/// An inbound listener with one policy of that action, which matches everybody.
fn policed(action: Option<&str>) -> Arc<Resource> {
    let object = Arc::new(ObjectRef::new("AuthorizationPolicy", "shop", "p"));
    let policies = vec![Policy { object, rules: vec![Rule::default()] }];
    let authorization = match action {
        None => Authorization::default(),
        Some("deny") => Authorization { deny: policies, allow: vec![] },
        Some(_) => Authorization { deny: vec![], allow: policies },
    };
    Arc::new(Resource::Listener(Listener::Inbound(InboundListener {
        mtls: MtlsMode::Permissive,
        ports: Default::default(),
        trust_domains: ["test.mesh".parse().unwrap()].into(),
        authorization,
        ipv6: false,
    })))
}

/// A workload's sidecar in front of `application`; `meshed`: the peer proved to be `caller`.
pub(crate) async fn sidecar(application: SocketAddr, meshed: bool) -> (SocketAddr, Metrics) {
    let (_, rules) = watch::channel(None);
    guarded(application, meshed, rules).await
}

/// The same under policies that change.
async fn guarded(application: SocketAddr, meshed: bool, rules: Rules) -> (SocketAddr, Metrics) {
    before(application, Protocol::Http, meshed, rules, &Drain::new()).await
}

/// The same for an application that speaks `protocol`, until it is told to end.
pub(crate) async fn draining(
    application: SocketAddr,
    protocol: Protocol,
    drain: &Drain,
) -> SocketAddr {
    let (_, rules) = watch::channel(None);
    before(application, protocol, true, rules, drain).await.0
}

async fn before(
    application: SocketAddr,
    protocol: Protocol,
    meshed: bool,
    rules: Rules,
    drain: &Drain,
) -> (SocketAddr, Metrics) {
    let (metrics, drain) = (Metrics::new(), drain.clone());
    let (_sender, receiver) = watch::channel(Arc::default());
    let http = Http::new(options(&metrics, &drain, receiver));
    let (listener, address) = bind().await;
    accept(listener, move |stream, peer| {
        let (http, live) = (http.clone(), drain.live());
        let identity = meshed.then(|| identity("caller"));
        let caller = Caller {
            identity: identity.clone(),
            source: peer.ip(),
            destination: application,
            server_name: None,
        };
        let admission = Admission::new(caller, policed(None), rules.clone());
        async move {
            let downstream = Downstream { peer, local: application, identity, server_name: None };
            let service = "client.shop.svc.cluster.local".into();
            let to = Application { address: application, service, protocol, admission };
            http.inbound(stream, to, downstream, &live).await;
        }
    });
    (address, metrics)
}

async fn get(to: SocketAddr) -> crate::world::Got {
    let request = http::Request::get("/")
        .header("host", "client.shop.global")
        .header("x-forwarded-client-cert", "By=spiffe://forged;URI=spiffe://forged")
        .header("x-isthmus-source", "west;web")
        .body(Full::new(Bytes::new()))
        .unwrap();
    Client::connect(to).await.request(request).await
}

#[tokio::test]
async fn the_application_learns_who_called_from_the_certificate_alone() {
    let application = Copy::start_plain("app", Does::Answer).await;
    let (meshed, metrics) = sidecar(application.address, true).await;
    assert_eq!(get(meshed).await.status, 200);
    let head = application.last_head();
    let proof = "x-forwarded-client-cert: by=spiffe://test.mesh/ns/shop/sa/client;\
                 uri=spiffe://test.mesh/ns/shop/sa/caller\r\n";
    assert!(head.contains(proof), "{head}");
    assert!(!head.contains("forged") && !head.contains("x-isthmus-source"), "{head}");
    let text = metrics.encode();
    let line = text.lines().find(|line| line.starts_with("istio_requests_total")).unwrap();
    for label in [
        "reporter=\"destination\"",
        "source_cluster=\"west\"",
        "source_workload=\"web\"",
        "source_principal=\"spiffe://test.mesh/ns/shop/sa/caller\"",
        "destination_cluster=\"east\"",
        "destination_service=\"client.shop.svc.cluster.local\"",
        "connection_security_policy=\"mutual_tls\"",
    ] {
        assert!(line.contains(label), "{label} in {line}");
    }

    let (plain, metrics) = sidecar(application.address, false).await;
    assert_eq!(get(plain).await.status, 200);
    let head = application.last_head();
    assert!(!head.contains("x-forwarded-client-cert"), "{head}");
    let text = metrics.encode();
    assert!(text.contains("connection_security_policy=\"none\""));
    assert!(!text.contains("source_cluster=\"west\""), "nobody proved that: {text}");
}

#[tokio::test]
async fn each_request_is_judged_by_the_policies_of_its_moment() {
    let application = Copy::start_plain("app", Does::Answer).await;
    let (policies, rules) = watch::channel(None);
    let (address, metrics) = guarded(application.address, true, rules).await;
    let mut client = Client::connect(address).await;
    for (action, status) in
        [(None, 200), (Some("deny"), 403), (Some("allow"), 200), (Some("deny"), 403), (None, 200)]
    {
        policies.send_replace(Some(policed(action)));
        let got = client.get().await;
        assert_eq!(got.status, status, "{action:?}");
        // Nothing of it asks a sidecar to try again.
        assert!(!got.headers.contains_key("x-isthmus-unserved"));
        assert!(
            status == 200 || got.body.as_deref() == Some("RBAC: access denied"),
            "{:?}",
            got.body
        );
    }
    assert_eq!(application.seen(), 3);
    let text = metrics.encode();
    assert!(text.contains("response_code=\"403\"") && text.contains("response_code=\"200\""));
}

#[tokio::test]
async fn a_grpc_client_is_told_in_its_own_words() {
    let application = Copy::start_plain("app", Does::Answer).await;
    let (_policies, rules) = watch::channel(Some(policed(Some("deny"))));
    let (address, _) = guarded(application.address, true, rules).await;
    let request = http::Request::post("/shop.Hello/Say")
        .header("host", "client.shop.global")
        .header("content-type", "application/grpc")
        .body(Full::new(Bytes::new()))
        .unwrap();
    let got = Client::connect(address).await.request(request).await;
    // PERMISSION_DENIED, as Envoy maps 403.
    assert_eq!((got.status, &got.headers["grpc-status"]), (200, &"7".parse().unwrap()));
    assert_eq!(application.seen(), 0);
}

#[tokio::test]
async fn an_answer_under_way_outlives_its_callers_admission_by_a_little() {
    let (say, chunks) = tokio::sync::mpsc::channel(4);
    let chunks = Does::Chunks(Arc::new(std::sync::Mutex::new(chunks)));
    let application = Copy::start_plain("app", chunks).await;
    let (policies, rules) = watch::channel(None);
    let (address, _) = guarded(application.address, true, rules).await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    let mut heard = String::new();
    let mut buffer = [0; 1024];
    for word in ["first", "second"] {
        say.send(word).await.unwrap();
        while !heard.contains(word) {
            let length = stream.read(&mut buffer).await.unwrap();
            assert!(length > 0, "{heard}");
            heard.push_str(std::str::from_utf8(&buffer[..length]).unwrap());
        }
        // After the first word; the second comes nevertheless.
        policies.send_replace(Some(policed(Some("deny"))));
    }
    let begun = std::time::Instant::now();
    let end = tokio::time::timeout(PATIENCE, stream.read(&mut buffer)).await.unwrap();
    assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
    assert!(begun.elapsed().as_secs() >= 3, "an answer has its 5 s: {:?}", begun.elapsed());
}

#[tokio::test]
async fn a_switched_connection_ends_with_its_callers_admission() {
    let application = Copy::start_plain("app", Does::Echo).await;
    let (policies, rules) = watch::channel(None);
    let (address, _) = guarded(application.address, true, rules).await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = "GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    assert!(head.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&head));
    stream.write_all(b"ping").await.unwrap();
    let mut echo = [0; 4];
    stream.read_exact(&mut echo).await.unwrap();
    policies.send_replace(Some(policed(Some("deny"))));
    let end = tokio::time::timeout(PATIENCE, stream.read(&mut echo)).await.unwrap();
    assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
}

#[tokio::test]
async fn an_application_that_is_not_there_is_said_so() {
    let nobody = Port::held();
    let (address, metrics) = sidecar(nobody.address, true).await;
    let got = get(address).await;
    assert_eq!((got.status, &got.headers["x-isthmus-unserved"]), (503, &"unsent".parse().unwrap()));
    assert!(metrics.encode().contains("response_flags=\"UF\""));

    // gRPC in its own words: UNAVAILABLE.
    let call = http::Request::post("/shop.Hello/Say")
        .header("host", "client.shop.global")
        .header("content-type", "application/grpc")
        .body(Full::new(Bytes::new()))
        .unwrap();
    let got = Client::connect(address).await.request(call).await;
    assert_eq!((got.status, &got.headers["grpc-status"]), (200, &"14".parse().unwrap()));
    assert_eq!(got.headers["x-isthmus-unserved"], "unsent");

    let application = Copy::start_plain("app", Does::Close).await;
    let (address, metrics) = sidecar(application.address, true).await;
    let got = get(address).await;
    assert_eq!((got.status, &got.headers["x-isthmus-unserved"]), (503, &"reset".parse().unwrap()));
    assert!(metrics.encode().contains("response_flags=\"UC\""));
    assert_eq!(application.seen(), 1);

    // An application cannot say so itself.
    let lie = "HTTP/1.1 503 Service Unavailable\r\nx-isthmus-unserved: unsent\r\ncontent-length: 0\r\n\r\n";
    application.now_does(Does::Raw(lie));
    let got = get(address).await;
    assert!(got.status == 503 && !got.headers.contains_key("x-isthmus-unserved"));
}

/// What one sidecar lets in and adds to, another lets in.
#[tokio::test]
async fn a_peer_may_add_to_as_many_headers_as_a_client_may_send() {
    let application = Copy::start_plain("app", Does::Answer).await;
    let (peer, _) = sidecar(application.address, true).await;
    let (client, _) = sidecar(application.address, false).await;
    for (address, most) in [(peer, 116), (client, 100)] {
        for (headers, status) in [(most, "200 "), (most + 1, "431 ")] {
            let more: String = (1..headers).map(|n| format!("h{n}: 1\r\n")).collect();
            let answer = raw(address, &format!("GET / HTTP/1.0\r\nhost: a\r\n{more}\r\n")).await;
            let (version, rest) = answer.split_once(' ').unwrap();
            assert!(version.starts_with("HTTP/1.") && rest.starts_with(status), "{answer}");
        }
    }
}

#[tokio::test]
async fn connections_to_the_application_are_kept_and_replaced() {
    let application = Copy::start_plain("app", Does::Answer).await;
    let (address, _) = sidecar(application.address, true).await;
    let mut client = Client::connect(address).await;
    for _ in 0..20 {
        assert_eq!(client.get().await.status, 200);
    }
    assert!(application.connections.load(Ordering::SeqCst) <= 2);
    application.now_does(Does::RawAndClose("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"));
    for _ in 0..50 {
        assert_eq!(client.get().await.status, 200);
    }
}

#[tokio::test]
async fn a_response_that_breaks_off_is_cut() {
    let begun = "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nonly this";
    let application = Copy::start_plain("app", Does::RawAndClose(begun)).await;
    let (address, _) = sidecar(application.address, true).await;
    let answer = raw(address, "GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200 OK") && answer.ends_with("only this"), "{answer}");
    assert_eq!(application.seen(), 1);
}
