//! Responses on their way back, and what is to be done at their end.

use crate::grpc;
use crate::received::{Broken, Received};
use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use std::future::Future as _;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::time::Sleep;

/// Why a body ended early; hyper cuts the connection then, so that nobody takes a part for all.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Cut {
    #[error(transparent)]
    Sender(#[from] Broken),
    #[error("the request's time was over")]
    TimedOut,
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
    /// The client took nothing of it for too long.
    NotTaken,
}

impl Ended {
    /// Envoy's flags for the end of a response that had begun.
    pub(crate) fn flags(self) -> &'static str {
        match self {
            Self::Whole => "",
            Self::UpstreamFailed => "UC",
            Self::ClientLeft => "DC",
            Self::TimedOut => "UT",
            Self::NotTaken => "SI",
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
    inner: Received,
    deadline: Option<Pin<Box<Sleep>>>,
    passed: Passed,
    /// A gRPC call's client is told of an early end in trailers, which it can make sense of.
    grpc: bool,
    finish: Option<Box<dyn FnOnce(Ended, Passed) + Send>>,
}

impl ResponseBody {
    /// Nobody takes it: what is told of it is this end.
    pub(crate) fn give_up(&mut self, ended: Ended) {
        if let Self::Relay(relay) = self {
            relay.end(ended);
        }
    }
}

/// What went by.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Passed {
    pub(crate) bytes: u64,
    /// `grpc-status` of the trailers.
    pub(crate) grpc_status: Option<u16>,
}

impl Relay {
    /// `finish` is called once, with how it ended and what passed.
    pub(crate) fn new(
        inner: Received,
        grpc: bool,
        deadline: Option<tokio::time::Instant>,
        finish: impl FnOnce(Ended, Passed) + Send + 'static,
    ) -> Self {
        let deadline = deadline.map(|at| Box::pin(tokio::time::sleep_until(at)));
        let (passed, finish) = (Passed::default(), Some(Box::new(finish) as Box<_>));
        let mut relay = Self { inner, deadline, passed, grpc, finish };
        // hyper does not poll a body that says it is over.
        if relay.inner.is_end_stream() {
            relay.end(Ended::Whole);
        }
        relay
    }

    fn end(&mut self, ended: Ended) {
        if let Some(finish) = self.finish.take() {
            finish(ended, self.passed);
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.end(Ended::ClientLeft);
    }
}

impl Relay {
    /// It ends here: with trailers for a gRPC client, cut for all others.
    fn cut(&mut self, ended: Ended, status: grpc::Status, cut: Cut) -> Result<Frame<Bytes>, Cut> {
        if !self.grpc || self.finish.is_none() {
            self.end(ended);
            return Err(cut);
        }
        self.passed.grpc_status = Some(status as u16);
        self.end(ended);
        Ok(Frame::trailers(grpc::trailers(status, &cut.to_string())))
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
        if relay.finish.is_none() && relay.grpc {
            // Its end was told, by the upstream or by us.
            return Poll::Ready(None);
        }
        let over = |at: &mut Pin<Box<Sleep>>| at.as_mut().poll(cx).is_ready();
        if relay.deadline.as_mut().is_some_and(over) {
            let cut = relay.cut(Ended::TimedOut, grpc::Status::DeadlineExceeded, Cut::TimedOut);
            return Poll::Ready(Some(cut));
        }
        let frame = match ready!(Pin::new(&mut relay.inner).poll_frame(cx)) {
            None => {
                relay.end(Ended::Whole);
                None
            }
            Some(Err(problem)) => {
                let status = problem.status();
                Some(relay.cut(Ended::UpstreamFailed, status, problem.into()))
            }
            Some(Ok(frame)) => {
                relay.passed.bytes += frame.data_ref().map_or(0, Bytes::len) as u64;
                if let Some(trailers) = frame.trailers_ref() {
                    relay.passed.grpc_status = grpc::status_in(trailers);
                }
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
            Self::Relay(relay) => relay.finish.is_none() || relay.inner.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Local(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Relay(relay) => relay.inner.size_hint(),
        }
    }
}
