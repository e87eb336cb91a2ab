//! The names one proxy follows on demand, and which of them it gives up again.

use mesh::program::{ResourceName, Want};
use std::collections::{BTreeSet, HashSet};
use std::sync::Mutex;
use tokio::sync::mpsc;

/// Most names one proxy follows: a workload that dials every address there is must not grow its
/// proxy and control plane without end.
pub(crate) const NAMES_MAX: usize = 20_000;
/// Below so many names nothing is given up: what is asked for again costs a round trip.
const KEPT: usize = 1_000;

/// Names that were asked for. Those that do not exist are given up when names have doubled, since a
/// client of the whole internet asks for each of its addresses.
#[derive(Debug)]
pub(crate) struct Wanted {
    want: mpsc::Sender<Want>,
    names: Mutex<Names>,
}

#[derive(Debug)]
struct Names {
    followed: HashSet<ResourceName>,
    /// How many there may be before those that do not exist are given up.
    sweep_at: usize,
}

impl Wanted {
    pub(crate) fn new(want: mpsc::Sender<Want>) -> Self {
        Self { want, names: Mutex::new(Names { followed: HashSet::new(), sweep_at: KEPT }) }
    }

    /// Asks for a name if nobody has. False where there are [`NAMES_MAX`] of them; `absent` are those
    /// that are known not to exist.
    pub(crate) fn follow(&self, name: &ResourceName, absent: &BTreeSet<ResourceName>) -> bool {
        let mut names = self.names.lock().expect("no holder panics");
        if names.followed.contains(name) {
            return true;
        }
        if names.followed.len() >= names.sweep_at {
            names.sweep(&self.want, absent);
        }
        if names.followed.len() >= NAMES_MAX {
            return false;
        }
        // Where the subscriber is overrun or gone, whoever asks next tries again.
        if self.want.try_send(Want::Subscribe(name.clone())).is_ok() {
            names.followed.insert(name.clone());
        }
        true
    }
}

impl Names {
    fn sweep(&mut self, want: &mpsc::Sender<Want>, absent: &BTreeSet<ResourceName>) {
        // What does not fit waits for the next time, and a place is left for who is asking.
        let places = want.capacity().saturating_sub(1);
        let gone = self.followed.iter().filter(|name| absent.contains(*name)).take(places);
        let gone: Vec<ResourceName> = gone.cloned().collect();
        for name in gone {
            if want.try_send(Want::Unsubscribe(name.clone())).is_err() {
                break;
            }
            self.followed.remove(&name);
        }
        self.sweep_at = (2 * self.followed.len()).clamp(KEPT, NAMES_MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(number: usize) -> ResourceName {
        let [.., a, b, c] = number.to_be_bytes();
        ResourceName::outbound([10, a, b, c].into(), 80)
    }

    /// Follows `numbers`, of which `exists` says which are there, as a subscriber does that keeps up.
    fn follow_all(
        wanted: &Wanted,
        wants: &mut mpsc::Receiver<Want>,
        numbers: std::ops::Range<usize>,
        exists: impl Fn(usize) -> bool,
    ) -> (BTreeSet<ResourceName>, usize) {
        let (mut absent, mut most) = (BTreeSet::new(), 0);
        for number in numbers {
            assert!(wanted.follow(&name(number), &absent), "{number} is refused");
            while let Ok(want) = wants.try_recv() {
                match want {
                    Want::Subscribe(name) if exists(number) => drop(name),
                    Want::Subscribe(name) => drop(absent.insert(name)),
                    Want::Unsubscribe(name) => {
                        assert!(absent.remove(&name), "{name} exists, or was never asked for");
                    }
                }
            }
            most = most.max(absent.len());
        }
        (absent, most)
    }

    #[test]
    fn a_client_of_the_whole_internet_can_still_begin_calls() {
        let (want, mut wants) = mpsc::channel(1_024);
        let wanted = Wanted::new(want);
        // Every hundredth is a service.
        let (_, most) = follow_all(&wanted, &mut wants, 0..100_000, |number| number % 100 == 0);
        assert!(most <= 2_000, "{most} names that do not exist are followed");
        let names = wanted.names.lock().unwrap();
        assert!((0..100_000).step_by(100).all(|number| names.followed.contains(&name(number))));
    }

    #[test]
    fn what_exists_is_followed_up_to_a_limit() {
        let (want, mut wants) = mpsc::channel(1_024);
        let wanted = Wanted::new(want);
        follow_all(&wanted, &mut wants, 0..NAMES_MAX, |_| true);
        assert!(!wanted.follow(&name(NAMES_MAX), &BTreeSet::new()));
        assert!(wanted.follow(&name(0), &BTreeSet::new()), "those that are followed stay");
    }

    #[test]
    fn who_is_not_heard_is_asked_again() {
        let (want, mut wants) = mpsc::channel(1);
        let wanted = Wanted::new(want);
        for number in [0, 1] {
            assert!(wanted.follow(&name(number), &BTreeSet::new()));
        }
        assert_eq!(wants.try_recv(), Ok(Want::Subscribe(name(0))));
        assert!(wants.try_recv().is_err(), "there was no room");
        assert!(wanted.follow(&name(1), &BTreeSet::new()));
        assert_eq!(wants.try_recv(), Ok(Want::Subscribe(name(1))));
    }
}
