//! One whole look at a cluster, as its control plane sees it.

use crate::bad_call::bad_call;
use anyhow::{Context as _, Result};
use clap::Args;
use cluster::operator::Operator;
use cluster::watch;
use futures::future::join_all;
use mesh::inventory::Inventory;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Longest wait for it.
const LOOK_MAX: Duration = Duration::from_secs(30);

/// The cluster's inventory now.
pub(crate) async fn look(operator: &Operator, root_namespace: &str) -> Result<Arc<Inventory>> {
    let end = CancellationToken::new();
    let _ending = end.clone().drop_guard();
    let options = watch::Options { root_namespace: root_namespace.to_owned() };
    let mut watched = watch::own(operator.client.clone(), options, end);
    let seen = tokio::time::timeout(LOOK_MAX, watched.inventory.wait_for(Option::is_some));
    seen.await
        .with_context(|| {
            let context = &operator.context;
            format!("ISM2031 {context} did not show itself whole within {LOOK_MAX:?}")
        })?
        .context("ISM2031 the watch ended")?
        .clone()
        .context("ISM2031 the cluster has not been seen")
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
            Err(problem) => eprintln!("peer {} is left out: {problem:#}", peer.context),
        }
    }
    seen
}
