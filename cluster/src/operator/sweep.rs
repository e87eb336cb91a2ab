//! Finding what is ours in a cluster, and whether it is gone.

use super::Operator;
use anyhow::{Context as _, Result};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, DeleteParams, DynamicObject, ListParams};
use kube::core::{ApiResource, GroupVersionKind};
use serde_json::Value;

/// What a pod gets to end in while its mesh is taken away: nobody is left to drain for, seconds.
const LAST_GRACE: u32 = 5;

impl Operator {
    /// Objects of a kind in all namespaces that a label selector chooses; none where the cluster does
    /// not serve that kind.
    ///
    /// # Errors
    /// Where the API server does not say.
    pub async fn labelled(
        &self,
        api_version: &str,
        kind: &str,
        selector: &str,
    ) -> Result<Vec<Value>> {
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
        let api = Api::<DynamicObject>::all_with(self.client.clone(), &resource);
        let list = match api.list(&ListParams::default().labels(selector)).await {
            Err(kube::Error::Api(status)) if status.code == 404 => return Ok(vec![]),
            list => self.asked(&format!("listing {kind}"), list)?,
        };
        list.items
            .into_iter()
            .map(|item| serde_json::to_value(item).context("an object read is JSON"))
            .collect()
    }

    /// Whether an object is not there, or went with its kind.
    ///
    /// # Errors
    /// Where the API server does not say.
    pub async fn is_gone(&self, object: &Value) -> Result<bool> {
        let (api, name) = self.api_of(object)?;
        match api.get_opt(&name).await {
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(true),
            found => Ok(self.asked(&format!("reading {name}"), found)?.is_none()),
        }
    }

    /// Deletes a namespace's Deployments that a label selector chooses (all, where it is empty) and ends
    /// their pods, without the minute that a drain may take; how many pods are left. To be called until
    /// none is: a Deployment that is being deleted may make one more.
    ///
    /// # Errors
    /// Where the API server does not say.
    pub async fn end_deployments(&self, namespace: &str, selector: &str) -> Result<usize> {
        let chosen = ListParams::default().labels(selector);
        let deployments = Api::<Deployment>::namespaced(self.client.clone(), namespace);
        let deleted = deployments.delete_collection(&DeleteParams::background(), &chosen).await;
        self.asked("deleting Deployments", deleted)?;
        let pods = Api::<Pod>::namespaced(self.client.clone(), namespace);
        let soon = DeleteParams::default().grace_period(LAST_GRACE);
        let deleted = pods.delete_collection(&soon, &chosen).await;
        self.asked("deleting pods", deleted)?;
        let left = self.asked("listing pods", pods.list(&chosen).await)?;
        Ok(left.items.len())
    }
}
