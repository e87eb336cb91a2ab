//! EndpointSlices, and Endpoints as they were before.

use super::{Row, merge, post};
use serde_json::{Value, json};

const SLICES: &str = "/apis/discovery.k8s.io/v1/namespaces/t/endpointslices";

fn slice(name: &str, kind: &str, endpoints: Value, ports: Value) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": {"name": name},
        "addressType": kind, "endpoints": endpoints, "ports": ports,
    })
}

pub(super) fn rows() -> Vec<Row> {
    let at = |address: &str| json!([{"addresses": [address]}]);
    let http = json!([{"name": "http", "port": 80}]);
    vec![
        post("a slice", SLICES, slice("a", "IPv4", at("10.0.0.1"), http.clone())).shows("/endpoints /ports /addressType /metadata/generation"),
        post("a slice without endpoints", SLICES, slice("empty", "IPv4", json!([]), http.clone())),
        post("an endpoint on loopback", SLICES, slice("b", "IPv4", at("127.0.0.1"), http.clone())),
        post("an endpoint on loopback, IPv6", SLICES, slice("b", "IPv6", at("::1"), http.clone())),
        post("an endpoint that is link-local", SLICES, slice("b", "IPv4", at("169.254.1.1"), http.clone())),
        post("an endpoint that is nowhere", SLICES, slice("b", "IPv4", at("0.0.0.0"), http.clone())),
        post("an endpoint that is everybody", SLICES, slice("b", "IPv4", at("224.0.0.1"), http.clone())),
        post("an endpoint of the other family", SLICES, slice("b", "IPv4", at("2001:db8::1"), http.clone())),
        post("an endpoint that is no address", SLICES, slice("b", "IPv4", at("hello"), http.clone())),
        post("an endpoint by name", SLICES, slice("fqdn", "FQDN", at("example.com"), http.clone()))
            .shows("/endpoints"),
        post("an endpoint by a bad name", SLICES, slice("b", "FQDN", at("a_b"), http.clone())),
        post("an endpoint without address", SLICES, slice("b", "IPv4", json!([{"addresses": []}]), http.clone())),
        post("no address type", SLICES, slice("b", "", at("10.0.0.1"), http.clone())),
        post("an unknown address type", SLICES, slice("b", "IPX", at("10.0.0.1"), http.clone())),
        post("an endpoint's bad hostname", SLICES, slice("b", "IPv4", json!([{"addresses": ["10.0.0.1"], "hostname": "A"}]), http.clone())),
        post("an endpoint's bad node", SLICES, slice("b", "IPv4", json!([{"addresses": ["10.0.0.1"], "nodeName": "A"}]), http.clone())),
        post("an endpoint's port 0", SLICES, slice("b", "IPv4", at("10.0.0.1"), json!([{"port": 0}]))),
        post("an endpoint's port 70000", SLICES, slice("high", "IPv4", at("10.0.0.1"), json!([{"port": 70000}]))),
        post("an endpoint's port without number", SLICES, slice("any", "IPv4", at("10.0.0.1"), json!([{"name": "x"}]))).shows("/ports"),
        post("two endpoint ports of one name", SLICES, slice("b", "IPv4", at("10.0.0.1"), json!([{"port": 1}, {"port": 2}]))),
        post("an endpoint port's bad name", SLICES, slice("b", "IPv4", at("10.0.0.1"), json!([{"name": "A", "port": 1}]))),
        post("an endpoint port's bad protocol", SLICES, slice("b", "IPv4", at("10.0.0.1"), json!([{"port": 1, "protocol": "QUIC"}]))),
        post("endpoints that are text", SLICES, slice("b", "IPv4", json!("x"), http.clone())),
        post("101 addresses", SLICES, slice("b", "IPv4", json!([{"addresses": (1..=101).map(|n| format!("10.0.0.{n}")).collect::<Vec<_>>()}]), http.clone())),
        post("1001 endpoints", SLICES, slice("b", "IPv4", (0..1001).map(|_| json!({"addresses": ["10.0.0.1"]})).collect(), http.clone())),
        merge("a slice changes", &format!("{SLICES}/a"), json!({"endpoints": [{"addresses": ["10.0.0.2"]}]})).shows("/endpoints /metadata/generation"),
        merge("a slice's family stays", &format!("{SLICES}/a"), json!({"addressType": "IPv6", "endpoints": []})),
        post("Endpoints", "/api/v1/namespaces/t/endpoints", json!({"apiVersion": "v1", "kind": "Endpoints", "metadata": {"name": "a"}, "subsets": [{"addresses": [{"ip": "10.0.0.1"}], "ports": [{"port": 80}]}]}))
            .shows("/subsets"),
        post("Endpoints on loopback", "/api/v1/namespaces/t/endpoints", json!({"apiVersion": "v1", "kind": "Endpoints", "metadata": {"name": "b"}, "subsets": [{"addresses": [{"ip": "127.0.0.1"}], "ports": [{"port": 80}]}]})),
        post("Endpoints without addresses", "/api/v1/namespaces/t/endpoints", json!({"apiVersion": "v1", "kind": "Endpoints", "metadata": {"name": "b"}, "subsets": [{"ports": [{"port": 80}]}]})),
    ]
}
