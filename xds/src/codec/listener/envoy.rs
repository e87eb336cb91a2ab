//! Listeners as a real Envoy runs them.

use super::{HTTP, TCP, chains, filter, rbac};
use crate::codec::{tls, wire};
use envoy_types::pb::envoy::config::core::v3::{
    CidrRange, DataSource, Http1ProtocolOptions, TrafficDirection, TransportSocket,
    data_source::Specifier,
};
use envoy_types::pb::envoy::config::listener::v3::{
    AdditionalAddress, Filter, FilterChain, FilterChainMatch, ListenerFilter,
    listener_filter::ConfigType,
};
use envoy_types::pb::envoy::config::route::v3::{
    Route, RouteAction, RouteConfiguration, RouteMatch, VirtualHost, route::Action,
    route_action::ClusterSpecifier as RouteCluster, route_match::PathSpecifier,
};
use envoy_types::pb::envoy::extensions::filters::http::router::v3::Router;
use envoy_types::pb::envoy::extensions::filters::listener::http_inspector::v3::HttpInspector;
use envoy_types::pb::envoy::extensions::filters::listener::original_dst::v3::OriginalDst;
use envoy_types::pb::envoy::extensions::filters::listener::tls_inspector::v3::TlsInspector;
use envoy_types::pb::envoy::extensions::filters::network::direct_response::v3::Config as Direct;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, HttpFilter, Rds,
    http_connection_manager::{
        ForwardClientCertDetails, RouteSpecifier, SetCurrentClientCertDetails, UpgradeConfig,
    },
    http_filter::ConfigType as HttpConfigType,
};
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::{
    TcpProxy, tcp_proxy::ClusterSpecifier,
};
use envoy_types::pb::google::protobuf::{BoolValue, Duration};
use mesh::authorize::Authorization;
use mesh::inventory::MtlsMode;
use mesh::name::Protocol;
use mesh::program::{
    ClusterName, GatewayListener, InboundListener, InboundPort, Listener, OutboundListener,
    OutboundTarget,
};
use prost::Name;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

/// Where an Envoy sidecar takes redirected connections (Istio's ports).
const OUTBOUND_PORT: u16 = 15001;
const INBOUND_PORT: u16 = 15006;
/// Where an Envoy gateway listens.
const GATEWAY_PORT: u16 = 15443;

/// What an east-west gateway lets in: the mesh's own ALPN names only (Istio
/// `core/listener.go:97`, all that its clients say).
const MESH_ALPN: [&str; 5] =
    ["istio-peer-exchange", "istio", "istio-http/1.0", "istio-http/1.1", "istio-h2"];
/// What an inbound listener selects from; never `istio-peer-exchange` (decision 5), and not
/// `istio-h2`: Envoy speaks HTTP/2 where `h2` was selected, or where nothing was and its client begins
/// so (`HttpConnectionManagerConfig::createCodec`, `ConnectionManagerUtility::determineNextProtocol`).
const INBOUND_HTTP_ALPN: [&str; 3] = ["istio-http/1.1", "h2", "http/1.1"];
const INBOUND_TCP_ALPN: [&str; 1] = ["istio"];

/// Where what is not the mesh's is reached, by its original destination (Istio's name).
pub(crate) const PASSTHROUGH_CLUSTER: &str = "PassthroughCluster";

/// The listener that owns port 15001 and hands each redirected connection to the virtual
/// listener of its original destination. What has none and lies in `closed` (first address,
/// prefix length: the mesh's virtual addresses), or came to this port itself, is closed; the rest
/// goes where it wanted to, by the cluster `PassthroughCluster`. With `ipv6` it takes that too.
pub fn capture(closed: &[(IpAddr, u8)], ipv6: bool) -> wire::Listener {
    let chain = |name: &str, filter, rule| FilterChain {
        name: name.to_owned(),
        filters: vec![filter],
        filter_chain_match: Some(rule),
        ..Default::default()
    };
    let ranges = closed.iter().map(|(address, length)| CidrRange {
        address_prefix: address.to_string(),
        prefix_len: wire::uint(u32::from(*length)),
    });
    let unknown = FilterChainMatch { prefix_ranges: ranges.collect(), ..Default::default() };
    let mut filter_chains = vec![itself(OUTBOUND_PORT)];
    // Without ranges it would match everything.
    if !closed.is_empty() {
        filter_chains.push(chain("unknown", close(), unknown));
    }
    wire::Listener {
        name: "virtualOutbound".to_owned(),
        address: wire::address(SocketAddr::new(any_v4(), OUTBOUND_PORT)),
        additional_addresses: also_v6(ipv6, OUTBOUND_PORT),
        use_original_dst: yes(),
        traffic_direction: TrafficDirection::Outbound as i32,
        filter_chains,
        default_filter_chain: Some(FilterChain {
            name: "passthrough".to_owned(),
            filters: vec![tcp_by_name(PASSTHROUGH_CLUSTER)],
            ..Default::default()
        }),
        ..Default::default()
    }
}

pub(super) fn encode(name: &str, listener: &Listener) -> wire::Listener {
    let listener = match listener {
        Listener::Outbound(outbound) => encode_outbound(outbound),
        Listener::Inbound(inbound) => encode_inbound(inbound),
        Listener::Gateway(gateway) => encode_gateway(gateway),
    };
    wire::Listener { name: name.to_owned(), ..listener }
}

fn encode_outbound(outbound: &OutboundListener) -> wire::Listener {
    let by_route = |route: &str| {
        let rds = Rds { config_source: wire::ads(), route_config_name: route.to_owned() };
        http(route, RouteSpecifier::Rds(rds), [], HttpConnectionManager::default())
    };
    let inspect = matches!(outbound.target, OutboundTarget::Auto { .. });
    wire::Listener {
        address: wire::address(outbound.address),
        bind_to_port: Some(BoolValue { value: false }),
        traffic_direction: TrafficDirection::Outbound as i32,
        listener_filters: inspect.then(inspector).into_iter().collect(),
        // Where the server speaks first, the client waits for it: go on as bytes.
        listener_filters_timeout: inspect.then_some(Duration { seconds: 0, nanos: SILENCE_NANOS }),
        continue_on_listener_filters_timeout: inspect,
        filter_chains: chains(&outbound.target, by_route, tcp),
        ..Default::default()
    }
}

/// How long an outbound connection may say nothing before it is carried as bytes (Istio's
/// `protocolDetectionTimeout` of old, 100 ms), in nanoseconds.
const SILENCE_NANOS: i32 = 100_000_000;

fn inspector() -> ListenerFilter {
    listener_filter("envoy.filters.listener.http_inspector", &HttpInspector::default())
}

fn encode_inbound(inbound: &InboundListener) -> wire::Listener {
    let InboundListener { mtls, ports, trust_domains, authorization, ipv6 } = inbound;
    let mut filter_chains = Vec::new();
    let others = InboundPort { mtls: *mtls, protocol: Protocol::Tcp, service: String::new() };
    let all = ports.iter().map(|(&port, settings)| (port, settings)).chain([(0, &others)]);
    for (port, InboundPort { mtls, protocol: speaks, .. }) in all {
        // A port that says nothing is carried as bytes: Envoy's inspector reads no TLS.
        let alpn: &[&str] = if speaks.is_http() { &INBOUND_HTTP_ALPN } else { &INBOUND_TCP_ALPN };
        let mut chain = |name: &str, heard: Heard, transport_socket: Option<TransportSocket>| {
            let (protocol, names): (&str, &[&str]) = match heard {
                Heard::Plain => ("raw_buffer", &[]),
                Heard::Tls => ("tls", &[]),
                Heard::Mesh => ("tls", &MESH_ALPN),
            };
            filter_chains.push(FilterChain {
                name: format!("{port}-{name}"),
                filter_chain_match: Some(FilterChainMatch {
                    destination_port: if port == 0 { None } else { wire::uint(port.into()) },
                    transport_protocol: protocol.to_owned(),
                    application_protocols: names.iter().map(|&name| name.to_owned()).collect(),
                    ..Default::default()
                }),
                filters: inbound_filters(speaks.is_http(), authorization),
                transport_socket,
                ..Default::default()
            });
        };
        let mutual = || Some(tls::downstream(alpn, trust_domains.iter()));
        match mtls {
            MtlsMode::Strict => chain("tls", Heard::Tls, mutual()),
            // An application of HTTP speaks no TLS of its own there: it can only be meant for us.
            MtlsMode::Permissive if speaks.is_http() => {
                chain("tls", Heard::Tls, mutual());
                chain("raw_buffer", Heard::Plain, None);
            }
            // Else it may: what does not offer the mesh's names is for the application.
            MtlsMode::Permissive => {
                chain("tls", Heard::Mesh, mutual());
                chain("own-tls", Heard::Tls, None);
                chain("raw_buffer", Heard::Plain, None);
            }
            // Whatever the workload speaks, TLS of its own included, is passed on.
            MtlsMode::Disable => {
                chain("tls", Heard::Tls, None);
                chain("raw_buffer", Heard::Plain, None);
            }
        }
    }
    filter_chains.push(itself(INBOUND_PORT));
    wire::Listener {
        address: wire::address(SocketAddr::new(any_v4(), INBOUND_PORT)),
        additional_addresses: also_v6(*ipv6, INBOUND_PORT),
        traffic_direction: TrafficDirection::Inbound as i32,
        listener_filters: vec![
            listener_filter("envoy.filters.listener.original_dst", &OriginalDst {}),
            listener_filter("envoy.filters.listener.tls_inspector", &TlsInspector::default()),
        ],
        // A server-first protocol sends nothing to inspect: go on without.
        listener_filters_timeout: Some(Duration { seconds: 1, nanos: 0 }),
        continue_on_listener_filters_timeout: true,
        filter_chains,
        ..Default::default()
    }
}

/// What a connection's first bytes are.
#[derive(Clone, Copy)]
enum Heard {
    Plain,
    Tls,
    /// TLS that offers one of the mesh's ALPN names.
    Mesh,
}

/// Closes what is meant for the listener itself: passed on, it would come back without end.
fn itself(port: u16) -> FilterChain {
    let rule = FilterChainMatch { destination_port: wire::uint(port.into()), ..Default::default() };
    FilterChain {
        name: "itself".to_owned(),
        filters: vec![close()],
        filter_chain_match: Some(rule),
        ..Default::default()
    }
}

fn inbound_filters(speaks_http: bool, authorization: &Authorization) -> Vec<Filter> {
    // The one for all ports: it forwards to where the client wanted to go.
    let cluster = ClusterName::inbound(0);
    if !speaks_http {
        return rbac::network(authorization).chain([tcp(&cluster)]).collect();
    }
    let rule = Route {
        r#match: Some(RouteMatch {
            path_specifier: Some(PathSpecifier::Prefix("/".to_owned())),
            ..Default::default()
        }),
        action: Some(Action::Route(RouteAction {
            cluster_specifier: Some(RouteCluster::Cluster(cluster.to_string())),
            // The client's side decides how long a request may take.
            timeout: wire::duration(0),
            ..Default::default()
        })),
        ..Default::default()
    };
    let routes = RouteConfiguration {
        name: cluster.to_string(),
        virtual_hosts: vec![VirtualHost {
            name: cluster.to_string(),
            domains: vec!["*".to_owned()],
            routes: vec![rule],
            ..Default::default()
        }],
        ..Default::default()
    };
    let route = RouteSpecifier::RouteConfig(routes);
    // The application is told who calls, and what a caller says of that itself is dropped.
    let told = HttpConnectionManager {
        forward_client_cert_details: ForwardClientCertDetails::SanitizeSet as i32,
        set_current_client_cert_details: Some(SetCurrentClientCertDetails {
            uri: true,
            ..Default::default()
        }),
        ..Default::default()
    };
    vec![http(&cluster.to_string(), route, rbac::http(authorization), told)]
}

fn encode_gateway(gateway: &GatewayListener) -> wire::Listener {
    let probe = FilterChain {
        name: "probe".to_owned(),
        filter_chain_match: Some(FilterChainMatch {
            server_names: vec![gateway.probe.to_string()],
            transport_protocol: "tls".to_owned(),
            ..Default::default()
        }),
        filters: vec![close()],
        transport_socket: Some(tls::server_only(&INBOUND_TCP_ALPN)),
        ..Default::default()
    };
    let routes = gateway.routes.iter().map(|(sni, cluster)| FilterChain {
        name: sni.to_string(),
        filter_chain_match: Some(FilterChainMatch {
            server_names: vec![sni.to_string()],
            application_protocols: MESH_ALPN.map(str::to_owned).to_vec(),
            transport_protocol: "tls".to_owned(),
            ..Default::default()
        }),
        filters: vec![tcp(cluster)],
        ..Default::default()
    });
    wire::Listener {
        address: wire::address(SocketAddr::new(any_v4(), GATEWAY_PORT)),
        listener_filters: vec![listener_filter(
            "envoy.filters.listener.tls_inspector",
            &TlsInspector::default(),
        )],
        listener_filters_timeout: Some(Duration { seconds: 5, nanos: 0 }),
        filter_chains: routes.chain([probe]).collect(),
        ..Default::default()
    }
}

fn http(
    stat_prefix: &str,
    route: RouteSpecifier,
    before: impl IntoIterator<Item = HttpFilter>,
    side: HttpConnectionManager,
) -> Filter {
    let router = HttpFilter {
        name: "envoy.filters.http.router".to_owned(),
        config_type: Some(HttpConfigType::TypedConfig(wire::pack(&Router::default()))),
        ..Default::default()
    };
    filter(
        HTTP,
        &HttpConnectionManager {
            stat_prefix: stat_prefix.to_owned(),
            route_specifier: Some(route),
            http_filters: before.into_iter().chain([router]).collect(),
            // Peers are told apart by certificate, not by what they say.
            use_remote_address: Some(BoolValue { value: false }),
            // As our own proxies: WebSocket and HTTP/1.0 are carried, and a stream may be silent.
            upgrade_configs: vec![UpgradeConfig {
                upgrade_type: "websocket".to_owned(),
                ..Default::default()
            }],
            http_protocol_options: Some(Http1ProtocolOptions {
                accept_http_10: true,
                ..Default::default()
            }),
            stream_idle_timeout: wire::duration(0),
            ..side
        },
    )
}

fn tcp(cluster: &ClusterName) -> Filter {
    tcp_by_name(&cluster.to_string())
}

fn tcp_by_name(cluster: &str) -> Filter {
    filter(
        TCP,
        &TcpProxy {
            stat_prefix: cluster.to_owned(),
            cluster_specifier: Some(ClusterSpecifier::Cluster(cluster.to_owned())),
            ..Default::default()
        },
    )
}

/// Says nothing and closes.
fn close() -> Filter {
    let nothing = DataSource {
        specifier: Some(Specifier::InlineString(String::new())),
        ..Default::default()
    };
    filter("envoy.filters.network.direct_response", &Direct { response: Some(nothing) })
}

fn listener_filter<M: prost::Message + Name>(name: &str, config: &M) -> ListenerFilter {
    ListenerFilter {
        name: name.to_owned(),
        config_type: Some(ConfigType::TypedConfig(wire::pack(config))),
        ..Default::default()
    }
}

/// Where the pod has IPv6: a kernel without it refuses such a listener whole.
fn also_v6(ipv6: bool, port: u16) -> Vec<AdditionalAddress> {
    let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    let one = AdditionalAddress { address: wire::address(any), ..Default::default() };
    ipv6.then_some(one).into_iter().collect()
}

fn any_v4() -> IpAddr {
    IpAddr::from([0, 0, 0, 0])
}

fn yes() -> Option<BoolValue> {
    Some(BoolValue { value: true })
}
