//! The kinds every Kubernetes has, as far as they are served: how each is read, filled in and judged.

mod access;
mod core;
mod pod;
mod service;
mod slice;

use crate::kind::{Kind, Registry, Rules};
use crate::names::NameRule;
use crate::object::Object;
use crate::refusal::Cause;
use crate::shape::Shape;
use k8s_openapi::api;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::sync::Arc;

/// What the operator allows.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Policy {
    pub(crate) loopback_endpoints: bool,
}

/// One built-in kind.
#[derive(Debug)]
pub(crate) struct Builtin {
    group: &'static str,
    version: &'static str,
    kind: &'static str,
    plural: &'static str,
    singular: &'static str,
    short: &'static [&'static str],
    namespaced: bool,
    status: bool,
    /// Counts its generations.
    pub(crate) generation: bool,
    /// A PUT makes it where it is absent.
    pub(crate) put_creates: bool,
    /// A PUT must name the version it replaces.
    pub(crate) versioned: bool,
    pub(crate) names: NameRule,
    shape: &'static str,
    /// Through its type and back: unknown fields are gone, wrong types an error.
    pub(crate) decode: fn(&Value) -> Result<Value, String>,
    pub(crate) defaults: fn(&mut Object),
    pub(crate) validate: fn(&Object, Option<&Object>, Policy) -> Vec<Cause>,
}

fn decode<K: DeserializeOwned + Serialize>(value: &Value) -> Result<Value, String> {
    let typed = K::deserialize(value).map_err(|error| error.to_string())?;
    serde_json::to_value(typed).map_err(|error| error.to_string())
}

const PLAIN: Builtin = Builtin {
    group: "",
    version: "v1",
    kind: "",
    plural: "",
    singular: "",
    short: &[],
    namespaced: true,
    status: false,
    generation: false,
    put_creates: false,
    versioned: false,
    names: NameRule::Subdomain,
    shape: "",
    decode: |value| Ok(value.clone()),
    defaults: |_| {},
    validate: |_, _, _| vec![],
};

static ALL: &[Builtin] = &[
    Builtin {
        kind: "Namespace",
        plural: "namespaces",
        singular: "namespace",
        short: &["ns"],
        namespaced: false,
        status: true,
        names: NameRule::Label,
        decode: decode::<api::core::v1::Namespace>,
        defaults: core::namespace_defaults,
        shape: "spec.finalizers status.conditions[type]",
        ..PLAIN
    },
    Builtin {
        kind: "Node",
        plural: "nodes",
        singular: "node",
        short: &["no"],
        namespaced: false,
        status: true,
        decode: decode::<api::core::v1::Node>,
        validate: core::node,
        shape: "spec.podCIDRs{} status.conditions[type] status.addresses[type]",
        ..PLAIN
    },
    Builtin {
        kind: "Pod",
        plural: "pods",
        singular: "pod",
        short: &["po"],
        status: true,
        generation: true,
        decode: decode::<api::core::v1::Pod>,
        defaults: pod::defaults,
        validate: pod::validate,
        shape: pod::SHAPE,
        ..PLAIN
    },
    Builtin {
        kind: "Service",
        plural: "services",
        singular: "service",
        short: &["svc"],
        status: true,
        put_creates: true,
        names: NameRule::Label,
        decode: decode::<api::core::v1::Service>,
        defaults: service::defaults,
        validate: service::validate,
        shape: "spec.ports[port,protocol=TCP] spec.selector! status.conditions[type]",
        ..PLAIN
    },
    Builtin {
        kind: "Endpoints",
        plural: "endpoints",
        singular: "endpoints",
        short: &["ep"],
        put_creates: true,
        decode: decode::<api::core::v1::Endpoints>,
        defaults: slice::endpoints_defaults,
        validate: slice::endpoints,
        ..PLAIN
    },
    Builtin {
        kind: "ConfigMap",
        plural: "configmaps",
        singular: "configmap",
        short: &["cm"],
        decode: decode::<api::core::v1::ConfigMap>,
        validate: core::config_map,
        ..PLAIN
    },
    Builtin {
        kind: "Secret",
        plural: "secrets",
        singular: "secret",
        decode: core::decode_secret,
        defaults: core::secret_defaults,
        validate: core::secret,
        ..PLAIN
    },
    Builtin {
        kind: "ServiceAccount",
        plural: "serviceaccounts",
        singular: "serviceaccount",
        short: &["sa"],
        decode: decode::<api::core::v1::ServiceAccount>,
        shape: "secrets[name] imagePullSecrets[name]",
        ..PLAIN
    },
    Builtin {
        kind: "Event",
        plural: "events",
        singular: "event",
        short: &["ev"],
        put_creates: true,
        decode: decode::<api::core::v1::Event>,
        validate: core::event,
        ..PLAIN
    },
    Builtin {
        group: "coordination.k8s.io",
        kind: "Lease",
        plural: "leases",
        singular: "lease",
        put_creates: true,
        versioned: true,
        decode: decode::<api::coordination::v1::Lease>,
        validate: core::lease,
        ..PLAIN
    },
    Builtin {
        group: "discovery.k8s.io",
        kind: "EndpointSlice",
        plural: "endpointslices",
        singular: "endpointslice",
        generation: true,
        decode: decode::<api::discovery::v1::EndpointSlice>,
        defaults: slice::defaults,
        validate: slice::validate,
        ..PLAIN
    },
    Builtin {
        group: "rbac.authorization.k8s.io",
        kind: "Role",
        plural: "roles",
        singular: "role",
        put_creates: true,
        names: NameRule::Path,
        decode: decode::<api::rbac::v1::Role>,
        validate: access::role,
        ..PLAIN
    },
    Builtin {
        group: "rbac.authorization.k8s.io",
        kind: "ClusterRole",
        plural: "clusterroles",
        singular: "clusterrole",
        namespaced: false,
        put_creates: true,
        names: NameRule::Path,
        decode: decode::<api::rbac::v1::ClusterRole>,
        validate: access::role,
        ..PLAIN
    },
    Builtin {
        group: "rbac.authorization.k8s.io",
        kind: "RoleBinding",
        plural: "rolebindings",
        singular: "rolebinding",
        put_creates: true,
        names: NameRule::Path,
        decode: decode::<api::rbac::v1::RoleBinding>,
        defaults: access::binding_defaults,
        validate: access::binding,
        shape: "roleRef!",
        ..PLAIN
    },
    Builtin {
        group: "rbac.authorization.k8s.io",
        kind: "ClusterRoleBinding",
        plural: "clusterrolebindings",
        singular: "clusterrolebinding",
        namespaced: false,
        put_creates: true,
        names: NameRule::Path,
        decode: decode::<api::rbac::v1::ClusterRoleBinding>,
        defaults: access::binding_defaults,
        validate: access::binding,
        shape: "roleRef!",
        ..PLAIN
    },
    Builtin {
        group: "apiextensions.k8s.io",
        kind: "CustomResourceDefinition",
        plural: "customresourcedefinitions",
        singular: "customresourcedefinition",
        short: &["crd", "crds"],
        namespaced: false,
        status: true,
        generation: true,
        decode: crate::definition::decode,
        defaults: crate::definition::defaults,
        validate: crate::definition::validate,
        shape: "status.conditions[type]",
        ..PLAIN
    },
];

/// Questions: group, kind, plural, namespaced.
const REVIEWS: [(&str, &str, &str, bool); 6] = [
    ("authentication.k8s.io", "TokenReview", "tokenreviews", false),
    ("authentication.k8s.io", "SelfSubjectReview", "selfsubjectreviews", false),
    ("authorization.k8s.io", "SelfSubjectAccessReview", "selfsubjectaccessreviews", false),
    ("authorization.k8s.io", "SelfSubjectRulesReview", "selfsubjectrulesreviews", false),
    ("authorization.k8s.io", "SubjectAccessReview", "subjectaccessreviews", false),
    ("authorization.k8s.io", "LocalSubjectAccessReview", "localsubjectaccessreviews", true),
];

/// Whether a group is Kubernetes' own: no definition may claim it.
pub(crate) fn owns(group: &str) -> bool {
    ALL.iter()
        .map(|builtin| builtin.group)
        .chain(REVIEWS.map(|review| review.0))
        .any(|own| own == group)
}

/// The built-in kinds.
pub(crate) fn registry() -> Registry {
    let mut registry = Registry::default();
    for builtin in ALL {
        let texts = |all: &[&str]| all.iter().map(|&text| text.to_owned()).collect();
        let in_all = ["pods", "services"].contains(&builtin.plural);
        registry.add(Kind {
            group: builtin.group.into(),
            version: builtin.version.into(),
            kind: builtin.kind.into(),
            plural: builtin.plural.into(),
            singular: builtin.singular.into(),
            short: texts(builtin.short),
            categories: if in_all { vec!["all".into()] } else { vec![] },
            namespaced: builtin.namespaced,
            status: builtin.status,
            resource: format!("{}/{}", builtin.group, builtin.plural).into(),
            shape: Arc::new(Shape::of(builtin.shape)),
            rules: Rules::Builtin(builtin),
        });
    }
    for (group, kind, plural, namespaced) in REVIEWS {
        registry.add(Kind {
            group: group.into(),
            version: "v1".into(),
            kind: kind.into(),
            plural: plural.into(),
            singular: kind.to_lowercase(),
            short: vec![],
            categories: vec![],
            namespaced,
            status: false,
            resource: format!("{group}/{plural}").into(),
            shape: Arc::new(Shape::default()),
            rules: Rules::Review,
        });
    }
    registry
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_reads_its_smallest_object() {
        for builtin in ALL {
            let version = match builtin.group {
                "" => "v1".to_owned(),
                group => format!("{group}/v1"),
            };
            let smallest = serde_json::json!({
                "apiVersion": version, "kind": builtin.kind, "metadata": {"name": "a"}, "alien": 1,
            });
            let read = (builtin.decode)(&smallest).unwrap();
            assert_eq!(read["metadata"]["name"], "a", "{}", builtin.kind);
            assert!(read.get("alien").is_none(), "{}", builtin.kind);
        }
    }
}
