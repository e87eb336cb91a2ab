//! The program: configuration in, a server until the end.

use crate::bootstrap::bootstrap;
use crate::builtin::Policy;
use crate::identity::Keys;
use crate::pki::Own;
use crate::serve::{self, Wire};
use crate::server::Server;
use crate::store::{Change, Store};
use anyhow::{Context, anyhow};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::json;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

/// The configuration file of `isthmus apiserver`.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Config {
    /// Where it listens; port 0 takes a free one.
    #[serde(default = "listen")]
    pub listen: SocketAddr,
    /// Written at the start, for its owner only: how an administrator reaches the server.
    pub kubeconfig: PathBuf,
    /// Everything, in one file; without it, in memory only.
    #[serde(default)]
    pub store: Option<PathBuf>,
    /// Takes endpoints on loopback, which Kubernetes refuses.
    #[serde(default)]
    pub allow_loopback_endpoints: bool,
    /// More names and addresses for the serving certificate.
    #[serde(default)]
    pub sans: Vec<String>,
    /// Where Services get their addresses from.
    #[serde(default = "service_range")]
    pub service_range: ipnet::Ipv4Net,
    /// Name of cluster, user and context in the kubeconfig.
    #[serde(default = "name")]
    pub name: String,
    /// How long a client may take nothing of what it is sent before it is cut: 30 s, and for tests alone
    /// another time, so no file sets it.
    #[serde(skip, default = "write_patience")]
    pub write_patience: Duration,
}

fn listen() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 6443))
}

fn service_range() -> ipnet::Ipv4Net {
    ipnet::Ipv4Net::new_assert(Ipv4Addr::new(10, 96, 0, 0), 16)
}

fn name() -> String {
    "isthmus".into()
}

fn write_patience() -> Duration {
    Duration::from_secs(30)
}

const OWN: &str = "!own";

/// Runs until `end`. It is ready once the kubeconfig is there.
pub fn run(config: Config, end: CancellationToken) -> runtime::Work<'static> {
    Box::pin(work(config, end))
}

async fn work(config: Config, end: CancellationToken) -> anyhow::Result<()> {
    // Ending by ourselves is not the caller's end.
    let end = end.child_token();
    let Config {
        listen,
        kubeconfig,
        store,
        allow_loopback_endpoints,
        sans,
        service_range,
        name,
        write_patience,
    } = config;
    if service_range.prefix_len() > 28 {
        anyhow::bail!(
            "ISM7110 serviceRange {service_range} is too small. Fix: give it at least a /28"
        );
    }
    // A port in use shows here, before a file is touched.
    let listener = runtime::admin::bind_tcp(listen)?;
    let listen = listener.local_addr()?;
    // Above every revision an earlier life without a store gave out: its watches begin anew.
    let first = u64::try_from(jiff::Timestamp::now().as_millisecond()).unwrap_or(1);
    let store = match &store {
        Some(path) => {
            let path = path.clone();
            tokio::task::spawn_blocking(move || Store::open(&path, first)).await??
        }
        None => Store::in_memory(first),
    };
    let own = own(&store, &name)?;
    bootstrap(&store, &crate::builtin::registry(), listen, service_range)?;
    let keys = Keys::new(own.admin_token.clone(), &own.token_key, &own.token_public)?;
    let policy = Policy { loopback_endpoints: allow_loopback_endpoints };
    let server = Arc::new(Server::new(store, keys, policy, service_range));

    let (names, addresses) = names(listen, &sans, service_range);
    let tls = TlsAcceptor::from(own.serving(&names, &addresses)?);
    write_kubeconfig(&kubeconfig, &name, listen, &own)?;
    tracing::info!(%listen, kubeconfig = %kubeconfig.display(), "the API server is ready");
    let wire = Arc::new(Wire::new(server, end.clone(), write_patience));
    serve::serve(listener, tls, wire).await;
    Ok(())
}

/// The keys of this server: those in the store, else new ones.
fn own(store: &Store, name: &str) -> anyhow::Result<Own> {
    let key = (String::new(), "keys".to_owned());
    if let Some(entry) = store.get(OWN, &key) {
        return serde_json::from_value(entry.value["keys"].clone()).context(
            "ISM7111 the keys in the store are not ours. Fix: open it with the version that wrote it",
        );
    }
    let own = Own::fresh(name)?;
    let value = json!({"metadata": {"name": "keys"}, "keys": own});
    let change = Change { resource: OWN.into(), key, value: Some(value) };
    store.writer().commit(vec![change]).map_err(|why| anyhow!("ISM7112 {why}"))?;
    Ok(own)
}

fn names(
    listen: SocketAddr,
    sans: &[String],
    services: ipnet::Ipv4Net,
) -> (Vec<String>, Vec<IpAddr>) {
    let mut names: Vec<String> = [
        "localhost",
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
    ]
    .map(str::to_owned)
    .into();
    let mut addresses = vec![listen.ip(), Ipv4Addr::LOCALHOST.into()];
    addresses.extend(services.hosts().next().map(IpAddr::from));
    for san in sans {
        match san.parse() {
            Ok(address) => addresses.push(address),
            Err(_) => names.push(san.clone()),
        }
    }
    addresses.sort();
    addresses.dedup();
    (names, addresses)
}

/// Puts the file in place whole, readable by its owner only.
fn write_kubeconfig(path: &Path, name: &str, listen: SocketAddr, own: &Own) -> anyhow::Result<()> {
    let shown = path.display();
    let ip =
        if listen.ip().is_unspecified() { IpAddr::from(Ipv4Addr::LOCALHOST) } else { listen.ip() };
    let url = format!("https://{}", SocketAddr::from((ip, listen.port())));
    let authority = STANDARD.encode(&own.authority);
    let text = format!(
        "apiVersion: v1
kind: Config
clusters:
- cluster:
    certificate-authority-data: {authority}
    server: {url}
  name: {name}
contexts:
- context:
    cluster: {name}
    user: {name}
  name: {name}
current-context: {name}
users:
- name: {name}
  user:
    token: {}
",
        own.admin_token
    );
    let fresh = path.with_extension("new");
    let write = || -> std::io::Result<()> {
        let _ = std::fs::remove_file(&fresh);
        let mut file =
            std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh)?;
        file.write_all(text.as_bytes())?;
        std::fs::rename(&fresh, path)
    };
    write().with_context(|| {
        format!("ISM7113 cannot write the kubeconfig {shown}. Fix: name a file in a folder this user may write")
    })
}
