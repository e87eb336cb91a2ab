//! What a pod's annotations say of its sidecar itself: threads, processors and memory.

use super::Settings;
use super::settings::{is_quantity, threads};
use super::traffic::wrong;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// Istio's ProxyConfig of one pod, YAML.
const CONFIG: &str = "proxy.istio.io/config";
/// Each resource with Istio's annotations of its request and its limit.
const RESOURCES: [(&str, &str, &str); 2] = [
    ("cpu", "sidecar.istio.io/proxyCPU", "sidecar.istio.io/proxyCPULimit"),
    ("memory", "sidecar.istio.io/proxyMemory", "sidecar.istio.io/proxyMemoryLimit"),
];

/// How one pod's sidecar runs.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Proxy {
    /// The sidecar's own choice where nothing is said.
    pub(super) concurrency: Option<u16>,
    /// The container's `resources`.
    pub(super) resources: Value,
}

/// Whether [`proxy`] follows this annotation.
pub(super) fn follows(annotation: &str) -> bool {
    annotation == CONFIG || RESOURCES.iter().any(|(_, a, b)| [a, b].contains(&&annotation))
}

/// What the mesh says, and over it what the pod says; and what of that is not followed.
pub(super) fn proxy(pod: &Pod, settings: &Settings) -> (Proxy, Vec<String>) {
    let none = BTreeMap::new();
    let annotations = pod.metadata.annotations.as_ref().unwrap_or(&none);
    let mut warnings = Vec::new();
    let (mut requests, mut limits) = (settings.requests(), Map::new());
    let mut said = |name: &str| {
        let text = annotations.get(name)?.trim();
        if !is_quantity(text) {
            warnings.push(wrong(name, text));
            return None;
        }
        Some(text.to_owned())
    };
    for (resource, request, limit) in RESOURCES {
        let (request, limit) = (said(request), said(limit));
        // The mesh's own request may be above the pod's limit, and no API server takes that.
        if limit.is_some() {
            requests.remove(resource);
        }
        requests.extend(request.map(|text| (resource.to_owned(), text.into())));
        limits.extend(limit.map(|text| (resource.to_owned(), text.into())));
    }
    let mut resources = json!({"requests": requests});
    if !limits.is_empty() {
        resources["limits"] = limits.into();
    }
    let said = annotations.get(CONFIG).and_then(|text| concurrency(text, &mut warnings));
    (Proxy { concurrency: said.or(settings.concurrency), resources }, warnings)
}

/// The one field of a ProxyConfig that we follow.
fn concurrency(text: &str, warnings: &mut Vec<String>) -> Option<u16> {
    let Ok(fields) = serde_saphyr::from_str::<BTreeMap<String, Value>>(text) else {
        warnings.push(wrong(CONFIG, text));
        return None;
    };
    let mut found = None;
    for (field, value) in fields {
        match (field.as_str(), value) {
            ("concurrency", value) => {
                let value = value.to_string();
                found = threads(&value);
                if found.is_none() {
                    warnings.push(wrong(&format!("{CONFIG} concurrency"), &value));
                }
            }
            // Every sidecar is ready before what it serves is started.
            ("holdApplicationUntilProxyStarts", Value::Bool(true)) => {}
            _ => warnings.push(format!(
                "ISM2731 annotation {CONFIG}: {field} is not supported and has no effect. Fix: remove \
                 it; concurrency is"
            )),
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inject::settings::tests::settings;
    use crate::parse::check::object;

    #[track_caller]
    fn check(annotations: &Value, concurrency: Option<u16>, resources: &Value, warned: &[&str]) {
        let pod = json!({"metadata": {"annotations": annotations}, "spec": {"containers": []}});
        let (proxy, warnings) = proxy(&object(&pod.to_string()), &settings("concurrency: '4'"));
        assert_eq!((proxy.concurrency, &proxy.resources), (concurrency, resources));
        assert_eq!(warnings.len(), warned.len(), "{warnings:?}");
        for (warning, part) in warnings.iter().zip(warned) {
            assert!(warning.contains(part), "{warning}");
        }
    }

    #[test]
    fn the_pod_speaks_over_the_mesh() {
        let usual = json!({"requests": {"cpu": "10m", "memory": "48Mi"}});
        check(&json!({}), Some(4), &usual, &[]);
        check(
            &json!({
                "proxy.istio.io/config": "concurrency: 0\nholdApplicationUntilProxyStarts: true\n",
                "sidecar.istio.io/proxyCPU": "100m",
                "sidecar.istio.io/proxyCPULimit": "2",
                "sidecar.istio.io/proxyMemoryLimit": "1Gi",
            }),
            Some(0),
            &json!({
                "requests": {"cpu": "100m"},
                "limits": {"cpu": "2", "memory": "1Gi"},
            }),
            &[],
        );
    }

    #[test]
    fn what_is_not_followed_is_said() {
        let usual = json!({"requests": {"cpu": "10m", "memory": "48Mi"}});
        let config = |text: &str| json!({"proxy.istio.io/config": text});
        check(
            &config("- a"),
            Some(4),
            &usual,
            &["ISM2730 annotation proxy.istio.io/config: \"- a\""],
        );
        check(&config("concurrency: many"), Some(4), &usual, &["config concurrency: \"\\\"many"]);
        check(
            &config("concurrency: -1"),
            Some(4),
            &usual,
            &["config concurrency: \"-1\" is not what"],
        );
        check(
            &config("{tracing: {sampling: 10}, concurrency: 3}"),
            Some(3),
            &usual,
            &["ISM2731 annotation proxy.istio.io/config: tracing is not supported"],
        );
        check(
            &json!({"sidecar.istio.io/proxyMemory": "much", "sidecar.istio.io/proxyCPU": "1"}),
            Some(4),
            &json!({"requests": {"cpu": "1", "memory": "48Mi"}}),
            &["ISM2730 annotation sidecar.istio.io/proxyMemory: \"much\""],
        );
        check(
            &json!({"sidecar.istio.io/proxyCPU": "some", "sidecar.istio.io/proxyCPULimit": "5m"}),
            Some(4),
            &json!({"requests": {"memory": "48Mi"}, "limits": {"cpu": "5m"}}),
            &["ISM2730 annotation sidecar.istio.io/proxyCPU: \"some\""],
        );
    }
}
