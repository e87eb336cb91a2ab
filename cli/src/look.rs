//! One whole look at a cluster, as its control plane sees it.

use anyhow::{Context as _, Result};
use cluster::operator::Operator;
use cluster::watch;
use mesh::inventory::Inventory;
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
