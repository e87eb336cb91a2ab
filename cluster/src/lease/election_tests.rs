//! Small worlds of replicas, one lease, and clocks that are only ever their own.

use super::*;
use proptest::prelude::*;

const LEASE: Duration = Duration::from_secs(10);

/// The API server's side of one Lease.
#[derive(Default)]
struct Store {
    lease: Option<Record>,
    writes: u64,
}

impl Store {
    /// As a PUT with a resourceVersion: refused where somebody wrote since `seen`.
    fn write(&mut self, wish: &Wish, seen: Option<&Record>) -> Option<Record> {
        if self.lease.as_ref() != seen {
            return None;
        }
        self.writes += 1;
        let version = self.writes.to_string();
        let record =
            Record { holder: wish.holder.clone(), term: wish.term, duration: LEASE, version };
        self.lease = Some(record.clone());
        Some(record)
    }
}

/// One whole round at `now`, the write answered at once.
fn round(store: &mut Store, election: &mut Election, now: Instant) {
    let seen = store.lease.clone();
    election.observe(now, seen.clone());
    if let Some(wish) = election.wish(now)
        && let Some(record) = store.write(&wish, seen.as_ref())
    {
        election.won(now, now, record, &wish);
    }
}

#[test]
fn the_first_to_come_leads_and_the_second_waits() {
    let (mut store, start) = (Store::default(), Instant::now());
    let (mut a, mut b) = (Election::new("a", "1", LEASE), Election::new("b", "1", LEASE));
    round(&mut store, &mut a, start);
    round(&mut store, &mut b, start);
    assert_eq!(a.leading(start).unwrap().term, 1);
    assert_eq!(b.leading(start), None);
    // Renewed, it stays so for ever.
    for second in 0..60 {
        let now = start + Duration::from_secs(second);
        round(&mut store, &mut a, now);
        round(&mut store, &mut b, now);
        assert!(a.leading(now).is_some() && b.leading(now).is_none());
    }
}

#[test]
fn a_dead_leader_is_followed_within_fifteen_seconds_with_a_higher_term() {
    let (mut store, start) = (Store::default(), Instant::now());
    let (mut a, mut b) = (Election::new("a", "1", LEASE), Election::new("b", "1", LEASE));
    round(&mut store, &mut a, start);
    let mut took = None;
    for second in 1..=15 {
        let now = start + Duration::from_secs(second);
        round(&mut store, &mut b, now);
        if let Some(leading) = b.leading(now) {
            took.get_or_insert((second, leading.term));
        }
    }
    let (second, term) = took.expect("b took over");
    assert!(second > 10, "not before a's own deadline");
    assert_eq!(term, 2);
    // The old leader wakes up: it stopped by its own clock, and sees who leads.
    let late = start + Duration::from_secs(60);
    assert_eq!(a.leading(late), None);
    round(&mut store, &mut a, late);
    assert_eq!(a.leading(late), None);
}

#[test]
fn a_restarted_replica_follows_itself_at_once() {
    let (mut store, start) = (Store::default(), Instant::now());
    round(&mut store, &mut Election::new("a", "1", LEASE), start);
    let mut again = Election::new("a", "2", LEASE);
    round(&mut store, &mut again, start);
    assert_eq!(again.leading(start).unwrap().term, 2);
}

#[test]
fn a_released_lease_is_taken_at_once() {
    let (mut store, start) = (Store::default(), Instant::now());
    let (mut a, mut b) = (Election::new("a", "1", LEASE), Election::new("b", "1", LEASE));
    round(&mut store, &mut a, start);
    let seen = store.lease.clone();
    let wish = a.release(start).unwrap();
    let record = store.write(&wish, seen.as_ref()).unwrap();
    a.won(start, start, record, &wish);
    assert_eq!(a.leading(start), None);
    round(&mut store, &mut b, start);
    assert_eq!(b.leading(start).unwrap().term, 2);
}

#[test]
fn a_deleted_lease_ends_leadership() {
    let (mut store, start) = (Store::default(), Instant::now());
    let mut a = Election::new("a", "1", LEASE);
    round(&mut store, &mut a, start);
    a.observe(start, None);
    assert_eq!(a.leading(start), None);
}

#[derive(Debug, Clone)]
enum Step {
    /// Milliseconds pass for all.
    Pass(u64),
    /// A replica reads.
    Read(usize),
    /// A replica writes what it wishes by what it read; the answer comes, or is lost.
    Write(usize, bool),
    Release(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0..4_000u64).prop_map(Step::Pass),
        4 => (0..3usize).prop_map(Step::Read),
        4 => (0..3usize, prop::bool::weighted(0.8)).prop_map(|(who, heard)| Step::Write(who, heard)),
        1 => (0..3usize).prop_map(Step::Release),
    ];
    prop::collection::vec(step, 1..300)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]
    /// Whatever is delayed, lost or reordered: never two leaders at once, and terms only rise.
    #[test]
    fn one_leader_at_a_time(steps in steps()) {
        let mut now = Instant::now();
        let mut store = Store::default();
        let mut replicas: Vec<_> = (0..3).map(|n| (Election::new(&format!("r{n}"), "1", LEASE), None)).collect();
        let mut last_term = 0;
        for step in steps {
            match step {
                Step::Pass(ms) => now += Duration::from_millis(ms),
                Step::Read(who) => {
                    let (election, seen) = &mut replicas[who];
                    *seen = store.lease.clone();
                    election.observe(now, seen.clone());
                }
                Step::Write(who, heard) => {
                    let (election, seen) = &mut replicas[who];
                    if let Some(wish) = election.wish(now)
                        && let Some(record) = store.write(&wish, seen.as_ref())
                        && heard
                    {
                        *seen = Some(record.clone());
                        election.won(now, now, record, &wish);
                    }
                }
                Step::Release(who) => {
                    let (election, seen) = &mut replicas[who];
                    if let Some(wish) = election.release(now)
                        && let Some(record) = store.write(&wish, seen.as_ref())
                    {
                        *seen = Some(record.clone());
                        election.won(now, now, record, &wish);
                    }
                }
            }
            let leaders: Vec<u64> =
                replicas.iter().filter_map(|(election, _)| election.leading(now)).map(|l| l.term).collect();
            prop_assert!(leaders.len() <= 1, "{leaders:?}");
            if let Some(term) = leaders.first() {
                prop_assert!(*term >= last_term, "{term} after {last_term}");
                last_term = *term;
            }
        }
    }
}
