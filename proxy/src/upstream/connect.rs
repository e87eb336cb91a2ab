//! The race of decision 14: attempts 250 to 500 ms apart, none into a network whose gateway is silent just
//! now and the third at the latest elsewhere, each limited to 1 s; the first whose handshake with the
//! workload ends wins.

use super::health::{Evidence, Key, Phase};
use super::{Ask, Attempt, ConnectFailed, Established, Picked, Stream, Upstream};
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use mesh::name::{Identity, Network};
use rustls_pki_types::ServerName;
use socket2::{SockRef, TcpKeepalive};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::net::TcpSocket;
use tokio::time::{Instant, sleep_until, timeout_at};
use tokio_rustls::TlsConnector;

/// Time between two attempts, unless one fails before, or longer where handshakes usually are.
pub const STAGGER: Duration = Duration::from_millis(250);
/// Longest time between two: an attempt elsewhere must have time left to succeed.
const STAGGER_MAX: Duration = Duration::from_millis(500);
/// Longest life of one attempt.
pub const ATTEMPT_MAX: Duration = Duration::from_secs(1);
/// Attempts of one call: begun at 0, 250, 500 and 750 ms where handshakes are usually quick.
pub const ATTEMPTS_MAX: usize = 4;
/// The attempt (from 0) that goes to another network where there is one. After a gateway that does not
/// answer already the next one does: what silences one gateway often silences its whole cluster,
/// while a refusal is one process's.
const ABROAD: usize = 2;
/// Attempts at one endpoint in one call: a lost SYN is worth a second, a dead host no third. Where
/// TCP is through to a workload there is no SYN to lose, and a second handshake would only add to
/// what is slow there; behind a gateway it may meet another workload.
const SAME_MAX: usize = 2;

/// What TLS needs to reach a workload.
#[derive(Clone)]
pub(crate) struct Secure {
    pub(crate) config: Arc<rustls::ClientConfig>,
    pub(crate) name: ServerName<'static>,
}

/// A finished attempt's fruit.
pub(crate) struct Reached {
    pub(crate) stream: Stream,
    pub(crate) identity: Option<Identity>,
}

/// Why one attempt failed.
pub(crate) struct Failure {
    pub(crate) phase: Phase,
    pub(crate) timed_out: bool,
    /// Our own lack of descriptors, ports or memory is no evidence against anybody.
    pub(crate) ours: bool,
    pub(crate) text: String,
}

/// Sets what every socket of ours has: no delay, and keepalive. What is set on a listener holds for all
/// that it accepts (Linux: `inet_csk_clone_lock`).
///
/// Never `TCP_USER_TIMEOUT`: Linux counts a closed window among what is unanswered, though every probe
/// is answered, and would reset who only pauses (RFC 9293 section 3.8.6.1 wants it kept open).
pub fn tune<'a>(socket: impl Into<SockRef<'a>>) {
    let socket = socket.into();
    // Failing to set an option costs latency, not the connection.
    let _ = socket.set_tcp_nodelay(true);
    let keepalive = TcpKeepalive::new()
        .with_time(Duration::from_secs(30))
        .with_interval(Duration::from_secs(10))
        .with_retries(3);
    let _ = socket.set_tcp_keepalive(&keepalive);
}

/// Connects, with a handshake where `secure` is given, by `deadline`. `shaking` tells from outside
/// that TCP is through.
pub(crate) async fn reach(
    address: SocketAddr,
    secure: Option<&Secure>,
    deadline: Instant,
    shaking: &AtomicBool,
) -> Result<Reached, Failure> {
    let failed = |phase, timed_out, text| Failure { phase, timed_out, ours: false, text };
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
    let socket = socket.map_err(|e| Failure {
        phase: Phase::Connect,
        timed_out: false,
        ours: true,
        text: format!("this machine cannot open a socket: {e}"),
    })?;
    let stream = match timeout_at(deadline, socket.connect(address)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(e)) => {
            let ours = matches!(
                e.kind(),
                std::io::ErrorKind::AddrNotAvailable | std::io::ErrorKind::OutOfMemory
            );
            let failure = failed(Phase::Connect, false, format!("connecting failed: {e}"));
            return Err(Failure { ours, ..failure });
        }
        Err(_) => return Err(failed(Phase::Connect, true, "no answer to connecting".into())),
    };
    tune(&stream);
    let Some(secure) = secure else {
        return Ok(Reached { stream: Stream::Plain(stream), identity: None });
    };
    shaking.store(true, Ordering::Release);
    let connector = TlsConnector::from(secure.config.clone());
    match timeout_at(deadline, connector.connect(secure.name.clone(), stream)).await {
        Ok(Ok(stream)) => {
            let identity = stream
                .get_ref()
                .1
                .peer_certificates()
                .and_then(|certificates| trust::tls::peer_identity(certificates));
            Ok(Reached { stream: Stream::Tls(Box::new(stream)), identity })
        }
        Ok(Err(e)) => {
            let text = match trust::tls::refused_io(&e) {
                Some(refused) => format!("its certificate is refused: {refused}"),
                None if e.kind() == std::io::ErrorKind::UnexpectedEof => {
                    "it closed the connection during the handshake".into()
                }
                None => format!("the handshake failed: {e}"),
            };
            Err(failed(Phase::Handshake, false, text))
        }
        Err(_) => Err(failed(Phase::Handshake, true, "no answer in the handshake".into())),
    }
}

/// One attempt under way.
struct Running {
    at: usize,
    picked: Picked,
    begun: Instant,
    shaking: Arc<AtomicBool>,
    doubted: bool,
}

impl Running {
    fn phase(&self) -> Phase {
        if self.shaking.load(Ordering::Acquire) { Phase::Handshake } else { Phase::Connect }
    }
}

impl Upstream {
    /// Races attempts [`STAGGER`] apart (longer where handshakes usually take long), the third at the
    /// latest into another network, the second already where the first waits for a gateway, each
    /// limited to 1 s; the first whose handshake *with the workload* ends wins (decision 14). With
    /// [`Ask::raw`], the first that is connected.
    pub async fn connect(&self, ask: &Ask) -> Result<Established, ConnectFailed> {
        let slot = self.slot()?;
        let limit = Duration::from_millis(self.cluster().connect_timeout_ms);
        let limit = if limit.is_zero() { ATTEMPT_MAX } else { limit.min(ATTEMPT_MAX) };
        let last_start = Instant::now() + ATTEMPT_MAX;
        let mut attempts: Vec<Attempt> = Vec::new();
        let mut running: Vec<Running> = Vec::new();
        let mut racing = FuturesUnordered::new();
        let mut tried: Vec<Key> = ask.avoid.clone();
        let mut networks: Vec<Network> = Vec::new();
        let mut next = Some(Instant::now());
        let mut nobody = None;
        loop {
            if next.is_some_and(|next| next <= Instant::now()) {
                let silent: Vec<Network> = running
                    .iter()
                    .filter(|late| late.picked.endpoint().gateway)
                    .map(|late| late.picked.endpoint().network.clone())
                    .collect();
                let chosen = match &ask.first {
                    Some(first) if attempts.is_empty() => Ok(first.clone()),
                    _ if attempts.len() >= ABROAD => self.pick_abroad(&tried, &networks),
                    _ if silent.is_empty() => self.pick(&tried),
                    _ => self.pick_abroad(&tried, &silent),
                };
                let chosen = chosen.and_then(|picked| {
                    let key = picked.key();
                    let same =
                        attempts.iter().filter(|a| (a.endpoint, &a.cluster) == (key.0, &key.1));
                    let shaking = !picked.endpoint().gateway
                        && running
                            .iter()
                            .any(|r| r.phase() == Phase::Handshake && r.picked.key() == key);
                    if shaking || same.count() >= SAME_MAX {
                        return Err(self.nobody("every endpoint was dialled already"));
                    }
                    let secure = self.secure(&picked, ask)?;
                    Ok((picked, secure))
                });
                match chosen {
                    Ok((picked, secure)) => {
                        let begun = Instant::now();
                        let shaking = Arc::new(AtomicBool::new(false));
                        let at = attempts.len();
                        // Where handshakes take long anyway, a second one only makes them longer.
                        let patience = picked.patience().min(STAGGER_MAX);
                        let (address, cluster) = picked.key();
                        tried.push((address, cluster.clone()));
                        networks.push(picked.endpoint().network.clone());
                        attempts.push(Attempt {
                            endpoint: address,
                            cluster,
                            after: Duration::ZERO,
                            problem: "given up for a faster one".into(),
                        });
                        self.touch(&picked);
                        let seen = shaking.clone();
                        racing.push(async move {
                            (at, reach(address, secure.as_ref(), begun + limit, &seen).await)
                        });
                        running.push(Running { at, picked, begun, shaking, doubted: false });
                        let then = begun + patience;
                        next = (attempts.len() < ATTEMPTS_MAX && then < last_start).then_some(then);
                    }
                    Err(e) => {
                        nobody = Some(e);
                        next = None;
                    }
                }
            }
            if racing.is_empty() && next.is_none() {
                let cluster = self.name().clone();
                return Err(match nobody {
                    Some(e) if attempts.is_empty() => e,
                    _ => ConnectFailed::AllFailed { cluster, attempts },
                });
            }
            tokio::select! {
                Some((at, result)) = racing.next() => {
                    let index = running.iter().position(|r| r.at == at)
                        .expect("whoever races is running");
                    let done = running.swap_remove(index);
                    let took = done.begun.elapsed();
                    attempts[at].after = took;
                    match result {
                        Ok(reached) => {
                            self.see(&done.picked, Evidence::Connected {
                                took_us: u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
                            });
                            attempts[at].problem.clear();
                            for other in running {
                                attempts[other.at].after = other.begun.elapsed();
                            }
                            let in_flight = done.picked.begin();
                            return Ok(Established {
                                stream: reached.stream,
                                endpoint: done.picked.endpoint().clone(),
                                picked: done.picked,
                                in_flight,
                                slot,
                                identity: reached.identity,
                                handshake: took,
                                attempts,
                            });
                        }
                        Err(failure) => {
                            if !failure.ours {
                                self.see(&done.picked, Evidence::Failed {
                                    phase: failure.phase,
                                    timed_out: failure.timed_out,
                                    took,
                                });
                            }
                            attempts[at].problem = failure.text;
                            // Another endpoint at once; the same one again only at its time.
                            if next.is_some() && self.has_other_than(&tried) {
                                next = Some(Instant::now());
                            }
                        }
                    }
                }
                () = sleep_until(next.unwrap_or(last_start)), if next.is_some() => {
                    for late in &mut running {
                        if !late.doubted && late.begun.elapsed() >= late.picked.patience() {
                            late.doubted = true;
                            self.see(&late.picked, Evidence::Late(late.phase()));
                        }
                    }
                }
            }
        }
    }
}

impl Picked {
    /// How long an attempt may take before it is a sign of trouble: the stagger, or twice what it
    /// usually takes where that is longer.
    fn patience(&self) -> Duration {
        STAGGER.max(Duration::from_micros(self.seat.path.handshake_us() * 2))
    }
}
