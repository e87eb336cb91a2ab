//! Runs a command, shows its lines as they come, and keeps those that say what failed: a log that is
//! cut still names the test in its closing lines.

use std::fmt;
use std::io::{BufRead as _, BufReader, Read, Write};
use std::process::{Command, Stdio};
use std::sync::Mutex;

/// Lines that are kept; a suite that fails all over is read elsewhere.
const KEPT_MAX: usize = 24;

/// How it failed, and what it said of that.
#[derive(Debug)]
pub(crate) struct Failed {
    how: String,
    lines: Vec<String>,
}

impl Failed {
    /// Tests of libtest that failed, by their whole names, where these are all there is to say:
    /// `None` of a crate that does not compile, a process that died, or too many to be named.
    pub(crate) fn tests(&self) -> Option<Vec<&str>> {
        let other =
            self.lines.iter().any(|line| !(is_test(line) || is_panic(line) || is_target(line)));
        let names = self.lines.iter().filter(|line| is_test(line));
        let names: Vec<&str> = names.filter_map(|line| line.split(' ').nth(1)).collect();
        (!other && !names.is_empty() && self.lines.len() < KEPT_MAX).then_some(names)
    }
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.how)?;
        self.lines.iter().try_for_each(|line| write!(f, "\n         {line}"))
    }
}

impl std::error::Error for Failed {}

/// Runs it to its end.
pub(crate) fn run(command: &mut Command) -> Result<(), Failed> {
    run_with(command, &[])
}

/// The same, where these tests must have run and passed: a filter that names none passes, too.
pub(crate) fn run_with(command: &mut Command, tests: &[&str]) -> Result<(), Failed> {
    watch(command, tests, std::io::stdout(), std::io::stderr())
}

fn watch(
    command: &mut Command,
    tests: &[&str],
    shown_out: impl Write + Send,
    shown_err: impl Write + Send,
) -> Result<(), Failed> {
    let line = super::shown(command);
    let failed = |how: String| Failed { how, lines: vec![] };
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| failed(format!("starting {line}: {error}")))?;
    let wanted = tests.iter().map(|name| format!("test {name} ... ok"));
    let (kept, wanted) = (Mutex::new(vec![]), Mutex::new(wanted.collect::<Vec<_>>()));
    let (out, err) = (child.stdout.take(), child.stderr.take());
    std::thread::scope(|scope| {
        scope.spawn(|| copy(out, shown_out, &kept, &wanted));
        scope.spawn(|| copy(err, shown_err, &kept, &wanted));
    });
    let missing = wanted.into_inner().expect("no reader panics");
    match child.wait() {
        Ok(status) if status.success() && missing.is_empty() => Ok(()),
        Ok(status) if status.success() => {
            Err(failed(format!("`{line}` said nowhere: {}", missing.join(", "))))
        }
        Ok(status) => Err(Failed {
            how: format!("`{line}` ended with {status}"),
            lines: kept.into_inner().expect("no reader panics"),
        }),
        Err(error) => Err(failed(format!("waiting for {line}: {error}"))),
    }
}

fn copy(
    from: Option<impl Read>,
    mut to: impl Write,
    kept: &Mutex<Vec<String>>,
    wanted: &Mutex<Vec<String>>,
) {
    let Some(from) = from else { return };
    let (mut from, mut line) = (BufReader::new(from), vec![]);
    while from.read_until(b'\n', &mut line).is_ok_and(|count| count > 0) {
        // Nobody may read any more; what failed is kept all the same.
        let _ = to.write_all(&line).and_then(|()| to.flush());
        let text = String::from_utf8_lossy(&line);
        let text = text.trim_end();
        wanted.lock().expect("no reader panics").retain(|line| line != text);
        let mut kept = kept.lock().expect("no reader panics");
        let fails = is_test(text) || is_panic(text) || is_target(text) || is_other(text);
        if fails && kept.len() < KEPT_MAX {
            kept.push(text.to_owned());
        }
        line.clear();
    }
}

fn is_test(line: &str) -> bool {
    line.starts_with("test ") && line.ends_with(" ... FAILED")
}

fn is_panic(line: &str) -> bool {
    line.starts_with("thread '") && line.contains(" panicked at ")
}

/// Of cargo: the target of a test that failed.
fn is_target(line: &str) -> bool {
    line.starts_with("error: test failed")
}

/// A crate that does not compile, a process that died, a promise of a scenario.
fn is_other(line: &str) -> bool {
    line.starts_with("error: could not compile")
        || line.contains("(signal: ")
        || line.starts_with("RED ")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Shown nowhere: whoever watches these tests would take it for theirs.
    fn say(script: &str, tests: &[&str]) -> Result<(), Failed> {
        let mut sh = Command::new("sh");
        watch(sh.args(["-c", script]), tests, std::io::sink(), std::io::sink())
    }

    #[test]
    fn what_failed_is_named_and_the_rest_is_not() {
        let script = "echo 'test a ... ok'; echo 'test rooms::b ... FAILED'; \
                      echo \"thread 'rooms::b' panicked at x/src/lib.rs:3:5:\"; \
                      echo 'error: test failed, to rerun pass `-p x --lib`' >&2; exit 101";
        let failed = say(script, &[]).unwrap_err();
        assert_eq!(failed.tests(), Some(vec!["rooms::b"]));
        assert!(failed.how.ends_with("ended with exit status: 101"), "{failed}");
        let mut lines = failed.lines;
        lines.sort();
        let expected = [
            "error: test failed, to rerun pass `-p x --lib`",
            "test rooms::b ... FAILED",
            "thread 'rooms::b' panicked at x/src/lib.rs:3:5:",
        ];
        assert_eq!(lines, expected);
        say("echo 'test b ... FAILED'", &[]).unwrap();
        let unseen = say("echo 'test b ... ok'", &["a", "b"]).unwrap_err();
        assert!(unseen.to_string().ends_with("said nowhere: test a ... ok"), "{unseen}");
    }

    #[test]
    fn what_is_more_than_a_test_is_not_taken_for_one() {
        let test = "echo 'test b ... FAILED'";
        for more in [
            "echo 'error: could not compile `x`'",
            "echo '  process did not exit successfully (signal: 6, SIGABRT)'",
            "echo 'RED   x  a promise'",
            "seq -f 'test n%g ... FAILED' 40",
        ] {
            let failed = say(&format!("{test}; {more}; exit 1"), &[]).unwrap_err();
            assert_eq!(failed.tests(), None, "{more}");
        }
        assert_eq!(say("exit 1", &[]).unwrap_err().tests(), None);
    }
}
