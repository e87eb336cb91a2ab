//! `isthmus-federation-controller --config FILE`: the federation controller as a program of its own.

use clap::Parser;
use std::path::PathBuf;

#[derive(Parser)]
#[command(version, about = "The federation controller of one cluster of an Isthmus mesh")]
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
    let end = runtime::shutdown::on_signal()?;
    federation_controller::run(config, end).await
}
