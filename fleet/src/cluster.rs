//! A fleet: a WAN, three clusters on real API servers, and every program of the mesh in them.

use crate::apiserver::ApiServer;
use crate::authority::Authority;
use crate::launcher::{APP_USER, Launcher, PROXY_USER, Pod, Service};
use crate::netns::{Netns, sweep};
use crate::objects::{apply, apply_status, apply_yaml};
use crate::parts::Parts;
use crate::process::{Job, Process};
use crate::trust::Trust;
use crate::verdict::Pillar;
use anyhow::{Context, Result, bail};
use nix::fcntl::{Flock, FlockArg};
use serde_json::json;
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
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
    /// Copies of `hello` in namespace `shop`, exported.
    pub copies: u8,
    /// A client pod, meshed, in namespace `shop`.
    pub client: bool,
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
        client: true,
    },
    Plan {
        name: "west",
        number: 2,
        region: "europe",
        zone: "europe-2",
        gateways: 2,
        copies: 2,
        client: false,
    },
    Plan {
        name: "north",
        number: 3,
        region: "america",
        zone: "america-1",
        gateways: 1,
        copies: 1,
        client: false,
    },
];

/// How to bring a fleet up.
#[derive(Debug, Clone)]
pub struct Options {
    /// First word of every namespace of the network: two fleets differ in it.
    pub prefix: String,
    pub sabotage: Option<Pillar>,
}

/// All of it; taken down when dropped.
pub struct Fleet {
    // Dropped in this order: processes and namespaces first, then files.
    pub clusters: BTreeMap<&'static str, Cluster>,
    pub trust: Trust,
    pub wan: Netns,
    pub place: Place,
}

/// Where a fleet lives in the file system, and that it lives alone.
pub struct Place {
    pub prefix: String,
    /// On tmpfs; holds etcd's data, keys, tokens and programs. Removed at the end.
    pub run: PathBuf,
    /// Kept after the run.
    pub logs: PathBuf,
    pub parts: Parts,
    pub sabotage: Option<Pillar>,
    _janitor: Janitor,
}

/// One cluster.
pub struct Cluster {
    pub plan: Plan,
    pub control_plane: OnceLock<Process>,
    pub federation: OnceLock<Process>,
    pub pods: Vec<Arc<Pod>>,
    pub api: ApiServer,
    pub launcher: Arc<Launcher>,
    rounds: Option<tokio::task::JoinHandle<()>>,
    pub node: Netns,
    pub dir: PathBuf,
    logs: PathBuf,
}

impl Place {
    /// Takes the lock, removes what a crash left, and moves this thread into a fresh WAN. Call it
    /// before any thread is started: threads inherit the namespace.
    pub fn claim(options: &Options, mut parts: Parts) -> Result<(Self, Netns)> {
        let prefix = options.prefix.clone();
        let lock = std::fs::File::create(format!("/run/{prefix}.lock"))
            .context("the harness needs root: it makes network namespaces")?;
        let Ok(lock) = Flock::lock(lock, FlockArg::LockExclusiveNonblock) else {
            bail!("another fleet `{prefix}` is running. Wait for it, or choose another --prefix");
        };
        clean(&prefix)?;
        let janitor = Janitor::hire(&prefix, &parts.own, &lock)?;
        let run = run_dir(&prefix);
        let programs = run.join("bin");
        std::fs::create_dir_all(&programs)?;
        std::fs::set_permissions(&run, PermissionsExt::from_mode(0o755))?;
        let logs = parts
            .own
            .parent()
            .context("a program lies in a folder")?
            .join("e2e-logs")
            .join(&prefix);
        if logs.exists() {
            std::fs::remove_dir_all(&logs)?;
        }
        std::fs::create_dir_all(&logs)?;
        // Pods' users must be able to run them, wherever the build folder is.
        for program in [&mut parts.isthmus, &mut parts.own] {
            let name = program.file_name().context("a program has a name")?;
            let copy = programs.join(name);
            std::fs::copy(&program, &copy)?;
            *program = copy;
        }
        let wan = Netns::create(&format!("{prefix}-wan"))?;
        wan.bridge("wan", "198.18.0.1/16")?;
        crate::netns::enter(&wan.path())?;
        let sabotage = options.sabotage;
        Ok((Self { prefix, run, logs, parts, sabotage, _janitor: janitor }, wan))
    }
}

impl Place {
    /// The operator's kubeconfig: one context for each cluster, named as it is.
    pub fn operator(&self) -> PathBuf {
        self.run.join("operator.kubeconfig")
    }
}

fn run_dir(prefix: &str) -> PathBuf {
    Path::new("/dev/shm").join(prefix)
}

/// Removes everything a fleet `prefix` may have left: processes, namespaces, files.
pub fn clean(prefix: &str) -> Result<()> {
    sweep(prefix)?;
    let run = run_dir(prefix);
    if run.exists() {
        std::fs::remove_dir_all(run)?;
    }
    Ok(())
}

/// A process that outlives a SIGKILLed harness by as long as cleaning up takes.
struct Janitor {
    child: std::process::Child,
}

impl Janitor {
    /// The janitor sleeps on its stdin, whose other end only we hold, and keeps our lock (its
    /// stdout is the lock's file) until it is done.
    fn hire(prefix: &str, program: &Path, lock: &Flock<std::fs::File>) -> Result<Self> {
        let child = Command::new("setsid")
            .arg(program)
            .args(["janitor", "--prefix", prefix])
            .stdin(Stdio::piped())
            .stdout(Stdio::from(lock.try_clone()?))
            .spawn()
            .context("starting the janitor")?;
        Ok(Self { child })
    }
}

impl Drop for Janitor {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
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

impl Fleet {
    /// Brings up all clusters with their programs, unlinked.
    pub async fn up(place: Place, wan: Netns) -> Result<Self> {
        let trust = Trust::init(&place)?;
        let started = std::time::Instant::now();
        let mut clusters = BTreeMap::new();
        for plan in CLUSTERS {
            clusters.insert(plan.name, Cluster::start(plan, &place, &wan)?);
        }
        let all = clusters.values_mut().map(|cluster| cluster.populate(&place, &trust));
        futures::future::try_join_all(all).await?;
        let all: Vec<_> = clusters.values().map(|c: &Cluster| (c.plan.name, &c.api)).collect();
        std::fs::write(place.operator(), crate::apiserver::operator_kubeconfig(&all))?;
        println!(
            "{} clusters with objects after {:.1} s",
            CLUSTERS.len(),
            started.elapsed().as_secs_f64()
        );
        Ok(Self { clusters, trust, wan, place })
    }

    /// Starts the programs of every cluster, each gated on the readiness of the one before it.
    pub async fn start_programs(&self) -> Result<()> {
        let started = std::time::Instant::now();
        let all = self.clusters.values().map(|cluster| cluster.start_programs(&self.place));
        futures::future::try_join_all(all).await?;
        println!("every program ready after {:.1} s", started.elapsed().as_secs_f64());
        Ok(())
    }

    pub fn cluster(&self, name: &str) -> &Cluster {
        &self.clusters[name]
    }

    /// Resumes, restarts and heals everything, and waits until it is ready again.
    pub async fn mend(&self) -> Result<()> {
        let all = self.clusters.values().map(Cluster::mend);
        futures::future::try_join_all(all).await.map(|_| ())
    }
}

impl Cluster {
    /// Address on the WAN: last octet 1 is the node, 11 and up are gateways.
    pub fn wan_address(&self, last: u8) -> Ipv4Addr {
        Ipv4Addr::new(198, 18, self.plan.number, last)
    }

    pub fn name(&self) -> &'static str {
        self.plan.name
    }

    pub fn client(&self) -> &kube::Client {
        &self.api.client
    }

    fn start(plan: Plan, place: &Place, wan: &Netns) -> Result<Self> {
        let Plan { name, number, .. } = plan;
        let dir = place.run.join(name);
        std::fs::create_dir_all(&dir)?;
        let node = Netns::create(&format!("{}-{name}", place.prefix))?;
        node.bridge("pods", "10.244.0.1/16")?;
        let address = Ipv4Addr::new(198, 18, number, 1);
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
        let api = ApiServer::start(&place.parts, name, &node, address, &dir, &place.logs)?;
        let node_name = format!("{name}-node");
        let launcher =
            Launcher::new(api.client.clone(), &node_name, plan.zone, Ipv4Addr::new(10, 244, 0, 1));
        Ok(Self {
            plan,
            control_plane: OnceLock::new(),
            federation: OnceLock::new(),
            pods: vec![],
            api,
            launcher: Arc::new(launcher),
            rounds: None,
            node,
            dir,
            logs: place.logs.clone(),
        })
    }

    /// Waits for the API server; then CRDs, namespaces, accounts, roles, node, pods, services.
    async fn populate(&mut self, place: &Place, trust: &Trust) -> Result<()> {
        let Plan { name, region, .. } = self.plan;
        self.api.ready().await?;
        let client = self.client().clone();
        let crds = place.parts.crds.iter().map(|text| apply_yaml(&client, text));
        futures::future::try_join_all(crds).await.with_context(|| format!("CRDs in {name}"))?;
        for namespace in [SYSTEM, "istio-system", "shop"] {
            let object = json!({
                "apiVersion": "v1", "kind": "Namespace",
                "metadata": {"name": namespace, "labels": {"topology.istio.io/network": name}},
            });
            apply(&client, &object).await?;
        }
        apply_yaml(&client, include_str!("../../deploy/roles.yaml")).await?;
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
        apply_yaml(&client, &trust.cacerts(place, name)?).await?;
        self.launcher.register(region).await?;
        self.apply_gateway().await?;
        self.apply_hello().await?;
        for (what, number) in self.members() {
            let pod = self.make_pod(place, what, number)?;
            std::fs::write(pod.dir.join("root.pem"), &trust.root_certificate)?;
            self.launcher.admit(&pod).await?;
            self.pods.push(pod);
        }
        for program in ["control-plane", "federation-controller"] {
            let account = format!("isthmus-{program}");
            let token = self.launcher.token(SYSTEM, &account, &[], 86_400, None).await?;
            let url = format!("https://127.0.0.1:{}", crate::apiserver::PORT);
            let text = self.api.kubeconfig_for(name, &url, &token);
            std::fs::write(self.dir.join(format!("{program}.kubeconfig")), text)?;
        }
        self.rounds = Some(tokio::spawn(self.launcher.clone().run()));
        Ok(())
    }

    fn members(&self) -> Vec<(&'static str, u8)> {
        let Plan { gateways, copies, client, .. } = self.plan;
        let mut members = vec![];
        members.extend((1..=gateways).map(|n| ("gateway", n)));
        members.extend((1..=copies).map(|n| ("hello", n)));
        members.extend(client.then_some(("client", 1)));
        members
    }

    /// Makes a pod's namespace and folder.
    fn make_pod(&self, place: &Place, what: &str, number: u8) -> Result<Arc<Pod>> {
        let cluster = self.plan.name;
        let last = number
            + match what {
                "gateway" => 10,
                "hello" => 20,
                _ => 30,
            };
        let address = Ipv4Addr::new(10, 244, 0, last);
        let name = format!("{what}-{number}");
        let netns = Netns::create(&format!("{}-{cluster}-{name}", place.prefix))?;
        netns.plug("eth0", &format!("{address}/16"), &self.node, "pods", &name)?;
        if what == "gateway" {
            let outside = self.wan_address(last);
            // The WAN's bridge lives in the namespace this process is in.
            let port = format!("{}-gw{number}", cluster.chars().take(8).collect::<String>());
            let wan = format!("{}-wan", place.prefix);
            netns.plug_into("wan", &format!("{outside}/16"), &wan, "wan", &port)?;
        } else {
            netns.ip(&["route", "add", "default", "via", "10.244.0.1"])?;
            let etc = PathBuf::from(format!("/etc/netns/{}", netns.name()));
            std::fs::create_dir_all(&etc)?;
            std::fs::write(etc.join("resolv.conf"), "nameserver 10.96.0.10\noptions ndots:1\n")?;
        }
        let dir = self.dir.join("pods").join(&name);
        let state = dir.join("state");
        std::fs::create_dir_all(&state)?;
        chown(&state, Some(PROXY_USER), Some(PROXY_USER))?;
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
            netns,
            dir,
            app: OnceLock::new(),
            proxy: OnceLock::new(),
            uid: OnceLock::new(),
        }))
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
            ports: vec![("http".into(), 80, 8080), ("tcp-lines".into(), 9000, 9000)],
        };
        // The same pods under a name that nobody exports: no gateway may open it.
        let secret = Service { name: "secret".into(), ..service.clone() };
        self.launcher.serve(service).await?;
        self.launcher.serve(secret).await?;
        let export = json!({
            "apiVersion": "multicluster.x-k8s.io/v1beta1", "kind": "ServiceExport",
            "metadata": {"name": "hello", "namespace": "shop"},
        });
        apply(self.client(), &export).await.map(|_| ())
    }

    /// Control plane and federation controller, then gateways, then applications with sidecars.
    async fn start_programs(&self, place: &Place) -> Result<()> {
        self.start_controllers(place).await?;
        for pod in &self.pods {
            self.start_pod(place, pod)?;
        }
        for pod in &self.pods {
            self.launcher.ready(pod, Duration::from_secs(60)).await?;
        }
        Ok(())
    }

    async fn start_controllers(&self, place: &Place) -> Result<()> {
        let control_plane = json!({
            "kubeconfig": self.dir.join("control-plane.kubeconfig"),
            "listen": "0.0.0.0:15012", "admin": "127.0.0.1:15014", "metrics": "0.0.0.0:15015",
        });
        let process = self.program(place, "control-plane", &control_plane)?.start()?;
        self.await_page(&process, 15014).await?;
        self.control_plane.set(process).ok();
        let state = self.dir.join("federation-state");
        std::fs::create_dir_all(&state)?;
        let federation = json!({
            "kubeconfig": self.dir.join("federation-controller.kubeconfig"),
            "admin": "127.0.0.1:15024", "metrics": "0.0.0.0:15025",
            "dns": {"listen": ["0.0.0.0:53"], "upstreams": [], "allow": ["10.244.0.0/16", "127.0.0.0/8"]},
            "holder": format!("{}-1", self.plan.name),
            "state": state,
        });
        let process = self.program(place, "federation-controller", &federation)?.start()?;
        self.await_page(&process, 15024).await?;
        self.federation.set(process).ok();
        Ok(())
    }

    /// A program on the node, with its configuration file.
    fn program(&self, place: &Place, verb: &str, config: &serde_json::Value) -> Result<Job> {
        let file = self.dir.join(format!("{verb}.yaml"));
        std::fs::write(&file, serde_saphyr::to_string(config)?)?;
        let name = format!("{}/{verb}", self.plan.name);
        let job = Job::new(name, &self.node, &place.parts.isthmus, &place.logs);
        Ok(job.args([verb, "--config", &file.display().to_string()]).env("RUST_LOG", "info"))
    }

    /// Waits for `/readyz` on a loopback port of the node.
    async fn await_page(&self, process: &Process, port: u16) -> Result<()> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
        loop {
            let page =
                crate::launcher::http_get(&self.node, address, "/readyz", Duration::from_secs(2));
            if matches!(page, Ok((200, _))) {
                return Ok(());
            }
            if let Some(status) = process.ended() {
                bail!("{} ended with {status}:\n{}", process.name(), process.last_words());
            }
            if tokio::time::Instant::now() > deadline {
                bail!(
                    "{} is not ready after 60 s: {page:?}\n{}",
                    process.name(),
                    process.last_words()
                );
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// The proxy of a pod and its application.
    fn start_pod(&self, place: &Place, pod: &Pod) -> Result<()> {
        let (verb, mut config) = if pod.namespace == SYSTEM {
            ("gateway", json!({"listen": "0.0.0.0:15443"}))
        } else {
            let sidecar = json!({
                "outbound": "127.0.0.1:15001", "inbound": "0.0.0.0:15006",
                "dns": {"listen": "127.0.0.1:15053", "upstreams": ["10.244.0.1:53"]},
                "podAddresses": [pod.address], "network": self.plan.name,
            });
            ("sidecar", sidecar)
        };
        let common = json!({
            "cluster": self.plan.name, "namespace": pod.namespace, "pod": pod.name,
            "account": pod.account, "controlPlane": "10.244.0.1:15012",
            "trustDomain": trust_domain(self.plan.name),
            "rootCertificates": pod.dir.join("root.pem"), "token": pod.dir.join("token"),
            "admin": "127.0.0.1:15000", "metrics": "0.0.0.0:15090", "health": "0.0.0.0:15021",
            "state": pod.dir.join("state"),
        });
        for (key, value) in common.as_object().expect("an object was written") {
            config[key] = value.clone();
        }
        let file = pod.dir.join(format!("{verb}.yaml"));
        std::fs::write(&file, serde_saphyr::to_string(&config)?)?;
        if verb == "sidecar" {
            let out = pod
                .netns
                .command(&place.parts.isthmus.display().to_string())
                .args(["sidecar-redirect", "--uid", &PROXY_USER.to_string()])
                .output()?;
            if !out.status.success() {
                let said = String::from_utf8_lossy(&out.stderr);
                bail!("isthmus sidecar-redirect in {}: {said}", pod.netns.name());
            }
        }
        let mut job = pod
            .job(verb, &place.parts.isthmus, &place.logs)
            .user(PROXY_USER)
            .args([verb, "--config", &file.display().to_string()])
            .env("RUST_LOG", "info");
        if let (Some(Pillar::Retries | Pillar::Failover), "client") =
            (place.sabotage, &*pod.account)
        {
            let word = if place.sabotage == Some(Pillar::Retries) { "retries" } else { "failover" };
            job = job.env("ISTHMUS_SABOTAGE", word);
        }
        pod.proxy.set(job.start()?).ok();
        if pod.account == "hello" {
            let job = pod
                .job("hello", &place.parts.own, &place.logs)
                .user(APP_USER)
                .own_etc()
                .args(["hello", "--cluster", self.plan.name, "--pod", &pod.name]);
            pod.app.set(job.start()?).ok();
        }
        Ok(())
    }

    /// A pod by name.
    pub fn pod(&self, name: &str) -> Result<&Arc<Pod>> {
        let found = self.pods.iter().find(|pod| pod.name == name);
        found.with_context(|| format!("no pod {name} in {}", self.plan.name))
    }

    /// Everything that runs here, API server first.
    pub fn processes(&self) -> Vec<&Process> {
        let mut all = vec![&self.api.server, &self.api.etcd];
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
        self.node.heal()?;
        for pod in &self.pods {
            pod.netns.heal()?;
        }
        self.resume();
        self.api.etcd.revive()?;
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

/// An authority of another cluster, for a forger's certificates.
pub fn forger(trust: &Trust, cluster: &str) -> Result<Authority> {
    trust.authority(cluster)
}
