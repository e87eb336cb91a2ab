//! The load of the demo while it runs: records as they come, and the strip's letters made of them.

use super::{HOST, dns_of, http_port};
use anyhow::{Context as _, Result, bail};
use fleet::Fleet;
use fleet::process::Process;
use fleet::verdict::{Outcome, Record};
use std::fs::File;
use std::io::Read as _;
use std::net::SocketAddr;
use std::time::Duration;

/// GETs a second: enough to see a gap of 20 ms, little enough for a laptop that does much else.
pub(super) const RATE: f64 = 100.0;
/// Requests that make a letter.
const BATCH: usize = 20;

/// A load under way, as the client's application.
pub(super) struct Traffic {
    process: Process,
    file: File,
    /// The beginning of a line that is not whole yet.
    rest: String,
    pub(super) records: Vec<Record>,
    /// How many of them the strip shows.
    shown: usize,
}

/// How the load finds the service.
pub(super) enum Way {
    /// By name, through its sidecar.
    Mesh,
    At(SocketAddr),
}

impl Traffic {
    /// `name`: of its files.
    pub(super) fn start(fleet: &Fleet, name: &str, way: &Way) -> Result<Self> {
        let pod = fleet.cluster("east").pod("client-1")?;
        let out = pod.dir.join(format!("{name}.jsonl"));
        std::fs::write(&out, "")?;
        let own = &fleet.home.parts.own;
        let to = match way {
            Way::Mesh => {
                let dns = dns_of(fleet)?.to_string();
                vec!["--http".to_owned(), format!("{HOST}:{}", http_port()), "--dns".into(), dns]
            }
            Way::At(address) => vec!["--http".to_owned(), address.to_string()],
        };
        let process = pod
            .job(name, &own.program, &fleet.home.logs)
            .args(own.verb)
            .args(["load"])
            .args(to)
            .args(["--gets", &RATE.to_string(), "--seconds", "600"])
            .args(["--out", &out.display().to_string()])
            .start()?;
        let file = File::open(&out).with_context(|| format!("reading {}", out.display()))?;
        Ok(Self { process, file, rest: String::new(), records: vec![], shown: 0 })
    }

    /// Reads what has come since; the strip's new letters.
    pub(super) fn look(&mut self) -> Result<Vec<char>> {
        if let Some(status) = self.process.ended() {
            bail!("the load ended with {status}:\n{}", self.process.last_words());
        }
        self.read()?;
        let mut letters = vec![];
        while self.records.len() - self.shown >= BATCH {
            let batch = &self.records[self.shown..self.shown + BATCH];
            letters.push(letter(batch));
            self.shown += BATCH;
        }
        Ok(letters)
    }

    fn read(&mut self) -> Result<()> {
        self.file.read_to_string(&mut self.rest)?;
        let whole = self.rest.rfind('\n').map_or(0, |at| at + 1);
        for line in self.rest[..whole].lines() {
            self.records.push(serde_json::from_str(line).context("a record of the load")?);
        }
        self.rest.drain(..whole);
        Ok(())
    }

    /// Answers of `cluster` among the last `count` records, in percent.
    pub(super) fn share(&self, cluster: &str, count: usize) -> usize {
        let last = &self.records[self.records.len().saturating_sub(count)..];
        let by = |record: &&Record| record.by.as_deref().is_some_and(|by| of(by, cluster));
        last.iter().filter(by).count() * 100 / last.len().max(1)
    }

    /// Ends it, with what was still under way.
    pub(super) async fn end(&mut self) -> Result<()> {
        self.process.terminate(Duration::from_secs(10)).await;
        self.read()
    }
}

fn of(by: &str, cluster: &str) -> bool {
    by.split('/').next() == Some(cluster)
}

/// `w` and `n` for the cluster that answered most, `!` where one failed, `~` where one was cut.
fn letter(batch: &[Record]) -> char {
    if batch.iter().any(|record| record.outcome == Outcome::Failed) {
        return '!';
    }
    if batch.iter().any(|record| record.outcome == Outcome::Cut) {
        return '~';
    }
    let count = |cluster| {
        batch.iter().filter(|record| record.by.as_deref().is_some_and(|by| of(by, cluster))).count()
    };
    if count("north") > count("west") { 'n' } else { 'w' }
}

#[cfg(test)]
mod tests {
    use super::letter;
    use fleet::verdict::{Kind, Outcome, Record};

    fn record(by: &str, outcome: Outcome) -> Record {
        let (start_us, took_us, status) = (0, 1, 200);
        let by = (outcome == Outcome::Answered).then(|| by.to_owned());
        Record {
            start_us,
            took_us,
            head_us: None,
            kind: Kind::Get,
            outcome,
            status,
            by,
            error: None,
        }
    }

    #[test]
    fn a_letter_hides_no_failure() {
        let west = record("west/hello-1", Outcome::Answered);
        let north = record("north/hello-1", Outcome::Answered);
        assert_eq!(letter(&[west.clone(), west.clone(), north.clone()]), 'w');
        assert_eq!(letter(&[west.clone(), north.clone(), north]), 'n');
        assert_eq!(letter(&[west.clone(), record("", Outcome::Cut)]), '~');
        assert_eq!(letter(&[west, record("", Outcome::Cut), record("", Outcome::Failed)]), '!');
    }
}
