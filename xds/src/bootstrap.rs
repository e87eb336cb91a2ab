//! The bootstrap of a foreign Envoy: all it knows before its agent speaks, and no secret.

use crate::codec;
use crate::node::Node;
use serde_json::{Value, json};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

/// The static cluster behind which the agent passes ADS on.
const XDS_CLUSTER: &str = "xds-grpc";

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
            "node": self.node_json(),
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
                "listeners": [codec::capture_json(self.closed)],
                "clusters": [
                    grpc(XDS_CLUSTER),
                    grpc(codec::AGENT_CLUSTER),
                    {
                        "name": codec::PASSTHROUGH_CLUSTER,
                        "type": "ORIGINAL_DST",
                        "lb_policy": "CLUSTER_PROVIDED",
                        "connect_timeout": "5s",
                    },
                ],
            },
        })
    }

    fn node_json(&self) -> Value {
        let Node { address: _, cluster, network, namespace, account, locality, .. } = self.node;
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
            "id": self.node.id(),
            "cluster": format!("{account}.{namespace}"),
            "metadata": metadata,
            "locality": {
                "region": locality.region, "zone": locality.zone, "sub_zone": locality.subzone,
            },
        })
    }
}
