//! `ClusterLink`: another cluster that this one is linked with, what it may announce, how it is.

#![allow(clippy::duplicated_attributes, reason = "kube repeats keys in each printcolumn")]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::CustomResource;
use mesh::export::{self, ImportPolicy};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A link to another cluster, named by that cluster's id. Made by the federation controller when a
/// remote secret appears; nothing is imported until a person accepts it.
#[derive(
    CustomResource, Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema,
)]
#[kube(
    group = "isthmus.dev",
    version = "v1alpha1",
    kind = "ClusterLink",
    namespaced,
    derive = "PartialEq",
    status = "ClusterLinkStatus",
    shortname = "clink",
    category = "isthmus",
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status"
    ),
    printcolumn(
        name = "API",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Reachable\")].status"
    ),
    printcolumn(
        name = "Trust",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"TrustEstablished\")].status"
    ),
    printcolumn(
        name = "Gateways",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"GatewaysReachable\")].status"
    ),
    printcolumn(name = "Services", type_ = "integer", json_path = ".status.services"),
    printcolumn(name = "Endpoints", type_ = "integer", json_path = ".status.endpoints"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct ClusterLinkSpec {
    /// Consent: until true, nothing of that cluster is imported.
    #[serde(default)]
    pub accepted: bool,
    /// What it may announce here.
    #[serde(default)]
    pub import: Import,
    /// The remote secret (Istio's shape) this link came from.
    #[serde(default)]
    pub secret: SecretRef,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Import {
    /// Namespaces it may announce services of; `*` for all; empty for none.
    #[serde(default)]
    #[schemars(length(max = 1024), inner(length(min = 1, max = 63)))]
    pub namespaces: Vec<String>,
    /// CIDRs its gateways must lie in; empty for any address that is not loopback, link-local,
    /// multicast, unspecified or within this cluster's VIP range.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 64)))]
    pub gateway_ranges: Vec<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecretRef {
    #[serde(default)]
    #[schemars(length(max = 63))]
    pub namespace: String,
    #[serde(default)]
    #[schemars(length(max = 253))]
    pub name: String,
}

/// What the controller knows of the link.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ClusterLinkStatus {
    /// The id that cluster gives itself (ConfigMap `isthmus-mesh`).
    #[schemars(length(max = 63))]
    pub cluster: String,
    /// UID of its Namespace `kube-system`.
    #[schemars(length(max = 64))]
    pub uid: String,
    /// Its API server, without credentials.
    #[schemars(length(max = 1024))]
    pub server: String,
    #[schemars(length(max = 63))]
    pub network: String,
    #[schemars(length(max = 255))]
    pub trust_domain: String,
    /// `address:port` of its east-west gateways.
    #[schemars(length(max = 64), inner(length(max = 300)))]
    pub gateways: Vec<String>,
    /// How many credentials this link has had.
    pub generation: u64,
    /// Start of the SHA-256 of the kubeconfig in use: tells whether a replacement took over.
    #[schemars(length(max = 64))]
    pub credential: String,
    /// Services imported.
    pub services: u32,
    /// Ready endpoints behind them.
    pub endpoints: u32,
    /// All that the cluster exports is known and published here as of now, or certain to count for
    /// nothing. Where this is false for an accepted link, DNS says of absent `.global` and
    /// `clusterset.local` names "not known" (SERVFAIL) instead of "does not exist" (NXDOMAIN). It
    /// turns false when the link goes silent, too: whoever is not heard may have exported since.
    pub complete: bool,
    /// When its API server last answered.
    #[schemars(with = "Option<String>", extend("format" = "date-time"))]
    pub last_heard: Option<Time>,
    #[schemars(length(max = 16))]
    pub conditions: Vec<Condition>,
}

/// What is said of a link, in the order in which one rests on the other: the first that does not hold
/// explains the rest.
pub const CONDITIONS: [&str; 7] = [
    "Accepted",
    "Reachable",
    "TrustEstablished",
    "Synced",
    "Ready",
    "GatewaysReachable",
    "CredentialRenewed",
];

/// One statement on the link; `lastTransitionTime` moves only when `status` does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// Accepted, Reachable, TrustEstablished, Synced, Ready, GatewaysReachable or CredentialRenewed.
    #[serde(rename = "type")]
    #[schemars(length(max = 64))]
    pub kind: String,
    /// True, False or Unknown.
    #[schemars(length(max = 16))]
    pub status: String,
    /// One CamelCase word.
    #[schemars(length(max = 128))]
    pub reason: String,
    /// A sentence for people, with the fix.
    #[schemars(length(max = 4096))]
    pub message: String,
    #[schemars(with = "String", extend("format" = "date-time"))]
    pub last_transition_time: Time,
    /// The link's `metadata.generation` it was said of; a newer spec has not been judged yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
}

impl ClusterLinkStatus {
    pub fn condition(&self, kind: &str) -> Option<&Condition> {
        self.conditions.iter().find(|condition| condition.kind == kind)
    }
}

impl Import {
    /// The policy as the mesh reads it. A range that is no CIDR, or a namespace that cannot be, is
    /// named.
    pub fn policy(&self) -> Result<ImportPolicy, String> {
        let mut gateway_ranges = Vec::new();
        for (index, text) in self.gateway_ranges.iter().enumerate() {
            let range = export::range(text);
            gateway_ranges
                .push(range.map_err(|why| format!("spec.import.gatewayRanges[{index}] {why}"))?);
        }
        for (index, name) in self.namespaces.iter().enumerate() {
            export::importable(name)
                .map_err(|why| format!("spec.import.namespaces[{index}] {why}"))?;
        }
        Ok(ImportPolicy { gateway_ranges, ..self.readable() })
    }

    /// What of it can be read, for what is here already: its namespaces.
    pub fn readable(&self) -> ImportPolicy {
        let readable = self.namespaces.iter().filter(|name| export::importable(name).is_ok());
        ImportPolicy { namespaces: readable.cloned().collect(), gateway_ranges: Vec::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_without_a_spec_consents_to_nothing() {
        let link: ClusterLink = serde_json::from_value(serde_json::json!({
            "apiVersion": "isthmus.dev/v1alpha1", "kind": "ClusterLink",
            "metadata": {"name": "west"}, "spec": {}
        }))
        .unwrap();
        assert!(!link.spec.accepted);
        assert!(link.spec.import.policy().unwrap().namespaces.is_empty());
    }

    #[test]
    fn a_range_that_is_none_is_named() {
        let import =
            Import { namespaces: vec![], gateway_ranges: vec!["10.0.0.0/8".into(), "west".into()] };
        let error = import.policy().unwrap_err();
        assert!(error.contains("gatewayRanges[1]") && error.contains("west"), "{error}");
    }

    #[test]
    fn a_namespace_that_cannot_be_is_named_and_the_others_are_kept() {
        let import =
            Import { namespaces: vec!["shop".into(), "Shop!".into()], gateway_ranges: vec![] };
        let error = import.policy().unwrap_err();
        assert!(error.contains("namespaces[1]") && error.contains("\"Shop!\""), "{error}");
        assert_eq!(import.readable().namespaces, ["shop".to_owned()].into());
        let all = Import { namespaces: vec!["*".into()], gateway_ranges: vec![] };
        assert_eq!(all.policy().unwrap(), all.readable());
    }
}
