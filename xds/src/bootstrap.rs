//! The bootstrap of a foreign Envoy, or of a gRPC client: all it knows before its agent speaks, and
//! no secret.

use crate::codec;
use crate::node::Node;
use serde_json::{Value, json};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

/// The static cluster behind which the agent passes ADS on.
const XDS_CLUSTER: &str = "xds-grpc";

/// Files of the workload's certificate in the agent's folder (Istio's names): key, ...
pub const KEY_FILE: &str = "key.pem";
/// ... chain, leaf first, ...
pub const CHAIN_FILE: &str = "cert-chain.pem";
/// ... and root certificates.
pub const ROOTS_FILE: &str = "root-cert.pem";
/// A gRPC client looks at the files so often; they change long before they expire.
const REFRESH: &str = "10s";

/// What a bootstrap is made of.
#[derive(Debug, Clone)]
pub struct Bootstrap<'a> {
    pub node: &'a Node,
    /// The agent's Unix socket: ADS and SDS.
    pub socket: &'a Path,
    /// Envoy's admin pages.
    pub admin: SocketAddr,
    /// Ranges (first address and prefix length) in which an address that no listener has is
    /// closed; elsewhere it is reached directly.
    pub closed: &'a [(IpAddr, u8)],
    /// Whether the pod has an IPv6 address.
    pub ipv6: bool,
}

impl Bootstrap<'_> {
    /// As Envoy reads it, `envoy.config.bootstrap.v3.Bootstrap` in JSON.
    pub fn to_json(&self) -> Value {
        let pipe = json!({"pipe": {"path": self.socket}});
        let grpc = |name: &str| {
            json!({
                "name": name,
                "type": "STATIC",
                "connect_timeout": "1s",
                "load_assignment": {
                    "cluster_name": name,
                    "endpoints": [{"lb_endpoints": [{"endpoint": {"address": pipe}}]}],
                },
                "typed_extension_protocol_options": {
                    "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                        "explicit_http_config": {"http2_protocol_options": {
                            "connection_keepalive": {"interval": "20s", "timeout": "10s"},
                        }},
                    },
                },
            })
        };
        let ads = json!({"ads": {}, "resource_api_version": "V3"});
        json!({
            "node": node_json(self.node),
            "admin": {"address": {"socket_address": {
                "address": self.admin.ip(), "port_value": self.admin.port(),
            }}},
            "dynamic_resources": {
                "ads_config": {
                    "api_type": "DELTA_GRPC",
                    "transport_api_version": "V3",
                    "set_node_on_first_message_only": true,
                    "grpc_services": [{"envoy_grpc": {"cluster_name": XDS_CLUSTER}}],
                },
                "cds_config": ads,
                "lds_config": ads,
            },
            "static_resources": {
                "listeners": [codec::capture_json(self.closed, self.ipv6)],
                "clusters": [
                    grpc(XDS_CLUSTER),
                    grpc(codec::AGENT_CLUSTER),
                    {
                        "name": codec::PASSTHROUGH_CLUSTER,
                        "type": "ORIGINAL_DST",
                        "lb_policy": "CLUSTER_PROVIDED",
                        "connect_timeout": "5s",
                        // Envoy's own 1,024 would be a limit that nobody chose (Istio lifts it).
                        "circuit_breakers": {"thresholds": [{
                            "max_connections": u32::MAX, "max_pending_requests": u32::MAX,
                            "max_requests": u32::MAX, "max_retries": u32::MAX,
                        }]},
                    },
                ],
            },
        })
    }
}

/// What a gRPC client's bootstrap is made of.
#[derive(Debug, Clone)]
pub struct GrpcBootstrap<'a> {
    pub node: &'a Node,
    /// The agent's Unix socket: ADS.
    pub socket: &'a Path,
    /// The folder of [`KEY_FILE`] and the others.
    pub certificates: &'a Path,
}

impl GrpcBootstrap<'_> {
    /// As gRPC reads it from `GRPC_XDS_BOOTSTRAP` (gRFC A27, A29), in JSON.
    pub fn to_json(&self) -> Value {
        let mut node = node_json(self.node);
        node["metadata"]["GENERATOR"] = "grpc".into();
        let file = |name: &str| self.certificates.join(name);
        json!({
            "xds_servers": [{
                "server_uri": format!("unix:{}", self.socket.display()),
                // The socket is this user's alone, and the agent speaks mutual TLS from there.
                "channel_creds": [{"type": "insecure"}],
                "server_features": ["xds_v3"],
            }],
            "node": node,
            "certificate_providers": {(codec::grpc::PROVIDER): {
                "plugin_name": "file_watcher",
                "config": {
                    "certificate_file": file(CHAIN_FILE),
                    "private_key_file": file(KEY_FILE),
                    "ca_certificate_file": file(ROOTS_FILE),
                    "refresh_interval": REFRESH,
                },
            }},
        })
    }
}

fn node_json(node: &Node) -> Value {
    let Node { address: _, cluster, network, namespace, account, locality, .. } = node;
    let said = [
        ("CLUSTER_ID", cluster),
        ("NETWORK", network),
        ("NAMESPACE", namespace),
        ("SERVICE_ACCOUNT", account),
    ];
    let metadata: serde_json::Map<String, Value> = said
        .into_iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(key, value)| (key.to_owned(), value.clone().into()))
        .collect();
    json!({
        "id": node.id(),
        "cluster": format!("{account}.{namespace}"),
        "metadata": metadata,
        "locality": {
            "region": locality.region, "zone": locality.zone, "sub_zone": locality.subzone,
        },
    })
}
