//! `isthmus demo`: three clusters on this machine's loopback, linked, attacked, hurt and judged.

mod attacks;
mod contrast;
mod faults;
mod holder;
mod part;
mod screen;
mod traffic;

pub(crate) use part::{Part, VERB};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use fleet::parts::Parts;
use fleet::{Fleet, Home, Place, Plan};
use screen::{Paint, Screen};
use serde_json::json;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, UdpSocket};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// The name the client calls.
const HOST: &str = "hello.shop.global";
/// Held while a demo runs, so that another finds it in any state.
const OURS: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(127, 1, 0, 1), 15999);
/// What the whole may take, and hold in memory.
const SECONDS_MAX: u64 = 150;
const MEMORY_MAX: u64 = 600 << 20;

#[derive(Debug, Args)]
pub(crate) struct Demo {
    /// Hold the demo to its own promises too: 150 seconds and 600 MB.
    #[arg(long)]
    check: bool,
    /// End with one JSON object on a line of its own.
    #[arg(long)]
    json: bool,
    /// Leave it running, with commands to try, until Ctrl-C.
    #[arg(long)]
    keep: bool,
    /// Run the same faults against a plain Envoy too (`envoy` on the PATH), its strip below ours.
    #[arg(long)]
    contrast: bool,
    /// Keep every program's log in this folder.
    #[arg(long, value_name = "DIR")]
    logs: Option<PathBuf>,
}

/// East calls; west is in its region, north is not.
const PLANS: [Plan; 3] = [
    plan("east", 1, "europe", "europe-1", 1, 0),
    plan("west", 2, "europe", "europe-2", 2, 2),
    plan("north", 3, "america", "america-1", 2, 2),
];

const fn plan(
    name: &'static str,
    number: u8,
    region: &'static str,
    zone: &'static str,
    gateways: u8,
    copies: u8,
) -> Plan {
    Plan { name, number, region, zone, gateways, copies, exported: false, client: copies == 0 }
}

fn http_port() -> u16 {
    Place::Loopback.http_port()
}

/// Where the client's sidecar answers DNS.
fn dns_of(fleet: &Fleet) -> Result<SocketAddr> {
    let address = fleet.cluster("east").pod("client-1")?.address;
    Ok((address, Place::Loopback.dns_port()).into())
}

impl Demo {
    pub(crate) async fn run(self) -> Result<ExitCode> {
        let started = Instant::now();
        let mut screen = Screen::new();
        let envoy = self.contrast.then(contrast::envoy).transpose()?;
        // Before the first file: from here on nobody is ended without cleaning up.
        let mut interrupted = Interrupted::listen()?;
        let _ours = free()?;
        let parts = Parts::of_one_program(VERB, &cluster::api::foreign::DEFINITIONS)?;
        let home = Home::on_loopback(&std::env::temp_dir(), self.logs.as_deref(), parts)?;
        // Whatever ends this, the fleet is dropped: processes first, then files.
        tokio::select! {
            // What fails since it was interrupted is no failure.
            biased;
            () = interrupted.received() => {
                screen.end_strip();
                say!("interrupted; everything is taken down");
                Ok(ExitCode::from(130))
            }
            done = self.play(home, envoy, started, &mut screen) => done,
        }
    }

    async fn play(
        &self,
        home: Home,
        envoy: Option<PathBuf>,
        started: Instant,
        screen: &mut Screen,
    ) -> Result<ExitCode> {
        screen.title("1  Three clusters on this machine, linked");
        let phrase = hex::encode(rand::random::<[u8; 12]>());
        let fleet = Fleet::up(home, None, &PLANS, &phrase).await?;
        link(&fleet, &phrase, screen).await?;
        screen.title("2  One call by name");
        call(&fleet, screen).await?;
        screen.title("3  Four attacks");
        let refused = attacks::show(&fleet, screen).await?;
        screen.title("4  Faults under load: a letter is 20 answers, w of west, n of north");
        let contrast = match &envoy {
            None => None,
            Some(envoy) => Some(contrast::Contrast::start(&fleet, envoy).await?),
        };
        let faults::Seen { rows, contrast } = faults::show(&fleet, contrast, screen).await?;
        let memory = fleet.memory() + fleet::process::pss(std::process::id());
        let seconds = started.elapsed().as_secs();
        screen.title("5  What the client saw");
        faults::table(&rows, screen);
        if !contrast.is_empty() {
            screen.title("   What the client of the plain Envoy saw");
            faults::table(&contrast, screen);
        }
        let kept = rows.iter().all(faults::Row::kept);
        let within = seconds <= SECONDS_MAX && memory <= MEMORY_MAX;
        let ok = kept && refused && (within || !self.check);
        screen.fact("took", &format!("{seconds} s of at most {SECONDS_MAX}"), Paint::Plain);
        let megabytes = memory >> 20;
        let text = format!("{megabytes} MB of at most {} (sum of Pss)", MEMORY_MAX >> 20);
        screen.fact("memory", &text, Paint::Plain);
        let (verdict, paint) = match (kept && refused, ok) {
            (_, true) => ("every promise was kept", Paint::Good),
            (true, false) => ("the demo took more time or memory than it may", Paint::Bad),
            (false, false) => ("a promise was broken", Paint::Bad),
        };
        screen.fact("verdict", verdict, paint);
        if self.json {
            let object = json!({
                "schema": "isthmus.dev/demo/v1", "faults": rows, "ok": ok,
                "contrast": contrast, "attacks_refused": refused, "seconds": seconds, "memory_bytes": memory,
            });
            say!("{object}");
        }
        if self.keep {
            keep(&fleet, screen).await?;
        }
        Ok(if ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

/// Programs, trust, links and exports: each line a fact.
async fn link(fleet: &Fleet, phrase: &str, screen: &mut Screen) -> Result<()> {
    screen.quote(fleet.trust.said.lines().take(3).collect::<Vec<_>>().join("\n").as_str());
    screen.fact(
        "passphrase",
        &format!("{phrase} (of the root's key; made for this run)"),
        Paint::Plain,
    );
    for cluster in fleet.clusters.values() {
        let domain = fleet::trust_domain(cluster.name());
        let number = cluster.plan.number;
        let text = format!(
            "API server {}, pods 127.{number}.N.0/24, trust domain {domain}",
            cluster.api.url
        );
        screen.fact(cluster.name(), &text, Paint::Plain);
    }
    for name in ["west", "north"] {
        let strict = json!({
            "apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication",
            "metadata": {"name": "default", "namespace": fleet::SYSTEM},
            "spec": {"mtls": {"mode": "STRICT"}},
        });
        fleet::objects::apply(fleet.cluster(name).client(), &strict).await?;
    }
    let took = fleet.start_programs().await?;
    let processes: usize = fleet.clusters.values().map(|c| c.processes().len()).sum();
    let text =
        format!("{processes} processes, all ready {:.1} s after the first", took.as_secs_f64());
    screen.fact("programs", &text, Paint::Plain);
    let east = fleet.cluster("east");
    for peer in ["west", "north"] {
        let said = fleet::link::both_ways(&fleet.home, east, fleet.cluster(peer)).await?;
        screen.quote(
            said.lines()
                .filter(|line| line.starts_with(' '))
                .collect::<Vec<_>>()
                .join("\n")
                .as_str(),
        );
    }
    let export = ["export", "svc/hello", "-n", "shop", "--context", "west", "--context", "north"];
    screen.quote(isthmus(fleet, &export).await?.trim_end());
    Ok(())
}

/// Who answers, under which identity, and why it goes there.
async fn call(fleet: &Fleet, screen: &mut Screen) -> Result<()> {
    let url = format!("http://{HOST}:{}/", http_port());
    let dns = dns_of(fleet)?;
    // Both exporters first: what follows is about names in use.
    for cluster in ["north", "west"] {
        let own = format!("http://hello.shop.{cluster}.global:{}/", http_port());
        until_answered(&own, dns, cluster).await?;
    }
    until_answered(&url, dns, "west").await?;
    let begun = Instant::now();
    let body = fleet::load::get(&url, Some(dns), Duration::from_secs(5)).await?;
    let took = begun.elapsed();
    let answer: fleet::hello::Answer = serde_json::from_str(&body).context("hello's answer")?;
    let address = fleet::load::ask(dns, HOST).await?;
    let address = address.first().context("the name has an address")?;
    screen.fact(
        "name",
        &format!("{HOST} is {address} for east/client-1 (DNS at {dns})"),
        Paint::Plain,
    );
    let text = format!(
        "{}/{} after {:.1} ms, through a gateway that routes on SNI",
        answer.cluster,
        answer.pod,
        took.as_secs_f64() * 1000.0
    );
    screen.fact("answered by", &text, Paint::Good);
    let xfcc = answer.headers.get("x-forwarded-client-cert").cloned().unwrap_or_default();
    let part = |name: &str| {
        let found = xfcc.split(';').find_map(|part| part.strip_prefix(name)).unwrap_or("nobody");
        found.trim_matches('"').to_owned()
    };
    let (server, client) = (part("By="), part("URI="));
    screen.fact("server", &server, Paint::Plain);
    screen.fact("client", &format!("{client}, as the server saw it"), Paint::Plain);
    ensure!(
        server.starts_with("spiffe://west.mesh/") && client.starts_with("spiffe://east.mesh/"),
        "the call was not mutually authenticated: {xfcc:?}"
    );
    let asked = format!("{HOST}:{}", http_port());
    let why = ["why", "pod/client-1", "-n", "shop", &asked, "--context", "east"];
    // A fresh export is told in pieces: the reasons are whole when both exporters are among them.
    let until = Instant::now() + Duration::from_secs(15);
    let said = loop {
        let said = isthmus(fleet, &why).await?;
        let whole = ["2 in west", "2 in north"].iter().all(|words| said.contains(words));
        if whole || Instant::now() > until {
            break said;
        }
    };
    screen.quote(&said);
    Ok(())
}

async fn until_answered(url: &str, dns: SocketAddr, cluster: &str) -> Result<()> {
    let limit = Duration::from_secs(30);
    let begun = Instant::now();
    loop {
        let body = fleet::load::get(url, Some(dns), Duration::from_secs(2)).await;
        let by = body.as_ref().ok().and_then(|body| {
            Some(serde_json::from_str::<fleet::hello::Answer>(body).ok()?.cluster)
        });
        if by.as_deref() == Some(cluster) {
            return Ok(());
        }
        if begun.elapsed() > limit {
            return match body {
                Ok(_) => bail!("{url} is answered by {by:?} after {limit:?}, not by {cluster}"),
                Err(error) => Err(error).with_context(|| format!("calling {url} for {limit:?}")),
            };
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// This program as an operator would call it; what it says.
async fn isthmus(fleet: &Fleet, args: &[&str]) -> Result<String> {
    let mut command = tokio::process::Command::new(&fleet.home.parts.isthmus);
    command.args(args).env("KUBECONFIG", fleet.home.operator()).kill_on_drop(true);
    let out = command.output().await.context("starting isthmus")?;
    let said = String::from_utf8_lossy(&out.stderr);
    ensure!(out.status.success(), "isthmus {}: {}", args.join(" "), said.trim());
    Ok(String::from_utf8(out.stdout)?)
}

/// What to try while it runs.
async fn keep(fleet: &Fleet, screen: &mut Screen) -> Result<()> {
    let (dns, port) = (dns_of(fleet)?, http_port());
    let slot = fleet::load::ask(dns, HOST).await?;
    let slot = slot.first().context("the name has an address")?;
    screen.title("It runs until Ctrl-C. Try:");
    let config = fleet.home.operator();
    say!("  export KUBECONFIG={}", config.display());
    say!("  kubectl --context west get pods -A");
    say!("  dig -p {} @{} {HOST}", dns.port(), dns.ip());
    say!("  curl --resolve {HOST}:{port}:{slot} \\\n    http://{HOST}:{port}/");
    say!("  isthmus status --context east");
    say!("  logs: {}", fleet.home.logs.display());
    std::future::pending().await
}

/// Checks that nobody holds what the demo will bind, and holds its own mark.
fn free() -> Result<TcpListener> {
    let ours = TcpListener::bind(OURS).map_err(|error| held(OURS, &error))?;
    for plan in &PLANS {
        let place = Place::Loopback;
        let node = place.node(plan.number);
        let nodes = [15012, 15014, 15015, 15024, 15025, place.dns_port()].map(|port| (node, port));
        let pods = plan.pods(place).into_iter().flat_map(|pod| {
            [8080, 9000, 15000, 15021, 15090, 15443, place.dns_port()].map(|port| (pod, port))
        });
        for (ip, port) in nodes.into_iter().chain(pods) {
            let address = SocketAddrV4::new(ip, port);
            TcpListener::bind(address).map_err(|error| held(address, &error))?;
            if address.port() == place.dns_port() {
                UdpSocket::bind(address).map_err(|error| held(address, &error))?;
            }
        }
    }
    Ok(ours)
}

fn held(address: SocketAddrV4, error: &std::io::Error) -> anyhow::Error {
    if error.kind() != std::io::ErrorKind::AddrInUse {
        return anyhow::anyhow!(
            "ISM2902 {address} cannot be bound: {error}. Fix: run it where 127.0.0.0/8 is loopback"
        );
    }
    let demo = if address == OURS { "another demo runs: " } else { "" };
    let holder = holder::holder(address);
    anyhow::anyhow!("ISM2902 {demo}{address} is held by {holder}. Fix: end it, then try again")
}

/// Ctrl-C, or an order to end; heard from the moment on that this is made.
struct Interrupted([Signal; 3]);

impl Interrupted {
    fn listen() -> Result<Self> {
        let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
        let [interrupt, terminate, hangup] = kinds.map(signal);
        Ok(Self([interrupt?, terminate?, hangup?]))
    }

    async fn received(&mut self) {
        let Self([interrupt, terminate, hangup]) = self;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}
