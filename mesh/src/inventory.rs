//! What one cluster has, as its own API server tells it: values without Kubernetes in them.

use crate::finding::{Finding, ObjectRef};
use crate::name::{
    ClusterId, Hostname, Identity, Locality, Network, Protocol, ServiceName, TrustDomain,
};
use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// One cluster at one moment. Two equal inventories are the same news: publishing one is silence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inventory {
    /// From ConfigMap `isthmus-mesh` in the root namespace.
    pub mesh: MeshConfig,
    /// UID of Namespace `kube-system`; finds one cluster under two names.
    pub uid: String,
    pub namespaces: BTreeSet<String>,
    pub services: BTreeMap<ServiceName, Service>,
    /// Ready endpoints only, from EndpointSlices joined with Pods and Nodes; sorted.
    pub endpoints: BTreeMap<ServiceName, Vec<Endpoint>>,
    /// Pods of this cluster by (namespace, name): what a proxy may claim to be.
    pub workloads: BTreeMap<WorkloadName, Workload>,
    /// ServiceEntries: our own publications and the users'.
    pub entries: BTreeMap<ObjectRef, ServiceEntry>,
    /// ServiceEntries of ours that name nothing any more and keep their addresses from others.
    pub resting: BTreeMap<ObjectRef, Resting>,
    /// Gateway API Gateways of class `istio-remote`: the doors of other networks.
    pub remote_gateways: BTreeMap<ObjectRef, RemoteGateway>,
    /// Our own east-west gateway's addresses as other clusters reach it.
    pub gateway_addresses: Vec<GatewayAddress>,
    /// Istio Gateways with AUTO_PASSTHROUGH servers: which hosts the east-west gateway opens.
    pub passthrough_hosts: Vec<PassthroughServer>,
    /// ServiceExports (MCS API).
    pub service_exports: BTreeSet<ServiceName>,
    /// ClusterLinks of the root namespace, by name.
    pub links: BTreeMap<String, Link>,
    pub destination_rules: BTreeMap<ObjectRef, DestinationRule>,
    pub peer_authentications: BTreeMap<ObjectRef, PeerAuthentication>,
    pub authorization_policies: BTreeMap<ObjectRef, AuthorizationPolicy>,
    /// What was wrong with objects, and what we did instead; sorted.
    pub findings: Vec<Finding>,
}

impl Inventory {
    /// Of a cluster of which nothing is known but how it describes itself.
    pub fn empty(mesh: MeshConfig) -> Self {
        Self {
            mesh,
            uid: String::new(),
            namespaces: BTreeSet::new(),
            services: BTreeMap::new(),
            endpoints: BTreeMap::new(),
            workloads: BTreeMap::new(),
            entries: BTreeMap::new(),
            resting: BTreeMap::new(),
            remote_gateways: BTreeMap::new(),
            gateway_addresses: Vec::new(),
            passthrough_hosts: Vec::new(),
            service_exports: BTreeSet::new(),
            links: BTreeMap::new(),
            destination_rules: BTreeMap::new(),
            peer_authentications: BTreeMap::new(),
            authorization_policies: BTreeMap::new(),
            findings: Vec::new(),
        }
    }
}

/// How a cluster describes itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MeshConfig {
    pub cluster: ClusterId,
    pub network: Network,
    pub trust_domain: TrustDomain,
    /// IPv4 range of virtual addresses for names without a ClusterIP.
    pub vip_range: Ipv4Net,
    /// IPv6 range of the same.
    pub vip_range_v6: Ipv6Net,
    /// Root certificates, PEM, as published to other clusters. Public material.
    pub root_certificates: String,
    /// Where true, remote endpoints join `svc.cluster.local` without this cluster's own export
    /// (Istio's way; key `clusterLocal: merge`).
    pub merge_cluster_local: bool,
}

/// Where virtual addresses lie unless a cluster says otherwise: no network has these (docs/adr/0005).
pub const VIP_RANGE: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(240, 240, 0, 0), 16);
pub const VIP_RANGE_V6: Ipv6Net =
    Ipv6Net::new_assert(Ipv6Addr::new(0x2001, 2, 0, 0, 0, 0, 0, 0), 48);

impl MeshConfig {
    /// Of a cluster that says no more of itself than who it is, and shows no root.
    pub fn new(cluster: ClusterId, network: Network, trust_domain: TrustDomain) -> Self {
        Self {
            cluster,
            network,
            trust_domain,
            vip_range: VIP_RANGE,
            vip_range_v6: VIP_RANGE_V6,
            root_certificates: String::new(),
            merge_cluster_local: false,
        }
    }
}

/// A Service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    pub name: ServiceName,
    pub kind: ServiceKind,
    /// Labels of the pods it stands for; empty where others write its endpoints.
    pub selector: BTreeMap<String, String>,
    /// ClusterIPs, both families; empty for headless and ExternalName.
    pub addresses: Vec<IpAddr>,
    /// Sorted by number and protocol.
    pub ports: Vec<ServicePort>,
    pub client_ip_affinity: bool,
    /// `trafficDistribution`, as written; unknown values get a Finding.
    pub traffic_distribution: Option<TrafficDistribution>,
    /// Seconds since the epoch: older objects win conflicts.
    pub created: i64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ServiceKind {
    ClusterIp,
    Headless,
    ExternalName,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum TrafficDistribution {
    PreferClose,
    PreferSameZone,
    PreferSameNode,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ServicePort {
    pub number: u16,
    pub protocol: Protocol,
    pub name: String,
}

/// One ready endpoint of a local Service: a pod, or an address without one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Endpoint {
    pub address: IpAddr,
    /// Target port by Service port number.
    pub ports: BTreeMap<u16, u16>,
    pub locality: Locality,
    /// Empty where no pod stands behind the address.
    pub account: String,
    pub labels: BTreeMap<String, String>,
    /// Its pod runs a sidecar, or carries `security.istio.io/tlsMode: istio`.
    pub meshed: bool,
    /// Pod name, empty where there is none.
    pub pod: String,
    /// By which the cluster's DNS names it before the Service's own name; empty where it has none.
    pub hostname: String,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct WorkloadName {
    pub namespace: String,
    pub name: String,
}

impl TryFrom<String> for WorkloadName {
    type Error = String;
    /// `shop/hello-1`.
    fn try_from(text: String) -> Result<Self, String> {
        match text.split_once('/') {
            Some((namespace, name)) => Ok(Self { namespace: namespace.into(), name: name.into() }),
            None => Err("a workload reads NAMESPACE/NAME".into()),
        }
    }
}

impl From<WorkloadName> for String {
    fn from(name: WorkloadName) -> Self {
        name.to_string()
    }
}

impl fmt::Display for WorkloadName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A pod of this cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Workload {
    pub name: WorkloadName,
    pub addresses: Vec<IpAddr>,
    pub account: String,
    pub labels: BTreeMap<String, String>,
    pub node: String,
    pub locality: Locality,
    pub meshed: bool,
}

/// A ServiceEntry, ours (`owner` is set) or a user's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceEntry {
    pub object: ObjectRef,
    /// First host names the clusters; the others are aliases with the same addresses.
    pub hosts: Vec<Hostname>,
    /// Virtual addresses.
    pub addresses: Vec<IpAddr>,
    pub ports: Vec<ServicePort>,
    pub endpoints: Vec<EntryEndpoint>,
    /// `spec.subjectAltNames`.
    pub subject_alt_names: Vec<Identity>,
    /// Ours: written by the federation controller (field manager and label say so).
    pub published: bool,
    /// The service it stands for, ours only: label `isthmus.dev/service` and `-namespace`.
    pub service: Option<ServiceName>,
    /// Ours with the copies of one cluster alone: UID of that cluster's `kube-system`.
    pub source_uid: Option<String>,
    pub created: i64,
}

/// Addresses that a host had, until somebody else may have them (decision 7).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resting {
    pub host: Hostname,
    pub addresses: Vec<IpAddr>,
    /// Seconds since the epoch.
    pub until: i64,
}

/// Ready endpoints of one cluster in one locality: a count, no address (decision 9).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct EntryEndpoint {
    pub cluster: ClusterId,
    pub network: Network,
    pub locality: Locality,
    /// How many ready meshed endpoints stand behind it.
    pub weight: u32,
    /// One service account; a service with several accounts has several endpoints or SANs.
    pub account: String,
    pub labels: BTreeMap<String, String>,
    /// Service ports this cluster serves; empty means all of the entry's.
    pub ports: BTreeSet<u16>,
    /// Users' entries may carry an address; ours never do.
    pub address: Option<IpAddr>,
}

/// Keys of labels that the federation writes on an entry's endpoints.
pub mod labels {
    /// Which cluster announced the endpoint.
    pub const CLUSTER: &str = "topology.istio.io/cluster";
    /// `istio` where the endpoint speaks mesh mTLS.
    pub const TLS_MODE: &str = "security.istio.io/tlsMode";
    /// Service ports the cluster serves, joined by `-`; absent for all.
    pub const PORTS: &str = "isthmus.dev/ports";
    /// The announcing cluster's trust domain.
    pub const TRUST_DOMAIN: &str = "isthmus.dev/trust-domain";
    /// Followed by a subset's name: how many of the ready endpoints are in it.
    pub const SUBSET_PREFIX: &str = "subset.isthmus.dev/";
}

impl EntryEndpoint {
    /// The trust domain of the cluster that announced it, where its label says so.
    pub fn trust_domain(&self) -> Option<TrustDomain> {
        self.labels.get(labels::TRUST_DOMAIN)?.parse().ok()
    }

    /// It speaks mesh mTLS, so it may stand behind a gateway.
    pub fn meshed(&self) -> bool {
        self.labels.get(labels::TLS_MODE).is_some_and(|mode| mode == "istio")
    }

    /// Ready endpoints of a subset; of all for the empty one.
    pub fn ready(&self, subset: &str) -> u32 {
        if subset.is_empty() {
            return self.weight;
        }
        let count = self.labels.get(&format!("{}{subset}", labels::SUBSET_PREFIX));
        count.and_then(|count| count.parse().ok()).unwrap_or(0).min(self.weight)
    }

    /// Whether the announcing cluster serves this service port.
    pub fn serves(&self, port: u16) -> bool {
        self.ports.is_empty() || self.ports.contains(&port)
    }
}

/// A door of another network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoteGateway {
    pub object: ObjectRef,
    pub network: Network,
    pub cluster: Option<ClusterId>,
    /// IP literals are dialled; names are kept and said aloud until they are resolved somewhere.
    pub addresses: Vec<GatewayAddress>,
    /// Annotation [`labels::TRUST_DOMAIN`]: ours always carry it, so that a cluster that only
    /// calls and exports nothing is let in too.
    pub trust_domain: Option<TrustDomain>,
    /// Ours: UID of its cluster's `kube-system`.
    pub source_uid: Option<String>,
    pub published: bool,
}

/// One address of an east-west gateway: an IP, or a DNS name to be resolved by who dials.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct GatewayAddress {
    /// IP literal or DNS name.
    pub host: String,
    pub port: u16,
}

impl GatewayAddress {
    /// The address to dial, where the host is an IP literal (an IPv4-mapped one is IPv4).
    pub fn socket(&self) -> Option<SocketAddr> {
        let address: IpAddr = self.host.parse().ok()?;
        Some(SocketAddr::new(address.to_canonical(), self.port))
    }
}

impl fmt::Display for GatewayAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.socket() {
            Some(socket) => write!(f, "{socket}"),
            None => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

/// A ClusterLink, as far as absent names depend on it (decision 10).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// `spec.accepted`.
    pub accepted: bool,
    /// `status.complete`: all that its cluster exports is known here now, or certain to count for
    /// nothing.
    pub complete: bool,
}

/// An AUTO_PASSTHROUGH server of an Istio Gateway.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PassthroughServer {
    pub object: ObjectRef,
    pub port: u16,
    /// As written: `*.local`, `*.global`, `hello.shop.svc.cluster.local`.
    pub hosts: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DestinationRule {
    pub object: ObjectRef,
    /// Fully qualified; a short name is completed with the object's namespace.
    pub host: Hostname,
    pub policy: TrafficPolicy,
    /// Subset name to labels and its own policy, merged over the rule's.
    pub subsets: BTreeMap<String, Subset>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subset {
    pub labels: BTreeMap<String, String>,
    pub policy: TrafficPolicy,
}

/// What a DestinationRule may say about traffic; `None` is "not said".
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrafficPolicy {
    pub load_balancing: Option<crate::program::LoadBalancing>,
    pub connect_timeout_ms: Option<u64>,
    pub max_connections: Option<u32>,
    pub max_pending_requests: Option<u32>,
    pub max_requests_per_connection: Option<u32>,
    pub idle_timeout_ms: Option<u64>,
    pub outlier: Option<crate::program::OutlierDetection>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerAuthentication {
    pub object: ObjectRef,
    /// Empty selects the whole namespace (or mesh, in the root namespace).
    pub selector: BTreeMap<String, String>,
    pub mode: Option<MtlsMode>,
    pub ports: BTreeMap<u16, MtlsMode>,
    /// Seconds since the epoch: of several for the same workloads the oldest is in force.
    pub created: i64,
}

/// How a workload takes connections. Default of a mesh without any PeerAuthentication: Permissive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum MtlsMode {
    Strict,
    Permissive,
    Disable,
}

/// An AuthorizationPolicy (security.istio.io): who may call the workloads it selects.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuthorizationPolicy {
    pub object: ObjectRef,
    /// Empty selects the whole namespace (or mesh, in the root namespace).
    pub selector: BTreeMap<String, String>,
    pub action: PolicyAction,
    /// As they are written: a rule's number is its place, from 0. None match nobody.
    pub rules: Vec<crate::authorize::Rule>,
}

/// What a policy does with callers that one of its rules matches. AUDIT decides nothing, and is not
/// among them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum PolicyAction {
    Allow,
    Deny,
    /// Denies: the provider that it names is not asked (Istio denies too where it cannot be).
    Custom,
}

impl fmt::Display for PolicyAction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Allow => "ALLOW",
            Self::Deny => "DENY",
            Self::Custom => "CUSTOM",
        })
    }
}
