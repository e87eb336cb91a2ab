//! What a stranger, a full disk or a damaged file may do: an answer that says what to do, and nothing is lost.

use crate::crash::Program;
use crate::port::Port;
use crate::support::{Running, apply, client, code};
use futures::TryStreamExt;
use http_body_util::BodyExt;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, DeleteParams, ListParams, PostParams, WatchParams};
use serde_json::{Value, json};
use std::os::unix::process::CommandExt;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// TLS connections to the server, to say what no client would.
struct Raw {
    connector: tokio_rustls::TlsConnector,
    address: String,
}

type Line = tokio_rustls::client::TlsStream<tokio::net::TcpStream>;

impl Raw {
    fn new(server: &Running) -> Self {
        use rustls::pki_types::pem::PemObject;
        let mut roots = rustls::RootCertStore::empty();
        let text = server.authority();
        let certificate = rustls::pki_types::CertificateDer::from_pem_slice(text.as_bytes());
        roots.add(certificate.unwrap()).unwrap();
        let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(config));
        Self { connector, address: server.url().trim_start_matches("https://").to_owned() }
    }

    async fn open(&self) -> std::io::Result<Line> {
        let stream = tokio::net::TcpStream::connect(&self.address).await?;
        self.connector.connect("localhost".try_into().unwrap(), stream).await
    }
}

async fn raw(server: &Running) -> Line {
    Raw::new(server).open().await.unwrap()
}

/// Asks, and reads the head of the answer; what came of the body with it is dropped.
async fn ask(line: &mut Line, request: &str) -> std::io::Result<String> {
    line.write_all(request.as_bytes()).await?;
    line.flush().await?;
    let (mut head, mut buffer) = (vec![], [0; 4096]);
    loop {
        let count = line.read(&mut buffer).await?;
        head.extend_from_slice(&buffer[..count]);
        let text = String::from_utf8_lossy(&head).into_owned();
        let Some((top, body)) = text.split_once("\r\n\r\n") else {
            if count == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            continue;
        };
        let length = top.lines().find_map(|line| line.strip_prefix("content-length: "));
        if body.len() >= length.map_or(0, |length| length.parse::<usize>().unwrap()) {
            return Ok(top.to_owned());
        }
    }
}

#[tokio::test]
async fn bodies_too_large_are_refused_and_the_server_goes_on() {
    let server = Running::start().await;
    let (url, token) = (server.url(), server.token());
    let client = client(&url, &server.authority(), Some(&token));
    let body = vec![b'x'; 100 << 20];
    let request = http::Request::post("/api/v1/namespaces/default/configmaps")
        .header("content-type", "application/json")
        .body(kube::client::Body::from(body))
        .unwrap();
    let answer = client.send(request).await.unwrap();
    assert_eq!(answer.status(), 413);
    let bytes = answer.into_body().collect().await.unwrap().to_bytes();
    let status: Value = serde_json::from_slice(&bytes).unwrap();
    assert_eq!(status["reason"], "RequestEntityTooLarge");
    let maps: Api<ConfigMap> = Api::namespaced(client, "default");
    maps.list(&ListParams::default()).await.unwrap();

    // Headers without end.
    let mut stream = raw(&server).await;
    let long =
        format!("GET /version HTTP/1.1\r\nhost: x\r\nx-long: {}\r\n\r\n", "y".repeat(300 << 10));
    let _ = stream.write_all(long.as_bytes()).await;
    let mut answer = vec![];
    let _ = stream.read_to_end(&mut answer).await;
    assert!(
        answer.is_empty() || answer.starts_with(b"HTTP/1.1 431"),
        "{}",
        String::from_utf8_lossy(&answer)
    );
    server.stop().await;
}

/// Sees to it that this process may open so many files: it holds both ends of each connection.
fn open_files(wanted: u64) {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    if soft < wanted {
        assert!(
            hard >= wanted,
            "this test opens {wanted} files, and RLIMIT_NOFILE allows {hard} at most. Fix: raise the hard \
             limit (ulimit -Hn {wanted}, or LimitNOFILE= of the service)"
        );
        setrlimit(Resource::RLIMIT_NOFILE, wanted, hard).unwrap();
        println!("RLIMIT_NOFILE was {soft}, and is {wanted} now");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_watches_leave_room_for_who_asks() {
    open_files(8_192);
    let server = Running::start().await;
    let raw = Raw::new(&server);
    let request = format!(
        "GET /api/v1/configmaps?watch=1 HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\n\r\n",
        server.token()
    );
    // Each on a connection of its own, until one is refused; the others on that one.
    let mut held = vec![];
    let mut refused = loop {
        let mut line = raw.open().await.unwrap();
        let head = ask(&mut line, &request).await.unwrap();
        if !head.starts_with("HTTP/1.1 200") {
            break line;
        }
        held.push(line);
        assert!(held.len() < 10_000, "nobody is refused");
    };
    for _ in held.len()..10_000 {
        let head = ask(&mut refused, &request).await.unwrap();
        assert!(head.starts_with("HTTP/1.1 429") && head.contains("retry-after: 1"), "{head}");
    }
    println!("{} watches held, the others of 10000 refused", held.len());
    assert!(held.len() >= 1000, "{} held", held.len());
    // Somebody else is served meanwhile, and all who watch may go.
    let fresh = server.client().await;
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a", "namespace": "default"}});
    apply(&fresh, &map).await.unwrap();
    drop(held);
    let maps: Api<ConfigMap> = Api::namespaced(fresh, "default");
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        match maps.watch(&WatchParams::default().timeout(1), "0").await {
            Ok(events) => break drop(events.try_collect::<Vec<_>>().await.unwrap()),
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watcher_that_reads_nothing_costs_nothing_and_is_cut() {
    // Here the history's end cuts it, on a slow machine too; `wire` tests that patience ends.
    let patience = Duration::from_secs(300);
    let server = Running::with(|config| config.write_patience = patience).await;
    let client = server.client().await;
    let mut lazy = raw(&server).await;
    let request = format!(
        "GET /api/v1/configmaps?watch=1&resourceVersion=0 HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\n\r\n",
        server.token()
    );
    lazy.write_all(request.as_bytes()).await.unwrap();
    lazy.flush().await.unwrap();
    // More than the history holds: 60 MB of changes while it does not read.
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "default");
    for n in 0..80 {
        let map = json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": format!("m{n}")},
            "data": {"pad": "x".repeat(800 << 10)},
        });
        let map: ConfigMap = serde_json::from_value(map).unwrap();
        maps.create(&PostParams::default(), &map).await.unwrap();
        maps.delete(&format!("m{n}"), &DeleteParams::default()).await.unwrap();
    }
    // Others watch on, and it is told 410 or is cut, with less than what was written.
    let read = async {
        let (mut seen, mut last, mut buffer) = (0, vec![], vec![0; 1 << 20]);
        loop {
            match lazy.read(&mut buffer).await {
                Ok(0) | Err(_) => break,
                Ok(count) => {
                    seen += count;
                    last.extend_from_slice(&buffer[..count]);
                    let from = last.len().saturating_sub(4096);
                    last.drain(..from);
                    // The last chunk of the answer.
                    if last.ends_with(b"\r\n0\r\n\r\n") {
                        break;
                    }
                }
            }
        }
        (seen, String::from_utf8_lossy(&last).into_owned())
    };
    let (seen, last) =
        tokio::time::timeout(Duration::from_secs(60), read).await.expect("it was cut");
    assert!(seen < 100 << 20, "{seen} bytes were kept for it");
    assert!(last.contains("\"code\":410"), "{seen} bytes, then {last:?}");
    server.stop().await;
}

#[tokio::test]
async fn a_damaged_store_is_named_and_not_opened() {
    let folder = tempfile::tempdir().unwrap();
    let port = Port::held();
    let program = Program::start(folder.path(), &port).await;
    let client = cluster::client::connect(&folder.path().join("kubeconfig")).await.unwrap();
    for name in ["a", "b"] {
        let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": "default"}});
        apply(&client, &map).await.unwrap();
    }
    program.kill();
    let path = folder.path().join("store/objects");
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let output = Program::command(folder.path(), &port)
        .stderr(std::process::Stdio::piped())
        .output()
        .unwrap();
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr);
    for word in ["ISM7105", "store/objects", "offset", "Fix:"] {
        assert!(said.contains(word), "{word} is not in {said}");
    }
}

#[tokio::test]
async fn a_full_disk_refuses_writes_and_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let port = Port::held();
    // A limit on files' sizes stands for the disk: it needs no root.
    let mut command = Program::command(folder.path(), &port);
    let mut shell = std::process::Command::new("sh");
    shell.arg("-c").arg("trap '' XFSZ; ulimit -f 400; exec \"$@\"").arg("sh");
    shell.arg(command.get_program()).args(command.get_args());
    shell.stderr(std::fs::File::create(folder.path().join("log")).unwrap()).process_group(0);
    command = shell;
    let mut child = command.spawn().unwrap();
    let kubeconfig = folder.path().join("kubeconfig");
    crate::support::until("the program is ready", || {
        assert!(child.try_wait().unwrap().is_none(), "it ended");
        kubeconfig.is_file().then_some(())
    })
    .await;
    let client = cluster::client::connect(&kubeconfig).await.unwrap();
    let map = |n: usize| {
        json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": format!("m{n}"), "namespace": "default"},
            "data": {"pad": "x".repeat(20_000)},
        })
    };
    let mut kept = 0;
    let refused = loop {
        match apply(&client, &map(kept)).await {
            Ok(_) => kept += 1,
            Err(kube::Error::Api(status)) => break status,
            Err(error) => panic!("{error}"),
        }
        assert!(kept < 1000, "the disk is never full");
    };
    assert_eq!(refused.code, 507, "{refused:?}");
    assert!(refused.message.contains("Fix:") && kept > 2, "{kept}: {refused:?}");
    // Reading goes on, and so does writing what still fits.
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "default");
    assert_eq!(maps.list(&ListParams::default()).await.unwrap().items.len(), kept);
    assert_eq!(code(maps.get(&format!("m{kept}")).await), 404);
    child.kill().unwrap();
    child.wait().unwrap();
    let program = Program::start(folder.path(), &port).await;
    let client = cluster::client::connect(&kubeconfig).await.unwrap();
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "default");
    assert_eq!(maps.list(&ListParams::default()).await.unwrap().items.len(), kept);
    apply(&client, &map(kept)).await.unwrap();
    program.kill();
}
