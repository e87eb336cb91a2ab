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
    pub(crate) async fn run<T, F>(
        self,
        program: impl FnOnce(T, CancellationToken) -> F,
    ) -> Result<ExitCode>
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
