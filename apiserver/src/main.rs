//! `isthmus-apiserver --config FILE`: the embedded API server as a program of its own.

use clap::Parser;
use std::path::PathBuf;

#[derive(Parser)]
#[command(version, about = "A small Kubernetes API server for demos and tests")]
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
    apiserver::run(config, end).await
}
