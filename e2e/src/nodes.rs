//! The verbs about clusters with real nodes: up, down, shell, and scenarios on them.

use crate::plays::Plays;
use crate::{Run, conclude, interrupted, runtime};
use anyhow::{Context, Result, bail, ensure};
use clap::Subcommand;
use e2e::scenario::nodes::{On, Scenario};
use e2e::scenario::{self, Driver};
use fleet::nodes::{Nodes, Remains};
use fleet::parts;
use fleet::verdict::Verdict;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;

#[derive(Subcommand)]
pub(crate) enum Fleet {
    /// Brings three clusters up, prints how to reach them, and leaves them running.
    Up {
        #[arg(long, default_value = NODES)]
        prefix: String,
        /// Nodes of each cluster.
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=9))]
        nodes: u8,
        /// The program `isthmus`; else the one beside this program.
        #[arg(long)]
        isthmus: Option<PathBuf>,
    },
    /// Removes all of it, also after a crash.
    Down {
        #[arg(long, default_value = NODES)]
        prefix: String,
    },
    /// A shell, or a command, where the clusters can be reached, with KUBECONFIG set.
    Shell {
        #[arg(long, default_value = NODES)]
        prefix: String,
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
}

/// First word of the namespaces of fleets with nodes.
const NODES: &str = "isthn";

/// Does what is asked of a fleet that stays.
pub(crate) fn on_fleet(command: Fleet) -> Result<()> {
    match command {
        Fleet::Up { prefix, nodes, isthmus } => fleet_up(prefix, nodes, isthmus),
        Fleet::Down { prefix } => {
            ensure!(is_root(), "taking a fleet down needs root: it removes network namespaces");
            let found = fleet::nodes::remains(&prefix)?;
            fleet::clean(&prefix)?;
            match found {
                Remains::Nothing => println!("there was no fleet `{prefix}`"),
                Remains::Stays { .. } | Remains::Crashed => println!("fleet `{prefix}` is gone"),
            }
            Ok(())
        }
        Fleet::Shell { prefix, command } => {
            ensure!(is_root(), "the clusters' network needs root: it is a network namespace");
            let up = matches!(fleet::nodes::remains(&prefix)?, Remains::Stays { .. });
            ensure!(up, "no fleet `{prefix}` is up. Fix: cargo xtask fleet up --prefix {prefix}");
            let mut shell = fleet::nodes::shell(&prefix);
            if command.is_empty() {
                let program = std::env::var("SHELL").unwrap_or_else(|_| "/bin/sh".into());
                println!("kubectl config get-contexts names the clusters; exit leaves the shell");
                shell.arg(program);
            }
            Err(shell.args(command).exec()).context("starting nsenter")
        }
    }
}

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Starts all clusters of nodes and waits for them; Ctrl-C ends it and takes them down. A cluster
/// that does not come up is handed back beside the fleet, for whoever wants to look at it.
async fn start_nodes(
    home: fleet::Home,
    wan: fleet::netns::Netns,
    parts: parts::NodeParts,
    nodes: u8,
) -> Result<(Nodes, Result<()>)> {
    let started = std::time::Instant::now();
    let tell = |what: &str| println!("{:6.1} s  {what}", started.elapsed().as_secs_f64());
    let sites = fleet::nodes::SITES.map(|site| fleet::nodes::Site { nodes, ..site });
    let fleet = Nodes::start(home, wan, parts, &sites)?;
    tell("every program started");
    let end = tokio::select! {
        end = fleet.ready(tell) => end,
        end = interrupted() => { end?; bail!("interrupted") }
    };
    if end.is_ok() {
        let memory = fleet.memory()? as f64 / f64::from(1 << 20);
        tell(&format!("{} clusters are up, in {memory:.0} MiB of memory (Pss)", sites.len()));
    }
    Ok((fleet, end))
}

fn fleet_up(prefix: String, nodes: u8, isthmus: Option<PathBuf>) -> Result<()> {
    ensure!(is_root(), "a fleet needs root: it makes network namespaces, mounts and cgroups");
    fleet::unclaimed(&prefix)?;
    let node_parts = parts::NodeParts::ready()?;
    let parts = parts::Parts::ready(isthmus, false)?;
    let options = fleet::Options { prefix: prefix.clone(), sabotage: None };
    let (home, wan) = fleet::Home::claim(&options, parts)?;
    let (kubeconfig, logs) = (home.operator(), home.logs.clone());
    let (fleet, end) = runtime()?.block_on(start_nodes(home, wan, node_parts, nodes))?;
    let contexts: Vec<_> = fleet.clusters.keys().copied().collect();
    fleet.leave()?;
    let other = if prefix == NODES { String::new() } else { format!(" --prefix {prefix}") };
    println!(
        "\nkubeconfig  {} (contexts {}), for programs in the fleet's network\n\
         shell       cargo xtask fleet shell{other}\n\
         logs        {}\n\
         take down   cargo xtask fleet down{other}",
        kubeconfig.display(),
        contexts.join(", "),
        logs.display(),
    );
    end.context("the fleet is left as it is, to look at")
}

/// Refuses what only scenarios on processes know.
pub(crate) fn plain(options: &Run) -> Result<()> {
    ensure!(
        !options.without_control_plane && options.sabotage.is_none(),
        "scenarios on nodes know neither --without-control-plane nor --sabotage"
    );
    Ok(())
}

/// Plays scenarios one after the other; what they judged.
pub(crate) async fn play_all(on: On<'_>, chosen: &[&Scenario], plays: Plays<'_>) -> Vec<Verdict> {
    let mut verdicts = vec![];
    for scenario in chosen {
        let play = async || scenario::nodes::play(on, scenario).await;
        verdicts.extend(plays.play(scenario.name, play).await);
    }
    verdicts
}

/// Plays scenarios on a fleet of its own and judges them.
pub(crate) fn play(options: Run) -> Result<()> {
    plain(&options)?;
    let chosen = scenario::nodes::choose(&options.scenarios, Driver::Nodes)?;
    ensure!(is_root(), "nodes need root: they are network namespaces, mounts and cgroups");
    let prefix = options.prefix.unwrap_or_else(|| NODES.into());
    fleet::unclaimed(&prefix)?;
    let node_parts = parts::NodeParts::ready()?;
    let parts = parts::Parts::ready(options.isthmus, false)?;
    let claim = fleet::Options { prefix, sabotage: None };
    let (home, wan) = fleet::Home::claim(&claim, parts)?;
    let verdicts = runtime()?.block_on(async {
        let (fleet, end) = start_nodes(home, wan, node_parts, 1).await?;
        let work = async {
            end?;
            let plays = Plays { logs: Some(&fleet.home.logs), again: options.again };
            let verdicts = play_all(On::Machines(&fleet), &chosen, plays).await;
            println!("\nlogs of every program: {}", fleet.home.logs.display());
            anyhow::Ok(verdicts)
        };
        let verdicts = tokio::select! {
            verdicts = work => verdicts,
            end = interrupted() => { end?; bail!("interrupted") }
        };
        if options.keep {
            fleet.leave()?;
        }
        verdicts
    })?;
    if let Some(path) = &options.json {
        std::fs::write(path, serde_json::to_string_pretty(&verdicts)?)?;
    }
    conclude(&verdicts, None)
}
