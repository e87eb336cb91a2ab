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
    /// Write a gRPC client's bootstrap to this file, and its certificate beside the socket.
    #[arg(long, value_name = "FILE")]
    grpc_bootstrap: Option<PathBuf>,
    /// Run the proxy as a child; all that follows is its command line.
    #[arg(long, value_name = "CMD", num_args = 1.., allow_hyphen_values = true)]
    proxy: Vec<OsString>,
}

impl Call {
    pub(crate) async fn run(self) -> Result<ExitCode> {
        let Self { config, bootstrap, grpc_bootstrap, proxy } = self;
        runtime::telemetry::start();
        let config: ::agent::Config = runtime::config::load(&config)?;
        let end = runtime::shutdown::on_signal()?;
        let beside = ::agent::Beside { bootstrap, grpc_bootstrap, proxy };
        ::agent::run(config, beside, end).await?;
        Ok(ExitCode::SUCCESS)
    }
}
