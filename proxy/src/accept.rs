//! An accept loop that nothing ends but its token: it survives EMFILE and sheds above its caps.

use dashmap::DashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

/// Rest after an accept that failed for want of descriptors or memory.
const REST: Duration = Duration::from_millis(20);

/// Accepted in a row, at most; then all that was begun before gets its turn. A proxy that is short of
/// processor time takes in no more than it gets done: the others wait with the kernel, at no cost. Else
/// it would spend all its time on beginning what its clients give up before it ends.
const ROW: u32 = 16;

/// How many connections may live at once.
#[derive(Debug, Clone, Copy)]
pub struct Caps {
    pub all: usize,
    /// Per source address.
    pub per_source: usize,
}

/// Why a connection was closed before it was looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shed {
    TooMany,
    TooManyOfOneSource,
}

#[derive(Debug)]
struct Counts {
    all: AtomicUsize,
    sources: DashMap<IpAddr, usize>,
}

/// One accepted connection's place under the caps; gone when dropped.
#[derive(Debug)]
pub struct Place {
    counts: Arc<Counts>,
    source: IpAddr,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.counts.all.fetch_sub(1, Ordering::AcqRel);
        if let dashmap::Entry::Occupied(mut entry) = self.counts.sources.entry(self.source) {
            *entry.get_mut() -= 1;
            if *entry.get() == 0 {
                entry.remove();
            }
        }
    }
}

/// Accepted after the end, at most: as many as can have waited by then.
const LAST_MAX: usize = 4_096;

/// Accepts until `end`, handing each connection (TCP_NODELAY and keepalive set) to `serve`.
/// A connection above a cap is closed at once and told to `shed`. Those that wait at the end are served,
/// too: the kernel resets what waits at a listener that is closed.
pub async fn accept(
    listener: TcpListener,
    caps: Caps,
    end: CancellationToken,
    shed: impl Fn(SocketAddr, Shed) + Send,
    serve: impl Fn(TcpStream, SocketAddr, Place) + Send,
) {
    let counts = Arc::new(Counts { all: AtomicUsize::new(0), sources: DashMap::new() });
    // Once for all connections, instead of six calls for each.
    crate::upstream::tune(&listener);
    let take = |stream, peer: SocketAddr| match place(&counts, caps, peer.ip().to_canonical()) {
        Ok(place) => serve(stream, peer, place),
        Err(why) => shed(peer, why),
    };
    let mut row = 0;
    loop {
        if row == ROW {
            row = 0;
            tokio::task::yield_now().await;
        }
        row += 1;
        let accepted = tokio::select! {
            () = end.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(e) => {
                // A client that left already costs nothing; want of descriptors needs a rest,
                // or the loop would spin until one is given back.
                if !client_left(&e) {
                    tracing::warn!(error = %e, "accepting a connection failed");
                    tokio::time::sleep(REST).await;
                }
                continue;
            }
        };
        take(stream, peer);
    }
    // Asked of the kernel itself: the runtime may not have heard of them yet.
    let Ok(listener) = listener.into_std() else { return };
    for _ in 0..LAST_MAX {
        match listener.accept() {
            Ok((stream, peer)) => {
                let stream =
                    stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream));
                stream.into_iter().for_each(|stream| take(stream, peer));
            }
            Err(problem) if client_left(&problem) => {}
            Err(_) => return,
        }
    }
}

fn client_left(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted)
}

fn place(counts: &Arc<Counts>, caps: Caps, source: IpAddr) -> Result<Place, Shed> {
    if counts.all.fetch_add(1, Ordering::AcqRel) >= caps.all {
        counts.all.fetch_sub(1, Ordering::AcqRel);
        return Err(Shed::TooMany);
    }
    let mut count = counts.sources.entry(source).or_insert(0);
    *count += 1;
    let over = *count > caps.per_source;
    // The entry's lock must be gone before `Place` is dropped: it takes it again.
    drop(count);
    let place = Place { counts: counts.clone(), source };
    if over { Err(Shed::TooManyOfOneSource) } else { Ok(place) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    #[test]
    fn caps_hold_and_places_come_back() {
        let counts = Arc::new(Counts { all: AtomicUsize::new(0), sources: DashMap::new() });
        let caps = Caps { all: 3, per_source: 2 };
        let (a, b) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        let one = place(&counts, caps, a).unwrap();
        let _two = place(&counts, caps, a).unwrap();
        assert_eq!(place(&counts, caps, a).unwrap_err(), Shed::TooManyOfOneSource);
        let three = place(&counts, caps, b).unwrap();
        assert_eq!(place(&counts, caps, b).unwrap_err(), Shed::TooMany);
        drop(one);
        let _again = place(&counts, caps, a).unwrap();
        drop(three);
        assert_eq!(counts.all.load(Ordering::Acquire), 2);
        assert!(counts.sources.get(&b).is_none(), "an idle source takes no memory");
    }

    /// A listener at which as many wait already.
    async fn awaited(many: usize) -> (TcpListener, Vec<TcpStream>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut clients = vec![];
        for _ in 0..many {
            clients.push(TcpStream::connect(address).await.unwrap());
        }
        (listener, clients)
    }

    #[tokio::test]
    async fn who_waits_at_the_end_is_served() {
        let (listener, _clients) = awaited(20).await;
        let end = CancellationToken::new();
        end.cancel();
        let served = AtomicUsize::new(0);
        let serve = |_, _, _| {
            served.fetch_add(1, Ordering::Relaxed);
        };
        let caps = Caps { all: 100, per_source: 100 };
        let accepting = accept(listener, caps, end, |_, _| {}, serve);
        tokio::time::timeout(Duration::from_secs(10), accepting).await.unwrap();
        assert_eq!(served.into_inner(), 20);
    }

    #[tokio::test]
    async fn what_was_begun_has_its_turn_before_more_is_accepted() {
        let (listener, clients) = awaited(100).await;
        let accepted = Arc::new(AtomicUsize::new(0));
        let counted = accepted.clone();
        let serve = move |_, _, _| {
            counted.fetch_add(1, Ordering::Relaxed);
        };
        let caps = Caps { all: 100, per_source: 100 };
        tokio::spawn(accept(listener, caps, CancellationToken::new(), |_, _| {}, serve));
        // This task stands for all that was begun.
        let (mut before, mut most) = (0, 0);
        let turns = async {
            while before < clients.len() {
                tokio::task::yield_now().await;
                let now = accepted.load(Ordering::Relaxed);
                most = most.max(now - before);
                before = now;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), turns).await.unwrap();
        assert!(most <= ROW as usize, "{most} in a row");
    }

    #[tokio::test]
    async fn what_is_accepted_is_tuned_as_its_listener() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (caps, end) = (Caps { all: 1, per_source: 1 }, CancellationToken::new());
        let (send, mut received) = tokio::sync::mpsc::unbounded_channel();
        let serve = move |stream, _, place| drop(send.send((stream, place)));
        tokio::spawn(accept(listener, caps, end.clone(), |_, _| {}, serve));
        // One thread: the loop has begun after this.
        tokio::task::yield_now().await;
        let _client = TcpStream::connect(address).await.unwrap();
        let (stream, _place) = received.recv().await.unwrap();
        let socket = socket2::SockRef::from(&stream);
        assert!(socket.tcp_nodelay().unwrap() && socket.keepalive().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), Duration::from_secs(30));
        assert_eq!(socket.tcp_user_timeout().unwrap(), None, "who pauses is not dead");
        end.cancel();
    }

    /// Whether a reader who pauses for two seconds, until no octet more is taken, has all of it after
    /// that; from a socket that is accepted here, and `with` changed.
    async fn outlasts_a_pause(with: impl Fn(&TcpStream)) -> bool {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (send, mut received) = tokio::sync::mpsc::unbounded_channel();
        let serve = move |stream, _, place| drop(send.send((stream, place)));
        let (caps, end) = (Caps { all: 1, per_source: 1 }, CancellationToken::new());
        tokio::spawn(accept(listener, caps, end, |_, _| {}, serve));
        tokio::task::yield_now().await;
        let mut client = TcpStream::connect(address).await.unwrap();
        let (mut stream, _place) = received.recv().await.unwrap();
        with(&stream);
        const LENGTH: usize = 64 << 20;
        tokio::spawn(async move {
            stream.write_all(&vec![7; LENGTH]).await?;
            stream.shutdown().await
        });
        tokio::time::sleep(Duration::from_secs(2)).await;
        let mut read = Vec::new();
        client.read_to_end(&mut read).await.is_ok() && read.len() == LENGTH
    }

    #[tokio::test]
    async fn who_pauses_has_all_of_it_afterwards() {
        let patient = outlasts_a_pause(|_| {});
        // Shows that the pause is one that such a time-out ends.
        let hasty = outlasts_a_pause(|stream| {
            let half = Some(Duration::from_millis(500));
            socket2::SockRef::from(stream).set_tcp_user_timeout(half).unwrap();
        });
        let both = async { tokio::join!(patient, hasty) };
        let both = tokio::time::timeout(Duration::from_secs(20), both).await.expect("in time");
        assert_eq!(both, (true, false));
    }
}
