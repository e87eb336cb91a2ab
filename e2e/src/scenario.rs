//! The promises, each a scenario on one fleet: what is done, who is hurt, who must still answer.

mod calls;
mod check;
mod cli;
mod controllers;
mod envoy;
mod exact;
mod faults;
mod grpc;
mod grpc_xds;
mod headroom;
mod lies;
mod linking;
mod links;
mod mistakes;
pub mod nodes;
mod policy;
mod propagation;
mod rush;
mod smuggling;
mod sockets;
mod starved;
mod swaps;

use anyhow::{Context, Result, bail};
use fleet::launcher::{APP_USER, Pod};
use fleet::load;
use fleet::process::Process;
use fleet::spot::Spot;
use fleet::verdict::{Outcome, Pillar, Record, Verdict};
use fleet::{Cluster, Fleet};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The name all scenarios call.
pub const HOST: &str = "hello.shop.global";

/// What makes the clusters of a scenario, weakest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Driver {
    /// The embedded API server (`isthmus apiserver`), workloads as processes.
    Embedded,
    /// kube-apiserver and etcd, workloads as processes.
    Apiserver,
    /// Kubelets and containers in Docker, by kind.
    Kind,
    /// Kubelets and containers on machines of our own making, which may be hurt.
    Nodes,
}

/// One scenario whose workloads are processes.
pub struct Scenario {
    pub name: &'static str,
    /// The weakest that can prove it: others are about how an API server dies, or about figures
    /// that are given for the real one.
    pub driver: Driver,
    pub about: &'static str,
    /// Also run with the client's control plane dead.
    pub without_control_plane: bool,
    run: for<'a> fn(&'a Stage<'a>) -> futures::future::BoxFuture<'a, Result<()>>,
}

macro_rules! scenarios {
    ($($name:literal $driver:ident $also:literal $run:path: $about:literal;)*) => {
        /// All of them, in the order in which `all` runs them.
        pub const ALL: &[Scenario] = &[$(Scenario {
            name: $name,
            driver: Driver::$driver,
            about: $about,
            without_control_plane: $also,
            run: |stage| Box::pin($run(stage)),
        }),*];
    };
}

scenarios! {
    "first-call" Embedded false calls::first_call:
        "resolve and call hello.shop.global from east; who answered, under which identity";
    "propagation" Apiserver false propagation::propagation:
        "ready endpoints change in west: EDS in east; and in the own cluster";
    "link-life" Embedded false links::link_life:
        "a link secret applied, accepted, replaced, deleted";
    "sni-refused" Embedded false lies::sni_refused:
        "ClientHellos a gateway must close, all alike";
    "forged-identity" Embedded false lies::forged_identity:
        "a server whose certificate another cluster's authority made";
    "bad-input" Embedded false links::bad_input:
        "hostile and mistaken objects: each costs itself only, and says why";
    "cli-walk" Embedded false cli::cli_walk:
        "an operator's walk: status, why, export, link, proxies, remote secrets, unlink";
    "policy" Apiserver false policy::policy_decides:
        "DENY and ALLOW in west of a caller in east; what open connections, logs and operators see";
    "link-fleet" Embedded false linking::linking:
        "link --fleet: the plan, each with each, a dead cluster, mistakes, and bad objects elsewhere";
    "check" Embedded false check::check:
        "20 faults and more, each named right in the first red line; 100 healthy runs without a red one";
    "kill-copy" Apiserver false faults::kill_copy:
        "SIGKILL one copy of hello under load";
    "kill-gateway" Apiserver false faults::kill_gateway:
        "SIGKILL one of west's two gateways under load";
    "stop-gateway" Apiserver true faults::stop_gateway:
        "SIGSTOP one of west's gateways under load";
    "drop-gateway" Apiserver true faults::drop_gateway:
        "all packets to and from one of west's gateways vanish under load";
    "kill-west" Apiserver true faults::kill_west:
        "SIGKILL everything in west under load";
    "stop-west" Apiserver true faults::stop_west:
        "SIGSTOP everything in west under load";
    "grpc" Apiserver false grpc::interop:
        "gRPC's own interop cases and HTTP/2's conformance suite, across clusters";
    "grpc-streams" Apiserver false grpc::streams:
        "SIGKILL a gateway under gRPC streams";
    "byte-exact" Apiserver false exact::byte_exact:
        "long bodies, pipelines, upgrades and slow readers, over every kind of port";
    "smuggling" Apiserver false smuggling::smuggling:
        "179 ambiguous requests to nginx, HAProxy, Envoy and hyper: none arrives as another or as two";
    "swaps" Apiserver false swaps::swaps:
        "100,000 requests while configuration changes 20 times";
    "rush" Apiserver false rush::rush:
        "2,000 new connections a second while configuration changes 20 times and a gateway drains";
    "starved" Apiserver false starved::starved:
        "2,000 new connections a second while other programs take the processors for 10 s";
    "drain-gateway" Apiserver false faults::drain_gateway:
        "SIGTERM one of west's gateways under load";
    "envoy-sidecar" Apiserver false envoy::envoy_sidecar:
        "a real Envoy as a sidecar in east, through `isthmus agent`: calls, failover, policies, refusals";
    "grpc-xds" Apiserver false grpc_xds::grpc_xds:
        "a real grpc-go client without a proxy, by `xds:///` through `isthmus agent`";
    "control-down" Apiserver false controllers::control_down:
        "API servers and control planes of all clusters dead for 2 minutes under load";
    "api-hangs" Apiserver false controllers::api_hangs:
        "west's API server hangs, then its packets vanish: Unknown within 35 s";
}

/// Played only by their names, not by `all`. `rush`: two cores, on which both ends and both clusters
/// share, are all but full with 2,000 new connections a second. `starved`: those who want the processors
/// at the same time must not be suites.
/// `smuggling`: it takes minutes; its table is sent to our own servers by proxy-http/tests/http.
pub const APART: [&str; 3] = ["rush", "starved", "smuggling"];

/// What a scenario sees of the run.
pub struct Stage<'a> {
    pub fleet: &'a Fleet,
    pub without_control_plane: bool,
    pub sabotage: Option<Pillar>,
    name: String,
    verdicts: std::sync::Mutex<Vec<Verdict>>,
}

/// Fetches, builds or installs what a scenario needs from elsewhere. To be called before there is a fleet,
/// whose network has no way out.
pub fn prepare(scenario: &Scenario) -> Result<()> {
    match scenario.name {
        "grpc" | "grpc-streams" => {
            fleet::peers::interop()?;
            fleet::peers::h2spec().map(|_| ())
        }
        "grpc-xds" => {
            fleet::peers::interop()?;
            fleet::peers::xds_client().map(|_| ())
        }
        "envoy-sidecar" => fleet::parts::envoy().map(|_| ()),
        "smuggling" => fleet::smuggling::backends::prepare(),
        _ => Ok(()),
    }
}

/// Runs one scenario and hands back what it judged. A scenario that could not be carried through
/// is a broken promise too.
pub async fn play(
    fleet: &Fleet,
    scenario: &Scenario,
    without: bool,
    sabotage: Option<Pillar>,
) -> Vec<Verdict> {
    let suffix = if without { " --without-control-plane" } else { "" };
    let name = format!("{}{suffix}", scenario.name);
    println!("\n== {name}: {}", scenario.about);
    let stage = Stage {
        fleet,
        without_control_plane: without,
        sabotage,
        name: name.clone(),
        verdicts: Default::default(),
    };
    let end = async {
        forget_loads(&fleet.home.logs)?;
        fleet.mend().await.context("making the fleet whole again")?;
        if scenario.name != "link-life" {
            links::linked(fleet).await?;
            in_use(fleet).await.context("bringing the name into use")?;
        }
        if without {
            fleet.cluster("east").control_plane.get().context("east's control plane")?.kill();
        }
        (scenario.run)(&stage).await
    };
    let end = end.await;
    let mut verdicts = stage.verdicts.into_inner().expect("no holder panics");
    verdicts.extend(end.err().map(|error| broken(&name, &error)));
    verdicts
}

/// Empties the folder of loads.
fn forget_loads(logs: &Path) -> Result<()> {
    let loads = logs.join(LOADS);
    if loads.exists() {
        std::fs::remove_dir_all(&loads).context("removing the last scenario's loads")?;
    }
    std::fs::create_dir(&loads).context("making a folder for loads")
}

/// The verdict on a scenario that could not be carried through.
fn broken(name: &str, error: &anyhow::Error) -> Verdict {
    println!("  RED  {name}: {error:#}");
    Verdict {
        scenario: name.to_owned(),
        promise: "the scenario runs to its end".into(),
        figure: format!("{error:#}"),
        kept: false,
        rests_on: vec![],
    }
}

/// Returns once every cluster's copies answer in east and a little load of each kind is whole: the promises
/// are about names in use, and a fleet just made whole is still telling itself so.
async fn in_use(fleet: &Fleet) -> Result<()> {
    let client = fleet.cluster("east").pod("client-1")?;
    let limit = Duration::from_secs(60);
    for cluster in ["west", "north"] {
        let url = format!("http://hello.shop.{cluster}.global/");
        call_until(fleet, client, &url, limit, |answer| answer.cluster == cluster).await?;
    }
    let start = tokio::time::Instant::now();
    loop {
        let little = Rates { gets: 40.0, posts: 20.0, connects: 20.0, fresh: 0.0, seconds: 1.0 };
        let records = Load::start(fleet, client, HOST, little)?.finish(limit).await?;
        let failed = records.iter().filter(|r| r.outcome != Outcome::Answered).count();
        if failed == 0 {
            return Ok(());
        }
        if start.elapsed() > limit {
            bail!("{failed} of {} are still not answered after {limit:?}", records.len());
        }
    }
}

impl Stage<'_> {
    /// Judges one promise and prints it at once.
    pub fn judge(&self, promise: &str, figure: &str, kept: bool, rests_on: &[Pillar]) {
        println!("  {}  {promise}\n         {figure}", if kept { "kept" } else { "RED " });
        self.verdicts.lock().expect("no holder panics").push(Verdict {
            scenario: self.name.clone(),
            promise: promise.to_owned(),
            figure: figure.to_owned(),
            kept,
            rests_on: rests_on.to_vec(),
        });
    }

    /// Prints a figure that no promise bounds.
    pub fn note(&self, figure: &str) {
        println!("        {figure}");
    }

    pub fn cluster(&self, name: &str) -> &Cluster {
        self.fleet.cluster(name)
    }

    /// The client pod of every scenario, in east.
    pub fn client(&self) -> Result<&Pod> {
        Ok(self.cluster("east").pod("client-1")?)
    }
}

/// Folder of a scenario's loads, among the logs.
const LOADS: &str = "loads";

/// A load under way.
pub struct Load {
    process: Process,
    out: PathBuf,
    /// Where its records stay until the next scenario, for whoever must find out why one was red.
    kept: PathBuf,
}

/// What to send; the rest is the default.
#[derive(Debug, Clone, Copy)]
pub struct Rates {
    pub gets: f64,
    pub posts: f64,
    pub connects: f64,
    /// New connections with one GET each.
    pub fresh: f64,
    pub seconds: f64,
}

/// The 1,000 a second of the promises: [`headroom::carried`] plays them.
const THOUSAND: Rates =
    Rates { gets: 850.0, posts: 100.0, connects: 50.0, fresh: 0.0, seconds: 16.0 };

/// New connections a second for the promises about 2,000: a little more, as starts are jittered.
const TWO_THOUSAND: f64 = 2_040.0;

impl Rates {
    /// New connections alone.
    fn fresh(fresh: f64, seconds: f64) -> Self {
        Self { gets: 0.0, posts: 0.0, connects: 0.0, fresh, seconds }
    }

    /// Requests and connections a second.
    fn sum(self) -> f64 {
        self.gets + self.posts + self.connects + self.fresh
    }

    /// Half of each, as long.
    fn halved(self) -> Self {
        Self {
            gets: self.gets / 2.0,
            posts: self.posts / 2.0,
            connects: self.connects / 2.0,
            fresh: self.fresh / 2.0,
            seconds: self.seconds,
        }
    }
}

impl Load {
    /// Starts a load in a pod, as its application would: captured, with the pod's resolver.
    pub fn start(fleet: &Fleet, pod: &Pod, host: &str, rates: Rates) -> Result<Self> {
        let out = pod.dir.join(format!("load-{}.jsonl", load::micros_now()));
        std::fs::write(&out, "")?;
        std::os::unix::fs::chown(&out, Some(APP_USER), Some(APP_USER))?;
        let text = |value: f64| value.to_string();
        let process = pod
            .job("load", &fleet.home.parts.own.program, &fleet.home.logs)
            .user(APP_USER)
            .own_etc()
            .args(["load", "--http", &format!("{host}:80"), "--tcp", &format!("{host}:9000")])
            .args(["--gets", &text(rates.gets), "--posts", &text(rates.posts)])
            .args(["--connects", &text(rates.connects), "--fresh", &text(rates.fresh)])
            .args(["--seconds", &text(rates.seconds)])
            .args(["--out", &out.display().to_string()])
            .start()?;
        let kept = fleet.home.logs.join(LOADS).join(out.file_name().context("a load has a name")?);
        Ok(Self { process, out, kept })
    }

    /// Ends it now, with all that was recorded.
    pub async fn end(self) -> Result<Vec<Record>> {
        self.process.signal(nix::sys::signal::Signal::SIGTERM);
        self.finish(Duration::from_secs(20)).await
    }

    /// Waits for its end.
    pub async fn finish(self, limit: Duration) -> Result<Vec<Record>> {
        let deadline = tokio::time::Instant::now() + limit;
        let status = loop {
            if let Some(status) = self.process.ended() {
                break status;
            }
            if tokio::time::Instant::now() > deadline {
                bail!("the load has not ended after {limit:?}");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        if !status.success() {
            bail!("the load ended with {status}: {}", self.process.last_words());
        }
        let text = std::fs::read_to_string(&self.out)?;
        // Not renamed: pods live in memory, logs do not.
        std::fs::write(&self.kept, &text)?;
        std::fs::remove_file(&self.out)?;
        text.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
    }
}

/// A program inside a pod, as its application.
async fn program_inside(pod: &Pod, program: &Path, args: &[&str]) -> Result<std::process::Output> {
    program_at(&pod.spot, program, args).await
}

/// The same at any place, which may be outside of all pods.
async fn program_at(spot: &Spot, program: &Path, args: &[&str]) -> Result<std::process::Output> {
    let out = tokio::process::Command::new("ip")
        .args(["netns", "exec", spot.netns()?.name(), "setpriv"])
        .args([format!("--reuid={APP_USER}"), format!("--regid={APP_USER}")])
        .args(["--clear-groups", "--"])
        .arg(program)
        .args(args)
        .kill_on_drop(true)
        .output()
        .await?;
    Ok(out)
}

/// A verb of this program inside a pod, as its application.
async fn inside(fleet: &Fleet, pod: &Pod, args: &[&str]) -> Result<String> {
    let out = program_inside(pod, &fleet.home.parts.own.program, args).await?;
    if !out.status.success() {
        bail!("{}", String::from_utf8_lossy(&out.stderr).trim());
    }
    Ok(String::from_utf8(out.stdout)?)
}

/// What answers one GET from a pod, as its application would send it.
pub async fn get(fleet: &Fleet, pod: &Pod, url: &str, limit: f64) -> Result<String> {
    inside(fleet, pod, &["call", url, "--limit", &limit.to_string()]).await
}

/// One GET of hello.
pub async fn call(fleet: &Fleet, pod: &Pod, url: &str, limit: f64) -> Result<fleet::hello::Answer> {
    serde_json::from_str(&get(fleet, pod, url, limit).await?)
        .context("an answer that is not hello's")
}

/// What a name resolves to in a pod.
pub async fn resolve(fleet: &Fleet, pod: &Pod, name: &str) -> Result<Vec<std::net::Ipv4Addr>> {
    let text = inside(fleet, pod, &["resolve", name]).await?;
    text.lines().map(|line| Ok(line.parse()?)).collect()
}

/// Calls until an answer satisfies `wanted`; says how long it took.
pub async fn call_until(
    fleet: &Fleet,
    pod: &Pod,
    url: &str,
    limit: Duration,
    wanted: impl Fn(&fleet::hello::Answer) -> bool,
) -> Result<(Duration, fleet::hello::Answer)> {
    let start = tokio::time::Instant::now();
    loop {
        let answer = call(fleet, pod, url, 2.0).await;
        match answer {
            Ok(answer) if wanted(&answer) => return Ok((start.elapsed(), answer)),
            Ok(answer) if start.elapsed() > limit => {
                bail!("{url} is still answered by {}/{}", answer.cluster, answer.pod)
            }
            Err(error) if start.elapsed() > limit => {
                return Err(error).with_context(|| format!("calling {url} for {limit:?}"));
            }
            Ok(_) | Err(_) => {}
        }
    }
}

/// 99th percentile of durations, in milliseconds; of fewer than 100 the largest.
pub fn p99_ms(durations: &mut [Duration]) -> f64 {
    durations.sort_unstable();
    let place = (durations.len() * 99).div_ceil(100).saturating_sub(1);
    durations.get(place).map_or(f64::NAN, |d| d.as_secs_f64() * 1000.0)
}
