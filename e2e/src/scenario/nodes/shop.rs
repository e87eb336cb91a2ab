//! The workloads of users: an unmodified Deployment, its services, and a pod to call from.

use fleet::exact::PORTS;
use fleet::nodes::{HELLO, TOOLS};

/// The namespace, `copies` of hello behind the services `hello` and `exact`, and a pod with a shell: as
/// users have them before they hear of us, labelled for injection, nothing more.
pub(super) fn manifests(cluster: &str, copies: u32) -> String {
    let exact = PORTS
        .map(|(port, name, to)| format!("  - {{name: {name}, port: {port}, targetPort: {to}}}"));
    let exact = exact.join("\n");
    format!(
        r#"
apiVersion: v1
kind: Namespace
metadata:
  name: shop
  labels: {{istio-injection: enabled}}
---
apiVersion: v1
kind: ServiceAccount
metadata: {{name: default, namespace: shop}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {{name: hello, namespace: shop}}
spec:
  replicas: {copies}
  selector: {{matchLabels: {{app: hello}}}}
  template:
    metadata: {{labels: {{app: hello}}}}
    spec:
      containers:
      - name: hello
        image: {HELLO}
        args: [--cluster, {cluster}, --pod, $(POD), --also, "0.0.0.0:8082,0.0.0.0:8083"]
        env:
        - name: POD
          valueFrom: {{fieldRef: {{fieldPath: metadata.name}}}}
        ports:
        - {{name: http, containerPort: 8080}}
        readinessProbe:
          httpGet: {{path: /, port: http}}
          periodSeconds: 1
---
apiVersion: v1
kind: Service
metadata: {{name: hello, namespace: shop}}
spec:
  selector: {{app: hello}}
  ports:
  - {{name: http, port: 80, targetPort: http}}
---
apiVersion: v1
kind: Service
metadata: {{name: exact, namespace: shop}}
spec:
  selector: {{app: hello}}
  ports:
{exact}
{}"#,
        shell("tools", "")
    )
}

/// A pod to call from; `labels` beside its own: `, KEY: VALUE`.
pub(super) fn shell(name: &str, labels: &str) -> String {
    format!(
        r#"
---
apiVersion: apps/v1
kind: Deployment
metadata: {{name: {name}, namespace: shop}}
spec:
  replicas: 1
  selector: {{matchLabels: {{app: {name}}}}}
  template:
    metadata: {{labels: {{app: {name}{labels}}}}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - name: {name}
        image: {TOOLS}
        command: [sh, -c, exec sleep infinity]
"#
    )
}
