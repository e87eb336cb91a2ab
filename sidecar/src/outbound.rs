//! What the application sends: by its original destination into the mesh, past it, or nowhere.

use crate::named::Named;
use crate::original::{Capture, Own};
use crate::refusal::Refusals;
use crate::sniff::{Sniffed, sniff};
use anyhow::Context as _;
use bytes::{Bytes, BytesMut};
use ipnet::IpNet;
use mesh::program::{ClusterName, Listener, OutboundListener, OutboundTarget, Resource};
use mesh::program::{ResourceKind, ResourceName};
use proxy::access::{self, Line};
use proxy::drain::Live;
use proxy::prefixed::Prefixed;
use proxy::telemetry::{Conversation, Party, Reporter, Telemetry, workload};
use proxy::tunnel::{self, End, Transferred, reset};
use proxy::{Ask, Engine, NotHere, Outcome, Stream};
use proxy_http::{Downstream, Http};
use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// A TCP connection on which nothing moves for this long is closed (Envoy's default).
pub(crate) const IDLE: Duration = Duration::from_secs(3_600);
/// How long a destination outside the mesh has to take a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A client of a port that says nothing of itself and that keeps silent for this long waits for its
/// server to begin (Istio's `protocolDetectionTimeout` of old).
const SILENCE: Duration = Duration::from_millis(100);
/// What meshed endpoints are asked to speak for plain TCP.
const ALPN: &[u8] = b"istio";

/// All that outbound connections share.
#[derive(Debug)]
pub(crate) struct Outbound {
    pub(crate) engine: Engine,
    pub(crate) http: Http,
    pub(crate) telemetry: Telemetry,
    pub(crate) refusals: Refusals,
    pub(crate) me: Party,
    pub(crate) capture: Capture,
    pub(crate) own: Own,
    pub(crate) vip_ranges: Vec<IpNet>,
    pub(crate) named: Named,
}

/// What to do with a destination.
enum Way {
    Mesh(OutboundListener),
    /// Not the mesh's: bytes as they come, to where they were sent.
    Past,
    Refused {
        reason: &'static str,
        detail: String,
    },
}

impl Outbound {
    /// Serves one connection to its end.
    pub(crate) async fn serve(&self, stream: TcpStream, peer: SocketAddr, live: Live) {
        let destination = match self.capture.outbound(&stream) {
            Ok(destination) => destination,
            Err(problem) => {
                let reason = match self.capture {
                    Capture::Redirected => "not_redirected",
                    Capture::Slots { .. } => "unknown_address",
                };
                return self.refuse(stream, reason, None, &problem);
            }
        };
        if self.own.is_itself(destination) {
            let detail = "it would go round in circles";
            return self.refuse(stream, "loop", Some(destination), &detail);
        }
        match self.way(destination).await {
            Way::Refused { reason, detail } => {
                self.refuse(stream, reason, Some(destination), &detail);
            }
            Way::Past => self.pass(stream, peer, destination, &live).await,
            Way::Mesh(OutboundListener { target: OutboundTarget::Http { route }, .. }) => {
                self.requests(stream, peer, destination, route, &live).await;
            }
            Way::Mesh(OutboundListener { target: OutboundTarget::Tcp { cluster }, .. }) => {
                let stream = Prefixed::new(Bytes::new(), stream);
                self.tunnel(stream, peer, destination, &cluster, &live).await;
            }
            Way::Mesh(OutboundListener {
                target: OutboundTarget::Auto { route, cluster }, ..
            }) => {
                let mut stream = stream;
                let mut read = BytesMut::new();
                let first = tokio::select! {
                    first = timeout(SILENCE, sniff(&mut stream, &mut read)) => first,
                    () = live.cut() => return reset(&stream),
                };
                let stream = Prefixed::new(read.freeze(), stream);
                match first {
                    Ok(Ok(Sniffed::Http)) => {
                        self.requests(stream, peer, destination, route, &live).await;
                    }
                    // Who is silent waits for the server to begin.
                    Ok(Ok(Sniffed::Mesh | Sniffed::Tls | Sniffed::Plain)) | Err(_) => {
                        self.tunnel(stream, peer, destination, &cluster, &live).await;
                    }
                    Ok(Ok(Sniffed::Ended)) => {}
                    Ok(Err(problem)) => {
                        tracing::debug!(%peer, error = %problem, "nothing to serve");
                        self.refusals.count("outbound", "unreadable");
                    }
                }
            }
        }
    }

    /// Requests, by the route of this name.
    async fn requests<T>(
        &self,
        stream: T,
        peer: SocketAddr,
        local: SocketAddr,
        route: String,
        live: &Live,
    ) where
        T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let route = ResourceName::new(ResourceKind::Route, route);
        let downstream = Downstream { peer, local, identity: None, server_name: None };
        self.http.outbound(stream, route, downstream, live).await;
    }

    fn refuse(
        &self,
        stream: TcpStream,
        reason: &'static str,
        destination: Option<SocketAddr>,
        detail: &dyn std::fmt::Display,
    ) {
        self.refusals.refuse(stream, "outbound", reason, destination, detail);
    }

    async fn way(&self, destination: SocketAddr) -> Way {
        let name = ResourceName::outbound(destination.ip(), destination.port());
        let virtual_ip = self.vip_ranges.iter().any(|range| range.contains(&destination.ip()));
        let problem = match self.engine.resource(&name).await {
            Ok(resource) => match &*resource {
                Resource::Listener(Listener::Outbound(listener)) => {
                    return Way::Mesh(listener.clone());
                }
                Resource::Listener(Listener::Inbound(_) | Listener::Gateway(_))
                | Resource::Route(_)
                | Resource::Cluster(_)
                | Resource::Endpoints(_)
                | Resource::Secret(_)
                | Resource::Zone(_) => NotHere::WrongKind(name),
            },
            Err(problem) => problem,
        };
        let (reason, known) = match &problem {
            NotHere::Absent(_) | NotHere::NotInFile(_) => ("unknown_address", true),
            NotHere::NotConnected(_) => ("no_control_plane", false),
            NotHere::TimedOut(_) => ("control_plane_silent", false),
            NotHere::TooMany(_) => ("too_many_names", false),
            NotHere::WrongKind(_) => ("wrong_kind", false),
        };
        // Nobody but the mesh is at a virtual address; elsewhere the world goes on (ALLOW_ANY),
        // unless silence about a service of the mesh would make its caller one without a name.
        let ours =
            virtual_ip || !known && self.named.may_have(&self.engine.snapshot(), destination.ip());
        if !ours {
            return Way::Past;
        }
        Way::Refused { reason, detail: problem.to_string() }
    }

    /// Connects before the client speaks, so that protocols where the server begins work; once
    /// connected, nothing is ever sent twice.
    async fn tunnel(
        &self,
        mut stream: Prefixed,
        peer: SocketAddr,
        destination: SocketAddr,
        cluster: &ClusterName,
        live: &Live,
    ) {
        let mut log = Log::begin(peer, destination);
        log.line.upstream_cluster = Some(cluster.to_string());
        let ask = Ask { alpn: ALPN.to_vec(), ..Ask::default() };
        let connected = tokio::select! {
            connected = self.engine.connect(cluster, &ask) => connected,
            () = live.cut() => return reset(stream.tcp()),
        };
        let mut established = match connected {
            Ok(established) => established,
            Err(failed) => {
                self.refusals.count("outbound", "upstream");
                let numbers = self.telemetry.tcp(&self.conversation(cluster, None), failed.flag());
                numbers.opened();
                numbers.closed(0, 0);
                log.line.upstream_transport_failure_reason = Some(failed.to_string());
                log.line.upstream_request_attempt_count =
                    Some(u32::try_from(failed.attempts().len()).unwrap_or(u32::MAX));
                log.end(failed.flag(), None);
                return reset(stream.tcp());
            }
        };
        let destined = Party {
            workload: workload(&established.endpoint.workload).to_owned(),
            namespace: established
                .identity
                .as_ref()
                .map(|i| i.namespace.clone())
                .unwrap_or_default(),
            principal: established.identity.as_ref().map(ToString::to_string).unwrap_or_default(),
            app: established.identity.as_ref().map(|i| i.account.clone()).unwrap_or_default(),
            cluster: Some(established.endpoint.cluster.clone()),
        };
        let numbers = self.telemetry.tcp(&self.conversation(cluster, Some(destined)), "");
        numbers.opened();
        log.line.upstream_host = Some(established.endpoint.address.to_string());
        log.line.upstream_peer_uri_san = established.identity.as_ref().map(ToString::to_string);
        log.line.upstream_local_address =
            established.stream.tcp().local_addr().ok().map(|address| address.to_string());
        log.line.upstream_request_attempt_count =
            Some(u32::try_from(established.attempts.len()).unwrap_or(u32::MAX));
        let transferred = match &mut established.stream {
            Stream::Plain(server) => match stream.bare() {
                Some(client) => until_cut(tunnel::splice(client, server, IDLE), live).await,
                None => until_cut(tunnel::copy(&mut stream, server, IDLE), live).await,
            },
            Stream::Tls(server) => {
                until_cut(tunnel::copy(&mut stream, &mut **server, IDLE), live).await
            }
        };
        let moved = transferred.map_or((0, 0), |t| (t.received, t.sent));
        numbers.closed(moved.0, moved.1);
        let outcome = if moved.0 > 0 { Outcome::Success } else { Outcome::Cancelled };
        established.in_flight.report(outcome);
        if !transferred.is_some_and(|t| t.end == End::Finished) {
            // The client must not take an end in the middle for the end.
            reset(stream.tcp());
        }
        log.end(flags(transferred), transferred);
    }

    /// Past the mesh: to where it was sent, as it was sent.
    async fn pass(&self, mut stream: TcpStream, peer: SocketAddr, to: SocketAddr, live: &Live) {
        let mut log = Log::begin(peer, to);
        log.line.upstream_cluster = Some("PassthroughCluster".to_owned());
        let connected = async {
            let server = timeout(CONNECT_TIMEOUT, TcpStream::connect(to))
                .await
                .context("it did not answer within 10 s")??;
            server.set_nodelay(true)?;
            anyhow::Ok(server)
        };
        let mut server = match connected.await {
            Ok(server) => server,
            Err(problem) => {
                log.line.upstream_transport_failure_reason = Some(format!("{problem:#}"));
                log.end("UF", None);
                return reset(&stream);
            }
        };
        let conversation = Conversation {
            reporter: Reporter::Source,
            source: self.me.clone(),
            destination: Party::default(),
            service: "PassthroughCluster".to_owned(),
            service_name: "PassthroughCluster".to_owned(),
            service_namespace: String::new(),
            mutual_tls: false,
        };
        let numbers = self.telemetry.tcp(&conversation, "");
        numbers.opened();
        log.line.upstream_host = Some(to.to_string());
        let transferred = until_cut(tunnel::splice(&mut stream, &mut server, IDLE), live).await;
        let moved = transferred.map_or((0, 0), |t| (t.received, t.sent));
        numbers.closed(moved.0, moved.1);
        if !transferred.is_some_and(|t| t.end == End::Finished) {
            reset(&stream);
        }
        log.end(flags(transferred), transferred);
    }

    fn conversation(&self, cluster: &ClusterName, destination: Option<Party>) -> Conversation {
        let mut names = cluster.host.split('.').map(str::to_owned);
        let mutual_tls = destination.as_ref().is_some_and(|party| !party.principal.is_empty());
        Conversation {
            reporter: Reporter::Source,
            source: self.me.clone(),
            destination: destination.unwrap_or_default(),
            service: cluster.host.clone(),
            service_name: names.next().unwrap_or_default(),
            service_namespace: names.next().unwrap_or_default(),
            mutual_tls,
        }
    }
}

/// `None` when the drain's time was over first.
pub(crate) async fn until_cut(
    copying: impl Future<Output = Transferred>,
    live: &Live,
) -> Option<Transferred> {
    tokio::select! {
        transferred = copying => Some(transferred),
        () = live.cut() => None,
    }
}

/// Envoy's flags for the end of a TCP connection.
pub(crate) fn flags(transferred: Option<Transferred>) -> &'static str {
    match transferred.map(|t| t.end) {
        Some(End::Finished) => "",
        Some(End::ClientFailed) => "DC",
        Some(End::ServerFailed) => "UC",
        Some(End::Idle) => "SI",
        None => "LR",
    }
}

/// A TCP connection's line in the access log.
pub(crate) struct Log {
    pub(crate) line: Line,
    begun: Instant,
}

impl Log {
    pub(crate) fn begin(peer: SocketAddr, destination: SocketAddr) -> Self {
        let line = Line {
            start_time: access::timestamp(SystemTime::now()),
            downstream_remote_address: Some(peer.to_string()),
            downstream_local_address: Some(destination.to_string()),
            ..Line::default()
        };
        Self { line, begun: Instant::now() }
    }

    pub(crate) fn end(mut self, flags: &str, transferred: Option<Transferred>) {
        self.line.response_flags = flags.to_owned();
        if let Some(Transferred { sent, received, .. }) = transferred {
            (self.line.bytes_received, self.line.bytes_sent) = (sent, received);
        }
        self.line.duration = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.line.write();
    }
}
