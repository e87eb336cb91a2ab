//! hyper's deadline for a request head, made to leave idle connections alone.
//!
//! hyper starts that clock when it begins to wait for a request, so that a connection kept for the
//! next request would be closed after the deadline, and a client's next POST lost in the race.

use crate::observed::Observer;
use hyper::rt::{Sleep, Timer};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::time::Instant;

/// From the first byte of a request head to its last; twice that at most, as clocks are coarse.
pub(crate) const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// A connection without a request is closed after this (Envoy's default).
pub(crate) const IDLE_TIMEOUT: Duration = Duration::from_secs(3_600);
/// Name of the limit where a client begins a request head and does not end it in time.
pub(crate) const TOO_SLOW: &str = "head_timeout";
/// Name of the limit where a client begins no request for too long.
pub(crate) const TOO_IDLE: &str = "idle_timeout";

/// Counts the reads of one connection.
#[derive(Debug, Clone, Default)]
pub(crate) struct Reads(Arc<Seen>);

#[derive(Debug, Default)]
struct Seen {
    reads: AtomicU64,
    /// A wait ran out though bytes had come.
    slow: AtomicBool,
}

impl Reads {
    pub(crate) fn count(&self) -> u64 {
        self.0.reads.load(Ordering::Relaxed)
    }

    /// The name of the limit whose time ran out: hyper knows only that one did.
    pub(crate) fn limit(&self) -> &'static str {
        if self.0.slow.load(Ordering::Relaxed) { TOO_SLOW } else { TOO_IDLE }
    }
}

impl Observer for Reads {
    fn read(&mut self) {
        self.0.reads.fetch_add(1, Ordering::Relaxed);
    }
}

/// The timer hyper is given for one connection.
#[derive(Debug)]
pub(crate) struct HeadTimer(pub(crate) Reads);

impl Timer for HeadTimer {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Sleep>> {
        self.sleep_until((Instant::now() + duration).into_std())
    }

    /// The clock that tests may stop.
    fn now(&self) -> std::time::Instant {
        Instant::now().into_std()
    }

    fn sleep_until(&self, deadline: std::time::Instant) -> Pin<Box<dyn Sleep>> {
        Box::pin(HeadSleep {
            inner: Box::pin(tokio::time::sleep_until(deadline.into())),
            reads: self.0.clone(),
            seen: self.0.count(),
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
            let reads = self.reads.count();
            let now = Instant::now();
            if self.begun || now >= self.idle_until {
                self.reads.0.slow.store(self.begun, Ordering::Relaxed);
                return Poll::Ready(());
            }
            self.begun = reads != self.seen;
            let next = now + HEAD_TIMEOUT;
            self.inner.as_mut().reset(next);
        }
    }
}
