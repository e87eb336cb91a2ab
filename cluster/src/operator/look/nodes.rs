//! Clocks of nodes, as their kubelets write them into Leases.

use super::Operator;
use super::clock::Clock;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Node;
use kube::api::Api;
use std::collections::BTreeMap;

/// Where kubelets renew their Leases, each every 10 s by its own clock.
const NAMESPACE: &str = "kube-node-lease";
/// Most nodes that one look reads: Kubernetes is made for no more.
pub const NODES_MAX: usize = 5_000;

/// The clocks of one cluster's nodes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Clocks {
    pub all: Vec<NodeClock>,
    /// There are more than [`NODES_MAX`] nodes, and the rest was not read.
    pub cut: bool,
}

/// A node that its cluster takes to be alive, and what its clock said last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeClock {
    pub node: String,
    /// Seconds since its Lease was renewed: the renewal by the node's clock, now by the API server's.
    pub age: i64,
}

impl Operator {
    /// Nodes that are Ready and have a Lease.
    pub(super) async fn node_clocks(&self, clock: Clock) -> anyhow::Result<Clocks> {
        let nodes = Api::<Node>::all(self.client.clone());
        let leases = Api::<Lease>::namespaced(self.client.clone(), NAMESPACE);
        let (mut ready, mut ages) = (Vec::new(), BTreeMap::new());
        let (cut, more) = tokio::try_join!(
            self.listed("nodes", &nodes, NODES_MAX, |node: Node| ready.extend(alive(node))),
            self.listed("the Leases of nodes", &leases, NODES_MAX, |lease: Lease| {
                ages.extend(age(lease, clock.now()));
            }),
        )?;
        let of = |node: String| Some(NodeClock { age: *ages.get(&node)?, node });
        Ok(Clocks { all: ready.into_iter().filter_map(of).collect(), cut: cut || more })
    }
}

/// A node's name while it is Ready. That, others judge by their own clock when its Lease changes: one
/// that is not may be dead, and its Lease is old for that.
fn alive(node: Node) -> Option<String> {
    let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let ready = conditions.into_iter().any(|it| it.type_ == "Ready" && it.status == "True");
    node.metadata.name.filter(|_| ready)
}

/// A node, and seconds since it renewed its Lease.
fn age(lease: Lease, now: i64) -> Option<(String, i64)> {
    Some((lease.metadata.name?, now - lease.spec?.renew_time?.0.as_second()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operator::look::served::{list, served};
    use serde_json::{Value, json};
    use std::time::{Duration, Instant};

    fn node(name: &str, ready: &str) -> Value {
        let status = json!({"conditions": [{"type": "Ready", "status": ready}]});
        json!({"metadata": {"name": name}, "status": status})
    }

    fn lease(name: &str) -> Value {
        json!({"metadata": {"name": name}, "spec": {"renewTime": "2026-01-01T00:00:00.000000Z"}})
    }

    /// 300 s behind that renewal.
    fn clock() -> Clock {
        Clock { at: 1_767_225_900, read: Instant::now() }
    }

    #[tokio::test]
    async fn a_dead_node_is_not_taken_for_a_late_one() {
        let operator = served(|path| match path {
            "/api/v1/nodes" => {
                Some(list([node("a", "True"), node("b", "Unknown"), node("c", "True")], ""))
            }
            _ => Some(list([lease("a"), lease("b")], "")),
        });
        let found = operator.node_clocks(clock()).await.unwrap();
        let expected = vec![NodeClock { node: "a".into(), age: 300 }];
        assert_eq!(found, Clocks { all: expected, cut: false });
    }

    #[tokio::test]
    async fn an_answer_that_came_late_makes_no_clock_look_ahead() {
        let operator = served(|path| {
            Some(if path == "/api/v1/nodes" {
                list([node("a", "True")], "")
            } else {
                list([lease("a")], "")
            })
        });
        // The renewal is 42 s behind the beginning of the look, and just now.
        let begun = Instant::now().checked_sub(Duration::from_secs(42)).unwrap();
        let clock = Clock { at: clock().at - 342, read: begun };
        let found = operator.node_clocks(clock).await.unwrap();
        assert!((0..=5).contains(&found.all[0].age), "{found:?}");
    }

    #[tokio::test]
    async fn nodes_are_read_by_pages_up_to_a_limit() {
        let some = |of: fn(usize) -> Value, path: &str| {
            let page: usize = path.split("continue=").nth(1).map_or(0, |it| it.parse().unwrap());
            list((0..250).map(|place| of(page * 250 + place)), &(page + 1).to_string())
        };
        let operator = served(move |path| {
            Some(if path.starts_with("/api/v1/nodes") {
                some(|place| node(&format!("n{place}"), "True"), path)
            } else {
                some(|place| lease(&format!("n{place}")), path)
            })
        });
        let found = operator.node_clocks(clock()).await.unwrap();
        assert!(found.cut && found.all.len() == NODES_MAX, "{}", found.all.len());
    }
}
