//! Plays kubelet and the controllers of one cluster: pods as processes, and the objects about them.

use crate::objects::{apply, apply_status};
use crate::process::{Job, Process};
use crate::spot::{Spot, http_get};
use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::{OpenOptionsExt, chown};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

/// The user a sidecar and a gateway run as; capture leaves this user's connections alone.
pub const PROXY_USER: u32 = 1337;
/// The user applications run as.
pub const APP_USER: u32 = 1000;
/// Port of a proxy's health page.
pub const HEALTH_PORT: u16 = 15021;

/// One pod: at most two processes in a spot of their own.
pub struct Pod {
    pub cluster: String,
    pub namespace: String,
    pub name: String,
    pub account: String,
    pub labels: BTreeMap<String, String>,
    pub address: Ipv4Addr,
    pub spot: Spot,
    /// Where its proxy's health page is, from inside.
    pub pages: Ipv4Addr,
    /// Its files: configuration, token, state.
    pub dir: PathBuf,
    pub app: OnceLock<Process>,
    pub proxy: OnceLock<Process>,
    /// UID of the Pod object.
    pub uid: OnceLock<String>,
}

impl Pod {
    fn processes(&self) -> impl Iterator<Item = &Process> {
        self.app.get().into_iter().chain(self.proxy.get())
    }

    /// As the Pod object names them; a gateway's one is its proxy.
    fn containers(&self) -> &'static [&'static str] {
        match self.labels.get("security.istio.io/tlsMode").map(String::as_str) {
            Some("istio") => &["app", "istio-proxy"],
            Some(_) | None => &["app"],
        }
    }

    /// What a kubelet would find: no process has ended, and the proxy says it is ready.
    fn probe(&self) -> Probe {
        if self.processes().next().is_none() || self.processes().any(|p| p.ended().is_some()) {
            return Probe::Dead;
        }
        if self.proxy.get().is_none() {
            return Probe::Ready;
        }
        let address = SocketAddr::from((self.pages, HEALTH_PORT));
        match http_get(&self.spot, address, "/readyz", Duration::from_secs(1)) {
            Ok((200, _)) => Probe::Ready,
            Ok(_) | Err(_) => Probe::Silent,
        }
    }

    /// Puts its application's and its proxy's log into a message.
    pub fn last_words(&self) -> String {
        self.processes().map(|p| format!("--- {}\n{}\n", p.name(), p.last_words())).collect()
    }

    /// A job in this pod.
    pub fn job(&self, what: &str, program: &std::path::Path, logs: &std::path::Path) -> Job {
        Job::new(format!("{}/{}/{what}", self.cluster, self.name), &self.spot, program, logs)
    }
}

enum Probe {
    Ready,
    /// It runs and does not say that it is ready.
    Silent,
    Dead,
}

/// A Service of the launcher: its selector and ports.
#[derive(Debug, Clone)]
pub struct Service {
    pub namespace: String,
    pub name: String,
    pub selector: BTreeMap<String, String>,
    /// Name, number, target port.
    pub ports: Vec<(String, u16, u16)>,
}

/// The kubelet and the controllers of one cluster.
pub struct Launcher {
    pub client: kube::Client,
    pub node: String,
    pub zone: String,
    pub node_address: Ipv4Addr,
    pub pods: Mutex<Vec<Arc<Pod>>>,
    pub services: Mutex<Vec<Service>>,
    /// Readiness as the API server was last told, by pod.
    told: tokio::sync::Mutex<BTreeMap<String, bool>>,
    /// Consecutive probes without an answer, by pod.
    misses: Mutex<BTreeMap<String, u32>>,
    /// No rounds while set: a scenario plays kubelet itself.
    paused: AtomicBool,
}

impl Launcher {
    pub fn new(client: kube::Client, node: &str, zone: &str, node_address: Ipv4Addr) -> Self {
        Self {
            client,
            node: node.to_owned(),
            zone: zone.to_owned(),
            node_address,
            pods: Mutex::default(),
            services: Mutex::default(),
            told: Default::default(),
            misses: Mutex::default(),
            paused: AtomicBool::new(false),
        }
    }

    /// The Node object with its locality.
    pub async fn register(&self, region: &str) -> Result<()> {
        let labels = json!({
            "kubernetes.io/hostname": self.node,
            "topology.kubernetes.io/region": region,
            "topology.kubernetes.io/zone": self.zone,
        });
        let node = json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {"name": self.node, "labels": labels},
        });
        apply(&self.client, &node).await?;
        let status = json!({
            "apiVersion": "v1", "kind": "Node", "metadata": {"name": self.node},
            "status": {
                "addresses": [{"type": "InternalIP", "address": self.node_address}],
                "conditions": [{"type": "Ready", "status": "True"}],
            },
        });
        apply_status(&self.client, &status).await
    }

    /// Creates the Pod object, then its token file; the pod's processes come after it.
    pub async fn admit(&self, pod: &Arc<Pod>) -> Result<()> {
        let image = "none, a process of the harness";
        let containers = pod.containers().iter().map(|name| json!({"name": name, "image": image}));
        let containers: Vec<Value> = containers.collect();
        let object = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": pod.name, "namespace": pod.namespace, "labels": pod.labels},
            "spec": {
                "serviceAccountName": pod.account,
                "automountServiceAccountToken": false,
                "nodeName": self.node,
                "containers": containers,
            },
        });
        let stored = apply(&self.client, &object).await?;
        let uid = stored.metadata.uid.context("a stored Pod has a UID")?;
        pod.uid.set(uid).ok();
        self.pods.lock().expect("no holder panics").push(pod.clone());
        self.write_status(pod, false).await?;
        self.write_token(pod).await
    }

    /// Takes a pod's object back; its processes and its spot go with the last who holds it.
    pub async fn dismiss(&self, pod: &Pod) -> Result<()> {
        let same =
            |known: &Arc<Pod>| (&known.namespace, &known.name) == (&pod.namespace, &pod.name);
        self.pods.lock().expect("no holder panics").retain(|known| !same(known));
        self.told.lock().await.remove(&format!("{}/{}", pod.namespace, pod.name));
        // No kubelet would confirm a graceful end.
        let path =
            format!("/api/v1/namespaces/{}/pods/{}?gracePeriodSeconds=0", pod.namespace, pod.name);
        let _: Value = self.client.request(http::Request::delete(path).body(vec![])?).await?;
        Ok(())
    }

    /// A pod-bound token for the certificate service, readable by the proxy's user only.
    pub async fn write_token(&self, pod: &Pod) -> Result<()> {
        let bound = json!({
            "apiVersion": "v1", "kind": "Pod", "name": pod.name, "uid": pod.uid.get(),
        });
        let token = self
            .token(&pod.namespace, &pod.account, &["istio-ca"], 3600, Some(bound))
            .await
            .with_context(|| format!("a token for pod {}", pod.name))?;
        let path = pod.dir.join("token");
        let fresh = pod.dir.join("token.new");
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&fresh)?;
        file.write_all(token.as_bytes())?;
        if pod.spot.netns().is_ok() {
            chown(&fresh, Some(PROXY_USER), Some(PROXY_USER))?;
        }
        std::fs::rename(fresh, path)?;
        Ok(())
    }

    /// A TokenRequest.
    pub async fn token(
        &self,
        namespace: &str,
        account: &str,
        audiences: &[&str],
        seconds: u32,
        bound: Option<Value>,
    ) -> Result<String> {
        let mut spec = json!({"expirationSeconds": seconds});
        if !audiences.is_empty() {
            spec["audiences"] = json!(audiences);
        }
        if let Some(bound) = bound {
            spec["boundObjectRef"] = bound;
        }
        let body = json!({
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec,
        });
        let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token");
        let request = http::Request::post(path)
            .header("content-type", "application/json")
            .body(serde_json::to_vec(&body)?)?;
        let answer: Value = self.client.request(request).await?;
        let token = answer["status"]["token"].as_str();
        Ok(token.context("a TokenRequest without a token")?.to_owned())
    }

    /// Creates a Service; its EndpointSlice follows its pods.
    pub async fn serve(&self, service: Service) -> Result<()> {
        let ports: Vec<Value> = service
            .ports
            .iter()
            .map(|(name, number, target)| {
                json!({"name": name, "port": number, "targetPort": target, "protocol": "TCP"})
            })
            .collect();
        let object = json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": service.name, "namespace": service.namespace, "labels": service.selector},
            "spec": {"selector": service.selector, "ports": ports},
        });
        apply(&self.client, &object).await?;
        self.services.lock().expect("no holder panics").push(service.clone());
        self.write_slice(&service).await
    }

    /// One round of a kubelet's probes: tells the API server what has changed.
    pub async fn round(self: &Arc<Self>) -> Result<()> {
        if self.paused.load(Ordering::Relaxed) {
            return Ok(());
        }
        let pods = self.pods.lock().expect("no holder panics").clone();
        let mut changed = false;
        for pod in pods {
            let probed = pod.clone();
            let found = tokio::task::spawn_blocking(move || probed.probe()).await?;
            let key = format!("{}/{}", pod.namespace, pod.name);
            let misses = {
                let mut misses = self.misses.lock().expect("no holder panics");
                let misses = misses.entry(key.clone()).or_default();
                match found {
                    Probe::Ready => *misses = 0,
                    // Three misses make a pod unready, as in Kubernetes' default probe.
                    Probe::Silent => *misses += 1,
                    Probe::Dead => *misses = 3,
                }
                *misses
            };
            let mut told = self.told.lock().await;
            let was = told.get(&key).copied();
            let ready = match misses {
                0 => true,
                1..3 => was.unwrap_or(false),
                _ => false,
            };
            if was != Some(ready) {
                self.write_status(&pod, ready).await?;
                told.insert(key, ready);
                changed = true;
            }
        }
        if changed {
            self.write_slices().await?;
        }
        Ok(())
    }

    /// Stops or continues the rounds; the next one puts right what was changed meanwhile.
    pub async fn pause(&self, paused: bool) {
        self.paused.store(paused, Ordering::Relaxed);
        if !paused {
            self.told.lock().await.clear();
        }
    }

    /// Writes an EndpointSlice in which exactly the pods named are ready, while paused.
    pub async fn write_ready(&self, service: &str, ready: &[&str]) -> Result<()> {
        let found = {
            let services = self.services.lock().expect("no holder panics");
            services.iter().find(|known| known.name == service).cloned()
        };
        let service = found.with_context(|| format!("no service {service}"))?;
        {
            let mut told = self.told.lock().await;
            for pod in self.pods.lock().expect("no holder panics").iter() {
                let key = format!("{}/{}", pod.namespace, pod.name);
                let selected = service.selector.iter().all(|(k, v)| pod.labels.get(k) == Some(v));
                if pod.namespace == service.namespace && selected {
                    told.insert(key, ready.contains(&pod.name.as_str()));
                }
            }
        }
        self.write_slice(&service).await
    }

    /// Rounds, one a second, until dropped. An API server that is down is tried again.
    pub async fn run(self: Arc<Self>) {
        let mut tick = tokio::time::interval(Duration::from_secs(1));
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut tokens_due = tokio::time::Instant::now() + Duration::from_secs(1800);
        loop {
            tick.tick().await;
            // A failed write is not recorded as told, so the next round repeats it.
            let _ = self.round().await;
            if tokio::time::Instant::now() > tokens_due {
                let pods = self.pods.lock().expect("no holder panics").clone();
                for pod in pods {
                    let _ = self.write_token(&pod).await;
                }
                tokens_due += Duration::from_secs(1800);
            }
        }
    }

    /// Waits until the API server has been told that `pod` is ready.
    pub async fn ready(&self, pod: &Pod, limit: Duration) -> Result<()> {
        let key = format!("{}/{}", pod.namespace, pod.name);
        let deadline = tokio::time::Instant::now() + limit;
        loop {
            if self.told.lock().await.get(&key) == Some(&true) {
                return Ok(());
            }
            for process in pod.processes() {
                if let Some(status) = process.ended() {
                    bail!("{} ended with {status}:\n{}", process.name(), process.last_words());
                }
            }
            if tokio::time::Instant::now() > deadline {
                bail!("pod {} is not ready after {limit:?}:\n{}", pod.name, pod.last_words());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn write_status(&self, pod: &Pod, ready: bool) -> Result<()> {
        let truth = if ready { "True" } else { "False" };
        let containers: Vec<Value> = pod
            .containers()
            .iter()
            .map(|name| {
                json!({
                    "name": name, "ready": ready, "restartCount": 0, "image": "", "imageID": "",
                    "state": {"running": {}},
                })
            })
            .collect();
        let status = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": pod.name, "namespace": pod.namespace},
            "status": {
                "phase": "Running",
                "podIP": pod.address, "podIPs": [{"ip": pod.address}],
                "hostIP": self.node_address,
                "conditions": [
                    {"type": "Ready", "status": truth},
                    {"type": "ContainersReady", "status": truth},
                ],
                "containerStatuses": containers,
            },
        });
        apply_status(&self.client, &status).await
    }

    async fn write_slices(&self) -> Result<()> {
        let services = self.services.lock().expect("no holder panics").clone();
        for service in services {
            self.write_slice(&service).await?;
        }
        Ok(())
    }

    async fn write_slice(&self, service: &Service) -> Result<()> {
        let told = self.told.lock().await.clone();
        let pods = self.pods.lock().expect("no holder panics").clone();
        let endpoints: Vec<Value> = pods
            .iter()
            .filter(|pod| pod.namespace == service.namespace)
            .filter(|pod| service.selector.iter().all(|(k, v)| pod.labels.get(k) == Some(v)))
            .map(|pod| {
                let key = format!("{}/{}", pod.namespace, pod.name);
                let ready = told.get(&key).copied().unwrap_or(false);
                json!({
                    "addresses": [pod.address],
                    "conditions": {"ready": ready, "serving": ready, "terminating": false},
                    "nodeName": self.node, "zone": self.zone,
                    "targetRef": {
                        "kind": "Pod", "name": pod.name, "namespace": pod.namespace,
                        "uid": pod.uid.get(),
                    },
                })
            })
            .collect();
        let ports: Vec<Value> = service
            .ports
            .iter()
            .map(|(name, _, target)| json!({"name": name, "port": target, "protocol": "TCP"}))
            .collect();
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {
                "name": format!("{}-1", service.name), "namespace": service.namespace,
                "labels": {
                    "kubernetes.io/service-name": service.name,
                    "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
                },
            },
            "addressType": "IPv4", "endpoints": endpoints, "ports": ports,
        });
        apply(&self.client, &slice).await.map(|_| ())
    }
}
