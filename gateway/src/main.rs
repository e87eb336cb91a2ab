//! `isthmus-gateway --config FILE`: the gateway alone, for images that carry nothing else.

use clap::Parser;
use std::path::PathBuf;

/// The east-west gateway of one cluster.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Configuration file, YAML.
    #[arg(long, value_name = "FILE", required_unless_present = "config_env")]
    config: Option<PathBuf>,
    /// The same as the text of this variable of the environment.
    #[arg(long, value_name = "NAME", conflicts_with = "config")]
    config_env: Option<String>,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    runtime::telemetry::start();
    let config = match (&arguments.config, &arguments.config_env) {
        (Some(file), _) => runtime::config::load(file)?,
        (None, Some(name)) => runtime::config::load_variable(name)?,
        (None, None) => unreachable!("clap asks for one of both"),
    };
    gateway::run(config, runtime::shutdown::on_signal()?).await
}
