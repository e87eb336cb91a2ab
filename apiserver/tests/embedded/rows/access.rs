//! Roles, bindings, and questions about them.

use super::{Row, Who, get, merge, post};
use serde_json::{Value, json};

const ROLES: &str = "/apis/rbac.authorization.k8s.io/v1/namespaces/t/roles";
const BINDINGS: &str = "/apis/rbac.authorization.k8s.io/v1/namespaces/t/rolebindings";

fn role(name: &str, rule: Value) -> Value {
    json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": name}, "rules": [rule]})
}

fn binding(name: &str, role: Value, subject: Value) -> Value {
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": name},
        "roleRef": role, "subjects": [subject],
    })
}

pub(super) fn rows() -> Vec<Row> {
    let to = |kind: &str, name: &str| json!({"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": name});
    let web = json!({"kind": "ServiceAccount", "name": "web", "namespace": "t"});
    let asks = |kind: &str, spec: Value| json!({"apiVersion": "authorization.k8s.io/v1", "kind": kind, "spec": spec});
    let read = json!({"namespace": "t", "verb": "get", "resource": "configmaps"});
    vec![
        post("a Role", ROLES, role("a", json!({"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get"]}))).shows("/rules"),
        post("a Role with a colon", ROLES, role("a:b", json!({"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get"]}))),
        post("a Role without verbs", ROLES, role("b", json!({"apiGroups": [""], "resources": ["configmaps"], "verbs": []}))),
        post("a Role without groups", ROLES, role("b", json!({"resources": ["configmaps"], "verbs": ["get"]}))),
        post("a Role without resources", ROLES, role("b", json!({"apiGroups": [""], "verbs": ["get"]}))),
        post("a Role for pages", ROLES, role("b", json!({"nonResourceURLs": ["/x"], "verbs": ["get"]}))),
        post("a binding", BINDINGS, binding("a", to("Role", "a"), web.clone())).shows("/subjects /roleRef"),
        post("a binding to nothing", BINDINGS, binding("b", to("Role", ""), web.clone())),
        post("a binding to another kind", BINDINGS, binding("b", to("Pod", "a"), web.clone())),
        post("a binding of an unknown subject", BINDINGS, binding("b", to("Role", "a"), json!({"kind": "Robot", "name": "x"}))),
        post("a binding of a nameless user", BINDINGS, binding("b", to("Role", "a"), json!({"kind": "User"}))),
        merge("a binding's role stays", &format!("{BINDINGS}/a"), json!({"roleRef": {"name": "b"}})),
        post("a question about a bound account", "/apis/authorization.k8s.io/v1/subjectaccessreviews", asks("SubjectAccessReview", json!({"user": "system:serviceaccount:t:web", "resourceAttributes": read}))).shows("/status/allowed"),
        post("a question about another", "/apis/authorization.k8s.io/v1/subjectaccessreviews", asks("SubjectAccessReview", json!({"user": "system:serviceaccount:t:other", "resourceAttributes": read}))).shows("/status/allowed"),
        post("a question about nobody", "/apis/authorization.k8s.io/v1/subjectaccessreviews", asks("SubjectAccessReview", json!({"resourceAttributes": read}))),
        post("a question about nothing", "/apis/authorization.k8s.io/v1/subjectaccessreviews", asks("SubjectAccessReview", json!({"user": "x"}))),
        post("may I", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", asks("SelfSubjectAccessReview", json!({"resourceAttributes": read}))).shows("/status/allowed"),
        post("may nobody", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", asks("SelfSubjectAccessReview", json!({"resourceAttributes": read}))).who(Who::Anonymous),
        post("what may I", "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews", asks("SelfSubjectRulesReview", json!({"namespace": "t"}))),
        post("what may I nowhere", "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews", asks("SelfSubjectRulesReview", json!({}))),
        post("who am I", "/apis/authentication.k8s.io/v1/selfsubjectreviews", json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"})).shows("/status/userInfo/username /status/userInfo/groups"),
        post("whose is no token", "/apis/authentication.k8s.io/v1/tokenreviews", json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": "made-up"}})).shows("/status/authenticated"),
        get("questions cannot be listed", "/apis/authentication.k8s.io/v1/tokenreviews"),
    ]
}
