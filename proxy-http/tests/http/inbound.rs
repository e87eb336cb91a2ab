//! From the mesh to an application.

use crate::world::{Client, Copy, Does, identity, options, raw};
use bytes::Bytes;
use http_body_util::Full;
use proxy::drain::Drain;
use proxy_http::{Application, Downstream, Http};
use runtime::metrics::Metrics;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tokio::net::TcpListener;
use tokio::sync::watch;

/// A workload's sidecar in front of `application`; `meshed`: the peer proved to be `caller`.
async fn sidecar(application: SocketAddr, meshed: bool) -> (SocketAddr, Metrics) {
    let (metrics, drain) = (Metrics::new(), Drain::new());
    let (_sender, receiver) = watch::channel(Arc::default());
    let http = Http::new(options(&metrics, &drain, receiver));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, peer) = listener.accept().await.unwrap();
            let (http, live) = (http.clone(), drain.live());
            tokio::spawn(async move {
                let downstream = Downstream {
                    peer,
                    local: application,
                    identity: meshed.then(|| identity("caller")),
                    server_name: None,
                };
                let service = "client.shop.svc.cluster.local".into();
                let to = Application {
                    address: application,
                    service,
                    protocol: mesh::name::Protocol::Http,
                };
                http.inbound(stream, to, downstream, &live).await;
            });
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
async fn an_application_that_is_not_there_is_said_so() {
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let (address, metrics) = sidecar(nobody, true).await;
    let got = get(address).await;
    assert_eq!((got.status, &got.headers["x-isthmus-unserved"]), (503, &"unsent".parse().unwrap()));
    assert!(metrics.encode().contains("response_flags=\"UF\""));

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
