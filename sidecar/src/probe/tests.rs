//! Probes against applications on loopback: what the kubelet would be told.

#[path = "../../../runtime/tests/support/port.rs"]
mod port;

use super::*;
use bytes::Bytes;
use port::Port;
use std::sync::Arc;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

const POD: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

fn probe(yaml: &str) -> Probe {
    let probe: Probe = serde_saphyr::from_str(yaml).unwrap();
    probe.check("/app-health/app/livez").unwrap();
    probe
}

/// An application that answers every connection with `answer` once it has read a head.
async fn application(answer: &'static str) -> u16 {
    let listener = TcpListener::bind((POD, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = Vec::new();
            let mut byte = [0];
            while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).await.unwrap_or(0) > 0 {
                head.push(byte[0]);
            }
            let elsewhere = head.starts_with(b"GET /elsewhere");
            let answer = if elsewhere { "HTTP/1.1 404 Not Found\r\n\r\n" } else { answer };
            let _ = stream.write_all(answer.as_bytes()).await;
            if answer.is_empty() {
                std::future::pending::<()>().await;
            }
        }
    });
    port
}

#[tokio::test]
async fn http_is_good_from_200_to_399() {
    for (answer, good) in [
        ("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", true),
        ("HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n", true),
        ("HTTP/1.1 302 Found\r\nLocation: https://login.example.com/\r\n\r\n", true),
        ("HTTP/1.1 302 Found\r\nLocation: /elsewhere\r\n\r\n", false),
        ("HTTP/1.1 302 Found\r\nLocation: /round\r\n\r\n", false),
        ("HTTP/1.1 503 Service Unavailable\r\n\r\n", false),
        ("SSH-2.0-OpenSSH\r\n\r\n", false),
    ] {
        let port = application(answer).await;
        let found = probe(&format!("httpGet: {{path: /healthz, port: {port}}}")).ask(POD).await;
        assert_eq!(found.is_ok(), good, "{answer:?}: {found:?}");
    }
}

#[tokio::test]
async fn an_application_that_hangs_is_given_its_time() {
    let port = application("").await;
    let begun = std::time::Instant::now();
    let found = probe(&format!("httpGet: {{port: {port}}}")).ask(POD).await;
    assert_eq!(found, Err("no answer within 1 s".into()));
    assert!(begun.elapsed() < Duration::from_secs(3));
}

#[tokio::test]
async fn tcp_is_good_when_somebody_listens() {
    let port = application("").await;
    assert!(probe(&format!("tcpSocket: {{port: {port}}}")).ask(POD).await.is_ok());
    let free = Port::held();
    let found = probe(&format!("tcpSocket: {{port: {}}}", free.address.port())).ask(POD).await;
    assert!(found.clone().is_err_and(|why| why.contains("connecting to 127.0.0.1")), "{found:?}");
}

/// A gRPC health service that answers `message` with `code` in its trailers.
async fn health(message: &'static [u8], code: &'static str) -> u16 {
    let listener = TcpListener::bind((POD, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut connection = h2::server::handshake(stream).await.unwrap();
        while let Some(Ok((request, mut respond))) = connection.accept().await {
            assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
            assert_eq!(request.headers()["content-type"], "application/grpc");
            let answer = ::http::Response::builder().header("content-type", "application/grpc");
            let mut body = respond.send_response(answer.body(()).unwrap(), false).unwrap();
            body.send_data(Bytes::from_static(message), false).unwrap();
            let trailers = [("grpc-status".parse().unwrap(), code.parse().unwrap())];
            body.send_trailers(trailers.into_iter().collect()).unwrap();
        }
    });
    port
}

#[tokio::test]
async fn grpc_is_good_when_serving() {
    for (message, code, good) in [
        (&[0, 0, 0, 0, 2, 8, 1][..], "0", true),
        (&[0, 0, 0, 0, 2, 8, 2], "0", false),
        (&[0, 0, 0, 0, 0], "0", false),
        (&[], "5", false),
        (b"garbage", "0", false),
    ] {
        let port = health(message, code).await;
        let found = probe(&format!("grpc: {{port: {port}, service: db}}")).ask(POD).await;
        assert_eq!(found.is_ok(), good, "{message:?} {code}: {found:?}");
    }
    let port = application("HTTP/1.1 200 OK\r\n\r\n").await;
    let found = probe(&format!("grpc: {{port: {port}}}\ntimeoutSeconds: 2")).ask(POD).await;
    assert!(found.is_err(), "{found:?}");
}

#[tokio::test]
async fn https_is_asked_without_verifying() {
    let root = trust::root::create("test", "a long passphrase").unwrap();
    let domain = "west.mesh".parse().unwrap();
    let (pem, key) = (&root.certificate_pem, &root.encrypted_key_pem);
    let year = trust::root::INTERMEDIATE_VALIDITY;
    let ca = trust::root::issue_intermediate(pem, key, "a long passphrase", &domain, year).unwrap();
    let issuer = trust::issue::Issuer::from_cacerts(
        &ca.ca_cert,
        &ca.cert_chain,
        ca.ca_key.reveal(),
        &ca.root_cert,
    );
    let issuer = issuer.unwrap();
    let identity = "spiffe://west.mesh/ns/shop/sa/hello".parse().unwrap();
    let (key, csr) = trust::issue::new_key_and_csr(&identity);
    let now = std::time::SystemTime::now();
    let chain = issuer.sign(&csr, &identity, Duration::ZERO, now).unwrap().concat();
    let svid = trust::svid::Svid::from_pem(&chain, key.reveal()).unwrap();
    let (_svid, svid) = tokio::sync::watch::channel(Arc::new(svid));
    let (_bundle, bundle) = tokio::sync::watch::channel(Arc::new(issuer.bundle().clone()));
    let tls = trust::tls::server_config(svid, bundle, trust::tls::Clients::None, &[]);
    let listener = TcpListener::bind((POD, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut stream = tokio_rustls::TlsAcceptor::from(tls).accept(stream).await.unwrap();
        let mut buffer = [0; 1_024];
        let count = stream.read(&mut buffer).await.unwrap();
        assert!(buffer[..count].starts_with(b"GET /ready HTTP/1.1\r\nHost: "));
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
    });
    let yaml = format!("httpGet: {{path: /ready, port: {port}, scheme: HTTPS}}\ntimeoutSeconds: 5");
    assert_eq!(probe(&yaml).ask(POD).await, Ok("status 200".into()));
}

#[tokio::test]
async fn the_kubelet_is_told_on_a_page() {
    let (good, bad) = (
        application("HTTP/1.1 200 OK\r\n\r\n").await,
        application("HTTP/1.1 500 Oops\r\n\r\n").await,
    );
    let probes = [("livez", good), ("readyz", bad)].map(|(name, port)| {
        (format!("/app-health/app/{name}"), probe(&format!("httpGet: {{port: {port}}}")))
    });
    let metrics = Metrics::new();
    let pages = pages(&probes.into_iter().collect(), POD, &metrics);
    let listen = runtime::admin::Listen::Tcp { address: (POD, 0).into(), public: true };
    let end = tokio_util::sync::CancellationToken::new();
    let _end = end.clone().drop_guard();
    let address = runtime::admin::serve(listen, pages, end).await.unwrap().unwrap();
    let kubelet = async |path: &str| {
        let get = HttpGet {
            path: path.into(),
            port: address.port(),
            scheme: Scheme::Http,
            http_headers: vec![],
        };
        http::ask(&get, address).await
    };
    assert_eq!(kubelet("/app-health/app/livez").await, Ok("status 200".into()));
    assert_eq!(
        kubelet("/app-health/app/readyz").await.unwrap_err(),
        "the application answered 503"
    );
    assert_eq!(
        kubelet("/app-health/app/startupz").await.unwrap_err(),
        "the application answered 404"
    );
    let text = metrics.encode();
    for line in [
        "isthmus_sidecar_probes_total{path=\"/app-health/app/livez\",result=\"success\"} 1",
        "isthmus_sidecar_probes_total{path=\"/app-health/app/readyz\",result=\"failure\"} 1",
    ] {
        assert!(text.contains(line), "{line} in {text}");
    }
}
