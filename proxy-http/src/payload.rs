//! What a request carries: whole where it is short, else a stream whose beginning is remembered, so
//! that a request which nobody has served can be sent once more.

use crate::received::{Broken, Received, Refusal};
use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http_body_util::BodyExt as _;
use hyper::body::{Body, Frame, SizeHint};
use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};

/// What a request carries.
#[derive(Debug, Clone)]
pub(crate) enum Payload {
    /// All of it: may be sent again.
    Whole { data: Bytes, trailers: Option<HeaderMap> },
    /// It goes out as it comes.
    Stream(Arc<Mutex<Source>>),
}

/// Where a streamed body comes from.
#[derive(Debug)]
pub(crate) struct Source {
    /// What was read of it so far, while that is little enough to be sent again.
    kept: Option<Vec<Bytes>>,
    kept_bytes: u64,
    max: u64,
    rest: Received,
    /// Which attempt reads it; an older one has no right to it any more.
    reader: u64,
    /// All of it was read.
    ended: bool,
    /// It broke, and no attempt can be sent all of it.
    broken: Option<Refusal>,
}

/// Reads a body that says it has at most `max` bytes whole. One that does not say goes out as it comes:
/// its sender may be waiting for an answer to its beginning.
pub(crate) async fn keep(mut body: Received, max: u64) -> Result<Payload, Broken> {
    if body.is_end_stream() {
        return Ok(Payload::Whole { data: Bytes::new(), trailers: None });
    }
    let short = body.size_hint().upper().is_some_and(|upper| upper <= max);
    if !short {
        return Ok(Payload::stream(body, max));
    }
    let (mut kept, mut trailers) = (BytesMut::new(), None);
    while let Some(frame) = body.frame().await {
        match frame?.into_data() {
            Ok(data) => kept.extend_from_slice(&data),
            Err(frame) => trailers = frame.into_trailers().ok(),
        }
    }
    Ok(Payload::Whole { data: kept.freeze(), trailers })
}

impl Payload {
    fn stream(rest: Received, max: u64) -> Self {
        let kept = Some(Vec::new());
        let (reader, ended) = (0, false);
        let source = Source { kept, kept_bytes: 0, max, rest, reader, ended, broken: None };
        Self::Stream(Arc::new(Mutex::new(source)))
    }

    /// All of it is here, and two may send it at once.
    pub(crate) fn is_whole(&self) -> bool {
        matches!(self, Self::Whole { .. })
    }

    /// All of it has come and is remembered: it can be sent again once nobody else sends it.
    pub(crate) fn is_ended(&self) -> bool {
        match self {
            Self::Whole { .. } => true,
            Self::Stream(source) => {
                let source = source.lock().expect("no holder panics");
                source.kept.is_some() && source.ended
            }
        }
    }

    /// It can be sent from its beginning: again, if it was sent before.
    pub(crate) fn is_complete(&self) -> bool {
        match self {
            Self::Whole { .. } => true,
            Self::Stream(source) => source.lock().expect("no holder panics").kept.is_some(),
        }
    }

    /// Its body, from the beginning; whoever was given one before reads no more of a stream. `sent`
    /// counts the bytes of this attempt.
    pub(crate) fn body(&self, sent: &Arc<AtomicU64>) -> RequestBody {
        match self {
            Self::Whole { data, trailers } => {
                sent.store(data.len() as u64, Ordering::Relaxed);
                RequestBody::Whole { data: data.clone(), trailers: trailers.clone() }
            }
            Self::Stream(source) => {
                let mut held = source.lock().expect("no holder panics");
                held.reader += 1;
                let ahead: VecDeque<Bytes> = held.kept.iter().flatten().cloned().collect();
                sent.store(0, Ordering::Relaxed);
                let (reader, source) = (held.reader, source.clone());
                RequestBody::Stream { ahead, source, reader, sent: sent.clone() }
            }
        }
    }

    /// Its sender broke off: what the sender is told.
    pub(crate) fn broken(&self) -> Option<Refusal> {
        match self {
            Self::Whole { .. } => None,
            Self::Stream(source) => source.lock().expect("no holder panics").broken.clone(),
        }
    }

    /// It has been served: its beginning is not wanted any more.
    pub(crate) fn forget(&self) {
        if let Self::Stream(source) = self {
            source.lock().expect("no holder panics").kept = None;
        }
    }
}

/// A request's body towards the next hop.
#[derive(Debug)]
pub(crate) enum RequestBody {
    Whole {
        data: Bytes,
        trailers: Option<HeaderMap>,
    },
    Stream {
        /// What was read already.
        ahead: VecDeque<Bytes>,
        source: Arc<Mutex<Source>>,
        reader: u64,
        /// Bytes that went out.
        sent: Arc<AtomicU64>,
    },
}

impl Source {
    fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
        reader: u64,
    ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        if self.reader != reader {
            return Poll::Ready(Some(Err(Broken::Superseded)));
        }
        if self.ended {
            return Poll::Ready(None);
        }
        let frame = ready!(Pin::new(&mut self.rest).poll_frame(cx));
        match &frame {
            None => self.ended = true,
            Some(Ok(frame)) => match (frame.data_ref(), &mut self.kept) {
                (Some(data), Some(kept)) => {
                    self.kept_bytes += data.len() as u64;
                    kept.push(data.clone());
                    if self.kept_bytes > self.max {
                        self.kept = None;
                    }
                }
                // Trailers cannot be had twice.
                (None, _) => self.kept = None,
                (Some(_), None) => {}
            },
            Some(Err(broken)) => {
                self.kept = None;
                self.broken = Some(broken.refusal());
            }
        }
        Poll::Ready(frame)
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        match self.get_mut() {
            Self::Whole { data, trailers } => {
                let data = std::mem::take(data);
                if !data.is_empty() {
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Poll::Ready(trailers.take().map(|trailers| Ok(Frame::trailers(trailers))))
            }
            Self::Stream { ahead, source, reader, sent } => {
                let frame = match ahead.pop_front() {
                    Some(data) => Some(Ok(Frame::data(data))),
                    None => {
                        let mut source = source.lock().expect("no holder panics");
                        ready!(source.poll_next(cx, *reader))
                    }
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
            Self::Whole { data, trailers } => data.is_empty() && trailers.is_none(),
            Self::Stream { ahead, source, .. } => {
                let source = source.lock().expect("no holder panics");
                ahead.is_empty() && (source.ended || source.rest.is_end_stream())
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole { data, .. } => SizeHint::with_exact(data.len() as u64),
            Self::Stream { ahead, source, .. } => {
                let ahead = ahead.iter().map(Bytes::len).sum::<usize>() as u64;
                let rest = source.lock().expect("no holder panics").rest.size_hint();
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
