//! A grpc-go client that is its own proxy: by `xds:///` it calls copies of its own network, over
//! mutual TLS, with what `isthmus agent` gives it.

use super::Stage;
use super::cli::isthmus;
use super::envoy::answers;
use anyhow::{Context, Result, bail, ensure};
use fleet::launcher::{APP_USER, PROXY_USER, Pod, Service};
use fleet::objects::{apply, delete};
use fleet::process::Process;
use fleet::{Cluster, link, peers};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// gRPC's interop server behind the sidecars of west and of north.
const NAME: &str = "proxyless";
const TARGET: &str = "proxyless.shop.global:8052";
/// Below those that the kernel gives to connections, one of which may hold it when the server starts.
const PORT: u16 = 8_052;
/// Calls a second.
const RATE: u32 = 100;
const LIMIT: Duration = Duration::from_secs(30);
/// How long calls are watched after a change.
const WATCH: Duration = Duration::from_secs(3);

fn export() -> Value {
    json!({
        "apiVersion": "multicluster.x-k8s.io/v1beta1", "kind": "ServiceExport",
        "metadata": {"name": NAME, "namespace": "shop"},
    })
}

/// Plaintext is refused from now on.
fn strict() -> Value {
    json!({
        "apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication",
        "metadata": {"name": NAME, "namespace": "shop"},
        "spec": {"selector": {"matchLabels": {"app": "hello"}}, "mtls": {"mode": "STRICT"}},
    })
}

pub(super) async fn grpc_xds(stage: &Stage<'_>) -> Result<()> {
    let (west, north) = (stage.cluster("west"), stage.cluster("north"));
    let mut servers = serve(stage, west, &["hello-1", "hello-2"]).await?;
    servers.extend(serve(stage, north, &["hello-1"]).await?);
    // Other scenarios link both with east alone.
    link::both_ways(&stage.fleet.home, west, north).await?;
    joined(west).await?;
    let pod = stage.fleet.start_grpc_client(west, TARGET, RATE).await?;
    let judged = judge(stage, west, &pod).await;
    let words = if judged.is_err() { pod.last_words() } else { String::new() };
    west.launcher.pause(false).await;
    west.launcher.dismiss(&pod).await?;
    delete(west.client(), &strict()).await?;
    for cluster in [west, north] {
        delete(cluster.client(), &export()).await?;
    }
    let said = isthmus(stage, None, &["unlink", "west", "north"]).await?;
    ensure!(said.code == Some(0), "unlink west north: {}", said.figure());
    judged.with_context(|| words)
}

async fn serve(stage: &Stage<'_>, cluster: &Cluster, pods: &[&str]) -> Result<Vec<Process>> {
    let program = peers::interop()?.server;
    let mut servers = Vec::new();
    for pod in pods {
        let job = cluster
            .pod(pod)?
            .job(NAME, &program, &stage.fleet.home.logs)
            .user(APP_USER)
            .args([format!("--port={PORT}")]);
        servers.push(job.start()?);
    }
    let service = Service {
        namespace: "shop".into(),
        name: NAME.into(),
        selector: BTreeMap::from([("app".into(), "hello".into())]),
        ports: vec![("grpc".into(), PORT, PORT)],
    };
    cluster.launcher.serve(service).await?;
    apply(cluster.client(), &export()).await?;
    Ok(servers)
}

/// Until west knows that north serves it as well: else nothing would be left out.
async fn joined(west: &Cluster) -> Result<()> {
    let path = "/apis/networking.istio.io/v1/namespaces/shop/serviceentries";
    let host = format!("{NAME}.shop.north.global");
    let limit = Instant::now() + LIMIT;
    loop {
        let list: Value = west.client().request(http::Request::get(path).body(vec![])?).await?;
        if list.to_string().contains(&host) {
            return Ok(());
        }
        if Instant::now() > limit {
            bail!("west has no ServiceEntry of {host} after {LIMIT:?}");
        }
        sleep(Duration::from_millis(100)).await;
    }
}

/// What the client wrote, from some place of its log on.
#[derive(Debug, Default)]
struct Heard {
    /// Answers by the address they came from.
    peers: BTreeMap<String, usize>,
    /// Answers that came without TLS.
    plaintext: usize,
    failures: Vec<String>,
}

impl Heard {
    fn read(text: &str) -> Self {
        let mut heard = Self::default();
        for line in text.lines() {
            if let Some(answer) = line.strip_prefix("call answered: ") {
                let (peer, transport) = answer.split_once(" over ").unwrap_or((answer, ""));
                *heard.peers.entry(peer.to_owned()).or_default() += 1;
                heard.plaintext += usize::from(transport != "tls");
            } else if let Some(failure) = line.strip_prefix("call failed: ") {
                heard.failures.push(failure.to_owned());
            }
        }
        heard
    }

    fn answered(&self) -> usize {
        self.peers.values().sum()
    }

    fn answerers(&self) -> BTreeSet<&str> {
        self.peers.keys().map(String::as_str).collect()
    }

    fn figure(&self) -> String {
        let first = self.failures.first().map(String::as_str).unwrap_or_default();
        let (plaintext, failed) = (self.plaintext, self.failures.len());
        format!("{:?}, {plaintext} in plaintext, {failed} failed {first}", self.peers)
    }
}

/// The client's log, read in pieces.
struct Log<'a> {
    process: &'a Process,
    read: usize,
}

impl Log<'_> {
    /// Whole lines since the last time.
    fn more(&mut self) -> Result<Heard> {
        let all = std::fs::read(self.process.log())?;
        let fresh = all.get(self.read..).unwrap_or_default();
        let whole = fresh.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        self.read += whole;
        Ok(Heard::read(&String::from_utf8_lossy(&fresh[..whole])))
    }

    /// Until within half a second exactly `wanted` answer; all that was heard on the way.
    async fn until(&mut self, wanted: &BTreeSet<&str>) -> Result<(Duration, Heard)> {
        let start = Instant::now();
        let mut all = Heard::default();
        loop {
            sleep(Duration::from_millis(500)).await;
            let heard = self.more()?;
            let there = heard.answerers() == *wanted;
            for (peer, count) in heard.peers {
                *all.peers.entry(peer).or_default() += count;
            }
            all.plaintext += heard.plaintext;
            all.failures.extend(heard.failures);
            if there {
                return Ok((start.elapsed(), all));
            }
            if start.elapsed() > LIMIT {
                bail!("not answered by {wanted:?} alone after {LIMIT:?}: {}", all.figure());
            }
        }
    }

    async fn watch(&mut self) -> Result<Heard> {
        self.more()?;
        sleep(WATCH).await;
        self.more()
    }
}

async fn judge(stage: &Stage<'_>, west: &Cluster, pod: &Pod) -> Result<()> {
    let at = |name: &str| anyhow::Ok(format!("{}:{PORT}", west.pod(name)?.address));
    let (one, two) = (at("hello-1")?, at("hello-2")?);
    let both = BTreeSet::from([one.as_str(), two.as_str()]);
    let mut log = Log { process: pod.proxy.get().context("the agent runs")?, read: 0 };
    let (took, _) = log.until(&both).await?;
    let heard = log.watch().await?;
    // At least half of what was to be sent, on a machine that has other things to do.
    let enough = heard.answered() as u64 > u64::from(RATE) * WATCH.as_secs() / 2;
    stage.judge(
        "a grpc-go client by xds:/// is answered by copies of its own network only, over mutual TLS, \
         0 calls fail",
        &format!("{} (both after {:.1} s)", heard.figure(), took.as_secs_f64()),
        heard.answerers() == both && heard.plaintext == 0 && heard.failures.is_empty() && enough,
        &[],
    );

    apply(west.client(), &strict()).await?;
    let heard = log.watch().await?;
    stage.judge(
        "PeerAuthentication STRICT changes nothing for it",
        &heard.figure(),
        heard.answered() > 0 && heard.failures.is_empty(),
        &[],
    );

    west.launcher.pause(true).await;
    // From here on each new connection is proof of mutual TLS: plaintext is refused.
    for (ready, wanted, what) in [
        (&["hello-1"][..], BTreeSet::from([one.as_str()]), "taken away"),
        (&["hello-1", "hello-2"][..], both.clone(), "added"),
    ] {
        west.launcher.write_ready(NAME, ready).await?;
        let (took, heard) = log.until(&wanted).await?;
        stage.judge(
            &format!("under STRICT an endpoint is {what}: calls follow within 5 s, none fails"),
            &format!("after {:.1} s; {}", took.as_secs_f64(), heard.figure()),
            heard.failures.is_empty() && took < Duration::from_secs(5),
            &[],
        );
    }
    west.launcher.pause(false).await;

    let key = std::fs::metadata(pod.dir.join("agent").join("key.pem"))?;
    let mode = key.permissions().mode() & 0o7777;
    stage.judge(
        "the key is a file of the proxy's user alone",
        &format!("mode {mode:04o}, user {}", key.uid()),
        mode == 0o600 && key.uid() == PROXY_USER,
        &[],
    );
    let (acked, nacks) = answers(west, pod).await?;
    stage.judge(
        "grpc-go refused nothing it was sent (no NACK)",
        &format!("{acked} types taken, {nacks} refusals"),
        nacks == 0 && acked >= 4,
        &[],
    );
    Ok(())
}
