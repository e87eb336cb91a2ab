//! Connections between requests, by where they lead.

use crate::body::RequestBody;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::oneshot;

/// Connections kept for one endpoint; more are closed when they become free.
const KEPT_MAX: usize = 256;
/// Headers of a response; more are an error of the server (our own limit on requests is 100).
const HEADERS_MAX: usize = 200;
/// Longest head of a response, bytes.
const HEAD_MAX: usize = 256 * 1024;

/// Free connections, newest first out: the oldest may go idle and be closed. Whoever waits for one
/// is served before any is laid aside.
#[derive(Debug)]
pub(crate) struct Pool<K, A> {
    lines: Mutex<HashMap<K, Line<A>>>,
}

#[derive(Debug)]
struct Line<A> {
    free: Vec<Free<A>>,
    /// Who has begun no connection of its own yet, and who has.
    waiting: VecDeque<oneshot::Sender<Connection<A>>>,
    dialling: VecDeque<oneshot::Sender<Connection<A>>>,
}

#[derive(Debug)]
struct Free<A> {
    connection: Connection<A>,
    until: Instant,
}

/// One HTTP connection to an endpoint.
#[derive(Debug)]
pub(crate) struct Connection<A> {
    pub(crate) sender: SendRequest<RequestBody>,
    /// Where it leads and who is there; the same for all its requests.
    pub(crate) about: Arc<A>,
    /// Requests so far.
    pub(crate) served: u32,
}

impl<A> Connection<A> {
    /// Begins to speak HTTP over a connected stream.
    pub(crate) async fn open<T>(stream: T, about: A) -> hyper::Result<Self>
    where
        T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let (sender, connection) = http1::Builder::new()
            .max_headers(HEADERS_MAX)
            .max_header_size(HEAD_MAX)
            .handshake(TokioIo::new(stream))
            .await?;
        tokio::spawn(async move {
            if let Err(problem) = connection.with_upgrades().await {
                tracing::debug!(error = %problem, "an upstream connection ended");
            }
        });
        Ok(Self { sender, about: Arc::new(about), served: 0 })
    }
}

impl<K, A> Default for Pool<K, A> {
    fn default() -> Self {
        Self { lines: Mutex::default() }
    }
}

impl<A> Default for Line<A> {
    fn default() -> Self {
        Self { free: Vec::new(), waiting: VecDeque::new(), dialling: VecDeque::new() }
    }
}

impl<K: Eq + Hash, A> Pool<K, A> {
    /// A free connection that is alive as far as we know and that `fits`.
    pub(crate) fn take(
        &self,
        key: &K,
        now: Instant,
        fits: impl Fn(&A) -> bool,
    ) -> Option<Connection<A>> {
        let mut lines = self.lines.lock().expect("no holder panics");
        let free = &mut lines.get_mut(key)?.free;
        free.retain(|free| {
            free.until > now && !free.connection.sender.is_closed() && fits(&free.connection.about)
        });
        // One whose last response has only just been read may not be ready yet: leave it.
        let index = free.iter().rposition(|free| free.connection.sender.is_ready())?;
        Some(free.remove(index).connection)
    }

    /// The next connection that becomes free, first come first served; whoever is `dialling` one of
    /// its own comes after those who are not. It may not be ready for a request yet, and nobody has
    /// asked whether it fits.
    pub(crate) fn wait(&self, key: K, dialling: bool) -> oneshot::Receiver<Connection<A>> {
        let (sender, receiver) = oneshot::channel();
        let mut lines = self.lines.lock().expect("no holder panics");
        let line = lines.entry(key).or_default();
        let queue = if dialling { &mut line.dialling } else { &mut line.waiting };
        // Who gave up leaves its place here; it costs no more than the crowd at its largest.
        while queue.front().is_some_and(oneshot::Sender::is_closed) {
            queue.pop_front();
        }
        queue.push_back(sender);
        receiver
    }

    /// Keeps a connection whose response has been read to its end, or hands it to who waits.
    pub(crate) fn give(&self, key: K, mut connection: Connection<A>, idle: Duration) {
        if connection.sender.is_closed() {
            return;
        }
        let mut lines = self.lines.lock().expect("no holder panics");
        let line = lines.entry(key).or_default();
        while let Some(waiter) = line.waiting.pop_front().or_else(|| line.dialling.pop_front()) {
            match waiter.send(connection) {
                Ok(()) => return,
                Err(back) => connection = back,
            }
        }
        if line.free.len() < KEPT_MAX {
            line.free.push(Free { connection, until: Instant::now() + idle });
        }
    }

    /// Closes what has been idle for too long or is dead. True when none is left.
    pub(crate) fn sweep(&self, now: Instant) -> bool {
        let mut lines = self.lines.lock().expect("no holder panics");
        lines.retain(|_, line| {
            line.free.retain(|free| free.until > now && !free.connection.sender.is_closed());
            line.waiting.retain(|waiter| !waiter.is_closed());
            line.dialling.retain(|waiter| !waiter.is_closed());
            !(line.free.is_empty() && line.waiting.is_empty() && line.dialling.is_empty())
        });
        lines.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A connection to nobody, that says its number.
    async fn connection(number: u32) -> (Connection<u32>, tokio::io::DuplexStream) {
        let (ours, theirs) = tokio::io::duplex(64);
        let mut connection = Connection::open(ours, number).await.expect("nothing is said yet");
        connection.sender.ready().await.expect("its task runs");
        (connection, theirs)
    }

    #[tokio::test]
    async fn who_waits_comes_before_who_dials_and_both_before_the_shelf() {
        const IDLE: Duration = Duration::from_secs(60);
        let pool: Pool<&str, u32> = Pool::default();
        let mut dialling = pool.wait("a", true);
        let gone = pool.wait("a", false);
        let mut waiting = pool.wait("a", false);
        let mut elsewhere = pool.wait("b", false);
        drop(gone);
        let mut kept_open = Vec::new();
        for number in 1..=3 {
            let (connection, theirs) = connection(number).await;
            kept_open.push(theirs);
            pool.give("a", connection, IDLE);
        }
        assert_eq!(*waiting.try_recv().expect("first").about, 1);
        assert_eq!(*dialling.try_recv().expect("second").about, 2);
        assert!(elsewhere.try_recv().is_err(), "another endpoint's");
        let shelved = pool.take(&"a", Instant::now(), |_| true).expect("nobody wanted the third");
        assert_eq!(*shelved.about, 3);
        drop(elsewhere);
        assert!(pool.sweep(Instant::now()), "nobody waits and nothing is kept");
    }
}
