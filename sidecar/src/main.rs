//! The sidecar as an image ships it: `isthmus-sidecar --config FILE`, `isthmus-sidecar redirect`.

use clap::{Parser, Subcommand};
use sidecar::redirect::Redirect;
use std::path::PathBuf;

#[derive(Debug, Parser)]
#[command(name = "isthmus-sidecar", version, args_conflicts_with_subcommands = true)]
struct Arguments {
    /// Configuration file, YAML.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The same as the text of this variable of the environment.
    #[arg(long, value_name = "NAME", conflicts_with = "config")]
    config_env: Option<String>,
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Lead this network namespace's traffic through its sidecar (needs CAP_NET_ADMIN).
    Redirect(Redirect),
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    if let Some(Verb::Redirect(redirect)) = arguments.verb {
        return redirect.run();
    }
    runtime::telemetry::start();
    let config = match (&arguments.config, &arguments.config_env) {
        (Some(file), _) => runtime::config::load(file)?,
        (None, Some(name)) => runtime::config::load_variable(name)?,
        (None, None) => {
            anyhow::bail!("ISM1000 no configuration. Fix: pass --config FILE or --config-env NAME")
        }
    };
    sidecar::threads(&config)?.block_on(async {
        let end = runtime::shutdown::on_signal()?;
        sidecar::run(config, end).await
    })
}
