//! Bytes both ways with half-close, and who ended it.
//!
//! Memory is held only while bytes are on their way: a read goes into a buffer of the thread, and
//! only what the other side would not take is kept. Between two sockets bulk goes through a pipe
//! (splice(2)) and never enters this process.

mod pipe;

use std::cell::RefCell;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};

/// Bytes read at once at first, and after so many bytes of a direction (ztunnel's growth).
const FIRST: usize = 16 * 1024;
const LARGE: usize = 64 * 1024;
const LARGE_AFTER: u64 = 128 * 1024;
/// Reads of a direction before it gives its thread to others.
const TURNS: u32 = 16;

/// How a tunnel went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transferred {
    /// Bytes from `client` to `server`.
    pub sent: u64,
    /// Bytes from `server` to `client`.
    pub received: u64,
    pub end: End,
}

/// What ended a tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Both sides had said all.
    Finished,
    ClientFailed,
    ServerFailed,
    /// No byte either way for the idle time.
    Idle,
}

/// Copies until both sides have ended, one has failed, or nothing moved for `idle`.
pub async fn copy<A, B>(client: &mut A, server: &mut B, idle: Duration) -> Transferred
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let (mut there, mut back) = (Copy::default(), Copy::default());
    run(idle, |cx| {
        let there = there.poll(cx, client, server);
        let back = back.poll(cx, server, client);
        (there, back)
    })
    .await
    .0
}

/// The same between two sockets: bulk is spliced, so that its bytes stay in the kernel. A client that
/// failed before it had said all resets the server, so that no port of ours is kept for it: a stranger
/// who resets one connection after the other would use up all (RFC 9293, TIME-WAIT). Nobody else is
/// reset, since that throws away what is on its way to him.
pub async fn splice(client: &mut TcpStream, server: &mut TcpStream, idle: Duration) -> Transferred {
    let (mut there, mut back) = (pipe::Splice::default(), pipe::Splice::default());
    let (transferred, there) = run(idle, |cx| {
        let there = there.poll(cx, client, server);
        let back = back.poll(cx, server, client);
        (there, back)
    })
    .await;
    if transferred.end == End::ClientFailed && !matches!(there, Step::Done(_)) {
        reset(server);
    }
    transferred
}

/// The close that follows sends RST instead of FIN, and drops what was not sent yet.
pub fn reset(stream: &TcpStream) {
    // A socket that is gone already needs no reset.
    let _ = socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

/// Where one direction stands after a poll.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// Waits for one side; so many bytes have moved so far.
    Waiting(u64),
    /// Its reader has ended and the writer was told.
    Done(u64),
    /// Reading failed.
    ReadFailed(u64),
    /// Writing failed.
    WriteFailed(u64),
}

impl Step {
    fn moved(self) -> u64 {
        match self {
            Self::Waiting(n) | Self::Done(n) | Self::ReadFailed(n) | Self::WriteFailed(n) => n,
        }
    }
}

/// Drives two directions, with one timer for both; and where the first of them stood at the end.
async fn run(
    idle: Duration,
    mut step: impl FnMut(&mut Context<'_>) -> (Step, Step),
) -> (Transferred, Step) {
    let mut timer = std::pin::pin!(tokio::time::sleep(idle));
    let (mut moved, mut moved_at) = (0, Instant::now());
    std::future::poll_fn(|cx| {
        let (there, back) = step(cx);
        let (sent, received) = (there.moved(), back.moved());
        let end = match (there, back) {
            (Step::ReadFailed(_), _) | (_, Step::WriteFailed(_)) => End::ClientFailed,
            (_, Step::ReadFailed(_)) | (Step::WriteFailed(_), _) => End::ServerFailed,
            (Step::Done(_), Step::Done(_)) => End::Finished,
            (Step::Waiting(_) | Step::Done(_), Step::Waiting(_) | Step::Done(_)) => {
                if sent + received != moved {
                    (moved, moved_at) = (sent + received, Instant::now());
                }
                ready!(rest(timer.as_mut(), moved_at + idle, cx));
                End::Idle
            }
        };
        Poll::Ready((Transferred { sent, received, end }, there))
    })
    .await
}

/// Ready once `due` has passed. The timer is moved only when it fires, not with every byte.
fn rest(mut timer: Pin<&mut Sleep>, due: Instant, cx: &mut Context<'_>) -> Poll<()> {
    loop {
        ready!(timer.as_mut().poll(cx));
        if Instant::now() >= due {
            return Poll::Ready(());
        }
        timer.as_mut().reset(due);
    }
}

thread_local! {
    /// Where reads go first; never held over a wait.
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; LARGE]);
}

/// One direction through this process.
#[derive(Debug, Default)]
struct Copy {
    moved: u64,
    /// Read, and not yet taken by the writer; empty in most waits.
    kept: Vec<u8>,
    written: usize,
    read_ended: bool,
    unflushed: bool,
    done: bool,
}

impl Copy {
    fn poll<R, W>(&mut self, cx: &mut Context<'_>, reader: &mut R, writer: &mut W) -> Step
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        let mut turns = 0;
        loop {
            if self.done {
                return Step::Done(self.moved);
            }
            while self.written < self.kept.len() {
                match Pin::new(&mut *writer).poll_write(cx, &self.kept[self.written..]) {
                    Poll::Pending => return Step::Waiting(self.moved),
                    Poll::Ready(Ok(0) | Err(_)) => return Step::WriteFailed(self.moved),
                    Poll::Ready(Ok(n)) => {
                        self.written += n;
                        self.moved += n as u64;
                    }
                }
            }
            // Gives the memory back: an idle tunnel holds none.
            (self.kept, self.written) = (Vec::new(), 0);
            if self.read_ended {
                match Pin::new(&mut *writer).poll_shutdown(cx) {
                    Poll::Pending => return Step::Waiting(self.moved),
                    // The other side has gone already: then it need not be told.
                    Poll::Ready(Ok(()) | Err(_)) => self.done = true,
                }
                continue;
            }
            turns += 1;
            if turns > TURNS {
                cx.waker().wake_by_ref();
                return Step::Waiting(self.moved);
            }
            match self.read(cx, reader, writer) {
                Poll::Ready(Some(step)) => return step,
                Poll::Ready(None) => {}
                Poll::Pending => {
                    if self.unflushed {
                        match Pin::new(&mut *writer).poll_flush(cx) {
                            Poll::Pending => {}
                            Poll::Ready(Err(_)) => return Step::WriteFailed(self.moved),
                            Poll::Ready(Ok(())) => self.unflushed = false,
                        }
                    }
                    return Step::Waiting(self.moved);
                }
            }
        }
    }

    /// One read, and at once as much of a write as the other side takes.
    fn read<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        reader: &mut R,
        writer: &mut W,
    ) -> Poll<Option<Step>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        let size = if self.moved >= LARGE_AFTER { LARGE } else { FIRST };
        SCRATCH.with_borrow_mut(|scratch| {
            let mut buf = ReadBuf::new(&mut scratch[..size]);
            if ready!(Pin::new(&mut *reader).poll_read(cx, &mut buf)).is_err() {
                return Poll::Ready(Some(Step::ReadFailed(self.moved)));
            }
            let mut bytes = buf.filled();
            if bytes.is_empty() {
                self.read_ended = true;
                return Poll::Ready(None);
            }
            self.unflushed = true;
            while !bytes.is_empty() {
                match Pin::new(&mut *writer).poll_write(cx, bytes) {
                    Poll::Pending => {
                        self.kept = bytes.to_vec();
                        break;
                    }
                    Poll::Ready(Ok(0) | Err(_)) => {
                        return Poll::Ready(Some(Step::WriteFailed(self.moved)));
                    }
                    Poll::Ready(Ok(n)) => {
                        self.moved += n as u64;
                        bytes = &bytes[n..];
                    }
                }
            }
            Poll::Ready(None)
        })
    }
}
