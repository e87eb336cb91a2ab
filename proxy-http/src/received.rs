//! A message's body as it comes in, whose end is an end only if its sender said so.

use crate::grpc;
use bytes::Bytes;
use http::Version;
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
}

/// Why a body ended before its time.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Broken {
    #[error("the sender ended before its message: {0}")]
    Sender(#[from] hyper::Error),
    #[error("the sender took back its message")]
    Cancelled,
    #[error("another attempt sends this body now")]
    Superseded,
}

impl Broken {
    /// What a gRPC client is told of it.
    pub(crate) fn status(&self) -> grpc::Status {
        match self {
            Self::Sender(problem) => grpc::Status::of_broken(problem),
            Self::Cancelled => grpc::Status::Cancelled,
            Self::Superseded => grpc::Status::Unavailable,
        }
    }
}

impl Received {
    pub(crate) fn new(inner: Incoming, came: Version) -> Self {
        Self { inner, framed: came == Version::HTTP_2 }
    }
}

impl Body for Received {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let frame = ready!(Pin::new(&mut self.inner).poll_frame(cx));
        Poll::Ready(match frame {
            None if self.framed && !self.inner.is_end_stream() => Some(Err(Broken::Cancelled)),
            None => None,
            Some(frame) => Some(frame.map_err(Broken::from)),
        })
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
