//! The mesh's programs as verbs: a configuration file in, a clean end on SIGTERM out.

use anyhow::{Context as _, Result};
use clap::Args;
use serde::de::DeserializeOwned;
use std::path::PathBuf;
use std::process::ExitCode;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

#[derive(Debug, Args)]
pub(crate) struct Config {
    /// YAML configuration of this program; unknown fields are refused.
    #[arg(long, value_name = "FILE", required_unless_present = "config_env")]
    config: Option<PathBuf>,
    /// The same as the text of this variable of the environment: how an injected pod has it.
    #[arg(long, value_name = "NAME", conflicts_with = "config")]
    config_env: Option<String>,
}

impl Config {
    /// Runs `program` on the threads that `threads` makes for its configuration.
    pub(crate) fn run<T, F>(
        self,
        threads: impl FnOnce(&T) -> std::io::Result<Runtime>,
        program: impl FnOnce(T, CancellationToken) -> F,
    ) -> Result<ExitCode>
    where
        T: DeserializeOwned,
        F: Future<Output = Result<()>>,
    {
        runtime::telemetry::start();
        let config = match (&self.config, &self.config_env) {
            (Some(file), _) => runtime::config::load(file)?,
            (None, Some(name)) => runtime::config::load_variable(name)?,
            (None, None) => unreachable!("clap asks for one of both"),
        };
        let threads = threads(&config).context("starting the program's threads")?;
        let work = async {
            let end = runtime::shutdown::on_signal()?;
            program(config, end).await
        };
        crate::block_on(threads, Box::pin(work))?;
        Ok(ExitCode::SUCCESS)
    }
}
