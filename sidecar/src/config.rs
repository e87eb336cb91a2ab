//! What a sidecar is told by its file.

use crate::loopback::{Loopback, Table};
use agent::{AgentConfig, Source};
use anyhow::ensure;
use ipnet::IpNet;
use mesh::name::{ClusterId, Network, TrustDomain};
use mesh::program::ResourceName;
use mesh::world::Role;
use serde::Deserialize;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroU64;
use std::path::PathBuf;

/// YAML, camelCase; unknown fields are refused.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Config {
    pub cluster: ClusterId,
    /// Where this pod is; the cluster's id where nothing is said.
    pub network: Option<Network>,
    pub namespace: String,
    pub pod: String,
    /// Service account.
    pub account: String,
    pub trust_domain: TrustDomain,
    /// Root certificates, PEM.
    pub root_certificates: PathBuf,
    /// This pod's addresses: who else is meant by an inbound connection is refused. The first is
    /// part of the xDS node id.
    pub pod_addresses: Vec<IpAddr>,

    /// `IP:PORT` of the control plane; needs `token`.
    pub control_plane: Option<SocketAddr>,
    /// File of the service account token for the control plane.
    pub token: Option<PathBuf>,
    /// Folder for the last good configuration and identity.
    pub state: Option<PathBuf>,
    /// A JSON list of xDS resources, instead of a control plane; needs `svid`.
    pub resources: Option<PathBuf>,
    pub svid: Option<SvidFiles>,

    /// Where redirected outbound connections arrive; loopback only.
    #[serde(default = "outbound")]
    pub outbound: Many<SocketAddr>,
    /// Where redirected inbound connections arrive.
    #[serde(default = "inbound")]
    pub inbound: Many<SocketAddr>,
    /// In place of both: no capture, names lead to addresses of the pod's own range of loopback.
    pub loopback: Option<Loopback>,
    pub dns: Option<DnsConfig>,
    #[serde(default = "admin")]
    pub admin: SocketAddr,
    #[serde(default = "metrics")]
    pub metrics: SocketAddr,
    #[serde(default = "health")]
    pub health: SocketAddr,

    /// Ranges of the mesh's virtual addresses: what is unknown in them is refused, not passed on.
    #[serde(default = "vip_ranges")]
    pub vip_ranges: Vec<IpNet>,
    /// Connections get this long to end when the process does, seconds.
    #[serde(default = "drain_seconds")]
    pub drain_seconds: u64,
    /// Connections at once, each way.
    #[serde(default = "max_connections")]
    pub max_connections: usize,
    /// A client that takes nothing of its response for so long, or sends nothing of a body that it
    /// announced, is given up; seconds.
    #[serde(default = "stream_idle_seconds")]
    pub stream_idle_seconds: NonZeroU64,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct SvidFiles {
    /// Certificates, leaf first, PEM.
    pub chain: PathBuf,
    /// Its key, PEM.
    pub key: PathBuf,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct DnsConfig {
    #[serde(default = "dns_listen")]
    pub listen: Many<SocketAddr>,
    /// Who answers what is not the mesh's.
    pub upstreams: Vec<SocketAddr>,
}

/// One, or a list.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub enum Many<T> {
    One(T),
    Several(Vec<T>),
}

impl<T: Clone> Many<T> {
    pub fn all(&self) -> Vec<T> {
        match self {
            Self::One(one) => vec![one.clone()],
            Self::Several(several) => several.clone(),
        }
    }
}

fn outbound() -> Many<SocketAddr> {
    Many::One((Ipv4Addr::LOCALHOST, 15001).into())
}
fn inbound() -> Many<SocketAddr> {
    Many::One((Ipv4Addr::UNSPECIFIED, 15006).into())
}
fn dns_listen() -> Many<SocketAddr> {
    Many::One((Ipv4Addr::LOCALHOST, 15053).into())
}
fn admin() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 15000).into()
}
fn metrics() -> SocketAddr {
    (Ipv4Addr::UNSPECIFIED, 15090).into()
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
fn max_connections() -> usize {
    16_384
}
fn stream_idle_seconds() -> NonZeroU64 {
    NonZeroU64::new(proxy_http::IDLE_MAX.as_secs()).expect("5 minutes are some seconds")
}

impl Config {
    /// What cannot be right, said before anything is bound.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        ensure!(
            !self.pod_addresses.is_empty(),
            "ISM1030 podAddresses is empty, so no inbound connection could be for this pod. \
             Fix: list the pod's addresses (status.podIPs)"
        );
        for address in self.outbound.all() {
            ensure!(
                address.ip().is_loopback(),
                "ISM1031 outbound {address} is not loopback, so others could speak as this \
                 workload. Fix: use 127.0.0.1 or ::1"
            );
        }
        let several = self.control_plane.is_some() && self.resources.is_some();
        ensure!(
            !several,
            "ISM1032 controlPlane and resources are both set. Fix: keep one, where the \
             configuration comes from"
        );
        Ok(())
    }

    /// The slots of a sidecar without capture.
    pub(crate) fn table(&self) -> anyhow::Result<Option<Table>> {
        let table = self.loopback.as_ref().map(|loopback| loopback.table(&self.pod_addresses));
        table.transpose()
    }

    /// Where the application's own connections arrive.
    pub(crate) fn outbound_listeners(&self, slots: Option<&Table>) -> Vec<SocketAddr> {
        slots.map_or_else(|| self.outbound.all(), Table::listeners)
    }

    /// Where others' connections to the application arrive.
    pub(crate) fn inbound_listeners(&self) -> Vec<SocketAddr> {
        match &self.loopback {
            Some(loopback) => {
                loopback.inbound.iter().map(|port| (self.pod_addresses[0], *port).into()).collect()
            }
            None => self.inbound.all(),
        }
    }

    pub(crate) fn agent(&self) -> anyhow::Result<AgentConfig> {
        let source = match (&self.control_plane, &self.resources) {
            (Some(address), _) => {
                let Some(token) = &self.token else {
                    anyhow::bail!(
                        "ISM1033 controlPlane is set without token, and nobody gets an identity \
                         without one. Fix: set token to the file of a service account token with \
                         audience istio-ca"
                    );
                };
                Source::ControlPlane {
                    address: *address,
                    token: token.clone(),
                    state: self.state.clone(),
                }
            }
            (None, Some(resources)) => {
                let Some(svid) = &self.svid else {
                    anyhow::bail!(
                        "ISM1034 resources is set without svid. Fix: set svid.chain and svid.key"
                    );
                };
                Source::Files {
                    resources: resources.clone(),
                    chain: svid.chain.clone(),
                    key: svid.key.clone(),
                }
            }
            (None, None) => anyhow::bail!(
                "ISM1035 neither controlPlane nor resources is set, so there is nothing to run. \
                 Fix: set controlPlane: IP:15012 and token, or resources and svid"
            ),
        };
        let mut follow = vec![ResourceName::inbound()];
        if self.dns.is_some() || self.loopback.is_some() {
            follow.push(ResourceName::zone());
        }
        Ok(AgentConfig {
            role: Role::Sidecar,
            cluster: self.cluster.clone(),
            network: self.network.clone(),
            trust_domain: self.trust_domain.clone(),
            namespace: self.namespace.clone(),
            pod: self.pod.clone(),
            account: self.account.clone(),
            address: self.pod_addresses[0],
            root_certificates: self.root_certificates.clone(),
            source,
            follow,
        })
    }

    /// Without a word about its network, a cluster is one.
    pub(crate) fn network(&self) -> Network {
        self.network
            .clone()
            .unwrap_or_else(|| self.cluster.as_str().parse().expect("both are RFC 1123 labels"))
    }
}

#[cfg(test)]
mod tests {
    use super::Config;

    const FINE: &str = "
cluster: east
namespace: shop
pod: hello-1
account: hello
trustDomain: east.mesh
rootCertificates: root.pem
podAddresses: [10.244.0.5]
controlPlane: 10.244.0.1:15012
token: token
";

    fn load(text: &str) -> anyhow::Result<Config> {
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("sidecar.yaml");
        std::fs::write(&file, text)?;
        let config: Config = runtime::config::load(&file)?;
        config.check()?;
        config.agent()?;
        Ok(config)
    }

    #[test]
    fn the_usual_ports_need_not_be_said() {
        let config = load(FINE).unwrap();
        assert_eq!(config.outbound.all(), ["127.0.0.1:15001".parse().unwrap()]);
        assert_eq!(config.inbound.all(), ["0.0.0.0:15006".parse().unwrap()]);
        assert_eq!(config.network().as_str(), "east");
        let several = format!("{FINE}outbound: ['127.0.0.1:15001', '[::1]:15001']\n");
        assert_eq!(load(&several).unwrap().outbound.all().len(), 2);
    }

    #[test]
    fn what_cannot_be_right_is_said() {
        for (change, code) in [
            (FINE.replace("cluster: east", "cluster: east\nclutser: east"), "ISM1003"),
            (FINE.replace("[10.244.0.5]", "[]"), "ISM1030"),
            (format!("{FINE}outbound: 0.0.0.0:15001\n"), "ISM1031"),
            (format!("{FINE}resources: r.json\n"), "ISM1032"),
            (FINE.replace("token: token", ""), "ISM1033"),
            (FINE.replace("controlPlane: 10.244.0.1:15012", "resources: r.json"), "ISM1034"),
            (FINE.replace("controlPlane: 10.244.0.1:15012", ""), "ISM1035"),
        ] {
            let problem = format!("{:#}", load(&change).unwrap_err());
            assert!(problem.contains(code) && problem.contains("Fix: "), "{code}: {problem}");
        }
    }
}
