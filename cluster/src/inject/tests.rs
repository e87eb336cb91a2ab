//! Precedence, bad input, and what exactly a pod gets.

use super::settings::tests::mesh;
use super::*;
use crate::parse::check::object;
use expect_test::expect;
use std::collections::BTreeMap;

fn settings() -> Settings {
    let data = BTreeMap::from([("image".to_owned(), "isthmus:test".to_owned())]);
    Settings::new(&data, &mesh(), "isthmus-system").unwrap()
}

fn labels(text: &str) -> NamespaceLabels {
    text.split_whitespace()
        .map(|pair| pair.split_once('=').unwrap())
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

fn pod(yaml: &str) -> Value {
    object(yaml)
}

fn enabled() -> NamespaceLabels {
    labels("istio-injection=enabled")
}

#[test]
fn precedence_is_istios() {
    use Labelled::{Namespace, Pod};
    let refused = |on, label: &str| Some(Why::Refused { on, label: label.into() });
    let other = |on| Some(Why::AnotherRevision { on, revision: "stable".into() });
    let none = Some(Why::NotAsked);
    let (on, off) = ("istio-injection=enabled", "istio-injection=disabled");
    let (yes, no) = ("sidecar.istio.io/inject=true", "sidecar.istio.io/inject=false");
    let (ours_on, ours_off) = ("isthmus.dev/inject=enabled", "isthmus.dev/inject=disabled");
    let (ours, theirs) = ("istio.io/rev=isthmus", "istio.io/rev=stable");
    // Namespace, pod, and why not; nothing is: it is injected.
    let table = [
        ("", "", none.clone()),
        (on, "", None),
        (off, "", refused(Namespace, off)),
        ("", yes, None),
        ("", no, refused(Pod, no)),
        (on, no, refused(Pod, no)),
        (on, yes, None),
        // Either that is disabled wins (istio.io, "Controlling the injection policy").
        (off, yes, refused(Namespace, off)),
        (off, ours_on, refused(Namespace, off)),
        ("istio-injection=maybe", "", none.clone()),
        ("", "sidecar.istio.io/inject=maybe", none),
        // Ours says the same, and speaks of nobody else.
        (ours_on, "", None),
        ("", ours_on, None),
        ("", "isthmus.dev/inject=true", None),
        (on, ours_off, refused(Pod, ours_off)),
        (on, "isthmus.dev/inject=false", refused(Pod, "isthmus.dev/inject=false")),
        (ours_off, yes, refused(Namespace, ours_off)),
        (ours_off, ours_on, refused(Namespace, ours_off)),
        (ours_on, no, refused(Pod, no)),
        // Revisions: the namespace's before the pod's, and behind istio-injection.
        (ours, "", None),
        (theirs, "", other(Namespace)),
        (theirs, yes, other(Namespace)),
        (theirs, ours, other(Namespace)),
        (theirs, ours_on, None),
        ("", ours, None),
        ("", theirs, other(Pod)),
        ("istio-injection=enabled istio.io/rev=stable", "", None),
        (on, theirs, None),
        (ours, no, refused(Pod, no)),
        ("", "istio.io/rev=stable sidecar.istio.io/inject=true", other(Pod)),
        ("istio.io/rev=", yes, None),
    ];
    for (namespace, pod_labels, expected) in table {
        let pod = json!({
            "metadata": {"labels": labels(pod_labels)}, "spec": {"containers": [{"name": "app"}]},
        });
        let found = match inject(&pod, &labels(namespace), &settings()) {
            Injection::Inject { .. } => None,
            Injection::Leave(why) => Some(why),
        };
        assert_eq!(found, expected, "namespace {namespace:?}, pod {pod_labels:?}");
    }
}

#[test]
fn the_old_annotation_counts_where_the_label_is_absent() {
    let with = |label: &str| {
        pod(&format!(
            "{{metadata: {{annotations: {{sidecar.istio.io/inject: 'false'}}, labels: {{{label}}}}}, \
             spec: {{containers: [{{name: app}}]}}}}"
        ))
    };
    let injected = |pod| matches!(inject(&pod, &enabled(), &settings()), Injection::Inject { .. });
    assert!(!injected(with("")));
    assert!(injected(with("sidecar.istio.io/inject: 'true'")));
}

#[test]
fn what_cannot_have_a_sidecar_is_left_and_said() {
    let app = "containers: [{name: app}]";
    for (yaml, code, outcome) in [
        (format!("{{spec: {{hostNetwork: true, {app}}}}}"), "ISM2710", "host_network"),
        (
            format!(
                "{{metadata: {{annotations: {{sidecar.istio.io/status: x}}}}, spec: {{{app}}}}}"
            ),
            "ISM2711",
            "another_injector",
        ),
        (
            "{spec: {containers: [{name: app}, {name: istio-proxy}]}}".into(),
            "ISM2711",
            "another_injector",
        ),
        (
            format!("{{spec: {{initContainers: [{{name: istio-proxy}}], {app}}}}}"),
            "ISM2711",
            "another_injector",
        ),
        (
            format!("{{spec: {{securityContext: {{runAsUser: 1337}}, {app}}}}}"),
            "ISM2712",
            "sidecar_user",
        ),
        (
            "{spec: {containers: [{name: app, securityContext: {runAsUser: 1337}}]}}".into(),
            "ISM2712",
            "sidecar_user",
        ),
        (format!("{{spec: {{os: {{name: windows}}, {app}}}}}"), "ISM2713", "windows"),
        (
            format!(
                "{{metadata: {{annotations: {{kubernetes.io/config.mirror: x}}}}, spec: {{{app}}}}}"
            ),
            "ISM2714",
            "mirror",
        ),
        ("{spec: {containers: [{name: isthmus-proxy}]}}".into(), "ISM2715", "name_taken"),
        (
            format!("{{spec: {{volumes: [{{name: isthmus-state}}], {app}}}}}"),
            "ISM2715",
            "name_taken",
        ),
        ("{spec: {containers: []}}".into(), "ISM2717", "not_understood"),
        ("{spec: {containers: 7}}".into(), "ISM2717", "not_understood"),
        (
            "{metadata: {labels: [a]}, spec: {containers: [{name: a}]}}".into(),
            "ISM2717",
            "not_understood",
        ),
        ("[]".into(), "ISM2717", "not_understood"),
        ("{}".into(), "ISM2717", "not_understood"),
    ] {
        let injection = inject(&pod(&yaml), &enabled(), &settings());
        let Injection::Leave(why) = &injection else { panic!("{yaml}: {injection:?}") };
        let text = why.to_string();
        assert!(text.starts_with(code) && text.contains("Fix: "), "{yaml}: {text}");
        assert_eq!(why.outcome(), outcome);
        assert_eq!(injection.warnings().len(), 1);
        assert!(injection.warnings()[0].chars().count() <= 256, "{text}");
    }
    // One container of its own user under a pod of 1337 is fine, for itself only.
    let own = "{spec: {securityContext: {runAsUser: 1337}, containers: [{name: app, \
               securityContext: {runAsUser: 1000}}]}}";
    assert!(matches!(inject(&pod(own), &enabled(), &settings()), Injection::Inject { .. }));
}

#[test]
fn limits_are_kept() {
    let left = |pod: Value| match inject(&pod, &enabled(), &settings()) {
        Injection::Leave(Why::TooLarge(limit)) => limit,
        other => panic!("{other:?}"),
    };
    let mut deep = json!("x");
    for _ in 0..DEPTH_MAX {
        deep = json!([deep]);
    }
    assert_eq!(left(json!({"spec": {"containers": [{"name": "a"}], "x": deep}})), "depth");
    let long = "x".repeat(POD_MAX);
    assert_eq!(left(json!({"metadata": {"annotations": {"a": long}}, "spec": {}})), "size");
    let many: Vec<Value> = (0..=CONTAINERS_MAX).map(|i| json!({"name": format!("c{i}")})).collect();
    assert_eq!(left(json!({"spec": {"containers": many}})), "number of containers");
    let header = json!({"name": "x", "value": "x".repeat(CONFIGURATION_MAX)});
    let probe = json!({"httpGet": {"port": 80, "httpHeaders": [header]}});
    let pod = json!({"spec": {"containers": [{"name": "a", "livenessProbe": probe}]}});
    assert!(left(pod).contains("configuration"));
}

#[test]
fn a_pod_gets_exactly_this() {
    let before = pod(
        "{metadata: {name: hello, labels: {app: hello}}, spec: {futureField: {a: 1}, \
         initContainers: [{name: migrate, image: m}], containers: [{name: app, image: hello, ports: \
         [{name: http, containerPort: 8080}], livenessProbe: {httpGet: {path: /live, port: http, \
         httpHeaders: [{name: X-Price, value: $(HOME)}]}, periodSeconds: 7}, readinessProbe: {exec: \
         {command: [ls]}}, startupProbe: {grpc: {port: 9000}}}]}}",
    );
    let injection = inject(&before, &enabled(), &settings());
    let Injection::Inject { patch, warnings } = &injection else { panic!("{injection:?}") };
    assert!(warnings.is_empty(), "{warnings:?}");
    let after = apply(&before, patch);
    expect![[r#"
        metadata:
          annotations:
            isthmus.dev/injected: "{\"initContainers\":[\"isthmus-init\",\"isthmus-proxy\"],\"version\":\"0.1.0\",\"volumes\":[\"isthmus-token\",\"isthmus-state\"]}"
          labels:
            app: hello
            security.istio.io/tlsMode: istio
          name: hello
        spec:
          containers:
          - image: hello
            livenessProbe:
              httpGet:
                path: /app-health/app/livez
                port: 15020
                scheme: HTTP
              periodSeconds: 7
            name: app
            ports:
            - containerPort: 8080
              name: http
            readinessProbe:
              exec:
                command:
                - ls
            startupProbe:
              httpGet:
                path: /app-health/app/startupz
                port: 15020
                scheme: HTTP
          futureField:
            a: 1
          initContainers:
          - args:
            - sidecar-redirect
            image: isthmus:test
            name: isthmus-init
            resources:
              requests:
                cpu: 10m
                memory: 48Mi
            securityContext:
              allowPrivilegeEscalation: false
              capabilities:
                add:
                - NET_ADMIN
                - NET_RAW
                drop:
                - ALL
              privileged: false
              readOnlyRootFilesystem: true
              runAsGroup: 0
              runAsNonRoot: false
              runAsUser: 0
              seccompProfile:
                type: RuntimeDefault
          - args:
            - sidecar
            - --config-env
            - ISTHMUS_SIDECAR_CONFIG
            env:
            - name: POD_NAME
              valueFrom:
                fieldRef:
                  apiVersion: v1
                  fieldPath: metadata.name
            - name: POD_NAMESPACE
              valueFrom:
                fieldRef:
                  apiVersion: v1
                  fieldPath: metadata.namespace
            - name: SERVICE_ACCOUNT
              valueFrom:
                fieldRef:
                  apiVersion: v1
                  fieldPath: spec.serviceAccountName
            - name: POD_IPS
              valueFrom:
                fieldRef:
                  apiVersion: v1
                  fieldPath: status.podIPs
            - name: ISTHMUS_SIDECAR_CONFIG
              value: |-
                {
                  "account": "$(SERVICE_ACCOUNT)",
                  "cluster": "east",
                  "controlPlane": "isthmus-control-plane.isthmus-system.svc:15012",
                  "dns": {},
                  "namespace": "$(POD_NAMESPACE)",
                  "network": "net-east",
                  "pod": "$(POD_NAME)",
                  "podAddresses": "$(POD_IPS)",
                  "probes": {
                    "/app-health/app/livez": {
                      "httpGet": {
                        "httpHeaders": [
                          {
                            "name": "X-Price",
                            "value": "$$(HOME)"
                          }
                        ],
                        "path": "/live",
                        "port": 8080,
                        "scheme": "HTTP"
                      },
                      "timeoutSeconds": 1
                    },
                    "/app-health/app/startupz": {
                      "grpc": {
                        "port": 9000,
                        "service": ""
                      },
                      "timeoutSeconds": 1
                    }
                  },
                  "rootCertificates": "-----BEGIN CERTIFICATE-----\nMA==\n-----END CERTIFICATE-----\n",
                  "state": "/var/lib/isthmus/state",
                  "token": "/var/run/secrets/tokens/istio-token",
                  "trustDomain": "east.mesh",
                  "vipRanges": [
                    "240.240.0.0/16",
                    "2001:2::/48"
                  ]
                }
            image: isthmus:test
            name: isthmus-proxy
            ports:
            - containerPort: 15090
              name: isthmus-metrics
              protocol: TCP
            readinessProbe:
              failureThreshold: 3
              httpGet:
                path: /healthz/ready
                port: 15021
                scheme: HTTP
              periodSeconds: 5
              timeoutSeconds: 3
            resources:
              requests:
                cpu: 10m
                memory: 48Mi
            restartPolicy: Always
            securityContext:
              allowPrivilegeEscalation: false
              capabilities:
                drop:
                - ALL
              privileged: false
              readOnlyRootFilesystem: true
              runAsGroup: 1337
              runAsNonRoot: true
              runAsUser: 1337
              seccompProfile:
                type: RuntimeDefault
            startupProbe:
              failureThreshold: 600
              httpGet:
                path: /healthz/ready
                port: 15021
                scheme: HTTP
              periodSeconds: 1
              timeoutSeconds: 3
            volumeMounts:
            - mountPath: /var/run/secrets/tokens
              name: isthmus-token
              readOnly: true
            - mountPath: /var/lib/isthmus
              name: isthmus-state
          - image: m
            name: migrate
          volumes:
          - name: isthmus-token
            projected:
              sources:
              - serviceAccountToken:
                  audience: istio-ca
                  expirationSeconds: 43200
                  path: istio-token
          - emptyDir:
              medium: Memory
              sizeLimit: 64Mi
            name: isthmus-state
    "#]].assert_eq(&serde_saphyr::to_string(&after).unwrap());
    assert_eq!(after["spec"]["futureField"], before["spec"]["futureField"]);
    assert_eq!(inject(&after, &enabled(), &settings()), Injection::Leave(Why::AlreadyOurs));
}

#[test]
fn warnings_tell_what_will_not_be_as_meant() {
    let warned = |yaml: &str, namespace: &str| {
        let namespace = labels(&format!("istio-injection=enabled {namespace}"));
        let injection = inject(&pod(yaml), &namespace, &settings());
        let Injection::Inject { warnings, .. } = injection else { panic!("{injection:?}") };
        warnings
    };
    let plain = "{spec: {containers: [{name: app}]}}";
    for (yaml, namespace, code) in [
        (plain, "pod-security.kubernetes.io/enforce=restricted", "ISM2720"),
        ("{spec: {dnsPolicy: Default, containers: [{name: app}]}}", "", "ISM2721"),
        ("{spec: {containers: [{name: app, ports: [{containerPort: 15021}]}]}}", "", "ISM2722"),
        (
            "{spec: {containers: [{name: app, lifecycle: {preStop: {httpGet: {port: 80}}}}]}}",
            "",
            "ISM2723",
        ),
        (
            "{metadata: {labels: {security.istio.io/tlsMode: disabled}}, spec: {containers: [{name: \
             app}]}}",
            "",
            "ISM2724",
        ),
        (
            "{metadata: {annotations: {traffic.sidecar.istio.io/excludeInboundPorts: x}}, spec: \
             {containers: [{name: app}]}}",
            "",
            "ISM2730",
        ),
        (
            "{spec: {containers: [{name: app, livenessProbe: {httpGet: {port: nope}}}]}}",
            "",
            "ISM2732",
        ),
        (
            "{spec: {containers: [{name: app, livenessProbe: {tcpSocket: {port: 1, host: 1.1.1.1}}}]}}",
            "",
            "ISM2732",
        ),
    ] {
        let warnings = warned(yaml, namespace);
        assert!(
            warnings.len() == 1 && warnings[0].starts_with(code) && warnings[0].contains("Fix: "),
            "{yaml}: {warnings:?}"
        );
    }
    assert!(warned(plain, "").is_empty());
    let many = (0..20).map(|i| format!("sidecar.istio.io/x{i}: z")).collect::<Vec<_>>().join(", ");
    let many =
        format!("{{metadata: {{annotations: {{{many}}}}}, spec: {{containers: [{{name: app}}]}}}}");
    let warnings = warned(&many, "");
    assert_eq!((warnings.len(), warnings[7].as_str()), (8, "13 more warnings are not shown"));
}

#[test]
fn probes_stay_where_an_annotation_says_so() {
    let yaml = "{metadata: {annotations: {sidecar.istio.io/rewriteAppHTTPProbers: 'false'}}, spec: \
                {containers: [{name: app, livenessProbe: {httpGet: {port: 80}}}]}}";
    let pod = pod(yaml);
    let Injection::Inject { patch, warnings } = inject(&pod, &enabled(), &settings()) else {
        panic!()
    };
    assert!(warnings.is_empty());
    assert_eq!(apply(&pod, &patch)["spec"]["containers"], pod["spec"]["containers"]);
}

#[test]
fn a_file_of_manifests_keeps_what_is_none_of_ours() {
    let text = "# A comment\napiVersion: v1\nkind: Service\nmetadata: {name: hello}\n---\n\
                apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: hello, namespace: shop}\nspec:\n  \
                template:\n    metadata: {labels: {app: hello}}\n    spec: {containers: [{name: app}]}\n\
                ---\napiVersion: v1\nkind: List\nitems:\n- apiVersion: batch/v1\n  kind: CronJob\n  \
                metadata: {name: tidy, namespace: shop}\n  spec: {jobTemplate: {spec: {template: {spec: \
                {hostNetwork: true, containers: [{name: t}]}}}}}\n- {apiVersion: v1, kind: Pod, metadata: \
                {generateName: p-}, spec: {containers: [{name: a}]}}\n---\n# nothing\n";
    let documents = Documents::read(text).unwrap();
    let named = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    assert_eq!(documents.namespaces("default"), named(&["default", "shop"]));
    let labels = BTreeMap::from([("shop".to_owned(), enabled())]);
    let done = documents.inject(&labels, "default", &settings());
    let seen: Vec<_> =
        done.outcomes.iter().map(|o| format!("{} {} {:?}", o.object, o.injected, o.said)).collect();
    assert_eq!(seen[0], "Deployment shop/hello true []");
    assert!(seen[1].starts_with("CronJob shop/tidy false [\"ISM2710 no sidecar"), "{seen:?}");
    assert!(seen[2].starts_with("Pod default/p- false [\"no label asks"), "{seen:?}");
    assert!(done.text.starts_with("# A comment\napiVersion: v1\nkind: Service\n"), "{}", done.text);
    assert!(done.text.ends_with("{containers: [{name: a}]}}\n---\n# nothing\n"), "{}", done.text);
    assert_eq!(done.text.matches("name: isthmus-proxy").count(), 1, "{}", done.text);
    // Done again, nothing changes.
    let again = super::documents(&done.text, &labels, "default", &settings()).unwrap();
    assert_eq!(again.text, done.text);
    let wrong = Documents::read("a: b\n---\ndata: eyJSECRET\na: [").unwrap_err();
    let wrong = format!("{wrong:#}");
    assert!(wrong.starts_with("ISM2706 document 2 ") && wrong.contains(" at line "), "{wrong}");
    assert!(!wrong.contains("SECRET"), "{wrong}");
}
