//! What we publish, as the JSON of Istio's and the Gateway API's objects, and of our own.

use crate::api::exported_service::ExportedService;
use crate::api::label;
use kube::core::{ApiResource, GroupVersionKind};
use mesh::export;
use mesh::federate::Plan;
use mesh::finding::ObjectRef;
use mesh::inventory::{EntryEndpoint, RemoteGateway, Resting, ServiceEntry, labels::TRUST_DOMAIN};
use mesh::name::{Protocol, ServiceName};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// The kinds we write.
pub const KINDS: [&str; 3] = [ENTRY, GATEWAY, EXPORT];
const ENTRY: &str = "ServiceEntry";
const GATEWAY: &str = "Gateway";
pub(super) const EXPORT: &str = "ExportedService";

/// All that should stand, as bodies without version and term.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Desired {
    pub objects: BTreeMap<ObjectRef, Body>,
    /// What may be deleted, where it is not among `objects`.
    pub deletions: Deletions,
}

/// Which standing objects of ours may go.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Deletions {
    /// These, by name: the plan knows that every source of theirs is synced or gone.
    pub named: BTreeSet<ObjectRef>,
    /// All ExportedServices not wanted: the own inventory is their only source, and it is synced.
    pub exports: bool,
}

/// An object's content, in parts that are compared.
#[derive(Debug, Clone, PartialEq)]
pub struct Body {
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
    pub spec: Value,
}

impl Desired {
    /// What a plan and this cluster's own exports look like. Both come from a synced inventory.
    pub fn of(plan: &Plan, exports: &BTreeMap<ServiceName, export::ExportedService>) -> Self {
        let mut objects = BTreeMap::new();
        for (object, entry) in &plan.entries {
            objects.insert(object.clone(), entry_body(entry));
        }
        for (object, rest) in &plan.resting {
            objects.insert(object.clone(), resting_body(rest));
        }
        for (object, gateway) in &plan.gateways {
            objects.insert(object.clone(), gateway_body(gateway));
        }
        for (name, service) in exports {
            let object = ExportedService::of(service);
            let body = Body {
                labels: object.metadata.labels.unwrap_or_default(),
                annotations: BTreeMap::new(),
                spec: serde_json::to_value(&object.spec).expect("a spec is plain data"),
            };
            objects.insert(ObjectRef::new(EXPORT, &name.namespace, &name.name), body);
        }
        let deletions = Deletions { named: plan.deletions.clone(), exports: true };
        Self { objects, deletions }
    }

    /// Whether a standing object may be deleted.
    pub(super) fn deletes(&self, object: &ObjectRef) -> bool {
        let named = self.deletions.named.contains(object);
        let exported = self.deletions.exports && object.kind == EXPORT;
        !self.objects.contains_key(object) && (named || exported)
    }
}

impl Body {
    /// True where a standing object says all of this. A Gateway may say more: its CRD has defaults.
    pub(super) fn stands_in(
        &self,
        kind: &str,
        labels: &BTreeMap<String, String>,
        annotations: &BTreeMap<String, String>,
        spec: &Value,
    ) -> bool {
        let said = |all: &BTreeMap<String, String>, own: &BTreeMap<String, String>| {
            own.iter().all(|(key, value)| all.get(key) == Some(value))
        };
        let same = if kind == GATEWAY { within(&self.spec, spec) } else { self.spec == *spec };
        // An entry that rests and one that does not may differ in nothing else.
        let rests = |all: &BTreeMap<String, String>| all.contains_key(label::RESTS_UNTIL);
        same && said(labels, &self.labels)
            && said(annotations, &self.annotations)
            && rests(annotations) == rests(&self.annotations)
    }

    /// The whole object, for a server-side apply.
    pub(super) fn json(&self, object: &ObjectRef, version: Option<&str>, term: u64) -> Value {
        let resource = resource(&object.kind);
        let mut annotations = self.annotations.clone();
        annotations.insert(label::TERM.into(), term.to_string());
        let mut metadata = json!({
            "name": object.name,
            "namespace": object.namespace,
            "labels": self.labels,
            "annotations": annotations,
        });
        if let Some(version) = version {
            metadata["resourceVersion"] = version.into();
        }
        json!({
            "apiVersion": resource.api_version,
            "kind": resource.kind,
            "metadata": metadata,
            "spec": self.spec,
        })
    }
}

/// Every field of `own` is in `all`, equally.
fn within(own: &Value, all: &Value) -> bool {
    match (own, all) {
        (Value::Object(own), Value::Object(all)) => {
            own.iter().all(|(key, value)| all.get(key).is_some_and(|other| within(value, other)))
        }
        (Value::Array(own), Value::Array(all)) => {
            own.len() == all.len() && own.iter().zip(all).all(|(own, all)| within(own, all))
        }
        (own, all) => own == all,
    }
}

/// The API a kind of [`KINDS`] is written to.
pub(super) fn resource(kind: &str) -> ApiResource {
    let (group, version, plural) = match kind {
        ENTRY => ("networking.istio.io", "v1", "serviceentries"),
        GATEWAY => ("gateway.networking.k8s.io", "v1", "gateways"),
        _ => ("isthmus.dev", "v1alpha1", "exportedservices"),
    };
    ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, kind), plural)
}

fn managed(more: impl IntoIterator<Item = (&'static str, String)>) -> BTreeMap<String, String> {
    let mut labels = BTreeMap::from([(label::MANAGED_BY.to_owned(), label::MANAGER.to_owned())]);
    labels.extend(more.into_iter().map(|(key, value)| (key.to_owned(), value)));
    labels
}

fn entry_body(entry: &ServiceEntry) -> Body {
    let mut labels = managed([(label::REVISION, "isthmus".to_owned())]);
    if let Some(service) = &entry.service {
        labels.insert(label::SERVICE.into(), service.name.clone());
        labels.insert(label::SERVICE_NAMESPACE.into(), service.namespace.clone());
    }
    labels.extend(source(entry.source_uid.as_ref()));
    let mut spec = Map::new();
    spec.insert("hosts".into(), texts(&entry.hosts));
    spec.insert("location".into(), "MESH_INTERNAL".into());
    spec.insert("resolution".into(), "STATIC".into());
    // Absent instead of empty: the CRD's rules count what is there.
    let mut put = |key: &str, values: Vec<Value>| {
        if !values.is_empty() {
            spec.insert(key.into(), Value::Array(values));
        }
    };
    put("addresses", entry.addresses.iter().map(|address| address.to_string().into()).collect());
    put(
        "ports",
        entry
            .ports
            .iter()
            .map(|port| {
                json!({
                    "number": port.number,
                    "name": port.name,
                    "protocol": protocol(port.protocol),
                })
            })
            .collect(),
    );
    put("endpoints", entry.endpoints.iter().map(endpoint).collect());
    put(
        "subjectAltNames",
        entry.subject_alt_names.iter().map(|id| id.to_string().into()).collect(),
    );
    Body { labels, annotations: BTreeMap::new(), spec: Value::Object(spec) }
}

/// Its host and addresses for people to read; no service, no port, no copy.
fn resting_body(rest: &Resting) -> Body {
    let labels = managed([(label::REVISION, "isthmus".to_owned())]);
    let until = crate::api::time(rest.until).0.to_string();
    let spec = json!({
        "hosts": [rest.host.as_str()], "location": "MESH_INTERNAL", "resolution": "STATIC",
        "addresses": texts(&rest.addresses),
    });
    Body { labels, annotations: [(label::RESTS_UNTIL.to_owned(), until)].into(), spec }
}

/// A UID as a label, where it can be one: another cluster's API server may say anything.
fn source(uid: Option<&String>) -> Option<(String, String)> {
    let legal = |uid: &&String| {
        let end = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
        let inner = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        let bytes = uid.as_bytes();
        bytes.len() <= 63
            && end(bytes.first())
            && end(bytes.last())
            && bytes.iter().all(|byte| inner(*byte))
    };
    uid.filter(legal).map(|uid| (label::SOURCE_UID.to_owned(), uid.clone()))
}

fn endpoint(endpoint: &EntryEndpoint) -> Value {
    let mut labels = endpoint.labels.clone();
    labels.insert(label::CLUSTER.into(), endpoint.cluster.to_string());
    if !endpoint.ports.is_empty() {
        let ports: Vec<String> = endpoint.ports.iter().map(u16::to_string).collect();
        labels.insert(label::PORTS.into(), ports.join("-"));
    }
    let mut value = json!({
        "network": endpoint.network.as_str(),
        "weight": endpoint.weight,
        "labels": labels,
    });
    let locality = endpoint.locality.to_string();
    if !locality.is_empty() {
        value["locality"] = locality.into();
    }
    if !endpoint.account.is_empty() {
        value["serviceAccount"] = endpoint.account.as_str().into();
    }
    if let Some(address) = endpoint.address {
        value["address"] = address.to_string().into();
    }
    value
}

fn protocol(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Http => "HTTP",
        Protocol::Http2 => "HTTP2",
        Protocol::Grpc => "GRPC",
        Protocol::Tcp => "TCP",
        // A ServiceEntry of Istio has no word for it but none.
        Protocol::Auto => "",
        Protocol::Udp => "UDP",
    }
}

fn texts<T: ToString>(values: &[T]) -> Value {
    values.iter().map(|value| Value::from(value.to_string())).collect()
}

fn gateway_body(gateway: &RemoteGateway) -> Body {
    let mut labels = managed([(label::NETWORK, gateway.network.to_string())]);
    if let Some(cluster) = &gateway.cluster {
        labels.insert(label::CLUSTER.into(), cluster.to_string());
    }
    labels.extend(source(gateway.source_uid.as_ref()));
    let domain = gateway.trust_domain.as_ref();
    let annotations =
        domain.map(|domain| (TRUST_DOMAIN.to_owned(), domain.to_string())).into_iter().collect();
    let addresses: Vec<Value> = gateway
        .addresses
        .iter()
        .map(|address| match address.socket() {
            Some(socket) => json!({"type": "IPAddress", "value": socket.ip().to_string()}),
            None => json!({"type": "Hostname", "value": address.host}),
        })
        .collect();
    let port = gateway.addresses.first().map_or(15443, |address| address.port);
    let mut spec = json!({
        "gatewayClassName": "istio-remote",
        "listeners": [{"name": "tls", "port": port, "protocol": "TLS", "tls": {"mode": "Passthrough"}}],
    });
    if !addresses.is_empty() {
        spec["addresses"] = addresses.into();
    }
    Body { labels, annotations, spec }
}

#[cfg(test)]
#[path = "object_tests.rs"]
mod tests;
