//! How a pod that runs stands to the mesh: whether it has a sidecar, by its containers and its label, and
//! if not, why, by the rules that injection itself goes by.

use super::{Labelled, NamespaceLabels, Why, measured, policy};
use crate::api::label;
use crate::parse::pod::SIDECAR_CONTAINER;
use k8s_openapi::api::core::v1::{Pod, PodSpec};

/// Namespaces that the webhook passes over whatever their labels say (`deploy/base/webhook.yaml`).
pub const SYSTEM_NAMESPACES: [&str; 5] =
    ["kube-system", "kube-public", "kube-node-lease", "isthmus-system", "isthmus-ca"];

/// A pod's sidecar.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Sidecar {
    /// It is in the mesh: by our sidecar's container, or by a proxy of its own that its label announces.
    /// Our annotation alone is a copy of another pod's.
    There,
    /// Our container, and another mesh's (its container or annotation): both capture the pod's traffic.
    Both(String),
    /// It has none, for a reason that stands in its labels or its own spec.
    Without(Why),
    /// Its labels ask for one and nothing hinders it: it was made before the label or the webhook, or
    /// past it.
    Missed,
}

/// Reads a pod as the API server holds it.
pub fn sidecar(pod: &Pod, namespace: &NamespaceLabels) -> Sidecar {
    let Some(spec) = &pod.spec else {
        return Sidecar::Without(Why::NotUnderstood("it has no spec".into()));
    };
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let ours = containers.into_iter().any(|container| container.name == SIDECAR_CONTAINER);
    match policy::foreign(pod, spec) {
        Some(foreign) if ours => return Sidecar::Both(foreign),
        None if ours => return Sidecar::There,
        Some(_) => {}
        None => {
            let labels = pod.metadata.labels.as_ref();
            if labels.and_then(|all| all.get(label::TLS_MODE)).is_some_and(|mode| mode == "istio") {
                return Sidecar::There;
            }
        }
    }
    match would_be(pod, spec, namespace) {
        Ok(()) => Sidecar::Missed,
        Err(why) => Sidecar::Without(why),
    }
}

/// Whether injection would give this pod a sidecar if it were made now; its limit of a sidecar's
/// configuration is left out, which needs the mesh's settings.
fn would_be(pod: &Pod, spec: &PodSpec, namespace: &NamespaceLabels) -> Result<(), Why> {
    let space = pod.metadata.namespace.as_deref().unwrap_or_default();
    if SYSTEM_NAMESPACES.contains(&space) {
        let label = format!("kubernetes.io/metadata.name={space}");
        return Err(Why::Refused { on: Labelled::Namespace, label });
    }
    policy::wanted(&policy::labels(pod), namespace)?;
    policy::possible(pod, spec)?;
    // What is added behind injection is not measured by it.
    let made = Pod { status: None, ..pod.clone() };
    measured(&serde_json::to_value(made).map_err(|error| Why::NotUnderstood(error.to_string()))?)
}

/// Whether a namespace's labels alone ask for a sidecar in each of its pods.
pub fn asks(name: &str, labels: &NamespaceLabels) -> bool {
    !SYSTEM_NAMESPACES.contains(&name) && policy::wanted(&Default::default(), labels).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parse::check::object;

    #[track_caller]
    fn check(label: &str, pod: &str, expected: impl Fn(&Sidecar) -> bool) {
        let labels = label.split_once('=').map(|(key, value)| (key.to_owned(), value.to_owned()));
        let found = sidecar(&object(pod), &labels.into_iter().collect());
        assert!(expected(&found), "{pod}: {found:?}");
    }

    #[test]
    fn each_pod_without_a_sidecar_has_its_reason() {
        const YES: &str = "istio-injection=enabled";
        let app = "containers: [{name: app}]";
        let ours = "initContainers: [{name: isthmus-init}, {name: isthmus-proxy}]";
        let plain = format!("{{spec: {{{app}}}}}");
        check(YES, &format!("{{spec: {{{ours}, {app}}}}}"), |it| *it == Sidecar::There);
        check(YES, &plain, |it| *it == Sidecar::Missed);
        check("", &plain, |it| *it == Sidecar::Without(Why::NotAsked));
        check(YES, &format!("{{spec: {{hostNetwork: true, {app}}}}}"), |it| {
            *it == Sidecar::Without(Why::HostNetwork)
        });
        let user = format!("{{spec: {{securityContext: {{runAsUser: 1337}}, {app}}}}}");
        check(YES, &user, |it| matches!(it, Sidecar::Without(Why::SidecarUser(_))));
        let istio = "{spec: {containers: [{name: app}, {name: istio-proxy}]}}";
        check(YES, istio, |it| matches!(it, Sidecar::Without(Why::AnotherInjector(_))));
        let both =
            format!("{{spec: {{{ours}, containers: [{{name: app}}, {{name: istio-proxy}}]}}}}");
        check(YES, &both, |it| matches!(it, Sidecar::Both(_)));
        let refused = format!(
            "{{metadata: {{labels: {{sidecar.istio.io/inject: 'false'}}}}, spec: {{{app}}}}}"
        );
        check(YES, &refused, |it| matches!(it, Sidecar::Without(Why::Refused { .. })));
        let own = format!(
            "{{metadata: {{labels: {{security.istio.io/tlsMode: istio}}}}, spec: {{{app}}}}}"
        );
        check(YES, &own, |it| *it == Sidecar::There);
    }

    #[test]
    fn a_copy_of_a_pods_manifest_is_no_sidecar() {
        let copy = "{metadata: {annotations: {isthmus.dev/injected: '{}'}}, spec: {containers: [{name: \
                    app}]}}";
        check("istio-injection=enabled", copy, |it| *it == Sidecar::Missed);
        check("", copy, |it| *it == Sidecar::Without(Why::NotAsked));
        let istio = copy.replace("{name: app}", "{name: app}, {name: istio-proxy}");
        check("istio-injection=enabled", &istio, |it| {
            matches!(it, Sidecar::Without(Why::AnotherInjector(_)))
        });
    }

    #[test]
    fn what_injection_would_refuse_is_not_missed() {
        let system = "{metadata: {namespace: isthmus-system}, spec: {containers: [{name: app}]}}";
        check("istio-injection=enabled", system, |it| {
            let Sidecar::Without(why @ Why::Refused { .. }) = it else { return false };
            why.to_string().contains("kubernetes.io/metadata.name=isthmus-system")
        });
        let many: Vec<String> = (0..300).map(|place| format!("{{name: c{place}}}")).collect();
        let many = format!("{{spec: {{containers: [{}]}}}}", many.join(", "));
        check("istio-injection=enabled", &many, |it| {
            matches!(it, Sidecar::Without(Why::TooLarge(_)))
        });
    }

    #[test]
    fn a_system_namespace_asks_for_nothing() {
        let labels = [("istio-injection".to_owned(), "enabled".to_owned())].into();
        assert!(asks("shop", &labels) && !asks("kube-system", &labels));
        assert!(!asks("shop", &Default::default()));
    }
}
