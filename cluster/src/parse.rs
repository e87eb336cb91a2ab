//! Objects of Kubernetes, Istio, the Gateway API and the MCS API, as values of the mesh: one file
//! per kind, each object -> (value, findings). A bad object costs itself only.

pub mod authorization_policy;
pub mod cluster_link;
pub mod destination_rule;
pub mod endpoint_slice;
pub mod gateway;
pub mod gateway_service;
pub mod istio_gateway;
pub mod mesh_config;
pub mod namespace;
pub mod node;
pub mod peer_authentication;
pub mod pod;
pub mod service;
pub mod service_entry;
pub mod service_export;

use crate::api::label;
use kube::api::{DynamicObject, ObjectMeta};
use mesh::finding::{Finding, ObjectRef, Severity};
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;

/// What an object says, and what was wrong with it. `value` is `None` where it is refused whole, or
/// none of our business.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parsed<T> {
    pub value: Option<T>,
    pub findings: Vec<Finding>,
}

impl<T> Parsed<T> {
    /// Nothing to say about it, good or bad.
    pub(crate) fn nothing() -> Self {
        Self { value: None, findings: Vec::new() }
    }
}

/// Namespaces whose Gateways may speak for the whole cluster: ours, and where Istio's live.
pub(crate) fn speaks_for_cluster(namespace: &str, root_namespace: &str) -> bool {
    namespace == root_namespace || namespace == "istio-system"
}

/// Findings about one object, collected while it is read.
pub(crate) struct Notes {
    pub(crate) object: ObjectRef,
    findings: Vec<Finding>,
}

impl Notes {
    pub(crate) fn of(kind: &str, meta: &ObjectMeta) -> Self {
        let namespace = meta.namespace.as_deref().unwrap_or_default();
        let name = meta.name.as_deref().unwrap_or_default();
        Self { object: ObjectRef::new(kind, namespace, name), findings: Vec::new() }
    }

    /// The object, or this field of it, is not used.
    pub(crate) fn refuse(&mut self, code: u16, field: &str, problem: impl Into<String>, fix: &str) {
        self.add(Severity::Refused, code, field, problem.into(), fix);
    }

    /// It is used, but not as its author may think.
    pub(crate) fn warn(&mut self, code: u16, field: &str, problem: impl Into<String>, fix: &str) {
        self.add(Severity::Warning, code, field, problem.into(), fix);
    }

    /// Warns of fields that our types do not know, each by its path.
    pub(crate) fn unsupported(&mut self, path: &str, rest: &Rest) {
        for key in rest.keys() {
            self.warn(
                3002,
                &format!("{path}.{key}"),
                "this field is not supported; the rest of the object is used without it.",
                "remove it, or do not rely on it.",
            );
        }
    }

    pub(crate) fn done<T>(self, value: Option<T>) -> Parsed<T> {
        Parsed { value, findings: self.findings }
    }

    fn add(&mut self, severity: Severity, code: u16, field: &str, problem: String, fix: &str) {
        let (object, field, fix) = (self.object.clone(), field.to_owned(), fix.to_owned());
        self.findings.push(Finding { severity, code, object, field, problem, fix });
    }
}

/// Fields of an object that our type of it does not name.
pub(crate) type Rest = BTreeMap<String, serde_json::Value>;

/// The `spec` of a custom object; one that does not fit is refused with the reason.
pub(crate) fn spec<T: DeserializeOwned>(object: &DynamicObject, notes: &mut Notes) -> Option<T> {
    let empty = serde_json::Value::Object(serde_json::Map::new());
    let spec = object.data.get("spec").unwrap_or(&empty);
    match T::deserialize(spec) {
        Ok(spec) => Some(spec),
        Err(error) => {
            notes.refuse(
                3001,
                "spec",
                format!("it cannot be read and is not used: {error}."),
                "write it as its CRD says; kubectl explain shows the fields.",
            );
            None
        }
    }
}

/// Written by our federation controller: its label and its field manager both say so. A label alone
/// is quickly copied by hand.
pub(crate) fn is_published(meta: &ObjectMeta) -> bool {
    let labelled = meta.labels.as_ref().and_then(|labels| labels.get(label::MANAGED_BY));
    let manager = |entry: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry| {
        entry.manager.as_deref() == Some(label::MANAGER)
    };
    labelled.is_some_and(|value| value == label::MANAGER)
        && meta.managed_fields.as_ref().is_some_and(|entries| entries.iter().any(manager))
}

/// Seconds since the epoch of an object's creation; 0 where it does not say.
pub(crate) fn created(meta: &ObjectMeta) -> i64 {
    meta.creation_timestamp.as_ref().map_or(0, |time| time.0.as_second())
}

pub(crate) fn labels(meta: &ObjectMeta) -> BTreeMap<String, String> {
    meta.labels.clone().unwrap_or_default()
}

/// Check helpers: an object as YAML, and what is seen of it.
#[cfg(test)]
pub(crate) mod check {
    use super::Parsed;
    use serde::Serialize;
    use serde::de::DeserializeOwned;

    #[track_caller]
    pub(crate) fn object<K: DeserializeOwned>(yaml: &str) -> K {
        serde_saphyr::from_str(yaml).unwrap()
    }

    /// The value as YAML, then each finding on a line of its own.
    pub(crate) fn show<T: Serialize>(parsed: &Parsed<T>) -> String {
        let mut text = match &parsed.value {
            Some(value) => serde_saphyr::to_string(value).unwrap(),
            None => "nothing\n".into(),
        };
        for finding in &parsed.findings {
            text.push_str(&format!("{:?} {finding}\n", finding.severity));
        }
        text
    }
}
