//! A real Envoy as the judge of a Program in its dialect: all resources in one static bootstrap.

use envoy_types::pb::envoy::config::bootstrap::v3::{Bootstrap, bootstrap};
use envoy_types::pb::envoy::config::cluster::v3::{Cluster, cluster};
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use envoy_types::pb::envoy::config::listener::v3::Listener;
use envoy_types::pb::envoy::config::route::v3::RouteConfiguration;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::Secret;
use mesh::program::{Program, ResourceKind};
use mesh::world::Dialect;
use prost::Message;
use std::path::{Path, PathBuf};
use std::process::Command;
use xds::codec;

#[path = "found.rs"]
mod found;

pub(crate) use found::envoy;

/// One test's directory, gone with it.
struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("isthmus-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub(crate) fn validate(envoy: &Path, name: &str, bootstrap: &Bootstrap) -> Result<(), String> {
    let dir = Dir::new(name);
    let file = dir.0.join("bootstrap.pb");
    std::fs::write(&file, bootstrap.encode_to_vec()).unwrap();
    let output = Command::new(envoy)
        .args(["--mode", "validate", "-l", "warning", "-c"])
        .arg(&file)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.success() { Ok(()) } else { Err(said) }
}

fn read<M: Message + Default>(program: &Program, kind: ResourceKind) -> Vec<M> {
    let of_kind = program.iter().filter(|(name, _)| name.kind == kind);
    of_kind
        .map(|(name, resource)| {
            let any = codec::encode(name, resource, Dialect::Envoy);
            M::decode(any.value.as_slice()).unwrap()
        })
        .collect()
}

/// A static cluster for gRPC: the control plane and the agent.
fn grpc(name: &str) -> Cluster {
    static_cluster(name, "127.0.0.1:15012")
}

fn static_cluster(name: &str, address: &str) -> Cluster {
    use envoy_types::pb::envoy::config::endpoint::v3::{
        Endpoint, LbEndpoint, LocalityLbEndpoints, lb_endpoint::HostIdentifier,
    };
    let (ip, port) = address.rsplit_once(':').unwrap();
    let socket = core::SocketAddress {
        address: ip.to_owned(),
        port_specifier: Some(core::socket_address::PortSpecifier::PortValue(port.parse().unwrap())),
        ..Default::default()
    };
    let endpoint = Endpoint {
        address: Some(core::Address {
            address: Some(core::address::Address::SocketAddress(socket)),
        }),
        ..Default::default()
    };
    Cluster {
        name: name.to_owned(),
        cluster_discovery_type: Some(cluster::ClusterDiscoveryType::Type(
            cluster::DiscoveryType::Static as i32,
        )),
        load_assignment: Some(ClusterLoadAssignment {
            cluster_name: name.to_owned(),
            endpoints: vec![LocalityLbEndpoints {
                lb_endpoints: vec![LbEndpoint {
                    host_identifier: Some(HostIdentifier::Endpoint(endpoint)),
                    ..Default::default()
                }],
                ..Default::default()
            }],
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// All resources as static ones; routes and endpoints, which cannot be, are put where they are
/// asked for: endpoints into static clusters, routes into the connection managers.
pub(crate) fn bootstrap(program: &Program) -> Bootstrap {
    let mut clusters: Vec<Cluster> = read(program, ResourceKind::Cluster);
    let endpoints: Vec<ClusterLoadAssignment> = read(program, ResourceKind::Endpoints);
    assert!(!endpoints.is_empty(), "no endpoints are judged");
    clusters.extend(endpoints.into_iter().map(|assignment| Cluster {
        name: format!("static|{}", assignment.cluster_name),
        load_assignment: Some(assignment),
        ..static_cluster("", "127.0.0.1:1")
    }));
    clusters.extend([grpc("ads"), grpc("sds-grpc")]);
    let mut listeners: Vec<Listener> = read(program, ResourceKind::Listener);
    listeners.push(codec::listener::capture(&[([240, 240, 0, 0].into(), 16)], true));
    listeners.extend(inline_routes(program, &listeners));
    let service = core::GrpcService {
        target_specifier: Some(core::grpc_service::TargetSpecifier::EnvoyGrpc(
            core::grpc_service::EnvoyGrpc { cluster_name: "ads".into(), ..Default::default() },
        )),
        ..Default::default()
    };
    Bootstrap {
        node: Some(core::Node { id: "test".into(), cluster: "test".into(), ..Default::default() }),
        static_resources: Some(bootstrap::StaticResources {
            listeners,
            clusters,
            secrets: read::<Secret>(program, ResourceKind::Secret),
        }),
        dynamic_resources: Some(bootstrap::DynamicResources {
            ads_config: Some(core::ApiConfigSource {
                api_type: core::api_config_source::ApiType::DeltaGrpc as i32,
                transport_api_version: core::ApiVersion::V3 as i32,
                grpc_services: vec![service],
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// A copy of each HTTP listener with its route inside, so that Envoy judges routes too.
fn inline_routes(program: &Program, listeners: &[Listener]) -> Vec<Listener> {
    use envoy_types::pb::envoy::config::listener::v3::filter::ConfigType;
    use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
        HttpConnectionManager, http_connection_manager::RouteSpecifier,
    };
    let routes: Vec<RouteConfiguration> = read(program, ResourceKind::Route);
    let mut copies = Vec::new();
    for listener in listeners {
        let mut copy = listener.clone();
        let mut inlined = false;
        for filter in copy.filter_chains.iter_mut().flat_map(|chain| &mut chain.filters) {
            let Some(ConfigType::TypedConfig(any)) = &mut filter.config_type else { continue };
            if !any.type_url.ends_with("HttpConnectionManager") {
                continue;
            }
            let mut http = HttpConnectionManager::decode(any.value.as_slice()).unwrap();
            let Some(RouteSpecifier::Rds(rds)) = &http.route_specifier else { continue };
            let route = routes.iter().find(|route| route.name == rds.route_config_name);
            http.route_specifier = Some(RouteSpecifier::RouteConfig(route.unwrap().clone()));
            any.value = http.encode_to_vec();
            inlined = true;
        }
        if inlined {
            copy.name = format!("inline {}", copy.name);
            let Some(core::address::Address::SocketAddress(socket)) =
                copy.address.as_mut().and_then(|address| address.address.as_mut())
            else {
                unreachable!("listeners have addresses");
            };
            // A port of its own, beside the listener it copies.
            let port = 20_000 + u32::try_from(copies.len()).unwrap();
            let port = core::socket_address::PortSpecifier::PortValue(port);
            socket.port_specifier = Some(port);
            copies.push(copy);
        }
    }
    assert_eq!(copies.is_empty(), routes.is_empty(), "no route was judged");
    copies
}
