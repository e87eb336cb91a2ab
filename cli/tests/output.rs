//! What becomes of an answer that nobody can take.

use std::fs::OpenOptions;
use std::process::{Command, Stdio};

fn ended(stdout: Stdio) -> (Option<i32>, String) {
    let mut call = Command::new(env!("CARGO_BIN_EXE_isthmus"));
    let out = call.arg("crds").stdout(stdout).stderr(Stdio::piped()).output().unwrap();
    (out.status.code(), String::from_utf8(out.stderr).unwrap())
}

#[test]
fn a_reader_that_went_is_no_error() {
    let (read, write) = std::io::pipe().unwrap();
    drop(read);
    assert_eq!(ended(write.into()), (Some(0), String::new()));
}

#[test]
fn a_full_disk_is_one() {
    let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
    let (code, said) = ended(full.into());
    assert!(said.starts_with("error ISM2091 ") && said.contains("No space"), "{said}");
    assert_eq!(code, Some(1));
}
