//! The sockets: UDP and TCP loops on a thread of their own, with a bound on all a stranger can occupy.

use crate::Options;
use crate::answer::{self, Decision};
use crate::forward;
use crate::telemetry::Telemetry;
use anyhow::Context as _;
use hickory_proto::op::{Message, OpCode, ResponseCode};
use ipnet::IpNet;
use mesh::zone::Zone;
use runtime::places::Places;
use socket2::{Domain, Socket, Type};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Questions on their way upstream at once; more get SERVFAIL.
const IN_FLIGHT_MAX: usize = 4096;
/// TCP connections at once; more are closed.
const CONNECTIONS_MAX: usize = 256;
/// TCP connections of one source address at once; more are closed.
const CONNECTIONS_PER_SOURCE_MAX: usize = 8;
/// A TCP connection that says nothing, or takes nothing, for this long is closed.
const IDLE: Duration = Duration::from_secs(5);
/// Longest question that is read, bytes: a name has 255, EDNS options a few hundred.
const QUESTION_MAX: usize = 4096;
/// At the end, questions on their way are waited for this long.
const DRAIN: Duration = Duration::from_secs(2);
/// What a UDP socket keeps while it is not read, bytes; the kernel grants up to its own limit
/// (`net.core.rmem_max`). A question that is lost costs its asker the resolver's 5 s.
const RECEIVE_BUFFER: usize = 4 * 1024 * 1024;
const UNSERVED: &str = "ISM1042 DNS is not served by this process any more. Fix: restart it; where it \
    lacks threads or open files, raise its limits";
/// TCP connections that may wait to be accepted.
const BACKLOG: i32 = 256;

/// A bound DNS server that does not answer yet.
#[derive(Debug)]
pub struct Server {
    sockets: Vec<(std::net::UdpSocket, std::net::TcpListener)>,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    zone: watch::Receiver<Arc<Zone>>,
    upstreams: Vec<SocketAddr>,
    allow: Vec<IpNet>,
    telemetry: Telemetry,
    in_flight: Arc<Semaphore>,
    connections: Places,
    tasks: TaskTracker,
}

impl Server {
    /// Binds UDP and TCP on each address. Port 0 gives both the same free port.
    pub fn bind(options: Options) -> anyhow::Result<Self> {
        let Options { listen, upstreams, allow, zone, metrics } = options;
        for upstream in &upstreams {
            anyhow::ensure!(
                !listen.contains(upstream),
                "ISM1040 dns upstream {upstream} is this server itself, which would ask itself for \
                 ever. Fix: name another server in dns.upstreams"
            );
        }
        let mut sockets = Vec::new();
        for address in listen {
            sockets.push(bind_both(address)?);
        }
        let shared = Shared {
            zone,
            upstreams,
            allow,
            telemetry: Telemetry::register(&metrics),
            in_flight: Arc::new(Semaphore::new(IN_FLIGHT_MAX)),
            connections: Places::new(CONNECTIONS_MAX, CONNECTIONS_PER_SOURCE_MAX),
            tasks: TaskTracker::new(),
        };
        Ok(Self { sockets, shared: Arc::new(shared) })
    }

    /// Where it listens, in the order of `Options::listen`.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.sockets.iter().filter_map(|(udp, _)| udp.local_addr().ok()).collect()
    }

    /// Serves until `end`, then finishes what is on its way (2 s at most).
    ///
    /// On a thread of its own: an answer takes microseconds, and must not queue behind a storm of
    /// handshakes on the process's other threads until the socket's buffer overflows.
    pub async fn run(self, end: CancellationToken) {
        let (done, ended) = tokio::sync::oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let thread = runtime.and_then(|runtime| {
            std::thread::Builder::new().name("dns".into()).spawn(move || {
                if let Err(problem) = runtime.block_on(self.serve(end)) {
                    tracing::error!(error = %problem, "{UNSERVED}");
                }
                // Nobody waits any more where the process is on its way out.
                let _ = done.send(());
            })
        });
        match thread {
            // Without a word it ended by a panic.
            Ok(_) if ended.await.is_err() => tracing::error!("{UNSERVED}"),
            Ok(_) => {}
            Err(problem) => tracing::error!(error = %problem, "{UNSERVED}"),
        }
    }

    async fn serve(self, end: CancellationToken) -> std::io::Result<()> {
        let Self { sockets, shared } = self;
        for (udp, tcp) in sockets {
            let (udp, tcp) = (UdpSocket::from_std(udp)?, TcpListener::from_std(tcp)?);
            shared.tasks.spawn(serve_udp(shared.clone(), Arc::new(udp), end.clone()));
            shared.tasks.spawn(serve_tcp(shared.clone(), tcp, end.clone()));
        }
        end.cancelled().await;
        shared.tasks.close();
        let _ = timeout(DRAIN, shared.tasks.wait()).await;
        Ok(())
    }
}

fn bind_both(address: SocketAddr) -> anyhow::Result<(std::net::UdpSocket, std::net::TcpListener)> {
    let hint = |kind: &str| {
        format!(
            "ISM1041 cannot listen on {address} for DNS over {kind}. Fix: stop what holds it \
             (`ss -ulntp sport = :{}` shows it), or configure another port",
            address.port()
        )
    };
    // The TCP port is chosen first; with port 0 the same UDP port may be taken, so try again.
    let mut tries = 0;
    loop {
        let tcp = bind_tcp(address).with_context(|| hint("TCP"))?;
        let bound = tcp.local_addr().context("a bound socket has an address")?;
        match bind_udp(bound) {
            Ok(udp) => return Ok((udp, tcp)),
            Err(_) if address.port() == 0 && tries < 16 => tries += 1,
            Err(problem) => return Err(problem).with_context(|| hint("UDP")),
        }
    }
}

fn bind_tcp(address: SocketAddr) -> std::io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    // A restarted server takes its port back from connections that are still ending.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn bind_udp(address: SocketAddr) -> std::io::Result<std::net::UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, None)?;
    socket.set_nonblocking(true)?;
    // Less than asked for serves too.
    let _ = socket.set_recv_buffer_size(RECEIVE_BUFFER);
    socket.bind(&address.into())?;
    Ok(socket.into())
}

impl Shared {
    fn may_ask(&self, source: IpAddr) -> bool {
        let source = source.to_canonical();
        if self.allow.is_empty() {
            return source.is_loopback();
        }
        self.allow.iter().any(|net| net.contains(&source))
    }

    fn decide(&self, packet: &[u8]) -> Decision {
        let zone = self.zone.borrow().clone();
        answer::decide(&zone, packet, !self.upstreams.is_empty())
    }

    /// Asks upstream; SERVFAIL when nobody there answers.
    async fn forward(&self, query: &Message) -> Option<Vec<u8>> {
        match forward::ask(&self.upstreams, query).await {
            Ok(bytes) => {
                self.telemetry.answered(bytes[3] & 0x0f, "upstream");
                Some(bytes)
            }
            Err(problem) => {
                tracing::debug!(error = format!("{problem:#}"), "no upstream answered");
                self.failure(query, ResponseCode::ServFail, "upstream")
            }
        }
    }

    fn failure(
        &self,
        query: &Message,
        code: ResponseCode,
        source: &'static str,
    ) -> Option<Vec<u8>> {
        self.encode(&answer::failure(query, code), source)
    }

    fn encode(&self, reply: &Message, source: &'static str) -> Option<Vec<u8>> {
        match reply.to_vec() {
            Ok(bytes) => {
                self.telemetry.answered(bytes[3] & 0x0f, source);
                Some(bytes)
            }
            Err(problem) => {
                tracing::warn!(error = %problem, "an answer cannot be written");
                self.telemetry.dropped("unwritable");
                None
            }
        }
    }

    /// A source outside the allow-list learns that, in a packet no longer than its own.
    fn refuse(&self, packet: &[u8]) -> Option<Vec<u8>> {
        if packet.len() < 12 || packet[2] & 0x80 != 0 {
            self.telemetry.dropped("source");
            return None;
        }
        let id = u16::from_be_bytes([packet[0], packet[1]]);
        self.encode(&Message::error_msg(id, OpCode::Query, ResponseCode::Refused), "policy")
    }
}

async fn serve_udp(shared: Arc<Shared>, socket: Arc<UdpSocket>, end: CancellationToken) {
    let mut buffer = vec![0; QUESTION_MAX];
    loop {
        let received = tokio::select! {
            () = end.cancelled() => return,
            received = socket.recv_from(&mut buffer) => received,
        };
        let (length, peer) = match received {
            Ok(received) => received,
            Err(problem) => {
                // A late ICMP error of an earlier answer, or memory pressure: go on, not hotly.
                tracing::debug!(error = %problem, "receiving a DNS packet failed");
                tokio::time::sleep(Duration::from_millis(1)).await;
                continue;
            }
        };
        let packet = &buffer[..length];
        if !shared.may_ask(peer.ip()) {
            if let Some(bytes) = shared.refuse(packet) {
                let _ = socket.try_send_to(&bytes, peer);
            }
            continue;
        }
        match shared.decide(packet) {
            Decision::Drop(reason) => shared.telemetry.dropped(reason),
            Decision::Reply(reply) => {
                if let Some(bytes) = shared.encode(&reply, "mesh") {
                    let limit = reply_limit(packet);
                    send(&shared, &socket, peer, packet, bytes, limit);
                }
            }
            Decision::Forward(query) => {
                let Ok(permit) = shared.in_flight.clone().try_acquire_owned() else {
                    shared.telemetry.dropped("in_flight");
                    if let Some(bytes) = shared.failure(&query, ResponseCode::ServFail, "policy") {
                        let _ = socket.try_send_to(&bytes, peer);
                    }
                    continue;
                };
                let (task, socket, packet) = (shared.clone(), socket.clone(), packet.to_vec());
                shared.tasks.spawn(async move {
                    let _permit = permit;
                    if let Some(bytes) = task.forward(&query).await {
                        let limit = answer::udp_limit(&query);
                        send(&task, &socket, peer, &packet, bytes, limit);
                    }
                });
            }
        }
    }
}

fn reply_limit(packet: &[u8]) -> usize {
    // What could not be read gets an answer of a header only, which always fits.
    Message::from_vec(packet).map_or(answer::UDP_ANSWER_MAX, |query| answer::udp_limit(&query))
}

/// Sends, or says TC=1 when `bytes` are too many. A full socket buffer drops, as UDP may.
fn send(
    shared: &Shared,
    socket: &UdpSocket,
    peer: SocketAddr,
    packet: &[u8],
    bytes: Vec<u8>,
    limit: usize,
) {
    let bytes = if bytes.len() <= limit {
        bytes
    } else {
        let Ok(query) = Message::from_vec(packet) else { return };
        let code = ResponseCode::from(0, bytes[3] & 0x0f);
        match answer::truncated(&query, code).to_vec() {
            Ok(short) => short,
            Err(_) => return shared.telemetry.dropped("unwritable"),
        }
    };
    if socket.try_send_to(&bytes, peer).is_err() {
        shared.telemetry.dropped("send");
    }
}

async fn serve_tcp(shared: Arc<Shared>, listener: TcpListener, end: CancellationToken) {
    loop {
        let accepted = tokio::select! {
            () = end.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(problem) => {
                tracing::warn!(error = %problem, "accepting a DNS connection failed");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        if !shared.may_ask(peer.ip()) {
            shared.telemetry.dropped("source");
            continue;
        }
        let Some(place) = shared.connections.take(peer.ip()) else {
            shared.telemetry.dropped("connections");
            continue;
        };
        let (task, end) = (shared.clone(), end.clone());
        shared.tasks.spawn(async move {
            let _place = place;
            let served = tokio::select! {
                () = end.cancelled() => Ok(()),
                served = converse(&task, stream) => served,
            };
            if let Err(problem) = served {
                tracing::debug!(%peer, error = format!("{problem:#}"), "a DNS connection ended");
            }
        });
    }
}

/// Questions one after the other, each answered before the next is read.
async fn converse(shared: &Shared, mut stream: TcpStream) -> anyhow::Result<()> {
    loop {
        let length = match timeout(IDLE, stream.read_u16()).await {
            Ok(Ok(length)) => usize::from(length),
            // Idle, or closed between questions: the ordinary end.
            Ok(Err(_)) | Err(_) => return Ok(()),
        };
        anyhow::ensure!(length <= QUESTION_MAX, "a question of {length} bytes");
        let mut packet = vec![0; length];
        timeout(IDLE, stream.read_exact(&mut packet)).await.context("half a question")??;
        let bytes = match shared.decide(&packet) {
            Decision::Drop(reason) => {
                shared.telemetry.dropped(reason);
                return Ok(());
            }
            Decision::Reply(reply) => shared.encode(&reply, "mesh"),
            Decision::Forward(query) => {
                let _permit: OwnedSemaphorePermit =
                    shared.in_flight.clone().acquire_owned().await.context("never closed")?;
                shared.forward(&query).await
            }
        };
        let Some(bytes) = bytes else { return Ok(()) };
        let length = u16::try_from(bytes.len()).context("an answer longer than 65535 bytes")?;
        let mut framed = length.to_be_bytes().to_vec();
        framed.extend_from_slice(&bytes);
        timeout(IDLE, stream.write_all(&framed)).await.context("the answer was not taken")??;
    }
}
