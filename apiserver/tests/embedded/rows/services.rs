//! Services and Pods.

use super::{Row, apply, delete, get, merge, post, strategic};
use serde_json::{Value, json};

const SERVICES: &str = "/api/v1/namespaces/t/services";
const PODS: &str = "/api/v1/namespaces/t/pods";

fn service(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec})
}

fn pod(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec})
}

pub(super) fn rows() -> Vec<Row> {
    let port = |port: Value| json!({"ports": [port]});
    let container =
        |container: Value| json!({"serviceAccountName": "web", "containers": [container]});
    let good = json!({"name": "app", "image": "none"});
    vec![
        post("a Service", SERVICES, service("a", json!({"selector": {"a": "b"}, "ports": [{"port": 80}]})))
            .shows("/spec/type /spec/ports /spec/sessionAffinity /spec/ipFamilies /spec/ipFamilyPolicy /spec/internalTrafficPolicy /status /metadata/generation"),
        post("a Service with a bad name", SERVICES, service("1a", port(json!({"port": 80})))),
        post("a Service without ports", SERVICES, service("b", json!({}))),
        post("port 0", SERVICES, service("b", port(json!({"port": 0})))),
        post("port 65536", SERVICES, service("b", port(json!({"port": 65536})))),
        post("a port that is text", SERVICES, service("b", port(json!({"port": "80"})))),
        post("target port 70000", SERVICES, service("b", port(json!({"port": 80, "targetPort": 70000})))),
        post("a target port by a bad name", SERVICES, service("b", port(json!({"port": 80, "targetPort": "A B"})))),
        post("a target port by name", SERVICES, service("named", port(json!({"port": 80, "targetPort": "http"})))).shows("/spec/ports"),
        post("an unknown protocol", SERVICES, service("b", port(json!({"port": 80, "protocol": "QUIC"})))),
        post("a port with a bad name", SERVICES, service("b", port(json!({"port": 80, "name": "A"})))),
        post("two ports without names", SERVICES, service("b", json!({"ports": [{"port": 1}, {"port": 2}]}))),
        post("two ports of one name", SERVICES, service("b", json!({"ports": [{"name": "a", "port": 1}, {"name": "a", "port": 2}]}))),
        post("one port twice", SERVICES, service("b", json!({"ports": [{"name": "a", "port": 1}, {"name": "b", "port": 1}]}))),
        post("an unknown type", SERVICES, service("b", json!({"type": "Portal", "ports": [{"port": 1}]}))),
        post("a bad selector", SERVICES, service("b", json!({"selector": {"a b": "c"}, "ports": [{"port": 1}]}))),
        post("an unknown affinity", SERVICES, service("b", json!({"sessionAffinity": "Some", "ports": [{"port": 1}]}))),
        post("a headless Service", SERVICES, service("headless", json!({"clusterIP": "None", "ports": [{"port": 1}]})))
            .shows("/spec/clusterIP /spec/clusterIPs /spec/ipFamilies /spec/ipFamilyPolicy"),
        post("a headless Service with a selector", SERVICES, service("headless2", json!({"clusterIP": "None", "selector": {"a": "b"}, "ports": [{"port": 1}]})))
            .shows("/spec/ipFamilies /spec/ipFamilyPolicy"),
        post("an address of one's own", SERVICES, service("own", json!({"clusterIP": "10.96.77.7", "ports": [{"port": 1}]}))).shows("/spec/clusterIP /spec/clusterIPs"),
        post("an address that is taken", SERVICES, service("b", json!({"clusterIP": "10.96.77.7", "ports": [{"port": 1}]}))),
        post("an address of elsewhere", SERVICES, service("b", json!({"clusterIP": "192.168.1.1", "ports": [{"port": 1}]}))),
        post("an address that is none", SERVICES, service("b", json!({"clusterIP": "10.96.7", "ports": [{"port": 1}]}))),
        post("an external name", SERVICES, service("external", json!({"type": "ExternalName", "externalName": "example.com"}))).shows("/spec"),
        post("an external name without name", SERVICES, service("b", json!({"type": "ExternalName"}))),
        post("an external name that is none", SERVICES, service("b", json!({"type": "ExternalName", "externalName": "a_b"}))),
        post("a LoadBalancer", SERVICES, service("lb", json!({"type": "LoadBalancer", "ports": [{"port": 1}]})))
            .shows("/spec/externalTrafficPolicy /spec/allocateLoadBalancerNodePorts /status"),
        merge("a LoadBalancer's address", &format!("{SERVICES}/lb/status"), json!({"status": {"loadBalancer": {"ingress": [{"ip": "198.18.0.1"}]}}}))
            .shows("/status"),
        merge("a LoadBalancer's address that is none", &format!("{SERVICES}/lb/status"), json!({"status": {"loadBalancer": {"ingress": [{"ip": "x"}]}}})),
        merge("a status by the main door", &format!("{SERVICES}/lb"), json!({"status": {"loadBalancer": {"ingress": []}}})).shows("/status"),
        merge("a spec by the status's door", &format!("{SERVICES}/lb/status"), json!({"spec": {"selector": {"x": "y"}}})).shows("/spec/selector"),
        post("a node port out of range", SERVICES, service("b", json!({"type": "NodePort", "ports": [{"port": 1, "nodePort": 80}]}))),
        merge("an address stays", &format!("{SERVICES}/own"), json!({"spec": {"clusterIP": "10.96.77.8", "clusterIPs": ["10.96.77.8"]}})),
        strategic("a port more by a strategic patch", &format!("{SERVICES}/own"), json!({"spec": {"ports": [{"port": 1, "name": "one"}, {"port": 2, "name": "two"}]}}))
            .shows("/spec/ports"),
        apply("ports by an apply", &format!("{SERVICES}/applied"), "one", service("applied", json!({"ports": [{"port": 1, "name": "one"}]}))).shows("/spec/ports"),
        apply("a port more by another", &format!("{SERVICES}/applied"), "two", service("applied", json!({"ports": [{"port": 2, "name": "two"}]}))).shows("/spec/ports"),
        apply("a port less by the first", &format!("{SERVICES}/applied"), "one", service("applied", json!({"selector": {"a": "b"}}))).shows("/spec/ports /spec/selector"),
        get("an unknown part of a Service", &format!("{SERVICES}/own/horn")),
        delete("a Service is deleted", &format!("{SERVICES}/own")),
        post("a Pod without its account", PODS, pod("a", container(good.clone()))),
        post("an account", "/api/v1/namespaces/t/serviceaccounts", json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "web"}})),
        post("a Pod", PODS, pod("a", {
            let mut spec = container(good.clone());
            spec["automountServiceAccountToken"] = json!(false);
            spec
        }))
        .shows("/spec/restartPolicy /spec/dnsPolicy /spec/containers /spec/tolerations /spec/serviceAccount /spec/terminationGracePeriodSeconds /status/phase /status/qosClass /metadata/generation /spec/priority /spec/enableServiceLinks /spec/schedulerName /spec/preemptionPolicy /spec/securityContext"),
        post("a Pod without containers", PODS, pod("b", json!({"serviceAccountName": "web", "containers": []}))),
        post("a container without name", PODS, pod("b", container(json!({"image": "none"})))),
        post("a container without image", PODS, pod("b", container(json!({"name": "app"})))),
        post("a container with a bad name", PODS, pod("b", container(json!({"name": "A", "image": "none"})))),
        post("two containers of one name", PODS, pod("b", json!({"serviceAccountName": "web", "containers": [good, good]}))),
        post("a container's port 0", PODS, pod("b", container(json!({"name": "app", "image": "none", "ports": [{"containerPort": 0}]})))),
        post("a container's port 70000", PODS, pod("b", container(json!({"name": "app", "image": "none", "ports": [{"containerPort": 70000}]})))),
        post("an unknown restart policy", PODS, pod("b", { let mut spec = container(good.clone()); spec["restartPolicy"] = json!("Maybe"); spec })),
        post("containers that are no list", PODS, pod("b", json!({"serviceAccountName": "web", "containers": {"a": 1}}))),
        merge("a Pod's image changes", &format!("{PODS}/a"), json!({"spec": {"containers": [{"name": "app", "image": "other"}]}})).shows("/spec/containers/0/image"),
        merge("a Pod's node does not", &format!("{PODS}/a"), json!({"spec": {"hostname": "other"}})),
        strategic("a Pod's label", &format!("{PODS}/a"), json!({"metadata": {"labels": {"x": "y"}}})).shows("/metadata/labels /metadata/generation"),
        apply("a Pod's status", &format!("{PODS}/a/status?force=true"), "kubelet", json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "status": {"phase": "Running", "podIP": "10.0.0.7", "podIPs": [{"ip": "10.0.0.7"}], "conditions": [{"type": "Ready", "status": "True"}]}}))
            .shows("/status/phase /status/podIP /status/podIPs"),
        get("Pods by address", &format!("{PODS}?fieldSelector=status.podIP%3D10.0.0.7")).shows("/items/0/metadata/name"),
        post("a token", "/api/v1/namespaces/t/serviceaccounts/web/token", json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"audiences": ["x"], "expirationSeconds": 600}})).shows("/spec/audiences /spec/expirationSeconds /kind"),
        post("a token of five seconds", "/api/v1/namespaces/t/serviceaccounts/web/token", json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"audiences": ["x"], "expirationSeconds": 5}})),
        post("a token of nobody", "/api/v1/namespaces/t/serviceaccounts/nobody/token", json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"audiences": ["x"]}})),
        post("a token for another Pod", "/api/v1/namespaces/t/serviceaccounts/web/token", json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"audiences": ["x"], "boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": "zzz"}}})),
        post("a token for another life of a Pod", "/api/v1/namespaces/t/serviceaccounts/web/token", json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"audiences": ["x"], "boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": "a", "uid": "x"}}})),
        get("tokens cannot be read", "/api/v1/namespaces/t/serviceaccounts/web/token"),
    ]
}
