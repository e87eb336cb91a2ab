//! Pods as far as the mesh cares: which have no sidecar and why, and which cannot start.

use super::webhook::CONFIGURATION;
use super::{Operator, absent};
use crate::inject::{NamespaceLabels, SYSTEM_NAMESPACES, Sidecar, asks, sidecar};
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::core::v1::{ContainerStatus, Namespace, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, ListParams};
use std::collections::{BTreeMap, BTreeSet};

/// Most objects of one kind that one look reads.
pub const OBJECTS_MAX: usize = 2_000;
/// Objects of one answer.
const PAGE: u32 = 250;
/// Longest message of a kubelet that is kept, characters.
const MESSAGE_MAX: usize = 160;
/// Why a container waits that does not start by waiting longer (kubelet's `images` and `kuberuntime`).
const BLOCKED: [&str; 10] = [
    "ErrImagePull",
    "ImagePullBackOff",
    "ErrImageNeverPull",
    "InvalidImageName",
    "ImageInspectError",
    "RegistryUnavailable",
    "CreateContainerConfigError",
    "CreateContainerError",
    "RunContainerError",
    "CrashLoopBackOff",
];

/// The pods of one cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pods {
    /// Those that live or are to live, but for the cluster's own in `kube-system`.
    pub all: Vec<PodState>,
    /// Namespaces whose labels ask for a sidecar in every pod.
    pub asking: BTreeSet<String>,
    /// There are more than [`OBJECTS_MAX`] pods or namespaces, and the rest was not read.
    pub cut: bool,
}

/// One pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodState {
    pub namespace: String,
    pub name: String,
    /// `deployment/hello`: what makes it anew, where something does.
    pub owner: Option<String>,
    /// Seconds since it was made, by the API server's clock.
    pub age: i64,
    pub sidecar: Sidecar,
    pub blocked: Option<Blocked>,
}

/// A container that does not start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blocked {
    pub container: String,
    pub image: String,
    /// `ImagePullBackOff`, in the kubelet's words.
    pub reason: String,
    /// Cut; empty where it says none.
    pub message: String,
}

impl Operator {
    /// All pods by pages; `now` is the API server's, seconds since the epoch.
    pub(super) async fn pods(&self, now: i64) -> anyhow::Result<Pods> {
        let (labels, some) = self.namespaces().await?;
        let api = Api::<Pod>::all(self.client.clone());
        let mut page = ListParams::default().limit(PAGE);
        let (mut pods, mut read) = (Pods { cut: some, ..Pods::default() }, 0);
        let asking = labels.iter().filter(|(name, labels)| asks(name, labels));
        pods.asking = asking.map(|(name, _)| name.clone()).collect();
        loop {
            let answer = self.asked("listing pods", api.list(&page).await)?;
            read += answer.items.len();
            let nothing = NamespaceLabels::new();
            pods.all.extend(answer.items.iter().filter_map(|pod| {
                let namespace = pod.metadata.namespace.as_deref()?;
                state(pod, labels.get(namespace).unwrap_or(&nothing), now)
            }));
            match answer.metadata.continue_.filter(|more| !more.is_empty()) {
                Some(_) if read >= OBJECTS_MAX => {
                    pods.cut = true;
                    return Ok(pods);
                }
                Some(more) => page.continue_token = Some(more),
                None => return Ok(pods),
            }
        }
    }

    /// One pod, by the same rules; `None` where our webhook is not installed, or it has no sidecar to
    /// judge: it is gone or ends.
    ///
    /// # Errors
    /// Where the API server does not answer, or does not let us read them.
    pub async fn pod_state(&self, namespace: &str, name: &str) -> anyhow::Result<Option<PodState>> {
        let hooks = Api::<MutatingWebhookConfiguration>::all(self.client.clone());
        let pods = Api::<Pod>::namespaced(self.client.clone(), namespace);
        let spaces = Api::<Namespace>::all(self.client.clone());
        let (hook, pod, space) = tokio::join!(
            hooks.get_opt(CONFIGURATION),
            pods.get_opt(name),
            spaces.get_opt(namespace)
        );
        let hook = self.asked(&format!("reading {CONFIGURATION}"), hook)?;
        let pod = self.asked(&format!("reading Pod {namespace}/{name}"), pod)?;
        let space = self.asked(&format!("reading Namespace {namespace}"), space)?;
        let labels = space.and_then(|space| space.metadata.labels).unwrap_or_default();
        Ok(pod.filter(|_| hook.is_some()).and_then(|pod| state(&pod, &labels, super::now())))
    }

    /// Labels of the namespaces, and whether that is not all of them.
    pub(super) async fn namespaces(
        &self,
    ) -> anyhow::Result<(BTreeMap<String, NamespaceLabels>, bool)> {
        let most = u32::try_from(OBJECTS_MAX).unwrap_or(u32::MAX);
        let list = Api::<Namespace>::all(self.client.clone());
        let list = absent(list.list(&ListParams::default().limit(most)).await);
        let Some(list) = self.asked("listing namespaces", list)? else { return Ok(<_>::default()) };
        let cut = list.metadata.continue_.is_some_and(|more| !more.is_empty());
        let labels =
            |it: Namespace| Some((it.metadata.name?, it.metadata.labels.unwrap_or_default()));
        Ok((list.items.into_iter().filter_map(labels).collect(), cut))
    }
}

/// `None` for one that has ended or is about to, and for the cluster's own.
fn state(pod: &Pod, namespace: &NamespaceLabels, now: i64) -> Option<PodState> {
    let meta = &pod.metadata;
    let (of, name) = (meta.namespace.as_deref()?, meta.name.clone()?);
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    // Isthmus' own programs are looked at; what the cluster itself runs is not our affair.
    let system = SYSTEM_NAMESPACES.contains(&of) && of.starts_with("kube-");
    if system || meta.deletion_timestamp.is_some() || matches!(phase, Some("Succeeded" | "Failed"))
    {
        return None;
    }
    let made = meta.creation_timestamp.as_ref().map_or(now, |at| at.0.as_second());
    Some(PodState {
        namespace: of.to_owned(),
        name,
        owner: owner(meta),
        age: now - made,
        sidecar: sidecar(pod, namespace),
        blocked: blocked(pod),
    })
}

/// A Deployment's pods are its ReplicaSet's, whose name ends with the template's hash.
fn owner(meta: &ObjectMeta) -> Option<String> {
    let owner = meta.owner_references.iter().flatten().find(|it| it.controller == Some(true))?;
    let hash = meta.labels.as_ref().and_then(|labels| labels.get("pod-template-hash"));
    let name = match (owner.kind.as_str(), hash) {
        ("ReplicaSet", Some(hash)) => owner.name.strip_suffix(&format!("-{hash}")),
        ("StatefulSet" | "DaemonSet", _) => Some(owner.name.as_str()),
        _ => None,
    }?;
    let kind = if owner.kind == "ReplicaSet" { "Deployment" } else { &owner.kind };
    Some(format!("{}/{name}", kind.to_lowercase()))
}

fn blocked(pod: &Pod) -> Option<Blocked> {
    let status = pod.status.as_ref()?;
    let lists = [&status.init_container_statuses, &status.container_statuses];
    lists.into_iter().flatten().flatten().find_map(waiting)
}

fn waiting(status: &ContainerStatus) -> Option<Blocked> {
    let waiting = status.state.as_ref()?.waiting.as_ref()?;
    let reason = waiting.reason.clone().filter(|reason| BLOCKED.contains(&reason.as_str()))?;
    let message = waiting.message.as_deref().unwrap_or_default();
    let plain = message.chars().map(|c| if c.is_control() { ' ' } else { c });
    Some(Blocked {
        container: status.name.clone(),
        image: status.image.clone(),
        reason,
        message: plain.take(MESSAGE_MAX).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inject::Why;
    use crate::parse::check::object;

    #[test]
    fn a_pod_is_reduced_to_what_is_judged() {
        let pod = "{metadata: {namespace: shop, name: hello-5d-x, creationTimestamp: \
                   '2026-01-01T00:00:00Z', labels: {pod-template-hash: 5d}, ownerReferences: \
                   [{apiVersion: apps/v1, kind: ReplicaSet, name: hello-5d, uid: u, controller: true}]}, \
                   spec: {containers: [{name: app, image: x}]}, status: {phase: Pending, \
                   containerStatuses: [{name: app, image: nowhere/x, imageID: '', ready: false, \
                   restartCount: 0, state: {waiting: {reason: ErrImagePull, message: not found}}}]}}";
        let state = state(&object(pod), &NamespaceLabels::new(), 1_767_225_660).unwrap();
        let expected = PodState {
            namespace: "shop".into(),
            name: "hello-5d-x".into(),
            owner: Some("deployment/hello".into()),
            age: 60,
            sidecar: Sidecar::Without(Why::NotAsked),
            blocked: Some(Blocked {
                container: "app".into(),
                image: "nowhere/x".into(),
                reason: "ErrImagePull".into(),
                message: "not found".into(),
            }),
        };
        assert_eq!(state, expected);
    }

    #[test]
    fn what_has_ended_or_only_begins_is_no_fault() {
        let none = NamespaceLabels::new();
        for pod in [
            "{metadata: {namespace: shop, name: a}, spec: {containers: []}, status: {phase: Failed}}",
            "{metadata: {namespace: kube-system, name: a}, spec: {containers: []}}",
            "{metadata: {namespace: shop, name: a, deletionTimestamp: '2026-01-01T00:00:00Z'}, \
             spec: {containers: []}}",
        ] {
            assert_eq!(state(&object(pod), &none, 0), None, "{pod}");
        }
        let begins = "{metadata: {namespace: shop, name: a}, spec: {containers: [{name: app}]}, status: \
                      {containerStatuses: [{name: app, image: x, imageID: '', ready: false, \
                      restartCount: 0, state: {waiting: {reason: ContainerCreating}}}]}}";
        assert_eq!(state(&object(begins), &none, 0).unwrap().blocked, None);
    }
}
