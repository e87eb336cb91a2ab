//! Policies as people write them, and what is left of bad ones.

use super::*;
use crate::parse::check::{object, show};
use expect_test::expect;

fn read(spec: &str) -> Parsed<AuthorizationPolicy> {
    read_with("", spec)
}

fn read_with(more: &str, spec: &str) -> Parsed<AuthorizationPolicy> {
    let policy = format!(
        "{{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {{namespace: shop, \
         name: callers{more}}}, spec: {spec}}}"
    );
    parse(&object(&policy))
}

/// Codes and fields of the findings, in their order.
fn found(parsed: &Parsed<AuthorizationPolicy>) -> Vec<(u16, &str)> {
    parsed.findings.iter().map(|finding| (finding.code, finding.field.as_str())).collect()
}

fn rules(parsed: &Parsed<AuthorizationPolicy>) -> &[Rule] {
    &parsed.value.as_ref().unwrap().rules
}

#[test]
fn every_field_of_a_connection_is_read() {
    let parsed = read(
        "{selector: {matchLabels: {app: hello}}, action: DENY, rules: [{from: [{source: {\
         principals: ['spiffe://west.mesh/ns/shop/sa/web', '*/sa/x'], notNamespaces: [pay]}}, \
         {source: {serviceAccounts: [web, pay/till], notIpBlocks: [10.0.0.0/8, 'fd00::1']}}, \
         {source: {trustDomains: [west.mesh]}}], to: [{operation: {ports: ['80'], notPorts: ['81']}}], \
         when: [{key: source.principal, values: ['*']}, {key: connection.sni, notValues: [a.b]}, \
         {key: destination.ip, values: [10.0.0.1]}, {key: destination.port, values: ['80']}, \
         {key: source.ip, values: [10.0.0.2]}, {key: source.namespace, values: [shop]}]}]}",
    );
    expect![[r#"
        object: AuthorizationPolicy shop/callers
        selector:
          app: hello
        action: DENY
        rules:
        - from:
          - - anyOf:
              - principal: west.mesh/ns/shop/sa/web
              - principal: "*/sa/x"
            - noneOf:
              - namespace: pay
          - - anyOf:
              - serviceAccount: shop/web
              - serviceAccount: pay/till
            - noneOf:
              - ip: 10.0.0.0/8
              - ip: fd00::1/128
          - - anyOf:
              - trustDomain: west.mesh
          to:
          - - anyOf:
              - port: 80
              noneOf:
              - port: 81
          whenFrom:
          - anyOf:
            - principal: "*"
          - anyOf:
            - ip: 10.0.0.2/32
          - anyOf:
            - namespace: shop
          whenTo:
          - noneOf:
            - serverName: a.b
          - anyOf:
            - ip: 10.0.0.1/32
          - anyOf:
            - port: 80
    "#]]
    .assert_eq(&show(&parsed));
}

#[test]
fn nobody_and_everybody() {
    for spec in ["{}", "{action: ALLOW}", "{rules: []}", "{action: null, rules: null}"] {
        let parsed = read(spec);
        assert_eq!(found(&parsed), [], "{spec}");
        let policy = parsed.value.unwrap();
        assert_eq!((policy.action, policy.rules.len()), (PolicyAction::Allow, 0), "{spec}");
    }
    let parsed = read("{rules: [{}]}");
    assert_eq!(found(&parsed), []);
    assert_eq!(rules(&parsed), [Rule::default()]);
    let parsed = read("{action: DENY}");
    assert_eq!(found(&parsed), [(3409, "spec.rules")]);
    assert_eq!(rules(&parsed), []);
}

#[test]
fn fields_of_requests_never_let_in_and_never_save() {
    let spec = |action: &str| {
        format!(
            "{{action: {action}, rules: [{{to: [{{operation: {{ports: ['80'], paths: [/a], notMethods: \
             [GET]}}}}], when: [{{key: 'request.headers[x]', values: [y]}}]}}, {{from: [{{source: \
             {{requestPrincipals: ['*']}}}}]}}, {{}}]}}"
        )
    };
    for action in ["ALLOW", "DENY"] {
        let parsed = read(&spec(action));
        let expected = [
            (3403, "spec.rules[0].to[0].operation.notMethods"),
            (3403, "spec.rules[0].to[0].operation.paths"),
            (3403, "spec.rules[0].when[0].key"),
            (3403, "spec.rules[1].from[0].source.requestPrincipals"),
        ];
        assert_eq!(found(&parsed), expected);
        let rules = rules(&parsed);
        assert_eq!(rules.iter().map(|it| it.partial).collect::<Vec<_>>(), [true, true, false]);
        let port = Clause { any_of: vec![Operation::Port(80)], none_of: vec![] };
        assert_eq!(rules[0].to, [vec![port]]);
        assert_eq!((&rules[1].from, rules[1].to.len()), (&vec![vec![]], 0));
    }
}

#[test]
fn what_cannot_be_read_never_loosens() {
    for (rule, code, field) in [
        ("{form: []}", 3402, "spec.rules[0].form"),
        ("7", 3401, "spec.rules[0]"),
        ("{from: {}}", 3401, "spec.rules[0].from"),
        ("{from: [{}]}", 3405, "spec.rules[0].from[0].source"),
        ("{from: [{source: {}}]}", 3405, "spec.rules[0].from[0].source"),
        ("{from: [{source: {principals: []}}]}", 3405, "spec.rules[0].from[0].source"),
        ("{from: [{sauce: {}}]}", 3402, "spec.rules[0].from[0].sauce"),
        ("{from: [{source: {principal: [x]}}]}", 3402, "spec.rules[0].from[0].source.principal"),
        ("{from: [{source: {principals: x}}]}", 3401, "spec.rules[0].from[0].source.principals"),
        (
            "{from: [{source: {principals: [7]}}]}",
            3401,
            "spec.rules[0].from[0].source.principals[0]",
        ),
        (
            "{from: [{source: {principals: ['']}}]}",
            3407,
            "spec.rules[0].from[0].source.principals[0]",
        ),
        (
            "{from: [{source: {principals: [a*b]}}]}",
            3407,
            "spec.rules[0].from[0].source.principals[0]",
        ),
        (
            "{from: [{source: {namespaces: ['a b']}}]}",
            3407,
            "spec.rules[0].from[0].source.namespaces[0]",
        ),
        (
            "{from: [{source: {serviceAccounts: ['*']}}]}",
            3407,
            "spec.rules[0].from[0].source.serviceAccounts[0]",
        ),
        (
            "{from: [{source: {ipBlocks: [10.0.0.0/33]}}]}",
            3407,
            "spec.rules[0].from[0].source.ipBlocks[0]",
        ),
        ("{to: [{operation: {}}]}", 3405, "spec.rules[0].to[0].operation"),
        ("{to: [{operation: {ports: ['http']}}]}", 3407, "spec.rules[0].to[0].operation.ports[0]"),
        ("{to: [{operation: {ports: ['0']}}]}", 3407, "spec.rules[0].to[0].operation.ports[0]"),
        ("{when: [{key: source.port, values: ['1']}]}", 3402, "spec.rules[0].when[0].key"),
        ("{when: [{key: source.ip}]}", 3405, "spec.rules[0].when[0]"),
        ("{when: [{values: ['1']}]}", 3402, "spec.rules[0].when[0].key"),
    ] {
        let parsed = read(&format!("{{rules: [{rule}]}}"));
        assert!(found(&parsed).contains(&(code, field)), "{rule}: {:?}", parsed.findings);
        assert!(rules(&parsed)[0].partial, "{rule}");
    }
    // Of the whole policy: none of its rules lets in.
    for (spec, code, field) in [
        ("{selctor: {}, rules: [{}]}", 3402, "spec.selctor"),
        ("{selector: {matchExpressions: []}, rules: [{}]}", 3402, "spec.selector.matchExpressions"),
        ("{selector: {matchLabels: {app: 7}}, rules: [{}]}", 3401, "spec.selector.matchLabels.app"),
        ("{action: BLOCK, rules: [{}]}", 3404, "spec.action"),
    ] {
        let parsed = read(spec);
        assert_eq!(found(&parsed), [(code, field)], "{spec}");
        assert!(rules(&parsed)[0].partial, "{spec}");
    }
    let parsed = read("7");
    assert_eq!(found(&parsed), [(3401, "spec")]);
    assert_eq!(rules(&parsed), []);
}

#[test]
fn values_have_a_limit() {
    let many = vec!["shop"; VALUES_MAX + 1].join(", ");
    let parsed = read(&format!("{{rules: [{{from: [{{source: {{namespaces: [{many}]}}}}]}}]}}"));
    assert_eq!(found(&parsed), [(3406, "spec.rules[0].from[0].source.namespaces")]);
    assert!(rules(&parsed)[0].partial);
}

#[test]
fn findings_have_a_limit_and_what_is_not_told_counts() {
    let fields: Vec<String> = (0..FINDINGS_MAX + 9).map(|n| format!("field{n}: x")).collect();
    let parsed = read(&format!("{{rules: [{{{}}}, {{form: x}}]}}", fields.join(", ")));
    assert_eq!(parsed.findings.len(), FINDINGS_MAX);
    assert!(rules(&parsed).iter().all(|rule| rule.partial));
}

#[test]
fn what_decides_nothing_or_otherwise_is_told() {
    for (more, spec, code, field) in [
        ("", "{action: AUDIT, rules: [{}]}", 3413, "spec.action"),
        ("", "{targetRefs: [{kind: Gateway, name: g}]}", 3412, "spec.targetRefs"),
        (", annotations: {istio.io/dry-run: 'true'}", "{}", 3411, "metadata.annotations"),
    ] {
        let parsed = read_with(more, spec);
        assert_eq!(found(&parsed), [(code, field)], "{spec}");
        assert!(parsed.value.is_none(), "{spec}");
    }
    assert!(read_with(", annotations: {istio.io/dry-run: 'no'}", "{}").value.is_some());
    let parsed = read("{action: CUSTOM, provider: {name: p}, rules: [{}]}");
    assert_eq!(found(&parsed), [(3414, "spec.action")]);
    assert_eq!(parsed.value.unwrap().action, PolicyAction::Custom);
    let only = "{rules: [{from: [{source: {notPrincipals: ['*/sa/bad']}}]}]}";
    assert_eq!(found(&read(only)), [(3408, "spec.rules[0].from[0].source")]);
    let nobody = "{rules: [{from: [{source: {principals: [spire/x]}}]}]}";
    let parsed = read(nobody);
    assert_eq!(found(&parsed), [(3415, "spec.rules[0].from[0].source")]);
    assert!(!rules(&parsed)[0].partial, "it is judged, and never true");
}
