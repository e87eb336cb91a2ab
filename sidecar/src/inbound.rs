//! What the mesh sends: who it is, whether that may be, and on to the application.

use crate::original::{Capture, Meant, Own};
use crate::outbound::{IDLE, Log, flags, until_cut};
use crate::redirect::inbound_source;
use crate::refusal::Refusals;
use crate::sniff::{Sniffed, sniff};
use bytes::{Bytes, BytesMut};
use mesh::authorize::Caller;
use mesh::inventory::MtlsMode;
use mesh::name::{Identity, Protocol, TrustDomain};
use mesh::program::{InboundListener, InboundPort, Listener, Resource, ResourceName};
use proxy::Engine;
use proxy::admission::{Admission, Rules};
use proxy::drain::Live;
use proxy::prefixed::Prefixed;
use proxy::telemetry::{Conversation, Party, Reporter, Telemetry};
use proxy::tunnel::{self, End, reset};
use proxy_http::{Application, Downstream, Http};
use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use trust::bundle::Bundle;
use trust::svid::Svid;
use trust::tls::{self, Clients};

/// From the ClientHello to the end of the handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// An application on this machine answers the handshake at once, or its queue is full.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Where both plain and mesh peers are let in, a peer that says nothing for this long may wait for
/// the server to begin: the application is connected, and whoever speaks first decides. A mesh
/// peer's ClientHello comes with its ACK, or after one retransmission (200 ms).
const SILENCE: Duration = Duration::from_millis(250);

/// ALPN of ports that speak HTTP, what we like best first. Never `istio-peer-exchange`: a peer
/// would send its metadata in front of the application's bytes (design decision 5).
const HTTP_ALPN: [&[u8]; 6] =
    [b"istio-h2", b"istio-http/1.1", b"h2", b"http/1.1", b"istio-http/1.0", b"istio"];
/// ALPN of all other ports: whatever a peer believes it to be, bytes are carried.
const TCP_ALPN: [&[u8]; 5] = [b"istio", b"istio-h2", b"istio-http/1.1", b"h2", b"http/1.1"];

/// All that inbound connections share.
#[derive(Debug)]
pub(crate) struct Inbound {
    pub(crate) engine: Engine,
    pub(crate) http: Http,
    pub(crate) telemetry: Telemetry,
    pub(crate) refusals: Refusals,
    pub(crate) me: Party,
    pub(crate) capture: Capture,
    pub(crate) own: Own,
    pub(crate) terms: Terms,
    /// Policies as they change.
    pub(crate) rules: Rules,
}

/// TLS configurations for the trust domains that may connect now.
#[derive(Debug)]
pub(crate) struct Terms {
    svid: watch::Receiver<Arc<Svid>>,
    bundle: watch::Receiver<Arc<Bundle>>,
    made: Mutex<Option<Made>>,
}

#[derive(Debug, Clone)]
struct Made {
    domains: BTreeSet<TrustDomain>,
    http: Arc<ServerConfig>,
    tcp: Arc<ServerConfig>,
}

impl Terms {
    pub(crate) fn new(
        svid: watch::Receiver<Arc<Svid>>,
        bundle: watch::Receiver<Arc<Bundle>>,
    ) -> Self {
        Self { svid, bundle, made: Mutex::default() }
    }

    fn of(&self, domains: &BTreeSet<TrustDomain>, http: bool) -> Arc<ServerConfig> {
        let mut made = self.made.lock().expect("no holder panics");
        let current = made.take_if(|made| made.domains == *domains).unwrap_or_else(|| {
            let config = |alpn: &[&[u8]]| {
                let clients = Clients::Required { trust_domains: Some(domains.clone()) };
                tls::server_config(self.svid.clone(), self.bundle.clone(), clients, alpn)
            };
            Made { domains: domains.clone(), http: config(&HTTP_ALPN), tcp: config(&TCP_ALPN) }
        });
        let chosen = if http { current.http.clone() } else { current.tcp.clone() };
        *made = Some(current);
        chosen
    }
}

/// One connection and what is known of it.
struct Arrival {
    peer: SocketAddr,
    /// What the peer connected to.
    to: SocketAddr,
    /// Where the application listens.
    application: SocketAddr,
    port: InboundPort,
    /// The listener under which it came.
    resource: Arc<Resource>,
    /// Verified by mutual TLS.
    identity: Option<Identity>,
    server_name: Option<String>,
}

impl Inbound {
    /// Serves one connection to its end.
    pub(crate) async fn serve(&self, stream: TcpStream, peer: SocketAddr, live: Live) {
        let Meant { to, application } = match self.capture.inbound(&stream) {
            Ok(meant) => meant,
            Err(problem) => return self.refuse(stream, "not_redirected", None, &problem),
        };
        if self.own.is_itself(to) {
            return self.refuse(stream, "loop", Some(to), &"it would go round in circles");
        }
        if !self.own.is_mine(to.ip()) {
            return self.refuse(stream, "not_this_pod", Some(to), &"another pod was meant");
        }
        let resource = match self.engine.resource(&ResourceName::inbound()).await {
            Ok(resource) => resource,
            Err(problem) => return self.refuse(stream, "no_configuration", Some(to), &problem),
        };
        let Resource::Listener(Listener::Inbound(listener)) = &*resource else {
            let problem = "the inbound listener is of another kind";
            return self.refuse(stream, "no_configuration", Some(to), &problem);
        };
        let port = listener.ports.get(&to.port()).cloned().unwrap_or_else(|| InboundPort {
            mtls: listener.mtls,
            protocol: Protocol::Tcp,
            service: String::new(),
        });
        let mode = port.mtls;
        let arrival = Arrival {
            peer,
            to,
            application,
            port,
            resource: resource.clone(),
            identity: None,
            server_name: None,
        };
        match mode {
            MtlsMode::Strict => {
                let stream = Prefixed::new(Bytes::new(), stream);
                self.terminate(stream, arrival, listener, None, &live).await;
            }
            MtlsMode::Disable => self.plain(stream, arrival, &live).await,
            MtlsMode::Permissive => self.permissive(stream, arrival, listener, &live).await,
        }
    }

    fn refuse(
        &self,
        stream: TcpStream,
        reason: &'static str,
        to: Option<SocketAddr>,
        detail: &dyn std::fmt::Display,
    ) {
        self.refusals.refuse(stream, "inbound", reason, to, detail);
    }

    async fn permissive(
        &self,
        mut stream: TcpStream,
        arrival: Arrival,
        listener: &InboundListener,
        live: &Live,
    ) {
        let mut read = BytesMut::new();
        // An HTTP client always speaks first; a connection made in advance may wait long.
        let requests = arrival.port.protocol.is_http();
        let patience = if requests { IDLE } else { SILENCE };
        let first = tokio::select! {
            first = timeout(patience, sniff(&mut stream, &mut read)) => first,
            // Who has said nothing by then loses nothing, and must not hold up the end.
            () = live.asked_to_end_for(SILENCE) => return self.refusals.count("inbound", "silent"),
        };
        let (sniffed, application) = match first {
            Ok(sniffed) => (sniffed, None),
            Err(_) if requests => return self.refusals.count("inbound", "silent"),
            // Who waits for the server to begin comes in plaintext: the application is not even
            // dialled for one who may not.
            Err(_) if !self.admission(&arrival).verdict().allows() => {
                match timeout(HANDSHAKE_TIMEOUT, sniff(&mut stream, &mut read)).await {
                    Ok(sniffed) => (sniffed, None),
                    Err(_) => return self.deny(&stream, &arrival),
                }
            }
            Err(_) => {
                let server = match dial(arrival.application).await {
                    Ok(server) => server,
                    Err(problem) => {
                        self.refuse(stream, "application", Some(arrival.to), &problem);
                        return;
                    }
                };
                let sniffed = tokio::select! {
                    sniffed = sniff(&mut stream, &mut read) => sniffed,
                    // The server begins, which no mesh peer waits for before its ClientHello; what
                    // the client says later is carried as it comes.
                    _ = server.readable() => Ok(Sniffed::Plain),
                    () = live.cut() => return,
                    // Neither side begins.
                    () = sleep(IDLE) => return self.refusals.count("inbound", "silent"),
                };
                (sniffed, Some(server))
            }
        };
        let stream = Prefixed::new(read.freeze(), stream);
        match sniffed {
            Ok(Sniffed::Mesh) => {
                self.terminate(stream, arrival, listener, application, live).await;
            }
            // The application behind a port of HTTP speaks no TLS of its own there: it can only be
            // meant for us.
            Ok(Sniffed::Tls) if requests => {
                self.terminate(stream, arrival, listener, application, live).await;
            }
            Ok(Sniffed::Plain) if requests => self.http(stream, arrival, live).await,
            Ok(Sniffed::Http) if arrival.port.protocol.may_be_http() && application.is_none() => {
                self.http(stream, arrival, live).await;
            }
            Ok(Sniffed::Tls | Sniffed::Plain | Sniffed::Http) => {
                self.tunnel(stream, application, arrival, live).await;
            }
            Ok(Sniffed::Ended) => {}
            Err(problem) => {
                tracing::debug!(peer = %arrival.peer, error = %problem, "nothing to serve");
                self.refusals.count("inbound", "unreadable");
            }
        }
    }

    /// Mutual TLS, then on to the application.
    async fn terminate(
        &self,
        stream: Prefixed,
        mut arrival: Arrival,
        listener: &InboundListener,
        application: Option<TcpStream>,
        live: &Live,
    ) {
        let requests = arrival.port.protocol.may_be_http();
        let terms = self.terms.of(&listener.trust_domains, requests);
        let accepting = TlsAcceptor::from(terms).accept(stream);
        let stream = match timeout(HANDSHAKE_TIMEOUT, accepting).await {
            Err(_) => return self.refusals.count("inbound", "handshake_timeout"),
            Ok(Ok(stream)) => stream,
            Ok(Err(problem)) => {
                let (reason, problem) = match tls::refused_io(&problem) {
                    Some(refused) => ("identity", refused.to_string()),
                    None => ("tls", problem.to_string()),
                };
                self.refusals.count("inbound", reason);
                let (peer, to) = (arrival.peer, arrival.to);
                tracing::info!(%peer, %to, error = %problem, reason, "a peer was refused");
                // The alert that says why is on its way; a reset might overtake it.
                return;
            }
        };
        let (_, session) = stream.get_ref();
        arrival.identity = session.peer_certificates().and_then(tls::peer_identity);
        arrival.server_name = session.server_name().map(str::to_owned);
        let as_tcp = session.alpn_protocol() == Some(b"istio");
        if arrival.identity.is_none() {
            // The verifier lets nobody in without one; should that ever change, this does not.
            return self.refusals.count("inbound", "identity");
        }
        if requests && !as_tcp && application.is_none() {
            self.http(stream, arrival, live).await;
        } else {
            self.tunnel(stream, application, arrival, live).await;
        }
    }

    async fn plain(&self, stream: TcpStream, arrival: Arrival, live: &Live) {
        if arrival.port.protocol.is_http() {
            self.http(stream, arrival, live).await;
        } else {
            let stream = Prefixed::new(Bytes::new(), stream);
            self.tunnel(stream, None, arrival, live).await;
        }
    }

    async fn http<T>(&self, stream: T, arrival: Arrival, live: &Live)
    where
        T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let admission = self.admission(&arrival);
        let Arrival { peer, to, application, port, identity, server_name, .. } = arrival;
        let InboundPort { service, protocol, .. } = port;
        let application = Application { address: application, service, protocol, admission };
        let downstream = Downstream { peer, local: to, identity, server_name };
        self.http.inbound(stream, application, downstream, live).await;
    }

    /// Bytes to the application and back, which may be `connected` already.
    async fn tunnel<T>(
        &self,
        mut stream: T,
        connected: Option<TcpStream>,
        arrival: Arrival,
        live: &Live,
    ) where
        T: AsyncRead + AsyncWrite + Socket + Unpin,
    {
        let admission = self.admission(&arrival);
        if !admission.verdict().allows() {
            return self.deny(stream.socket(), &arrival);
        }
        let Arrival { peer, to, application, port, identity, server_name, .. } = arrival;
        let mut log = Log::begin(peer, to);
        log.line.upstream_cluster = Some(format!("inbound|{}||", to.port()));
        log.line.requested_server_name = server_name;
        log.line.downstream_peer_uri_san = identity.as_ref().map(ToString::to_string);
        let connected = match connected {
            Some(connected) => Ok(connected),
            None => dial(application).await,
        };
        let mut server = match connected {
            Ok(server) => server,
            Err(problem) => {
                self.refusals.count("inbound", "application");
                log.line.upstream_transport_failure_reason = Some(problem.to_string());
                log.end("UF", None);
                return reset(stream.socket());
            }
        };
        log.line.upstream_host = Some(application.to_string());
        let numbers = self.telemetry.tcp(&self.conversation(&port, identity.as_ref()), "");
        numbers.opened();
        let copying = tunnel::copy(&mut stream, &mut server, IDLE);
        let (transferred, denial) = tokio::select! {
            transferred = until_cut(copying, live) => (transferred, None),
            verdict = admission.revoked() => (None, verdict.denial()),
        };
        let moved = transferred.map_or((0, 0), |t| (t.received, t.sent));
        numbers.closed(moved.0, moved.1);
        if !transferred.is_some_and(|t| t.end == End::Finished) {
            reset(stream.socket());
            // The application must not take an end in the middle for the end either.
            reset(&server);
        }
        if denial.is_some() {
            self.refusals.count("inbound", "rbac");
            log.line.connection_termination_details = denial;
            return log.end("", None);
        }
        log.end(flags(transferred), transferred);
    }

    fn admission(&self, arrival: &Arrival) -> Admission {
        let caller = Caller {
            identity: arrival.identity.clone(),
            source: arrival.peer.ip(),
            destination: arrival.to,
            server_name: arrival.server_name.clone(),
        };
        Admission::new(caller, arrival.resource.clone(), self.rules.clone())
    }

    /// Resets a connection whose caller may not call, and says by which rule, as Envoy does.
    fn deny(&self, stream: &TcpStream, arrival: &Arrival) {
        self.refusals.count("inbound", "rbac");
        let mut log = Log::begin(arrival.peer, arrival.to);
        log.line.upstream_cluster = Some(format!("inbound|{}||", arrival.to.port()));
        log.line.requested_server_name = arrival.server_name.clone();
        log.line.downstream_peer_uri_san = arrival.identity.as_ref().map(ToString::to_string);
        log.line.connection_termination_details = self.admission(arrival).verdict().denial();
        log.end("", None);
        reset(stream);
    }

    fn conversation(&self, port: &InboundPort, peer: Option<&Identity>) -> Conversation {
        let mut names = port.service.split('.').map(str::to_owned);
        Conversation {
            reporter: Reporter::Destination,
            source: peer.map_or_else(Party::default, |peer| Party {
                workload: String::new(),
                namespace: peer.namespace.clone(),
                principal: peer.to_string(),
                app: peer.account.clone(),
                cluster: None,
            }),
            destination: self.me.clone(),
            service: port.service.clone(),
            service_name: names.next().unwrap_or_default(),
            service_namespace: names.next().unwrap_or_else(|| self.me.namespace.clone()),
            mutual_tls: peer.is_some(),
        }
    }
}

/// The socket below a stream, to end it hard.
pub(crate) trait Socket {
    fn socket(&self) -> &TcpStream;
}

impl Socket for Prefixed {
    fn socket(&self) -> &TcpStream {
        self.tcp()
    }
}

impl Socket for tokio_rustls::server::TlsStream<Prefixed> {
    fn socket(&self) -> &TcpStream {
        self.get_ref().0.tcp()
    }
}

/// Connects to an application of this pod, from where the redirect knows us.
pub(crate) async fn dial(to: SocketAddr) -> io::Result<TcpStream> {
    let socket = match to {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    socket.set_nodelay(true)?;
    socket.bind((inbound_source(to.ip()), 0).into())?;
    timeout(CONNECT_TIMEOUT, socket.connect(to)).await.map_err(|_| {
        io::Error::new(io::ErrorKind::TimedOut, "the application did not answer within 5 s")
    })?
}
