//! Endpoints: localities with priorities and weights, and which cluster announced what.

use super::own;
use super::wire::{self, Wrong, read_address, read_cluster_name, read_uint, required, uint, wrong};
use envoy_types::pb::envoy::config::core::v3::{self as core, Metadata};
use envoy_types::pb::envoy::config::endpoint::v3::{
    Endpoint, LbEndpoint as Member, LocalityLbEndpoints, cluster_load_assignment::Policy,
    lb_endpoint::HostIdentifier,
};
use envoy_types::pb::google::protobuf::{Struct, value::Kind};
use mesh::name::{ClusterId, Locality, Network};
use mesh::program::{Endpoints, LbEndpoint, LocalityGroup};
use mesh::world::Dialect;
use serde::{Deserialize, Serialize};

/// Decision 12.
const OVERPROVISIONING: u32 = 140;

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Own {
    cluster: ClusterId,
    network: Network,
    tls: bool,
    gateway: bool,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    workload: String,
}

pub(super) fn encode(endpoints: &Endpoints, dialect: Dialect) -> wire::ClusterLoadAssignment {
    let policy = match dialect {
        Dialect::Isthmus | Dialect::Grpc => None,
        Dialect::Envoy => {
            Some(Policy { overprovisioning_factor: uint(OVERPROVISIONING), ..Default::default() })
        }
    };
    wire::ClusterLoadAssignment {
        cluster_name: endpoints.cluster.to_string(),
        endpoints: endpoints.groups.iter().map(|group| encode_group(group, dialect)).collect(),
        policy,
        ..Default::default()
    }
}

fn encode_group(group: &LocalityGroup, dialect: Dialect) -> LocalityLbEndpoints {
    let LocalityGroup { priority, locality, weight: sum, endpoints } = group;
    let Locality { region, zone, subzone } = locality.clone();
    LocalityLbEndpoints {
        locality: Some(core::Locality { region, zone, sub_zone: subzone }),
        lb_endpoints: endpoints.iter().map(|endpoint| encode_member(endpoint, dialect)).collect(),
        load_balancing_weight: uint(weight(*sum, dialect)),
        priority: *priority,
        ..Default::default()
    }
}

/// Envoy and gRPC refuse a weight of 0.
fn weight(weight: u32, dialect: Dialect) -> u32 {
    match dialect {
        Dialect::Isthmus => weight,
        Dialect::Envoy | Dialect::Grpc => weight.max(1),
    }
}

fn encode_member(endpoint: &LbEndpoint, dialect: Dialect) -> Member {
    let LbEndpoint { address, cluster, network, weight: own_weight, tls, gateway, workload } =
        endpoint;
    Member {
        host_identifier: Some(HostIdentifier::Endpoint(Endpoint {
            address: wire::address(*address),
            ..Default::default()
        })),
        load_balancing_weight: uint(weight(*own_weight, dialect)),
        metadata: match dialect {
            Dialect::Isthmus => own::write(&Own {
                cluster: cluster.clone(),
                network: network.clone(),
                tls: *tls,
                gateway: *gateway,
                workload: workload.clone(),
            }),
            Dialect::Envoy => tls.then(|| transport_socket_match(cluster)),
            // A cluster has one transport there.
            Dialect::Grpc => None,
        },
        ..Default::default()
    }
}

/// Selects the TLS context whose SANs are this cluster's (see `cluster.rs`).
fn transport_socket_match(cluster: &ClusterId) -> Metadata {
    let criteria = tls_criteria(Some(cluster));
    Metadata {
        filter_metadata: [("envoy.transport_socket_match".to_owned(), criteria)].into(),
        ..Default::default()
    }
}

/// `{tlsMode: istio, cluster: west}`; without a cluster, any meshed endpoint.
pub(super) fn tls_criteria(cluster: Option<&ClusterId>) -> Struct {
    let mut fields = serde_json::json!({ "tlsMode": "istio" });
    if let Some(cluster) = cluster {
        fields["cluster"] = cluster.as_str().into();
    }
    match own::to_value(fields).kind {
        Some(Kind::StructValue(fields)) => fields,
        _ => unreachable!("an object becomes a struct"),
    }
}

pub(super) fn decode(assignment: &wire::ClusterLoadAssignment) -> Result<Endpoints, Wrong> {
    let groups = assignment.endpoints.iter().enumerate().map(|(at, group)| {
        decode_group(group).map_err(|wrong| wrong.within(&format!("endpoints[{at}]")))
    });
    Ok(Endpoints {
        cluster: read_cluster_name("cluster_name", &assignment.cluster_name)?,
        groups: groups.collect::<Result<_, _>>()?,
    })
}

fn decode_group(group: &LocalityLbEndpoints) -> Result<LocalityGroup, Wrong> {
    let core::Locality { region, zone, sub_zone } = group.locality.clone().unwrap_or_default();
    let members = group.lb_endpoints.iter().enumerate().map(|(at, member)| {
        decode_member(member).map_err(|wrong| wrong.within(&format!("lb_endpoints[{at}]")))
    });
    Ok(LocalityGroup {
        priority: group.priority,
        locality: Locality { region, zone, subzone: sub_zone },
        weight: read_uint("load_balancing_weight", group.load_balancing_weight.as_ref())?,
        endpoints: members.collect::<Result<_, _>>()?,
    })
}

fn decode_member(member: &Member) -> Result<LbEndpoint, Wrong> {
    let Some(HostIdentifier::Endpoint(endpoint)) = &member.host_identifier else {
        return Err(wrong("endpoint", "is missing"));
    };
    let own: Own = own::read(member.metadata.as_ref())?;
    let address = required("endpoint.address", endpoint.address.as_ref())?;
    Ok(LbEndpoint {
        address: read_address("endpoint.address", Some(address))?,
        cluster: own.cluster,
        network: own.network,
        weight: read_uint("load_balancing_weight", member.load_balancing_weight.as_ref())?,
        tls: own.tls,
        gateway: own.gateway,
        workload: own.workload,
    })
}
