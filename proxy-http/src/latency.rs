//! How long a service takes to its response headers: the 99th percentile of late, for hedging.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// Buckets of 2^(1/4) from 1 ms on: the last one is beyond two minutes.
const BUCKETS: usize = 72;
/// The percentile is not believed before so many answers.
const SAMPLES_MIN: u32 = 50;
/// After so many answers all counts are halved: what was is forgotten.
const SAMPLES_MAX: u32 = 2_000;

/// A decaying histogram. Concurrent writers may lose a count to each other's halving; that is fine.
#[derive(Debug)]
pub(crate) struct Latency {
    counts: [AtomicU32; BUCKETS],
    total: AtomicU32,
}

impl Default for Latency {
    fn default() -> Self {
        Self { counts: std::array::from_fn(|_| AtomicU32::new(0)), total: AtomicU32::new(0) }
    }
}

impl Latency {
    pub(crate) fn record(&self, took: Duration) {
        self.counts[bucket(took)].fetch_add(1, Ordering::Relaxed);
        if self.total.fetch_add(1, Ordering::Relaxed) + 1 >= SAMPLES_MAX {
            let mut total = 0;
            for count in &self.counts {
                let half = count.load(Ordering::Relaxed) / 2;
                count.store(half, Ordering::Relaxed);
                total += half;
            }
            self.total.store(total, Ordering::Relaxed);
        }
    }

    /// Upper edge of the bucket that holds the 99th percentile; `None` while too little is known.
    pub(crate) fn p99(&self) -> Option<Duration> {
        let counts: Vec<u32> = self.counts.iter().map(|c| c.load(Ordering::Relaxed)).collect();
        let total: u32 = counts.iter().sum();
        if total < SAMPLES_MIN {
            return None;
        }
        let mut above = total / 100;
        for (index, count) in counts.iter().enumerate().rev() {
            if *count > above {
                return Some(edge(index));
            }
            above -= count;
        }
        None
    }
}

fn bucket(took: Duration) -> usize {
    let milliseconds = took.as_secs_f64() * 1_000.0;
    let index = (milliseconds.max(1.0).log2() * 4.0).ceil();
    // From 0 to about 120 for a day: no truncation that matters.
    (index as usize).min(BUCKETS - 1)
}

fn edge(index: usize) -> Duration {
    Duration::from_secs_f64((index as f64 / 4.0).exp2() / 1_000.0)
}

#[cfg(test)]
mod tests {
    use super::Latency;
    use std::time::Duration;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    #[test]
    fn the_slowest_hundredth_is_left_out() {
        let latency = Latency::default();
        assert_eq!(latency.p99(), None);
        for _ in 0..990 {
            latency.record(MS(10));
        }
        for _ in 0..10 {
            latency.record(MS(5_000));
        }
        let p99 = latency.p99().unwrap();
        assert!(p99 >= MS(10) && p99 < MS(13), "{p99:?}");
        latency.record(MS(5_000));
        for _ in 0..10 {
            latency.record(MS(5_000));
        }
        assert!(latency.p99().unwrap() >= MS(5_000));
    }

    #[test]
    fn the_past_is_forgotten() {
        let latency = Latency::default();
        for _ in 0..1_000 {
            latency.record(MS(2_000));
        }
        for _ in 0..20_000 {
            latency.record(MS(10));
        }
        assert!(latency.p99().unwrap() < MS(13));
    }
}
