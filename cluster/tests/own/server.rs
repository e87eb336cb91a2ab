//! A real kube-apiserver with its etcd, on loopback ports, for one test.
#![allow(dead_code, reason = "each test uses a part")]

#[path = "../../../runtime/tests/support/port.rs"]
pub(crate) mod port;

use k8s_openapi::api::core::v1::Namespace;
use kube::api::{ApiResource, DynamicObject, GroupVersionKind, Patch, PatchParams};
use kube::{Api, Client};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use port::Port;
use serde_json::Value;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The administrator's token.
pub(crate) const ADMIN: &str = "secret";

/// Where kube-apiserver and etcd are.
pub(crate) fn programs() -> Option<PathBuf> {
    folder_of(&["kube-apiserver", "etcd"])
}

/// A folder with these; `None`, said aloud, where this machine has none. On CI that is a failure.
pub(crate) fn folder_of(programs: &[&str]) -> Option<PathBuf> {
    let caches = std::env::home_dir().map(|home| home.join(".cache/isthmus"));
    let caches = caches.iter().flat_map(|all| [all.join("assets"), all.join("build/k8s")]);
    let mut folders =
        std::env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from).into_iter().chain(caches);
    let found = folders.find(|folder| programs.iter().all(|name| folder.join(name).is_file()));
    if found.is_none() {
        let why = format!("set KUBEBUILDER_ASSETS to a folder that has {programs:?}");
        assert!(std::env::var_os("CI").is_none(), "nothing may be missing in CI: {why}");
        eprintln!("\n*** NOT RUN: {why}.\n");
    }
    found
}

/// etcd and kube-apiserver; dead with it.
pub(crate) struct Server {
    programs: PathBuf,
    dir: tempfile::TempDir,
    etcd_port: u16,
    port: u16,
    _ports: [Port; 3],
    etcd: Child,
    apiserver: Child,
    flags: &'static [&'static str],
}

impl Server {
    /// Starts both and waits until the server is ready.
    pub(crate) async fn start(programs: &Path) -> Self {
        Self::with(programs, "", &[]).await
    }

    /// With more users, as lines of `TOKEN,NAME,UID`, and more flags.
    pub(crate) async fn with(
        programs: &Path,
        tokens: &str,
        flags: &'static [&'static str],
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let keys = rcgen::KeyPair::generate().unwrap();
        std::fs::write(dir.path().join("sa.key"), keys.serialize_pem()).unwrap();
        std::fs::write(dir.path().join("sa.pub"), keys.public_key_pem()).unwrap();
        let tokens = format!("{ADMIN},admin,admin,system:masters\n{tokens}");
        std::fs::write(dir.path().join("tokens"), tokens).unwrap();
        let ports = [Port::held(), Port::held(), Port::held()];
        let [etcd_port, peer_port, port] = ports.each_ref().map(|port| port.address.port());
        let url = format!("http://127.0.0.1:{etcd_port}");
        let peer = format!("http://127.0.0.1:{peer_port}");
        let etcd = start(
            programs,
            dir.path(),
            "etcd",
            &[
                format!("--data-dir={}", dir.path().join("etcd").display()),
                format!("--listen-client-urls={url}"),
                format!("--advertise-client-urls={url}"),
                format!("--listen-peer-urls={peer}"),
                format!("--initial-advertise-peer-urls={peer}"),
                format!("--initial-cluster=default={peer}"),
                "--unsafe-no-fsync".into(),
            ],
        );
        let apiserver = apiserver(programs, dir.path(), etcd_port, port, flags);
        let (programs, _ports) = (programs.into(), ports);
        let mut server = Self { programs, dir, etcd_port, port, _ports, etcd, apiserver, flags };
        server.ready().await;
        server
    }

    pub(crate) fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    /// Its authority's certificate behind its own, PEM.
    pub(crate) fn authority(&self) -> String {
        std::fs::read_to_string(self.certificates()).unwrap()
    }

    fn certificates(&self) -> PathBuf {
        self.dir.path().join("certs/apiserver.crt")
    }

    /// A kubeconfig file as an administrator has it.
    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.kubeconfig_of(ADMIN)
    }

    /// The same for whoever has this token.
    pub(crate) fn kubeconfig_of(&self, token: &str) -> PathBuf {
        let path = self.dir.path().join("kubeconfig");
        let text = format!(
            "{{apiVersion: v1, kind: Config, current-context: t, clusters: [{{name: t, cluster: \
             {{server: '{}', certificate-authority: {}}}}}], contexts: [{{name: t, \
             context: {{cluster: t, user: t}}}}], users: [{{name: t, user: {{token: {token}}}}}]}}",
            self.url(),
            self.certificates().display()
        );
        std::fs::write(&path, text).unwrap();
        path
    }

    pub(crate) async fn client(&self) -> Client {
        cluster::client::connect(&self.kubeconfig()).await.unwrap()
    }

    /// Hangs it: it keeps its connections, accepts new ones, and says nothing.
    pub(crate) fn stop(&self) {
        self.signal(Signal::SIGSTOP);
    }

    pub(crate) fn resume(&self) {
        self.signal(Signal::SIGCONT);
    }

    pub(crate) fn kill(&mut self) {
        self.apiserver.kill().unwrap();
        self.apiserver.wait().unwrap();
    }

    /// After [`Self::kill`], at the same address.
    pub(crate) async fn restart(&mut self) {
        let dir = self.dir.path();
        self.apiserver = apiserver(&self.programs, dir, self.etcd_port, self.port, self.flags);
        self.ready().await;
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.apiserver.id()).unwrap();
        kill(Pid::from_raw(pid), signal).unwrap();
    }

    async fn ready(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(120);
        let mut every = tokio::time::interval(Duration::from_millis(100));
        loop {
            every.tick().await;
            let log = self.dir.path().join("kube-apiserver.log");
            let log = || std::fs::read_to_string(&log).unwrap();
            let ended = self.apiserver.try_wait().unwrap();
            assert!(ended.is_none(), "kube-apiserver ended, {ended:?}:\n{}", log());
            assert!(Instant::now() < deadline, "kube-apiserver is not ready:\n{}", log());
            if !self.certificates().exists() {
                continue; // Its first start makes it.
            }
            let client = self.client().await;
            let readyz = http::Request::get("/readyz").body(vec![]).unwrap();
            let ready = client.request_text(readyz).await.is_ok_and(|text| text == "ok");
            let namespaces: Api<Namespace> = Api::all(client);
            // The last one it makes.
            if ready && namespaces.get("default").await.is_ok() {
                return;
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        for child in [&mut self.apiserver, &mut self.etcd] {
            let _ = child.kill(); // It may have ended by itself.
            let _ = child.wait();
        }
    }
}

fn apiserver(programs: &Path, dir: &Path, etcd_port: u16, port: u16, flags: &[&str]) -> Child {
    let file = |name: &str| dir.join(name).display().to_string();
    let mut args = vec![
        format!("--etcd-servers=http://127.0.0.1:{etcd_port}"),
        format!("--secure-port={port}"),
        "--bind-address=127.0.0.1".into(),
        "--advertise-address=127.0.0.1".into(),
        format!("--cert-dir={}", file("certs")),
        format!("--token-auth-file={}", file("tokens")),
        "--service-account-issuer=https://kubernetes.default.svc".into(),
        format!("--service-account-key-file={}", file("sa.pub")),
        format!("--service-account-signing-key-file={}", file("sa.key")),
        "--service-cluster-ip-range=10.96.0.0/16".into(),
        "--authorization-mode=RBAC".into(),
        "--endpoint-reconciler-type=none".into(),
        "--profiling=false".into(),
    ];
    args.extend(flags.iter().map(|&flag| flag.to_owned()));
    start(programs, dir, "kube-apiserver", &args)
}

/// Dies with the test's thread, however that ends.
fn start(programs: &Path, dir: &Path, name: &str, args: &[String]) -> Child {
    let log =
        File::options().create(true).append(true).open(dir.join(format!("{name}.log"))).unwrap();
    Command::new("setpriv")
        .args(["--pdeathsig", "KILL", "--"])
        .arg(programs.join(name))
        .args(args)
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap()
}

/// Objects of a kind, in a namespace (empty: cluster scope).
pub(crate) fn api(
    client: &Client,
    version: &str,
    kind: &str,
    namespace: &str,
) -> Api<DynamicObject> {
    let (group, version) = version.split_once('/').unwrap_or(("", version));
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
    if namespace.is_empty() {
        Api::all_with(client.clone(), &resource)
    } else {
        Api::namespaced_with(client.clone(), namespace, &resource)
    }
}

/// Applies `object` in the name of `manager`.
pub(crate) async fn create(
    client: &Client,
    manager: &str,
    version: &str,
    kind: &str,
    mut object: Value,
) {
    object["apiVersion"] = version.into();
    object["kind"] = kind.into();
    let namespace = object["metadata"]["namespace"].as_str().unwrap_or_default().to_owned();
    let name = object["metadata"]["name"].as_str().unwrap().to_owned();
    let (api, params) = (api(client, version, kind, &namespace), PatchParams::apply(manager));
    let applied = api.patch(&name, &params, &Patch::Apply(&object)).await;
    applied.unwrap_or_else(|error| panic!("{kind} {namespace}/{name}: {error}"));
}
