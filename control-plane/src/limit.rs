//! How often a stranger may ask: token buckets by key, in bounded memory.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

/// Most keys remembered; beyond it, full buckets are forgotten, which changes nothing for anybody.
const KEYS_MAX: usize = 10_000;

/// So many at once, and one more per `every`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rate {
    pub(crate) burst: u32,
    pub(crate) every: Duration,
}

/// One key's store of permissions.
#[derive(Debug, Clone, Copy)]
struct Bucket {
    left: f64,
    at: Instant,
}

/// One rate for each of many keys.
#[derive(Debug)]
pub(crate) struct Limit<K> {
    rate: Rate,
    buckets: HashMap<K, Bucket>,
}

impl<K: Hash + Eq> Limit<K> {
    pub(crate) fn new(rate: Rate) -> Self {
        Self { rate, buckets: HashMap::new() }
    }

    /// Takes one permission, or says how long until there is one.
    pub(crate) fn take(&mut self, key: K, now: Instant) -> Result<(), Duration> {
        let rate = self.rate;
        if !self.buckets.contains_key(&key) && self.buckets.len() >= KEYS_MAX {
            self.buckets.retain(|_, bucket| !bucket.full(rate, now));
            if self.buckets.len() >= KEYS_MAX {
                return Err(rate.every);
            }
        }
        let full = Bucket { left: f64::from(rate.burst), at: now };
        let bucket = self.buckets.entry(key).or_insert(full);
        bucket.left = bucket.filled(rate, now);
        bucket.at = now;
        if bucket.left < 1.0 {
            return Err(rate.every.mul_f64(1.0 - bucket.left));
        }
        bucket.left -= 1.0;
        Ok(())
    }
}

impl Bucket {
    fn filled(&self, rate: Rate, now: Instant) -> f64 {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        (self.left + passed / rate.every.as_secs_f64()).min(f64::from(rate.burst))
    }

    fn full(&self, rate: Rate, now: Instant) -> bool {
        self.filled(rate, now) >= f64::from(rate.burst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate = Rate { burst: 2, every: Duration::from_secs(6) };

    #[test]
    fn a_burst_then_one_at_a_time_for_each_key() {
        let mut limit = Limit::new(RATE);
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(limit.take("a", at(0)), Ok(()));
        assert_eq!(limit.take("a", at(0)), Ok(()));
        assert_eq!(limit.take("a", at(0)), Err(Duration::from_secs(6)));
        assert_eq!(limit.take("b", at(0)), Ok(()));
        assert!(limit.take("a", at(5)).is_err());
        assert_eq!(limit.take("a", at(6)), Ok(()));
        assert!(limit.take("a", at(6)).is_err());
        assert_eq!(limit.take("a", at(1000)), Ok(()));
        assert_eq!(limit.take("a", at(1000)), Ok(()));
        assert!(limit.take("a", at(1000)).is_err(), "never more than the burst");
    }

    #[test]
    fn memory_is_bounded_and_nobody_gains_by_it() {
        let mut limit = Limit::new(RATE);
        let start = Instant::now();
        for key in 0..KEYS_MAX {
            limit.take(key, start).unwrap();
        }
        assert!(limit.take(KEYS_MAX, start).is_err());
        let later = start + Duration::from_secs(6);
        assert_eq!(limit.take(KEYS_MAX, later), Ok(()));
        assert_eq!(limit.buckets.len(), 1);
    }
}
