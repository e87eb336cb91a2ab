//! The definitions our programs live with: Istio's, the Gateway API's, the MCS API's and our own.

use super::{Row, apply, get, merge, post};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::process::Command;

/// Folder of a Go module, from the module cache or its proxy.
fn module(path: &str, version: &str) -> Result<PathBuf, String> {
    let output = Command::new("go")
        .args(["mod", "download", "-json", &format!("{path}@{version}")])
        .current_dir("/")
        .env("GOTOOLCHAIN", "auto")
        .output()
        .map_err(|error| format!("go cannot be run: {error}"))?;
    let told: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let folder = told["Dir"].as_str().map(PathBuf::from);
    folder.ok_or_else(|| format!("{path}@{version} cannot be had: {}", told["Error"]))
}

fn read() -> Result<Vec<Value>, String> {
    let istio = module("istio.io/api", "v1.31.1")?;
    let gateway = module("sigs.k8s.io/gateway-api", "v1.7.0")?.join("config/crd/standard");
    let mcs = module("sigs.k8s.io/mcs-api", "v0.5.2")?.join("config/crd");
    let files = [
        istio.join("kubernetes/customresourcedefinitions.gen.yaml"),
        gateway.join("gateway.networking.k8s.io_gateways.yaml"),
        gateway.join("gateway.networking.k8s.io_gatewayclasses.yaml"),
        mcs.join("multicluster.x-k8s.io_serviceexports.yaml"),
        mcs.join("multicluster.x-k8s.io_serviceimports.yaml"),
    ];
    let mut all = vec![];
    for file in files {
        let text =
            std::fs::read_to_string(&file).map_err(|e| format!("{}: {e}", file.display()))?;
        for part in text.split("\n---").filter(|p| p.contains("kind: CustomResourceDefinition")) {
            all.push(serde_saphyr::from_str(part).map_err(|e| format!("{}: {e}", file.display()))?);
        }
    }
    for (_, yaml) in cluster::api::crd_yaml() {
        all.push(serde_saphyr::from_str(&yaml).map_err(|error| error.to_string())?);
    }
    Ok(all)
}

/// `None`, told loudly, where this machine cannot have them; in CI that is a failure.
pub(crate) fn definitions() -> Option<Vec<Value>> {
    match read() {
        Ok(definitions) => Some(definitions),
        Err(why) => {
            assert!(std::env::var_os("CI").is_none(), "nothing may be missing in CI: {why}");
            eprintln!("\n*** NOT RUN, what needs foreign definitions: {why}.\n");
            None
        }
    }
}

fn fixed(text: String) -> &'static str {
    Box::leak(text.into_boxed_str())
}

/// The list of a definition's objects, where it is served.
fn list(definition: &Value) -> &'static str {
    let spec = &definition["spec"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let served = spec["versions"].as_array().unwrap().iter().find(|v| v["served"] == true).unwrap();
    let (group, plural) = (text(&spec["group"]), text(&spec["names"]["plural"]));
    fixed(format!("/apis/{group}/{}/{plural}", text(&served["name"])))
}

pub(super) fn rows() -> Vec<Row> {
    let mut all = vec![];
    let Some(definitions) = definitions() else { return all };
    for definition in definitions {
        let name = definition["metadata"]["name"].as_str().unwrap().to_owned();
        let list = list(&definition);
        let path = format!("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}");
        let applied = apply(fixed(format!("the definition {name}")), &path, "test", definition);
        all.push(applied.shows("/spec/names").brings(list));
        all.push(get(fixed(format!("objects of {name}")), list).shows("/kind /apiVersion"));
    }
    all.extend(objects());
    all
}

fn objects() -> Vec<Row> {
    let entries = "/apis/networking.istio.io/v1/namespaces/t/serviceentries";
    let entry = |name: &str, spec: Value| json!({"apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry", "metadata": {"name": name}, "spec": spec});
    let gateways = "/apis/gateway.networking.k8s.io/v1/namespaces/t/gateways";
    let gateway = |name: &str, spec: Value| json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway", "metadata": {"name": name}, "spec": spec});
    let doors = "/apis/networking.istio.io/v1/namespaces/t/gateways";
    let door = |spec: Value| json!({"apiVersion": "networking.istio.io/v1", "kind": "Gateway", "metadata": {"name": "door"}, "spec": spec});
    let exports = "/apis/multicluster.x-k8s.io/v1beta1/namespaces/t/serviceexports";
    let imports = "/apis/multicluster.x-k8s.io/v1beta1/namespaces/t/serviceimports";
    let import = |name: &str, kind: &str, port: i64| json!({"apiVersion": "multicluster.x-k8s.io/v1beta1", "kind": "ServiceImport", "metadata": {"name": name}, "spec": {"type": kind, "ports": [{"port": port, "protocol": "TCP"}]}});
    let port = json!([{"number": 80, "name": "http", "protocol": "HTTP"}]);
    let listener = |name: &str, port: i64| json!({"name": name, "port": port, "protocol": "HTTP"});
    let class = |listeners: Value| json!({"gatewayClassName": "isthmus", "listeners": listeners});
    vec![
        post("a ServiceEntry", entries, entry("a", json!({"hosts": ["a.shop.global"], "addresses": ["240.240.0.1"], "ports": port, "resolution": "STATIC", "location": "MESH_INTERNAL", "endpoints": [{"address": "10.0.0.1", "labels": {"a": "b"}, "weight": 3}]}))).shows("/spec"),
        post("a ServiceEntry without hosts", entries, entry("b", json!({"ports": port}))),
        post("a ServiceEntry of an unknown resolution", entries, entry("b", json!({"hosts": ["a"], "ports": port, "resolution": "MAYBE"}))),
        post("a ServiceEntry whose port is text", entries, entry("b", json!({"hosts": ["a"], "ports": [{"number": "80", "name": "http"}]}))),
        post("a ServiceEntry whose port has no name", entries, entry("b", json!({"hosts": ["a"], "ports": [{"number": 80}]}))),
        apply("a ServiceEntry applied", &format!("{entries}/p"), "one", entry("p", json!({"hosts": ["p.shop.global"], "ports": port, "resolution": "STATIC"}))).shows("/spec"),
        apply("a ServiceEntry in conflict", &format!("{entries}/p"), "two", entry("p", json!({"hosts": ["q.shop.global"]}))),
        post("Istio's Gateway", doors, door(json!({"selector": {"istio": "eastwestgateway"}, "servers": [{"port": {"number": 15443, "name": "tls", "protocol": "TLS"}, "tls": {"mode": "AUTO_PASSTHROUGH"}, "hosts": ["*.local", "*.global"]}]}))).shows("/spec"),
        post("Istio's Gateway of an unknown mode", doors, door(json!({"servers": [{"port": {"number": 1, "name": "a", "protocol": "TLS"}, "tls": {"mode": "HARD"}, "hosts": ["*"]}]}))),
        post("a Gateway", gateways, gateway("a", class(json!([listener("http", 80)])))).shows("/spec"),
        post("a Gateway without listeners", gateways, gateway("b", json!({"gatewayClassName": "isthmus"}))),
        post("a Gateway without class", gateways, gateway("b", json!({"listeners": [listener("http", 80)]}))),
        post("a Gateway on port 0", gateways, gateway("b", class(json!([listener("http", 0)])))),
        post("a Gateway with a bad listener", gateways, gateway("b", class(json!([listener("A B", 80)])))),
        merge("a Gateway's status", &format!("{gateways}/a/status"), json!({"status": {"addresses": [{"value": "198.18.0.1"}]}})).shows("/status/addresses"),
        post("a ServiceExport", exports, json!({"apiVersion": "multicluster.x-k8s.io/v1beta1", "kind": "ServiceExport", "metadata": {"name": "a"}})),
        post("a ServiceImport", imports, import("a", "ClusterSetIP", 80)).shows("/spec"),
        post("a ServiceImport of an unknown type", imports, import("b", "Other", 80)),
    ]
}
