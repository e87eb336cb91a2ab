//! Pods of the own cluster: who they are, where they run, whether they speak mesh mTLS.

use super::labels;
use crate::api::label;
use k8s_openapi::api::core::v1::Pod;
use mesh::inventory::{Workload, WorkloadName};
use mesh::name::Locality;
use serde::Serialize;

/// A pod as its own object tells it; its locality may still be its node's to tell.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PodFacts {
    /// With the locality of the pod's own label, else none.
    pub workload: Workload,
    pub uid: String,
}

/// Name of our sidecar's container, as injection writes it.
pub const SIDECAR_CONTAINER: &str = "isthmus-proxy";

/// A pod that lives or is yet to live; `None` once it has ended, since its address may be another's.
pub fn parse(pod: &Pod) -> Option<PodFacts> {
    let (meta, spec) = (&pod.metadata, pod.spec.as_ref()?);
    let status = pod.status.clone().unwrap_or_default();
    if matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")) {
        return None;
    }
    let labels = labels(meta);
    let listed = status.pod_ips.unwrap_or_default().into_iter().map(|address| address.ip);
    let mut addresses = Vec::new();
    for text in status.pod_ip.into_iter().chain(listed) {
        if let Ok(address) = text.parse()
            && !addresses.contains(&address)
        {
            addresses.push(address);
        }
    }
    let has_sidecar = || {
        let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
        containers.into_iter().any(|container| container.name == SIDECAR_CONTAINER)
    };
    let meshed = labels.get(label::TLS_MODE).is_some_and(|mode| mode == "istio") || has_sidecar();
    // A label's value has no '/', so Istio writes region.zone.subzone.
    let own_place = labels.get("istio-locality").map(|text| text.replace('.', "/"));
    let workload = Workload {
        name: WorkloadName { namespace: meta.namespace.clone()?, name: meta.name.clone()? },
        addresses,
        account: spec.service_account_name.clone().unwrap_or_else(|| "default".into()),
        labels,
        node: spec.node_name.clone().unwrap_or_default(),
        locality: own_place.map(Locality::from).unwrap_or_default(),
        meshed,
    };
    Some(PodFacts { workload, uid: meta.uid.clone().unwrap_or_default() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parse::check::object;
    use expect_test::{Expect, expect};

    #[track_caller]
    fn check(yaml: &str, expected: Expect) {
        let facts = parse(&object(yaml));
        expected.assert_eq(
            &facts.map_or_else(
                || "nothing\n".into(),
                |facts| serde_saphyr::to_string(&facts).unwrap(),
            ),
        );
    }

    #[test]
    fn a_dual_stack_pod_in_the_mesh() {
        check(
            "{metadata: {namespace: shop, name: hello-1, uid: u1, labels: {app: hello, \
             security.istio.io/tlsMode: istio, istio-locality: r1.r1a}}, spec: {nodeName: n1, \
             serviceAccountName: hello, containers: [{name: app}]}, status: {phase: Running, \
             podIP: 10.244.1.5, podIPs: [{ip: 10.244.1.5}, {ip: 'fd00::5'}]}}",
            expect![[r#"
                workload:
                  name: shop/hello-1
                  addresses:
                  - "10.244.1.5"
                  - fd00::5
                  account: hello
                  labels:
                    app: hello
                    istio-locality: r1.r1a
                    security.istio.io/tlsMode: istio
                  node: n1
                  locality: r1/r1a
                  meshed: true
                uid: u1
            "#]],
        );
    }

    #[test]
    fn a_pod_without_label_is_meshed_by_its_sidecar_container() {
        let pod = |container: &str| {
            parse(&object(&format!(
                "{{metadata: {{namespace: a, name: b}}, spec: {{initContainers: [{{name: \
                 {container}}}], containers: [{{name: app}}]}}}}"
            )))
            .unwrap()
            .workload
        };
        assert!(pod(SIDECAR_CONTAINER).meshed);
        assert!(!pod("istio-proxy-like").meshed);
        assert_eq!(pod("x").account, "default");
        assert!(pod("x").addresses.is_empty());
    }

    #[test]
    fn a_finished_pod_is_nobody() {
        check(
            "{metadata: {namespace: a, name: b}, spec: {containers: []}, status: {phase: Failed, \
             podIP: 10.0.0.1}}",
            expect![[r#"
                nothing
            "#]],
        );
    }
}
