//! Who asks, as xDS says it: the node id `TYPE~IP~POD.NS~NS.svc.DOMAIN` and its metadata.

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::google::protobuf::{Struct, Value, value::Kind};
use mesh::name::Locality;
use mesh::world::{Dialect, Role};
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// What a proxy says about itself. A hint, never a proof: the proof is its certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    pub role: Role,
    /// The pod's first address; unspecified where a proxy does not know it.
    pub address: IpAddr,
    pub pod: String,
    pub namespace: String,
    /// Metadata `CLUSTER_ID`.
    pub cluster: String,
    /// Metadata `NETWORK`; may be empty.
    pub network: String,
    /// Metadata `SERVICE_ACCOUNT`.
    pub account: String,
    pub locality: Locality,
    /// Ours where metadata `GENERATOR` says `isthmus`, gRPC's where it says `grpc` (as for Istio),
    /// else Envoy's.
    pub dialect: Dialect,
}

/// Why a node is none we can serve.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "ISM6001 node id {id:?} does not read TYPE~IP~POD.NAMESPACE~NAMESPACE.svc.DOMAIN: {why}. Fix: start the proxy with an id of that form."
)]
pub struct NotANode {
    pub id: String,
    pub why: &'static str,
}

/// Longest node id we read, bytes: three DNS names of at most 253 and some glue.
const ID_MAX: usize = 1024;

impl Node {
    /// `sidecar~10.244.0.7~hello-0.shop~shop.svc.cluster.local`.
    pub fn id(&self) -> String {
        let kind = match self.role {
            Role::Sidecar => "sidecar",
            Role::Gateway => "router",
            Role::Agent => "agent",
        };
        let Self { address, pod, namespace, .. } = self;
        format!("{kind}~{address}~{pod}.{namespace}~{namespace}.svc.cluster.local")
    }

    /// As it goes into the first request of a stream.
    pub fn to_proto(&self) -> core::Node {
        let generator = match self.dialect {
            Dialect::Isthmus => "isthmus",
            Dialect::Envoy => "",
            Dialect::Grpc => "grpc",
        };
        let text = |value: &str| Value { kind: Some(Kind::StringValue(value.to_owned())) };
        let fields = [
            ("CLUSTER_ID", self.cluster.as_str()),
            ("NETWORK", &self.network),
            ("NAMESPACE", &self.namespace),
            ("SERVICE_ACCOUNT", &self.account),
            ("GENERATOR", generator),
        ];
        let fields = fields.into_iter().filter(|(_, value)| !value.is_empty());
        core::Node {
            id: self.id(),
            cluster: format!("{}.{}", self.account, self.namespace),
            metadata: Some(Struct {
                fields: fields.map(|(key, value)| (key.to_owned(), text(value))).collect(),
            }),
            locality: Some(core::Locality {
                region: self.locality.region.clone(),
                zone: self.locality.zone.clone(),
                sub_zone: self.locality.subzone.clone(),
            }),
            user_agent_name: "isthmus".into(),
            ..Default::default()
        }
    }

    /// Reads what any xDS client sent. `sidecar` and `router` of a foreign generator become
    /// [`Role::Agent`] only where the dialect is Envoy's and the type says `agent`.
    pub fn from_proto(node: &core::Node) -> Result<Self, NotANode> {
        let not = |why| NotANode { id: node.id.chars().take(128).collect(), why };
        if node.id.len() > ID_MAX {
            return Err(not("it is longer than 1024 bytes"));
        }
        let parts: Vec<&str> = node.id.split('~').collect();
        let [kind, address, pod, domain] = parts[..] else {
            return Err(not("it has not four parts joined by '~'"));
        };
        let role = match kind {
            "sidecar" => Role::Sidecar,
            "router" => Role::Gateway,
            "agent" => Role::Agent,
            _ => return Err(not("its type is none of sidecar, router and agent")),
        };
        let address = address.parse().map_err(|_| not("its second part is no IP address"))?;
        let (pod, namespace) =
            pod.rsplit_once('.').ok_or_else(|| not("its third part is not POD.NAMESPACE"))?;
        if domain.split('.').next() != Some(namespace) {
            return Err(not("its third and fourth part name different namespaces"));
        }
        let said = |key: &str| match node.metadata.as_ref()?.fields.get(key)?.kind.as_ref()? {
            Kind::StringValue(value) => Some(value.clone()),
            Kind::NullValue(_)
            | Kind::NumberValue(_)
            | Kind::BoolValue(_)
            | Kind::StructValue(_)
            | Kind::ListValue(_) => None,
        };
        let dialect = match said("GENERATOR").as_deref() {
            Some("isthmus") => Dialect::Isthmus,
            Some("grpc") if role == Role::Gateway => {
                return Err(not("a gRPC client is no gateway, and its type says router"));
            }
            Some("grpc") => Dialect::Grpc,
            _ => Dialect::Envoy,
        };
        let locality = node.locality.clone().unwrap_or_default();
        Ok(Self {
            role,
            address,
            pod: pod.to_owned(),
            namespace: namespace.to_owned(),
            cluster: said("CLUSTER_ID").unwrap_or_default(),
            network: said("NETWORK").unwrap_or_default(),
            account: said("SERVICE_ACCOUNT").unwrap_or_default(),
            locality: Locality {
                region: locality.region,
                zone: locality.zone,
                subzone: locality.sub_zone,
            },
            dialect,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello() -> Node {
        Node {
            role: Role::Sidecar,
            address: "10.244.0.7".parse().unwrap(),
            pod: "hello-0".into(),
            namespace: "shop".into(),
            cluster: "east".into(),
            network: "net-east".into(),
            account: "hello".into(),
            locality: Locality::from("r1/z1".to_owned()),
            dialect: Dialect::Isthmus,
        }
    }

    #[test]
    fn a_node_survives_the_wire() {
        assert_eq!(Node::from_proto(&hello().to_proto()), Ok(hello()));
        let foreign = Node { dialect: Dialect::Envoy, role: Role::Gateway, ..hello() };
        assert_eq!(Node::from_proto(&foreign.to_proto()), Ok(foreign));
        let grpc = Node { dialect: Dialect::Grpc, role: Role::Agent, ..hello() };
        assert_eq!(Node::from_proto(&grpc.to_proto()), Ok(grpc.clone()));
        let gateway = Node { role: Role::Gateway, ..grpc };
        let refused = Node::from_proto(&gateway.to_proto()).unwrap_err();
        assert!(refused.to_string().contains("no gateway"), "{refused}");
    }

    #[test]
    fn a_bad_id_is_refused_with_its_reason() {
        for (id, why) in [
            ("hello", "four parts"),
            ("ztunnel~1.2.3.4~a.b~b.svc.cluster.local", "type"),
            ("sidecar~nowhere~a.b~b.svc.cluster.local", "IP address"),
            ("sidecar~1.2.3.4~a~b.svc.cluster.local", "POD.NAMESPACE"),
            ("sidecar~1.2.3.4~a.c~b.svc.cluster.local", "different namespaces"),
        ] {
            let node = core::Node { id: id.into(), ..Default::default() };
            let refused = Node::from_proto(&node).unwrap_err().to_string();
            assert!(refused.contains(why), "{id}: {refused}");
        }
    }
}
