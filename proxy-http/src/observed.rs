//! A connection whose reads and writes are told to somebody, for whom a write that waits can be ended.

use hyper::rt::{Read, ReadBufCursor, Write};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

/// Who is told; of a connection with two, the inner one first.
pub(crate) trait Observer: Unpin {
    /// A read came to its end, well or ill.
    fn read(&mut self) {}

    /// These octets were written.
    fn wrote(&mut self, _octets: &[u8]) {}

    /// A write, a flush or a shutdown came to its end, well or ill.
    fn settled(&mut self) {}

    /// One of them waits, which fails once this is ready.
    fn waits(&mut self, _cx: &mut Context<'_>) -> Poll<io::Error> {
        Poll::Pending
    }
}

/// The connection.
#[derive(Debug)]
pub(crate) struct Observed<T, O> {
    pub(crate) io: T,
    pub(crate) observer: O,
}

impl<T, O: Observer> Observed<T, O> {
    fn tell<N>(
        &mut self,
        outcome: Poll<io::Result<N>>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<N>> {
        if outcome.is_pending() {
            return self.observer.waits(cx).map(Err);
        }
        self.observer.settled();
        outcome
    }
}

impl<T: Read + Unpin, O: Observer> Read for Observed<T, O> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let read = ready!(Pin::new(&mut self.io).poll_read(cx, buf));
        self.observer.read();
        Poll::Ready(read)
    }
}

impl<T: Write + Unpin, O: Observer> Write for Observed<T, O> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.io).poll_write(cx, buf);
        if let Poll::Ready(Ok(written)) = outcome {
            self.observer.wrote(&buf[..written]);
        }
        self.tell(outcome, cx)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.io).poll_flush(cx);
        self.tell(outcome, cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.io).poll_shutdown(cx);
        self.tell(outcome, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        if let Poll::Ready(Ok(mut left)) = outcome {
            for buf in bufs {
                let length = left.min(buf.len());
                self.observer.wrote(&buf[..length]);
                left -= length;
            }
        }
        self.tell(outcome, cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper_util::rt::TokioIo;
    use std::future::poll_fn;

    #[derive(Default)]
    struct Told(Vec<u8>);

    impl Observer for Told {
        fn wrote(&mut self, octets: &[u8]) {
            self.0.extend_from_slice(octets);
        }
    }

    #[tokio::test]
    async fn what_was_written_is_told_and_no_more() {
        let (io, _other) = tokio::io::duplex(8);
        let mut io = Observed { io: TokioIo::new(io), observer: Told::default() };
        assert!(io.is_write_vectored());
        let bufs = [&b"ab"[..], b"", b"cd", b"e"].map(IoSlice::new);
        let wrote = poll_fn(|cx| Pin::new(&mut io).poll_write_vectored(cx, &bufs)).await;
        assert_eq!((wrote.unwrap(), &io.observer.0[..]), (5, &b"abcde"[..]));
        // There is room for three.
        let wrote = poll_fn(|cx| Pin::new(&mut io).poll_write_vectored(cx, &bufs)).await;
        assert_eq!((wrote.unwrap(), &io.observer.0[..]), (3, &b"abcdeabc"[..]));
    }
}
