//! Clusters: endpoints over ADS, balancing, ejection, pool, and who may answer.

use super::endpoint::tls_criteria;
use super::wire::{
    self, Wrong, ads, duration, positive, read_cluster_name, read_duration, read_uint, required,
    uint, wrong,
};
use super::{grpc, own, tls};
use envoy_types::pb::envoy::config::cluster::v3::{
    CircuitBreakers, OutlierDetection as Ejection, UpstreamConnectionOptions,
    circuit_breakers::{Thresholds, thresholds::RetryBudget},
    cluster::{
        ClusterDiscoveryType, CommonLbConfig, DiscoveryType, EdsClusterConfig, LbPolicy,
        TransportSocketMatch,
        common_lb_config::{LocalityConfigSpecifier, LocalityWeightedLbConfig},
    },
};
use envoy_types::pb::envoy::config::core::v3::{
    BindConfig, ExtraSourceAddress, Http1ProtocolOptions, Http2ProtocolOptions,
    HttpProtocolOptions as Connection, KeepaliveSettings, TcpKeepalive,
};
use envoy_types::pb::envoy::extensions::upstreams::http::v3::{
    HttpProtocolOptions,
    http_protocol_options::{
        ExplicitHttpConfig, UpstreamProtocolOptions, UseDownstreamHttpConfig,
        explicit_http_config::ProtocolConfig,
    },
};
use envoy_types::pb::envoy::r#type::v3::Percent;
use envoy_types::pb::google::protobuf::Struct;
use mesh::name::{ClusterId, Identity, Protocol};
use mesh::program::{Cluster, ConnectionPool, Direction, LoadBalancing, OutlierDetection, Retry};
use mesh::world::Dialect;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
/// From where a sidecar dials its own workload, so that capture lets it pass (Istio's
/// `InboundPassthroughBindIpv4`).
const INBOUND_SOURCE: &str = "127.0.0.6:0";
/// The same on IPv6 (`sidecar::redirect::INBOUND_SOURCE_V6`).
const INBOUND_SOURCE_V6: &str = "[::1]:0";

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Own {
    sni: String,
    protocol: Protocol,
    server_identities: BTreeMap<ClusterId, BTreeSet<Identity>>,
}

pub(super) fn encode(cluster: &Cluster, dialect: Dialect) -> wire::Cluster {
    match dialect {
        Dialect::Isthmus => {
            let metadata = own::write(&Own {
                sni: cluster.sni.clone(),
                protocol: cluster.protocol,
                server_identities: cluster.server_identities.clone(),
            });
            let timeout = duration(cluster.connect_timeout_ms);
            wire::Cluster { metadata, connect_timeout: timeout, ..common(cluster, dialect) }
        }
        Dialect::Envoy => encode_envoy(cluster),
        Dialect::Grpc => grpc::cluster(cluster),
    }
}

fn common(cluster: &Cluster, dialect: Dialect) -> wire::Cluster {
    let name = cluster.name.to_string();
    let ConnectionPool { max_connections, max_pending_requests, .. } = cluster.pool;
    // A second limit beside the connections' would only confuse; Istio lifts them too.
    let unlimited = match dialect {
        Dialect::Isthmus => None,
        Dialect::Envoy | Dialect::Grpc => uint(u32::MAX),
    };
    wire::Cluster {
        eds_cluster_config: Some(EdsClusterConfig {
            eds_config: ads(),
            service_name: name.clone(),
        }),
        name,
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Eds as i32)),
        lb_policy: match cluster.load_balancing {
            LoadBalancing::LeastRequest => LbPolicy::LeastRequest,
            LoadBalancing::RoundRobin => LbPolicy::RoundRobin,
            LoadBalancing::Random => LbPolicy::Random,
        } as i32,
        circuit_breakers: Some(CircuitBreakers {
            thresholds: vec![Thresholds {
                max_connections: uint(max_connections),
                max_pending_requests: uint(max_pending_requests),
                max_requests: unlimited,
                retry_budget: match dialect {
                    Dialect::Isthmus | Dialect::Grpc => None,
                    Dialect::Envoy => Some(retry_budget()),
                },
                ..Default::default()
            }],
            ..Default::default()
        }),
        outlier_detection: Some(ejection(&cluster.outlier, dialect)),
        typed_extension_protocol_options: [(
            HTTP_OPTIONS.to_owned(),
            wire::pack(&http_options(cluster, dialect)),
        )]
        .into(),
        ..Default::default()
    }
}

/// Retries that Envoy may have under way at once whatever the load. A gateway that hangs
/// holds hundreds of requests until it is ejected, and each needs one.
const RETRIES_MIN: u32 = 256;

/// Decision 14's budget in Envoy's words: without one, attempts that a slow mesh makes necessary make it
/// slower.
fn retry_budget() -> RetryBudget {
    let Retry { budget_percent, .. } = Retry::default();
    RetryBudget {
        budget_percent: Some(Percent { value: budget_percent.into() }),
        min_retry_concurrency: uint(RETRIES_MIN),
        ..Default::default()
    }
}

fn ejection(outlier: &OutlierDetection, dialect: Dialect) -> Ejection {
    let OutlierDetection {
        consecutive_5xx,
        consecutive_local,
        interval_ms,
        base_ejection_ms,
        max_ejection_percent,
    } = *outlier;
    let ejection = Ejection {
        consecutive_5xx: uint(consecutive_5xx),
        split_external_local_origin_errors: true,
        consecutive_local_origin_failure: uint(consecutive_local),
        interval: duration(interval_ms),
        base_ejection_time: duration(base_ejection_ms),
        max_ejection_percent: uint(max_ejection_percent),
        ..Default::default()
    };
    // 0 turns a rule off; Envoy says that by enforcing it in 0 % of cases.
    let enforced = |threshold: u32| uint(if threshold == 0 { 0 } else { 100 });
    match dialect {
        Dialect::Isthmus | Dialect::Grpc => ejection,
        Dialect::Envoy => Ejection {
            interval: positive(interval_ms),
            base_ejection_time: positive(base_ejection_ms),
            max_ejection_percent: uint(max_ejection_percent.min(100)),
            enforcing_consecutive_5xx: enforced(consecutive_5xx),
            enforcing_consecutive_local_origin_failure: enforced(consecutive_local),
            enforcing_consecutive_gateway_failure: uint(0),
            enforcing_success_rate: uint(0),
            enforcing_local_origin_success_rate: uint(0),
            ..ejection
        },
    }
}

/// How long an Envoy's HTTP/2 connection may be silent before it is asked whether it lives, and how
/// long the answer may take, milliseconds. Through a gateway that hangs none comes, and TCP, which ends
/// there, does not tell.
const PING_MS: u64 = 5_000;

fn http2_options(direction: Direction, dialect: Dialect) -> Http2ProtocolOptions {
    let alive = KeepaliveSettings {
        interval: duration(PING_MS),
        timeout: duration(PING_MS),
        ..Default::default()
    };
    let connection_keepalive = match (dialect, direction) {
        (Dialect::Envoy, Direction::Outbound) => Some(alive),
        // The own application may be slow, and no gateway stands before it.
        (Dialect::Envoy, Direction::Inbound | Direction::SniDnat)
        | (Dialect::Isthmus | Dialect::Grpc, _) => None,
    };
    Http2ProtocolOptions { connection_keepalive, ..Default::default() }
}

fn http_options(cluster: &Cluster, dialect: Dialect) -> HttpProtocolOptions {
    let Cluster { pool, protocol, name, .. } = cluster;
    let http2 = http2_options(name.direction, dialect);
    let requests = pool.max_requests_per_connection;
    let explicit = |config| {
        let protocol_config = Some(config);
        UpstreamProtocolOptions::ExplicitHttpConfig(ExplicitHttpConfig { protocol_config })
    };
    let upstream = match protocol {
        Protocol::Http => {
            explicit(ProtocolConfig::HttpProtocolOptions(Http1ProtocolOptions::default()))
        }
        Protocol::Http2 | Protocol::Grpc => explicit(ProtocolConfig::Http2ProtocolOptions(http2)),
        Protocol::Tcp | Protocol::Udp | Protocol::Auto => {
            UpstreamProtocolOptions::UseDownstreamProtocolConfig(UseDownstreamHttpConfig {
                http_protocol_options: Some(Http1ProtocolOptions::default()),
                http2_protocol_options: Some(http2),
                ..Default::default()
            })
        }
    };
    HttpProtocolOptions {
        common_http_protocol_options: Some(Connection {
            idle_timeout: duration(pool.idle_timeout_ms),
            max_requests_per_connection: if requests == 0 { None } else { uint(requests) },
            ..Default::default()
        }),
        upstream_protocol_options: Some(upstream),
        ..Default::default()
    }
}

fn encode_envoy(cluster: &Cluster) -> wire::Cluster {
    let common = wire::Cluster {
        connect_timeout: positive(cluster.connect_timeout_ms),
        common_lb_config: Some(CommonLbConfig {
            // Localities by weight, and no panic (decision 12) but where every endpoint is ejected:
            // Envoy counts any reset through a gateway against the gateway, and answering 503
            // while some may work helps nobody.
            healthy_panic_threshold: Some(Percent { value: 1.0 }),
            locality_config_specifier: Some(LocalityConfigSpecifier::LocalityWeightedLbConfig(
                LocalityWeightedLbConfig {},
            )),
            ..Default::default()
        }),
        upstream_connection_options: Some(UpstreamConnectionOptions {
            tcp_keepalive: Some(TcpKeepalive {
                keepalive_probes: uint(3),
                keepalive_time: uint(10),
                keepalive_interval: uint(5),
            }),
            ..Default::default()
        }),
        ..common(cluster, Dialect::Envoy)
    };
    match cluster.name.direction {
        Direction::Outbound => {
            wire::Cluster { transport_socket_matches: socket_matches(cluster), ..common }
        }
        // A gateway forwards bytes whose TLS is not its own.
        Direction::SniDnat => common,
        Direction::Inbound => wire::Cluster {
            cluster_discovery_type: Some(ClusterDiscoveryType::Type(
                DiscoveryType::OriginalDst as i32,
            )),
            eds_cluster_config: None,
            lb_policy: LbPolicy::ClusterProvided as i32,
            common_lb_config: None,
            outlier_detection: None,
            // All ports of the workload share it: who calls limits itself (Istio's inbound).
            circuit_breakers: Some(CircuitBreakers {
                thresholds: vec![Thresholds {
                    max_connections: uint(u32::MAX),
                    max_pending_requests: uint(u32::MAX),
                    max_requests: uint(u32::MAX),
                    max_retries: uint(u32::MAX),
                    ..Default::default()
                }],
                ..Default::default()
            }),
            upstream_bind_config: Some(BindConfig {
                source_address: Some(wire::socket_address(
                    INBOUND_SOURCE.parse().expect("a literal address"),
                )),
                extra_source_addresses: vec![ExtraSourceAddress {
                    address: Some(wire::socket_address(
                        INBOUND_SOURCE_V6.parse().expect("a literal address"),
                    )),
                    ..Default::default()
                }],
                ..Default::default()
            }),
            ..common
        },
    }
}

/// Per announcing cluster its SANs; then "meshed, but announced by nobody we know", which trusts
/// nobody; then plaintext for endpoints without TLS (decision 11: only unmeshed local pods).
fn socket_matches(cluster: &Cluster) -> Vec<TransportSocketMatch> {
    // A gateway passes its client's TLS on and speaks none itself.
    if cluster.name.direction == Direction::SniDnat {
        return Vec::new();
    }
    let alpn = match cluster.protocol {
        Protocol::Http => "istio-http/1.1",
        Protocol::Http2 | Protocol::Grpc => "istio-h2",
        // One name for all its connections: bytes, whatever they are.
        Protocol::Tcp | Protocol::Udp | Protocol::Auto => "istio",
    };
    let matching = |name: String, criteria, socket| TransportSocketMatch {
        name,
        r#match: Some(criteria),
        transport_socket: Some(socket),
    };
    let mut matches: Vec<_> = cluster
        .server_identities
        .iter()
        .map(|(announcer, identities)| {
            let socket = tls::upstream(&cluster.sni, alpn, identities.iter());
            matching(format!("tlsMode-istio-{announcer}"), tls_criteria(Some(announcer)), socket)
        })
        .collect();
    let nobody = tls::upstream(&cluster.sni, alpn, std::iter::empty());
    matches.push(matching("tlsMode-istio-nobody".to_owned(), tls_criteria(None), nobody));
    matches.push(matching("tlsMode-disabled".to_owned(), Struct::default(), tls::plaintext()));
    matches
}

pub(super) fn decode(cluster: &wire::Cluster) -> Result<Cluster, Wrong> {
    let own: Own = own::read(cluster.metadata.as_ref())?;
    let options = cluster.typed_extension_protocol_options.get(HTTP_OPTIONS);
    let at = format!("typed_extension_protocol_options[{HTTP_OPTIONS:?}]");
    let options: HttpProtocolOptions =
        wire::unpack(required(&at, options)?).map_err(|wrong| wrong.within(&at))?;
    let breakers = required("circuit_breakers", cluster.circuit_breakers.as_ref())?;
    let [threshold] = &breakers.thresholds[..] else {
        return Err(wrong("circuit_breakers.thresholds", "must be exactly one"));
    };
    let outlier = required("outlier_detection", cluster.outlier_detection.as_ref())?;
    Ok(Cluster {
        name: read_cluster_name("name", &cluster.name)?,
        sni: own.sni,
        protocol: own.protocol,
        load_balancing: decode_policy(cluster.lb_policy)?,
        connect_timeout_ms: read_duration("connect_timeout", cluster.connect_timeout.as_ref())?,
        outlier: decode_ejection(outlier).map_err(|wrong| wrong.within("outlier_detection"))?,
        pool: decode_pool(threshold, &options)?,
        server_identities: own.server_identities,
    })
}

fn decode_policy(policy: i32) -> Result<LoadBalancing, Wrong> {
    let unknown = || wrong("lb_policy", "is none of LEAST_REQUEST, ROUND_ROBIN and RANDOM");
    match LbPolicy::try_from(policy).map_err(|_| unknown())? {
        LbPolicy::LeastRequest => Ok(LoadBalancing::LeastRequest),
        LbPolicy::RoundRobin => Ok(LoadBalancing::RoundRobin),
        LbPolicy::Random => Ok(LoadBalancing::Random),
        LbPolicy::RingHash
        | LbPolicy::Maglev
        | LbPolicy::ClusterProvided
        | LbPolicy::LoadBalancingPolicyConfig => Err(unknown()),
    }
}

fn decode_ejection(outlier: &Ejection) -> Result<OutlierDetection, Wrong> {
    Ok(OutlierDetection {
        consecutive_5xx: read_uint("consecutive_5xx", outlier.consecutive_5xx.as_ref())?,
        consecutive_local: read_uint(
            "consecutive_local_origin_failure",
            outlier.consecutive_local_origin_failure.as_ref(),
        )?,
        interval_ms: read_duration("interval", outlier.interval.as_ref())?,
        base_ejection_ms: read_duration("base_ejection_time", outlier.base_ejection_time.as_ref())?,
        max_ejection_percent: read_uint(
            "max_ejection_percent",
            outlier.max_ejection_percent.as_ref(),
        )?,
    })
}

fn decode_pool(
    threshold: &Thresholds,
    options: &HttpProtocolOptions,
) -> Result<ConnectionPool, Wrong> {
    let within = |wrong: Wrong| wrong.within("circuit_breakers.thresholds[0]");
    let connection = options.common_http_protocol_options.as_ref();
    let connection = required("common_http_protocol_options", connection)?;
    let requests = connection.max_requests_per_connection.as_ref();
    Ok(ConnectionPool {
        max_connections: read_uint("max_connections", threshold.max_connections.as_ref())
            .map_err(within)?,
        max_pending_requests: read_uint(
            "max_pending_requests",
            threshold.max_pending_requests.as_ref(),
        )
        .map_err(within)?,
        max_requests_per_connection: requests.map_or(0, |count| count.value),
        idle_timeout_ms: read_duration(
            "common_http_protocol_options.idle_timeout",
            connection.idle_timeout.as_ref(),
        )?,
    })
}
