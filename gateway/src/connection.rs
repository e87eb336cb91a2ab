//! One connection's life: hello, route, pod, bytes; or closed, alike for every reason.

use crate::hello;
use crate::numbers::Numbers;
use mesh::name::{ClusterId, Hostname};
use mesh::program::{ClusterName, Listener, Resource, ResourceName};
use mesh::sni::Sni;
use proxy::accept::Place;
use proxy::access::{Line, timestamp};
use proxy::drain::{Drain, Live};
use proxy::prefixed::Prefixed;
use proxy::telemetry::{Conversation, Party, Reporter, Tcp, Telemetry, workload};
use proxy::tunnel::{End, reset, splice};
use proxy::{Ask, Engine, Established, Stream};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;

/// A whole ClientHello must be here within this; a probe's handshake too.
pub(crate) const HELLO_DEADLINE: Duration = Duration::from_secs(5);
/// Services' workloads whose counters are kept at hand; beyond that all are looked up again once.
const COUNTERS_MAX: usize = 16_384;
/// A connection without a byte either way for so long is closed.
const IDLE: Duration = Duration::from_secs(3_600);

/// What all connections share.
pub(crate) struct Gateway {
    pub(crate) engine: Engine,
    pub(crate) numbers: Numbers,
    pub(crate) telemetry: Telemetry,
    pub(crate) counters: Mutex<HashMap<(Hostname, String), Tcp>>,
    pub(crate) probes: Arc<rustls::ServerConfig>,
    pub(crate) drain: Drain,
    pub(crate) cluster: ClusterId,
    pub(crate) namespace: String,
    pub(crate) account: String,
    pub(crate) access_log: bool,
    pub(crate) last: LastAccept,
}

/// When the last connection came.
#[derive(Debug)]
pub(crate) struct LastAccept {
    start: Instant,
    millis: AtomicU64,
}

impl LastAccept {
    pub(crate) fn new() -> Self {
        Self { start: Instant::now(), millis: AtomicU64::new(0) }
    }

    pub(crate) fn touch(&self) {
        let millis = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.millis.store(millis, Ordering::Relaxed);
    }

    pub(crate) fn ago(&self) -> Duration {
        self.start
            .elapsed()
            .saturating_sub(Duration::from_millis(self.millis.load(Ordering::Relaxed)))
    }
}

/// A connection that found its pod.
struct Joined {
    client: TcpStream,
    server: TcpStream,
    established: Held,
    sni: Sni,
    sent: u64,
}

/// What must live as long as the tunnel: the pod's load and the connection's slot.
struct Held {
    _in_flight: proxy::InFlight,
    _slot: proxy::Slot,
    workload: String,
    host: SocketAddr,
    attempts: u32,
}

/// How a hello ended that was not forwarded.
struct Refused {
    reason: &'static str,
    sni: Option<String>,
    details: String,
    flags: &'static str,
}

impl From<&'static str> for Refused {
    fn from(reason: &'static str) -> Self {
        Self { reason, sni: None, details: String::new(), flags: "NR" }
    }
}

impl Gateway {
    pub(crate) async fn serve(
        &self,
        client: TcpStream,
        peer: SocketAddr,
        place: Place,
        live: Live,
    ) {
        self.numbers.live.inc();
        let (begun, start) = (Instant::now(), SystemTime::now());
        let local = if self.access_log { client.local_addr().ok() } else { None };
        // Boxed: this large part of the life is short, the tunnel is long and small.
        let joined = Box::pin(self.join(client)).await;
        let mut line = Line {
            downstream_remote_address: Some(peer.to_string()),
            downstream_local_address: local.map(|address| address.to_string()),
            ..Line::default()
        };
        match joined {
            Ok(None) => {}
            Ok(Some(mut joined)) => {
                let tcp = self.counters(&joined);
                tcp.opened();
                let tunnel = splice(&mut joined.client, &mut joined.server, IDLE);
                let cut = async {
                    live.cut().await;
                    None
                };
                let transferred = tokio::select! {
                    transferred = async { Some(tunnel.await) } => transferred,
                    cut = cut => cut,
                };
                let (sent, received) = transferred.map_or((0, 0), |t| (t.sent, t.received));
                tcp.closed(received, sent + joined.sent);
                let details = match transferred.map(|t| t.end) {
                    Some(End::Finished) => None,
                    Some(End::ClientFailed) => Some("downstream_remote_disconnect"),
                    Some(End::ServerFailed) => Some("upstream_remote_disconnect"),
                    Some(End::Idle) => Some("idle_timeout"),
                    None => Some("drain_cut"),
                };
                line.connection_termination_details = details.map(str::to_owned);
                line.bytes_received = sent + joined.sent;
                line.bytes_sent = received;
                line.upstream_host = Some(joined.established.host.to_string());
                line.upstream_cluster = Some(ClusterName::sni(&joined.sni).to_string());
                line.upstream_request_attempt_count = Some(joined.established.attempts);
                line.requested_server_name = Some(joined.sni.to_string());
            }
            Err(refused) => {
                self.numbers.refused(refused.reason);
                line.response_flags = refused.flags.into();
                line.connection_termination_details = Some(refused.reason.into());
                line.upstream_transport_failure_reason =
                    (!refused.details.is_empty()).then_some(refused.details);
                line.requested_server_name = refused.sni;
            }
        }
        drop(place);
        self.numbers.live.dec();
        if self.access_log {
            line.start_time = timestamp(start);
            line.duration = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
            line.write();
        }
    }

    /// Finds the pod that is asked for. `None` where the gateway itself was.
    async fn join(&self, client: TcpStream) -> Result<Option<Joined>, Refused> {
        let deadline = Instant::now() + HELLO_DEADLINE;
        let result = self.find(&client, deadline).await;
        match result {
            Ok(Found::Pod { sni, established, hello }) => {
                let Established { stream, endpoint, in_flight, slot, attempts, .. } = *established;
                let server = match stream {
                    Stream::Plain(server) => server,
                    Stream::Tls(_) => unreachable!("raw connections have no TLS of ours"),
                };
                let established = Held {
                    _in_flight: in_flight,
                    _slot: slot,
                    workload: endpoint.workload,
                    host: endpoint.address,
                    attempts: u32::try_from(attempts.len()).unwrap_or(u32::MAX),
                };
                let mut joined =
                    Joined { client, server, established, sni, sent: hello.len() as u64 };
                if joined.server.write_all(&hello).await.is_err() {
                    reset(&joined.client);
                    return Err("pod_closed".into());
                }
                Ok(Some(joined))
            }
            Ok(Found::Probe { hello }) => {
                let stream = Prefixed::new(hello, client);
                let accepting = TlsAcceptor::from(self.probes.clone()).accept(stream);
                match tokio::time::timeout_at(deadline, accepting).await {
                    Ok(Ok(mut tls)) => {
                        self.numbers.probe();
                        let _ = tokio::time::timeout_at(deadline, tls.shutdown()).await;
                        Ok(None)
                    }
                    Ok(Err(_)) => Err("probe_refused".into()),
                    Err(_) => Err("deadline".into()),
                }
            }
            Err(refused) => {
                // Whatever was read and whatever the reason: a stranger learns nothing from how.
                reset(&client);
                Err(refused)
            }
        }
    }

    async fn find(&self, client: &TcpStream, deadline: Instant) -> Result<Found, Refused> {
        let (hello, bytes) = tokio::time::timeout_at(deadline, hello::read(client))
            .await
            .map_err(|_| "deadline")??;
        let Some(name) = hello.sni.clone() else { return Err("no_sni".into()) };
        let refused = |reason| Refused { sni: Some(name.clone()), ..Refused::from(reason) };
        if !hello::is_mesh(&hello) {
            return Err(refused("no_mesh_alpn"));
        }
        let snapshot = self.engine.snapshot();
        let Some(Resource::Listener(Listener::Gateway(listener))) =
            snapshot.program.get(&ResourceName::gateway()).map(|resource| &**resource)
        else {
            return Err(refused("not_configured"));
        };
        if name == listener.probe.as_str() {
            return Ok(Found::Probe { hello: bytes });
        }
        let sni: Sni = name.parse().map_err(|_| refused("unknown_sni"))?;
        let cluster = listener.routes.get(&sni).ok_or_else(|| refused("unknown_sni"))?;
        let ask = Ask { raw: true, ..Ask::default() };
        match self.engine.connect(cluster, &ask).await {
            Ok(established) => {
                Ok(Found::Pod { sni, established: Box::new(established), hello: bytes })
            }
            Err(error) => {
                let flags = error.flag();
                let reason =
                    if error.attempts().is_empty() { "no_pod" } else { "pods_unreachable" };
                Err(Refused { flags, details: error.to_string(), ..refused(reason) })
            }
        }
    }

    /// Of one service's one workload: looked up under all their labels once, not per connection.
    fn counters(&self, joined: &Joined) -> Tcp {
        let key = (joined.sni.host.clone(), joined.established.workload.clone());
        let mut counters = self.counters.lock().expect("no holder panics");
        if counters.len() >= COUNTERS_MAX && !counters.contains_key(&key) {
            counters.clear();
        }
        let look_up = || self.telemetry.tcp(&self.conversation(joined), "");
        counters.entry(key).or_insert_with(look_up).clone()
    }

    fn conversation(&self, joined: &Joined) -> Conversation {
        let host = joined.sni.host.as_str();
        let mut labels = host.split('.');
        let mut label = || labels.next().unwrap_or_default().to_owned();
        let (service_name, service_namespace) = (label(), label());
        Conversation {
            reporter: Reporter::Source,
            source: Party {
                workload: self.account.clone(),
                namespace: self.namespace.clone(),
                app: self.account.clone(),
                cluster: Some(self.cluster.clone()),
                ..Party::default()
            },
            destination: Party {
                workload: workload(&joined.established.workload).to_owned(),
                namespace: service_namespace.clone(),
                app: service_name.clone(),
                cluster: Some(self.cluster.clone()),
                ..Party::default()
            },
            service: host.to_owned(),
            service_name,
            service_namespace,
            mutual_tls: true,
        }
    }
}

/// Who was asked for.
enum Found {
    Pod { sni: Sni, established: Box<Established>, hello: Vec<u8> },
    Probe { hello: Vec<u8> },
}
