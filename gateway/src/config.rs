//! A gateway's configuration file.

use agent::{AgentConfig, HostPort, RootCertificates, Source};
use mesh::name::{ClusterId, Network, TrustDomain};
use serde::Deserialize;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

/// `isthmus gateway --config FILE`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Config {
    pub cluster: ClusterId,
    pub namespace: String,
    pub pod: String,
    /// Service account.
    #[serde(default = "default_account")]
    pub account: String,
    pub trust_domain: TrustDomain,
    #[serde(default)]
    pub network: Option<Network>,
    /// The pod's address; part of the xDS node id.
    #[serde(default)]
    pub address: Option<IpAddr>,
    /// Root certificates: a PEM file, or the PEM itself.
    pub root_certificates: RootCertificates,
    /// `HOST:PORT` where xDS and certificates come from; or `resources` and `svid`.
    #[serde(default)]
    pub control_plane: Option<HostPort>,
    /// Service account token with audience `istio-ca`, read again for every request.
    #[serde(default)]
    pub token: Option<PathBuf>,
    /// Folder for the last good configuration and identity.
    #[serde(default)]
    pub state: Option<PathBuf>,
    /// A JSON list of xDS resources, in place of `controlPlane`.
    #[serde(default)]
    pub resources: Option<PathBuf>,
    /// With `resources`.
    #[serde(default)]
    pub svid: Option<SvidFiles>,
    #[serde(default = "default_listen")]
    pub listen: SocketAddr,
    #[serde(default = "default_admin")]
    pub admin: SocketAddr,
    #[serde(default = "default_metrics")]
    pub metrics: SocketAddr,
    #[serde(default = "default_health")]
    pub health: SocketAddr,
    /// How long connections may go on after the end was asked for.
    #[serde(default = "default_drain")]
    pub drain_seconds: u64,
    /// Connections at once; more are closed at once.
    #[serde(default = "default_connections")]
    pub max_connections: usize,
    /// Connections at once from one address; by default as many as in all, since a whole cluster
    /// may stand behind one address.
    #[serde(default = "default_connections")]
    pub max_connections_per_source: usize,
    /// One line a connection on standard output.
    #[serde(default = "default_true")]
    pub access_log: bool,
}

/// An SVID in files.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct SvidFiles {
    /// PEM, leaf first.
    pub chain: PathBuf,
    pub key: PathBuf,
}

fn default_account() -> String {
    "isthmus-gateway".into()
}

fn port(address: Ipv4Addr, port: u16) -> SocketAddr {
    (address, port).into()
}

fn default_listen() -> SocketAddr {
    port(Ipv4Addr::UNSPECIFIED, 15443)
}

fn default_admin() -> SocketAddr {
    port(Ipv4Addr::LOCALHOST, 15000)
}

fn default_metrics() -> SocketAddr {
    port(Ipv4Addr::UNSPECIFIED, 15090)
}

fn default_health() -> SocketAddr {
    port(Ipv4Addr::UNSPECIFIED, 15021)
}

fn default_drain() -> u64 {
    30
}

fn default_connections() -> usize {
    20_000
}

fn default_true() -> bool {
    true
}

impl Config {
    /// What no type can say.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        let Self { control_plane, token, resources, svid, .. } = self;
        match (control_plane, resources) {
            (Some(_), None) => anyhow::ensure!(
                token.is_some() && svid.is_none(),
                "ISM1020 controlPlane needs token, and its certificate comes from there. \
                 Fix: set token to the service account token's file, and leave svid out"
            ),
            (None, Some(_)) => anyhow::ensure!(
                svid.is_some(),
                "ISM1020 resources needs svid. Fix: set svid.chain and svid.key to PEM files"
            ),
            (Some(_), Some(_)) | (None, None) => anyhow::bail!(
                "ISM1020 the configuration comes from one place. \
                 Fix: set either controlPlane or resources"
            ),
        }
        anyhow::ensure!(
            self.max_connections > 0 && self.max_connections_per_source > 0,
            "ISM1021 maxConnections is 0, nobody could connect. Fix: leave it out or raise it"
        );
        Ok(())
    }

    pub(crate) fn network(&self) -> Network {
        let of_cluster = || self.cluster.as_str().parse().expect("both are RFC 1123 labels");
        self.network.clone().unwrap_or_else(of_cluster)
    }

    /// [`Config::check`] has passed.
    pub(crate) fn agent(&self) -> AgentConfig {
        let source = match (&self.control_plane, &self.token, &self.resources, &self.svid) {
            (Some(address), Some(token), _, _) => Source::ControlPlane {
                address: address.clone(),
                token: token.clone(),
                state: self.state.clone(),
            },
            (_, _, Some(resources), Some(svid)) => Source::Files {
                resources: resources.clone(),
                chain: svid.chain.clone(),
                key: svid.key.clone(),
            },
            _ => unreachable!("check() lets only these two through"),
        };
        AgentConfig {
            role: crate::ROLE,
            cluster: self.cluster.clone(),
            network: self.network.clone(),
            trust_domain: self.trust_domain.clone(),
            namespace: self.namespace.clone(),
            pod: self.pod.clone(),
            account: self.account.clone(),
            address: self.address.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
            root_certificates: self.root_certificates.clone(),
            source,
            follow: crate::follow(),
        }
    }
}
