//! `isthmus-federation-controller --config FILE`: the federation controller as a program of its own.

use clap::Parser;
use std::path::PathBuf;

#[derive(Parser)]
#[command(version, about = "The federation controller of one cluster of an Isthmus mesh")]
struct Arguments {
    /// Configuration, YAML.
    #[arg(long)]
    config: PathBuf,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    runtime::telemetry::start();
    let config = runtime::config::load(&arguments.config)?;
    let end = runtime::shutdown::on_signal()?;
    federation_controller::run(config, end).await
}
