//! What tests of images need of the machine.

use std::process::Command;

/// Whether what is needed is here; in CI it must be.
pub(crate) fn ready() -> bool {
    let ci = std::env::var_os("CI").is_some_and(|value| !value.is_empty() && value != "false");
    let there = |program: &str, asked: &str| Command::new(program).arg(asked).output().is_ok();
    let missing = [("go", "version"), ("strip", "--version"), ("ldd", "--version")]
        .into_iter()
        .find(|(program, asked)| !there(program, asked));
    assert!(missing.is_none() || !ci, "{missing:?} is missing: install it");
    if let Some((program, _)) = missing {
        eprintln!("\n*** NOT RUN: {program} is missing.\n");
    }
    missing.is_none()
}
