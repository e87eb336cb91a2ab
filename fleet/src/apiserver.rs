//! One API server at a node: the real one with its etcd, or the embedded one.

use crate::authority::{Authority, key_pair};
use crate::parts::{Parts, Server};
use crate::process::{Job, Process};
use crate::spot::Spot;
use anyhow::{Context, Result, bail};
use base64::Engine as _;
use serde_json::{Value, json};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::time::{Duration, Instant};

/// Where the API server listens, in the node's namespace and on the WAN.
pub const PORT: u16 = 6443;

/// What an API server is told beyond what a fleet of processes needs.
#[derive(Debug, Default)]
pub(crate) struct More {
    /// Beside the administrator's.
    pub tokens: Vec<Token>,
    /// There are real nodes: they have rights, and reach it by its Service; it outlives us.
    pub nodes: bool,
    /// Further arguments.
    pub args: Vec<String>,
}

impl More {
    /// The token of a user.
    pub(crate) fn token(&self, user: &str) -> Result<&str> {
        let found = self.tokens.iter().find(|token| token.user == user);
        Ok(&found.with_context(|| format!("{user} has no token"))?.secret)
    }
}

/// A bearer token of one user.
#[derive(Debug)]
pub(crate) struct Token {
    secret: String,
    user: String,
    /// Empty: none.
    group: String,
}

impl Token {
    pub(crate) fn new(user: &str, group: &str) -> Self {
        let secret = hex::encode(rand::random::<[u8; 16]>());
        Self { secret, user: user.to_owned(), group: group.to_owned() }
    }

    /// As in a static token file.
    fn line(&self) -> String {
        let Self { secret, user, group } = self;
        format!("{secret},{user},{user},{group}\n")
    }
}

/// An API server's processes, and an administrator's client.
pub struct ApiServer {
    /// Where the server keeps its objects elsewhere.
    pub etcd: Option<Process>,
    pub server: Process,
    pub client: kube::Client,
    /// Of its serving certificate, PEM.
    pub authority: String,
    /// As other clusters reach it.
    pub url: String,
    /// As programs of its own cluster reach it.
    pub inside: String,
    admin_token: String,
}

impl ApiServer {
    /// Starts it; [`Self::ready`] waits for it.
    pub fn start(
        parts: &Parts,
        name: &str,
        node: &Spot,
        wan: Ipv4Addr,
        dir: &Path,
        logs: &Path,
    ) -> Result<Self> {
        match &parts.server {
            Server::Kube { kube_apiserver, etcd } => {
                let none = More::default();
                Self::kube((kube_apiserver, etcd), name, node, wan, dir, logs, &none)
            }
            Server::Embedded => Self::embedded(&parts.isthmus, name, node, wan, dir, logs),
        }
    }

    /// Our own, which writes its administrator's kubeconfig when it listens.
    fn embedded(
        isthmus: &Path,
        name: &str,
        node: &Spot,
        address: Ipv4Addr,
        dir: &Path,
        logs: &Path,
    ) -> Result<Self> {
        let kubeconfig = dir.join("admin.kubeconfig");
        let (listen, loopback) = match node {
            // Nobody else is in the namespace; the node has several addresses.
            Spot::Netns(_) => (SocketAddr::from((Ipv4Addr::UNSPECIFIED, PORT)), false),
            Spot::Loopback => (free(address)?, true),
        };
        let config = json!({
            "listen": listen, "sans": [address], "name": name,
            "kubeconfig": kubeconfig, "store": dir.join("store"),
            "allowLoopbackEndpoints": loopback,
        });
        let file = dir.join("apiserver.yaml");
        std::fs::write(&file, serde_saphyr::to_string(&config)?)?;
        let server = Job::new(format!("{name}/apiserver"), node, isthmus, logs)
            .args(["apiserver", "--config", &file.display().to_string()])
            .env("RUST_LOG", "info")
            .start()?;
        let deadline = Instant::now() + Duration::from_secs(30);
        let text = loop {
            let text = std::fs::read_to_string(&kubeconfig).unwrap_or_default();
            if text.contains("token:") {
                break text;
            }
            if let Some(status) = server.ended() {
                bail!("{} ended with {status}:\n{}", server.name(), server.last_words());
            }
            if Instant::now() > deadline {
                bail!("{} wrote no kubeconfig in 30 s:\n{}", server.name(), server.last_words());
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        let parsed: Value = serde_saphyr::from_str(&text).context("the server's kubeconfig")?;
        let field = |value: &Value, what: &str| {
            value
                .as_str()
                .map(str::to_owned)
                .with_context(|| format!("a kubeconfig without {what}"))
        };
        let cluster = &parsed["clusters"][0]["cluster"];
        let inside = field(&cluster["server"], "server")?;
        let url = format!("https://{}", SocketAddr::from((address, listen.port())));
        let authority = field(&cluster["certificate-authority-data"], "an authority")?;
        let authority = base64::engine::general_purpose::STANDARD.decode(authority.trim())?;
        let authority = String::from_utf8(authority)?;
        let admin_token = field(&parsed["users"][0]["user"]["token"], "a token")?;
        let client = client(&url, &authority, &admin_token)?;
        Ok(Self { etcd: None, server, client, authority, inside, url, admin_token })
    }

    /// kube-apiserver with its etcd, told `more`.
    pub(crate) fn kube(
        (kube_apiserver, etcd): (&Path, &Path),
        name: &str,
        node: &Spot,
        wan: Ipv4Addr,
        dir: &Path,
        logs: &Path,
        more: &More,
    ) -> Result<Self> {
        let pki = dir.join("pki");
        std::fs::create_dir_all(&pki)?;
        let authority = Authority::new(&format!("{name} kubernetes"))?;
        let addresses =
            [wan, Ipv4Addr::LOCALHOST, Ipv4Addr::new(10, 96, 0, 1), Ipv4Addr::new(10, 244, 0, 1)];
        let serving = authority.serving(
            &["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"],
            &addresses.map(Into::into),
        )?;
        let (private, public) = key_pair()?;
        let admin_token = format!("admin-of-{name}-{}", hex::encode(rand::random::<[u8; 16]>()));
        let tokens = more.tokens.iter().map(Token::line).collect::<String>();
        let files = [
            ("ca.crt", &authority.certificate),
            ("server.crt", &serving.certificate),
            ("server.key", &serving.key),
            ("sa.key", &private),
            ("sa.pub", &public),
            ("tokens.csv", &format!("{admin_token},admin,admin,system:masters\n{tokens}")),
        ];
        for (file, text) in files {
            std::fs::write(pki.join(file), text)?;
        }
        let file = |name: &str| pki.join(name).display().to_string();
        let etcd = Job::new(format!("{name}/etcd"), node, etcd, logs)
            .args([
                "--data-dir".to_owned(),
                dir.join("etcd").display().to_string(),
                "--listen-client-urls=http://127.0.0.1:2379".to_owned(),
                "--advertise-client-urls=http://127.0.0.1:2379".to_owned(),
                "--listen-peer-urls=http://127.0.0.1:2380".to_owned(),
                "--initial-advertise-peer-urls=http://127.0.0.1:2380".to_owned(),
                "--initial-cluster=default=http://127.0.0.1:2380".to_owned(),
            ])
            .env("ETCD_UNSUPPORTED_ARCH", "arm64")
            .stays_if(more.nodes)
            .start()?;
        let server = Job::new(format!("{name}/kube-apiserver"), node, kube_apiserver, logs)
            .args([
                "--etcd-servers=http://127.0.0.1:2379".to_owned(),
                format!("--secure-port={PORT}"),
                "--bind-address=0.0.0.0".to_owned(),
                format!("--advertise-address={wan}"),
                format!("--tls-cert-file={}", file("server.crt")),
                format!("--tls-private-key-file={}", file("server.key")),
                format!("--token-auth-file={}", file("tokens.csv")),
                "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
                format!("--service-account-key-file={}", file("sa.pub")),
                format!("--service-account-signing-key-file={}", file("sa.key")),
                "--service-cluster-ip-range=10.96.0.0/16".to_owned(),
                "--profiling=false".to_owned(),
            ])
            .args(if more.nodes {
                // Pods reach it by the Service `kubernetes`.
                ["--authorization-mode=Node,RBAC", "--endpoint-reconciler-type=lease"]
            } else {
                ["--authorization-mode=RBAC", "--endpoint-reconciler-type=none"]
            })
            .args(more.args.iter().cloned())
            .stays_if(more.nodes)
            .start()?;
        let url = format!("https://{wan}:{PORT}");
        let client = client(&url, &authority.certificate, &admin_token)?;
        let authority = authority.certificate;
        let inside = format!("https://127.0.0.1:{PORT}");
        Ok(Self { etcd: Some(etcd), server, client, authority, url, inside, admin_token })
    }

    /// Waits until `/readyz` is ok and the system namespaces exist.
    pub async fn ready(&self) -> Result<()> {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(90);
        loop {
            let request = http::Request::get("/readyz").body(vec![])?;
            let answer = self.client.request_text(request).await;
            let namespaces = crate::objects::api(&self.client, "v1", "Namespace", "");
            if answer.as_ref().is_ok_and(|text| text == "ok")
                && namespaces.get("kube-system").await.is_ok()
            {
                return Ok(());
            }
            for process in self.etcd.iter().chain([&self.server]) {
                if let Some(status) = process.ended() {
                    bail!("{} ended with {status}:\n{}", process.name(), process.last_words());
                }
            }
            if tokio::time::Instant::now() > deadline {
                let words = self.server.last_words();
                bail!("{} is not ready after 90 s: {answer:?}\n{words}", self.server.name());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// The administrator's, for programs beside it.
    pub(crate) fn admin_kubeconfig(&self, name: &str) -> String {
        self.kubeconfig_for(name, &self.inside, &self.admin_token)
    }

    /// A kubeconfig with another token and address, for a program or for another cluster.
    pub fn kubeconfig_for(&self, name: &str, server: &str, token: &str) -> String {
        kubeconfig(name, server, &self.authority, token)
    }
}

/// The usual port at `address`, or a free one where it is taken (by a server on all addresses).
fn free(address: Ipv4Addr) -> Result<SocketAddr> {
    let usual = SocketAddr::from((address, PORT));
    let bound = TcpListener::bind(usual).or_else(|_| TcpListener::bind((address, 0)));
    let bound = bound.with_context(|| format!("no port of {address} can be bound"))?;
    Ok(bound.local_addr()?)
}

/// A client with a bearer token.
pub fn client(url: &str, authority: &str, token: &str) -> Result<kube::Client> {
    let mut config = kube::Config::new(url.parse().context("an API server's URL")?);
    let certificate = pem_to_der(authority)?;
    config.root_cert = Some(vec![certificate]);
    config.auth_info.token = Some(token.to_owned().into());
    config.connect_timeout = Some(Duration::from_secs(2));
    config.read_timeout = Some(Duration::from_secs(20));
    Ok(kube::Client::try_from(config)?)
}

fn pem_to_der(pem: &str) -> Result<Vec<u8>> {
    let body: String = pem.lines().filter(|line| !line.starts_with("-----")).collect();
    base64::engine::general_purpose::STANDARD.decode(body).context("a PEM certificate")
}

/// A kubeconfig as kubectl and Istio write them.
pub fn kubeconfig(name: &str, server: &str, authority: &str, token: &str) -> String {
    contexts(&[(name, server, authority, token)])
}

/// An operator's kubeconfig with a context for each cluster.
pub fn operator_kubeconfig(clusters: &[(&str, &ApiServer)]) -> String {
    let all: Vec<_> = clusters
        .iter()
        .map(|(name, api)| (*name, &*api.url, &*api.authority, &*api.admin_token))
        .collect();
    contexts(&all)
}

/// Of each: name, server, authority (PEM) and token.
fn contexts(all: &[(&str, &str, &str, &str)]) -> String {
    let (mut clusters, mut contexts, mut users) = (String::new(), String::new(), String::new());
    for (name, server, authority, token) in all {
        let authority = base64::engine::general_purpose::STANDARD.encode(authority);
        clusters += &format!(
            "- cluster:
    certificate-authority-data: {authority}
    server: {server}
  name: {name}
"
        );
        contexts += &format!(
            "- context:
    cluster: {name}
    user: {name}
  name: {name}
"
        );
        users += &format!(
            "- name: {name}
  user:
    token: {token}
"
        );
    }
    let current = all.first().map_or("", |first| first.0);
    format!(
        "apiVersion: v1
kind: Config
clusters:
{clusters}contexts:
{contexts}current-context: {current}
users:
{users}"
    )
}
