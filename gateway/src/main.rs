//! `isthmus-gateway --config FILE`: the gateway alone, for images that carry nothing else.

use clap::Parser;
use std::path::PathBuf;

/// The east-west gateway of one cluster.
#[derive(Debug, Parser)]
#[command(version)]
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
    gateway::run(config, runtime::shutdown::on_signal()?).await
}
