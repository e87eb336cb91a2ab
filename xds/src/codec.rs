//! Programs as xDS resources and back, in three dialects.
//!
//! Ours loses nothing: `decode(encode(r)) == r`. What Envoy's messages can say stands in their
//! own fields; the rest is a Struct in `metadata.filter_metadata["isthmus"]`. Envoy's dialect is
//! written only; a real Envoy judges it (`tests/envoy.rs`), and so is gRPC's ([`grpc`] has its own table).
//! Where the first two differ:
//!
//! | resource | ours | Envoy's |
//! |---|---|---|
//! | subscription | by name, on demand | wildcard for listeners and clusters |
//! | outbound listener | address and target; `host` in metadata | + router filter, `bind_to_port: false`: a listener with `use_original_dst` (see [`listener::capture`], in the bootstrap) hands over |
//! | inbound listener | metadata only | filter chains per port on 0.0.0.0:15006 over `inbound\|PORT\|\|` clusters of type ORIGINAL_DST; trust domains as URI SAN prefixes; `inbound\|0\|\|` for other ports |
//! | authorization | policies in the inbound listener's metadata | RBAC filters per chain, DENY then ALLOW: `filters.http.rbac` where HTTP is spoken, else `filters.network.rbac` |
//! | gateway listener | metadata only: a list of server names | a filter chain per server name with Istio's ALPN list, `tcp_proxy`, `tls_inspector` |
//! | gateway's probe | a name in metadata | a chain that ends TLS with the workload's certificate and closes |
//! | route | hedging, body limit and budget in metadata | two rules: methods that may be repeated are retried after a reset too and hedged when headers are late, the others before they were sent only; always on another host; no budget, and Envoy's own limit of bodies it keeps (1 MiB) |
//! | cluster | `sni`, `http`, identities in metadata | a transport-socket match per announcing cluster with its SANs, TLS 1.3 as min and max, static ALPN `istio-http/1.1` or `istio`; an announcing cluster without identities matches a context that trusts nobody |
//! | cluster, durations of 0 | as they are | left to Envoy's default where it refuses 0 |
//! | endpoints | cluster, network, gateway, workload in metadata | `envoy.transport_socket_match` {tlsMode, cluster}; weights of at least 1; overprovisioning 140 |
//! | secret, zone | the same | the same |

use envoy_types::pb::google::protobuf::Any;
use mesh::program::{Resource, ResourceKind, ResourceName};
use mesh::world::Dialect;
use sha2::{Digest, Sha256};

pub mod cluster;
pub mod endpoint;
pub mod grpc;
mod json;
pub mod listener;
mod own;
pub mod route;
pub mod secret;
mod tls;
mod wire;
pub mod zone;

pub(crate) use json::capture_json;
pub use json::{from_json, resource_to_json, to_json};
pub(crate) use listener::PASSTHROUGH_CLUSTER;
pub(crate) use tls::{AGENT_CLUSTER, OWN_CERTIFICATE};

/// Why a resource cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("ISM6020 {resource}: {field} {problem}")]
pub struct DecodeError {
    /// `Listener/240.240.7.2_80`, as far as it is known.
    pub resource: String,
    /// Path in the resource, as JSON writes it.
    pub field: String,
    /// Predicate of the sentence whose subject is the field.
    pub problem: String,
}

/// Writes one resource.
pub fn encode(name: &ResourceName, resource: &Resource, dialect: Dialect) -> Any {
    match resource {
        Resource::Listener(value) => wire::pack(&listener::encode(&name.name, value, dialect)),
        Resource::Route(value) => wire::pack(&route::encode(value, dialect)),
        Resource::Cluster(value) => wire::pack(&cluster::encode(value, dialect)),
        Resource::Endpoints(value) => wire::pack(&endpoint::encode(value, dialect)),
        Resource::Secret(value) => wire::pack(&secret::encode(value)),
        Resource::Zone(value) => zone::pack(value),
    }
}

/// Reads one resource of our own dialect.
pub fn decode(kind: ResourceKind, any: &Any) -> Result<(ResourceName, Resource), DecodeError> {
    if any.type_url != type_url(kind) {
        return Err(DecodeError {
            resource: format!("{kind:?}"),
            field: "@type".into(),
            problem: format!(
                "is {:?}, not {:?}",
                any.type_url.chars().take(128).collect::<String>(),
                type_url(kind)
            ),
        });
    }
    let named = |(name, value)| (ResourceName::new(kind, name), value);
    match kind {
        ResourceKind::Listener => wire::read(
            kind,
            any,
            |m: &wire::Listener| &m.name,
            |m| listener::decode(m).map(Resource::Listener),
        ),
        ResourceKind::Route => wire::read(
            kind,
            any,
            |m: &wire::RouteConfiguration| &m.name,
            |m| route::decode(m).map(Resource::Route),
        ),
        ResourceKind::Cluster => wire::read(
            kind,
            any,
            |m: &wire::Cluster| &m.name,
            |m| cluster::decode(m).map(Resource::Cluster),
        ),
        ResourceKind::Endpoints => wire::read(
            kind,
            any,
            |m: &wire::ClusterLoadAssignment| &m.cluster_name,
            |m| endpoint::decode(m).map(Resource::Endpoints),
        ),
        ResourceKind::Secret => wire::read(
            kind,
            any,
            |m: &wire::Secret| &m.name,
            |m| secret::decode(m).map(Resource::Secret),
        ),
        ResourceKind::Zone => {
            return zone::unpack(any)
                .map(|zone| (ResourceName::zone(), Resource::Zone(zone)))
                .map_err(|wrong| wrong.of(&ResourceName::zone()));
        }
    }
    .map(named)
}

/// The version of a resource as one dialect writes it: the first 16 hex digits of SHA-256 over
/// its content. Equal content has an equal version, whoever serves it and after any restart.
pub fn version(resource: &Resource, dialect: Dialect) -> String {
    /// Counts changes of how resources are written, which no content shows.
    const FORMAT: u8 = 1;
    let mut hash = Sha256::new();
    hash.update([FORMAT, dialect as u8]);
    let content = serde_json::to_vec(resource).expect("resources are maps with text keys");
    hash.update(content);
    hex::encode(&hash.finalize()[..8])
}

/// `type.googleapis.com/envoy.config.listener.v3.Listener` …
pub fn type_url(kind: ResourceKind) -> &'static str {
    match kind {
        ResourceKind::Secret => {
            "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"
        }
        ResourceKind::Cluster => "type.googleapis.com/envoy.config.cluster.v3.Cluster",
        ResourceKind::Endpoints => {
            "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
        }
        ResourceKind::Listener => "type.googleapis.com/envoy.config.listener.v3.Listener",
        ResourceKind::Route => "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
        ResourceKind::Zone => crate::nds::TYPE_URL,
    }
}

/// The kind a type URL names, where we speak it.
pub fn kind_of(type_url: &str) -> Option<ResourceKind> {
    crate::session::server::SEND_ORDER.into_iter().find(|kind| self::type_url(*kind) == type_url)
}
