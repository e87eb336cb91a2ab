//! The objects of `isthmus.dev/v1alpha1`: only what nobody else has a kind for.

pub mod cluster_link;
pub mod exported_service;

/// Labels and annotations of what we write.
pub mod label {
    /// Kubernetes' recommended label; the value is [`MANAGER`].
    pub const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
    /// Field manager and value of [`MANAGED_BY`].
    pub const MANAGER: &str = "isthmus-federation";
    /// The service an entry stands for.
    pub const SERVICE: &str = "isthmus.dev/service";
    pub const SERVICE_NAMESPACE: &str = "isthmus.dev/service-namespace";
    /// Annotation: the lease's transitions when this was written (decision 4).
    pub const TERM: &str = "isthmus.dev/term";
    /// Service ports a cluster serves, where fewer than the entry's: `80-443`.
    pub const PORTS: &str = "isthmus.dev/ports";
    pub const NETWORK: &str = "topology.istio.io/network";
    pub const CLUSTER: &str = "topology.istio.io/cluster";
    pub const TLS_MODE: &str = "security.istio.io/tlsMode";
    /// Keeps an istiod in the same cluster away from our entries (decision 9).
    pub const REVISION: &str = "istio.io/rev";
    /// Istio's remote secrets: `"true"`.
    pub const MULTI_CLUSTER: &str = "istio/multiCluster";
    /// Annotation of Istio's remote secrets: the cluster's id.
    pub const REMOTE_CLUSTER: &str = "networking.istio.io/cluster";
}
