//! The way of a change from one API server to another without us: the same watches and writes, and nothing
//! between them. What it takes is the machine's time; what we take longer is ours.

use super::Cluster;
use futures::StreamExt as _;
use kube::api::{Api, DynamicObject, Patch, PatchParams};
use kube::runtime::watcher::watch_object;
use serde_json::json;
use tokio::task::JoinSet;

/// Name of the ConfigMaps that stand for what our controllers write.
const BARE: &str = "bare";

/// Two hops, as a change of hello's endpoints makes them: into the cluster that exports it, and from there
/// into the one that imports it. Ends when dropped.
pub(crate) struct Bare {
    arrival: Api<DynamicObject>,
    _hops: JoinSet<()>,
}

impl Bare {
    pub(crate) fn between(from: &Cluster, to: &Cluster) -> Self {
        let slices = from.api("discovery.k8s.io/v1", "EndpointSlice", "shop");
        let exported = from.api("v1", "ConfigMap", "shop");
        let arrival = to.api("v1", "ConfigMap", "shop");
        let mut hops = JoinSet::new();
        hops.spawn(hop(slices, "hello-1", exported.clone(), |slice| {
            slice.data["endpoints"].as_array().map_or(0, Vec::len).to_string()
        }));
        hops.spawn(hop(exported, BARE, arrival.clone(), |map| {
            map.data["data"]["ready"].as_str().unwrap_or_default().to_owned()
        }));
        Self { arrival, _hops: hops }
    }

    /// How many ready endpoints the other cluster has heard of.
    pub(crate) async fn arrived(&self) -> Option<u64> {
        let map = self.arrival.get_opt(BARE).await.ok().flatten()?;
        map.data["data"]["ready"].as_str()?.parse().ok()
    }
}

/// Writes what `read` finds in the object of that name, as often as it changes.
async fn hop(
    from: Api<DynamicObject>,
    name: &str,
    to: Api<DynamicObject>,
    read: fn(&DynamicObject) -> String,
) {
    let mut changes = std::pin::pin!(watch_object(from, name));
    while let Some(change) = changes.next().await {
        // A watch that failed begins anew.
        let Ok(Some(object)) = change else { continue };
        let map = json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": BARE},
            "data": {"ready": read(&object)},
        });
        let params = PatchParams::apply(BARE).force();
        to.patch(BARE, &params, &Patch::Apply(&map)).await.unwrap();
    }
}
