//! Roles of this program inside the demo: its workload, its load, and who cleans up after it.

use anyhow::Result;
use clap::Subcommand;
use std::path::PathBuf;
use std::process::ExitCode;

/// The hidden verb that has these roles.
pub(crate) const VERB: &str = "demo-part";

#[derive(Debug, Subcommand)]
pub(crate) enum Part {
    /// The workload: says which cluster and pod it is.
    Hello(fleet::hello::Options),
    /// Requests at a steady rate.
    Load(fleet::load::Options),
    /// Waits for the end of its stdin, then removes a folder.
    Janitor {
        #[arg(long)]
        folder: PathBuf,
    },
}

impl Part {
    pub(crate) async fn run(self) -> Result<ExitCode> {
        match self {
            Self::Hello(options) => fleet::hello::run(options).await?,
            Self::Load(options) => fleet::load::run(options).await?,
            Self::Janitor { folder } => {
                tokio::task::spawn_blocking(move || {
                    std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
                    fleet::clean_folder(&folder)
                })
                .await??;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}
