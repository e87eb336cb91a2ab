//! One whole look at a cluster, as its control plane sees it.

use crate::bad_call::bad_call;
use anyhow::{Result, anyhow};
use clap::Args;
use cluster::operator::Operator;
use cluster::plain::plain;
use cluster::watch::{self, WatchHealth};
use futures::future::join_all;
use mesh::inventory::Inventory;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Longest wait for it.
const LOOK_MAX: Duration = Duration::from_secs(30);
/// Longest sentence of what is missing, characters.
const SAID_MAX: usize = 320;

/// The cluster's inventory now.
pub(crate) async fn look(operator: &Operator, root_namespace: &str) -> Result<Arc<Inventory>> {
    let end = CancellationToken::new();
    let _ending = end.clone().drop_guard();
    let options = watch::Options { root_namespace: root_namespace.to_owned() };
    let mut watched = watch::own(operator.client.clone(), options, end);
    let mut health = watched.health.clone();
    let seen = tokio::select! {
        biased;
        seen = watched.inventory.wait_for(Option::is_some) => seen.ok().and_then(|it| it.clone()),
        _ = health.wait_for(WatchHealth::hopeless) => None,
        () = tokio::time::sleep(LOOK_MAX) => None,
    };
    seen.ok_or_else(|| anyhow!(unseen(&operator.context, &watched.health.borrow())))
}

/// What could not be read of a cluster, why, and what to do.
fn unseen(context: &str, health: &WatchHealth) -> String {
    let what = match health.waiting.as_slice() {
        [] => "nothing was heard of it".to_owned(),
        [first, rest @ ..] => {
            let first = plain(first, SAID_MAX);
            let more = u32::try_from(rest.len()).unwrap_or(u32::MAX);
            if more == 0 { first } else { format!("{first}; and {more} more like it") }
        }
    };
    let denied = health.kinds.values().any(|kind| kind.denied);
    let read = health.kinds.values().all(|kind| kind.synced);
    let fix = if denied {
        "ask for the right to read all that a control plane reads, or name a context that has it"
            .to_owned()
    } else if read && !health.waiting.is_empty() {
        "name the namespace that Isthmus is installed in by --root-namespace, or install it there"
            .to_owned()
    } else {
        format!("check that `kubectl --context {context} get ns` works")
    };
    format!("ISM2031 {context} does not show itself whole: {what}. Fix: {fix}")
}

/// Clusters at the other end of links, where the operator may read them too.
#[derive(Debug, Args)]
pub(crate) struct Peers {
    /// Context of a linked cluster to look at as well; may be given several times.
    #[arg(long = "peer", value_name = "CONTEXT")]
    contexts: Vec<String>,
}

impl Peers {
    /// Where they are, before any of them is asked.
    ///
    /// # Errors
    /// Where a context is not there, or the only cluster that is asked about is its own peer.
    pub(crate) async fn load(
        &self,
        kubeconfig: Option<&Path>,
        own: &[Operator],
    ) -> Result<Vec<Operator>> {
        let mut peers = vec![];
        for context in &self.contexts {
            let peer = Operator::load(kubeconfig, Some(context)).await?;
            if let [own] = own
                && same(own, &peer)
            {
                return Err(bad_call(format!(
                    "ISM2033 --peer names {context:?}, which is the cluster itself. Fix: name a context \
                     of a linked cluster, or leave it out"
                )));
            }
            peers.push(peer);
        }
        Ok(peers)
    }
}

/// Two contexts that lead to one API server.
fn same(a: &Operator, b: &Operator) -> bool {
    a.context == b.context || (a.server == b.server && a.trust.server_name == b.trust.server_name)
}

/// All that show themselves, at the same time; of the others it is said why they do not.
pub(crate) async fn all(peers: &[Operator], root_namespace: &str) -> Vec<Arc<Inventory>> {
    let looks = peers.iter().map(async |peer| look(peer, root_namespace).await);
    let mut seen = Vec::new();
    for (peer, found) in peers.iter().zip(join_all(looks).await) {
        match found {
            Ok(found) => seen.push(found),
            Err(problem) => note!("peer {} is left out: {problem:#}", peer.context),
        }
    }
    seen
}

#[cfg(test)]
mod tests {
    use super::*;
    use cluster::heard::KindHealth;

    #[test]
    fn what_is_not_seen_is_named_with_its_fix() {
        let kind = |synced, denied| KindHealth { synced, denied, ..KindHealth::default() };
        let health = |pod, waiting: &[&str]| WatchHealth {
            kinds: [("Pod", pod)].into(),
            waiting: waiting.iter().map(|it| (*it).to_owned()).collect(),
        };
        let forbidden = "Pod cannot be listed: pods is forbidden";
        let cases = [
            (health(kind(false, true), &[forbidden, "b"]), "forbidden; and 1 more", "the right"),
            (
                health(kind(true, false), &["ConfigMap a/b does not exist"]),
                "a/b",
                "--root-namespace",
            ),
            (health(kind(false, false), &["Pod has not been listed yet"]), "yet.", "kubectl"),
            (health(kind(false, false), &[]), "nothing was heard", "kubectl"),
        ];
        for (health, what, fix) in cases {
            let said = unseen("west", &health);
            let (sentence, advice) = said.split_once(" Fix: ").unwrap();
            assert!(sentence.starts_with("ISM2031 west ") && sentence.contains(what), "{said}");
            assert!(advice.contains(fix), "{said}");
        }
    }
}
