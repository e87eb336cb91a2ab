//! A message's body as it comes in, whose end is an end only if its sender said so.

use crate::grpc;
use crate::headers;
use crate::idle::{NOT_SENT, Patience};
use crate::serve::Limits;
use bytes::Bytes;
use http::{StatusCode, Version};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

/// A body that is being received.
#[derive(Debug)]
pub(crate) struct Received {
    inner: Incoming,
    /// hyper takes a stream that HTTP/2's `CANCEL` ended for one that ended; nobody may take a part
    /// for all.
    framed: bool,
    idle: Option<Idle>,
}

/// How long it may stand still: its length was announced, so it has no reason to rest.
#[derive(Debug)]
struct Idle {
    limits: Limits,
    patience: Patience,
}

/// Why a body ended before its time.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Broken {
    #[error("the sender ended before its message: {0}")]
    Sender(#[from] hyper::Error),
    #[error("the sender took back its message")]
    Cancelled,
    #[error("nothing of the message came for {0} s")]
    Idle(u64),
    #[error("another attempt sends this body now")]
    Superseded,
}

impl Broken {
    /// What a gRPC client is told of it.
    pub(crate) fn status(&self) -> grpc::Status {
        match self {
            Self::Sender(problem) => grpc::Status::of_broken(problem),
            Self::Cancelled => grpc::Status::Cancelled,
            Self::Superseded | Self::Idle(_) => grpc::Status::Unavailable,
        }
    }

    /// What its sender is told.
    pub(crate) fn refusal(&self) -> Refusal {
        let (status, flags) = match self {
            Self::Idle(_) => (StatusCode::REQUEST_TIMEOUT, "SI"),
            Self::Sender(_) | Self::Cancelled | Self::Superseded => (StatusCode::BAD_REQUEST, "DC"),
        };
        Refusal { status, flags, reason: format!("the request's body broke off: {self}") }
    }
}

/// How a request is answered whose body broke: its sender's doing, which says nothing about a server.
#[derive(Debug, Clone)]
pub(crate) struct Refusal {
    pub(crate) status: StatusCode,
    /// Envoy's.
    pub(crate) flags: &'static str,
    pub(crate) reason: String,
}

impl Received {
    /// A response, which may rest as long as its server likes.
    pub(crate) fn new(inner: Incoming, came: Version) -> Self {
        Self { inner, framed: came == Version::HTTP_2, idle: None }
    }

    /// A request's, which may not once its length was announced.
    pub(crate) fn request(inner: Incoming, came: Version, limits: &Limits) -> Self {
        let announced = inner.size_hint().exact().is_some();
        let idle = || Idle { limits: limits.clone(), patience: Patience::default() };
        Self { idle: announced.then(idle), ..Self::new(inner, came) }
    }
}

impl Body for Received {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let Poll::Ready(frame) = Pin::new(&mut self.inner).poll_frame(cx) else {
            let Some(idle) = self.idle.as_mut() else {
                return Poll::Pending;
            };
            ready!(idle.patience.poll(idle.limits.idle_max, cx));
            idle.limits.counters.limit(NOT_SENT.to_owned());
            let waited = idle.limits.idle_max.as_secs();
            self.idle = None;
            return Poll::Ready(Some(Err(Broken::Idle(waited))));
        };
        if let Some(idle) = &mut self.idle {
            idle.patience.rest();
        }
        Poll::Ready(match frame {
            None if self.framed && !self.inner.is_end_stream() => Some(Err(Broken::Cancelled)),
            None => None,
            Some(Ok(frame)) => match frame.into_trailers() {
                Ok(mut trailers) => {
                    headers::end_trailers(&mut trailers);
                    // Some servers of HTTP/2 (HAProxy 2.6) end a connection over empty trailers.
                    (!trailers.is_empty()).then(|| Ok(Frame::trailers(trailers)))
                }
                Err(data) => Some(Ok(data)),
            },
            Some(Err(problem)) => Some(Err(problem.into())),
        })
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
