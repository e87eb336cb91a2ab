//! Whether a pod is to have a sidecar, and whether it can.
//!
//! Istio's precedence (istio.io, "Controlling the injection policy", and the selectors of its
//! webhooks), with `isthmus.dev/inject` beside it:
//!
//! 1. A label that says no decides, wherever it stands: `istio-injection=disabled` and
//!    `isthmus.dev/inject=disabled|false` on the namespace, `sidecar.istio.io/inject=false` and
//!    `isthmus.dev/inject=disabled|false` on the pod.
//! 2. `isthmus.dev/inject=enabled|true` on pod or namespace, else `istio-injection=enabled`, says yes.
//! 3. `istio.io/rev` of the namespace, else of the pod, says whose sidecar it is: `isthmus` ours, any
//!    other value another control plane's, which ends it.
//! 4. `sidecar.istio.io/inject=true` on the pod says yes.
//! 5. Nobody asked.
//!
//! Istio reads the old annotation `sidecar.istio.io/inject` where the label is absent; so do we.

use super::{INIT_CONTAINER, Labelled, SIDECAR_USER, STATUS, Why, containers};
use crate::api::label;
use crate::parse::pod::SIDECAR_CONTAINER;
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
use std::collections::BTreeMap;

/// Labels of the pod's namespace.
pub type NamespaceLabels = BTreeMap<String, String>;

const NAMESPACE: &str = "istio-injection";
const POD: &str = "sidecar.istio.io/inject";
const OURS: &str = "isthmus.dev/inject";
/// The value of `istio.io/rev` that means us.
const REVISION: &str = "isthmus";
/// What other injectors leave behind: containers, and annotations.
const FOREIGN_CONTAINERS: [&str; 3] = ["istio-proxy", "linkerd-proxy", "kuma-sidecar"];
const FOREIGN_ANNOTATIONS: [&str; 3] =
    ["sidecar.istio.io/status", "linkerd.io/proxy-version", "kuma.io/sidecar-injected"];
/// What a kubelet writes on its copy of a static pod.
const MIRROR: &str = "kubernetes.io/config.mirror";
/// Ports of the sidecar that others reach at the pod's address.
const PORTS: [i32; 3] = [15020, 15021, 15090];

/// `Ok` where a sidecar is asked for.
pub(super) fn wanted(
    pod: &BTreeMap<String, String>,
    namespace: &NamespaceLabels,
) -> Result<(), Why> {
    use Labelled::{Namespace, Pod};
    let stands = |on: Labelled, label: &str, says: &[&str]| {
        let labels = match on {
            Pod => pod,
            Namespace => namespace,
        };
        labels.get(label).filter(|value| says.contains(&value.as_str())).cloned()
    };
    for (on, label, no) in [
        (Pod, OURS, &["false", "disabled"][..]),
        (Pod, POD, &["false"]),
        (Namespace, OURS, &["false", "disabled"]),
        (Namespace, NAMESPACE, &["disabled"]),
    ] {
        if let Some(value) = stands(on, label, no) {
            return Err(Why::Refused { on, label: format!("{label}={value}") });
        }
    }
    for (on, label, yes) in [
        (Pod, OURS, &["true", "enabled"][..]),
        (Namespace, OURS, &["true", "enabled"]),
        (Namespace, NAMESPACE, &["enabled"]),
    ] {
        if stands(on, label, yes).is_some() {
            return Ok(());
        }
    }
    for (on, labels) in [(Namespace, namespace), (Pod, pod)] {
        match labels.get(label::REVISION).map(String::as_str) {
            Some(REVISION) => return Ok(()),
            Some(other) if !other.is_empty() => {
                return Err(Why::AnotherRevision { on, revision: other.to_owned() });
            }
            Some(_) | None => {}
        }
    }
    if stands(Pod, POD, &["true"]).is_some() { Ok(()) } else { Err(Why::NotAsked) }
}

/// Labels of a pod with the old annotation where the label is absent.
pub(super) fn labels(pod: &Pod) -> BTreeMap<String, String> {
    let mut labels = pod.metadata.labels.clone().unwrap_or_default();
    if let Some(value) = annotation(pod, POD) {
        labels.entry(POD.to_owned()).or_insert_with(|| value.to_owned());
    }
    labels
}

pub(super) fn annotation<'a>(pod: &'a Pod, name: &str) -> Option<&'a str> {
    pod.metadata.annotations.as_ref()?.get(name).map(String::as_str)
}

/// Every container, with where it stands.
fn all(spec: &PodSpec) -> impl Iterator<Item = &Container> {
    spec.containers.iter().chain(spec.init_containers.iter().flatten())
}

/// What another injector left in a pod.
pub(super) fn foreign(pod: &Pod, spec: &PodSpec) -> Option<String> {
    let named = |name: &&str| all(spec).any(|container| container.name == *name);
    let container = FOREIGN_CONTAINERS.into_iter().find(named);
    let noted = |name: &&str| annotation(pod, name).is_some();
    container
        .map(|name| format!("container {name}"))
        .or_else(|| Some(format!("annotation {}", FOREIGN_ANNOTATIONS.into_iter().find(noted)?)))
}

/// `Ok` where a sidecar would work.
pub(super) fn possible(pod: &Pod, spec: &PodSpec) -> Result<(), Why> {
    let named = |name: &str| all(spec).any(|container| container.name == name);
    let ours = annotation(pod, STATUS).is_some();
    if ours && named(SIDECAR_CONTAINER) {
        return Err(Why::AlreadyOurs);
    }
    if let Some(foreign) = foreign(pod, spec) {
        return Err(Why::AnotherInjector(foreign));
    }
    if annotation(pod, MIRROR).is_some() {
        return Err(Why::Mirror);
    }
    if spec.host_network == Some(true) {
        return Err(Why::HostNetwork);
    }
    if spec.os.as_ref().is_some_and(|os| os.name == "windows") {
        return Err(Why::Windows);
    }
    if spec.containers.is_empty() {
        return Err(Why::NotUnderstood("it has no container".into()));
    }
    if named("") {
        return Err(Why::NotUnderstood("a container has no name".into()));
    }
    for name in [SIDECAR_CONTAINER, INIT_CONTAINER] {
        if named(name) {
            return Err(Why::NameTaken(format!("a container {name}")));
        }
    }
    let taken = |name: &str| spec.volumes.iter().flatten().any(|volume| volume.name == name);
    if let Some(name) = containers::VOLUMES.into_iter().find(|name| taken(name)) {
        return Err(Why::NameTaken(format!("a volume {name}")));
    }
    let of_pod = spec.security_context.as_ref().and_then(|context| context.run_as_user);
    for container in all(spec) {
        let own = container.security_context.as_ref().and_then(|context| context.run_as_user);
        if own.or(of_pod) == Some(SIDECAR_USER) {
            return Err(Why::SidecarUser(format!("container {}", container.name)));
        }
    }
    Ok(())
}

/// What will not be as the pod's author may think.
pub(super) fn doubts(pod: &Pod, spec: &PodSpec, namespace: &NamespaceLabels) -> Vec<String> {
    let mut warnings = Vec::new();
    let level = namespace.get("pod-security.kubernetes.io/enforce").map(String::as_str);
    if let Some(level @ ("baseline" | "restricted")) = level {
        warnings.push(format!(
            "ISM2720 the namespace enforces Pod Security level {level}, which refuses {INIT_CONTAINER}'s \
             NET_ADMIN. Fix: label it pod-security.kubernetes.io/enforce=privileged"
        ));
    }
    if let Some(policy @ ("Default" | "None")) = spec.dns_policy.as_deref() {
        warnings.push(format!(
            "ISM2721 dnsPolicy {policy}: the sidecar finds its control plane by the cluster's DNS, and \
             will not be ready without it. Fix: dnsPolicy ClusterFirst"
        ));
    }
    for container in all(spec) {
        let ports = container.ports.iter().flatten().map(|port| port.container_port);
        if let Some(port) = ports.into_iter().find(|port| PORTS.contains(port)) {
            warnings.push(format!(
                "ISM2722 container {} has port {port}, which is the sidecar's. \
                 Fix: let it listen elsewhere",
                container.name
            ));
        }
        let hooks = container.lifecycle.iter();
        let hooks = hooks.flat_map(|hooks| hooks.post_start.iter().chain(&hooks.pre_stop));
        if hooks.into_iter().any(|hook| hook.http_get.is_some()) {
            warnings.push(format!(
                "ISM2723 container {} has a lifecycle hook with httpGet, which comes in plaintext and \
                 is refused where mTLS is STRICT. Fix: use exec",
                container.name
            ));
        }
    }
    if pod
        .metadata
        .labels
        .as_ref()
        .is_some_and(|labels| labels.get(label::TLS_MODE).is_some_and(|mode| mode != "istio"))
    {
        warnings.push(format!(
            "ISM2724 label {} is set to istio: with a sidecar it is no other. Fix: leave it out",
            label::TLS_MODE
        ));
    }
    warnings
}
