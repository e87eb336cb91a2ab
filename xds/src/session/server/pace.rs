//! How often one client may speak: a token bucket that is told the time.

use super::Limits;
use std::time::Instant;

/// Requests one stream may still make. A new one is full.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    /// Requests made and not forgiven yet; one is forgiven per [`Limits::request_every`].
    made: f64,
    at: Option<Instant>,
}

impl Pace {
    /// Counts one request.
    pub(crate) fn count(&mut self, now: Instant, limits: &Limits) {
        self.made = self.made_by(now, limits) + 1.0;
        self.at = Some(now);
    }

    /// When the next request may be read; `None` is now.
    pub(crate) fn opens(&self, now: Instant, limits: &Limits) -> Option<Instant> {
        let over = self.made_by(now, limits) + 1.0 - f64::from(limits.request_burst);
        (over > 0.0).then(|| now + limits.request_every.mul_f64(over))
    }

    fn made_by(&self, now: Instant, limits: &Limits) -> f64 {
        let Some(at) = self.at else { return 0.0 };
        let passed = now.saturating_duration_since(at).as_secs_f64();
        (self.made - passed / limits.request_every.as_secs_f64()).max(0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_burst_and_then_one_at_a_time() {
        let every = Duration::from_millis(5);
        let limits = Limits { request_burst: 3, request_every: every, ..Limits::default() };
        let (start, mut pace) = (Instant::now(), Pace::default());
        for _ in 0..3 {
            assert_eq!(pace.opens(start, &limits), None);
            pace.count(start, &limits);
        }
        let opens = pace.opens(start, &limits).unwrap();
        assert_eq!(opens, start + every);
        assert_eq!(pace.opens(opens, &limits), None);
        pace.count(opens, &limits);
        assert_eq!(pace.opens(opens, &limits), Some(opens + every));
        // Whoever rested may speak freely again, and never more than the burst.
        let later = opens + Duration::from_secs(60);
        for _ in 0..3 {
            assert_eq!(pace.opens(later, &limits), None);
            pace.count(later, &limits);
        }
        assert!(pace.opens(later, &limits).is_some());
    }
}
