//! Bodies on their way: kept whole where they may be sent twice, streamed where they are longer.

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use std::future::Future as _;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use tokio::time::Sleep;

/// Why a body ended early; hyper cuts the connection then, so that nobody takes a part for all.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Cut {
    #[error("the sender ended before its message: {0}")]
    Sender(#[from] hyper::Error),
    #[error("the request's time was over")]
    TimedOut,
}

/// What a request carries.
#[derive(Debug)]
pub(crate) enum Payload {
    /// All of it: may be sent again.
    Whole(Bytes),
    /// Some of it at most: goes out once.
    Stream { prefix: Bytes, rest: Incoming },
}

/// Reads a body that is to be kept whole: one that says it has at most `max` bytes, or (`patient`)
/// turns out to. Trailers of a body that is kept are dropped.
pub(crate) async fn keep(mut body: Incoming, max: u64, patient: bool) -> hyper::Result<Payload> {
    if body.is_end_stream() {
        return Ok(Payload::Whole(Bytes::new()));
    }
    let short = body.size_hint().upper().is_some_and(|upper| upper <= max);
    if !short && !patient {
        return Ok(Payload::Stream { prefix: Bytes::new(), rest: body });
    }
    if body.size_hint().lower() > max {
        return Ok(Payload::Stream { prefix: Bytes::new(), rest: body });
    }
    let mut kept = BytesMut::new();
    while let Some(frame) = body.frame().await {
        if let Some(data) = frame?.data_ref() {
            kept.extend_from_slice(data);
        }
        if kept.len() as u64 > max {
            return Ok(Payload::Stream { prefix: kept.freeze(), rest: body });
        }
    }
    Ok(Payload::Whole(kept.freeze()))
}

/// A request's body towards the next hop.
#[derive(Debug)]
pub(crate) enum RequestBody {
    Whole(Bytes),
    Stream {
        prefix: Bytes,
        rest: Incoming,
        /// Bytes that went out.
        sent: Arc<AtomicU64>,
    },
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<hyper::Result<Frame<Bytes>>>> {
        match self.get_mut() {
            Self::Whole(bytes) => {
                let bytes = std::mem::take(bytes);
                Poll::Ready((!bytes.is_empty()).then(|| Ok(Frame::data(bytes))))
            }
            Self::Stream { prefix, rest, sent } => {
                let frame = if prefix.is_empty() {
                    ready!(Pin::new(rest).poll_frame(cx))
                } else {
                    Some(Ok(Frame::data(std::mem::take(prefix))))
                };
                if let Some(Ok(frame)) = &frame {
                    let length = frame.data_ref().map_or(0, Bytes::len) as u64;
                    sent.fetch_add(length, Ordering::Relaxed);
                }
                Poll::Ready(frame)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(bytes) => bytes.is_empty(),
            Self::Stream { prefix, rest, .. } => prefix.is_empty() && rest.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Stream { prefix, rest, .. } => {
                let ahead = prefix.len() as u64;
                let rest = rest.size_hint();
                let mut hint = SizeHint::new();
                hint.set_lower(rest.lower() + ahead);
                if let Some(upper) = rest.upper() {
                    hint.set_upper(upper + ahead);
                }
                hint
            }
        }
    }
}

/// How a relayed response ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    Whole,
    /// The upstream broke off after the response had begun.
    UpstreamFailed,
    /// The client left before its end.
    ClientLeft,
    /// The route's time was over.
    TimedOut,
}

impl Ended {
    /// Envoy's flags for the end of a response that had begun.
    pub(crate) fn flags(self) -> &'static str {
        match self {
            Self::Whole => "",
            Self::UpstreamFailed => "UC",
            Self::ClientLeft => "DC",
            Self::TimedOut => "UT",
        }
    }
}

/// A response's body towards the client.
pub(crate) enum ResponseBody {
    /// A sentence of our own.
    Local(Bytes),
    Relay(Box<Relay>),
}

/// An upstream's body, and what is to be done at its end.
pub(crate) struct Relay {
    inner: Incoming,
    deadline: Option<Pin<Box<Sleep>>>,
    bytes: u64,
    finish: Option<Box<dyn FnOnce(Ended, u64) + Send>>,
}

impl Relay {
    /// `finish` is called once, with how it ended and the bytes that passed.
    pub(crate) fn new(
        inner: Incoming,
        deadline: Option<tokio::time::Instant>,
        finish: impl FnOnce(Ended, u64) + Send + 'static,
    ) -> Self {
        let deadline = deadline.map(|at| Box::pin(tokio::time::sleep_until(at)));
        let mut relay = Self { inner, deadline, bytes: 0, finish: Some(Box::new(finish)) };
        // hyper does not poll a body that says it is over.
        if relay.inner.is_end_stream() {
            relay.end(Ended::Whole);
        }
        relay
    }

    fn end(&mut self, ended: Ended) {
        if let Some(finish) = self.finish.take() {
            finish(ended, self.bytes);
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.end(Ended::ClientLeft);
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        let relay = match self.get_mut() {
            Self::Local(bytes) => {
                let bytes = std::mem::take(bytes);
                return Poll::Ready((!bytes.is_empty()).then(|| Ok(Frame::data(bytes))));
            }
            Self::Relay(relay) => relay,
        };
        let over = |at: &mut Pin<Box<Sleep>>| at.as_mut().poll(cx).is_ready();
        if relay.deadline.as_mut().is_some_and(over) {
            relay.end(Ended::TimedOut);
            return Poll::Ready(Some(Err(Cut::TimedOut)));
        }
        let frame = match ready!(Pin::new(&mut relay.inner).poll_frame(cx)) {
            None => {
                relay.end(Ended::Whole);
                None
            }
            Some(Err(problem)) => {
                relay.end(Ended::UpstreamFailed);
                Some(Err(problem.into()))
            }
            Some(Ok(frame)) => {
                relay.bytes += frame.data_ref().map_or(0, Bytes::len) as u64;
                if relay.inner.is_end_stream() {
                    relay.end(Ended::Whole);
                }
                Some(Ok(frame))
            }
        };
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Local(bytes) => bytes.is_empty(),
            Self::Relay(relay) => relay.inner.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Local(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Relay(relay) => relay.inner.size_hint(),
        }
    }
}
