//! How long a message may stand still while it is the client who could move it: a client that takes
//! nothing of its response, or sends nothing of its request, holds memory, a task and a connection of
//! ours for nothing.
//!
//! The limit is Envoy's `stream_idle_timeout`, and its default. It counts only while there is something
//! to take, or while what is missing was announced: a stream on which both sides are silent (gRPC, server
//! sent events, a pause in an upload of unknown length) may last as long as its connection. Each octet
//! that moves begins it anew.

use crate::body::{Cut, Ended, ResponseBody};
use crate::observed::Observer;
use crate::quiet::Asked;
use crate::serve::Limits;
use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use hyper::rt::Executor;
use std::io;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::time::{Instant, Sleep, sleep_until};

/// Default of the limit.
pub const IDLE_MAX: Duration = Duration::from_secs(300);
/// Name of the limit where a client takes nothing of its response.
pub(crate) const NOT_TAKEN: &str = "response_not_taken";
/// Name of the limit where a client sends nothing of its request's body.
pub(crate) const NOT_SENT: &str = "request_not_sent";

/// Most that HTTP/2 is handed at once, bytes: the last piece of a response may wait for its client
/// until the connection ends, where no timer of ours sees it.
const PIECE_MAX: usize = 16 * 1024;

/// A timer that is set when a wait begins and moved only when it rings: a wait that ends costs nothing.
#[derive(Debug, Default)]
pub(crate) struct Patience {
    since: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Patience {
    /// The wait is over.
    pub(crate) fn rest(&mut self) {
        self.since = None;
    }

    /// It is waited, from the first poll on. Ready once that took `limit`.
    pub(crate) fn poll(&mut self, limit: Duration, cx: &mut Context<'_>) -> Poll<()> {
        let since = *self.since.get_or_insert_with(Instant::now);
        self.poll_since(since, limit, cx)
    }

    fn poll_since(&mut self, since: Instant, limit: Duration, cx: &mut Context<'_>) -> Poll<()> {
        let due = since + limit;
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(due)));
        loop {
            ready!(timer.as_mut().poll(cx));
            if Instant::now() >= due {
                return Poll::Ready(());
            }
            timer.as_mut().reset(due);
        }
    }
}

/// What the two ends of a response's way through us know of it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Watch(Arc<State>);

#[derive(Debug, Default)]
struct State {
    /// When HTTP/2 was handed the last piece, while it has not asked for another.
    handed: Mutex<Option<Instant>>,
    /// The limit was passed.
    over: AtomicBool,
    /// What goes on is no response.
    switched: AtomicBool,
}

impl Watch {
    /// The connection has become another protocol's, or ends: this limit is not for it.
    pub(crate) fn forget(&self) {
        self.0.switched.store(true, Ordering::Release);
    }

    /// The same as a state.
    pub(crate) fn is_switched(&self) -> bool {
        self.0.switched.load(Ordering::Acquire)
    }

    fn hand(&self, at: Option<Instant>) {
        *self.0.handed.lock().expect("no holder panics") = at;
    }

    fn handed(&self) -> Option<Instant> {
        *self.0.handed.lock().expect("no holder panics")
    }

    fn end(&self) {
        self.0.over.store(true, Ordering::Release);
    }

    fn is_over(&self) -> bool {
        self.0.over.load(Ordering::Acquire)
    }
}

tokio::task_local! {
    /// The watch of the HTTP/2 stream that this task serves.
    static STREAM: Watch;
}

/// Runs the streams of HTTP/2 connections, each until its client stands still.
#[derive(Debug, Clone)]
pub(crate) struct Streams {
    pub(crate) limits: Limits,
}

impl<F> Executor<F> for Streams
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, stream: F) {
        let (watch, limits) = (Watch::default(), self.limits.clone());
        let watched = watch.clone();
        let serving = async move {
            let mut patience = Patience::default();
            let mut stream = pin!(stream);
            let taken = std::future::poll_fn(|cx| {
                if stream.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(true);
                }
                match watched.handed() {
                    None => Poll::Pending,
                    Some(since) => patience.poll_since(since, limits.idle_max, cx).map(|()| false),
                }
            });
            if !taken.await {
                watched.end();
                limits.counters.limit(NOT_TAKEN.to_owned());
            }
            // Dropped here, which resets the stream (CANCEL).
        };
        tokio::spawn(STREAM.scope(watch, serving));
    }
}

/// A response's body on its last step, which knows whether its client takes it.
pub(crate) struct Offered {
    inner: ResponseBody,
    watch: Watch,
    /// HTTP/2 is handed pieces.
    pieces: bool,
    /// Under way until this is dropped.
    _asked: Option<Asked>,
    rest: Bytes,
}

impl Offered {
    /// On a connection of HTTP/1.1, whose [`Taken`] knows.
    pub(crate) fn whole(inner: ResponseBody, watch: Watch, asked: Asked) -> Self {
        Self { inner, watch, pieces: false, _asked: Some(asked), rest: Bytes::new() }
    }

    /// On a stream of [`Streams`].
    pub(crate) fn in_pieces(inner: ResponseBody) -> Self {
        let watch = STREAM.try_with(Clone::clone).unwrap_or_default();
        Self { inner, watch, pieces: true, _asked: None, rest: Bytes::new() }
    }
}

impl Drop for Offered {
    fn drop(&mut self) {
        if self.watch.is_over() {
            self.inner.give_up(Ended::NotTaken);
        }
    }
}

impl Body for Offered {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        if !self.pieces {
            return Pin::new(&mut self.inner).poll_frame(cx);
        }
        let mut data = std::mem::take(&mut self.rest);
        if data.is_empty() {
            self.watch.hand(None);
            match ready!(Pin::new(&mut self.inner).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(next) => data = next,
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
                end => return Poll::Ready(end),
            }
        }
        self.rest = data.split_off(data.len().min(PIECE_MAX));
        self.watch.hand(Some(Instant::now()));
        Poll::Ready(Some(Ok(Frame::data(data))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (inner, ahead) = (self.inner.size_hint(), self.rest.len() as u64);
        let mut hint = SizeHint::new();
        hint.set_lower(inner.lower() + ahead);
        if let Some(upper) = inner.upper() {
            hint.set_upper(upper + ahead);
        }
        hint
    }
}

/// The other end of a connection has to take what is written.
#[derive(Debug)]
pub(crate) struct Taken {
    watch: Watch,
    limits: Limits,
    patience: Patience,
}

impl Taken {
    pub(crate) fn new(watch: Watch, limits: Limits) -> Self {
        Self { watch, limits, patience: Patience::default() }
    }
}

impl Observer for Taken {
    fn settled(&mut self) {
        self.patience.rest();
    }

    fn waits(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        if self.watch.is_switched() {
            self.patience.rest();
            return Poll::Pending;
        }
        ready!(self.patience.poll(self.limits.idle_max, cx));
        if !self.watch.is_over() {
            self.watch.end();
            self.limits.counters.limit(NOT_TAKEN.to_owned());
        }
        let took = self.limits.idle_max.as_secs();
        let why = format!("the client took nothing of its response for {took} s");
        Poll::Ready(io::Error::new(io::ErrorKind::TimedOut, why))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn patience_counts_from_the_last_thing_that_moved() {
        let limit = Duration::from_secs(300);
        let begun = Instant::now();
        let mut patience = Patience::default();
        for moves in 0..3 {
            let wait = std::future::poll_fn(|cx| patience.poll(limit, cx));
            let rest = limit - Duration::from_secs(1);
            assert!(tokio::time::timeout(rest, wait).await.is_err(), "after {moves} moves");
            patience.rest();
        }
        let begun_again = Instant::now();
        std::future::poll_fn(|cx| patience.poll(limit, cx)).await;
        assert_eq!(begun_again.elapsed(), limit);
        assert_eq!(begun.elapsed(), limit * 4 - Duration::from_secs(3));
    }
}
