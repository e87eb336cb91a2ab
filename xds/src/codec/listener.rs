//! Listeners: outbound by virtual address, the inbound one, and the gateway's.

use super::wire::{self, Wrong, ads, read_address, read_cluster_name, required, wrong};
use super::{grpc, own};
use envoy_types::pb::envoy::config::core::v3::TrafficDirection;
use envoy_types::pb::envoy::config::listener::v3::{
    Filter, FilterChain, FilterChainMatch, filter::ConfigType,
};
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, Rds, http_connection_manager::RouteSpecifier,
};
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::{
    TcpProxy, tcp_proxy::ClusterSpecifier,
};
use envoy_types::pb::google::protobuf::Any;
use mesh::authorize::Authorization;
use mesh::inventory::MtlsMode;
use mesh::name::{Hostname, Protocol, TrustDomain};
use mesh::program::{
    ClusterName, GatewayListener, InboundListener, InboundPort, Listener, OutboundListener,
    OutboundTarget,
};
use mesh::sni::Sni;
use mesh::world::Dialect;
use prost::Name;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

mod envoy;
mod rbac;

pub(crate) use envoy::PASSTHROUGH_CLUSTER;
pub use envoy::capture;

pub(super) const HTTP: &str = "envoy.filters.network.http_connection_manager";
pub(super) const TCP: &str = "envoy.filters.network.tcp_proxy";

#[derive(Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "camelCase", rename_all_fields = "camelCase")]
#[serde(deny_unknown_fields)]
enum Own {
    Outbound {
        host: Hostname,
    },
    Inbound {
        mtls: MtlsMode,
        #[serde(default)]
        ports: Vec<OwnPort>,
        trust_domains: BTreeSet<TrustDomain>,
        #[serde(default, skip_serializing_if = "Authorization::is_open")]
        authorization: Authorization,
    },
    Gateway {
        probe: Hostname,
        #[serde(default)]
        routes: Vec<OwnRoute>,
    },
}

/// A list, since a Struct's keys are text.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct OwnPort {
    port: u16,
    mtls: MtlsMode,
    protocol: Protocol,
    service: String,
}

/// A server name; with its cluster only where that is not named after it.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum OwnRoute {
    Same(Sni),
    Other(OtherRoute),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct OtherRoute {
    sni: Sni,
    cluster: ClusterName,
}

pub(super) fn encode(name: &str, listener: &Listener, dialect: Dialect) -> wire::Listener {
    match dialect {
        Dialect::Isthmus => encode_own(name, listener),
        Dialect::Envoy => envoy::encode(name, listener),
        Dialect::Grpc => grpc::listener(name, listener),
    }
}

fn encode_own(name: &str, listener: &Listener) -> wire::Listener {
    let (own, direction) = match listener {
        Listener::Outbound(OutboundListener { address, host, target }) => {
            return wire::Listener {
                name: name.to_owned(),
                address: wire::address(*address),
                filter_chains: chains(target, http_by_route, tcp_to),
                traffic_direction: TrafficDirection::Outbound as i32,
                metadata: own::write(&Own::Outbound { host: host.clone() }),
                ..Default::default()
            };
        }
        Listener::Inbound(InboundListener {
            mtls,
            ports,
            trust_domains,
            authorization,
            ipv6: _,
        }) => {
            let ports = ports.iter().map(|(&port, InboundPort { mtls, protocol, service })| {
                OwnPort { port, mtls: *mtls, protocol: *protocol, service: service.clone() }
            });
            let own = Own::Inbound {
                mtls: *mtls,
                ports: ports.collect(),
                trust_domains: trust_domains.clone(),
                authorization: authorization.clone(),
            };
            (own, TrafficDirection::Inbound)
        }
        Listener::Gateway(GatewayListener { routes, probe }) => {
            let routes = routes.iter().map(|(sni, cluster)| {
                if *cluster == ClusterName::sni(sni) {
                    OwnRoute::Same(sni.clone())
                } else {
                    let (sni, cluster) = (sni.clone(), cluster.clone());
                    OwnRoute::Other(OtherRoute { sni, cluster })
                }
            });
            let own = Own::Gateway { probe: probe.clone(), routes: routes.collect() };
            (own, TrafficDirection::Unspecified)
        }
    };
    wire::Listener {
        name: name.to_owned(),
        traffic_direction: direction as i32,
        metadata: own::write(&own),
        ..Default::default()
    }
}

/// What Envoy's `http_inspector` finds in a connection's first bytes.
const SNIFFED_HTTP: [&str; 3] = ["http/1.0", "http/1.1", "h2c"];

/// One chain for what a target says, or one for requests and one for all else.
fn chains(
    target: &OutboundTarget,
    http: impl Fn(&str) -> Filter,
    tcp: impl Fn(&ClusterName) -> Filter,
) -> Vec<FilterChain> {
    let chain = |filter| FilterChain { filters: vec![filter], ..Default::default() };
    match target {
        OutboundTarget::Http { route } => vec![chain(http(route))],
        OutboundTarget::Tcp { cluster } => vec![chain(tcp(cluster))],
        OutboundTarget::Auto { route, cluster } => {
            let sniffed = FilterChainMatch {
                application_protocols: SNIFFED_HTTP.map(str::to_owned).to_vec(),
                ..Default::default()
            };
            let named = |name: &str, chain| FilterChain { name: name.to_owned(), ..chain };
            let requests = named("http", chain(http(route)));
            vec![
                FilterChain { filter_chain_match: Some(sniffed), ..requests },
                named("tcp", chain(tcp(cluster))),
            ]
        }
    }
}

fn http_by_route(route: &str) -> Filter {
    filter(
        HTTP,
        &HttpConnectionManager {
            stat_prefix: route.to_owned(),
            route_specifier: Some(RouteSpecifier::Rds(Rds {
                config_source: ads(),
                route_config_name: route.to_owned(),
            })),
            ..Default::default()
        },
    )
}

fn tcp_to(cluster: &ClusterName) -> Filter {
    filter(
        TCP,
        &TcpProxy {
            stat_prefix: cluster.to_string(),
            cluster_specifier: Some(ClusterSpecifier::Cluster(cluster.to_string())),
            ..Default::default()
        },
    )
}

pub(super) fn filter<M: prost::Message + Name>(name: &str, config: &M) -> Filter {
    let config = ConfigType::TypedConfig(wire::pack(config));
    Filter { name: name.to_owned(), config_type: Some(config) }
}

pub(super) fn decode(listener: &wire::Listener) -> Result<Listener, Wrong> {
    match own::read(listener.metadata.as_ref())? {
        Own::Outbound { host } => Ok(Listener::Outbound(OutboundListener {
            address: read_address("address", listener.address.as_ref())?,
            host,
            target: decode_target(listener)?,
        })),
        Own::Inbound { mtls, ports, trust_domains, authorization } => {
            let mut by_port = BTreeMap::new();
            for OwnPort { port, mtls, protocol, service } in ports {
                if by_port.insert(port, InboundPort { mtls, protocol, service }).is_some() {
                    let problem = format!("has port {port} twice");
                    return Err(wrong("metadata.filter_metadata.isthmus.ports", problem));
                }
            }
            let ports = by_port;
            let ipv6 = false;
            let inbound = InboundListener { mtls, ports, trust_domains, authorization, ipv6 };
            Ok(Listener::Inbound(inbound))
        }
        Own::Gateway { probe, routes } => {
            let routes = routes.into_iter().map(|route| match route {
                OwnRoute::Same(sni) => {
                    let cluster = ClusterName::sni(&sni);
                    (sni, cluster)
                }
                OwnRoute::Other(OtherRoute { sni, cluster }) => (sni, cluster),
            });
            Ok(Listener::Gateway(GatewayListener { routes: routes.collect(), probe }))
        }
    }
}

fn decode_target(listener: &wire::Listener) -> Result<OutboundTarget, Wrong> {
    match &listener.filter_chains[..] {
        [chain] => decode_chain(chain, 0),
        [requests, others] => match (decode_chain(requests, 0)?, decode_chain(others, 1)?) {
            (OutboundTarget::Http { route }, OutboundTarget::Tcp { cluster }) => {
                Ok(OutboundTarget::Auto { route, cluster })
            }
            _ => Err(wrong("filter_chains", "must be one for requests and one for bytes")),
        },
        _ => Err(wrong("filter_chains", "must be one, or one for requests and one for bytes")),
    }
}

fn decode_chain(chain: &FilterChain, index: usize) -> Result<OutboundTarget, Wrong> {
    let at = &format!("filter_chains[{index}].filters[0].typed_config");
    let [filter] = &chain.filters[..] else {
        let chain = &format!("filter_chains[{index}].filters");
        return Err(wrong(chain, "must be exactly one"));
    };
    let config: &Any = match &filter.config_type {
        Some(ConfigType::TypedConfig(config)) => config,
        Some(ConfigType::ConfigDiscovery(_)) | None => return Err(wrong(at, "is missing")),
    };
    if config.type_url == TcpProxy::type_url() {
        let tcp: TcpProxy = wire::unpack(config).map_err(|wrong| wrong.within(at))?;
        let Some(ClusterSpecifier::Cluster(cluster)) = tcp.cluster_specifier else {
            return Err(wrong("cluster", "is missing").within(at));
        };
        let cluster = read_cluster_name("cluster", &cluster).map_err(|wrong| wrong.within(at))?;
        return Ok(OutboundTarget::Tcp { cluster });
    }
    if config.type_url == HttpConnectionManager::type_url() {
        let http: HttpConnectionManager = wire::unpack(config).map_err(|w| w.within(at))?;
        let rds = match &http.route_specifier {
            Some(RouteSpecifier::Rds(rds)) => Some(rds),
            Some(RouteSpecifier::RouteConfig(_) | RouteSpecifier::ScopedRoutes(_)) | None => None,
        };
        let route = &required("rds", rds).map_err(|w| w.within(at))?.route_config_name;
        return Ok(OutboundTarget::Http { route: route.clone() });
    }
    Err(wrong(at, "is neither an HttpConnectionManager nor a TcpProxy"))
}
