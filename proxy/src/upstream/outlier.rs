//! When an endpoint is set aside, doubted, tried again and brought home: a machine without a clock.
//!
//! - *Suspect*: one failure. Others are preferred at once; every second or so one single trial is
//!   let through, and its success ends the suspicion.
//! - *Ejected*: enough failures in a row. Nothing goes there until its time is over; then it is a
//!   suspect, so that one trial and not a crowd finds out.
//! - *Coming home*: after an ejection its share grows from a tenth to all over some seconds.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// First suspicion lasts so long before a trial, milliseconds; doubled by each failed trial.
const SUSPECT_MS: u64 = 1_000;
const SUSPECT_MAX_MS: u64 = 8_000;
/// Longest ejection, milliseconds (Envoy: `max_ejection_time`).
const EJECT_MAX_MS: u64 = 300_000;
/// The way home after the first ejection, milliseconds; times the number of ejections.
const HOME_MS: u64 = 5_000;
const HOME_MAX_MS: u64 = 30_000;
/// Share at the beginning of the way home, in percent.
const HOME_SHARE: u64 = 10;
/// Healthy for so long after the way home, and an old ejection is forgotten, milliseconds.
const FORGET_MS: u64 = 60_000;
/// Ejected until somebody says otherwise.
const UNTIL_TOLD: u64 = u64::MAX;

/// Milliseconds of the engine's own clock; 0 means never.
pub(crate) type Millis = u64;

/// What may be done with an endpoint now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// With so many percent of its weight.
    Healthy(u64),
    Suspect,
    /// Suspect, and time for one trial: [`Health::claim_trial`].
    TrialDue,
    Ejected,
}

/// What was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Seen {
    /// A response below 500.
    Success,
    /// A new connection with its handshake: ends an ejection, unless responses led to it.
    Connected,
    /// A probe's success: ends any ejection.
    Alive,
    /// No connection, no handshake, or none in time, of an attempt that began then.
    LocalFailure(Millis),
    /// A sign of trouble that is no failure yet: a hedge fired.
    Doubt,
    /// A 5xx response.
    ServerError,
    /// Probes and their confirmation failed.
    Dead,
    /// Nobody probes it any more: a death found by probing becomes a doubt.
    Unwatched,
}

/// Limits of a destination.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) consecutive_5xx: u32,
    pub(crate) consecutive_local: u32,
    pub(crate) base_ejection_ms: u64,
}

/// What an observation changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    None,
    Suspected,
    Ejected,
    Cleared,
}

/// One endpoint's health. Reading is lock-free.
#[derive(Debug, Default)]
pub(crate) struct Health {
    ejected_until: AtomicU64,
    suspect_until: AtomicU64,
    /// When it came back from an ejection, and how long its way home is.
    home_from: AtomicU64,
    home_for: AtomicU64,
    record: Mutex<Record>,
}

#[derive(Debug, Default, Clone, Copy)]
struct Record {
    /// Failures in a row, and when the last of them was counted.
    local: u32,
    local_at: Millis,
    errors: u32,
    doubts: u32,
    /// Ejections that are not forgotten yet; the next one lasts so many times longer.
    ejections: u32,
    /// The last ejection came from responses.
    by_responses: bool,
}

impl Health {
    pub(crate) fn verdict(&self, now: Millis) -> Verdict {
        if now < self.ejected_until.load(Ordering::Acquire) {
            return Verdict::Ejected;
        }
        match self.suspect_until.load(Ordering::Acquire) {
            0 => Verdict::Healthy(self.share(now)),
            until if now < until => Verdict::Suspect,
            _ => Verdict::TrialDue,
        }
    }

    fn share(&self, now: Millis) -> u64 {
        let (from, length) =
            (self.home_from.load(Ordering::Acquire), self.home_for.load(Ordering::Acquire));
        if length == 0 || now >= from + length {
            return 100;
        }
        HOME_SHARE + (100 - HOME_SHARE) * now.saturating_sub(from) / length
    }

    /// When [`Health::verdict`] may next change without an observation; at most 100 ms ahead on
    /// the way home.
    pub(crate) fn changes_at(&self, now: Millis) -> Millis {
        let ejected = self.ejected_until.load(Ordering::Acquire);
        if now < ejected {
            return ejected;
        }
        let suspect = self.suspect_until.load(Ordering::Acquire);
        if now < suspect {
            return suspect;
        }
        if self.share(now) < 100 { now + 100 } else { Millis::MAX }
    }

    /// True for one caller only each time a trial is due; the next one is due later each time.
    pub(crate) fn claim_trial(&self, now: Millis) -> bool {
        let mut record = self.record.lock().expect("nothing panics in it");
        let until = self.suspect_until.load(Ordering::Acquire);
        let due = until != 0 && now >= until;
        if due {
            self.suspect_for(now, &mut record);
        }
        due
    }

    pub(crate) fn ejections(&self) -> u32 {
        self.record.lock().expect("nothing panics in it").ejections
    }

    /// Tells what was seen.
    pub(crate) fn see(&self, now: Millis, limits: Limits, seen: Seen) -> Change {
        // Most calls: success of a healthy endpoint without a record. They take no lock.
        let quiet = self.suspect_until.load(Ordering::Acquire) == 0
            && self.ejected_until.load(Ordering::Acquire) == 0;
        let mut record = self.record.lock().expect("nothing panics in it");
        match seen {
            Seen::Success | Seen::Connected | Seen::Alive => {
                let ejected = now < self.ejected_until.load(Ordering::Acquire);
                let proof = match seen {
                    Seen::Alive => true,
                    Seen::Connected => !record.by_responses,
                    // An answer that was on its way for long proves nothing new.
                    _ => false,
                };
                if ejected && !proof {
                    return Change::None;
                }
                if seen == Seen::Connected && record.by_responses {
                    // It takes connections and answers badly: only an answer can mend that.
                    return Change::None;
                }
                let errors = if seen == Seen::Success { 0 } else { record.errors };
                let mended = Record { ejections: record.ejections, errors, ..Record::default() };
                *record = mended;
                if quiet {
                    self.forget(now, &mut record);
                    return Change::None;
                }
                let was_ejected = self.ejected_until.swap(0, Ordering::AcqRel) != 0;
                self.suspect_until.store(0, Ordering::Release);
                if was_ejected {
                    let way = (HOME_MS * u64::from(record.ejections.max(1))).min(HOME_MAX_MS);
                    self.home_from.store(now, Ordering::Release);
                    self.home_for.store(way, Ordering::Release);
                }
                Change::Cleared
            }
            Seen::LocalFailure(begun) => {
                // What began before the last failure was known saw the same trouble: a crowd that
                // fails together is one failure of a row.
                if record.local == 0 || begun >= record.local_at {
                    record.local += 1;
                    record.local_at = now;
                }
                // On the way home, and in its trial, one failure is enough.
                let enough = if self.is_coming_home(now) { 1 } else { limits.consecutive_local };
                if enough > 0 && record.local >= enough {
                    record.by_responses = false;
                    return self.eject(now, limits, &mut record);
                }
                self.suspect(now, &mut record)
            }
            Seen::Doubt => self.suspect(now, &mut record),
            Seen::ServerError => {
                record.errors += 1;
                let enough = if self.is_coming_home(now) { 1 } else { limits.consecutive_5xx };
                if limits.consecutive_5xx > 0 && record.errors >= enough {
                    record.by_responses = true;
                    return self.eject(now, limits, &mut record);
                }
                Change::None
            }
            Seen::Dead => {
                let before = self.ejected_until.swap(UNTIL_TOLD, Ordering::AcqRel);
                if before == UNTIL_TOLD {
                    return Change::None;
                }
                if now >= before {
                    record.ejections += 1;
                }
                Change::Ejected
            }
            Seen::Unwatched => {
                if self
                    .ejected_until
                    .compare_exchange(UNTIL_TOLD, now, Ordering::AcqRel, Ordering::Acquire)
                    .is_ok()
                {
                    self.suspect_until.store(now.max(1), Ordering::Release);
                    return Change::Suspected;
                }
                Change::None
            }
        }
    }

    /// Not yet proven again after an ejection, or proven a short while ago.
    fn is_coming_home(&self, now: Millis) -> bool {
        let ejected = self.ejected_until.load(Ordering::Acquire);
        (ejected != 0 && now >= ejected) || self.share(now) < 100
    }

    fn suspect(&self, now: Millis, record: &mut Record) -> Change {
        if now < self.suspect_until.load(Ordering::Acquire) {
            // One crowd that fails together is one sign, not many.
            return Change::None;
        }
        self.suspect_for(now, record);
        Change::Suspected
    }

    fn suspect_for(&self, now: Millis, record: &mut Record) {
        let length = (SUSPECT_MS << record.doubts.min(8)).min(SUSPECT_MAX_MS);
        record.doubts += 1;
        self.suspect_until.store(now + length, Ordering::Release);
    }

    fn eject(&self, now: Millis, limits: Limits, record: &mut Record) -> Change {
        let before = self.ejected_until.load(Ordering::Acquire);
        if now < before {
            return Change::None;
        }
        self.forget(now, record);
        record.ejections += 1;
        let length = limits
            .base_ejection_ms
            .saturating_mul(u64::from(record.ejections))
            .clamp(1, EJECT_MAX_MS);
        (record.local, record.errors) = (0, 0);
        self.suspect_until.store(now + length, Ordering::Release);
        self.ejected_until.store(now + length, Ordering::Release);
        Change::Ejected
    }

    fn forget(&self, now: Millis, record: &mut Record) {
        let (from, length) =
            (self.home_from.load(Ordering::Acquire), self.home_for.load(Ordering::Acquire));
        if record.ejections > 0 && length > 0 && now > from + length + FORGET_MS {
            record.ejections = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits =
        Limits { consecutive_5xx: 5, consecutive_local: 3, base_ejection_ms: 5_000 };
    /// One that no other failure explains.
    const FAILURE: Seen = Seen::LocalFailure(Millis::MAX);

    #[test]
    fn one_failure_makes_suspect_and_one_trial_at_a_time_finds_out() {
        let health = Health::default();
        assert_eq!(health.see(1, LIMITS, FAILURE), Change::Suspected);
        assert_eq!(health.verdict(2), Verdict::Suspect);
        assert!(!health.claim_trial(500));
        assert_eq!(health.verdict(1_001), Verdict::TrialDue);
        assert!(health.claim_trial(1_001));
        assert!(!health.claim_trial(1_001), "a crowd must not follow the first");
        health.see(1_300, LIMITS, Seen::Doubt);
        assert_eq!(health.verdict(3_000), Verdict::Suspect, "the next trial is later");
        assert_eq!(health.verdict(3_001), Verdict::TrialDue);
        assert_eq!(health.see(3_050, LIMITS, Seen::Success), Change::Cleared);
        assert_eq!(health.verdict(3_050), Verdict::Healthy(100));
    }

    #[test]
    fn three_failures_eject_and_the_second_ejection_is_longer() {
        let health = Health::default();
        health.see(0, LIMITS, FAILURE);
        health.see(0, LIMITS, FAILURE);
        assert_eq!(health.see(0, LIMITS, FAILURE), Change::Ejected);
        assert_eq!(health.verdict(4_999), Verdict::Ejected);
        assert_eq!(health.verdict(5_000), Verdict::TrialDue);
        // One failure of the trial is enough now.
        assert_eq!(health.see(5_000, LIMITS, FAILURE), Change::Ejected);
        assert_eq!(health.verdict(14_999), Verdict::Ejected);
        assert_eq!(health.verdict(15_000), Verdict::TrialDue);
        assert_eq!(health.ejections(), 2);
    }

    #[test]
    fn a_crowd_that_fails_together_is_one_failure() {
        let health = Health::default();
        for begun in 0..100 {
            health.see(1_000 + begun, LIMITS, Seen::LocalFailure(begun));
        }
        assert_eq!(health.verdict(1_100), Verdict::Suspect);
        health.see(2_000, LIMITS, Seen::LocalFailure(1_000));
        assert_eq!(health.verdict(2_000), Verdict::Suspect, "it began when the first was known");
        assert_eq!(health.see(3_000, LIMITS, Seen::LocalFailure(2_000)), Change::Ejected);
    }

    #[test]
    fn it_comes_home_slowly() {
        let health = Health::default();
        for _ in 0..3 {
            health.see(0, LIMITS, FAILURE);
        }
        assert_eq!(health.see(5_100, LIMITS, Seen::Success), Change::Cleared);
        assert_eq!(health.verdict(5_100), Verdict::Healthy(10));
        assert_eq!(health.verdict(7_600), Verdict::Healthy(55));
        assert_eq!(health.verdict(10_100), Verdict::Healthy(100));
    }

    #[test]
    fn a_late_answer_ends_no_ejection_but_a_probe_does() {
        let health = Health::default();
        for _ in 0..5 {
            health.see(10, LIMITS, Seen::ServerError);
        }
        assert_eq!(health.see(20, LIMITS, Seen::Success), Change::None);
        assert_eq!(health.verdict(20), Verdict::Ejected);
        assert_eq!(health.see(30, LIMITS, Seen::Alive), Change::Cleared);
        assert_eq!(health.verdict(30), Verdict::Healthy(10));
    }

    #[test]
    fn a_new_connection_ends_an_ejection_unless_answers_led_to_it() {
        let health = Health::default();
        for _ in 0..3 {
            health.see(0, LIMITS, FAILURE);
        }
        assert_eq!(health.see(1, LIMITS, Seen::Connected), Change::Cleared);
        let health = Health::default();
        for _ in 0..5 {
            health.see(1, LIMITS, Seen::Connected);
            health.see(1, LIMITS, Seen::ServerError);
        }
        assert_eq!(health.see(2, LIMITS, Seen::Connected), Change::None);
        assert_eq!(health.verdict(2), Verdict::Ejected);
        // Its time over, a connection is no answer either.
        assert_eq!(health.see(5_001, LIMITS, Seen::Connected), Change::None);
        assert_eq!(health.see(5_002, LIMITS, Seen::Success), Change::Cleared);
    }

    #[test]
    fn dead_stays_dead_until_a_probe_or_until_nobody_looks() {
        let health = Health::default();
        assert_eq!(health.see(10, LIMITS, Seen::Dead), Change::Ejected);
        assert_eq!(health.verdict(1 << 40), Verdict::Ejected);
        assert_eq!(health.see(1 << 40, LIMITS, Seen::Unwatched), Change::Suspected);
        assert_eq!(health.verdict(1 << 40), Verdict::TrialDue);
    }

    #[test]
    fn five_errors_with_a_success_between_do_not_eject() {
        let health = Health::default();
        for _ in 0..4 {
            assert_eq!(health.see(1, LIMITS, Seen::ServerError), Change::None);
        }
        health.see(1, LIMITS, Seen::Success);
        assert_eq!(health.see(1, LIMITS, Seen::ServerError), Change::None);
        assert_eq!(health.verdict(1), Verdict::Healthy(100));
    }
}
