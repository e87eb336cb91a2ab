//! What every cluster begins with: its namespaces, the roles of the system, its own Service.

use crate::kind::Registry;
use crate::object::{fresh_uid, set_meta, timestamp};
use crate::prepare;
use crate::store::{Change, Store};
use anyhow::anyhow;
use serde_json::{Value, json};
use std::net::SocketAddr;

fn objects(listen: SocketAddr, services: ipnet::Ipv4Net) -> Vec<Value> {
    let rbac = "rbac.authorization.k8s.io";
    let mut all: Vec<Value> = ["default", "kube-node-lease", "kube-public", "kube-system"]
        .map(|name| json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}))
        .into();
    let pages = [
        "/api",
        "/api/*",
        "/apis",
        "/apis/*",
        "/healthz",
        "/livez",
        "/openapi",
        "/openapi/*",
        "/readyz",
        "/version",
        "/version/",
    ];
    let everything = json!([
        {"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]},
        {"verbs": ["*"], "nonResourceURLs": ["*"]},
    ]);
    let oneself = json!([
        {"verbs": ["create"], "apiGroups": ["authorization.k8s.io"],
         "resources": ["selfsubjectaccessreviews", "selfsubjectrulesreviews"]},
        {"verbs": ["create"], "apiGroups": ["authentication.k8s.io"], "resources": ["selfsubjectreviews"]},
    ]);
    let roles = [
        ("cluster-admin", everything, &["system:masters"][..]),
        (
            "system:discovery",
            json!([{"verbs": ["get"], "nonResourceURLs": pages}]),
            &["system:authenticated"],
        ),
        ("system:basic-user", oneself, &["system:authenticated"]),
        (
            "system:public-info-viewer",
            json!([{"verbs": ["get"], "nonResourceURLs": ["/healthz", "/livez", "/readyz", "/version", "/version/"]}]),
            &["system:authenticated", "system:unauthenticated"],
        ),
    ];
    for (name, rules, groups) in roles {
        let labels = json!({"kubernetes.io/bootstrapping": "rbac-defaults"});
        let version = format!("{rbac}/v1");
        all.push(json!({
            "apiVersion": version, "kind": "ClusterRole",
            "metadata": {"name": name, "labels": labels}, "rules": rules,
        }));
        let subjects: Vec<Value> = groups
            .iter()
            .map(|group| json!({"kind": "Group", "apiGroup": rbac, "name": group}))
            .collect();
        all.push(json!({
            "apiVersion": version, "kind": "ClusterRoleBinding",
            "metadata": {"name": name, "labels": labels}, "subjects": subjects,
            "roleRef": {"apiGroup": rbac, "kind": "ClusterRole", "name": name},
        }));
    }
    if let Some(first) = services.hosts().next() {
        all.push(json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {
                "name": "kubernetes", "namespace": "default",
                "labels": {"component": "apiserver", "provider": "kubernetes"},
            },
            "spec": {
                "clusterIP": first, "clusterIPs": [first], "ipFamilies": ["IPv4"],
                "ipFamilyPolicy": "SingleStack",
                "ports": [{"name": "https", "port": 443, "targetPort": listen.port(), "protocol": "TCP"}],
            },
        }));
    }
    all
}

/// Makes what is missing.
pub(crate) fn bootstrap(
    store: &Store,
    registry: &Registry,
    listen: SocketAddr,
    services: ipnet::Ipv4Net,
) -> anyhow::Result<()> {
    let now = jiff::Timestamp::now();
    let mut changes = vec![];
    for object in objects(listen, services) {
        let text = |path: &[&str]| crate::object::text(&object, path).to_owned();
        let version = text(&["apiVersion"]);
        let (group, _) = version.split_once('/').unwrap_or(("", &version));
        let kind = registry.by_kind(group, &text(&["kind"]));
        let kind = kind.ok_or_else(|| anyhow!("a built-in kind is not served"))?;
        let key = (text(&["metadata", "namespace"]), text(&["metadata", "name"]));
        if store.get(&kind.resource, &key).is_some() {
            continue;
        }
        let mut object = prepare::decode(kind, &object)?;
        prepare::default(kind, &mut object);
        set_meta(&mut object, "uid", json!(fresh_uid()));
        set_meta(&mut object, "creationTimestamp", timestamp(now));
        changes.push(Change { resource: kind.resource.clone(), key, value: Some(object) });
    }
    if !changes.is_empty() {
        store.writer().commit(changes).map_err(|why| anyhow!(why))?;
    }
    Ok(())
}
