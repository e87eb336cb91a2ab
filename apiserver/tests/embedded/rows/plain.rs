//! Namespaces, ConfigMaps, Secrets, Leases, Nodes: what all objects have in common.

use super::{Row, Who, apply, delete, get, json_patch, merge, post, put, strategic};
use serde_json::{Value, json};

const MAPS: &str = "/api/v1/namespaces/t/configmaps";

fn map(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"k": "v"}})
}

fn secret(name: &str, kind: &str, data: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "type": kind, "data": data})
}

pub(super) fn rows() -> Vec<Row> {
    let namespace =
        |name: &str| json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
    let secrets = "/api/v1/namespaces/t/secrets";
    let leases = "/apis/coordination.k8s.io/v1/namespaces/t/leases";
    let lease = |name: &str, seconds: i64| {
        json!({
            "apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": name},
            "spec": {"holderIdentity": "a", "leaseDurationSeconds": seconds},
        })
    };
    let with = |field: &str, value: Value| {
        let mut object = map("b");
        object["metadata"][field] = value;
        object
    };
    vec![
        post("a namespace", "/api/v1/namespaces", namespace("t"))
            .shows("/status/phase /spec/finalizers /metadata/labels"),
        post("a namespace twice", "/api/v1/namespaces", namespace("t")),
        post("a namespace with a bad name", "/api/v1/namespaces", namespace("A_b")),
        post("a namespace with a dot", "/api/v1/namespaces", namespace("a.b")),
        delete("the namespace default stays", "/api/v1/namespaces/default"),
        get("a namespace that is not there", "/api/v1/namespaces/nowhere"),
        post("a ConfigMap", MAPS, map("a")).shows("/data /metadata/generation /metadata/namespace"),
        post("a ConfigMap twice", MAPS, map("a")),
        post("a ConfigMap nowhere", "/api/v1/namespaces/nowhere/configmaps", map("a")),
        post("a ConfigMap for another namespace", MAPS, with("namespace", json!("other"))),
        post("a ConfigMap without name", MAPS, with("name", Value::Null)),
        post("a ConfigMap with a bad name", MAPS, map("Not Good")),
        post("a ConfigMap with a long name", MAPS, map(&"a".repeat(254))),
        post("a ConfigMap with a version", MAPS, with("resourceVersion", json!("5"))),
        post("a ConfigMap with a bad label", MAPS, with("labels", json!({"a b": "c"}))),
        post("a ConfigMap with a bad label value", MAPS, with("labels", json!({"a": "-"}))),
        post("a ConfigMap with a bad annotation", MAPS, with("annotations", json!({"/": "c"}))),
        post("a ConfigMap with a bad finalizer", MAPS, with("finalizers", json!(["bare"]))),
        post("a ConfigMap with half an owner", MAPS, with("ownerReferences", json!([{"kind": "Pod"}]))),
        post("labels that are no map", MAPS, with("labels", json!("x"))),
        post("a label that is no text", MAPS, with("labels", json!({"a": 1}))),
        post("another kind", MAPS, json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "b"}})),
        post("no kind", MAPS, json!({"apiVersion": "v1", "metadata": {"name": "b"}})),
        post("another version", MAPS, json!({"apiVersion": "v2", "kind": "ConfigMap", "metadata": {"name": "b"}})),
        Row::new("no JSON", "POST", MAPS).text("{\"apiVersion\": "),
        Row::new("an empty body", "POST", MAPS),
        Row::new("another media type", "POST", MAPS).text("hello").media("text/plain"),
        post("an unknown field, loosely", MAPS, json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "loose"}, "alien": 1}))
            .shows("/alien"),
        post("an unknown field, strictly", &format!("{MAPS}?fieldValidation=Strict"), json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "strict"}, "alien": 1})),
        post("data that is no map", MAPS, json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "b"}, "data": [1]})),
        post("data that is no text", MAPS, json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "b"}, "data": {"a": 1}})),
        post("a bad key", MAPS, json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "b"}, "data": {"a/b": "c"}})),
        post("one key twice", MAPS, json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "b"}, "data": {"a": "c"}, "binaryData": {"a": "eA=="}})),
        post("too much data", MAPS, json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "b"}, "data": {"a": "x".repeat((1 << 20) + 1)}})),
        post("a rehearsal", &format!("{MAPS}?dryRun=All"), map("dry")).shows("/data"),
        get("a rehearsal leaves nothing", &format!("{MAPS}/dry")),
        post("a rehearsal of some sort", &format!("{MAPS}?dryRun=Some"), map("dry")),
        get("a ConfigMap is read", &format!("{MAPS}/a")).shows("/data /kind /apiVersion"),
        get("a ConfigMap that is not there", &format!("{MAPS}/zzz")),
        get("a list", &format!("{MAPS}?fieldSelector=metadata.name%3Da")).shows("/kind /items/0/data"),
        get("a bad label selector", &format!("{MAPS}?labelSelector=a%20b")),
        get("an unknown field selector", &format!("{MAPS}?fieldSelector=spec.x%3Da")),
        get("a list of a bad version", &format!("{MAPS}?resourceVersion=abc")),
        put("a PUT", &format!("{MAPS}/a"), json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"k": "w"}})).shows("/data"),
        put("a PUT of another name", &format!("{MAPS}/a"), map("b")),
        put("a PUT of what is not there", &format!("{MAPS}/zzz"), map("zzz")),
        put("a PUT on an old version", &format!("{MAPS}/a"), json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a", "resourceVersion": "1"}})),
        put("a PUT for another UID", &format!("{MAPS}/a"), json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a", "uid": "x"}})),
        merge("a merge patch", &format!("{MAPS}/a"), json!({"data": {"k": null, "l": "1"}})).shows("/data"),
        merge("a merge patch of what is not there", &format!("{MAPS}/zzz"), json!({})),
        merge("a merge patch of the name", &format!("{MAPS}/a"), json!({"metadata": {"name": "b"}})),
        strategic("a strategic patch", &format!("{MAPS}/a"), json!({"data": {"m": "2"}})).shows("/data"),
        json_patch("a JSON patch", &format!("{MAPS}/a"), json!([{"op": "add", "path": "/data/n", "value": "3"}])).shows("/data"),
        json_patch("a JSON patch whose test fails", &format!("{MAPS}/a"), json!([{"op": "test", "path": "/data/n", "value": "4"}])),
        json_patch("a JSON patch of nothing there", &format!("{MAPS}/a"), json!([{"op": "remove", "path": "/data/zzz"}])),
        Row::new("a patch of no known kind", "PATCH", format!("{MAPS}/a")).body(json!({})),
        apply("an apply", &format!("{MAPS}/applied"), "one", map("applied")).shows("/data"),
        Row::new("an apply without manager", "PATCH", format!("{MAPS}/applied")).body(map("applied")).media("application/apply-patch+yaml"),
        apply("an apply by another, in conflict", &format!("{MAPS}/applied"), "two", json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "applied"}, "data": {"k": "w"}})),
        apply("an apply by another, forced", &format!("{MAPS}/applied?force=true"), "two", json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "applied"}, "data": {"k": "w"}}))
            .shows("/data"),
        apply("an apply that gives up a field", &format!("{MAPS}/applied"), "two", json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "applied"}}))
            .shows("/data"),
        apply("an apply with an unknown field", &format!("{MAPS}/applied"), "two", json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "applied"}, "alien": 1})),
        apply("an apply of another name", &format!("{MAPS}/applied"), "two", map("other")),
        apply("an apply with managed fields", &format!("{MAPS}/applied"), "two", json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "applied", "managedFields": [{"manager": "x"}]}})),
        apply("an apply on an old version", &format!("{MAPS}/applied"), "two", json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "applied", "resourceVersion": "1"}})),
        post("an immutable ConfigMap", MAPS, json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "fixed"}, "data": {"a": "b"}, "immutable": true})),
        merge("an immutable ConfigMap stays", &format!("{MAPS}/fixed"), json!({"data": {"a": "c"}})),
        Row::new("a delete for another UID", "DELETE", format!("{MAPS}/a")).body(json!({"kind": "DeleteOptions", "apiVersion": "v1", "preconditions": {"uid": "x"}})),
        delete("a delete", &format!("{MAPS}/a")).shows("/status /details/name /details/kind"),
        delete("a delete of what is not there", &format!("{MAPS}/a")),
        post("a held ConfigMap", MAPS, json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "held", "finalizers": ["example.com/hold"]}})),
        delete("a delete of a held one", &format!("{MAPS}/held")).shows("/metadata/finalizers /metadata/deletionGracePeriodSeconds"),
        merge("a finalizer added too late", &format!("{MAPS}/held"), json!({"metadata": {"finalizers": ["example.com/hold", "example.com/more"]}})),
        merge("a held one is let go", &format!("{MAPS}/held"), json!({"metadata": {"finalizers": null}})),
        get("a held one is gone", &format!("{MAPS}/held")),
        post("a Secret", secrets, secret("a", "", json!({"a": "eA=="}))).shows("/type /data"),
        post("a Secret in plain words", secrets, json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "plain"}, "stringData": {"a": "x"}})).shows("/data /stringData"),
        post("a Secret that is no base64", secrets, secret("b", "", json!({"a": "%"}))),
        post("a TLS Secret without key", secrets, secret("b", "kubernetes.io/tls", json!({"tls.crt": ""}))),
        post("a Docker Secret without data", secrets, secret("b", "kubernetes.io/dockerconfigjson", json!({}))),
        post("a token Secret without account", secrets, secret("b", "kubernetes.io/service-account-token", json!({}))),
        post("a Secret for basic auth without data", secrets, secret("b", "kubernetes.io/basic-auth", json!({}))),
        merge("a Secret's type stays", &format!("{secrets}/a"), json!({"type": "other"})),
        post("a Lease", leases, lease("a", 15)).shows("/spec"),
        post("a Lease of no time", leases, lease("b", 0)),
        put("a Lease without version", &format!("{leases}/a"), lease("a", 20)),
        put("a Lease on an old version", &format!("{leases}/a"), {
            let mut lease = lease("a", 20);
            lease["metadata"]["resourceVersion"] = json!("1");
            lease
        }),
        put("a Lease that a PUT makes", &format!("{leases}/new"), lease("new", 20)).shows("/spec"),
        post("a Node", "/api/v1/nodes", json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n"}})),
        merge("a Node's status", "/api/v1/nodes/n/status", json!({"status": {"addresses": [{"type": "InternalIP", "address": "10.0.0.1"}]}})).shows("/status/addresses"),
        get("an unknown kind", "/api/v1/namespaces/t/unicorns"),
        get("an unknown kind of a known group", "/apis/coordination.k8s.io/v1/namespaces/t/unicorns"),
        get("an unknown version of a known group", "/apis/coordination.k8s.io/v9/namespaces/t/leases"),
        get("an unknown group", "/apis/example.org/v1/unicorns"),
        get("an unknown version", "/api/v9/pods"),
        get("an unknown page", "/unicorns"),
        get("an unknown part", &format!("{MAPS}/applied/horn")),
        Row::new("a POST on an object", "POST", format!("{MAPS}/applied")).body(map("applied")),
        Row::new("a PUT on a list", "PUT", MAPS).body(map("applied")),
        get("a kind of the cluster in a namespace", "/api/v1/namespaces/t/nodes"),
        get("nobody lists", MAPS).who(Who::Anonymous),
        get("nobody asks for a page", "/apis").who(Who::Anonymous),
        get("nobody asks for health", "/readyz").who(Who::Anonymous),
        get("nobody asks for the version", "/version").who(Who::Anonymous),
        get("a stranger lists", MAPS).who(Who::Stranger),
        get("a stranger asks for the version", "/version").who(Who::Stranger),
    ]
}
