//! A real kube-apiserver with its etcd, where this machine has them.

use crate::port::Port;
use kube::Client;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const ADMIN: &str = "the-administrator";

/// A process that ends with its owner.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(crate) struct Real {
    _server: Process,
    _etcd: Process,
    _ports: [Port; 3],
    folder: tempfile::TempDir,
    authority: String,
    url: String,
}

/// Path of a part; told loudly where it is missing, which in CI is a failure.
pub(crate) fn part(name: &str) -> Option<PathBuf> {
    let assets = std::env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from);
    let home = std::env::home_dir();
    let caches = ["assets", "build/k8s"]
        .map(|folder| home.as_ref().map(|h| h.join(".cache/isthmus").join(folder)));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders = assets.into_iter().chain(caches.into_iter().flatten()).collect::<Vec<_>>();
    // Another release of kubectl may be on the PATH.
    if name != "kubectl" {
        folders.extend(std::env::split_paths(&path));
    }
    let found = folders.into_iter().map(|folder| folder.join(name)).find(|file| file.is_file());
    if found.is_none() {
        let why = format!("{name} was not found. Set KUBEBUILDER_ASSETS to a folder that has it");
        assert!(std::env::var_os("CI").is_none(), "nothing may be missing in CI: {why}");
        eprintln!("\n*** NOT RUN: {why}.\n");
    }
    found
}

impl Real {
    pub(crate) async fn start() -> Option<Self> {
        let (kube_apiserver, etcd) = (part("kube-apiserver")?, part("etcd")?);
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| folder.path().join(name).display().to_string();
        let write =
            |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec!["localhost".into()]).unwrap();
        let loopback = std::net::IpAddr::from([127, 0, 0, 1]);
        params.subject_alt_names.push(rcgen::SanType::IpAddress(loopback));
        let certificate = params.self_signed(&key).unwrap().pem();
        let tokens = rcgen::KeyPair::generate().unwrap();
        write("server.crt", &certificate);
        write("server.key", &key.serialize_pem());
        write("sa.key", &tokens.serialize_pem());
        write("sa.pub", &tokens.public_key_pem());
        write("tokens.csv", &format!("{ADMIN},admin,admin,system:masters\n"));
        let ports = [Port::held(), Port::held(), Port::held()];
        let [port, etcd_port, peer_port] = ports.each_ref().map(|port| port.address.port());
        let log = |name: &str| std::fs::File::create(folder.path().join(name)).unwrap();
        let etcd = Command::new(etcd)
            .arg(format!("--data-dir={}", file("etcd")))
            .arg(format!("--listen-client-urls=http://127.0.0.1:{etcd_port}"))
            .arg(format!("--advertise-client-urls=http://127.0.0.1:{etcd_port}"))
            .arg(format!("--listen-peer-urls=http://127.0.0.1:{peer_port}"))
            .arg(format!("--initial-advertise-peer-urls=http://127.0.0.1:{peer_port}"))
            .arg(format!("--initial-cluster=default=http://127.0.0.1:{peer_port}"))
            .arg("--unsafe-no-fsync")
            .stdout(Stdio::null())
            .stderr(log("etcd.log"))
            .spawn()
            .unwrap();
        let etcd = Process(etcd);
        let server = Command::new(kube_apiserver)
            .arg(format!("--etcd-servers=http://127.0.0.1:{etcd_port}"))
            .arg(format!("--secure-port={port}"))
            .args(["--bind-address=127.0.0.1", "--advertise-address=127.0.0.1"])
            .arg(format!("--tls-cert-file={}", file("server.crt")))
            .arg(format!("--tls-private-key-file={}", file("server.key")))
            .arg(format!("--token-auth-file={}", file("tokens.csv")))
            .arg("--service-account-issuer=https://kubernetes.default.svc.cluster.local")
            .arg(format!("--service-account-key-file={}", file("sa.pub")))
            .arg(format!("--service-account-signing-key-file={}", file("sa.key")))
            .args(["--service-cluster-ip-range=10.96.0.0/16", "--authorization-mode=RBAC"])
            .args(["--endpoint-reconciler-type=none", "--profiling=false"])
            .stdout(Stdio::null())
            .stderr(log("server.log"))
            .spawn()
            .unwrap();
        let url = format!("https://127.0.0.1:{port}");
        let mut real = Self {
            _server: Process(server),
            _etcd: etcd,
            _ports: ports,
            folder,
            authority: certificate,
            url,
        };
        real.ready().await;
        Some(real)
    }

    async fn ready(&mut self) {
        let client = self.client(Some(ADMIN)).await;
        let deadline = std::time::Instant::now() + Duration::from_secs(120);
        loop {
            if let Some(status) = self._server.0.try_wait().unwrap() {
                let log = std::fs::read_to_string(self.folder.path().join("server.log")).unwrap();
                let last: Vec<&str> = log.lines().rev().take(5).collect();
                panic!("kube-apiserver ended with {status}: {last:#?}");
            }
            let request = http::Request::get("/readyz").body(vec![]).unwrap();
            let ready = client.request_text(request).await.is_ok_and(|text| text == "ok");
            let request = http::Request::get("/api/v1/namespaces/default").body(vec![]).unwrap();
            if ready && client.request_text(request).await.is_ok() {
                return;
            }
            assert!(std::time::Instant::now() < deadline, "kube-apiserver is not ready");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    pub(crate) async fn admin(&self) -> Client {
        self.client(Some(ADMIN)).await
    }

    pub(crate) async fn client(&self, token: Option<&str>) -> Client {
        client(&self.url, &self.authority, token)
    }
}

/// A client with a token, or without.
pub(crate) fn client(url: &str, authority: &str, token: Option<&str>) -> Client {
    use base64::Engine;
    let body: String = authority.lines().filter(|line| !line.starts_with("-----")).collect();
    let mut config = kube::Config::new(url.parse().unwrap());
    config.root_cert = Some(vec![base64::engine::general_purpose::STANDARD.decode(body).unwrap()]);
    config.auth_info.token = token.map(|token| token.to_owned().into());
    Client::try_from(config).unwrap()
}
