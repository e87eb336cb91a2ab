//! Connections between requests, by where they lead.

use crate::connection::{Connection, Trunk};
use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::{oneshot, watch};

/// Connections kept for one endpoint; more are closed when they become free.
const KEPT_MAX: usize = 256;
/// Requests on kept connections for each that is opened only to reach another copy: its handshake is a
/// small part of what they cost.
const REUSES_PER_DIAL: u32 = 32;

/// Free connections, newest first out: the oldest may go idle and be closed. Where several copies are
/// behind an endpoint, as many of the newest take turns. Whoever waits for one is served before any is
/// laid aside. Shared connections (HTTP/2) serve many at once, as soon as the peer has said how many.
#[derive(Debug)]
pub(crate) struct Pool<K, A> {
    lines: Lines<K, A>,
}

type Lines<K, A> = Arc<Mutex<HashMap<K, Line<A>>>>;

#[derive(Debug)]
struct Line<A> {
    free: Vec<Free<A>>,
    shared: Vec<Shared<A>>,
    /// Uses of free ones since another was last called for.
    reuses: u32,
    queue: Queue<A>,
}

/// Who waits for a connection.
#[derive(Debug)]
struct Queue<A> {
    /// Who has begun no connection of its own yet, and who has.
    waiting: VecDeque<oneshot::Sender<Connection<A>>>,
    dialling: VecDeque<oneshot::Sender<Connection<A>>>,
}

#[derive(Debug)]
struct Free<A> {
    connection: Connection<A>,
    until: Instant,
}

#[derive(Debug)]
struct Shared<A> {
    trunk: Trunk<A>,
    since: Instant,
    /// Kept until then without a stream.
    until: Instant,
}

impl<A> Shared<A> {
    fn is_alive(&self, now: Instant) -> bool {
        self.trunk.is_open() && (self.until > now || self.trunk.streams() > 0)
    }
}

impl<K, A> Default for Pool<K, A> {
    fn default() -> Self {
        Self { lines: Arc::default() }
    }
}

impl<A> Default for Line<A> {
    fn default() -> Self {
        let queue = Queue { waiting: VecDeque::new(), dialling: VecDeque::new() };
        Self { free: Vec::new(), shared: Vec::new(), reuses: 0, queue }
    }
}

impl<A> Line<A> {
    /// Who waits has a stream each, as far as shared connections have room.
    fn hand_streams(&mut self) {
        // Once for all, not again for each connection.
        self.queue.forget_gone();
        if self.queue.is_empty() {
            return;
        }
        for Shared { trunk, .. } in &self.shared {
            self.queue.hand_streams(trunk);
        }
    }
}

impl<A> Queue<A> {
    /// The next who still waits is given what `make` makes; it comes back when nobody waits.
    fn hand(&mut self, make: impl FnOnce() -> Connection<A>) -> Option<Connection<A>> {
        let mut made = None;
        let mut make = Some(make);
        while let Some(waiter) = self.waiting.pop_front().or_else(|| self.dialling.pop_front()) {
            if waiter.is_closed() {
                continue;
            }
            let connection = made.take().or_else(|| make.take().map(|make| make()))?;
            match waiter.send(connection) {
                Ok(()) => return None,
                Err(back) => made = Some(back),
            }
        }
        made.or_else(|| make.map(|make| make()))
    }

    fn hand_streams(&mut self, trunk: &Trunk<A>) {
        while self.is_awaited() && trunk.is_open() && !trunk.is_full() {
            drop(self.hand(|| trunk.lease()));
        }
    }

    fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.dialling.is_empty()
    }

    /// Who gave up is not looked at again.
    fn forget_gone(&mut self) {
        self.waiting.retain(|waiter| !waiter.is_closed());
        self.dialling.retain(|waiter| !waiter.is_closed());
    }

    fn is_awaited(&self) -> bool {
        let waits = |waiter: &oneshot::Sender<_>| !waiter.is_closed();
        self.waiting.iter().any(waits) || self.dialling.iter().any(waits)
    }
}

impl<K, A> Pool<K, A>
where
    K: Clone + Eq + Hash + Send + 'static,
    A: Send + Sync + 'static,
{
    /// A connection that is alive as far as we know and that `fits`: a free one, or a stream on the
    /// shared one with the fewest. There should be `spread` of them, as each may lead to another copy:
    /// while fewer are free, none is given now and then, so that another is opened; while there are fewer
    /// shared ones, none is given when all are busy.
    pub(crate) fn take(
        &self,
        key: &K,
        now: Instant,
        spread: usize,
        fits: impl Fn(&A) -> bool,
    ) -> Option<Connection<A>> {
        let mut lines = self.lines.lock().expect("no holder panics");
        let Line { free, shared, reuses, .. } = lines.get_mut(key)?;
        free.retain(|free| {
            free.until > now && !free.connection.is_closed() && fits(&free.connection.about)
        });
        // One whose last response has only just been read may not be ready yet: leave it.
        let ready = |free: &Free<A>| free.connection.is_ready();
        let newest = free.len().saturating_sub(spread.max(1));
        let next = free[newest..].iter().position(ready).map(|index| newest + index);
        if let Some(index) = next.or_else(|| free.iter().rposition(ready)) {
            if free.len() < spread && *reuses >= REUSES_PER_DIAL {
                *reuses = 0;
                return None;
            }
            *reuses += 1;
            return Some(free.remove(index).connection);
        }
        shared.retain(|shared| shared.is_alive(now) && fits(&shared.trunk.about));
        let least = shared.iter().min_by_key(|it| (it.trunk.is_full(), it.trunk.streams()))?;
        let streams = least.trunk.streams();
        let full = least.trunk.is_full() || streams > 0 && shared.len() < spread;
        (!full).then(|| least.trunk.lease())
    }

    /// The next connection that becomes free, first come first served; whoever is `dialling` one of
    /// its own comes after those who are not. It may not be ready for a request yet, and nobody has
    /// asked whether it fits.
    pub(crate) fn wait(&self, key: K, dialling: bool) -> oneshot::Receiver<Connection<A>> {
        let (sender, receiver) = oneshot::channel();
        let mut lines = self.lines.lock().expect("no holder panics");
        let line = lines.entry(key).or_default();
        let Queue { waiting, dialling: begun } = &mut line.queue;
        let queue = if dialling { begun } else { waiting };
        // Who gave up leaves its place here; it costs no more than the crowd at its largest.
        while queue.front().is_some_and(oneshot::Sender::is_closed) {
            queue.pop_front();
        }
        queue.push_back(sender);
        receiver
    }

    /// Makes a new connection known to all that may share it; those who wait have a stream each, now or
    /// when its peer says how many it takes.
    pub(crate) fn share(&self, key: K, connection: &Connection<A>, idle: Duration) {
        let Some(trunk) = connection.trunk() else { return };
        let mut most = trunk.most();
        let mut lines = self.lines.lock().expect("no holder panics");
        let line = lines.entry(key.clone()).or_default();
        line.queue.hand_streams(&trunk);
        if line.shared.len() >= KEPT_MAX {
            return;
        }
        let since = Instant::now();
        line.shared.push(Shared { trunk, since, until: since + idle });
        let lines = Arc::downgrade(&self.lines);
        tokio::spawn(async move {
            while most.changed().await.is_ok() {
                let Some(lines) = lines.upgrade() else { return };
                let mut lines = lines.lock().expect("no holder panics");
                lines.get_mut(&key).into_iter().for_each(Line::hand_streams);
            }
        });
    }

    /// Returns once a shared connection takes more streams that is not as old as this yet, or when it is;
    /// at once where none is new. Says whether there was one.
    pub(crate) async fn promised(&self, key: &K, old: Duration) -> bool {
        let Some((mut most, until)) = self.promise(key, old) else { return false };
        let said = most.wait_for(Option::is_some);
        let _ = tokio::time::timeout_at(until.into(), said).await;
        true
    }

    /// The newest shared connection whose peer has not said how many streams it takes, and until when
    /// it may.
    fn promise(&self, key: &K, old: Duration) -> Option<(watch::Receiver<Option<usize>>, Instant)> {
        let lines = self.lines.lock().expect("no holder panics");
        let shared = &lines.get(key)?.shared;
        let (newest, most) = shared
            .iter()
            .filter(|shared| shared.trunk.is_open())
            .map(|shared| (shared.since, shared.trunk.most()))
            .filter(|(_, most)| most.borrow().is_none())
            .max_by_key(|(since, _)| *since)?;
        let until = newest + old;
        (until > Instant::now()).then_some((most, until))
    }

    /// Keeps a connection whose response has been read to its end, or hands it to who waits.
    /// `spent`: it has served as many requests as it may.
    pub(crate) fn give(&self, key: K, connection: Connection<A>, idle: Duration, spent: bool) {
        let mut lines = self.lines.lock().expect("no holder panics");
        let line = lines.entry(key).or_default();
        let until = Instant::now() + idle;
        if let Some(index) = line.shared.iter().position(|shared| shared.trunk.is(&connection)) {
            if spent || connection.is_closed() {
                line.shared.swap_remove(index);
                return;
            }
            line.shared[index].until = until;
            drop(connection);
            line.hand_streams();
            return;
        }
        if spent || connection.is_closed() || connection.trunk().is_some() {
            return;
        }
        if let Some(connection) = line.queue.hand(|| connection)
            && line.free.len() < KEPT_MAX
        {
            line.free.push(Free { connection, until });
        }
    }

    /// Closes what has been idle for too long or is dead. True when none is left.
    pub(crate) fn sweep(&self, now: Instant) -> bool {
        let mut lines = self.lines.lock().expect("no holder panics");
        lines.retain(|_, line| {
            line.free.retain(|free| free.until > now && !free.connection.is_closed());
            line.shared.retain(|shared| shared.is_alive(now));
            line.queue.forget_gone();
            !(line.free.is_empty() && line.shared.is_empty() && line.queue.is_empty())
        });
        lines.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::connection::{STREAMS_MAX, UNSAID_MAX};
    use crate::version::Wire;
    use tokio::io::AsyncWriteExt as _;

    const IDLE: Duration = Duration::from_secs(60);

    /// A peer's SETTINGS, which limit nothing (RFC 9113 section 6.5).
    const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];

    /// Lets the peer of a new connection say that it takes any number of streams.
    async fn settle(connection: &Connection<u32>, theirs: &mut tokio::io::DuplexStream) {
        let mut most = connection.trunk().expect("it is shared").most();
        theirs.write_all(&SETTINGS).await.expect("it is heard");
        most.wait_for(Option::is_some).await.expect("it is open");
    }

    /// A connection to nobody, that says its number.
    async fn connection(wire: Wire, number: u32) -> (Connection<u32>, tokio::io::DuplexStream) {
        let (ours, theirs) = tokio::io::duplex(4_096);
        let mut connection =
            Connection::open(ours, wire, false, number).await.expect("nothing is said");
        connection.ready().await.expect("its task runs");
        (connection, theirs)
    }

    #[tokio::test]
    async fn who_waits_comes_before_who_dials_and_both_before_the_shelf() {
        let pool: Pool<&str, u32> = Pool::default();
        let mut dialling = pool.wait("a", true);
        let gone = pool.wait("a", false);
        let mut waiting = pool.wait("a", false);
        let mut elsewhere = pool.wait("b", false);
        drop(gone);
        let mut kept_open = Vec::new();
        for number in 1..=3 {
            let (connection, theirs) = connection(Wire::Http1, number).await;
            kept_open.push(theirs);
            pool.give("a", connection, IDLE, false);
        }
        assert_eq!(*waiting.try_recv().expect("first").about, 1);
        assert_eq!(*dialling.try_recv().expect("second").about, 2);
        assert!(elsewhere.try_recv().is_err(), "another endpoint's");
        let shelved = pool.take(&"a", Instant::now(), 1, |_| true).expect("nobody wanted it");
        assert_eq!(*shelved.about, 3);
        drop(elsewhere);
        assert!(pool.sweep(Instant::now()), "nobody waits and nothing is kept");
    }

    #[tokio::test]
    async fn a_shared_connection_serves_many_until_it_is_full_or_idle() {
        let pool: Pool<&str, u32> = Pool::default();
        let waiting = pool.wait("a", false);
        let (first, mut theirs) = connection(Wire::Http2, 1).await;
        pool.share("a", &first, IDLE);
        settle(&first, &mut theirs).await;
        let mut streams = vec![first, waiting.await.expect("it is shared")];
        let now = Instant::now();
        while let Some(stream) = pool.take(&"a", now, 1, |_| true) {
            streams.push(stream);
        }
        assert_eq!(streams.len(), STREAMS_MAX);
        let (second, mut others) = connection(Wire::Http2, 2).await;
        pool.share("a", &second, IDLE);
        settle(&second, &mut others).await;
        let least = pool.take(&"a", now, 1, |_| true).expect("the second has room");
        assert_eq!(*least.about, 2);
        pool.give("a", least, IDLE, true);
        drop(second);
        assert!(pool.take(&"a", now, 1, |_| true).is_none(), "one is full, one has served enough");
        streams.truncate(1);
        let last = streams.pop().expect("one is left");
        pool.give("a", last, IDLE, false);
        assert!(!pool.sweep(now));
        assert!(pool.sweep(now + IDLE * 2), "nobody used it");
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_shared_connection_takes_its_own_stream_until_its_peer_says_how_many() {
        let pool: Pool<&str, u32> = Pool::default();
        let mut waiting = pool.wait("a", true);
        assert!(!pool.promised(&"a", UNSAID_MAX).await, "there is none");
        let (first, mut theirs) = connection(Wire::Http2, 1).await;
        pool.share("a", &first, IDLE);
        assert!(waiting.try_recv().is_err());
        assert!(pool.take(&"a", Instant::now(), 1, |_| true).is_none());
        settle(&first, &mut theirs).await;
        assert_eq!(*waiting.await.expect("as soon as it is said").about, 1);
        assert!(!pool.promised(&"a", UNSAID_MAX).await, "it is said");
        assert!(pool.take(&"a", Instant::now(), 1, |_| true).is_some());
        // Who never says so is not waited for much longer than a round trip.
        let (second, _silent) = connection(Wire::Http2, 2).await;
        pool.share("a", &second, IDLE);
        let begun = tokio::time::Instant::now();
        assert!(pool.promised(&"a", UNSAID_MAX).await);
        assert!(begun.elapsed() <= UNSAID_MAX * 2, "{:?}", begun.elapsed());
    }

    #[tokio::test]
    async fn a_peer_may_take_more_later_while_its_one_stream_is_long() {
        let pool: Pool<&str, u32> = Pool::default();
        let (first, mut theirs) = connection(Wire::Http2, 1).await;
        pool.share("a", &first, IDLE);
        let mut most = first.trunk().expect("it is shared").most();
        for limit in [1, 2, 1] {
            // MAX_CONCURRENT_STREAMS (RFC 9113 section 6.5.2).
            let settings = [0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, limit];
            theirs.write_all(&settings).await.expect("it is heard");
            let said = most.wait_for(|most| *most == Some(limit.into()));
            let said = tokio::time::timeout(Duration::from_secs(10), said).await;
            drop(said.expect("nobody asks anything meanwhile").expect("it is open"));
            let another = pool.take(&"a", Instant::now(), 1, |_| true);
            assert_eq!(another.is_some(), limit == 2);
        }
    }

    #[tokio::test]
    async fn who_never_says_how_many_is_asked_all_the_same() {
        let pool: Pool<&str, u32> = Pool::default();
        let (first, _silent) = connection(Wire::Http2, 1).await;
        pool.share("a", &first, IDLE);
        assert!(pool.take(&"a", Instant::now(), 1, |_| true).is_none());
        assert!(pool.promised(&"a", UNSAID_MAX).await);
        assert!(pool.take(&"a", Instant::now(), 1, |_| true).is_some());
    }

    #[tokio::test]
    async fn busy_connections_are_joined_by_others_while_they_are_too_few() {
        let pool: Pool<&str, u32> = Pool::default();
        let (first, _a) = connection(Wire::Http2, 1).await;
        pool.share("a", &first, IDLE);
        assert!(pool.take(&"a", Instant::now(), 2, |_| true).is_none(), "it is busy");
        let (second, mut theirs) = connection(Wire::Http2, 2).await;
        pool.share("a", &second, IDLE);
        settle(&second, &mut theirs).await;
        assert!(pool.take(&"a", Instant::now(), 2, |_| true).is_some(), "both are, and suffice");
    }

    #[tokio::test]
    async fn copies_behind_one_address_take_turns() {
        let pool: Pool<&str, u32> = Pool::default();
        let mut kept_open = Vec::new();
        for number in 1..=3 {
            let (connection, theirs) = connection(Wire::Http1, number).await;
            kept_open.push(theirs);
            pool.give("a", connection, IDLE, false);
        }
        let turn = |spread| {
            let taken = pool.take(&"a", Instant::now(), spread, |_| true).expect("one is free");
            let number = *taken.about;
            pool.give("a", taken, IDLE, false);
            number
        };
        let turns: Vec<u32> = (0..4).map(|_| turn(1)).collect();
        assert_eq!(turns, [3, 3, 3, 3], "the others may go idle");
        let turns: Vec<u32> = (0..4).map(|_| turn(2)).collect();
        assert_eq!(turns, [2, 3, 2, 3]);
        // A fourth copy gets a connection of its own once the three have paid for it, and no more than one
        // request is kept waiting for it.
        let paid = (8..).find(|_| {
            let taken = pool.take(&"a", Instant::now(), 4, |_| true);
            let none = taken.is_none();
            taken.into_iter().for_each(|taken| pool.give("a", taken, IDLE, false));
            none
        });
        assert_eq!(paid, Some(REUSES_PER_DIAL));
        turn(4);
        let (fourth, _theirs) = connection(Wire::Http1, 4).await;
        pool.give("a", fourth, IDLE, false);
        let turns: Vec<u32> = (0..4).map(|_| turn(4)).collect();
        assert_eq!(turns.iter().collect::<std::collections::BTreeSet<_>>().len(), 4, "{turns:?}");
    }
}
