//! The mesh's programs as verbs: a configuration file in, a clean end on SIGTERM out.

use anyhow::Result;
use clap::Args;
use serde::de::DeserializeOwned;
use std::path::PathBuf;
use std::process::ExitCode;
use tokio_util::sync::CancellationToken;

#[derive(Debug, Args)]
pub(crate) struct Config {
    /// YAML configuration of this program; unknown fields are refused.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

impl Config {
    pub(crate) async fn run<T, F>(self, program: impl FnOnce(T, CancellationToken) -> F) -> Result<ExitCode>
    where
        T: DeserializeOwned,
        F: Future<Output = Result<()>>,
    {
        runtime::telemetry::start();
        let config = runtime::config::load(&self.config)?;
        let end = runtime::shutdown::on_signal()?;
        program(config, end).await?;
        Ok(ExitCode::SUCCESS)
    }
}

#[derive(Debug, Args)]
pub(crate) struct Redirect {
    /// User the sidecar runs as; its own traffic is left alone.
    #[arg(long, default_value_t = 1337)]
    uid: u32,
    /// Inbound ports to leave alone, besides the sidecar's own.
    #[arg(long, value_delimiter = ',')]
    exclude_inbound_ports: Vec<u16>,
    /// Outbound ports to leave alone.
    #[arg(long, value_delimiter = ',')]
    exclude_outbound_ports: Vec<u16>,
    /// Outbound ranges to leave alone.
    #[arg(long, value_delimiter = ',')]
    exclude_outbound_ranges: Vec<String>,
    /// Take the rules away.
    #[arg(long)]
    remove: bool,
    /// Print the nft script instead of applying it.
    #[arg(long)]
    print: bool,
}
