//! Go, by which real parts are fetched and built: asked again where the network failed it.

use anyhow::{Context, Result, bail};
use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

/// Waits before it is asked a second and a third time.
const RESTS: [Duration; 2] = [Duration::from_secs(5), Duration::from_secs(20)];
/// Lines of what it said that are kept.
const LINES_KEPT: usize = 20;
/// Words of Go where an address was not reached or its answer was cut short. A module
/// that is not there, or is not what its sum says, has other words, and is not asked for again.
const NETWORK: [&str; 12] = [
    "network is unreachable",
    "no route to host",
    "connection refused",
    "connection reset",
    "connection timed out",
    "i/o timeout",
    "handshake timeout",
    "no such host",
    "server misbehaving",
    "unexpected eof",
    "bad gateway",
    "service unavailable",
];

/// Runs `go` with what `prepare` adds, again where the network failed it. What it says on stderr is passed
/// on as it comes.
///
/// # Errors
/// It is not on the PATH, or ended without success: then with its last words.
pub(crate) fn go(prepare: impl Fn(&mut Command)) -> Result<()> {
    let (status, _, said) = asked(&prepare, true)?;
    if !status.success() {
        let mut command = Command::new("go");
        prepare(&mut command);
        let words: Vec<_> = command.get_args().map(|word| word.to_string_lossy()).collect();
        bail!("go {} ended with {status}: {said}", words.join(" "));
    }
    Ok(())
}

/// As [`go`], for what it prints, whether it succeeded or not, and its last words.
///
/// # Errors
/// It is not on the PATH.
pub(super) fn output(prepare: impl Fn(&mut Command)) -> Result<(String, String)> {
    let (_, printed, said) = asked(&prepare, false)?;
    Ok((printed, said))
}

fn asked(prepare: &dyn Fn(&mut Command), aloud: bool) -> Result<(ExitStatus, String, String)> {
    let mut rests = RESTS.iter();
    loop {
        let mut command = Command::new("go");
        // A module may ask for a newer Go than is installed.
        command.env("GOTOOLCHAIN", "auto");
        prepare(&mut command);
        let end = once(&mut command, aloud)?;
        let (status, printed, said) = &end;
        match rests.next() {
            Some(rest) if !status.success() && of_network(printed, said) => {
                eprintln!("go did not reach what it needs; once more in {} s", rest.as_secs());
                std::thread::sleep(*rest);
            }
            _ => return Ok(end),
        }
    }
}

/// Whether these words say that the network failed.
fn of_network(printed: &str, said: &str) -> bool {
    let words = [printed.to_lowercase(), said.to_lowercase()];
    NETWORK.iter().any(|mark| words.iter().any(|text| text.contains(mark)))
}

/// How it ended, what it printed, and its last words on stderr.
fn once(command: &mut Command, aloud: bool) -> Result<(ExitStatus, String, String)> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("go is needed to fetch and build real parts; install Go")?;
    let mut stdout = child.stdout.take().context("go has no stdout")?;
    let stderr = child.stderr.take().context("go has no stderr")?;
    let printing = std::thread::spawn(move || {
        let mut printed = String::new();
        stdout.read_to_string(&mut printed).map(|_| printed)
    });
    let mut last = VecDeque::new();
    for line in BufReader::new(stderr).split(b'\n') {
        let line = String::from_utf8_lossy(&line?).into_owned();
        if aloud {
            eprintln!("{line}");
        }
        last.push_back(line);
        if last.len() > LINES_KEPT {
            last.pop_front();
        }
    }
    let printed = printing.join().ok().context("reading what go printed")??;
    Ok((child.wait()?, printed, Vec::from(last).join("\n")))
}

/// Runs `go mod tidy` in a module of our own that holds others' programs.
pub(super) fn tidy(folder: &Path) -> Result<()> {
    go(|command| _ = command.args(["mod", "tidy", "-e"]).current_dir(folder))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_network_did_is_asked_for_again() {
        let unreachable = "go: dial tcp 192.0.2.1:443: connect: network is unreachable";
        assert!(of_network("", unreachable));
        assert!(of_network(
            r#"{"Error": "Get https://p.example/m: net/http: TLS handshake timeout"}"#,
            ""
        ));
        assert!(of_network("", "reading https://p.example/m: 502 Bad Gateway"));
        for theirs in [
            "go: example.com/nowhere@v1.0.0: reading https://p.example/m: 404 Not Found",
            "verifying example.com/m@v1.0.0: checksum mismatch",
            "./main.go:3:1: syntax error: non-declaration statement outside function body",
        ] {
            assert!(!of_network("", theirs), "{theirs}");
        }
    }

    #[test]
    fn its_last_words_are_kept() {
        // A shell in Go's place: a user's machine may lack Go.
        let mut shell = Command::new("sh");
        shell.args(["-c", "echo said; seq 100 >&2; echo unknown command >&2; exit 3"]);
        let (status, printed, said) = once(&mut shell, false).unwrap();
        assert_eq!((status.code(), printed.as_str()), (Some(3), "said\n"));
        assert!(said.ends_with("100\nunknown command"), "{said}");
        assert_eq!(said.lines().count(), LINES_KEPT);
    }
}
