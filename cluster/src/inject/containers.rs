//! What a pod gets: an init container that captures its traffic, the sidecar as a native sidecar
//! container, and two volumes.

use super::proxy::Proxy;
use super::{CONFIGURATION, INIT_CONTAINER, SIDECAR_USER, Settings};
use crate::parse::pod::SIDECAR_CONTAINER;
use serde_json::{Map, Value, json};

/// The volumes' names.
pub(super) const VOLUMES: [&str; 2] = ["isthmus-token", "isthmus-state"];
/// Where the service account token is (Istio's path).
const TOKEN: &str = "/var/run/secrets/tokens/istio-token";
/// Where the sidecar keeps identity and configuration over its own restarts.
const STATE: &str = "/var/lib/isthmus/state";
/// The audience that our certificate authorities accept (Istio's).
const AUDIENCE: &str = "istio-ca";
/// How long a token lives, seconds (Istio's 12 hours); the kubelet renews it at 80 %.
const TOKEN_SECONDS: u64 = 43_200;
const HEALTH: u16 = 15021;
const METRICS: u16 = 15090;
/// Most memory for the last good configuration.
const STATE_SIZE: &str = "64Mi";

/// The sidecar's configuration, YAML's JSON form. `$(NAME)` is filled in by the kubelet; a dollar
/// sign from elsewhere is doubled, which the kubelet undoes (`k8s.io/kubernetes/third_party/forked/
/// golang/expansion`).
pub(super) fn configuration(
    settings: &Settings,
    proxy: &Proxy,
    probes: &Map<String, Value>,
) -> String {
    let mut whole = json!({
        "cluster": settings.cluster.as_str(),
        "network": settings.network.as_str(),
        "trustDomain": settings.trust_domain.as_str(),
        "controlPlane": settings.control_plane,
        "rootCertificates": settings.root_certificates,
        "vipRanges": settings.vip_ranges,
        "token": TOKEN,
        "state": STATE,
        // Upstreams are the pod's own nameservers.
        "dns": {},
    });
    if let Some(concurrency) = proxy.concurrency {
        whole["concurrency"] = concurrency.into();
    }
    if !probes.is_empty() {
        whole["probes"] = Value::Object(probes.clone());
    }
    escape(&mut whole);
    for (field, variable) in [
        ("namespace", "POD_NAMESPACE"),
        ("pod", "POD_NAME"),
        ("account", "SERVICE_ACCOUNT"),
        ("podAddresses", "POD_IPS"),
    ] {
        whole[field] = format!("$({variable})").into();
    }
    serde_json::to_string_pretty(&whole).expect("a value has a text")
}

fn escape(value: &mut Value) {
    match value {
        Value::String(text) => *text = text.replace('$', "$$"),
        Value::Array(values) => values.iter_mut().for_each(escape),
        Value::Object(fields) => {
            let old = std::mem::take(fields);
            for (key, mut value) in old {
                escape(&mut value);
                fields.insert(key.replace('$', "$$"), value);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// Captures the pod's traffic, then ends. Root and two capabilities, nothing else.
pub(super) fn init(settings: &Settings, arguments: &[String]) -> Value {
    let mut container = json!({
        "name": INIT_CONTAINER,
        "image": settings.image,
        "args": arguments,
        "resources": {"requests": settings.requests()},
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "capabilities": {"add": ["NET_ADMIN", "NET_RAW"], "drop": ["ALL"]},
            "privileged": false,
            "readOnlyRootFilesystem": true,
            // The pod may forbid root for all its containers; this one needs it for an instant.
            "runAsNonRoot": false,
            "runAsUser": 0,
            "runAsGroup": 0,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    });
    pull(&mut container, settings);
    container
}

/// Ready before what comes after it starts: the kubelet waits for the startup probe of an init
/// container that restarts always.
pub(super) fn sidecar(settings: &Settings, proxy: &Proxy, configuration: &str) -> Value {
    let field = |name: &str, path: &str| json!({"name": name, "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": path}}});
    let ready = json!({"path": "/healthz/ready", "port": HEALTH, "scheme": "HTTP"});
    let mut container = json!({
        "name": SIDECAR_CONTAINER,
        "image": settings.image,
        "args": ["sidecar", "--config-env", CONFIGURATION],
        "restartPolicy": "Always",
        "env": [
            field("POD_NAME", "metadata.name"),
            field("POD_NAMESPACE", "metadata.namespace"),
            field("SERVICE_ACCOUNT", "spec.serviceAccountName"),
            field("POD_IPS", "status.podIPs"),
            {"name": CONFIGURATION, "value": configuration},
        ],
        "ports": [{"name": "isthmus-metrics", "containerPort": METRICS, "protocol": "TCP"}],
        // Ten minutes: a control plane that is being mended is waited for, as events tell.
        "startupProbe": {
            "httpGet": ready, "periodSeconds": 1, "timeoutSeconds": 3, "failureThreshold": 600,
        },
        "readinessProbe": {
            "httpGet": ready, "periodSeconds": 5, "timeoutSeconds": 3, "failureThreshold": 3,
        },
        "resources": proxy.resources,
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "capabilities": {"drop": ["ALL"]},
            "privileged": false,
            "readOnlyRootFilesystem": true,
            "runAsNonRoot": true,
            "runAsUser": SIDECAR_USER,
            "runAsGroup": SIDECAR_USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "volumeMounts": [
            {"name": VOLUMES[0], "mountPath": "/var/run/secrets/tokens", "readOnly": true},
            {"name": VOLUMES[1], "mountPath": "/var/lib/isthmus"},
        ],
    });
    pull(&mut container, settings);
    container
}

fn pull(container: &mut Value, settings: &Settings) {
    if let Some(policy) = &settings.image_pull_policy {
        container["imagePullPolicy"] = policy.as_str().into();
    }
}

pub(super) fn volumes() -> [Value; 2] {
    let token = json!({
        "audience": AUDIENCE, "expirationSeconds": TOKEN_SECONDS, "path": "istio-token",
    });
    [
        json!({"name": VOLUMES[0], "projected": {"sources": [{"serviceAccountToken": token}]}}),
        // Key and certificate are never on a disk.
        json!({"name": VOLUMES[1], "emptyDir": {"medium": "Memory", "sizeLimit": STATE_SIZE}}),
    ]
}

/// What was added, for people and for `isthmus`.
pub(super) fn status() -> String {
    let status = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "initContainers": [INIT_CONTAINER, SIDECAR_CONTAINER],
        "volumes": VOLUMES,
    });
    status.to_string()
}
