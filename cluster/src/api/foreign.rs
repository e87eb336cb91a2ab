//! CustomResourceDefinitions of others: kinds that users write and we read, as their makers publish
//! them.

/// YAML of each: Istio's, the Gateway API's and the MCS API's. They are made where they are absent, and
/// never replaced.
pub const DEFINITIONS: [&str; 8] = [
    include_str!("../../../deploy/foreign-crds/destinationrules.networking.istio.io.yaml"),
    include_str!("../../../deploy/foreign-crds/serviceentries.networking.istio.io.yaml"),
    include_str!("../../../deploy/foreign-crds/gateways.networking.istio.io.yaml"),
    include_str!("../../../deploy/foreign-crds/peerauthentications.security.istio.io.yaml"),
    include_str!("../../../deploy/foreign-crds/authorizationpolicies.security.istio.io.yaml"),
    include_str!("../../../deploy/foreign-crds/gateways.gateway.networking.k8s.io.yaml"),
    include_str!("../../../deploy/foreign-crds/serviceexports.multicluster.x-k8s.io.yaml"),
    include_str!("../../../deploy/foreign-crds/serviceimports.multicluster.x-k8s.io.yaml"),
];
