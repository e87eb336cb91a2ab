//! How busy the machine is: a promise about a mesh is none about a machine that is full.

use anyhow::{Context, Result};
use std::fmt;
use std::future::Future;
use std::time::Duration;

/// Processor time of the machine since it started, in ticks: proc(5), `/proc/stat`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ticks {
    idle: u64,
    /// Another machine on the same host had the processor.
    stolen: u64,
    all: u64,
}

impl Ticks {
    pub(crate) fn now() -> Result<Self> {
        let text = std::fs::read_to_string("/proc/stat").context("reading /proc/stat")?;
        Self::of(&text).context("/proc/stat begins with no line of all processors")
    }

    fn of(text: &str) -> Option<Self> {
        let fields = text.lines().next()?.strip_prefix("cpu ")?.split_whitespace();
        // user, nice, system, idle, iowait, irq, softirq, steal; guests are part of user.
        let ticks: Vec<u64> = fields.take(8).map(str::parse).collect::<Result<_, _>>().ok()?;
        let [_, _, _, idle, waiting, _, _, stolen] = ticks[..] else { return None };
        Some(Self { idle: idle + waiting, stolen, all: ticks.iter().sum() })
    }

    /// Share of all processors, from 0 to 1.
    pub(crate) fn idle_since(self) -> Result<f64> {
        Ok(self.shares_until(Self::now()?).0)
    }

    /// Idle and stolen shares; a counter may go back a little.
    fn shares_until(self, later: Self) -> (f64, f64) {
        #[expect(clippy::cast_precision_loss, reason = "ticks of a run")]
        let share = |from: u64, to: u64| {
            to.saturating_sub(from) as f64 / later.all.saturating_sub(self.all).max(1) as f64
        };
        (share(self.idle, later.idle), share(self.stolen, later.stolen))
    }
}

/// A second in which less than this was idle is a full one.
const FULL: f64 = 0.05;

/// What a machine was like for a time, second by second.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Seconds {
    all: u32,
    full: u32,
    /// Sum of the idle shares.
    idle: f64,
    most_stolen: f64,
}

impl Seconds {
    fn add(&mut self, (idle, stolen): (f64, f64)) {
        self.all += 1;
        self.full += u32::from(idle < FULL);
        self.idle += idle;
        self.most_stolen = self.most_stolen.max(stolen);
    }
}

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { all, full, idle, most_stolen } = self;
        let mean = 100.0 * idle / f64::from((*all).max(1));
        write!(f, "{mean:.0} % of the machine was idle, {full} of {all} s were full")?;
        if *most_stolen >= 0.01 {
            write!(f, ", up to {:.0} % of one were stolen by its host", 100.0 * most_stolen)?;
        }
        Ok(())
    }
}

/// Does `work` and says what the machine was like meanwhile.
pub async fn watched<T>(work: impl Future<Output = T>) -> (T, Seconds) {
    let mut work = std::pin::pin!(work);
    let (mut seconds, mut last) = (Seconds::default(), Ticks::now());
    loop {
        tokio::select! {
            done = &mut work => return (done, seconds),
            () = tokio::time::sleep(Duration::from_secs(1)) => {}
        }
        let next = Ticks::now();
        if let (Ok(last), Ok(next)) = (&last, &next) {
            seconds.add(last.shares_until(*next));
        }
        last = next;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_is_what_waits_too() {
        let text = "cpu  10 1 5 70 4 0 3 7 2 0\ncpu0 1 2 3 4 5 6 7 8 9 10\n";
        assert_eq!(Ticks::of(text), Some(Ticks { idle: 74, stolen: 7, all: 100 }));
        for broken in ["", "cpu0 1 2 3 4 5 6 7 8", "cpu  1 2 3", "cpu  1 2 x 4 5 6 7 8"] {
            assert_eq!(Ticks::of(broken), None, "{broken:?}");
        }
    }

    #[test]
    fn seconds_say_what_was_full_and_what_was_stolen() {
        let at = |idle, stolen, all| Ticks { idle, stolen, all };
        assert_eq!(at(10, 1, 100).shares_until(at(60, 21, 200)), (0.5, 0.2));
        assert_eq!(at(10, 1, 100).shares_until(at(9, 1, 200)), (0.0, 0.0), "counters go back");
        let mut seconds = Seconds::default();
        [(0.8, 0.0), (0.04, 0.0), (0.06, 0.12)].into_iter().for_each(|shares| seconds.add(shares));
        let told =
            "30 % of the machine was idle, 1 of 3 s were full, up to 12 % of one were stolen";
        assert_eq!(seconds.to_string(), format!("{told} by its host"));
    }

    #[tokio::test(start_paused = true)]
    async fn every_second_of_the_work_is_watched() {
        let work = async {
            tokio::time::sleep(Duration::from_millis(3_500)).await;
            "done"
        };
        let (done, seconds) = watched(work).await;
        assert_eq!((done, seconds.all), ("done", 3));
    }
}
