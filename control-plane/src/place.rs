//! Who a proxy is: its certificate proves the account, and what its node id says beyond that is
//! held against a live pod of that account (decision 16).

use mesh::inventory::{Inventory, WorkloadName};
use mesh::name::Identity;
use mesh::world::{Role, View};
use xds::node::Node;

/// What an east-west gateway's pods carry (Istio's label).
const GATEWAY_LABEL: (&str, &str) = ("istio", "eastwestgateway");
/// Where gateways run beside the root namespace: Istio's own. Whoever may start a pod elsewhere may
/// label it as well, and a gateway is told of every exported service.
const ISTIO_NAMESPACE: &str = "istio-system";

/// The view of this client, or a sentence why it gets none.
pub(crate) fn place(
    own: &Inventory,
    root_namespace: &str,
    peer: &Identity,
    node: &Node,
) -> Result<View, String> {
    let mesh = &own.mesh;
    if peer.domain != mesh.trust_domain {
        return Err(format!(
            "ISM4001 {peer} is of another trust domain than this cluster's, {}. \
             Fix: connect to the control plane of the proxy's own cluster",
            mesh.trust_domain
        ));
    }
    if !node.cluster.is_empty() && node.cluster != mesh.cluster.as_str() {
        return Err(format!(
            "ISM4002 the proxy says it is in cluster {:?}, this is the control plane of {}. \
             Fix: correct the proxy's cluster or controlPlane",
            short(&node.cluster),
            mesh.cluster
        ));
    }
    if node.namespace != peer.namespace {
        return Err(format!(
            "ISM4003 the proxy says it is in namespace {:?}, its certificate says {}. \
             Fix: correct the proxy's namespace",
            short(&node.namespace),
            peer.namespace
        ));
    }
    let name = WorkloadName { namespace: node.namespace.clone(), name: node.pod.clone() };
    let Some(workload) = own.workloads.get(&name) else {
        return Err(format!(
            "ISM4004 there is no running Pod {:?} in namespace {} here. \
             Fix: if it has just started, it is found at the next attempt; else correct the proxy's pod",
            short(&node.pod),
            node.namespace
        ));
    };
    if workload.account != peer.account {
        return Err(format!(
            "ISM4005 Pod {}/{} runs as service account {:?}, the certificate is of {:?}. \
             Fix: ask for a certificate with the pod's own token",
            node.namespace, node.pod, workload.account, peer.account
        ));
    }
    let (label, value) = GATEWAY_LABEL;
    let labelled = workload.labels.get(label).is_some_and(|found| found == value);
    match node.role {
        Role::Gateway if !labelled => {
            return Err(format!(
                "ISM4006 Pod {}/{} asks to be a gateway and has not the label {label}={value}. \
                 Fix: label the gateway's pods, or run it as a sidecar",
                node.namespace, node.pod
            ));
        }
        Role::Gateway if ![root_namespace, ISTIO_NAMESPACE].contains(&node.namespace.as_str()) => {
            return Err(format!(
                "ISM4008 Pod {}/{} asks to be a gateway, and gateways run in {root_namespace} or \
                 {ISTIO_NAMESPACE} only. Fix: run the gateway there, or this pod as a sidecar",
                node.namespace, node.pod
            ));
        }
        Role::Gateway | Role::Sidecar | Role::Agent => {}
    }
    Ok(View {
        role: node.role,
        dialect: node.dialect,
        cluster: mesh.cluster.clone(),
        network: mesh.network.clone(),
        // What the node's labels say, not what the proxy believes of itself.
        locality: workload.locality.clone(),
        namespace: peer.namespace.clone(),
        identity: peer.clone(),
        workload: node.pod.clone(),
    })
}

/// As much of a stranger's text as goes into a log.
fn short(text: &str) -> String {
    text.chars().take(128).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use mesh::inventory::{MeshConfig, Workload};
    use mesh::name::Locality;
    use mesh::world::Dialect;
    use std::collections::BTreeSet;

    pub(crate) const ROOT: &str = "isthmus-system";

    fn workload(namespace: &str, name: &str, account: &str, labels: &[(&str, &str)]) -> Workload {
        Workload {
            name: WorkloadName { namespace: namespace.into(), name: name.into() },
            addresses: vec!["10.244.0.7".parse().unwrap()],
            account: account.into(),
            labels: labels.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect(),
            node: "n1".into(),
            locality: Locality::from("r1/z1".to_owned()),
            meshed: true,
        }
    }

    /// Cluster east with a workload in namespace shop, a gateway in each namespace that may have
    /// one, and one that may not be one.
    pub(crate) fn inventory() -> Inventory {
        let gateway = |namespace| workload(namespace, "gate-0", "gate", &[GATEWAY_LABEL]);
        let pods = [
            workload("shop", "hello-0", "hello", &[]),
            gateway("shop"),
            gateway(ROOT),
            gateway(ISTIO_NAMESPACE),
        ];
        let mesh = MeshConfig::new(
            "east".parse().unwrap(),
            "net-east".parse().unwrap(),
            "east.mesh".parse().unwrap(),
        );
        Inventory {
            uid: "u".into(),
            namespaces: BTreeSet::from(["shop".to_owned()]),
            workloads: pods.into_iter().map(|pod| (pod.name.clone(), pod)).collect(),
            ..Inventory::empty(mesh)
        }
    }

    pub(crate) fn node(pod: &str, role: Role) -> Node {
        Node {
            role,
            address: "10.244.0.7".parse().unwrap(),
            pod: pod.into(),
            namespace: "shop".into(),
            cluster: "east".into(),
            network: String::new(),
            account: "admin".into(),
            locality: Locality::from("elsewhere".to_owned()),
            dialect: Dialect::Isthmus,
        }
    }

    fn identity(text: &str) -> Identity {
        text.parse().unwrap()
    }

    #[test]
    fn a_proxy_is_its_pod() {
        let hello = identity("spiffe://east.mesh/ns/shop/sa/hello");
        let view = place(&inventory(), ROOT, &hello, &node("hello-0", Role::Sidecar)).unwrap();
        assert_eq!(view.identity, hello);
        assert_eq!((view.namespace.as_str(), view.workload.as_str()), ("shop", "hello-0"));
        assert_eq!(view.locality, Locality::from("r1/z1".to_owned()), "its node's, not its claim");
        for namespace in [ROOT, ISTIO_NAMESPACE] {
            let gate = identity(&format!("spiffe://east.mesh/ns/{namespace}/sa/gate"));
            let node = Node { namespace: namespace.into(), ..node("gate-0", Role::Gateway) };
            assert_eq!(place(&inventory(), ROOT, &gate, &node).unwrap().role, Role::Gateway);
        }
    }

    #[test]
    fn a_claim_beyond_the_certificate_is_refused() {
        let hello = "spiffe://east.mesh/ns/shop/sa/hello";
        let refused =
            |peer: &str, node: Node| place(&inventory(), ROOT, &identity(peer), &node).unwrap_err();
        let sidecar = |pod: &str| node(pod, Role::Sidecar);
        for (peer, node, code) in [
            ("spiffe://west.mesh/ns/shop/sa/hello", sidecar("hello-0"), "ISM4001"),
            (hello, Node { cluster: "west".into(), ..sidecar("hello-0") }, "ISM4002"),
            (hello, Node { namespace: "bank".into(), ..sidecar("hello-0") }, "ISM4003"),
            ("spiffe://east.mesh/ns/bank/sa/hello", sidecar("hello-0"), "ISM4003"),
            (hello, sidecar("hello-9"), "ISM4004"),
            (hello, sidecar("gate-0"), "ISM4005"),
            (hello, node("hello-0", Role::Gateway), "ISM4006"),
            ("spiffe://east.mesh/ns/shop/sa/gate", node("gate-0", Role::Gateway), "ISM4008"),
        ] {
            let why = refused(peer, node);
            assert!(why.starts_with(code) && why.contains("Fix: "), "{code}: {why}");
        }
    }
}
