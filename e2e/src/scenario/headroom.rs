//! What a load leaves of the machine: a promise about a mesh is none about a machine that is full.

use super::{HOST, Load, Rates, Stage, THOUSAND};
use anyhow::{Context, Result};
use std::time::Duration;

/// Least share of all processors that is idle under the load alone. With less, an open-loop load on a
/// machine that holds three clusters, both ends and the load itself only measures the queue that a
/// fault's few handshakes leave behind.
pub(super) const IN_TIME: f64 = 0.2;

/// The same where nothing is promised but that all is answered: a queue may form, and must go.
pub(super) const AT_ALL: f64 = 0.05;

/// Requests a second that are played on any machine.
const LEAST_RATE: f64 = 250.0;

/// Until the load's programs have started.
const STARTING: Duration = Duration::from_secs(1);

/// Starts the 1,000 a second of the promises, as [`carried_of`].
pub(super) async fn carried(stage: &Stage<'_>, before: Duration) -> Result<(Load, Rates)> {
    carried_of(stage, THOUSAND, before, IN_TIME).await
}

/// Starts a load and lets it run for `before`; where it leaves less than `least_idle` of all processors,
/// it is halved, and halved again. What was played is part of the verdict.
pub(super) async fn carried_of(
    stage: &Stage<'_>,
    mut rates: Rates,
    before: Duration,
    least_idle: f64,
) -> Result<(Load, Rates)> {
    loop {
        let load = Load::start(stage.fleet, stage.client()?, HOST, rates)?;
        tokio::time::sleep(STARTING).await;
        let ticks = Ticks::now()?;
        tokio::time::sleep(before).await;
        let idle = ticks.idle_since()?;
        let (rate, percent) = (rates.sum(), (idle * 100.0).round());
        stage.note(&format!("{rate}/s leave {percent} % of the machine idle"));
        if idle >= least_idle || rate <= LEAST_RATE {
            return Ok((load, rates));
        }
        load.end().await?;
        rates = rates.halved();
        stage.note(&format!("THIS MACHINE IS FULL AT {rate}/s: played at {}/s", rates.sum()));
    }
}

/// Processor time of the machine since it started, in ticks: proc(5), `/proc/stat`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ticks {
    idle: u64,
    all: u64,
}

impl Ticks {
    fn now() -> Result<Self> {
        let text = std::fs::read_to_string("/proc/stat").context("reading /proc/stat")?;
        Self::of(&text).context("/proc/stat begins with no line of all processors")
    }

    fn of(text: &str) -> Option<Self> {
        let fields = text.lines().next()?.strip_prefix("cpu ")?.split_whitespace();
        // user, nice, system, idle, iowait, irq, softirq, steal; guests are part of user.
        let ticks: Vec<u64> = fields.take(8).map(str::parse).collect::<Result<_, _>>().ok()?;
        let [_, _, _, idle, waiting, ..] = ticks[..] else { return None };
        Some(Self { idle: idle + waiting, all: ticks.iter().sum() })
    }

    /// From 0 to 1.
    fn idle_since(self) -> Result<f64> {
        let now = Self::now()?;
        #[expect(clippy::cast_precision_loss, reason = "ticks of some seconds")]
        let share = (now.idle - self.idle) as f64 / (now.all - self.all).max(1) as f64;
        Ok(share)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_is_what_waits_too() {
        let text = "cpu  10 1 5 70 4 0 3 7 2 0\ncpu0 1 2 3 4 5 6 7 8 9 10\n";
        assert_eq!(Ticks::of(text), Some(Ticks { idle: 74, all: 100 }));
        for broken in ["", "cpu0 1 2 3 4 5 6 7 8", "cpu  1 2 3", "cpu  1 2 x 4 5 6 7 8"] {
            assert_eq!(Ticks::of(broken), None, "{broken:?}");
        }
    }
}
