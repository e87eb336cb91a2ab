//! Connections of HTTP/1 whose ends are out of step: a server that listens no more has been understood
//! only once its last words are read, and a client that still speaks hears nothing from a socket that is
//! closed under it.

use crate::idle::Watch;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

/// Who goes on speaking after we have said all is heard out until it is silent for this long …
const SILENCE: Duration = Duration::from_secs(1);
/// … and no longer than this in all.
const HEARD_MAX: Duration = Duration::from_secs(30);

/// A connection to a server. What can be written no more is taken and forgotten until all that the server
/// said is read: it may have answered a request of which it did not want the rest (RFC 9112 section 9.5).
/// A write that waited for that would wait for ever where nobody reads any more; one after [`HEARD_MAX`]
/// fails, so that no upload is endless.
#[derive(Debug)]
pub(crate) struct LastWords<T> {
    io: T,
    /// Why nothing can be written, and since when.
    deaf: Option<(io::ErrorKind, Instant)>,
    /// All that it said was read.
    silent: bool,
}

impl<T> LastWords<T> {
    pub(crate) fn new(io: T) -> Self {
        Self { io, deaf: None, silent: false }
    }

    /// What a write comes to that had this outcome; `all`: as if all of it was written.
    fn settle<N>(&mut self, outcome: Poll<io::Result<N>>, all: N) -> Poll<io::Result<N>> {
        let Poll::Ready(Err(problem)) = outcome else { return outcome };
        self.deaf = Some((problem.kind(), Instant::now()));
        self.forget(all)
    }

    fn forget<N>(&self, all: N) -> Poll<io::Result<N>> {
        Poll::Ready(match self.deaf {
            Some((problem, since)) if self.silent || since.elapsed() >= HEARD_MAX => {
                Err(problem.into())
            }
            Some(_) | None => Ok(all),
        })
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for LastWords<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = ready!(Pin::new(&mut self.io).poll_read(cx, buf));
        self.silent |= read.is_err() || (buf.filled().len() == before && buf.remaining() > 0);
        Poll::Ready(read)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for LastWords<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.deaf.is_some() {
            return self.forget(buf.len());
        }
        let outcome = Pin::new(&mut self.io).poll_write(cx, buf);
        self.settle(outcome, buf.len())
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.deaf.is_some() {
            return self.forget(());
        }
        let outcome = Pin::new(&mut self.io).poll_flush(cx);
        self.settle(outcome, ())
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // There is nothing left to be said to who hears nothing.
        if self.deaf.is_some() {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let all = bufs.iter().map(|buf| buf.len()).sum();
        if self.deaf.is_some() {
            return self.forget(all);
        }
        let outcome = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        self.settle(outcome, all)
    }
}

/// A connection from a client. Shut down, it is closed once the client has nothing more to say, or a
/// moment later: a socket that is closed with bytes unread resets, and what was written to it last may
/// be lost with it (RFC 9112 section 9.6).
#[derive(Debug)]
pub(crate) struct HeardOut<T> {
    io: T,
    watch: Watch,
    closing: Option<Closing>,
}

#[derive(Debug)]
struct Closing {
    until: Instant,
    silence: Pin<Box<Sleep>>,
}

impl<T> HeardOut<T> {
    /// `watch` knows when it has become another protocol's, whose ends are its own.
    pub(crate) fn new(io: T, watch: Watch) -> Self {
        Self { io, watch, closing: None }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for HeardOut<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncWrite for HeardOut<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { io, watch, closing } = self.get_mut();
        if closing.is_none() {
            ready!(Pin::new(&mut *io).poll_shutdown(cx))?;
            if watch.is_switched() {
                return Poll::Ready(Ok(()));
            }
            // It has taken all.
            watch.forget();
        }
        let Closing { until, silence } = closing.get_or_insert_with(|| {
            let now = Instant::now();
            Closing { until: now + HEARD_MAX, silence: Box::pin(sleep_until(now + SILENCE)) }
        });
        let mut octets = [0; 8 * 1024];
        loop {
            let mut rest = ReadBuf::new(&mut octets);
            match Pin::new(&mut *io).poll_read(cx, &mut rest) {
                Poll::Pending => return silence.as_mut().poll(cx).map(Ok),
                Poll::Ready(Ok(())) if !rest.filled().is_empty() => {
                    let now = Instant::now();
                    if now >= *until {
                        return Poll::Ready(Ok(()));
                    }
                    silence.as_mut().reset((now + SILENCE).min(*until));
                }
                // It has left, one way or the other.
                Poll::Ready(_) => return Poll::Ready(Ok(())),
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    #[tokio::test]
    async fn a_write_fails_once_the_last_words_are_read() {
        let (io, mut other) = tokio::io::duplex(1024);
        other.write_all(b"enough").await.unwrap();
        drop(other);
        let mut io = LastWords::new(io);
        // Nobody hears it, and nobody has to read before it is written.
        io.write_all(b"and so on").await.unwrap();
        io.flush().await.unwrap();
        let mut said = String::new();
        io.read_to_string(&mut said).await.unwrap();
        assert_eq!(said, "enough");
        for _ in 0..2 {
            let problem = io.write_all(b"and so on").await.unwrap_err();
            assert_eq!(problem.kind(), io::ErrorKind::BrokenPipe);
        }
        io.shutdown().await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_speaks_to_the_deaf_for_ever() {
        let (io, mut other) = tokio::io::duplex(1024);
        other.write_all(b"enough").await.unwrap();
        drop(other);
        let (mut io, begun) = (LastWords::new(io), Instant::now());
        while io.write_all(b"and so on").await.is_ok() {
            tokio::time::sleep(SILENCE).await;
        }
        assert_eq!(begun.elapsed(), HEARD_MAX);
    }

    #[tokio::test(start_paused = true)]
    async fn who_goes_on_is_heard_out_but_not_for_ever() {
        for (pause_ms, octets, least, most) in [
            // Silent, and gone.
            (0, 0, Duration::ZERO, Duration::ZERO),
            // It speaks for 3 s, then leaves.
            (500, 6, Duration::from_secs(3), Duration::from_secs(3)),
            // It falls silent.
            (1_500, 1, SILENCE, SILENCE),
            // It never ends.
            (500, 1_000, HEARD_MAX, HEARD_MAX),
        ] {
            let (io, mut other) = tokio::io::duplex(1024);
            let client = tokio::spawn(async move {
                for _ in 0..octets {
                    tokio::time::sleep(Duration::from_millis(pause_ms)).await;
                    if other.write_u8(b'x').await.is_err() {
                        return;
                    }
                }
            });
            let begun = Instant::now();
            let mut io = HeardOut::new(io, Watch::default());
            io.shutdown().await.unwrap();
            let took = begun.elapsed();
            assert!(took >= least && took <= most + Duration::from_millis(5), "{took:?}");
            drop(io);
            client.await.unwrap();
        }
    }

    #[tokio::test]
    async fn what_is_no_http_any_more_keeps_what_its_client_says() {
        let (io, mut other) = tokio::io::duplex(1024);
        let watch = Watch::default();
        watch.forget();
        let mut io = HeardOut::new(io, watch);
        other.write_all(b"mine").await.unwrap();
        io.shutdown().await.unwrap();
        let mut said = [0; 4];
        io.read_exact(&mut said).await.unwrap();
        assert_eq!(&said, b"mine");
    }
}
