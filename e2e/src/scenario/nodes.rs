//! The promises that need real nodes: kubelets, containers, captured pods, the cluster's own DNS.

mod black_hole;
mod dns_patch;
mod node_faults;
mod one_way;
mod overhead;
mod plain_pods;
mod pod_faults;
mod pod_mistakes;
mod pod_traffic;
mod real_pods;
mod rollouts;
mod shop;
mod trust_mistakes;
mod uninstall;

use super::{Driver, broken};
use anyhow::{Context, Result, anyhow, bail, ensure};
use fleet::nodes::Nodes;
use fleet::objects;
use fleet::pods::{PodCluster, Pods};
use fleet::verdict::{Record, Verdict};
use futures::future::LocalBoxFuture;
use std::time::Duration;

/// One scenario on nodes.
pub struct Scenario {
    pub name: &'static str,
    /// The weakest that can prove it: [`Driver::Kind`] where pods are all it needs.
    pub driver: Driver,
    pub about: &'static str,
    run: Run,
}

/// What a scenario takes, and so what it needs.
enum Run {
    /// Pods, on whoever's nodes.
    OnPods(for<'a> fn(&'a Stage<'a>) -> LocalBoxFuture<'a, Result<()>>),
    /// Machines and processes of ours too, which it stops.
    OnMachines(for<'a> fn(&'a Stage<'a>, &'a Nodes) -> LocalBoxFuture<'a, Result<()>>),
}

macro_rules! run {
    (Kind $run:path) => {
        Run::OnPods(|stage| Box::pin($run(stage)))
    };
    (Nodes $run:path) => {
        Run::OnMachines(|stage, nodes| Box::pin($run(stage, nodes)))
    };
}

macro_rules! scenarios {
    ($($name:literal $driver:ident $run:path: $about:literal;)*) => {
        /// All of them, in the order in which `all` runs them.
        pub const ALL: &[Scenario] = &[$(Scenario {
            name: $name,
            driver: Driver::$driver,
            about: $about,
            run: run!($driver $run),
        }),*];
    };
}

scenarios! {
    "plain-pods" Kind plain_pods::plain_pods:
        "a Deployment, its Service, DNS, exec, logs, a load balancer, a token: no mesh yet";
    "real-pods" Kind real_pods::real_pods:
        "install, link, export, and a Deployment's pod calls a name across clusters";
    "pod-traffic" Kind pod_traffic::pod_traffic:
        "long bodies, HTTP/2, WebSocket and servers that speak first, from pod to pod";
    "pod-faults" Kind pod_faults::pod_faults:
        "a gateway pod dies, east has no control plane";
    "pod-api-hangs" Nodes pod_faults::api_hangs:
        "west's API server hangs for 2 minutes";
    "pod-mistakes" Kind pod_mistakes::pod_mistakes:
        "what people do wrong with pods, labels, webhook and addresses: check, status and why name it";
    "trust-mistakes" Kind trust_mistakes::trust_mistakes:
        "a webhook whose certificate expired, a cluster of another root: named, and nothing believed";
    "one-way" Nodes one_way::one_way:
        "a gateway's port is closed for one cluster alone: status says so, calls go elsewhere";
    "black-hole" Nodes black_hole::black_hole:
        "west's node in a black hole under calls from east: answered elsewhere, told, and home again";
    "overhead" Kind overhead::overhead:
        "memory and processor time of a pod's sidecar, idle and at 100 requests a second";
    "dns-patch" Kind dns_patch::dns_patch:
        "pods without a sidecar ask CoreDNS for the mesh's names; and all of it undone";
    "rollouts" Kind rollouts::rollouts:
        "the service, its gateway and control planes are rolled out anew under load";
    "uninstall" Kind uninstall::uninstall:
        "everything out of three clusters again, while users' own objects stay";
    "node-faults" Nodes node_faults::node_faults:
        "a node in a black hole, and one whose power fails: noticed, and whole again";
}

/// The scenarios of these names on `driver`, `all` for every one that it can prove; why not, where one
/// is of another driver, or of none.
pub fn choose(names: &[String], driver: Driver) -> Result<Vec<&'static Scenario>> {
    let mut chosen = vec![];
    for name in names {
        let elsewhere = super::ALL.iter().any(|scenario| scenario.name == name);
        ensure!(!elsewhere, "{name} runs its workloads as processes: leave --driver out");
        let named = ALL.iter().filter(|s| name == "all" || name == s.name).collect::<Vec<_>>();
        ensure!(!named.is_empty(), "there is no scenario `{name}`; --list names them");
        let able = named.iter().filter(|scenario| scenario.driver <= driver);
        let before = chosen.len();
        chosen.extend(able);
        ensure!(
            chosen.len() > before,
            "{name} stops machines or programs of the clusters themselves, which only those of our \
             own making let it: --driver nodes"
        );
    }
    Ok(chosen)
}

/// Whose nodes scenarios are played on.
#[derive(Clone, Copy)]
pub enum On<'a> {
    /// Machines of our making.
    Machines(&'a Nodes),
    /// Somebody else's.
    Pods(&'a Pods),
}

/// What commands about all of the clusters are told.
const ALL_CLUSTERS: [&str; 6] = ["--context", "east", "--context", "west", "--context", "north"];

/// The name that scenarios call, exported by west and north.
const HOST: &str = "hello.shop.global";
/// Workloads run, and a name is in use.
const READY: Duration = Duration::from_secs(120);

/// What a scenario sees of the run.
pub struct Stage<'a> {
    pub pods: &'a Pods,
    name: &'static str,
    verdicts: std::sync::Mutex<Vec<Verdict>>,
}

/// Runs one scenario and hands back what it judged.
pub async fn play(on: On<'_>, scenario: &Scenario) -> Vec<Verdict> {
    println!("\n== {}: {}", scenario.name, scenario.about);
    let pods = match on {
        On::Machines(nodes) => &nodes.pods,
        On::Pods(pods) => pods,
    };
    let stage = Stage { pods, name: scenario.name, verdicts: Default::default() };
    let end = match (&scenario.run, on) {
        (Run::OnPods(run), _) => run(&stage).await,
        (Run::OnMachines(run), On::Machines(nodes)) => run(&stage, nodes).await,
        (Run::OnMachines(_), On::Pods(_)) => Err(anyhow!("it needs --driver nodes")),
    };
    let mut verdicts = stage.verdicts.into_inner().expect("no holder panics");
    verdicts.extend(end.err().map(|error| broken(scenario.name, &error)));
    verdicts
}

impl Stage<'_> {
    /// Judges one promise and prints it at once.
    pub fn judge(&self, promise: &str, figure: &str, kept: bool) {
        println!("  {}  {promise}\n         {figure}", if kept { "kept" } else { "RED " });
        self.verdicts.lock().expect("no holder panics").push(Verdict {
            scenario: self.name.to_owned(),
            promise: promise.to_owned(),
            figure: figure.to_owned(),
            kept,
            rests_on: vec![],
        });
    }

    /// What `isthmus` prints, as an operator calls it; its complaint where it fails.
    pub async fn isthmus(&self, args: &[&str]) -> Result<String> {
        let out = tokio::process::Command::new(&self.pods.isthmus)
            .args(args)
            .env("KUBECONFIG", &self.pods.operator)
            .kill_on_drop(true)
            .output()
            .await?;
        let (said, complaint) =
            (String::from_utf8(out.stdout)?, String::from_utf8_lossy(&out.stderr).into_owned());
        ensure!(out.status.success(), "isthmus {}: {said}{complaint}", args.join(" "));
        Ok(said)
    }

    /// Installs the mesh in all clusters, with a trust that is made the first time; what it says.
    async fn install(&self) -> Result<String> {
        let run = &self.pods.run;
        let (trust, passphrase) = (run.join("trust"), run.join("passphrase"));
        let made = trust.exists();
        std::fs::write(&passphrase, "correct horse battery staple\n")?;
        let (trust, passphrase) = (trust.display().to_string(), passphrase.display().to_string());
        let key = ["--passphrase-file", &passphrase];
        if !made {
            self.isthmus(&[&["trust", "init", "fleet", "--dir", &trust][..], &key].concat())
                .await?;
        }
        let install = [&["install"][..], &ALL_CLUSTERS, &["--trust-dir", &trust], &key].concat();
        self.isthmus(&install).await
    }

    /// Links all clusters with each other.
    async fn link(&self) -> Result<String> {
        let path = self.pods.run.join("fleet.yaml");
        let mut text = "clusters:\n".to_owned();
        for name in self.pods.clusters.keys() {
            text.push_str(&format!("- {{name: {name}}}\n"));
        }
        std::fs::write(&path, text)?;
        self.isthmus(&["link", "--fleet", &path.display().to_string()]).await
    }

    /// What answers a GET from east's pod with a shell; a status that is no success fails.
    async fn curl(&self, url: &str) -> Result<String> {
        let exec = ["-n", "shop", "exec", "deployment/tools", "-c", "tools", "--"];
        self.kubectl("east", &[&exec[..], &["curl", "-sSf", "-m", "5", url]].concat()).await
    }

    /// GETs of a host from east's hello, as an application sends them: so many a second, for so long.
    async fn load(&self, host: &str, gets: u32, seconds: u64) -> Result<Vec<Record>> {
        self.load_with(host, gets, 0, seconds).await
    }

    /// The same with POSTs beside them, which nobody may send twice.
    async fn load_with(
        &self,
        host: &str,
        gets: u32,
        posts: u32,
        seconds: u64,
    ) -> Result<Vec<Record>> {
        // Each record is printed as it ends: the pod has no file that anybody else could read.
        let host = format!("{host}:80");
        let from = ["-n", "shop", "exec", "deployment/hello", "-c", "hello", "--"];
        let load = ["/usr/bin/isthmus-e2e", "load", "--http", &host, "--tcp", &host];
        let (gets, posts, seconds) = (gets.to_string(), posts.to_string(), seconds.to_string());
        let rates = ["--gets", &gets, "--posts", &posts, "--seconds", &seconds];
        let rest = [&rates[..], &["--out", "/dev/stdout"]].concat();
        let said = self.kubectl("east", &[&from[..], &load, &rest].concat()).await?;
        said.lines()
            .map(|line| serde_json::from_str(line).with_context(|| format!("a record: {line}")))
            .collect()
    }

    /// Installs, starts so many copies of hello in east, west and north, links, and exports those of west
    /// and north; returns once east's pod with a shell is answered.
    async fn in_use(&self, copies: [u32; 3]) -> Result<()> {
        self.install().await?;
        for (name, copies) in ["east", "west", "north"].into_iter().zip(copies) {
            let cluster = self.pods.cluster(name);
            objects::apply_yaml(&cluster.client, &shop::manifests(name, copies)).await?;
            cluster.deployment_ready("shop", "hello", READY).await?;
        }
        self.link().await?;
        for context in ["west", "north"] {
            self.isthmus(&["export", "svc/hello", "-n", "shop", "--context", context]).await?;
        }
        until(READY, HOST, async || self.curl(&format!("http://{HOST}/")).await).await.map(|_| ())
    }

    /// Takes the namespace of the workloads out of all clusters.
    async fn shop_gone(&self) -> Result<()> {
        let clusters = self.pods.clusters.values().map(|cluster| gone(cluster, "shop"));
        futures::future::try_join_all(clusters).await.map(|_| ())
    }

    /// What kubectl prints; its complaint where it fails.
    pub async fn kubectl(&self, cluster: &str, args: &[&str]) -> Result<String> {
        let out = self.pods.kubectl(cluster).args(args).output().await?;
        if !out.status.success() {
            let said = String::from_utf8_lossy(&out.stderr);
            bail!("kubectl {}: {}", args.join(" "), said.trim());
        }
        Ok(String::from_utf8(out.stdout)?)
    }
}

/// Tries until it succeeds; the last error after `limit`.
async fn until<T>(
    limit: Duration,
    what: &str,
    mut attempt: impl AsyncFnMut() -> Result<T>,
) -> Result<T> {
    let start = tokio::time::Instant::now();
    loop {
        match attempt().await {
            Ok(value) => return Ok(value),
            Err(error) if start.elapsed() > limit => {
                return Err(error).with_context(|| format!("{what}, tried for {limit:?}"));
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
        }
    }
}

/// Deletes a scenario's namespace and waits until it is gone.
async fn gone(cluster: &PodCluster, namespace: &str) -> Result<()> {
    const GONE: Duration = Duration::from_secs(90);
    let namespaces = objects::api(&cluster.client, "v1", "Namespace", "");
    namespaces.delete(namespace, &Default::default()).await?;
    until(GONE, "deleting a namespace", async || {
        let found = namespaces.get_opt(namespace).await?;
        ensure!(found.is_none(), "{namespace} is still there");
        Ok(())
    })
    .await
}
