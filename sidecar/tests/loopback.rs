//! Two pods on loopback, each behind a real sidecar process that captures nothing and needs no root.

#[path = "loopback/breaks.rs"]
mod breaks;
#[path = "support/world.rs"]
mod world;

use mesh::authorize::{Authorization, Clause, Operation, Policy, Rule, Source};
use mesh::finding::ObjectRef;
use mesh::inventory::MtlsMode::{Permissive, Strict};
use mesh::program::{Listener, Program, Resource, ResourceName};
use std::net::{IpAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use trust::issue::{Issuer, new_key_and_csr};
use world::{
    HELLO, PATIENCE, banner, converse, identity, issuer, program, request, resolve, serve,
};

/// A sidecar process; ended when dropped.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts the sidecar of the pod at `127.NET.NUMBER.1`, and waits until it is ready.
fn start(
    net: u8,
    number: u8,
    account: &str,
    folder: &Path,
    issuer: &Issuer,
    resources: &Program,
) -> Process {
    let identity = identity(account);
    let (key, csr) = new_key_and_csr(&identity);
    let ttl = Duration::from_secs(600);
    let chain = issuer.sign(&csr, &identity, ttl, SystemTime::now()).unwrap().concat();
    let write = |name: &str, text: &str| {
        let file = folder.join(format!("{account}-{name}"));
        std::fs::write(&file, text).unwrap();
        file.display().to_string()
    };
    let config = format!(
        "cluster: east\nnamespace: shop\npod: {account}-0\naccount: {account}\n\
         trustDomain: test.mesh\nrootCertificates: {root}\npodAddresses: [{pod}.1]\n\
         resources: {resources}\nsvid: {{chain: {chain}, key: {key}}}\n\
         loopback:\n  application: {pod}.2\n  inbound: [8080, 6379, 7000, 7001]\n  slots:\n    range: {pod}.0/24\n    \
         names: [{{host: {HELLO}, ports: [8080, 6379, 7000]}}, {{host: nobody.shop.global, ports: [8080]}}]\n\
         dns: {{listen: '{pod}.1:5353', upstreams: []}}\nadmin: {pod}.1:15000\n\
         metrics: {pod}.1:15090\nhealth: {pod}.1:15021\ndrainSeconds: 1\n",
        pod = format!("127.{net}.{number}"),
        root = write("root.pem", &issuer.bundle().pem()),
        resources = write("resources.json", &agent::to_json(resources).to_string()),
        chain = write("chain.pem", &chain),
        key = write("key.pem", key.reveal()),
    );
    let file = write("sidecar.yaml", &config);
    let mut command = Command::new(env!("CARGO_BIN_EXE_isthmus-sidecar"));
    let process = Process(command.args(["--config", &file]).stdout(Stdio::null()).spawn().unwrap());
    let health = format!("127.{net}.{number}.1:15021");
    let until = Instant::now() + PATIENCE;
    while !request(&health, "/readyz").is_ok_and(|text| text.starts_with("HTTP/1.1 200")) {
        assert!(Instant::now() < until, "{account} is not ready");
        std::thread::sleep(Duration::from_millis(20));
    }
    process
}

fn application(listen: &str, http: bool) {
    let listener = TcpListener::bind(listen).unwrap();
    std::thread::spawn(move || serve(listener, http));
}

#[test]
fn names_lead_through_slots_without_any_privilege() {
    // Two runs at once must not meet: their pods differ in the second octet.
    let net = u8::try_from(100 + std::process::id() % 100).unwrap();
    let (mine, theirs) = (format!("127.{net}.5"), format!("127.{net}.6"));
    let folder = tempfile::tempdir().unwrap();
    let issuer = issuer();
    application(&format!("{theirs}.2:8080"), true);
    application(&format!("{theirs}.2:6379"), false);

    let ports = [(8080, Strict, true), (6379, Strict, false)];
    let _server = start(net, 6, "server", folder.path(), &issuer, &program(&[], &ports));
    let (http, tcp) = (format!("{theirs}.1:8080"), format!("{theirs}.1:6379"));
    let destinations = [
        ("240.240.7.2", 8080, true, http.leak() as &str, "server"),
        ("240.240.7.2", 6379, false, tcp.leak() as &str, "server"),
    ];
    let _client = start(net, 5, "client", folder.path(), &issuer, &program(&destinations, &[]));

    // The name is the first free slot: .1 is the pod and .2 its application.
    let nameserver = format!("{mine}.1:5353");
    for over_tcp in [false, true] {
        let ip = resolve(&nameserver, HELLO, over_tcp).unwrap();
        assert_eq!(ip, format!("{mine}.3").parse::<IpAddr>().unwrap());
    }
    // HTTP and TCP reach the application in its own place, under the caller's identity.
    let answer = request(&format!("{mine}.3:8080"), "/path").unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    assert!(answer.contains("from 127.0.0.6 GET /path HTTP/1.1"), "{answer}");
    assert!(answer.contains("URI=spiffe://test.mesh/ns/shop/sa/client"), "{answer}");
    assert_eq!(banner(&format!("{mine}.3:6379")).unwrap(), "hello ping");

    // Plaintext at a strict port is refused, and the application hears nothing of it.
    let plain = request(&format!("{theirs}.1:8080"), "/plain");
    assert!(!plain.as_ref().is_ok_and(|text| text.contains("200 OK")), "{plain:?}");

    // A port the mesh does not have, and a name it does not know, are refused at once.
    let begun = Instant::now();
    assert!(request(&format!("{mine}.3:7000"), "/").is_err());
    assert!(request(&format!("{mine}.4:8080"), "/").is_err());
    assert!(begun.elapsed() < Duration::from_secs(2));
    let metrics = request(&format!("{mine}.1:15090"), "/metrics").unwrap();
    assert!(
        metrics.contains(
            "isthmus_sidecar_refused_total{direction=\"outbound\",reason=\"unknown_address\"} 2"
        ),
        "{metrics}"
    );
}

fn policy(name: &str, rule: Rule) -> Vec<Policy> {
    let object = Arc::new(ObjectRef::new("AuthorizationPolicy", "shop", name));
    vec![Policy { object, rules: vec![rule] }]
}

/// The program with these policies in front of its workload.
fn guarded(mut program: Program, authorization: Authorization) -> Program {
    let listener = program.get_mut(&ResourceName::inbound()).unwrap();
    let Resource::Listener(Listener::Inbound(inbound)) = Arc::make_mut(listener) else {
        panic!("{listener:?}")
    };
    inbound.authorization = authorization;
    program
}

#[test]
fn policies_stand_before_the_application() {
    let net = u8::try_from(200 + std::process::id() % 50).unwrap();
    let (mine, theirs) = (format!("127.{net}.5"), format!("127.{net}.6"));
    let folder = tempfile::tempdir().unwrap();
    let issuer = issuer();
    application(&format!("{theirs}.2:8080"), true);
    let untouched = [6379, 7000, 7001].map(|port| {
        let listener = TcpListener::bind(format!("{theirs}.2:{port}")).unwrap();
        listener.set_nonblocking(true).unwrap();
        listener
    });
    // The client may call 8080 alone, and nobody 6379.
    let to = |ports: &[u16]| {
        let any_of = ports.iter().map(|port| Operation::Port(*port)).collect();
        vec![vec![Clause { any_of, none_of: vec![] }]]
    };
    let client = Source::Principal("test.mesh/ns/shop/sa/client".parse().unwrap());
    let client = vec![vec![Clause { any_of: vec![client], none_of: vec![] }]];
    let callers = Rule { from: client, to: to(&[8080, 6379]), ..Rule::default() };
    let policies = Authorization {
        deny: policy("no", Rule { to: to(&[6379]), ..Rule::default() }),
        allow: policy("callers", callers),
    };
    let ports = [
        (8080, Strict, true),
        (6379, Strict, false),
        (7000, Strict, true),
        (7001, Permissive, false),
    ];
    let guarded = guarded(program(&[], &ports), policies);
    let _server = start(net, 6, "server", folder.path(), &issuer, &guarded);
    let leads = |port: u16| &*format!("{theirs}.1:{port}").leak();
    let destinations = [
        ("240.240.7.2", 8080, true, leads(8080), "server"),
        ("240.240.7.2", 6379, false, leads(6379), "server"),
        ("240.240.7.2", 7000, true, leads(7000), "server"),
    ];
    let _client = start(net, 5, "client", folder.path(), &issuer, &program(&destinations, &[]));

    let answer = request(&format!("{mine}.3:8080"), "/").unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    let answer = request(&format!("{mine}.3:7000"), "/").unwrap();
    assert!(answer.starts_with("HTTP/1.1 403 Forbidden"), "{answer}");
    assert!(answer.ends_with("\r\n\r\nRBAC: access denied"), "{answer}");
    assert!(banner(&format!("{mine}.3:6379")).is_err());
    // In plaintext nobody proves a name.
    let plain = converse(&format!("{theirs}.1:7001"), b"hello");
    assert!(plain.as_ref().map_or(true, String::is_empty), "{plain:?}");
    // Nor does who waits for the server to begin make it begin.
    assert!(banner(&format!("{theirs}.1:7001")).is_err());

    for listener in untouched {
        let heard = listener.accept().map_err(|problem| problem.kind());
        assert_eq!(heard.err(), Some(std::io::ErrorKind::WouldBlock), "{listener:?}");
    }
    let metrics = request(&format!("{theirs}.1:15090"), "/metrics").unwrap();
    let counts = |wanted: &[&str]| {
        let lines = metrics.lines().filter(|line| wanted.iter().all(|word| line.contains(word)));
        lines.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum::<f64>()
    };
    let rbac = counts(&["isthmus_sidecar_refused_total", "inbound", "reason=\"rbac\""]);
    assert_eq!(rbac, 3.0, "{metrics}");
    // Once: a denial is no reason to try again.
    let denied = counts(&["istio_requests_total", "response_code=\"403\""]);
    assert_eq!(denied, 1.0, "{metrics}");
}
