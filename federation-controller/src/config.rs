//! The controller's configuration file.

use serde::Deserialize;
use std::net::SocketAddr;
use std::path::PathBuf;

/// `isthmus federation-controller --config FILE`: YAML, unknown fields refused.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Config {
    /// Of the own API server; the pod's service account where the file does not exist.
    pub kubeconfig: PathBuf,
    /// Admin pages; loopback only.
    #[serde(default = "admin")]
    pub admin: SocketAddr,
    /// Metrics and `/readyz`.
    #[serde(default = "metrics")]
    pub metrics: SocketAddr,
    /// The DNS server for the mesh's names; none where it is left out.
    pub dns: Option<Dns>,
    /// This replica's name in the leader's Lease. It must be its own alone: a replica takes over
    /// from its former self at once.
    pub holder: String,
    /// Folder for the last zone and the last states of links (0600), shown and served while no API
    /// server answers at a start; nothing is kept where it is left out.
    pub state: Option<PathBuf>,
    #[serde(default = "root_namespace")]
    pub root_namespace: String,
    /// Where remote secrets count; elsewhere a namespace's admin could link clusters.
    #[serde(default = "secret_namespaces")]
    pub secret_namespaces: Vec<String>,
    /// Share of a link credential's life after which the next one is asked for, 0.001 to 0.9.
    #[serde(default = "renew_at")]
    pub renew_at: f64,
    /// Accept linked API servers on this machine: for tests and the demo.
    #[serde(default)]
    pub allow_loopback: bool,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Dns {
    #[serde(default = "dns_listen")]
    pub listen: Vec<SocketAddr>,
    /// Asked about names that are not ours.
    #[serde(default)]
    pub upstreams: Vec<SocketAddr>,
    /// CIDRs that may ask; empty: this machine only.
    #[serde(default)]
    pub allow: Vec<ipnet::IpNet>,
    /// Who asks, and so what a published name leads to.
    #[serde(default)]
    pub clients: Clients,
}

/// Clients of the DNS server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Clients {
    /// Their connections are captured: they are told virtual addresses.
    #[default]
    Captured,
    /// They have no sidecar, as those whose cluster DNS forwards here: they are told where this
    /// cluster's own copies are, and of others nothing.
    WithoutSidecar,
}

fn admin() -> SocketAddr {
    ([127, 0, 0, 1], 15024).into()
}

fn metrics() -> SocketAddr {
    ([0, 0, 0, 0], 15025).into()
}

fn dns_listen() -> Vec<SocketAddr> {
    vec![([0, 0, 0, 0], 53).into()]
}

fn renew_at() -> f64 {
    0.5
}

fn root_namespace() -> String {
    mesh::export::ROOT_NAMESPACE.into()
}

fn secret_namespaces() -> Vec<String> {
    vec![root_namespace(), "istio-system".into()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<Config, runtime::config::ConfigError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.yaml");
        std::fs::write(&path, text).unwrap();
        runtime::config::load(&path)
    }

    #[test]
    fn little_is_enough() {
        let config = load("kubeconfig: /nowhere\nholder: a\n").unwrap();
        assert_eq!(config.secret_namespaces, ["isthmus-system", "istio-system"]);
        assert!(!config.allow_loopback && config.dns.is_none());
        let dns = load(
            "kubeconfig: /nowhere\nholder: a\ndns: {upstreams: ['10.0.0.10:53'], allow: [10.0.0.0/8]}\n",
        );
        let dns = dns.unwrap().dns.unwrap();
        assert_eq!((dns.listen, dns.clients), (dns_listen(), Clients::Captured));
        let plain = load("kubeconfig: /nowhere\nholder: a\ndns: {clients: withoutSidecar}\n");
        assert_eq!(plain.unwrap().dns.unwrap().clients, Clients::WithoutSidecar);
    }

    #[test]
    fn an_unknown_field_is_named() {
        let error = load("kubeconfig: /nowhere\nholder: a\nsecretNamespace: [x]\n")
            .unwrap_err()
            .to_string();
        assert!(error.contains("secretNamespace") && error.contains("ISM1003"), "{error}");
    }
}
