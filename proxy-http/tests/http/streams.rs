//! Peers that take so many streams at once, and say so when the first has come.

use crate::http2::{self, Body};
use crate::inbound::draining;
use crate::world::{PATIENCE, Stream, World, accept_as_copy, bind};
use futures::future::join_all;
use http::Request;
use http_body_util::{BodyExt as _, Empty};
use mesh::name::Protocol;
use proxy::drain::Drain;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, WriteHalf};
use tokio::sync::{Mutex, watch};
use tokio::time::{sleep, timeout};

/// Frames and flags of RFC 9113 section 6.
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const ACK: u8 = 1;
const END_OF_STREAM_AND_HEADERS: u8 = 5;
const MAX_CONCURRENT_STREAMS: u8 = 3;
/// `:status: 200` (RFC 7541 appendix A).
const OK: u8 = 0x88;

/// From the first stream to the SETTINGS: a burst has begun by then.
const LATE: Duration = Duration::from_millis(20);

/// Speaks frames by hand, since a whole HTTP/2 refuses what is too much before anybody can count it.
#[derive(Debug, Clone)]
struct Peer {
    /// On one connection; `None`: it does not limit them.
    limit: Option<u32>,
    connections: Arc<AtomicUsize>,
    /// Streams so far, on all connections, and how many of them are waited for before any is answered.
    begun: watch::Sender<usize>,
    together: Arc<AtomicUsize>,
    /// The most that were open at once on one connection.
    most: Arc<AtomicUsize>,
}

impl Peer {
    async fn start(alpn: Option<&'static [u8]>, limit: Option<u32>) -> (Self, SocketAddr) {
        let (listener, address) = bind().await;
        let peer = Self {
            limit,
            connections: Arc::default(),
            begun: watch::channel(0).0,
            together: Arc::default(),
            most: Arc::default(),
        };
        let this = peer.clone();
        accept_as_copy(listener, alpn, peer.connections.clone(), move |stream| {
            let this = this.clone();
            async move {
                let _ = this.serve(stream).await;
            }
        });
        (peer, address)
    }

    async fn serve(self, stream: Box<dyn Stream>) -> std::io::Result<()> {
        let (mut read, write) = tokio::io::split(stream);
        let write = Arc::new(Mutex::new(write));
        read.read_exact(&mut [0; 24]).await?;
        let (mine, mut said) = (Arc::new(AtomicUsize::new(0)), false);
        loop {
            let Frame { kind, flags, stream, payload } = Frame::read(&mut read).await?;
            match (kind, flags & ACK) {
                (HEADERS, _) => {
                    self.begun.send_modify(|begun| *begun += 1);
                    let open = mine.fetch_add(1, Ordering::SeqCst) + 1;
                    self.most.fetch_max(open, Ordering::SeqCst);
                    let late = (!said).then_some(LATE);
                    said = true;
                    tokio::spawn(self.clone().answer(stream, late, mine.clone(), write.clone()));
                }
                (SETTINGS | PING, 0) => {
                    let payload = if kind == PING { payload } else { vec![] };
                    let ack = Frame { kind, flags: ACK, stream: 0, payload };
                    // The first frame is the SETTINGS (RFC 9113 section 3.4).
                    if said {
                        ack.write(&write).await?;
                    }
                }
                _ => {}
            }
        }
    }

    async fn answer(
        self,
        stream: u32,
        late: Option<Duration>,
        mine: Arc<AtomicUsize>,
        write: Arc<Mutex<WriteHalf<Box<dyn Stream>>>>,
    ) -> std::io::Result<()> {
        if let Some(late) = late {
            sleep(late).await;
            let say = |limit: u32| {
                let [a, b, c, d] = limit.to_be_bytes();
                vec![0, MAX_CONCURRENT_STREAMS, a, b, c, d]
            };
            let payload = self.limit.map(say).unwrap_or_default();
            Frame { kind: SETTINGS, flags: 0, stream: 0, payload }.write(&write).await?;
        }
        let mut begun = self.begun.subscribe();
        let all = begun.wait_for(|begun| *begun >= self.together.load(Ordering::SeqCst)).await;
        drop(all);
        mine.fetch_sub(1, Ordering::SeqCst);
        let flags = END_OF_STREAM_AND_HEADERS;
        Frame { kind: HEADERS, flags, stream, payload: vec![OK] }.write(&write).await
    }

    /// So many calls, none of which is answered before all have come. `after`: all but the first are made
    /// when that has come.
    async fn called(&self, through: SocketAddr, calls: usize, after: bool) {
        let before = *self.begun.borrow();
        self.together.store(before + calls, Ordering::SeqCst);
        let sender = http2::dial(through).await;
        let calls = (0..calls).map(|number| {
            let (mut sender, mut begun) = (sender.clone(), self.begun.subscribe());
            async move {
                let awaited = if after && number > 0 { before + 1 } else { 0 };
                drop(begun.wait_for(|begun| *begun >= awaited).await.unwrap());
                let body: Body = Empty::new().map_err(|never| match never {}).boxed();
                let request = Request::post("http://hello.shop.global/long").body(body).unwrap();
                sender.send_request(request).await.unwrap().status()
            }
        });
        let all = timeout(PATIENCE, join_all(calls)).await;
        let all = all.unwrap_or_else(|_| panic!("not all were begun: {self:?}"));
        assert!(all.iter().all(|status| *status == 200), "{all:?}");
    }

    fn most(&self) -> usize {
        self.most.load(Ordering::SeqCst)
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

struct Frame {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: Vec<u8>,
}

impl Frame {
    async fn read(read: &mut ReadHalf<Box<dyn Stream>>) -> std::io::Result<Self> {
        let mut long = [0; 4];
        read.read_exact(&mut long[1..]).await?;
        let (kind, flags) = (read.read_u8().await?, read.read_u8().await?);
        let stream = read.read_u32().await?;
        let mut payload = vec![0; u32::from_be_bytes(long) as usize];
        read.read_exact(&mut payload).await?;
        Ok(Self { kind, flags, stream, payload })
    }

    async fn write(&self, write: &Mutex<WriteHalf<Box<dyn Stream>>>) -> std::io::Result<()> {
        let long = (self.payload.len() as u32).to_be_bytes();
        let stream = self.stream.to_be_bytes();
        let frame = [&long[1..], &[self.kind, self.flags], &stream, &self.payload].concat();
        let mut write = write.lock().await;
        write.write_all(&frame).await?;
        write.flush().await
    }
}

/// A peer behind its sidecar, and a world that leads to it.
async fn meshed(limit: Option<u32>) -> (Peer, World) {
    let (peer, address) = Peer::start(Some(b"istio-h2"), limit).await;
    (peer, World::speaking(Protocol::Http2, vec![address], |_| {}).await)
}

#[tokio::test]
async fn more_calls_than_a_peer_takes_on_a_connection_have_others() {
    let (peer, world) = meshed(Some(3)).await;
    peer.called(world.address, 1, false).await;
    peer.called(world.address, 10, false).await;
    assert!(peer.most() <= 3 && peer.connections() >= 4, "{peer:?}");
}

#[tokio::test]
async fn a_burst_before_a_peer_has_said_its_limit_keeps_it() {
    for limit in [1, 3] {
        let (peer, world) = meshed(Some(limit)).await;
        peer.called(world.address, 50, false).await;
        assert!(peer.most() <= limit as usize, "{peer:?}");
    }
}

#[tokio::test]
async fn a_burst_at_a_peer_without_limit_has_few_connections() {
    let (peer, world) = meshed(None).await;
    peer.called(world.address, 50, false).await;
    // Eight where handshakes are quick; never more than a crowd begins at once.
    assert!(peer.connections() <= 32, "{peer:?}");
}

#[tokio::test]
async fn calls_before_an_application_has_said_its_limit_keep_it() {
    for limit in [1, 3] {
        let (peer, address) = Peer::start(None, Some(limit)).await;
        let sidecar = draining(address, Protocol::Http2, &Drain::new()).await;
        peer.called(sidecar, 50, true).await;
        assert!(peer.most() <= limit as usize, "{peer:?}");
    }
}

#[tokio::test]
async fn who_comes_while_a_peer_has_not_said_its_limit_shares_the_first_connection() {
    let (peer, world) = meshed(None).await;
    peer.called(world.address, 50, true).await;
    assert!(peer.connections() <= 8, "{peer:?}");

    let (application, address) = Peer::start(None, None).await;
    let sidecar = draining(address, Protocol::Http2, &Drain::new()).await;
    application.called(sidecar, 50, true).await;
    assert!(application.connections() <= 8, "{application:?}");
}
