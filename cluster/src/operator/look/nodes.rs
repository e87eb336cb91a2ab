//! Clocks of nodes, as their kubelets write them into Leases.

use super::{Operator, absent};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, ListParams};
use std::collections::BTreeMap;

/// Where kubelets renew their Leases, each every 10 s by its own clock.
const NAMESPACE: &str = "kube-node-lease";
/// Most nodes that one look reads.
const NODES_MAX: u32 = 1_000;

/// A node that its cluster takes to be alive, and what its clock said last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeClock {
    pub node: String,
    /// Seconds since its Lease was renewed: the renewal by the node's clock, now by the API server's.
    pub age: i64,
}

impl Operator {
    /// Nodes that are Ready and have a Lease; `now` is the API server's, seconds since the epoch.
    pub(super) async fn node_clocks(&self, now: i64) -> anyhow::Result<Vec<NodeClock>> {
        let params = ListParams::default().limit(NODES_MAX);
        let nodes = Api::<Node>::all(self.client.clone());
        let leases = Api::<Lease>::namespaced(self.client.clone(), NAMESPACE);
        let (nodes, leases) = tokio::join!(nodes.list(&params), leases.list(&params));
        let nodes = self.asked("listing nodes", absent(nodes))?;
        let leases = self.asked("listing the Leases of nodes", absent(leases))?;
        let nodes = nodes.map_or_else(Vec::new, |list| list.items);
        Ok(clocks(nodes, leases.map_or_else(Vec::new, |list| list.items), now))
    }
}

fn clocks(nodes: Vec<Node>, leases: Vec<Lease>, now: i64) -> Vec<NodeClock> {
    let renewed =
        |lease: Lease| Some((lease.metadata.name?, lease.spec?.renew_time?.0.as_second()));
    let renewed: BTreeMap<String, i64> = leases.into_iter().filter_map(renewed).collect();
    // Whether it is Ready, others judge by their own clock when its Lease changes: one that is not may
    // be dead, and its Lease is old for that.
    let ready = |node: &Node| {
        let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
        conditions.into_iter().any(|it| it.type_ == "Ready" && it.status == "True")
    };
    let clock = |node: Node| {
        let node = node.metadata.name?;
        let age = now - renewed.get(&node)?;
        Some(NodeClock { node, age })
    };
    nodes.into_iter().filter(ready).filter_map(clock).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parse::check::object;

    #[test]
    fn a_dead_node_is_not_taken_for_a_late_one() {
        let node = |name: &str, ready: &str| {
            object(&format!(
                "{{metadata: {{name: {name}}}, status: {{conditions: [{{type: Ready, status: '{ready}'}}]}}}}"
            ))
        };
        let lease = |name: &str| {
            object(&format!(
                "{{metadata: {{name: {name}}}, spec: {{renewTime: '2026-01-01T00:00:00.000000Z'}}}}"
            ))
        };
        let nodes = vec![node("a", "True"), node("b", "Unknown"), node("c", "True")];
        let found = clocks(nodes, vec![lease("a"), lease("b")], 1_767_225_900);
        assert_eq!(found, [NodeClock { node: "a".into(), age: 300 }]);
    }
}
