//! One direction between two sockets: small reads by copy, bulk by splice(2) through a pooled pipe.

use super::{FIRST, SCRATCH, Step, TURNS};
use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use tokio::io::Interest;
use tokio::net::TcpStream;

/// Bytes a pipe holds: 2,000 system calls a GiB instead of 33,000 (performance.md 2.2).
const PIPE_BYTES: i32 = 1 << 20;
/// Pipes kept for the next burst.
const IDLE_MAX: usize = 32;
/// Pipes in use at once (two descriptors each); beyond, bytes are copied.
const PIPES_MAX: usize = 512;
/// Reads this large in a row say that this is bulk; a splice smaller than a quarter, that it is over.
const BULK: usize = FIRST;

static IDLE: Mutex<Vec<Pipe>> = Mutex::new(Vec::new());
static OPEN: AtomicUsize = AtomicUsize::new(0);

/// An empty pipe, except while a direction holds it.
#[derive(Debug)]
struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
    size: usize,
}

impl Pipe {
    /// From the pool, else new; `None` at the cap or without descriptors.
    fn take() -> Option<Self> {
        if let Some(pipe) = IDLE.lock().expect("nothing panics in it").pop() {
            return Some(pipe);
        }
        if OPEN.fetch_add(1, Ordering::AcqRel) >= PIPES_MAX {
            OPEN.fetch_sub(1, Ordering::AcqRel);
            return None;
        }
        let Ok((read, write)) = nix::unistd::pipe2(OFlag::O_NONBLOCK | OFlag::O_CLOEXEC) else {
            OPEN.fetch_sub(1, Ordering::AcqRel);
            return None;
        };
        // Above the user's share of pipe pages the kernel refuses; 64 KiB does as well then.
        let size = fcntl(&write, FcntlArg::F_SETPIPE_SZ(PIPE_BYTES)).unwrap_or(1 << 16);
        Some(Self { read, write, size: usize::try_from(size).unwrap_or(1 << 16) })
    }

    /// Back to the pool; it must be empty.
    fn give(self) {
        let mut idle = IDLE.lock().expect("nothing panics in it");
        if idle.len() < IDLE_MAX {
            idle.push(self);
        } else {
            drop(idle);
            self.close();
        }
    }

    fn close(self) {
        OPEN.fetch_sub(1, Ordering::AcqRel);
    }
}

/// One direction.
#[derive(Debug, Default)]
pub(super) struct Splice {
    moved: u64,
    /// Copied in and not yet written.
    kept: Vec<u8>,
    written: usize,
    pipe: Option<Pipe>,
    /// Bytes in the pipe.
    piped: usize,
    bulk: bool,
    read_ended: bool,
    done: bool,
}

impl Drop for Splice {
    fn drop(&mut self) {
        if let Some(pipe) = self.pipe.take() {
            // Bytes of one connection must never come out in another.
            if self.piped == 0 { pipe.give() } else { pipe.close() }
        }
    }
}

impl Splice {
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        reader: &TcpStream,
        writer: &TcpStream,
    ) -> Step {
        let mut turns = 0;
        loop {
            if self.done {
                return Step::Done(self.moved);
            }
            match self.drain(cx, writer) {
                Poll::Pending => return Step::Waiting(self.moved),
                Poll::Ready(Err(_)) => return Step::WriteFailed(self.moved),
                Poll::Ready(Ok(())) => {}
            }
            if self.read_ended {
                // The other side may have gone already: then it need not be told.
                let _ = socket2::SockRef::from(writer).shutdown(std::net::Shutdown::Write);
                self.done = true;
                continue;
            }
            turns += 1;
            if turns > TURNS {
                cx.waker().wake_by_ref();
                return Step::Waiting(self.moved);
            }
            match self.fill(cx, reader, writer) {
                Poll::Pending => {
                    // Nothing is on its way: hold nothing.
                    if let Some(pipe) = self.pipe.take() {
                        pipe.give();
                    }
                    return Step::Waiting(self.moved);
                }
                Poll::Ready(Err(Broken::Read)) => return Step::ReadFailed(self.moved),
                Poll::Ready(Err(Broken::Write)) => return Step::WriteFailed(self.moved),
                Poll::Ready(Ok(())) => {}
            }
        }
    }

    /// Writes what is kept or piped.
    fn drain(&mut self, cx: &mut Context<'_>, writer: &TcpStream) -> Poll<io::Result<()>> {
        while self.written < self.kept.len() {
            ready!(writer.poll_write_ready(cx))?;
            match writer.try_write(&self.kept[self.written..]) {
                Ok(n) => {
                    self.written += n;
                    self.moved += n as u64;
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return Poll::Ready(Err(e)),
            }
        }
        (self.kept, self.written) = (Vec::new(), 0);
        while self.piped > 0 {
            ready!(writer.poll_write_ready(cx))?;
            let pipe = self.pipe.as_ref().expect("piped bytes are in a pipe");
            let spliced = writer.try_io(Interest::WRITABLE, || {
                Ok(splice(&pipe.read, None, writer, None, self.piped, flags())?)
            });
            match spliced {
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Ok(n) => {
                    self.piped -= n;
                    self.moved += n as u64;
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return Poll::Ready(Err(e)),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Reads once, into the pipe or through the thread's buffer. The pipe is empty here, so that
    /// "would block" can only mean the socket.
    fn fill(
        &mut self,
        cx: &mut Context<'_>,
        reader: &TcpStream,
        writer: &TcpStream,
    ) -> Poll<Result<(), Broken>> {
        loop {
            ready!(reader.poll_read_ready(cx)).map_err(|_| Broken::Read)?;
            if self.bulk && self.pipe.is_none() {
                self.pipe = Pipe::take();
            }
            let read = match &self.pipe {
                Some(pipe) => reader.try_io(Interest::READABLE, || {
                    Ok(splice(reader, None, &pipe.write, None, pipe.size, flags())?)
                }),
                None => return self.copy(reader, writer),
            };
            match read {
                Ok(0) => self.read_ended = true,
                Ok(n) => {
                    self.piped = n;
                    self.bulk = n >= BULK / 4;
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => continue,
                Err(_) => return Poll::Ready(Err(Broken::Read)),
            }
            return Poll::Ready(Ok(()));
        }
    }

    fn copy(&mut self, reader: &TcpStream, writer: &TcpStream) -> Poll<Result<(), Broken>> {
        SCRATCH.with_borrow_mut(|scratch| {
            let bytes = match reader.try_read(&mut scratch[..FIRST]) {
                Ok(0) => {
                    self.read_ended = true;
                    return Poll::Ready(Ok(()));
                }
                Ok(n) => &scratch[..n],
                // Ready again at the next look; the caller's loop comes back.
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Poll::Ready(Ok(())),
                Err(_) => return Poll::Ready(Err(Broken::Read)),
            };
            self.bulk = bytes.len() == BULK;
            let n = match writer.try_write(bytes) {
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => 0,
                Err(_) => return Poll::Ready(Err(Broken::Write)),
            };
            self.moved += n as u64;
            if n < bytes.len() {
                self.kept = bytes[n..].to_vec();
            }
            Poll::Ready(Ok(()))
        })
    }
}

/// Which side of a direction broke.
enum Broken {
    Read,
    Write,
}

fn flags() -> SpliceFFlags {
    SpliceFFlags::SPLICE_F_NONBLOCK | SpliceFFlags::SPLICE_F_MOVE
}
