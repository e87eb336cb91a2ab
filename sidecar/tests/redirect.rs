//! Two pods in network namespaces, each behind a real sidecar process and real nft rules: what an
//! application that knows nothing of the mesh sees.
//!
//! Needs root. Without it this says so and proves nothing; where `CI` is set that is a failure.

#[path = "support/world.rs"]
mod world;

use mesh::inventory::MtlsMode;
use mesh::program::Program;
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};
use std::fs::File;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};
use trust::issue::{Issuer, new_key_and_csr};
use world::{HELLO, PATIENCE, banner, identity, issuer, program, request, resolve, serve};

const SIDECAR: &str = env!("CARGO_BIN_EXE_isthmus-sidecar");
/// Its copy's name in the test's folder.
const PROGRAM: &str = "isthmus-sidecar";

/// A network namespace; gone when dropped.
struct Netns(String);

impl Netns {
    fn new(name: &str) -> Self {
        let netns = Self(format!("isc{}{name}", std::process::id()));
        run("ip", &["netns", "add", &netns.0]);
        netns.ip(&["link", "set", "lo", "up"]);
        netns
    }

    fn ip(&self, args: &[&str]) {
        run("ip", &[&["-n", self.0.as_str()], args].concat());
    }

    /// What a program on this pod does, started as the user it runs as.
    fn command(&self, user: u32, program: &str) -> Command {
        let user = user.to_string();
        let (netns, user) = (self.0.as_str(), user.as_str());
        let mut command = Command::new("ip");
        command.args(["netns", "exec", netns, "setpriv", "--reuid", user, "--regid", user]);
        command.args(["--clear-groups", program]);
        command
    }

    /// Runs `what` as an application of this pod.
    fn inside<T: Send + 'static>(&self, what: impl FnOnce() -> T + Send + 'static) -> T {
        self.spawn(what).join().expect("no application panics")
    }

    fn spawn<T: Send + 'static>(
        &self,
        what: impl FnOnce() -> T + Send + 'static,
    ) -> std::thread::JoinHandle<T> {
        let file = File::open(format!("/run/netns/{}", self.0)).unwrap();
        std::thread::spawn(move || {
            setns(file, CloneFlags::CLONE_NEWNET).unwrap();
            what()
        })
    }

    fn redirect(&self, args: &[&str]) -> String {
        let output = Command::new("ip")
            .args([&["netns", "exec", self.0.as_str(), SIDECAR, "redirect"], args].concat())
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let output = Command::new("ip")
            .args(["netns", "exec", self.0.as_str(), "nft", "list", "ruleset"])
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

fn run(program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {said}");
}

/// A sidecar process; ended when dropped.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Pod {
    netns: Netns,
    account: &'static str,
    v4: &'static str,
    v6: &'static str,
}

impl Pod {
    /// Starts the sidecar as user 1337 and leads the pod's traffic through it.
    fn start(&self, folder: &Path, issuer: &Issuer, program: &Program) -> Process {
        let identity = identity(self.account);
        let (key, csr) = new_key_and_csr(&identity);
        let ttl = Duration::from_secs(600);
        let chain = issuer.sign(&csr, &identity, ttl, SystemTime::now()).unwrap().concat();
        let write = |name: &str, text: &str| {
            let file = folder.join(format!("{}-{name}", self.account));
            std::fs::write(&file, text).unwrap();
            file.display().to_string()
        };
        let config = format!(
            "cluster: east\nnamespace: shop\npod: {account}-0\naccount: {account}\n\
             trustDomain: test.mesh\nrootCertificates: {root}\npodAddresses: ['{v4}', '{v6}']\n\
             resources: {resources}\nsvid: {{chain: {chain}, key: {key}}}\n\
             dns: {{upstreams: []}}\ndrainSeconds: 2\n\
             probes: {{/app-health/app/livez: {{httpGet: {{path: /live, port: 8080}}}}}}\n",
            account = self.account,
            v4 = self.v4,
            v6 = self.v6,
            root = write("root.pem", &issuer.bundle().pem()),
            resources = write("resources.json", &agent::to_json(program).to_string()),
            chain = write("chain.pem", &chain),
            key = write("key.pem", key.reveal()),
        );
        let file = write("sidecar.yaml", &config);
        let program = folder.join(PROGRAM).display().to_string();
        let mut command = self.netns.command(1337, &program);
        command.args(["--config", &file]).stdout(Stdio::null());
        let process = Process(command.spawn().unwrap());
        let ready = || {
            let answer = request("127.0.0.1:15021", "/readyz");
            answer.is_ok_and(|text| text.starts_with("HTTP/1.1 200"))
        };
        let until = Instant::now() + PATIENCE;
        while !self.netns.inside(ready) {
            assert!(Instant::now() < until, "{} is not ready", self.account);
            std::thread::sleep(Duration::from_millis(20));
        }
        process
    }
}

fn application(netns: &Netns, listen: &'static str, http: bool) {
    let (bound, wait) = std::sync::mpsc::channel();
    netns.spawn(move || {
        let listener = TcpListener::bind(listen).unwrap();
        bound.send(()).unwrap();
        serve(listener, http);
    });
    wait.recv_timeout(PATIENCE).expect("the application is bound");
}

#[test]
fn applications_see_the_mesh_and_nothing_of_it() {
    if !geteuid().is_root() {
        let why = "SKIPPED: redirecting traffic needs root and network namespaces";
        assert!(std::env::var_os("CI").is_none(), "{why}, and CI is set");
        eprintln!("{why}; nothing was proved here");
        return;
    }
    let client = Pod { netns: Netns::new("a"), account: "client", v4: "10.244.0.5", v6: "fd00::5" };
    let server = Pod { netns: Netns::new("b"), account: "server", v4: "10.244.0.6", v6: "fd00::6" };
    client.netns.ip(&[
        "link",
        "add",
        "eth0",
        "type",
        "veth",
        "peer",
        "name",
        "eth0",
        "netns",
        &server.netns.0,
    ]);
    for pod in [&client, &server] {
        pod.netns.ip(&["link", "set", "eth0", "up"]);
        pod.netns.ip(&["addr", "add", &format!("{}/24", pod.v4), "dev", "eth0"]);
        pod.netns.ip(&["addr", "add", &format!("{}/64", pod.v6), "dev", "eth0", "nodad"]);
    }
    for (pod, other) in [(&client, &server), (&server, &client)] {
        pod.netns.ip(&["route", "add", "default", "via", other.v4]);
        pod.netns.ip(&["-6", "route", "add", "default", "via", other.v6]);
    }
    let folder = tempfile::tempdir().unwrap();
    // User 1337 reads it, and may not enter the folder where cargo put the program.
    std::fs::copy(SIDECAR, folder.path().join(PROGRAM)).unwrap();
    run("chmod", &["-R", "a+rX", &folder.path().display().to_string()]);
    let issuer = issuer();

    application(&server.netns, "10.244.0.6:8080", true);
    application(&server.netns, "[fd00::6]:8080", true);
    application(&server.netns, "10.244.0.6:6379", false);
    application(&server.netns, "10.244.0.6:7000", false);
    application(&client.netns, "10.244.0.5:8080", true);
    use MtlsMode::{Permissive, Strict};
    let theirs =
        program(&[], &[(8080, Strict, true), (6379, Strict, false), (7000, Permissive, false)]);
    let _server = server.start(folder.path(), &issuer, &theirs);
    let mine = program(
        &[
            ("240.240.7.2", 80, true, "10.244.0.6:8080", "server"),
            ("240.240.7.2", 6379, false, "10.244.0.6:6379", "server"),
            ("240.240.7.3", 80, true, "10.244.0.5:8080", "client"),
            ("240.240.7.4", 80, true, "10.244.0.6:8080", "somebody-else"),
            ("240.240.7.5", 7000, false, "10.244.0.6:7000", "server"),
            ("2001:2::7", 80, true, "[fd00::6]:8080", "server"),
        ],
        &[(8080, Permissive, true)],
    );
    let mut sidecar = client.start(folder.path(), &issuer, &mine);

    // Before any rule, the world is as it was.
    let plain = client.netns.inside(|| banner("10.244.0.6:7000"));
    assert_eq!(plain.unwrap(), "hello ping");
    for pod in [&client, &server] {
        let once = pod.netns.redirect(&[]);
        assert!(once.contains("table inet isthmus_sidecar"), "{once}");
        assert_eq!(pod.netns.redirect(&[]), once, "applying it twice is once");
    }
    let app = |what: fn() -> std::io::Result<String>| client.netns.inside(what);

    // Names, whoever is asked, over UDP and TCP, IPv4 and IPv6.
    for (nameserver, tcp) in
        [("9.9.9.9:53", false), ("9.9.9.9:53", true), ("[2001:db8::53]:53", false)]
    {
        let ip = client.netns.inside(move || resolve(nameserver, HELLO, tcp));
        assert_eq!(ip.unwrap().to_string(), "240.240.7.2", "{nameserver} {tcp}");
    }

    // HTTP: the server's application sees who called, from the sidecar's own address.
    let answer = app(|| request("240.240.7.2:80", "/path")).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    assert!(answer.contains("from 127.0.0.6 GET /path HTTP/1.1"), "{answer}");
    assert!(answer.contains("URI=spiffe://test.mesh/ns/shop/sa/client"), "{answer}");
    let answer = app(|| request("[2001:2::7]:80", "/six")).unwrap();
    assert!(answer.contains("from ::1 GET /six HTTP/1.1"), "{answer}");

    // TCP where the server begins, over mutual TLS, to strict and permissive ports.
    assert_eq!(app(|| banner("240.240.7.2:6379")).unwrap(), "hello ping");
    assert_eq!(app(|| banner("240.240.7.5:7000")).unwrap(), "hello ping");

    // A pod that calls itself through its service.
    let answer = app(|| request("240.240.7.3:80", "/self")).unwrap();
    assert!(answer.contains("from 127.0.0.6 GET /self"), "{answer}");
    // And directly, past everything.
    let answer = app(|| request("10.244.0.5:8080", "/direct")).unwrap();
    assert!(answer.contains("from 10.244.0.5 GET /direct"), "{answer}");

    // Who answers is not who should: said, and nothing was sent.
    let answer = app(|| request("240.240.7.4:80", "/secret")).unwrap();
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");

    // An address of the mesh that nobody has is refused at once.
    let begun = Instant::now();
    assert!(app(|| request("240.240.9.9:80", "/")).is_err());
    assert!(begun.elapsed() < Duration::from_secs(2));

    // Past the mesh, plain: let in where plain is let in, server first too; not where it is strict.
    assert_eq!(app(|| banner("10.244.0.6:7000")).unwrap(), "hello ping");
    let refused = app(|| request("10.244.0.6:8080", "/plain"));
    assert!(!refused.as_ref().is_ok_and(|text| text.contains("HTTP/1.1 200")), "{refused:?}");
    assert!(app(|| banner("10.244.0.6:6379")).is_err());

    // A kubelet has no certificate: the sidecar asks for it, from inside, where no capture is.
    for server in ["10.244.0.6:15020", "[fd00::6]:15020"] {
        let answer = client.netns.inside(move || request(server, "/app-health/app/livez")).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("status 200"), "{answer}");
    }

    // The sidecar's own ports: metrics are open, the rest is a dead end and no circle.
    assert!(app(|| request("10.244.0.6:15090", "/metrics")).unwrap().contains("istio_requests"));
    for own in ["10.244.0.6:15006", "10.244.0.6:15001", "10.244.0.6:15000", "127.0.0.1:15001"] {
        let answer = client.netns.inside(move || request(own, "/config"));
        assert!(!answer.as_ref().is_ok_and(|text| text.contains("200 OK")), "{own}: {answer:?}");
    }
    let metrics = app(|| request("127.0.0.1:15090", "/metrics")).unwrap();
    for reason in ["unknown_address", "not_redirected|loop"] {
        let counted = reason.split('|').any(|reason| {
            metrics.contains(&format!(
                "isthmus_sidecar_refused_total{{direction=\"outbound\",reason=\"{reason}\"}}"
            ))
        });
        assert!(counted, "{reason} in {metrics}");
    }
    let config = app(|| request("127.0.0.1:15000", "/config")).unwrap();
    assert!(config.contains("240.240.7.2_80"), "{config}");

    // A clean end: what it was doing is finished, and it says so by its status.
    kill(Pid::from_raw(sidecar.0.id() as i32), Signal::SIGTERM).unwrap();
    let until = Instant::now() + PATIENCE;
    let status = loop {
        if let Some(status) = sidecar.0.try_wait().unwrap() {
            break status;
        }
        assert!(Instant::now() < until, "it does not end");
        std::thread::sleep(Duration::from_millis(20));
    };
    assert!(status.success(), "{status}");

    // Taken away, nothing is left.
    let rules = client.netns.redirect(&["--remove"]);
    assert!(!rules.contains("isthmus"), "{rules}");
    assert_eq!(app(|| banner("10.244.0.6:7000")).unwrap(), "hello ping");
}
