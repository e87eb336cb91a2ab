//! Objects of Kubernetes, Istio, the Gateway API and the MCS API, as values of the mesh: one file
//! per kind, each object -> (value, findings). A bad object costs itself only.

use mesh::finding::Finding;

/// What an object says, and what was wrong with it. `value` is `None` where it is refused whole, or
/// none of our business.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parsed<T> {
    pub value: Option<T>,
    pub findings: Vec<Finding>,
}
