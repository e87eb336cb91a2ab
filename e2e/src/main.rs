//! `isthmus-e2e`: the harness, and the programs it runs inside its pods.

mod evidence;
mod kind;
mod nodes;
mod plays;

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, Parser};
use e2e::scenario::{self, Driver};
use fleet::image::{compare, programs, write_oci};
use fleet::nodes::{init, load_balancer};
use fleet::verdict::{Pillar, Verdict};
use fleet::{exact, forger, hello, hellos, load, parts, smuggling, streams};
use plays::Plays;
use std::path::{Path, PathBuf};
use std::time::Duration;

#[derive(Parser)]
#[command(about = "Shows the promises of Isthmus on real API servers in network namespaces")]
enum Command {
    /// Plays scenarios on one fleet and judges them.
    Run(Run),
    /// Brings a fleet up, and takes it down at Ctrl-C.
    Up {
        #[arg(long, default_value = "isth")]
        prefix: String,
        /// The program `isthmus`; else the one beside this program.
        #[arg(long)]
        isthmus: Option<PathBuf>,
    },
    /// Clusters with real nodes that stay up until they are taken down.
    #[command(subcommand)]
    Fleet(nodes::Fleet),
    /// Path of a real Envoy; fetches it the first time.
    Envoy,
    /// Folder with kube-apiserver and etcd; builds them the first time.
    Assets,
    /// Writes an OCI layout for each program of the mesh; prints their names and digests.
    Image {
        /// Folder of the built programs; else the one of this program.
        #[arg(long)]
        from: Option<PathBuf>,
        #[arg(long)]
        out: PathBuf,
        #[arg(long, default_value = env!("CARGO_PKG_VERSION"))]
        tag: String,
    },
    /// Compares the OCI layouts in two folders; fails at the first file that differs.
    ImageCompare {
        one: PathBuf,
        other: PathBuf,
        /// A text that no file may hold, such as a folder's path.
        #[arg(long)]
        never: Vec<String>,
    },
    /// Removes what a crashed fleet in namespaces left behind.
    Clean {
        #[arg(long, default_value = "isth")]
        prefix: String,
    },
    /// The workload of the scenarios.
    Hello(hello::Options),
    /// The load of the scenarios.
    Load(load::Options),
    /// New connections to gateways as load, each a ClientHello and the beginning of its answer.
    Hellos(hellos::Options),
    /// gRPC streams as load.
    Streams(streams::Options),
    /// Tries to carry bytes in every way there is; prints how each went, as JSON.
    Exact(exact::Options),
    /// Sends every ambiguous request there is; prints what was answered, as JSON.
    Smuggle(smuggling::Options),
    /// hyper as it comes, which says what it was asked.
    Seen(smuggling::backends::Options),
    /// One GET; prints the body.
    Call {
        url: String,
        /// Seconds.
        #[arg(long, default_value_t = 5.0)]
        limit: f64,
    },
    /// What the system's resolver says.
    Resolve { name: String },
    /// A server with a certificate of the harness's making.
    #[command(hide = true)]
    Forger(forger::Options),
    /// The first process of a node.
    #[command(hide = true)]
    Node {
        #[arg(long)]
        config: PathBuf,
    },
    /// Gives Services of type LoadBalancer their addresses.
    #[command(hide = true)]
    LoadBalancer(load_balancer::Options),
    /// Waits for the end of its stdin, then cleans up.
    #[command(hide = true)]
    Janitor {
        #[arg(long, required_unless_present = "kind")]
        prefix: Option<String>,
        /// The prefix of a fleet on kind.
        #[arg(long, conflicts_with = "prefix")]
        kind: Option<String>,
    },
}

#[derive(Args)]
struct Run {
    /// Names of scenarios, or `all`.
    scenarios: Vec<String>,
    /// Prints the scenarios' names and ends.
    #[arg(long)]
    list: bool,
    /// With the control plane of the client's cluster dead, where a scenario promises that.
    #[arg(long)]
    without_control_plane: bool,
    /// Breaks one pillar: every verdict that rests on it must turn red.
    #[arg(long)]
    sabotage: Option<Pillar>,
    /// Plays a scenario with a red verdict once more on the same fleet; what the first run showed
    /// stays in the table. For machines that others disturb.
    #[arg(long, conflicts_with = "sabotage")]
    again: bool,
    /// Also writes the verdicts to this file, as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    /// What makes the clusters; `all` means every scenario that it is the right one for.
    #[arg(long, value_enum, default_value_t = Driver::Apiserver)]
    driver: Driver,
    /// The same as `--driver embedded`.
    #[arg(long, conflicts_with = "driver")]
    embedded: bool,
    /// Leaves a fleet with nodes running after the last scenario; `fleet down` removes it, and one on kind
    /// the command that is printed.
    #[arg(long)]
    keep: bool,
    /// First word of the fleet's namespaces; else `isth`, and `isthn` with nodes. On kind, of the names of
    /// its clusters; else `isthk`.
    #[arg(long)]
    prefix: Option<String>,
    /// The program `isthmus`; else the one beside this program.
    #[arg(long)]
    isthmus: Option<PathBuf>,
}

fn main() -> std::process::ExitCode {
    match run() {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            std::process::ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    match Command::parse() {
        Command::Run(options) => play(options),
        Command::Up { prefix, isthmus } => up(prefix, isthmus),
        Command::Fleet(command) => nodes::on_fleet(command),
        Command::Node { config } => init::run(&config),
        Command::LoadBalancer(options) => runtime()?.block_on(load_balancer::run(options)),
        Command::Envoy => {
            println!("{}", parts::envoy()?.display());
            Ok(())
        }
        Command::Assets => {
            println!("{}", parts::assets()?.display());
            Ok(())
        }
        Command::Image { from, out, tag } => images(from, &out, &tag),
        Command::ImageCompare { one, other, never } => {
            for (name, digest) in compare::folders(&one, &other, &never)? {
                println!("{name}  {digest}  the same twice");
            }
            Ok(())
        }
        Command::Clean { prefix } => fleet::clean(&prefix),
        Command::Hello(options) => runtime()?.block_on(hello::run(options)),
        Command::Hellos(options) => runtime()?.block_on(hellos::run(options)),
        Command::Load(options) => runtime()?.block_on(load::run(options)),
        Command::Exact(options) => {
            let tried = runtime()?.block_on(exact::run(&options));
            println!("{}", serde_json::to_string(&tried)?);
            Ok(())
        }
        Command::Smuggle(options) => {
            let told = runtime()?.block_on(smuggling::run(&options))?;
            println!("{}", serde_json::to_string(&told)?);
            Ok(())
        }
        Command::Seen(options) => runtime()?.block_on(smuggling::backends::run(options)),
        Command::Streams(options) => runtime()?.block_on(streams::run(options)),
        Command::Call { url, limit } => {
            let limit = Duration::from_secs_f64(limit);
            println!("{}", runtime()?.block_on(load::get(&url, None, limit))?);
            Ok(())
        }
        Command::Resolve { name } => runtime()?.block_on(load::resolve(&name)),
        Command::Forger(options) => runtime()?.block_on(forger::run(options)),
        Command::Janitor { prefix, kind: None } => {
            fleet::janitor(|| fleet::clean(&prefix.context("clap asks for one")?))
        }
        Command::Janitor { kind: Some(prefix), .. } => fleet::janitor(|| kind::clean(&prefix)),
    }
}

fn images(from: Option<PathBuf>, out: &Path, tag: &str) -> Result<()> {
    let own = std::env::current_exe()?;
    let beside = || own.parent().map(Path::to_owned).context("a program lies in a folder");
    let from = from.map_or_else(beside, Ok)?;
    let stripped = out.join("stripped");
    for image in programs::of_mesh(&from, tag, &stripped)? {
        let tar = programs::tar(out, &image);
        let digest = write_oci(&image, &tar)?;
        println!("{}  {digest}  {}", image.name, tar.display());
    }
    std::fs::remove_dir_all(&stripped).context("removing the stripped programs")
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().enable_all().build()?)
}

/// Ctrl-C and SIGTERM end a run in order: what was started is taken down.
async fn interrupted() -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        end = tokio::signal::ctrl_c() => end?,
        _ = terminate.recv() => {}
    }
    Ok(())
}

/// All three clusters with every program, not linked yet.
async fn bring_up(home: fleet::Home, wan: fleet::netns::Netns) -> Result<fleet::Fleet> {
    let started = std::time::Instant::now();
    let phrase = "correct horse battery staple";
    let fleet = fleet::Fleet::up(home, Some(wan), &fleet::CLUSTERS, phrase).await?;
    println!("3 clusters with objects after {:.1} s", started.elapsed().as_secs_f64());
    let took = fleet.start_programs().await?;
    println!("every program ready after {:.1} s", took.as_secs_f64());
    Ok(fleet)
}

fn up(prefix: String, isthmus: Option<PathBuf>) -> Result<()> {
    let parts = parts::Parts::ready(isthmus, false)?;
    let options = fleet::Options { prefix, sabotage: None };
    let (home, wan) = fleet::Home::claim(&options, parts)?;
    runtime()?.block_on(async {
        let work = async {
            let fleet = bring_up(home, wan).await?;
            println!("up; Ctrl-C takes it down. Logs: {}", fleet.home.logs.display());
            interrupted().await
        };
        tokio::select! { end = work => end, end = interrupted() => end }
    })
}

fn play(options: Run) -> Result<()> {
    let driver = if options.embedded { Driver::Embedded } else { options.driver };
    if options.list {
        for scenario in scenario::ALL {
            let apart = scenario::APART.contains(&scenario.name);
            let apart = if apart { " (not among `all`)" } else { "" };
            println!("{:<16} {}{apart}", scenario.name, scenario.about);
        }
        for scenario in scenario::nodes::ALL {
            let also = if scenario.driver == Driver::Kind { " or kind" } else { "" };
            println!("{:<16} {} (--driver nodes{also})", scenario.name, scenario.about);
        }
        return Ok(());
    }
    ensure!(!options.scenarios.is_empty(), "name a scenario, or `all`; --list names them");
    match driver {
        Driver::Kind => kind::play(options),
        Driver::Nodes => nodes::play(options),
        Driver::Embedded | Driver::Apiserver => play_on_processes(options, driver),
    }
}

fn play_on_processes(options: Run, driver: Driver) -> Result<()> {
    ensure!(!options.keep, "--keep is for fleets with nodes (--driver nodes, or kind)");
    let mut chosen = vec![];
    for name in &options.scenarios {
        let before = chosen.len();
        for scenario in scenario::ALL.iter() {
            // `all` on a driver is what that one can prove; by name a scenario is played on any.
            let among = scenario.driver <= driver && !scenario::APART.contains(&scenario.name);
            if name != scenario.name && (name != "all" || !among) {
                continue;
            }
            let both = name == "all" && scenario.without_control_plane;
            ensure!(
                !options.without_control_plane || scenario.without_control_plane || name == "all",
                "{name} says nothing about a dead control plane"
            );
            if both || !options.without_control_plane {
                chosen.push((scenario, false));
            }
            if both || options.without_control_plane {
                chosen.push((scenario, true));
            }
        }
        let on_nodes = scenario::nodes::ALL.iter().any(|scenario| scenario.name == name);
        ensure!(!on_nodes, "{name} needs real nodes: --driver nodes, or kind");
        ensure!(chosen.len() > before, "there is no scenario `{name}`; --list names them");
    }
    let parts = parts::Parts::ready(options.isthmus, driver == Driver::Embedded)?;
    for (scenario, _) in &chosen {
        scenario::prepare(scenario)?;
    }
    let prefix = options.prefix.unwrap_or_else(|| "isth".into());
    let fleet = fleet::Options { prefix, sabotage: options.sabotage };
    let (home, wan) = fleet::Home::claim(&fleet, parts)?;
    let verdicts = runtime()?.block_on(async {
        let work = async {
            let fleet = bring_up(home, wan).await?;
            let mut verdicts = vec![];
            // A sabotage's red verdicts are what it is for.
            let logs = options.sabotage.is_none().then_some(fleet.home.logs.as_path());
            let plays = Plays { logs, again: options.again };
            for (scenario, without) in chosen {
                let play =
                    async || scenario::play(&fleet, scenario, without, options.sabotage).await;
                verdicts.extend(plays.play(scenario.name, play).await);
            }
            println!("\nlogs of every program: {}", fleet.home.logs.display());
            anyhow::Ok(verdicts)
        };
        tokio::select! {
            verdicts = work => verdicts,
            end = interrupted() => { end?; bail!("interrupted") }
        }
    })?;
    if let Some(path) = &options.json {
        std::fs::write(path, serde_json::to_string_pretty(&verdicts)?)?;
    }
    conclude(&verdicts, options.sabotage)
}

/// The table of all verdicts, and the end of the run.
fn conclude(verdicts: &[Verdict], sabotage: Option<Pillar>) -> Result<()> {
    println!("\n{:-<100}", "");
    for verdict in verdicts {
        let word = if verdict.kept { "kept" } else { "RED " };
        println!(
            "{word}  {:<38} {}\n      {:<38} {}",
            verdict.scenario, verdict.promise, "", verdict.figure
        );
    }
    println!("{:-<100}", "");
    let red = verdicts.iter().filter(|verdict| !verdict.kept).count();
    if let Some(pillar) = sabotage {
        let resting: Vec<_> = verdicts.iter().filter(|v| v.rests_on.contains(&pillar)).collect();
        let still = resting.iter().filter(|verdict| verdict.kept).count();
        let word = format!("{pillar:?}").to_lowercase();
        println!(
            "sabotage of {word}: {} of {} verdicts that rest on it are red",
            resting.len() - still,
            resting.len()
        );
        ensure!(!resting.is_empty(), "no verdict of these scenarios rests on {word}");
        ensure!(still == 0, "{still} verdicts rest on {word} and did not notice its loss");
        return Ok(());
    }
    println!("{} passed, {red} failed", verdicts.len() - red);
    if red > 0 {
        // Last, where a log that was cut short still shows it.
        let broken = verdicts.iter().filter(|verdict| !verdict.kept);
        let lines = broken.map(|v| format!("\n  {}: {}: {}", v.scenario, v.promise, v.figure));
        bail!("{red} promises are broken:{}", lines.collect::<String>());
    }
    Ok(())
}
