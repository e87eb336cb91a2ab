//! What a load has seen, and whether that keeps a promise.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// What was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    Get,
    Post,
    /// A connection that carries bytes both ways.
    Tcp,
    /// A new connection with one GET.
    Fresh,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    Answered,
    /// No octet of an answer came (or an answer other than 2xx).
    Failed,
    /// The answer had begun and did not end.
    Cut,
}

/// One request or connection.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Record {
    /// When it was due, microseconds since the epoch.
    pub start_us: u64,
    /// From due to the end.
    pub took_us: u64,
    /// From due to the first octet of the answer.
    pub head_us: Option<u64>,
    pub kind: Kind,
    pub outcome: Outcome,
    /// HTTP status; 0 without one.
    pub status: u16,
    /// `CLUSTER/POD` that answered.
    pub by: Option<String>,
    pub error: Option<String>,
}

/// The figures of one kind of traffic.
#[derive(Debug, Clone, Default, Serialize, PartialEq, Eq)]
pub struct Figures {
    pub requests: usize,
    pub failed: usize,
    pub cut: usize,
    /// When the first and the last that was not answered were due, in milliseconds after the first of all.
    pub unanswered_ms: Option<(u64, u64)>,
    /// Longest time without a good answer while some were due, in milliseconds.
    pub longest_gap_ms: u64,
    /// From due to whole answer, of the answered.
    pub p50_ms: u64,
    pub p99_ms: u64,
    pub max_ms: u64,
    /// Answers per `CLUSTER/POD`.
    pub by: BTreeMap<String, usize>,
    /// First error seen per text, with its count; at most ten.
    pub errors: BTreeMap<String, usize>,
}

/// Figures of `kind` among records due within `[from_us, until_us)`.
pub fn figures(records: &[Record], kind: Kind, from_us: u64, until_us: u64) -> Figures {
    let mut chosen: Vec<&Record> = records
        .iter()
        .filter(|r| r.kind == kind && (from_us..until_us).contains(&r.start_us))
        .collect();
    // They are written in the order of their ends.
    chosen.sort_by_key(|record| record.start_us);
    let mut figures = Figures { requests: chosen.len(), ..Figures::default() };
    let (mut latencies, mut ends) = (vec![], vec![]);
    for record in &chosen {
        match record.outcome {
            Outcome::Answered => {
                latencies.push(record.took_us / 1000);
                ends.push(record.start_us + record.took_us);
                if let Some(by) = &record.by {
                    *figures.by.entry(by.clone()).or_default() += 1;
                }
            }
            Outcome::Failed => figures.failed += 1,
            Outcome::Cut => figures.cut += 1,
        }
        if record.outcome != Outcome::Answered {
            let at = (record.start_us - chosen[0].start_us) / 1000;
            figures.unanswered_ms =
                Some(figures.unanswered_ms.map_or((at, at), |(first, _)| (first, at)));
        }
        if let Some(error) = &record.error
            && (figures.errors.len() < 10 || figures.errors.contains_key(error))
        {
            *figures.errors.entry(error.clone()).or_default() += 1;
        }
    }
    latencies.sort_unstable();
    let at = |share: usize| {
        let place = (latencies.len() * share / 100).min(latencies.len().saturating_sub(1));
        latencies.get(place).copied().unwrap_or(0)
    };
    (figures.p50_ms, figures.p99_ms, figures.max_ms) = (at(50), at(99), at(100));
    ends.sort_unstable();
    let first = chosen.first().map(|r| r.start_us);
    let last = chosen.last().map(|r| r.start_us);
    if let (Some(first), Some(last)) = (first, last) {
        let mut previous = first;
        // A stretch without answers counts up to the last request due, or to the late answer.
        for end in ends.into_iter().chain([last]) {
            figures.longest_gap_ms =
                figures.longest_gap_ms.max(end.saturating_sub(previous) / 1000);
            previous = previous.max(end);
        }
    }
    figures
}

/// Of requests due at or after `fault_us`: when they were answered well for good, in milliseconds
/// after the fault. `None` where they never were.
///
/// "New requests are answered elsewhere within L" holds when every request due later than this is
/// answered within L of its own start.
pub fn slowest_new_ms(records: &[Record], kind: Kind, fault_us: u64, until_us: u64) -> Option<u64> {
    let new =
        records.iter().filter(|r| r.kind == kind && (fault_us..until_us).contains(&r.start_us));
    let mut slowest = None;
    for record in new {
        match (record.outcome, record.head_us) {
            (Outcome::Answered, Some(head)) => slowest = slowest.max(Some(head / 1000)),
            _ => return None,
        }
    }
    slowest
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} sent, {} failed, {} cut, longest gap {} ms, p50 {} p99 {} max {} ms, by",
            self.requests,
            self.failed,
            self.cut,
            self.longest_gap_ms,
            self.p50_ms,
            self.p99_ms,
            self.max_ms
        )?;
        for (by, count) in &self.by {
            write!(f, " {by}:{count}")?;
        }
        if let Some((first, last)) = self.unanswered_ms {
            write!(f, "; those not answered were due {first} to {last} ms after the first")?;
        }
        for (error, count) in self.errors.iter().take(3) {
            write!(f, "; {count}x {error}")?;
        }
        Ok(())
    }
}

/// What a verdict rests on: sabotaging it must turn the verdict red.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Pillar {
    Retries,
    Failover,
    Verifier,
}

/// One promise, judged.
#[derive(Debug, Clone, Serialize)]
pub struct Verdict {
    pub scenario: String,
    pub promise: String,
    pub figure: String,
    pub kept: bool,
    pub rests_on: Vec<Pillar>,
}

/// Verdicts of a scenario that was played twice: the second run decides, and what the first one
/// showed is told beside it. A promise that only the first run came to judge stays as it was.
pub fn repeated(first: Vec<Verdict>, mut second: Vec<Verdict>) -> Vec<Verdict> {
    let mut lost = vec![];
    for before in first {
        match second.iter_mut().find(|after| after.promise == before.promise) {
            Some(after) if !before.kept => {
                after.figure = format!("{} | FIRST RUN RED: {}", after.figure, before.figure);
            }
            Some(_) => {}
            // A fault of the first run's own ("before the fault are whole") is over with it.
            None if before.kept => lost.push(Verdict { kept: false, ..before }),
            None => {}
        }
    }
    second.extend(lost);
    second
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_run_decides_and_the_first_is_told() {
        let verdict = |promise: &str, figure: &str, kept| Verdict {
            scenario: "stop-west".into(),
            promise: promise.into(),
            figure: figure.into(),
            kept,
            rests_on: vec![],
        };
        let first = vec![
            verdict("a", "1 s", false),
            verdict("b", "2 s", true),
            verdict("c", "3 s", true),
            verdict("runs", "timed out", false),
        ];
        let second = vec![verdict("a", "4 s", true), verdict("b", "5 s", false)];
        let told: Vec<_> = repeated(first, second)
            .into_iter()
            .map(|v| format!("{} {} {}", v.promise, v.kept, v.figure))
            .collect();
        let wanted = ["a true 4 s | FIRST RUN RED: 1 s", "b false 5 s", "c false 3 s"];
        assert_eq!(told, wanted, "what the second run did not come to is not kept");
    }

    fn record(start_ms: u64, took_ms: u64, outcome: Outcome) -> Record {
        let answered = outcome == Outcome::Answered;
        Record {
            start_us: start_ms * 1000,
            took_us: took_ms * 1000,
            head_us: answered.then_some(took_ms * 1000),
            kind: Kind::Get,
            outcome,
            status: 200,
            by: answered.then(|| "west/hello-1".into()),
            error: (!answered).then(|| "reset".into()),
        }
    }

    #[test]
    fn figures_count_and_find_the_gap() {
        let records = [
            record(0, 5, Outcome::Answered),
            record(10, 5, Outcome::Answered),
            record(20, 400, Outcome::Answered),
            record(30, 3, Outcome::Failed),
            record(40, 3, Outcome::Cut),
            record(430, 5, Outcome::Answered),
        ];
        let figures = figures(&records, Kind::Get, 0, u64::MAX);
        assert_eq!((figures.requests, figures.failed, figures.cut), (6, 1, 1));
        assert_eq!(figures.longest_gap_ms, 405);
        assert_eq!(figures.max_ms, 400);
        assert_eq!(figures.by["west/hello-1"], 4);
        assert_eq!(figures.errors["reset"], 2);
        assert_eq!(figures.unanswered_ms, Some((30, 40)));
    }

    #[test]
    fn no_answer_after_the_fault_is_a_gap_up_to_the_last_request() {
        let records: Vec<Record> = (0..10)
            .map(|i| record(i * 100, 5, if i < 3 { Outcome::Answered } else { Outcome::Failed }))
            .collect();
        assert_eq!(figures(&records, Kind::Get, 0, u64::MAX).longest_gap_ms, 900 - 205);
    }

    #[test]
    fn one_failure_among_new_requests_has_no_slowest() {
        let good = [record(5, 800, Outcome::Answered), record(9, 20, Outcome::Answered)];
        assert_eq!(slowest_new_ms(&good, Kind::Get, 0, u64::MAX), Some(800));
        let bad = [record(5, 800, Outcome::Answered), record(9, 20, Outcome::Failed)];
        assert_eq!(slowest_new_ms(&bad, Kind::Get, 0, u64::MAX), None);
        assert_eq!(slowest_new_ms(&[], Kind::Get, 0, u64::MAX), None);
    }
}
