//! `isthmus-e2e`: the harness, and the programs it runs inside its pods.

use anyhow::Result;
use clap::Parser;
use e2e::{fleet, hello, load, parts};
use std::path::PathBuf;

#[derive(Parser)]
#[command(about = "Shows the promises of Isthmus on real API servers in network namespaces")]
enum Command {
    /// Brings a fleet up and takes it down again.
    Up {
        #[arg(long, default_value = "isth")]
        prefix: String,
        #[arg(long)]
        isthmus: Option<PathBuf>,
    },
    /// Finds or builds the real parts, and says where they are.
    Parts,
    /// Removes what a crashed fleet left behind.
    Clean {
        #[arg(long, default_value = "isth")]
        prefix: String,
    },
    /// The workload of the scenarios.
    Hello(hello::Options),
    /// The load of the scenarios.
    Load(load::Options),
    /// Waits for the end of its stdin, then cleans up.
    #[command(hide = true)]
    Janitor {
        #[arg(long)]
        prefix: String,
    },
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
        Command::Up { prefix, isthmus } => up(prefix, isthmus),
        Command::Parts => {
            println!("{:#?}", parts::Parts::ready(None)?.kube_apiserver);
            println!("{:#?}", parts::envoy()?);
            Ok(())
        }
        Command::Clean { prefix } => fleet::clean(&prefix),
        Command::Hello(options) => runtime()?.block_on(hello::run(options)),
        Command::Load(options) => runtime()?.block_on(load::run(options)),
        Command::Janitor { prefix } => {
            std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
            fleet::clean(&prefix)
        }
    }
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().enable_all().build()?)
}

fn up(prefix: String, isthmus: Option<PathBuf>) -> Result<()> {
    let parts = parts::Parts::ready(isthmus)?;
    let options = fleet::Options { prefix, sabotage: None };
    let (place, wan) = fleet::Place::claim(&options, parts)?;
    runtime()?.block_on(async {
        let whole = place.parts.isthmus.is_some();
        let fleet = fleet::Fleet::up(place, wan).await?;
        if whole {
            fleet.start_programs().await?;
        }
        println!("up; Ctrl-C takes it down. Logs: {}", fleet.place.logs.display());
        tokio::signal::ctrl_c().await?;
        Ok(())
    })
}
