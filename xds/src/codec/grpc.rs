//! What a gRPC client that is its own proxy reads (gRFC A27, A28, A29): written only; a real grpc-go
//! judges it (`cargo xtask e2e grpc-xds`).
//!
//! | resource | what is written | what is left out, and why |
//! |---|---|---|
//! | listener `HOST:PORT` | `api_listener`: a connection manager that names the route, router filter | addresses and filter chains: nothing is captured |
//! | route | one rule to the cluster, `max_stream_duration` where a timeout is set | retries: gRPC repeats by itself what no server has seen; more would not be safe for every method |
//! | cluster | EDS, LEAST_REQUEST or ROUND_ROBIN (also for random), one `UpstreamTlsContext` by certificate providers named `default` with the SANs of all announcing clusters | ejection: gRPC knows rates, not consecutive failures; connection limits: gRPC has one connection per endpoint; ALPN and TLS versions: refused |
//! | endpoints | localities, weights of at least 1 | gateways and what the one transport does not reach, left out by `mesh` (`compile/proxyless.rs`) |
//! | secret, zone | never asked for | the agent writes files, the cluster's DNS has names |

use super::wire::{self, ads, uint};
use envoy_types::pb::envoy::config::cluster::v3::{
    CircuitBreakers,
    circuit_breakers::Thresholds,
    cluster::{ClusterDiscoveryType, DiscoveryType, EdsClusterConfig, LbPolicy},
};
use envoy_types::pb::envoy::config::core::v3::{TransportSocket, transport_socket::ConfigType};
use envoy_types::pb::envoy::config::listener::v3::ApiListener;
use envoy_types::pb::envoy::config::route::v3::{
    Route as Rule, RouteAction, RouteMatch, VirtualHost,
    route::Action,
    route_action::{ClusterSpecifier, MaxStreamDuration},
    route_match::PathSpecifier,
};
use envoy_types::pb::envoy::extensions::filters::http::router::v3::Router;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, HttpFilter, Rds, http_connection_manager::RouteSpecifier,
    http_filter::ConfigType as HttpConfigType,
};
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{
    CertificateProviderPluginInstance, CertificateValidationContext, CommonTlsContext,
    UpstreamTlsContext,
    common_tls_context::{CombinedCertificateValidationContext, ValidationContextType},
};
use envoy_types::pb::envoy::r#type::matcher::v3::{StringMatcher, string_matcher::MatchPattern};
use mesh::name::Identity;
use mesh::program::{
    Cluster, Listener, LoadBalancing, OutboundListener, OutboundTarget, ResourceName, Route,
};
use std::collections::BTreeSet;

/// The certificate provider in a client's bootstrap that reads the agent's files; Istio's name.
pub(crate) const PROVIDER: &str = "default";

pub(super) fn listener(name: &str, listener: &Listener) -> wire::Listener {
    let route = match listener {
        Listener::Outbound(OutboundListener { target: OutboundTarget::Http { route }, .. }) => {
            route
        }
        // `mesh` has none of these for a gRPC client; one without a route is refused by it.
        Listener::Outbound(_) | Listener::Inbound(_) | Listener::Gateway(_) => {
            return wire::Listener { name: name.to_owned(), ..Default::default() };
        }
    };
    let router = HttpFilter {
        name: "envoy.filters.http.router".to_owned(),
        config_type: Some(HttpConfigType::TypedConfig(wire::pack(&Router::default()))),
        ..Default::default()
    };
    let manager = HttpConnectionManager {
        stat_prefix: route.clone(),
        route_specifier: Some(RouteSpecifier::Rds(Rds {
            config_source: ads(),
            route_config_name: route.clone(),
        })),
        http_filters: vec![router],
        ..Default::default()
    };
    wire::Listener {
        name: name.to_owned(),
        api_listener: Some(ApiListener { api_listener: Some(wire::pack(&manager)) }),
        ..Default::default()
    }
}

pub(super) fn route(route: &Route) -> wire::RouteConfiguration {
    let Route { name, cluster, timeout_ms, retry: _ } = route;
    let limit = (*timeout_ms != 0).then(|| MaxStreamDuration {
        max_stream_duration: wire::duration(*timeout_ms),
        ..Default::default()
    });
    let action = RouteAction {
        cluster_specifier: Some(ClusterSpecifier::Cluster(cluster.to_string())),
        max_stream_duration: limit,
        ..Default::default()
    };
    let rule = Rule {
        r#match: Some(RouteMatch {
            // Istio's "default prefix": every method.
            path_specifier: Some(PathSpecifier::Prefix(String::new())),
            ..Default::default()
        }),
        action: Some(Action::Route(action)),
        ..Default::default()
    };
    wire::RouteConfiguration {
        name: name.clone(),
        virtual_hosts: vec![VirtualHost {
            name: name.clone(),
            domains: vec!["*".to_owned()],
            routes: vec![rule],
            ..Default::default()
        }],
        ..Default::default()
    }
}

pub(super) fn cluster(cluster: &Cluster) -> wire::Cluster {
    let name = cluster.name.to_string();
    let identities: BTreeSet<&Identity> = cluster.server_identities.values().flatten().collect();
    wire::Cluster {
        eds_cluster_config: Some(EdsClusterConfig {
            eds_config: ads(),
            service_name: name.clone(),
        }),
        name,
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Eds as i32)),
        lb_policy: match cluster.load_balancing {
            LoadBalancing::LeastRequest => LbPolicy::LeastRequest,
            // gRPC refuses RANDOM.
            LoadBalancing::RoundRobin | LoadBalancing::Random => LbPolicy::RoundRobin,
        } as i32,
        circuit_breakers: Some(CircuitBreakers {
            // Without a word gRPC takes 1,024 requests at once (gRFC A32).
            thresholds: vec![Thresholds { max_requests: uint(u32::MAX), ..Default::default() }],
            ..Default::default()
        }),
        // Without identities `mesh` names endpoints outside the mesh only.
        transport_socket: (!identities.is_empty()).then(|| mutual(identities)),
        ..Default::default()
    }
}

/// Mutual TLS by the agent's files: exactly these identities may answer.
fn mutual(identities: BTreeSet<&Identity>) -> TransportSocket {
    let exact = |identity: &Identity| StringMatcher {
        match_pattern: Some(MatchPattern::Exact(identity.to_string())),
        ..Default::default()
    };
    let provider = |certificate: &str| {
        Some(CertificateProviderPluginInstance {
            instance_name: PROVIDER.to_owned(),
            certificate_name: certificate.to_owned(),
        })
    };
    #[expect(deprecated, reason = "the only list of names that gRPC reads (gRFC A29)")]
    let validation = CertificateValidationContext {
        ca_certificate_provider_instance: provider(&ResourceName::root_ca().name),
        match_subject_alt_names: identities.into_iter().map(exact).collect(),
        ..Default::default()
    };
    let context = UpstreamTlsContext {
        common_tls_context: Some(CommonTlsContext {
            tls_certificate_provider_instance: provider(super::OWN_CERTIFICATE),
            validation_context_type: Some(ValidationContextType::CombinedValidationContext(
                CombinedCertificateValidationContext {
                    default_validation_context: Some(validation),
                    ..Default::default()
                },
            )),
            ..Default::default()
        }),
        ..Default::default()
    };
    TransportSocket {
        // The one name gRPC takes.
        name: "envoy.transport_sockets.tls".to_owned(),
        config_type: Some(ConfigType::TypedConfig(wire::pack(&context))),
    }
}
