//! Real API servers on loopback, and the few objects of two small clusters.

mod bare;
#[path = "../../../cluster/tests/own/server.rs"]
mod server;

pub(crate) use bare::Bare;
use kube::Client;
use kube::api::{Api, DynamicObject, Patch, PatchParams};
use serde_json::{Value, json};
use server::Server;
pub(crate) use server::port::Port;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// Where the parts of real clusters are.
pub(crate) struct Parts {
    programs: PathBuf,
    /// CRDs of Istio, the Gateway API and the MCS API, as documents.
    crds: Vec<Value>,
}

impl Parts {
    /// `None`, told loudly, where this machine lacks them; in CI that is a failure.
    pub(crate) fn find() -> Option<Self> {
        let programs = server::programs()?;
        let crds = crds().map_err(|why| {
            assert!(std::env::var_os("CI").is_none(), "nothing may be missing in CI: {why}");
            eprintln!("\n*** NOT RUN: {why}.\n");
        });
        Some(Self { programs, crds: crds.ok()? })
    }
}

fn crds() -> Result<Vec<Value>, String> {
    let mut crds = Vec::new();
    let istio =
        module("istio.io/api", "v1.31.1")?.join("kubernetes/customresourcedefinitions.gen.yaml");
    crds.extend(documents(&istio)?);
    let gateway = module("sigs.k8s.io/gateway-api", "v1.6.1")?.join("config/crd/standard");
    crds.extend(documents(&gateway.join("gateway.networking.k8s.io_gateways.yaml"))?);
    let mcs = module("sigs.k8s.io/mcs-api", "v0.5.2")?.join("config/crd");
    crds.extend(documents(&mcs.join("multicluster.x-k8s.io_serviceexports.yaml"))?);
    for (_, text) in cluster::api::crd_yaml() {
        crds.push(serde_saphyr::from_str(&text).map_err(|e| e.to_string())?);
    }
    Ok(crds)
}

fn module(path: &str, version: &str) -> Result<PathBuf, String> {
    let folder = tempfile::tempdir().map_err(|e| e.to_string())?;
    let output = Command::new("go")
        .args(["mod", "download", "-json", &format!("{path}@{version}")])
        .current_dir(folder.path())
        .output()
        .map_err(|e| format!("go cannot be run: {e}"))?;
    let told: Value = serde_json::from_slice(&output.stdout)
        .map_err(|e| format!("go mod download {path}: {e}"))?;
    told["Dir"]
        .as_str()
        .map(PathBuf::from)
        .ok_or_else(|| format!("{path}@{version} cannot be downloaded: {}", told["Error"]))
}

fn documents(path: &Path) -> Result<Vec<Value>, String> {
    let text = std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
    let parts = text.split("\n---").filter(|part| part.contains("kind: CustomResourceDefinition"));
    parts
        .map(|part| serde_saphyr::from_str(part).map_err(|e| format!("{}: {e}", path.display())))
        .collect()
}

/// An API server with its etcd, and what two small clusters have.
pub(crate) struct Cluster {
    pub name: &'static str,
    pub client: Client,
    pub url: String,
    pub authority: String,
    pub server: Server,
}

const RESTS: &str = "isthmus.dev/rests-until";
pub(crate) const LINK: &str = "link-token";
pub(crate) const LINK_2: &str = "link-token-2";

impl Cluster {
    pub(crate) async fn start(parts: &Parts, name: &'static str) -> Self {
        let tokens = format!("{LINK},link,link\n{LINK_2},link,link\n");
        let flags = &["--disable-admission-plugins=ServiceAccount"];
        let server = Server::with(&parts.programs, &tokens, flags).await;
        let (client, url, authority) = (server.client().await, server.url(), server.authority());
        let cluster = Self { name, client, url, authority, server };
        cluster.furnish(parts).await;
        cluster
    }

    pub(crate) fn api(&self, version: &str, kind: &str, namespace: &str) -> Api<DynamicObject> {
        server::api(&self.client, version, kind, namespace)
    }

    /// Applies an object, and its status where it has one.
    #[track_caller]
    pub(crate) fn apply(&self, object: Value) -> impl Future<Output = ()> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let namespace = text(&object["metadata"]["namespace"]);
        let api = self.api(&text(&object["apiVersion"]), &text(&object["kind"]), &namespace);
        let name = text(&object["metadata"]["name"]);
        async move {
            let patch = PatchParams::apply("test").force();
            let shown = object.to_string();
            api.patch(&name, &patch, &Patch::Apply(&object))
                .await
                .unwrap_or_else(|e| panic!("{e}: {shown}"));
            if object.get("status").is_some() && object["kind"] != "CustomResourceDefinition" {
                api.patch_status(&name, &patch, &Patch::Apply(&object))
                    .await
                    .unwrap_or_else(|e| panic!("{e}: {shown}"));
            }
        }
    }

    pub(crate) async fn read(
        &self,
        version: &str,
        kind: &str,
        namespace: &str,
        name: &str,
    ) -> Option<Value> {
        let found = self.api(version, kind, namespace).get_opt(name).await.ok().flatten()?;
        serde_json::to_value(found).ok()
    }

    pub(crate) async fn link(&self, name: &str) -> Option<Value> {
        self.read("isthmus.dev/v1alpha1", "ClusterLink", "isthmus-system", name).await
    }

    /// A published entry; one whose addresses only rest is none.
    pub(crate) async fn entry(&self, namespace: &str, name: &str) -> Option<Value> {
        let found = self.read("networking.istio.io/v1", "ServiceEntry", namespace, name).await;
        found.filter(|entry| entry["metadata"]["annotations"][RESTS].is_null())
    }

    /// What rests under this name: until when, and which addresses.
    pub(crate) async fn resting(&self, namespace: &str, name: &str) -> Option<(Value, Value)> {
        let found = self.read("networking.istio.io/v1", "ServiceEntry", namespace, name).await?;
        let until = found["metadata"]["annotations"][RESTS].clone();
        (!until.is_null()).then(|| (until, found["spec"]["addresses"].clone()))
    }

    /// Namespaces, CRDs, the mesh's ConfigMap, a gateway, and what a link may read.
    async fn furnish(&self, parts: &Parts) {
        for crd in &parts.crds {
            self.apply(crd.clone()).await;
        }
        for crd in &parts.crds {
            let name = crd["metadata"]["name"].as_str().unwrap();
            until(&format!("{name} is established"), Duration::from_secs(30), async || {
                let found = self
                    .read("apiextensions.k8s.io/v1", "CustomResourceDefinition", "", name)
                    .await?;
                condition(&found, "Established").filter(|c| c["status"] == "True").map(|_| ())
            })
            .await;
        }
        for namespace in ["isthmus-system", "shop"] {
            self.apply(
                json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}),
            )
            .await;
        }
        self.apply(json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": "isthmus-eastwestgateway", "namespace": "isthmus-system",
                "labels": {"istio": "eastwestgateway", "topology.istio.io/network": format!("net-{}", self.name)}},
            "spec": {"type": "LoadBalancer", "ports": [{"name": "tls", "port": 15443}]},
            "status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.7"}]}}
        }))
        .await;
        let rule = |groups: &str, resources: &[&str], verbs: &[&str]| json!({"apiGroups": [groups], "resources": resources, "verbs": verbs});
        // Decision 3: what a link's credential may read, and nothing else.
        let watch = ["get", "list", "watch"];
        self.apply(json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": "link"},
            "rules": [
                rule("isthmus.dev", &["exportedservices", "clusterlinks"], &watch),
                {"apiGroups": [""], "resources": ["namespaces"], "resourceNames": ["kube-system"], "verbs": ["get"]},
            ]
        }))
        .await;
        self.apply(json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role",
            "metadata": {"name": "link", "namespace": "isthmus-system"},
            "rules": [
                rule("", &["services"], &watch),
                {"apiGroups": [""], "resources": ["configmaps"], "resourceNames": ["isthmus-mesh"], "verbs": watch},
            ]
        }))
        .await;
        let subjects =
            json!([{"kind": "User", "name": "link", "apiGroup": "rbac.authorization.k8s.io"}]);
        self.apply(json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "link"},
            "subjects": subjects, "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "link"}
        }))
        .await;
        self.apply(json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
            "metadata": {"name": "link", "namespace": "isthmus-system"},
            "subjects": subjects, "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "link"}
        }))
        .await;
    }

    pub(crate) async fn mesh(&self, root: &str) {
        let name = self.name;
        self.apply(json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": "isthmus-mesh", "namespace": "isthmus-system"},
            "data": {"cluster": name, "network": format!("net-{name}"), "trustDomain": format!("{name}.mesh"),
                "rootCertificates": root}
        }))
        .await;
    }

    /// Service shop/hello, exported, with `ready` meshed pods behind it.
    pub(crate) async fn hello(&self, ready: usize) {
        self.apply(json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "hello", "namespace": "shop"},
            "spec": {"selector": {"app": "hello"}, "ports": [{"name": "http", "port": 80, "targetPort": 8080}]}
        }))
        .await;
        self.apply(json!({
            "apiVersion": "multicluster.x-k8s.io/v1beta1", "kind": "ServiceExport",
            "metadata": {"name": "hello", "namespace": "shop"}
        }))
        .await;
        for n in 0..ready {
            self.apply(json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {"name": format!("hello-{n}"), "namespace": "shop",
                    "labels": {"app": "hello", "security.istio.io/tlsMode": "istio"}},
                "spec": {"serviceAccountName": "hello", "nodeName": "node-1",
                    "containers": [{"name": "app", "image": "hello"}]},
                "status": {"phase": "Running", "podIP": format!("10.244.0.{}", n + 10),
                    "podIPs": [{"ip": format!("10.244.0.{}", n + 10)}]}
            }))
            .await;
        }
        self.ready(ready).await;
    }

    /// How many of hello's pods are ready.
    pub(crate) async fn ready(&self, ready: usize) {
        let endpoints: Vec<Value> = (0..ready)
            .map(|n| {
                json!({"addresses": [format!("10.244.0.{}", n + 10)], "conditions": {"ready": true},
                "targetRef": {"kind": "Pod", "namespace": "shop", "name": format!("hello-{n}")}})
            })
            .collect();
        self.apply(json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"name": "hello-1", "namespace": "shop", "labels": {"kubernetes.io/service-name": "hello"}},
            "addressType": "IPv4", "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
            "endpoints": endpoints
        }))
        .await;
    }

    /// Istio's remote secret for `remote`, with a credential and a CA.
    pub(crate) async fn remote_secret(&self, remote: &Self, token: &str, authority: &str) {
        let name = remote.name;
        self.apply(json!({
            "apiVersion": "v1", "kind": "Secret",
            "metadata": {"name": format!("istio-remote-secret-{name}"), "namespace": "isthmus-system",
                "labels": {"istio/multiCluster": "true"}, "annotations": {"networking.istio.io/cluster": name}},
            "stringData": {name: kubeconfig(name, &remote.url, authority, token)}
        }))
        .await;
    }
}

pub(crate) fn condition<'a>(object: &'a Value, kind: &str) -> Option<&'a Value> {
    object["status"]["conditions"].as_array()?.iter().find(|condition| condition["type"] == kind)
}

/// Ready copies behind an entry.
pub(crate) fn copies(entry: &Value) -> u64 {
    let endpoints = entry["spec"]["endpoints"].as_array();
    endpoints.into_iter().flatten().filter_map(|endpoint| endpoint["weight"].as_u64()).sum()
}

/// Awaits a state; says what was awaited when it does not come.
#[track_caller]
pub(crate) fn until<T>(
    what: &str,
    limit: Duration,
    mut look: impl AsyncFnMut() -> Option<T>,
) -> impl Future<Output = (T, Duration)> {
    let what = what.to_owned();
    let place = std::panic::Location::caller();
    async move {
        let start = Instant::now();
        loop {
            if let Some(found) = look().await {
                return (found, start.elapsed());
            }
            assert!(start.elapsed() < limit, "after {limit:?} still not: {what} ({place})");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

/// A certificate authority that signed nothing of ours, PEM.
pub(crate) fn other_authority() -> String {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};
    let mut ca = CertificateParams::new(vec![]).unwrap();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca.self_signed(&KeyPair::generate().unwrap()).unwrap().pem()
}

/// A kubeconfig in the shape istioctl writes.
fn kubeconfig(name: &str, url: &str, authority: &str, token: &str) -> String {
    use base64::Engine as _;
    let ca = base64::engine::general_purpose::STANDARD.encode(authority);
    format!(
        "apiVersion: v1\nclusters:\n- cluster:\n    certificate-authority-data: {ca}\n    server: {url}\n  name: {name}\n\
         contexts:\n- context:\n    cluster: {name}\n    user: {name}\n  name: {name}\ncurrent-context: {name}\n\
         kind: Config\nusers:\n- name: {name}\n  user:\n    token: {token}\n"
    )
}

/// The same, of a user whose credential a program would print.
pub(crate) fn runs_a_program(name: &str, authority: &str) -> String {
    let text = kubeconfig(name, "https://10.0.0.2", authority, "none");
    let program = text.replace("token: none", "exec: {command: /bin/true}");
    assert_ne!(text, program);
    program
}
