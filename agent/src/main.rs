//! The agent as an image ships it: `isthmus-agent --config FILE`, with the flags of `isthmus agent`.

use agent::{Beside, Config};
use clap::Parser;
use std::ffi::OsString;
use std::path::PathBuf;

/// Gives a foreign proxy beside it a certificate, its configuration and its bootstrap.
#[derive(Debug, Parser)]
#[command(name = "isthmus-agent", version)]
struct Arguments {
    /// Configuration file, YAML.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Write the proxy's bootstrap (Envoy's JSON) to this file.
    #[arg(long, value_name = "FILE")]
    bootstrap: Option<PathBuf>,
    /// Write a gRPC client's bootstrap to this file, and its certificate beside the socket.
    #[arg(long, value_name = "FILE")]
    grpc_bootstrap: Option<PathBuf>,
    /// Run the proxy as a child; all that follows is its command line.
    #[arg(long, value_name = "CMD", num_args = 1.., allow_hyphen_values = true)]
    proxy: Vec<OsString>,
}

fn main() -> anyhow::Result<()> {
    let Arguments { config, bootstrap, grpc_bootstrap, proxy } = Arguments::parse();
    runtime::telemetry::start();
    let config: Config = runtime::config::load(&config)?;
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(async {
        let end = runtime::shutdown::on_signal()?;
        agent::run(config, Beside { bootstrap, grpc_bootstrap, proxy }, end).await
    })
}
