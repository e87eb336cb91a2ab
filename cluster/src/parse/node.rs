//! Nodes: only where they stand.

use k8s_openapi::api::core::v1::Node;
use mesh::name::Locality;

/// A node's name and locality, from its well-known topology labels.
pub fn parse(node: &Node) -> Option<(String, Locality)> {
    let meta = &node.metadata;
    let label = |key: &str| {
        meta.labels.as_ref().and_then(|labels| labels.get(key)).cloned().unwrap_or_default()
    };
    let locality = Locality {
        region: label("topology.kubernetes.io/region"),
        zone: label("topology.kubernetes.io/zone"),
        subzone: label("topology.istio.io/subzone"),
    };
    Some((meta.name.clone()?, locality))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parse::check::object;

    #[track_caller]
    fn check(labels: &str, expected: &str) {
        let node = object(&format!("metadata: {{name: n1, labels: {{{labels}}}}}"));
        let (name, locality) = parse(&node).unwrap();
        assert_eq!((name.as_str(), locality.to_string().as_str()), ("n1", expected));
    }

    #[test]
    fn locality_comes_from_labels() {
        check(
            "topology.kubernetes.io/region: r1, topology.kubernetes.io/zone: r1a, \
             topology.istio.io/subzone: rack7",
            "r1/r1a/rack7",
        );
        check("topology.kubernetes.io/region: r1", "r1");
        check("", "");
    }
}
