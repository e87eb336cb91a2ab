//! What an agent beside a foreign proxy is told by its file.

use crate::{AgentConfig, HostPort, RootCertificates, Source};
use anyhow::ensure;
use ipnet::IpNet;
use mesh::name::{ClusterId, Network, TrustDomain};
use mesh::world::Role;
use serde::Deserialize;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

/// YAML, camelCase; unknown fields are refused.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Config {
    pub cluster: ClusterId,
    /// Where this pod is; the control plane knows better.
    pub network: Option<Network>,
    pub namespace: String,
    pub pod: String,
    /// Service account.
    pub account: String,
    pub trust_domain: TrustDomain,
    /// Root certificates: a PEM file, or the PEM itself.
    pub root_certificates: RootCertificates,
    /// This pod's addresses; the first is part of the xDS node id.
    pub pod_addresses: Vec<IpAddr>,

    /// `HOST:PORT` of the control plane.
    pub control_plane: HostPort,
    /// File of the service account token, audience `istio-ca`.
    pub token: PathBuf,
    /// Folder for the identity, kept over restarts.
    pub state: Option<PathBuf>,

    /// Where the proxy finds ADS and SDS (Istio's path).
    #[serde(default = "socket")]
    pub socket: PathBuf,
    /// User ids that may use the socket besides the agent's own.
    #[serde(default)]
    pub peers: Vec<u32>,
    /// Where the proxy's bootstrap is to show its admin pages; loopback only.
    #[serde(default = "proxy_admin")]
    pub proxy_admin: SocketAddr,
    #[serde(default = "metrics")]
    pub metrics: SocketAddr,
    #[serde(default = "health")]
    pub health: SocketAddr,
    /// Ranges of the mesh's virtual addresses: what is unknown in them is closed, not passed on.
    #[serde(default = "vip_ranges")]
    pub vip_ranges: Vec<IpNet>,
    /// A proxy that is a child gets this long to end when the agent does, seconds; an Envoy drains for
    /// nine tenths of it at most. The pod's `terminationGracePeriodSeconds` is to be longer.
    #[serde(default = "drain_seconds")]
    pub drain_seconds: u64,
}

fn socket() -> PathBuf {
    "/var/run/secrets/workload-spiffe-uds/socket".into()
}
fn proxy_admin() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 15000).into()
}
fn metrics() -> SocketAddr {
    (Ipv4Addr::UNSPECIFIED, 15020).into()
}
fn health() -> SocketAddr {
    (Ipv4Addr::UNSPECIFIED, 15021).into()
}
fn vip_ranges() -> Vec<IpNet> {
    ["240.240.0.0/16", "2001:2::/48"].map(|net| net.parse().expect("a literal CIDR")).to_vec()
}
fn drain_seconds() -> u64 {
    30
}

impl Config {
    /// What cannot be right, said before anything is bound.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        ensure!(
            !self.pod_addresses.is_empty(),
            "ISM1016 podAddresses is empty, and the proxy's node id needs one. \
             Fix: list the pod's addresses (status.podIPs)"
        );
        ensure!(
            self.proxy_admin.ip().is_loopback(),
            "ISM1017 proxyAdmin {} is not loopback, and who reaches Envoy's admin pages can stop \
             it. Fix: use 127.0.0.1 or ::1",
            self.proxy_admin
        );
        Ok(())
    }

    pub(crate) fn agent(&self) -> AgentConfig {
        AgentConfig {
            role: Role::Agent,
            cluster: self.cluster.clone(),
            network: self.network.clone(),
            trust_domain: self.trust_domain.clone(),
            namespace: self.namespace.clone(),
            pod: self.pod.clone(),
            account: self.account.clone(),
            address: self.pod_addresses[0],
            root_certificates: self.root_certificates.clone(),
            source: Source::ControlPlane {
                address: self.control_plane.clone(),
                token: self.token.clone(),
                state: self.state.clone(),
            },
            // The roots alone, which every agent follows.
            follow: Vec::new(),
        }
    }
}
