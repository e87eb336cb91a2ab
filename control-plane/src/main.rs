//! `isthmus-control-plane --config FILE`: the control plane as a program of its own.

use clap::Parser;
use std::path::PathBuf;

#[derive(Parser)]
#[command(version, about = "The control plane of one cluster of an Isthmus mesh")]
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
    control_plane::run(config, end).await
}
