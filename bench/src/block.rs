//! One block of work through a proxy: what it cost that process, and the peers it runs between.

use crate::rivals::Rival;
use anyhow::{Context as _, Result, ensure};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Nothing in a block may hang for longer.
const STALL_MAX: Duration = Duration::from_secs(30);
const CHUNK: usize = 256 * 1024;

#[derive(Debug)]
pub(crate) enum Work {
    /// So many bytes from the backend to the client, over this many connections at once.
    Bulk { bytes: u64, streams: u32 },
    /// Connections one after another: hello, one byte back, reset.
    Connections { count: u32 },
}

/// The server behind the proxies. It reads the hello that a passthrough proxy forwards, then the
/// number of bytes wanted (8, big endian), and sends these.
#[derive(Debug)]
pub(crate) struct Backend {
    address: SocketAddr,
}

impl Backend {
    pub(crate) fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                std::thread::spawn(move || {
                    // A client that resets is the end of that connection, nothing more.
                    let _ = answer(stream);
                });
            }
        });
        Ok(Self { address })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut head = [0; 5];
    stream.read_exact(&mut head)?;
    let mut hello = vec![0; usize::from(u16::from_be_bytes([head[3], head[4]]))];
    stream.read_exact(&mut hello)?;
    let mut wanted = [0; 8];
    stream.read_exact(&mut wanted)?;
    let mut left = u64::from_be_bytes(wanted);
    let chunk = vec![0x5a; CHUNK];
    while left > 0 {
        let part = chunk.len().min(usize::try_from(left).unwrap_or(CHUNK));
        stream.write_all(&chunk[..part])?;
        left -= part as u64;
    }
    Ok(())
}

/// What our sidecars send first: a real ClientHello with SNI and ALPN.
pub(crate) fn hello(server_name: &str) -> Result<Vec<u8>> {
    let mut config = rustls::ClientConfig::builder()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    config.alpn_protocols = vec![b"istio".to_vec()];
    let name = rustls::pki_types::ServerName::try_from(server_name.to_owned())?;
    let mut connection = rustls::ClientConnection::new(Arc::new(config), name)?;
    let mut bytes = Vec::new();
    connection.write_tls(&mut bytes)?;
    Ok(bytes)
}

fn open(rival: &Rival, wanted: u64) -> Result<TcpStream> {
    let mut stream = TcpStream::connect(rival.address)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(STALL_MAX))?;
    stream.set_write_timeout(Some(STALL_MAX))?;
    let mut first = rival.hello.clone();
    first.extend(wanted.to_be_bytes());
    stream.write_all(&first)?;
    Ok(stream)
}

/// Does the work and returns what it cost the proxy: seconds per GiB, or microseconds a connection.
pub(crate) fn run(rival: &Rival, work: &Work) -> Result<f64> {
    let before = rival.cpu()?;
    let unit = match *work {
        Work::Bulk { bytes, streams } => {
            let each = bytes / u64::from(streams);
            let readers: Vec<_> = (0..streams)
                .map(|_| {
                    let mut stream = open(rival, each)?;
                    Ok(std::thread::spawn(move || -> Result<u64> {
                        let mut buffer = vec![0; CHUNK];
                        let mut got = 0;
                        while got < each {
                            let n =
                                stream.read(&mut buffer).context("reading through the proxy")?;
                            ensure!(
                                n > 0,
                                "the proxy ended the stream after {got} of {each} bytes"
                            );
                            got += n as u64;
                        }
                        Ok(got)
                    }))
                })
                .collect::<Result<_>>()?;
            let mut carried = 0;
            for reader in readers {
                carried += reader.join().expect("a reader does not panic")?;
            }
            carried as f64 / (1u64 << 30) as f64
        }
        Work::Connections { count } => {
            for _ in 0..count {
                let mut stream = open(rival, 1)?;
                let mut byte = [0];
                stream.read_exact(&mut byte).context("one byte through the proxy")?;
                // Reset, or the generator's ports would all wait in TIME_WAIT.
                nix::sys::socket::setsockopt(
                    &stream,
                    nix::sys::socket::sockopt::Linger,
                    &nix::libc::linger { l_onoff: 1, l_linger: 0 },
                )?;
            }
            f64::from(count) / 1e6
        }
    };
    Ok((rival.cpu()? - before).as_secs_f64() / unit)
}

/// A fixed unit of work, seconds: 1,000 small messages there and back over loopback.
pub(crate) fn calibrate() -> Result<f64> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let mut near = TcpStream::connect(listener.local_addr()?)?;
    let (mut far, _) = listener.accept()?;
    near.set_nodelay(true)?;
    far.set_nodelay(true)?;
    let mut message = [0; 64];
    let mut best = f64::INFINITY;
    for _ in 0..3 {
        let started = Instant::now();
        for _ in 0..1_000 {
            near.write_all(&message)?;
            far.read_exact(&mut message)?;
            far.write_all(&message)?;
            near.read_exact(&mut message)?;
        }
        best = best.min(started.elapsed().as_secs_f64());
    }
    Ok(best)
}

/// Generator and backend on CPU 0; the proxies are started on CPU 1.
pub(crate) fn pin_generator() -> Result<()> {
    if std::thread::available_parallelism()?.get() < 2 {
        println!("one CPU only: generator and proxy share it");
        return Ok(());
    }
    let mut cpus = CpuSet::new();
    cpus.set(0)?;
    sched_setaffinity(Pid::from_raw(0), &cpus)?;
    Ok(())
}
