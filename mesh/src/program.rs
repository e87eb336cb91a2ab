//! What a proxy runs: named, immutable resources. xDS is their encoding, the engine their meaning.
//!
//! `decode(encode(program)) == program` holds for every value that can exist, so durations are
//! whole milliseconds and collections are ordered.

use crate::authorize::Authorization;
use crate::inventory::MtlsMode;
use crate::name::{ClusterId, Hostname, Identity, Locality, Network, Protocol};
use crate::sni::Sni;
use crate::zone::Zone;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;

/// Everything one proxy runs.
pub type Program = BTreeMap<ResourceName, Arc<Resource>>;

/// What a proxy has been told so far: what it runs, and what it asked for that does not exist.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Snapshot {
    pub program: Program,
    /// Asked for and answered with `removed_resources`.
    pub absent: BTreeSet<ResourceName>,
    /// A control plane answers right now. False: go on with what is here; a name that is neither
    /// in `program` nor in `absent` cannot be had now (decision 6: fail at once, with the reason).
    pub connected: bool,
}

/// A name somebody begins or ceases to use. What it leads to (routes, clusters, endpoints) is
/// subscribed and dropped along with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Want {
    Subscribe(ResourceName),
    Unsubscribe(ResourceName),
}

/// The xDS resource types we speak, in the order in which a server sends them
/// (make before break: clusters and endpoints before who refers to them).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ResourceKind {
    Secret,
    Cluster,
    Endpoints,
    Listener,
    Route,
    Zone,
}

/// A resource's name within its type, as xDS carries it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ResourceName {
    pub kind: ResourceKind,
    pub name: String,
}

impl ResourceName {
    pub fn new(kind: ResourceKind, name: impl Into<String>) -> Self {
        Self { kind, name: name.into() }
    }

    /// `240.240.7.2_80`, `2001:2::7_80`: the outbound listener of one virtual address and port.
    pub fn outbound(address: IpAddr, port: u16) -> Self {
        Self::new(ResourceKind::Listener, format!("{address}_{port}"))
    }

    /// The one listener that takes a workload's inbound connections.
    pub fn inbound() -> Self {
        Self::new(ResourceKind::Listener, "inbound")
    }

    /// The one listener of an east-west gateway.
    pub fn gateway() -> Self {
        Self::new(ResourceKind::Listener, "gateway")
    }

    /// The name table of a sidecar's DNS.
    pub fn zone() -> Self {
        Self::new(ResourceKind::Zone, "zone")
    }

    /// The trust bundle: root certificates (a validation context; never a key).
    pub fn root_ca() -> Self {
        Self::new(ResourceKind::Secret, "ROOTCA")
    }
}

impl TryFrom<String> for ResourceName {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        let kinds = [
            ResourceKind::Secret,
            ResourceKind::Cluster,
            ResourceKind::Endpoints,
            ResourceKind::Listener,
            ResourceKind::Route,
            ResourceKind::Zone,
        ];
        let (kind, name) = text.split_once('/').ok_or("a resource reads KIND/NAME")?;
        let known = kinds.into_iter().find(|known| format!("{known:?}") == kind);
        known.map(|kind| Self::new(kind, name)).ok_or_else(|| "an unknown kind".into())
    }
}

impl From<ResourceName> for String {
    fn from(name: ResourceName) -> Self {
        name.to_string()
    }
}

impl fmt::Display for ResourceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}/{}", self.kind, self.name)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Resource {
    Listener(Listener),
    Route(Route),
    Cluster(Cluster),
    Endpoints(Endpoints),
    Secret(ValidationContext),
    Zone(Zone),
}

/// `outbound|80||hello.shop.global`: names a cluster, its endpoints and its default route.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ClusterName {
    pub direction: Direction,
    pub port: u16,
    /// Empty for the whole service.
    pub subset: String,
    /// Empty for inbound.
    pub host: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Direction {
    Inbound,
    Outbound,
    /// What a gateway forwards to: own pods behind an SNI (`outbound_.80_._.HOST`).
    SniDnat,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "a cluster's name reads outbound|PORT|SUBSET|HOST, inbound|PORT|| or outbound_.PORT_.SUBSET_.HOST; {0:?} does not"
)]
pub struct NotAClusterName(pub String);

impl ClusterName {
    pub fn outbound(port: u16, subset: &str, host: &Hostname) -> Self {
        Self { direction: Direction::Outbound, port, subset: subset.into(), host: host.to_string() }
    }

    pub fn inbound(port: u16) -> Self {
        Self { direction: Direction::Inbound, port, subset: String::new(), host: String::new() }
    }

    pub fn sni(sni: &Sni) -> Self {
        Self {
            direction: Direction::SniDnat,
            port: sni.port,
            subset: sni.subset.clone(),
            host: sni.host.to_string(),
        }
    }
}

impl fmt::Display for ClusterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { direction, port, subset, host } = self;
        match direction {
            Direction::Inbound => write!(f, "inbound|{port}|{subset}|{host}"),
            Direction::Outbound => write!(f, "outbound|{port}|{subset}|{host}"),
            Direction::SniDnat => write!(f, "outbound_.{port}_.{subset}_.{host}"),
        }
    }
}

impl FromStr for ClusterName {
    type Err = NotAClusterName;
    fn from_str(text: &str) -> Result<Self, NotAClusterName> {
        let not = || NotAClusterName(text.chars().take(128).collect());
        if text.starts_with("outbound_.") {
            return text.parse::<Sni>().map(|sni| Self::sni(&sni)).map_err(|_| not());
        }
        let parts: Vec<&str> = text.split('|').collect();
        let [direction, port, subset, host] = parts[..] else { return Err(not()) };
        let direction = match direction {
            "inbound" => Direction::Inbound,
            "outbound" => Direction::Outbound,
            _ => return Err(not()),
        };
        let port = port.parse().map_err(|_| not())?;
        Ok(Self { direction, port, subset: subset.into(), host: host.into() })
    }
}

impl TryFrom<String> for ClusterName {
    type Error = NotAClusterName;
    fn try_from(text: String) -> Result<Self, NotAClusterName> {
        text.parse()
    }
}

impl From<ClusterName> for String {
    fn from(name: ClusterName) -> Self {
        name.to_string()
    }
}

/// Where connections come in, and what becomes of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Listener {
    Outbound(OutboundListener),
    Inbound(InboundListener),
    Gateway(GatewayListener),
}

/// One virtual address and port as an application dials it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutboundListener {
    pub address: SocketAddr,
    /// The service's first name, for people and metrics.
    pub host: Hostname,
    pub target: OutboundTarget,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum OutboundTarget {
    /// Requests, by the route of this name.
    Http { route: String },
    /// Bytes, to this cluster.
    Tcp { cluster: ClusterName },
    /// Whichever the client begins to speak: requests by the route, or bytes to the cluster.
    Auto { route: String, cluster: ClusterName },
}

/// How a workload takes connections on its own ports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InboundListener {
    /// For ports without an entry of their own.
    pub mtls: MtlsMode,
    /// By target port (the port the process listens on).
    pub ports: BTreeMap<u16, InboundPort>,
    /// Trust domains whose workloads may connect: the own and those of accepted links.
    pub trust_domains: BTreeSet<crate::name::TrustDomain>,
    /// Who of them may call.
    pub authorization: Authorization,
    /// Whether it is called over IPv6 too: of Envoy's dialect alone, for our own proxies listen as
    /// their configuration says.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ipv6: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InboundPort {
    pub mtls: MtlsMode,
    /// What the process there speaks; never UDP.
    pub protocol: Protocol,
    /// The service it serves, for metrics; first by name where several do.
    pub service: String,
}

/// An SNI router: exact names only, no default.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GatewayListener {
    /// Service name as asked, any of its host forms; the cluster bears its
    /// `svc.cluster.local` form.
    pub routes: BTreeMap<Sni, ClusterName>,
    /// The name it terminates itself, to prove that path, process and trust are alive.
    pub probe: Hostname,
}

/// How requests of one service port go on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    pub name: String,
    pub cluster: ClusterName,
    /// Whole request, 0 for none.
    pub timeout_ms: u64,
    pub retry: Retry,
}

/// When a second attempt is made (decision 14).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retry {
    /// Attempts after the first.
    pub attempts: u32,
    /// No response headers within this: a second attempt on another path, for requests that change
    /// nothing (docs/adr/0019).
    pub hedge_ms: u64,
    /// Longest body that is kept to be sent again, bytes.
    pub body_max: u64,
    /// Attempts after bytes were sent, in percent of requests …
    pub budget_percent: u32,
    /// … plus so many per second.
    pub budget_per_second: u32,
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            attempts: 3,
            hedge_ms: 300,
            body_max: 65_536,
            budget_percent: 20,
            budget_per_second: 10,
        }
    }
}

/// One service port as a destination.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cluster {
    pub name: ClusterName,
    /// What the client names in TLS towards gateways and meshed pods.
    pub sni: String,
    /// What its endpoints speak; never UDP.
    pub protocol: Protocol,
    pub load_balancing: LoadBalancing,
    pub connect_timeout_ms: u64,
    pub outlier: OutlierDetection,
    pub pool: ConnectionPool,
    /// Who may answer, by the cluster that announced the endpoint. An endpoint with `tls` whose
    /// cluster is not here is never dialled.
    pub server_identities: BTreeMap<ClusterId, BTreeSet<Identity>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum LoadBalancing {
    LeastRequest,
    RoundRobin,
    Random,
}

impl fmt::Display for LoadBalancing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::LeastRequest => "LEAST_REQUEST",
            Self::RoundRobin => "ROUND_ROBIN",
            Self::Random => "RANDOM",
        })
    }
}

/// When an endpoint is set aside. Gateways are never ejected by responses (decision 12).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutlierDetection {
    /// Consecutive 5xx responses; 0 turns it off.
    pub consecutive_5xx: u32,
    /// Consecutive failures to connect or to finish the handshake.
    pub consecutive_local: u32,
    pub interval_ms: u64,
    pub base_ejection_ms: u64,
    /// At most so many percent of a locality group are set aside by responses.
    pub max_ejection_percent: u32,
}

impl Default for OutlierDetection {
    fn default() -> Self {
        Self {
            consecutive_5xx: 5,
            consecutive_local: 3,
            interval_ms: 1_000,
            base_ejection_ms: 5_000,
            max_ejection_percent: 100,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectionPool {
    pub max_connections: u32,
    pub max_pending_requests: u32,
    /// 0 for no limit.
    pub max_requests_per_connection: u32,
    pub idle_timeout_ms: u64,
}

impl Default for ConnectionPool {
    fn default() -> Self {
        Self {
            max_connections: 4_096,
            max_pending_requests: 4_096,
            max_requests_per_connection: 0,
            idle_timeout_ms: 60_000,
        }
    }
}

/// Where a cluster's copies are, as one client sees them: sorted by priority, then locality.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoints {
    pub cluster: ClusterName,
    pub groups: Vec<LocalityGroup>,
}

/// The copies in one locality.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalityGroup {
    /// 0 is nearest; no gaps.
    pub priority: u32,
    pub locality: Locality,
    /// Sum of its endpoints' weights.
    pub weight: u32,
    /// Sorted by address, then cluster.
    pub endpoints: Vec<LbEndpoint>,
}

/// One address to dial: a pod, or a gateway with what stands behind it as weight.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct LbEndpoint {
    pub address: SocketAddr,
    /// The cluster that announced it; selects the identities that may answer.
    pub cluster: ClusterId,
    pub network: Network,
    pub weight: u32,
    /// Mutual TLS with the workload; false only for unmeshed local pods, and behind a gateway, which
    /// passes the client's own TLS through.
    pub tls: bool,
    /// It is a gateway: many workloads stand behind, and a probe can tell whether it lives.
    pub gateway: bool,
    /// Pod name where the endpoint is one.
    pub workload: String,
}

/// Root certificates to trust (PEM). Never a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ValidationContext {
    pub name: String,
    pub root_certificates: String,
}
