//! How a pod that runs stands to the mesh: whether it has a sidecar, and if not, why, by the rules that
//! injection itself goes by.

use super::{NamespaceLabels, STATUS, Why, policy};
use crate::api::label;
use crate::parse::pod::SIDECAR_CONTAINER;
use k8s_openapi::api::core::v1::Pod;

/// Namespaces that the webhook passes over whatever their labels say (`deploy/base/webhook.yaml`).
pub const SYSTEM_NAMESPACES: [&str; 5] =
    ["kube-system", "kube-public", "kube-node-lease", "isthmus-system", "isthmus-ca"];

/// A pod's sidecar.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sidecar {
    /// It is in the mesh: by our sidecar, or by a proxy of its own that its label announces.
    There,
    /// Ours, and another mesh's (its container or annotation): both capture the pod's traffic.
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
    let ours = policy::annotation(pod, STATUS).is_some()
        || containers.into_iter().any(|container| container.name == SIDECAR_CONTAINER);
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
    let asked = policy::wanted(&policy::labels(pod), namespace);
    match asked.and_then(|()| policy::possible(pod, spec)) {
        Ok(()) => Sidecar::Missed,
        Err(why) => Sidecar::Without(why),
    }
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
    fn a_system_namespace_asks_for_nothing() {
        let labels = [("istio-injection".to_owned(), "enabled".to_owned())].into();
        assert!(asks("shop", &labels) && !asks("kube-system", &labels));
        assert!(!asks("shop", &Default::default()));
    }
}
