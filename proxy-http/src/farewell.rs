//! What was written last on a connection of HTTP/2: the reason for which it was ended stands in its
//! GOAWAY, and hyper's error does not repeat it.

use hyper::rt::{Read, ReadBufCursor, Write};
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};

/// Bytes that are remembered; h2's reasons are shorter.
const KEPT: usize = 32;

/// The last bytes of a connection.
#[derive(Debug, Clone, Default)]
pub(crate) struct Farewell(Arc<Mutex<Vec<u8>>>);

impl Farewell {
    /// All that is remembered.
    pub(crate) fn said(&self) -> Vec<u8> {
        self.0.lock().expect("no holder panics").clone()
    }

    fn say(&self, written: &[u8]) {
        let mut kept = self.0.lock().expect("no holder panics");
        kept.extend_from_slice(&written[written.len().saturating_sub(KEPT)..]);
        let old = kept.len().saturating_sub(KEPT);
        kept.drain(..old);
    }
}

/// A connection whose last bytes are remembered.
#[derive(Debug)]
pub(crate) struct Speaking<T> {
    pub(crate) io: T,
    pub(crate) farewell: Farewell,
}

impl<T: Read + Unpin> Read for Speaking<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<T: Write + Unpin> Write for Speaking<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.io).poll_write(cx, buf))?;
        self.farewell.say(&buf[..written]);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
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
        let written = ready!(Pin::new(&mut self.io).poll_write_vectored(cx, bufs))?;
        let mut left = written;
        for buf in bufs {
            let length = left.min(buf.len());
            self.farewell.say(&buf[..length]);
            left -= length;
        }
        Poll::Ready(Ok(written))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_bytes_are_kept_however_they_were_written() {
        let farewell = Farewell::default();
        for part in [&b"x".repeat(100)[..], b"too_many", b"_", b"", b"resets"] {
            farewell.say(part);
        }
        let said = farewell.said();
        assert_eq!(said.len(), KEPT);
        assert!(said.ends_with(b"xtoo_many_resets"), "{said:?}");
    }
}
