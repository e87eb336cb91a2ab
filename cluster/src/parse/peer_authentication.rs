//! Istio's PeerAuthentication: how workloads take connections.

use super::{Notes, Parsed, Rest, created, spec};
use kube::api::DynamicObject;
use mesh::export::ROOT_NAMESPACE;
use mesh::inventory::{MtlsMode, PeerAuthentication};
use serde::Deserialize;
use std::collections::BTreeMap;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    selector: Option<Selector>,
    mtls: Option<Mtls>,
    #[serde(default)]
    port_level_mtls: BTreeMap<String, Mtls>,
    #[serde(flatten)]
    rest: Rest,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Selector {
    #[serde(default)]
    match_labels: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Mtls {
    #[serde(default)]
    mode: String,
}

/// What cannot be read counts as STRICT, never as less: the author wanted some rule.
pub fn parse(object: &DynamicObject) -> Parsed<PeerAuthentication> {
    let mut notes = Notes::of("PeerAuthentication", &object.metadata);
    let created = created(&object.metadata);
    let Some(spec) = spec::<Spec>(object, &mut notes) else {
        let object = notes.object.clone();
        let (selector, ports) = (BTreeMap::new(), BTreeMap::new());
        let mode = Some(MtlsMode::Strict);
        return notes.done(Some(PeerAuthentication { object, selector, mode, ports, created }));
    };
    notes.unsupported("spec", &spec.rest);
    let selector = spec.selector.map(|selector| selector.match_labels).unwrap_or_default();
    match notes.object.namespace.as_str() {
        "istio-system" if selector.is_empty() => notes.warn(
            3074,
            "metadata.namespace",
            "it holds for the workloads of istio-system alone, as Istio's root namespace is not ours.",
            "for the whole mesh, write it in isthmus-system.",
        ),
        ROOT_NAMESPACE if !selector.is_empty() => notes.refuse(
            3075,
            "spec.selector",
            "the root namespace has none for single workloads (Istio's rule); it is left out.",
            "remove the selector to mean the whole mesh, or write it in the workloads' namespace.",
        ),
        _ => {}
    }
    let mode = spec.mtls.and_then(|mtls| mode(&mtls.mode, "spec.mtls.mode", &mut notes));
    let mut ports = BTreeMap::new();
    for (number, mtls) in spec.port_level_mtls {
        let field = format!("spec.portLevelMtls.{number}");
        let Some(number) = number.parse::<u16>().ok().filter(|number| *number != 0) else {
            notes.refuse(
                3071,
                &field,
                "it is no port number; this port's mode is left out.",
                "write the workload's port, a number from 1 to 65535.",
            );
            continue;
        };
        if selector.is_empty() {
            notes.refuse(
                3072,
                &field,
                "modes of single ports need a selector (Istio's rule); this one is left out.",
                "add spec.selector.matchLabels.",
            );
            continue;
        }
        if let Some(mode) = self::mode(&mtls.mode, &format!("{field}.mode"), &mut notes) {
            ports.insert(number, mode);
        }
    }
    let object = notes.object.clone();
    notes.done(Some(PeerAuthentication { object, selector, mode, ports, created }))
}

fn mode(text: &str, field: &str, notes: &mut Notes) -> Option<MtlsMode> {
    match text {
        "STRICT" => Some(MtlsMode::Strict),
        "PERMISSIVE" => Some(MtlsMode::Permissive),
        "" | "UNSET" => None,
        "DISABLE" => {
            notes.warn(
                3073,
                field,
                "these workloads take plaintext, which no gateway carries: other clusters cannot call them.",
                "write PERMISSIVE, to take both.",
            );
            Some(MtlsMode::Disable)
        }
        other => {
            notes.refuse(
                3070,
                field,
                format!("{other:?} is no mode; it is taken for STRICT."),
                "write STRICT, PERMISSIVE or DISABLE.",
            );
            Some(MtlsMode::Strict)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parse::check::{object, show};
    use expect_test::{Expect, expect};

    #[track_caller]
    fn check(spec: &str, expected: Expect) {
        expected.assert_eq(&show(&read(spec)));
    }

    #[test]
    fn a_mode_for_a_namespace() {
        check(
            "{mtls: {mode: STRICT}}",
            expect![[r#"
                object: PeerAuthentication shop/default
                selector: {}
                mode: STRICT
                ports: {}
                created: 0
            "#]],
        );
    }

    fn read(spec: &str) -> Parsed<PeerAuthentication> {
        let policy = format!(
            "{{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {{namespace: shop, \
             name: default}}, spec: {spec}}}"
        );
        parse(&object(&policy))
    }

    /// Codes and fields of the findings, in their order.
    fn found(parsed: &Parsed<PeerAuthentication>) -> Vec<(u16, &str)> {
        parsed.findings.iter().map(|finding| (finding.code, finding.field.as_str())).collect()
    }

    #[test]
    fn modes_of_single_ports_stand_with_a_selector() {
        let parsed = read(
            "{selector: {matchLabels: {app: hello}}, mtls: {mode: UNSET}, portLevelMtls: {'8080': {mode: \
             PERMISSIVE}, '9090': {mode: DISABLE}}}",
        );
        assert_eq!(found(&parsed), [(3073, "spec.portLevelMtls.9090.mode")]);
        let policy = parsed.value.unwrap();
        assert_eq!(policy.mode, None);
        assert_eq!(policy.selector["app"], "hello");
        let ports = BTreeMap::from([(8080, MtlsMode::Permissive), (9090, MtlsMode::Disable)]);
        assert_eq!(policy.ports, ports);
    }

    #[test]
    fn mistakes_cost_themselves_only_and_never_loosen() {
        let parsed = read(
            "{mtls: {mode: strict}, portLevelMtls: {http: {mode: STRICT}, '80': {mode: STRICT}}, colour: red}",
        );
        let expected = [
            (3002, "spec.colour"),
            (3070, "spec.mtls.mode"),
            (3072, "spec.portLevelMtls.80"),
            (3071, "spec.portLevelMtls.http"),
        ];
        assert_eq!(found(&parsed), expected);
        let policy = parsed.value.unwrap();
        assert_eq!(policy.mode, Some(MtlsMode::Strict));
        assert!(policy.ports.is_empty());

        let parsed = read("{mtls: 7}");
        assert_eq!(found(&parsed), [(3001, "spec")]);
        let policy = parsed.value.unwrap();
        assert_eq!((policy.mode, policy.selector.len()), (Some(MtlsMode::Strict), 0));
    }

    #[test]
    fn what_istio_would_take_for_the_whole_mesh_is_told() {
        let read = |namespace: &str, spec: &str| {
            let policy = format!(
                "{{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {{namespace: \
                 {namespace}, name: default}}, spec: {spec}}}"
            );
            let parsed = parse(&object(&policy));
            parsed.findings.iter().map(|finding| finding.code).collect::<Vec<_>>()
        };
        let (whole, some) = ("{mtls: {mode: STRICT}}", "{selector: {matchLabels: {app: a}}}");
        assert_eq!(read("istio-system", whole), [3074]);
        assert_eq!(read("istio-system", some), [0; 0]);
        assert_eq!(read("isthmus-system", whole), [0; 0]);
        assert_eq!(read("isthmus-system", some), [3075]);
        assert_eq!(read("shop", whole), [0; 0]);
    }
}
