//! One connection to an endpoint: its own for one request at a time, or shared by many as HTTP/2.

use crate::last_words::LastWords;
use crate::observed::{Observed, Observer};
use crate::payload::RequestBody;
use crate::version::Wire;
use futures::task::AtomicWaker;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;

/// Headers of a response; more are an error of the server (our own limit on requests is 100).
const HEADERS_MAX: usize = 200;
/// Longest head of a response, bytes.
const HEAD_MAX: usize = 256 * 1024;
/// Streams of ours on one HTTP/2 connection; the next opens another.
pub(crate) const STREAMS_MAX: usize = 100;
/// What h2 is told to hold for the peer's limit until its first SETTINGS, so that these can be told from
/// silence: a limit is at most `u32::MAX`, and h2 takes SETTINGS without one for `usize::MAX`.
const UNSAID: usize = usize::MAX - 1;
/// Who has not said by then how many streams it takes (an application that is busy starting) is taken to
/// limit nothing; what it refuses is sent again.
pub(crate) const UNSAID_MAX: Duration = Duration::from_secs(1);
/// A frame that acknowledges SETTINGS (RFC 9113 section 6.5).
const ACKNOWLEDGED: [u8; 9] = [0, 0, 0, 4, 1, 0, 0, 0, 0];
/// Writes up to so many bytes are looked through for one.
const SHORT: usize = 256;
/// What a peer takes is looked at this often in any case.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// What may be under way to one reader who does not read, bytes.
pub(crate) const STREAM_WINDOW: u32 = 256 * 1024;
/// And to all of one connection: 64 slow readers do not stop the others.
const CONNECTION_WINDOW: u32 = 16 * 1024 * 1024;
/// While streams are open, a peer across the network is asked whether it lives …
const PING_EVERY: Duration = Duration::from_secs(1);
/// … and what stays unanswered so long ends the connection, so that streams on it fail.
const PING_MAX: Duration = Duration::from_secs(2);

/// One HTTP connection to an endpoint, or one stream's right to a shared one.
#[derive(Debug)]
pub(crate) struct Connection<A> {
    sender: Sender,
    /// Where it leads and who is there; the same for all its requests.
    pub(crate) about: Arc<A>,
    life: Arc<Life>,
}

#[derive(Debug)]
enum Sender {
    Http1(http1::SendRequest<RequestBody>),
    Http2(
        http2::SendRequest<RequestBody>,
        #[expect(dead_code, reason = "counts while held")] Stream,
    ),
}

/// A shared connection, as the pool keeps it.
#[derive(Debug)]
pub(crate) struct Trunk<A> {
    sender: http2::SendRequest<RequestBody>,
    pub(crate) about: Arc<A>,
    life: Arc<Life>,
}

/// What all streams of a connection know of it.
#[derive(Debug)]
struct Life {
    begun: Instant,
    /// Requests so far.
    served: AtomicU32,
    streams: AtomicUsize,
    /// Streams that its peer takes at once; `None` until it has said. hyper would let what is more wait
    /// without a word, and without end behind streams that are long.
    most: watch::Sender<Option<usize>>,
    /// Whoever follows what the peer says.
    follower: AtomicWaker,
}

impl Life {
    fn begin() -> Arc<Self> {
        Arc::new(Self {
            begun: Instant::now(),
            served: AtomicU32::new(0),
            streams: AtomicUsize::new(0),
            most: watch::Sender::default(),
            follower: AtomicWaker::new(),
        })
    }
}

/// One stream's place on its connection.
#[derive(Debug)]
struct Stream(Arc<Life>);

impl Stream {
    fn begin(life: &Arc<Life>) -> Self {
        life.streams.fetch_add(1, Ordering::AcqRel);
        Self(life.clone())
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.0.streams.fetch_sub(1, Ordering::AcqRel);
    }
}

impl<A> Connection<A> {
    /// Begins to speak HTTP over a connected stream. `ping`: the peer is a proxy, which lets itself be
    /// asked; servers of gRPC take frequent pings amiss (gRPC A8, "too_many_pings").
    pub(crate) async fn open<T>(stream: T, wire: Wire, ping: bool, about: A) -> hyper::Result<Self>
    where
        T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let life = Life::begin();
        let sender = match wire {
            Wire::Http1 => {
                let (sender, connection) = http1::Builder::new()
                    .max_headers(HEADERS_MAX)
                    .max_header_size(HEAD_MAX)
                    .handshake(TokioIo::new(LastWords::new(stream)))
                    .await?;
                watch(connection.with_upgrades());
                Sender::Http1(sender)
            }
            Wire::Http2 => {
                let (sender, connection) = http2::Builder::new(TokioExecutor::new())
                    .timer(TokioTimer::new())
                    .initial_stream_window_size(STREAM_WINDOW)
                    .initial_connection_window_size(CONNECTION_WINDOW)
                    .max_header_list_size(HEAD_MAX as u32)
                    .initial_max_send_streams(UNSAID)
                    .keep_alive_interval(ping.then_some(PING_EVERY))
                    .keep_alive_timeout(PING_MAX)
                    .handshake(Observed { io: TokioIo::new(stream), observer: Settings::of(&life) })
                    .await?;
                watch(follow(connection, life.clone()));
                Sender::Http2(sender, Stream::begin(&life))
            }
        };
        Ok(Self { sender, about: Arc::new(about), life })
    }

    /// The other end is gone, or wants no more requests.
    pub(crate) fn is_closed(&self) -> bool {
        match &self.sender {
            Sender::Http1(sender) => sender.is_closed(),
            Sender::Http2(sender, _) => sender.is_closed(),
        }
    }

    /// It takes a request now.
    pub(crate) fn is_ready(&self) -> bool {
        match &self.sender {
            Sender::Http1(sender) => sender.is_ready(),
            Sender::Http2(sender, _) => sender.is_ready(),
        }
    }

    /// Waits until it takes a request.
    pub(crate) async fn ready(&mut self) -> hyper::Result<()> {
        match &mut self.sender {
            Sender::Http1(sender) => sender.ready().await,
            Sender::Http2(sender, _) => sender.ready().await,
        }
    }

    /// Sends a request; one that was not written at all comes back in the error.
    pub(crate) async fn try_send(
        &mut self,
        request: Request<RequestBody>,
    ) -> Result<Response<Incoming>, TrySendError<Request<RequestBody>>> {
        self.life.served.fetch_add(1, Ordering::Relaxed);
        match &mut self.sender {
            Sender::Http1(sender) => sender.try_send_request(request).await,
            Sender::Http2(sender, _) => sender.try_send_request(request).await,
        }
    }

    pub(crate) fn wire(&self) -> Wire {
        match self.sender {
            Sender::Http1(_) => Wire::Http1,
            Sender::Http2(..) => Wire::Http2,
        }
    }

    /// Requests so far, of all its streams.
    pub(crate) fn served(&self) -> u32 {
        self.life.served.load(Ordering::Relaxed)
    }

    /// For the pool; `None` for one that serves one request at a time.
    pub(crate) fn trunk(&self) -> Option<Trunk<A>> {
        match &self.sender {
            Sender::Http1(_) => None,
            Sender::Http2(sender, _) => Some(Trunk {
                sender: sender.clone(),
                about: self.about.clone(),
                life: self.life.clone(),
            }),
        }
    }
}

impl<A> Trunk<A> {
    /// It takes streams now.
    pub(crate) fn is_open(&self) -> bool {
        !self.sender.is_closed()
    }

    /// Streams open now.
    pub(crate) fn streams(&self) -> usize {
        self.life.streams.load(Ordering::Acquire)
    }

    /// It has as many streams as its peer takes at once: one, while the peer may yet say how many.
    pub(crate) fn is_full(&self) -> bool {
        let may_say = self.life.begun.elapsed() < UNSAID_MAX;
        let unsaid = if may_say { 1 } else { STREAMS_MAX };
        self.streams() >= self.life.most.borrow().unwrap_or(unsaid)
    }

    /// How many streams its peer takes at once, `None` until it has said. Keeps nothing alive.
    pub(crate) fn most(&self) -> watch::Receiver<Option<usize>> {
        self.life.most.subscribe()
    }

    pub(crate) fn is(&self, connection: &Connection<A>) -> bool {
        Arc::ptr_eq(&self.life, &connection.life)
    }

    /// The right to one more stream.
    pub(crate) fn lease(&self) -> Connection<A> {
        Connection {
            sender: Sender::Http2(self.sender.clone(), Stream::begin(&self.life)),
            about: self.about.clone(),
            life: self.life.clone(),
        }
    }
}

/// Has what a peer takes looked at again when its SETTINGS may have come: hyper tells nobody. They are in
/// force before their acknowledgement is written.
#[derive(Debug)]
struct Settings {
    life: Arc<Life>,
    acknowledged: bool,
    looked: Instant,
}

impl Settings {
    fn of(life: &Arc<Life>) -> Self {
        Self { life: life.clone(), acknowledged: false, looked: Instant::now() }
    }
}

impl Observer for Settings {
    fn wrote(&mut self, octets: &[u8]) {
        let short = octets.len() <= SHORT;
        self.acknowledged |= short && octets.windows(9).any(|frame| frame == ACKNOWLEDGED);
    }

    fn settled(&mut self) {
        let first = self.life.most.borrow().is_none();
        if first || self.acknowledged || self.looked.elapsed() >= LOOK_EVERY {
            (self.acknowledged, self.looked) = (false, Instant::now());
            self.life.follower.wake();
        }
    }
}

/// A connection that notes how many streams its peer takes (RFC 9113 section 6.5.2).
async fn follow<T>(
    connection: http2::Connection<T, RequestBody, TokioExecutor>,
    life: Arc<Life>,
) -> hyper::Result<()>
where
    T: hyper::rt::Read + hyper::rt::Write + Send + Unpin + 'static,
{
    let mut connection = std::pin::pin!(connection);
    std::future::poll_fn(|cx| {
        life.follower.register(cx.waker());
        let polled = connection.as_mut().poll(cx);
        let said = connection.current_max_send_streams();
        if said != UNSAID {
            let said = Some(said.clamp(1, STREAMS_MAX));
            life.most.send_if_modified(|most| std::mem::replace(most, said) != said);
        }
        polled
    })
    .await
}

/// Lets a connection run until it ends.
fn watch(connection: impl Future<Output = hyper::Result<()>> + Send + 'static) {
    tokio::spawn(async move {
        if let Err(problem) = connection.await {
            tracing::debug!(error = %problem, "an upstream connection ended");
        }
    });
}
