//! One cluster: its API server, its objects, its pods, and what may be done to it.

use crate::apiserver::ApiServer;
use crate::home::Home;
use crate::launcher::{Launcher, PROXY_USER, Pod, Service};
use crate::netns::Netns;
use crate::objects::{apply, apply_status, apply_yaml};
use crate::place::Place;
use crate::process::Process;
use crate::spot::Spot;
use crate::trust::Trust;
use anyhow::{Context, Result};
use serde_json::json;
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// Root namespace of the mesh.
pub const SYSTEM: &str = "isthmus-system";
/// Service and Deployment name of the east-west gateway.
pub const GATEWAY: &str = "isthmus-eastwestgateway";

/// One cluster as a scenario wants it.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    pub name: &'static str,
    /// 1 to 250: its addresses on the WAN are 198.18.NUMBER.0/24.
    pub number: u8,
    pub region: &'static str,
    pub zone: &'static str,
    pub gateways: u8,
    /// Copies of `hello` in namespace `shop`.
    pub copies: u8,
    /// From the start; else somebody exports it later.
    pub exported: bool,
    /// A client pod, meshed, in namespace `shop`.
    pub client: bool,
}

impl Plan {
    fn members(&self) -> Vec<(&'static str, u8)> {
        let Self { gateways, copies, client, .. } = *self;
        let mut members = vec![];
        members.extend((1..=gateways).map(|n| ("gateway", n)));
        members.extend((1..=copies).map(|n| ("hello", n)));
        members.extend(client.then_some(("client", 1)));
        members
    }

    /// Its pods' addresses.
    pub fn pods(&self, place: Place) -> Vec<Ipv4Addr> {
        let members = self.members().into_iter();
        members.map(|(what, number)| place.pod(self.number, last(what, number))).collect()
    }
}

/// The number of a pod among its cluster's addresses.
fn last(what: &str, number: u8) -> u8 {
    number
        + match what {
            "gateway" => 10,
            "hello" => 20,
            "envoy" => 40,
            "grpc" => 50,
            _ => 30,
        }
}

/// East calls; west is in its region, north is not.
pub const CLUSTERS: [Plan; 3] = [
    Plan {
        name: "east",
        number: 1,
        region: "europe",
        zone: "europe-1",
        gateways: 1,
        copies: 0,
        exported: true,
        client: true,
    },
    Plan {
        name: "west",
        number: 2,
        region: "europe",
        zone: "europe-2",
        gateways: 2,
        copies: 2,
        exported: true,
        client: false,
    },
    Plan {
        name: "north",
        number: 3,
        region: "america",
        zone: "america-1",
        gateways: 1,
        copies: 1,
        exported: true,
        client: false,
    },
];

/// One cluster.
pub struct Cluster {
    pub plan: Plan,
    pub control_plane: OnceLock<Process>,
    pub federation: OnceLock<Process>,
    pub pods: Vec<Arc<Pod>>,
    pub api: ApiServer,
    pub launcher: Arc<Launcher>,
    rounds: Option<tokio::task::JoinHandle<()>>,
    /// Where its node is.
    pub spot: Spot,
    pub place: Place,
    pub dir: PathBuf,
    logs: PathBuf,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Some(rounds) = self.rounds.take() {
            rounds.abort();
        }
        for process in self.processes() {
            process.signal(nix::sys::signal::Signal::SIGKILL);
        }
    }
}

impl Cluster {
    /// Address on the WAN: last octet 1 is the node, 11 and up are gateways.
    pub fn wan_address(&self, last: u8) -> Ipv4Addr {
        self.place.outside(self.plan.number, last)
    }

    /// A port of the node that shows admin pages, from inside.
    pub fn pages(&self, port: u16) -> SocketAddr {
        (self.place.pages(self.place.node(self.plan.number)), port).into()
    }

    pub fn name(&self) -> &'static str {
        self.plan.name
    }

    pub fn client(&self) -> &kube::Client {
        &self.api.client
    }

    pub(crate) fn start(plan: Plan, home: &Home, wan: Option<&Netns>) -> Result<Self> {
        let Plan { name, number, .. } = plan;
        let place = home.place;
        let dir = home.run.join(name);
        std::fs::create_dir_all(&dir)?;
        let spot = match place {
            Place::Namespaces => {
                let wan = wan.context("namespaces are joined by a WAN")?;
                Spot::Netns(node(&home.prefix, plan, wan)?)
            }
            Place::Loopback => Spot::Loopback,
        };
        let outside = place.outside(number, 1);
        let api = ApiServer::start(&home.parts, name, &spot, outside, &dir, &home.logs)?;
        let node_name = format!("{name}-node");
        let launcher = Launcher::new(api.client.clone(), &node_name, plan.zone, place.node(number));
        Ok(Self {
            plan,
            control_plane: OnceLock::new(),
            federation: OnceLock::new(),
            pods: vec![],
            api,
            launcher: Arc::new(launcher),
            rounds: None,
            spot,
            place,
            dir,
            logs: home.logs.clone(),
        })
    }

    /// Waits for the API server; then CRDs, namespaces, accounts, roles, node, pods, services.
    pub(crate) async fn populate(&mut self, home: &Home, trust: &Trust) -> Result<()> {
        let Plan { name, region, .. } = self.plan;
        self.api.ready().await?;
        let client = self.client().clone();
        let crds = home.parts.crds.iter().map(|text| apply_yaml(&client, text));
        futures::future::try_join_all(crds).await.with_context(|| format!("CRDs in {name}"))?;
        for namespace in [SYSTEM, "istio-system", "shop"] {
            let object = json!({
                "apiVersion": "v1", "kind": "Namespace",
                "metadata": {"name": namespace, "labels": {"topology.istio.io/network": name}},
            });
            apply(&client, &object).await?;
        }
        apply_yaml(&client, include_str!("../../deploy/base/roles.yaml")).await?;
        apply_yaml(&client, include_str!("../../deploy/istio-system-secrets.yaml")).await?;
        for account in ["client", "hello"] {
            let object = json!({
                "apiVersion": "v1", "kind": "ServiceAccount",
                "metadata": {"name": account, "namespace": "shop"},
            });
            apply(&client, &object).await?;
        }
        let mesh = json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": "isthmus-mesh", "namespace": SYSTEM},
            "data": {
                "cluster": name, "network": name, "trustDomain": trust_domain(name),
                "vipRange": "240.240.0.0/16", "rootCertificates": trust.root_certificate,
            },
        });
        apply(&client, &mesh).await?;
        apply_yaml(&client, &trust.cacerts(home, name)?).await?;
        self.launcher.register(region).await?;
        self.apply_gateway().await?;
        self.apply_hello().await?;
        for (what, number) in self.plan.members() {
            let pod = self.make_pod(home, what, number)?;
            std::fs::write(pod.dir.join("root.pem"), &trust.root_certificate)?;
            self.launcher.admit(&pod).await?;
            self.pods.push(pod);
        }
        for program in ["control-plane", "federation-controller"] {
            let account = format!("isthmus-{program}");
            let token = self.launcher.token(SYSTEM, &account, &[], 86_400, None).await?;
            let text = self.api.kubeconfig_for(name, &self.api.inside, &token);
            std::fs::write(self.dir.join(format!("{program}.kubeconfig")), text)?;
        }
        self.rounds = Some(tokio::spawn(self.launcher.clone().run()));
        Ok(())
    }

    /// Makes a pod's spot and folder.
    pub(crate) fn make_pod(&self, home: &Home, what: &str, number: u8) -> Result<Arc<Pod>> {
        let cluster = self.plan.name;
        let last = last(what, number);
        let address = self.place.pod(self.plan.number, last);
        let name = format!("{what}-{number}");
        let spot = match &self.spot {
            Spot::Netns(node) => Spot::Netns(self.pod_netns(home, node, what, number, last)?),
            Spot::Loopback => Spot::Loopback,
        };
        let dir = self.dir.join("pods").join(&name);
        let state = dir.join("state");
        std::fs::create_dir_all(&state)?;
        if self.place == Place::Namespaces {
            chown(&state, Some(PROXY_USER), Some(PROXY_USER))?;
        }
        let (namespace, account, labels) = if what == "gateway" {
            let labels = [("istio", "eastwestgateway"), ("topology.istio.io/network", cluster)];
            (SYSTEM, "isthmus-gateway", labels.to_vec())
        } else {
            let labels = [("app", what), ("security.istio.io/tlsMode", "istio")];
            ("shop", what, labels.to_vec())
        };
        Ok(Arc::new(Pod {
            cluster: cluster.to_owned(),
            namespace: namespace.to_owned(),
            name,
            account: account.to_owned(),
            labels: labels.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect(),
            address,
            spot,
            pages: self.place.pages(address),
            dir,
            app: OnceLock::new(),
            proxy: OnceLock::new(),
            uid: OnceLock::new(),
        }))
    }

    fn pod_netns(
        &self,
        home: &Home,
        node: &Netns,
        what: &str,
        number: u8,
        last: u8,
    ) -> Result<Netns> {
        let cluster = self.plan.name;
        let name = format!("{what}-{number}");
        let address = self.place.pod(self.plan.number, last);
        let netns = Netns::create(&format!("{}-{cluster}-{name}", home.prefix))?;
        netns.plug("eth0", &format!("{address}/16"), node, "pods", &name)?;
        if what == "gateway" {
            let outside = self.wan_address(last);
            // The WAN's bridge lives in the namespace this process is in.
            let port = format!("{}-gw{number}", cluster.chars().take(8).collect::<String>());
            let wan = format!("{}-wan", home.prefix);
            netns.plug_into("wan", &format!("{outside}/16"), &wan, "wan", &port)?;
        } else {
            netns.ip(&["route", "add", "default", "via", "10.244.0.1"])?;
            let etc = PathBuf::from(format!("/etc/netns/{}", netns.name()));
            std::fs::create_dir_all(&etc)?;
            std::fs::write(etc.join("resolv.conf"), "nameserver 10.96.0.10\noptions ndots:1\n")?;
        }
        Ok(netns)
    }

    async fn apply_gateway(&self) -> Result<()> {
        let network = self.plan.name;
        let labels = json!({"istio": "eastwestgateway", "topology.istio.io/network": network});
        let service = json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": GATEWAY, "namespace": SYSTEM, "labels": labels},
            "spec": {
                "type": "LoadBalancer", "selector": {"istio": "eastwestgateway"},
                "ports": [{"name": "tls", "port": 15443, "targetPort": 15443, "protocol": "TCP"}],
            },
        });
        apply(self.client(), &service).await?;
        let ingress: Vec<_> = (1..=self.plan.gateways)
            .map(|n| json!({"ip": self.wan_address(10 + n), "ipMode": "VIP"}))
            .collect();
        let status = json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": GATEWAY, "namespace": SYSTEM},
            "status": {"loadBalancer": {"ingress": ingress}},
        });
        apply_status(self.client(), &status).await?;
        // As Istio's samples/multicluster/expose-services.yaml has it, with our names beside it.
        let gateway = json!({
            "apiVersion": "networking.istio.io/v1", "kind": "Gateway",
            "metadata": {"name": "cross-network-gateway", "namespace": SYSTEM},
            "spec": {
                "selector": {"istio": "eastwestgateway"},
                "servers": [{
                    "port": {"number": 15443, "name": "tls", "protocol": "TLS"},
                    "tls": {"mode": "AUTO_PASSTHROUGH"},
                    "hosts": ["*.local", "*.global"],
                }],
            },
        });
        apply(self.client(), &gateway).await.map(|_| ())
    }

    async fn apply_hello(&self) -> Result<()> {
        if self.plan.copies == 0 {
            return Ok(());
        }
        let service = Service {
            namespace: "shop".into(),
            name: "hello".into(),
            selector: BTreeMap::from([("app".into(), "hello".into())]),
            ports: vec![
                ("http".into(), self.place.http_port(), 8080),
                ("tcp-lines".into(), 9000, 9000),
            ],
        };
        // The same pods under a name that nobody exports: no gateway may open it.
        let secret = Service { name: "secret".into(), ..service.clone() };
        self.launcher.serve(service).await?;
        self.launcher.serve(secret).await?;
        if !self.plan.exported {
            return Ok(());
        }
        let export = json!({
            "apiVersion": "multicluster.x-k8s.io/v1beta1", "kind": "ServiceExport",
            "metadata": {"name": "hello", "namespace": "shop"},
        });
        apply(self.client(), &export).await.map(|_| ())
    }

    /// A pod by name.
    pub fn pod(&self, name: &str) -> Result<&Arc<Pod>> {
        let found = self.pods.iter().find(|pod| pod.name == name);
        found.with_context(|| format!("no pod {name} in {}", self.plan.name))
    }

    /// Everything that runs here, API server first.
    pub fn processes(&self) -> Vec<&Process> {
        let mut all: Vec<&Process> =
            std::iter::once(&self.api.server).chain(&self.api.etcd).collect();
        all.extend(self.control_plane.get());
        all.extend(self.federation.get());
        for pod in &self.pods {
            all.extend(pod.proxy.get());
            all.extend(pod.app.get());
        }
        all
    }

    /// SIGKILL to everything, all at once.
    pub fn kill(&self) {
        for process in self.processes() {
            process.signal(nix::sys::signal::Signal::SIGKILL);
        }
    }

    /// SIGSTOP to everything, all at once.
    pub fn stop(&self) {
        for process in self.processes() {
            process.stop();
        }
    }

    /// SIGCONT to everything.
    pub fn resume(&self) {
        for process in self.processes() {
            process.resume();
        }
    }

    /// Takes faults away, resumes and restarts whatever does not run, and waits for readiness.
    pub async fn mend(&self) -> Result<()> {
        self.spot.heal()?;
        for pod in &self.pods {
            pod.spot.heal()?;
        }
        self.resume();
        if let Some(etcd) = &self.api.etcd {
            etcd.revive()?;
        }
        self.api.server.revive()?;
        self.api.ready().await?;
        for (process, port) in [(self.control_plane.get(), 15014), (self.federation.get(), 15024)] {
            if let Some(process) = process {
                process.revive()?;
                self.await_page(process, port).await?;
            }
        }
        for pod in &self.pods {
            for process in pod.proxy.get().into_iter().chain(pod.app.get()) {
                process.revive()?;
            }
        }
        // What was told before the fault may be stale: an API server that was down heard nothing.
        self.launcher.pause(false).await;
        self.launcher.round().await?;
        for pod in self.pods.iter().filter(|pod| pod.proxy.get().is_some()) {
            self.launcher.ready(pod, Duration::from_secs(60)).await?;
        }
        Ok(())
    }

    pub fn logs(&self) -> &Path {
        &self.logs
    }
}

/// Each cluster has its own trust domain under one root.
pub fn trust_domain(cluster: &str) -> String {
    format!("{cluster}.mesh")
}

/// A cluster's node: its pods' bridge, its leg on the WAN, and kube-proxy's one rule.
fn node(prefix: &str, plan: Plan, wan: &Netns) -> Result<Netns> {
    let Plan { name, number, .. } = plan;
    let node = Netns::create(&format!("{prefix}-{name}"))?;
    node.bridge("pods", "10.244.0.1/16")?;
    let address = Place::Namespaces.outside(number, 1);
    node.plug("wan", &format!("{address}/16"), wan, "wan", &format!("{name}-node"))?;
    node.sysctl("net/ipv4/ip_forward", "1")?;
    // Pods' addresses mean nothing outside: what leaves carries the node's. And kube-proxy's
    // rule for the cluster's DNS, which the federation controller serves.
    node.nft(
        "table ip node {
  chain postrouting {
    type nat hook postrouting priority 100;
    ip saddr 10.244.0.0/16 oifname \"wan\" masquerade
  }
  chain prerouting {
    type nat hook prerouting priority -100;
    ip daddr 10.96.0.10 udp dport 53 dnat to 10.244.0.1:53
    ip daddr 10.96.0.10 tcp dport 53 dnat to 10.244.0.1:53
  }
}
",
    )?;
    Ok(node)
}
