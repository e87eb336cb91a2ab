//! What a sidecar is told, by its file or by its pod's environment.

use crate::loopback::{Loopback, Table};
use crate::probe::Probe;
use agent::{AgentConfig, HostPort, RootCertificates, Source};
use anyhow::{Context as _, ensure};
use ipnet::IpNet;
use mesh::name::{ClusterId, Network, TrustDomain};
use mesh::program::ResourceName;
use mesh::world::Role;
use serde::{Deserialize, Deserializer};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};

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
    /// Root certificates: a PEM file, or the PEM itself.
    pub root_certificates: RootCertificates,
    /// This pod's addresses, a list or (as the kubelet writes `status.podIPs`) with commas: who else
    /// is meant by an inbound connection is refused. The first is part of the xDS node id.
    #[serde(deserialize_with = "addresses")]
    pub pod_addresses: Vec<IpAddr>,

    /// `HOST:PORT` of the control plane; needs `token`.
    pub control_plane: Option<HostPort>,
    /// File of the service account token for the control plane.
    pub token: Option<PathBuf>,
    /// Folder for the last good configuration and identity.
    pub state: Option<PathBuf>,
    /// A JSON list of xDS resources, instead of a control plane; needs `svid`.
    pub resources: Option<PathBuf>,
    pub svid: Option<SvidFiles>,

    /// Where redirected outbound connections arrive; loopback only. By default port 15001, of IPv6
    /// too where the pod has such an address.
    pub outbound: Option<Many<SocketAddr>>,
    /// Where redirected inbound connections arrive; by default port 15006 of every family.
    pub inbound: Option<Many<SocketAddr>>,
    /// In place of both: no capture, names lead to addresses of the pod's own range of loopback.
    pub loopback: Option<Loopback>,
    pub dns: Option<DnsConfig>,
    #[serde(default = "admin")]
    pub admin: SocketAddr,
    /// By default port 15090 of every family.
    pub metrics: Option<SocketAddr>,
    /// By default port 15021 of every family.
    pub health: Option<SocketAddr>,
    /// The application's probes by the path under which the kubelet asks for them (injection
    /// rewrites them so: a kubelet has no certificate).
    #[serde(default)]
    pub probes: BTreeMap<String, Probe>,
    /// Where they are asked for; by default port 15020 of every family.
    pub prober: Option<SocketAddr>,

    /// Threads that carry traffic, as Istio's ProxyConfig has it: 0 for one per processor that this process
    /// may use (its share of CPU time, where a limit is set). Never more than that; 2 where nothing is said,
    /// since the node is there for the application.
    pub concurrency: Option<u16>,
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
    /// By default port 15053 of loopback, of IPv6 too where the pod has such an address.
    pub listen: Option<Many<SocketAddr>>,
    /// Who answers what is not the mesh's; by default the nameservers of `resolvConf`.
    pub upstreams: Option<Vec<SocketAddr>>,
    /// The pod's own resolver configuration (`resolv.conf(5)`). Its search domains stay with the
    /// resolvers of the pod's programs, which ask for whole names.
    #[serde(default = "resolv_conf")]
    pub resolv_conf: PathBuf,
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

fn resolv_conf() -> PathBuf {
    "/etc/resolv.conf".into()
}
fn admin() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 15000).into()
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

/// A list, or one text with commas between.
fn addresses<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<IpAddr>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Given {
        List(Vec<IpAddr>),
        Text(String),
    }
    match Given::deserialize(from)? {
        Given::List(list) => Ok(list),
        Given::Text(text) => {
            let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
            parts
                .map(|part| {
                    let problem = |_| format!("podAddresses: {part:?} is not an IP address");
                    part.parse().map_err(problem).map_err(serde::de::Error::custom)
                })
                .collect()
        }
    }
}

/// The nameservers of a `resolv.conf(5)`, port 53.
fn nameservers(text: &str) -> Vec<SocketAddr> {
    let words = text.lines().map(str::split_whitespace);
    let servers = words.filter_map(|mut words| {
        (words.next()? == "nameserver").then(|| words.next()?.parse::<IpAddr>().ok()).flatten()
    });
    servers.map(|ip| (ip, 53).into()).collect()
}

impl DnsConfig {
    /// Who is asked about names that are not the mesh's.
    pub(crate) fn upstreams(&self) -> anyhow::Result<Vec<SocketAddr>> {
        if let Some(upstreams) = &self.upstreams {
            return Ok(upstreams.clone());
        }
        let path: &Path = &self.resolv_conf;
        let text = std::fs::read_to_string(path).with_context(|| {
            format!(
                "ISM1044 cannot read {}, which names the pod's nameservers. Fix: set dns.upstreams, \
                 or dns.resolvConf to a file this user may read",
                path.display()
            )
        })?;
        let servers = nameservers(&text);
        ensure!(
            !servers.is_empty(),
            "ISM1045 {} names no nameserver, so only the mesh's names could be resolved. Fix: give \
             the pod a dnsPolicy with nameservers, or set dns.upstreams",
            path.display()
        );
        Ok(servers)
    }
}

/// Threads where nothing is said.
const THREADS: usize = 2;

impl Config {
    /// How many threads carry traffic, on so many processors.
    pub(crate) fn threads(&self, processors: usize) -> usize {
        match self.concurrency.map(usize::from) {
            Some(0) => processors,
            some => some.unwrap_or(THREADS).min(processors),
        }
    }

    /// `port` of loopback, in the families the pod has: one without IPv6 may not be able to bind it.
    fn of_loopback(&self, port: u16) -> Vec<SocketAddr> {
        let v6 = self.has_v6().then(|| (Ipv6Addr::LOCALHOST, port).into());
        std::iter::once((Ipv4Addr::LOCALHOST, port).into()).chain(v6).collect()
    }

    /// `port` of every address the pod has; `::` takes IPv4 in too.
    fn of_all(&self, port: u16) -> SocketAddr {
        let any: IpAddr =
            if self.has_v6() { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
        (any, port).into()
    }

    fn has_v6(&self) -> bool {
        self.pod_addresses.iter().any(IpAddr::is_ipv6)
    }

    pub(crate) fn outbound(&self) -> Vec<SocketAddr> {
        self.outbound.as_ref().map_or_else(|| self.of_loopback(15001), Many::all)
    }

    pub(crate) fn inbound(&self) -> Vec<SocketAddr> {
        self.inbound.as_ref().map_or_else(|| vec![self.of_all(15006)], Many::all)
    }

    /// Where DNS is served; nowhere unless asked for.
    pub(crate) fn dns_listen(&self) -> Vec<SocketAddr> {
        let listen = |dns: &DnsConfig| {
            dns.listen.as_ref().map_or_else(|| self.of_loopback(15053), Many::all)
        };
        self.dns.as_ref().map(listen).unwrap_or_default()
    }

    pub(crate) fn metrics(&self) -> SocketAddr {
        self.metrics.unwrap_or_else(|| self.of_all(15090))
    }

    pub(crate) fn health(&self) -> SocketAddr {
        self.health.unwrap_or_else(|| self.of_all(15021))
    }

    pub(crate) fn prober(&self) -> SocketAddr {
        self.prober.unwrap_or_else(|| self.of_all(15020))
    }

    /// What cannot be right, said before anything is bound.
    pub fn check(&self) -> anyhow::Result<()> {
        ensure!(
            !self.pod_addresses.is_empty(),
            "ISM1030 podAddresses is empty, so no inbound connection could be for this pod. \
             Fix: list the pod's addresses (status.podIPs)"
        );
        for (path, probe) in &self.probes {
            probe.check(path)?;
        }
        for address in self.outbound() {
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
        slots.map_or_else(|| self.outbound(), Table::listeners)
    }

    /// Where others' connections to the application arrive.
    pub(crate) fn inbound_listeners(&self) -> Vec<SocketAddr> {
        match &self.loopback {
            Some(loopback) => {
                loopback.inbound.iter().map(|port| (self.pod_addresses[0], *port).into()).collect()
            }
            None => self.inbound(),
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
                    address: address.clone(),
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
                 Fix: set controlPlane: HOST:15012 and token, or resources and svid"
            ),
        };
        // The zone also where nobody asks for names: its addresses are the mesh's.
        let follow = vec![ResourceName::inbound(), ResourceName::zone()];
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
        assert_eq!(config.outbound(), ["127.0.0.1:15001".parse().unwrap()]);
        assert_eq!(config.inbound(), ["0.0.0.0:15006".parse().unwrap()]);
        assert!(config.dns_listen().is_empty());
        assert_eq!(config.network().as_str(), "east");
        let several = format!("{FINE}outbound: ['127.0.0.1:15001', '[::1]:15001']\n");
        assert_eq!(load(&several).unwrap().outbound().len(), 2);
    }

    #[test]
    fn a_pod_of_two_families_listens_in_both() {
        let text = FINE.replace("[10.244.0.5]", "10.244.0.5,fd00::5");
        let config = load(&format!("{text}dns: {{}}\n")).unwrap();
        assert_eq!(config.pod_addresses.len(), 2);
        let both = |port| ["127.0.0.1", "[::1]"].map(|ip| format!("{ip}:{port}").parse().unwrap());
        assert_eq!(config.outbound(), both(15001));
        assert_eq!(config.dns_listen(), both(15053));
        assert_eq!(config.inbound(), ["[::]:15006".parse().unwrap()]);
        for (address, port) in
            [(config.metrics(), 15090), (config.health(), 15021), (config.prober(), 15020)]
        {
            assert_eq!(address, format!("[::]:{port}").parse().unwrap());
        }
        let problem = load(&FINE.replace("[10.244.0.5]", "10.244.0.5;")).unwrap_err();
        assert!(format!("{problem:#}").contains("is not an IP address"), "{problem:#}");
    }

    #[test]
    fn a_pod_is_told_its_roots_and_a_name() {
        let pem = "\"-----BEGIN CERTIFICATE-----\\nMA==\\n-----END CERTIFICATE-----\"";
        let text = FINE
            .replace("root.pem", pem)
            .replace("10.244.0.1:15012", "cp.isthmus-system.svc:15012");
        let config = load(&text).unwrap();
        assert!(matches!(config.root_certificates, agent::RootCertificates::Text(_)));
        assert_eq!(config.control_plane.unwrap().to_string(), "cp.isthmus-system.svc:15012");
    }

    #[test]
    fn a_large_node_is_its_applications() {
        let threads =
            |said: &str, processors| load(&format!("{FINE}{said}")).unwrap().threads(processors);
        assert_eq!([1, 2, 64].map(|processors| threads("", processors)), [1, 2, 2]);
        assert_eq!([1, 64].map(|processors| threads("concurrency: 0", processors)), [1, 64]);
        assert_eq!([1, 64].map(|processors| threads("concurrency: 8", processors)), [1, 8]);
    }

    #[test]
    fn nameservers_are_the_pods() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("resolv.conf");
        let config = load(&format!("{FINE}dns: {{resolvConf: {}}}\n", file.display())).unwrap();
        let dns = config.dns.unwrap();
        let code = |problem: anyhow::Error| problem.to_string()[..7].to_owned();
        assert_eq!(code(dns.upstreams().unwrap_err()), "ISM1044");
        std::fs::write(&file, "# nameserver 9.9.9.9\nsearch shop.svc.cluster.local\n").unwrap();
        assert_eq!(code(dns.upstreams().unwrap_err()), "ISM1045");
        let text =
            "search a b\nnameserver 10.96.0.10\nnameserver\tfd00::a # too\noptions ndots:5\n";
        std::fs::write(&file, text).unwrap();
        let servers = ["10.96.0.10:53", "[fd00::a]:53"].map(|text| text.parse().unwrap());
        assert_eq!(dns.upstreams().unwrap(), servers);
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
            (
                format!("{FINE}probes: {{/app-health/app/livez: {{timeoutSeconds: 1}}}}\n"),
                "ISM1046",
            ),
        ] {
            let problem = format!("{:#}", load(&change).unwrap_err());
            assert!(problem.contains(code) && problem.contains("Fix: "), "{code}: {problem}");
        }
    }
}
