//! Roles and their bindings.

use super::Policy;
use crate::object::{Object, items, text};
use crate::refusal::Cause;
use serde_json::{Value, json};

const RBAC: &str = "rbac.authorization.k8s.io";

pub(super) fn role(new: &Object, _: Option<&Object>, _: Policy) -> Vec<Cause> {
    let mut causes = vec![];
    let namespaced = new["kind"] == "Role";
    for (index, rule) in items(new, &["rules"]).iter().enumerate() {
        let place = |field: &str| format!("rules[{index}].{field}");
        let has = |field: &str| !items(rule, &[field]).is_empty();
        if !has("verbs") {
            causes.push(Cause::required(place("verbs"), "verbs must contain at least one value"));
        }
        if has("nonResourceURLs") {
            if namespaced {
                let why = "namespaced rules cannot apply to non-resource URLs";
                causes.push(Cause::invalid(
                    place("nonResourceURLs"),
                    &rule["nonResourceURLs"],
                    why,
                ));
            }
            if has("apiGroups") || has("resources") || has("resourceNames") {
                let why = "rules cannot apply to both regular resources and non-resource URLs";
                causes.push(Cause::invalid(
                    place("nonResourceURLs"),
                    &rule["nonResourceURLs"],
                    why,
                ));
            }
            continue;
        }
        if !has("apiGroups") {
            let why = "resource rules must supply at least one api group";
            causes.push(Cause::required(place("apiGroups"), why));
        }
        if !has("resources") {
            let why = "resource rules must supply at least one resource";
            causes.push(Cause::required(place("resources"), why));
        }
    }
    causes
}

pub(super) fn binding_defaults(object: &mut Object) {
    if text(object, &["roleRef", "apiGroup"]).is_empty() {
        object["roleRef"]["apiGroup"] = json!(RBAC);
    }
    let Some(subjects) = object["subjects"].as_array_mut() else { return };
    for subject in subjects {
        let group = if subject["kind"] == "ServiceAccount" { "" } else { RBAC };
        if subject["apiGroup"].is_null() && !group.is_empty() {
            subject["apiGroup"] = json!(group);
        }
    }
}

pub(super) fn binding(new: &Object, old: Option<&Object>, _: Policy) -> Vec<Cause> {
    let mut causes = vec![];
    let role = &new["roleRef"];
    if role["apiGroup"] != RBAC {
        causes.push(Cause::unsupported("roleRef.apiGroup", &role["apiGroup"], &[RBAC]));
    }
    let kinds: &[&str] =
        if new["kind"] == "RoleBinding" { &["Role", "ClusterRole"] } else { &["ClusterRole"] };
    if !kinds.contains(&text(role, &["kind"])) {
        causes.push(Cause::unsupported("roleRef.kind", &role["kind"], kinds));
    }
    if text(role, &["name"]).is_empty() {
        causes.push(Cause::required("roleRef.name", ""));
    }
    if old.is_some_and(|old| old["roleRef"] != *role) {
        causes.push(Cause::invalid("roleRef", role, "cannot change roleRef"));
    }
    for (index, subject) in items(new, &["subjects"]).iter().enumerate() {
        let place = |field: &str| format!("subjects[{index}].{field}");
        if text(subject, &["name"]).is_empty() {
            causes.push(Cause::required(place("name"), ""));
        }
        let group = text(subject, &["apiGroup"]);
        match text(subject, &["kind"]) {
            "ServiceAccount" => {
                if !group.is_empty() {
                    causes.push(Cause::unsupported(place("apiGroup"), &json!(group), &[""]));
                }
                if text(subject, &["namespace"]).is_empty() && new["kind"] == "ClusterRoleBinding" {
                    causes.push(Cause::required(place("namespace"), ""));
                }
            }
            "User" | "Group" => {
                if group != RBAC {
                    causes.push(Cause::unsupported(place("apiGroup"), &json!(group), &[RBAC]));
                }
            }
            _ => {
                let kinds = ["ServiceAccount", "User", "Group"];
                let kind = subject.get("kind").unwrap_or(&Value::Null);
                causes.push(Cause::unsupported(place("kind"), kind, &kinds));
            }
        }
    }
    causes
}
