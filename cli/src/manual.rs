//! `isthmus completion SHELL` and `isthmus man`: both made from the definitions of the verbs.

use crate::{Cli, output};
use anyhow::{Context as _, Result};
use clap::{Args, Command, CommandFactory as _};
use clap_complete::Shell;
use std::path::PathBuf;
use std::process::ExitCode;

/// Prints what a shell loads to complete verbs, options and their values.
#[derive(Debug, Args)]
pub(crate) struct Completion {
    /// For bash: `isthmus completion bash > ~/.local/share/bash-completion/completions/isthmus`.
    #[arg(value_enum)]
    shell: Shell,
}

impl Completion {
    pub(crate) fn run(&self) -> Result<ExitCode> {
        let mut text = Vec::new();
        clap_complete::generate(self.shell, &mut shown(), "isthmus", &mut text);
        output::print(&text);
        Ok(ExitCode::SUCCESS)
    }
}

/// The program without the verbs that only it calls.
fn shown() -> Command {
    let whole = Cli::command();
    let about = whole.get_about().cloned().unwrap_or_default();
    let kept = whole.get_subcommands().filter(|verb| !verb.is_hide_set()).cloned();
    Command::new("isthmus").version(env!("CARGO_PKG_VERSION")).about(about).subcommands(kept)
}

#[derive(Debug, Args)]
pub(crate) struct Man {
    /// Write a page for every verb into this folder (made if absent), instead of printing the first.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

impl Man {
    pub(crate) fn run(&self) -> Result<ExitCode> {
        let Some(folder) = &self.out else {
            let mut text = Vec::new();
            // As `generate_to` has it: `help` is an option of every verb, and no page.
            let mut program = Cli::command().disable_help_subcommand(true);
            program.build();
            clap_mangen::Man::new(program).render(&mut text)?;
            output::print(&text);
            return Ok(ExitCode::SUCCESS);
        };
        std::fs::create_dir_all(folder)
            .and_then(|()| clap_mangen::generate_to(Cli::command(), folder))
            .with_context(|| {
                format!(
                    "ISM2051 cannot write man pages to {}. Fix: name a folder this user may write",
                    folder.display()
                )
            })?;
        say!("written: `man -l {}`", folder.join("isthmus.1").display());
        Ok(ExitCode::SUCCESS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hidden_verbs_are_not_completed() {
        let mut text = Vec::new();
        clap_complete::generate(Shell::Bash, &mut shown(), "isthmus", &mut text);
        let text = String::from_utf8(text).unwrap();
        assert!(!text.contains(crate::demo::VERB) && text.contains("proxy-status"));
        assert_eq!(Cli::command().get_arguments().count(), 0, "else `shown` must keep them");
    }
}
