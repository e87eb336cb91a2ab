//! hyper's deadline for a request head, made to leave idle connections alone.
//!
//! hyper starts that clock when it begins to wait for a request, so that a connection kept for the
//! next request would be closed after the deadline, and a client's next POST lost in the race.

use hyper::rt::{Read, ReadBufCursor, Sleep, Timer, Write};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

/// From the first byte of a request head to its last; twice that at most, as clocks are coarse.
pub(crate) const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// A connection without a request is closed after this (Envoy's default).
pub(crate) const IDLE_TIMEOUT: Duration = Duration::from_secs(3_600);

/// Counts the reads of one connection.
#[derive(Debug, Clone, Default)]
pub(crate) struct Reads(Arc<AtomicU64>);

/// A connection whose reads are counted.
#[derive(Debug)]
pub(crate) struct Watched<T> {
    pub(crate) io: T,
    pub(crate) reads: Reads,
}

impl<T: Read + Unpin> Read for Watched<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: ReadBufCursor<'_>,
    ) -> Poll<std::io::Result<()>> {
        let read = ready!(Pin::new(&mut self.io).poll_read(cx, buf));
        self.reads.0.fetch_add(1, Ordering::Relaxed);
        Poll::Ready(read)
    }
}

impl<T: Write + Unpin> Write for Watched<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }
}

/// The timer hyper is given for one connection.
#[derive(Debug)]
pub(crate) struct HeadTimer(pub(crate) Reads);

impl Timer for HeadTimer {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Sleep>> {
        self.sleep_until(Instant::now() + duration)
    }

    fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn Sleep>> {
        Box::pin(HeadSleep {
            inner: Box::pin(tokio::time::sleep_until(deadline.into())),
            reads: self.0.clone(),
            seen: self.0.0.load(Ordering::Relaxed),
            begun: false,
            idle_until: Instant::now() + IDLE_TIMEOUT,
        })
    }
}

struct HeadSleep {
    inner: Pin<Box<tokio::time::Sleep>>,
    reads: Reads,
    /// Reads when the wait began, or when it was last looked at.
    seen: u64,
    /// Bytes have come, so the next ring is final.
    begun: bool,
    idle_until: Instant,
}

impl Sleep for HeadSleep {}

impl Future for HeadSleep {
    type Output = ();
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            ready!(self.inner.as_mut().poll(cx));
            let reads = self.reads.0.load(Ordering::Relaxed);
            let now = Instant::now();
            if self.begun || now >= self.idle_until {
                return Poll::Ready(());
            }
            self.begun = reads != self.seen;
            let next = now + HEAD_TIMEOUT;
            self.inner.as_mut().reset(next.into());
        }
    }
}
