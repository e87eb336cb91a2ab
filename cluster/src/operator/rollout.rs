//! How far a Deployment has come, and what its pods wait for.

use super::Operator;
use anyhow::Result;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use kube::api::{Api, ListParams};

/// A Deployment at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rollout {
    pub wanted: i32,
    /// Pods of the newest template that are ready.
    pub ready: i32,
    /// Every wanted pod is of the newest template and ready, and no older one is left.
    pub done: bool,
    /// What keeps pods from being ready, a sentence each; no two alike.
    pub waits: Vec<String>,
}

/// Longest piece of somebody else's message that is repeated, characters.
const MESSAGE_MAX: usize = 200;

impl Operator {
    /// Reads a Deployment and its pods; `None` where it does not exist.
    ///
    /// # Errors
    /// Where the API server does not say.
    pub async fn rollout(&self, namespace: &str, name: &str) -> Result<Option<Rollout>> {
        let deployments = Api::<Deployment>::namespaced(self.client.clone(), namespace);
        let what = format!("reading Deployment {namespace}/{name}");
        let Some(deployment) = self.asked(&what, deployments.get_opt(name).await)? else {
            return Ok(None);
        };
        let labels = deployment.spec.selector.match_labels.clone();
        let pairs: Vec<String> =
            labels.into_iter().flatten().map(|(key, value)| format!("{key}={value}")).collect();
        let pods = Api::<Pod>::namespaced(self.client.clone(), namespace);
        let params = ListParams::default().labels(&pairs.join(",")).limit(50);
        let pods = self.asked(&what, pods.list(&params).await)?.items;
        Ok(Some(judge(&deployment, &pods)))
    }
}

fn judge(deployment: &Deployment, pods: &[Pod]) -> Rollout {
    let status = deployment.status.clone().unwrap_or_default();
    let wanted = deployment.spec.replicas.unwrap_or(1);
    let seen = status.observed_generation >= deployment.metadata.generation;
    let updated = status.updated_replicas.unwrap_or_default();
    let total = status.replicas.unwrap_or_default();
    let available = status.available_replicas.unwrap_or_default();
    let done = seen && updated == wanted && total == wanted && available == wanted;
    let mut waits: Vec<String> = if done { vec![] } else { pods.iter().flat_map(waits).collect() };
    for condition in status.conditions.unwrap_or_default() {
        // Quotas and admission show here, where no pod is even made.
        let is = |field: &Option<String>, word| field.as_deref() == Some(word);
        if is(&condition.type_, "ReplicaFailure") && is(&condition.status, "True") {
            waits.push(short(&condition.message.unwrap_or_default()));
        }
    }
    waits.sort_unstable();
    waits.dedup();
    Rollout { wanted, ready: available.min(updated), done, waits }
}

fn waits(pod: &Pod) -> Vec<String> {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let status = pod.status.clone().unwrap_or_default();
    let unscheduled = status.conditions.into_iter().flatten().filter_map(|condition| {
        let no = condition.type_ == "PodScheduled" && condition.status == "False";
        no.then(|| format!("{name} has no node: {}", short(&condition.message.unwrap_or_default())))
    });
    let containers = status.init_container_statuses.into_iter().chain(status.container_statuses);
    let containers = containers.flatten().filter_map(|container| wait(name, &container));
    unscheduled.chain(containers).collect()
}

fn wait(pod: &str, container: &ContainerStatus) -> Option<String> {
    let state = container.state.as_ref()?;
    let container_name = &container.name;
    if let Some(waiting) = &state.waiting {
        let reason = waiting.reason.as_deref().unwrap_or_default();
        // Before anything can be wrong.
        if matches!(reason, "PodInitializing" | "ContainerCreating") {
            return None;
        }
        let last = container.last_state.as_ref().and_then(|last| last.terminated.as_ref());
        let last = last.map(|last| format!("; it ended with {}", last.exit_code));
        let said = short(waiting.message.as_deref().unwrap_or_default());
        let last = last.unwrap_or_default();
        return Some(format!("{pod}, container {container_name}: {reason} ({said}{last})"));
    }
    let running = state.running.is_some() && !container.ready;
    running.then(|| format!("{pod}, container {container_name} runs and is not ready"))
}

fn short(text: &str) -> String {
    let cut: String = text.chars().take(MESSAGE_MAX).collect();
    if cut.len() < text.len() { format!("{cut}…") } else { cut }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn deployment(generation: i64, status: Value) -> Deployment {
        serde_json::from_value(json!({
            "metadata": {"name": "gateway", "generation": generation},
            "spec": {"replicas": 2, "selector": {}, "template": {}}, "status": status,
        }))
        .unwrap()
    }

    #[test]
    fn done_is_every_pod_of_the_newest_template_and_no_other() {
        let status = |observed: i64, total: i32, updated: i32, available: i32| {
            json!({"observedGeneration": observed, "replicas": total, "updatedReplicas": updated,
                "availableReplicas": available})
        };
        let done = |status| judge(&deployment(3, status), &[]).done;
        assert!(done(status(3, 2, 2, 2)));
        assert!(!done(status(2, 2, 2, 2)), "an older state of the Deployment was seen");
        assert!(!done(status(3, 3, 2, 2)), "an older pod is still there");
        assert!(!done(status(3, 2, 2, 1)));
        assert!(!judge(&deployment(1, json!({})), &[]).done);
    }

    #[test]
    fn what_pods_wait_for_is_said_once() {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "gateway-1"},
            "status": {
                "conditions": [{"type": "PodScheduled", "status": "False", "message": "0/1 nodes"}],
                "containerStatuses": [
                    {"name": "a", "image": "i", "imageID": "", "ready": false, "restartCount": 4,
                     "state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}},
                    {"name": "b", "image": "i", "imageID": "", "ready": false, "restartCount": 0,
                     "state": {"waiting": {"reason": "ContainerCreating"}}},
                    {"name": "c", "image": "i", "imageID": "", "ready": false, "restartCount": 0,
                     "state": {"running": {}}},
                ],
            },
        }))
        .unwrap();
        let rollout = judge(&deployment(1, json!({})), &[pod.clone(), pod]);
        assert_eq!(
            rollout.waits,
            [
                "gateway-1 has no node: 0/1 nodes",
                "gateway-1, container a: ImagePullBackOff (no such image)",
                "gateway-1, container c runs and is not ready",
            ]
        );
    }
}
