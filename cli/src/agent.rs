//! `isthmus agent`: what a foreign proxy needs beside it.

use anyhow::Result;
use clap::Args;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Debug, Args)]
pub(crate) struct Call {
    /// YAML configuration of this program; unknown fields are refused.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Write the proxy's bootstrap (Envoy's JSON) to this file.
    #[arg(long, value_name = "FILE")]
    bootstrap: Option<PathBuf>,
    /// Run the proxy as a child; all that follows is its command line.
    #[arg(long, value_name = "CMD", num_args = 1.., allow_hyphen_values = true)]
    proxy: Vec<OsString>,
}

impl Call {
    pub(crate) async fn run(self) -> Result<ExitCode> {
        let Self { config, bootstrap, proxy } = self;
        runtime::telemetry::start();
        let config: ::agent::Config = runtime::config::load(&config)?;
        let end = runtime::shutdown::on_signal()?;
        ::agent::run(config, ::agent::Beside { bootstrap, proxy }, end).await?;
        Ok(ExitCode::SUCCESS)
    }
}
