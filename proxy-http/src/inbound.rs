//! Requests of the mesh on their last step, from this sidecar to its application.

use crate::body::{Ended, Relay, ResponseBody};
use crate::connection::{Connection, UNSAID_MAX};
use crate::grpc;
use crate::headers::{self, RESET, SOURCE, UNSENT, UNSERVED};
use crate::payload::{self, Payload};
use crate::pool::Pool;
use crate::received::{Broken, Received, Refusal};
use crate::record::Record;
use crate::refusal;
use crate::serve::{Downstream, Shared, local};
use crate::upgrade;
use crate::version::Wire;
use http::request::Parts;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use mesh::name::{ClusterId, Protocol};
use proxy::admission::Admission;
use proxy::drain::Held;
use proxy::telemetry::{Conversation, Http, Party, Reporter};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::OnceCell;
use tokio::time::timeout;

/// An application on this machine answers the handshake at once, or its queue is full.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A connection to an application is kept free for this long.
const IDLE: Duration = Duration::from_secs(60);
/// Longest body that is kept to be sent again, bytes.
const KEEP_MAX: u64 = 65_536;

/// Connections to applications, by address.
pub(crate) type Pools = Pool<(SocketAddr, Wire), ()>;

/// What a connection is for.
#[derive(Debug, Clone)]
pub struct Application {
    /// Where it listens.
    pub address: SocketAddr,
    /// The host it serves, for metrics; empty where none is known.
    pub service: String,
    /// What it speaks.
    pub protocol: Protocol,
    /// Whether the peer may call it: asked for every request, as policies change meanwhile.
    pub admission: Admission,
}

/// One connection from the mesh.
#[derive(Debug)]
pub(crate) struct Context {
    shared: Arc<Shared>,
    application: Application,
    downstream: Downstream,
    /// `x-forwarded-client-cert`, where mutual TLS proved a caller.
    proof: Option<HeaderValue>,
    /// What the caller's connection holds.
    held: Option<Held>,
    /// A clone for each request that was let in, until its answer has ended.
    admitted: Arc<()>,
    /// Looked up at the first request, which says where it comes from.
    metrics: OnceCell<Http>,
}

impl Context {
    pub(crate) fn new(
        shared: Arc<Shared>,
        application: Application,
        downstream: Downstream,
        held: Option<Held>,
    ) -> Self {
        let proof = downstream
            .identity
            .as_ref()
            .map(|peer| headers::proof(&shared.options.svid.borrow().identity, peer));
        let admitted = Arc::default();
        Self { shared, application, downstream, proof, held, admitted, metrics: OnceCell::new() }
    }

    async fn metrics(&self, source: Option<&HeaderValue>) -> Http {
        let begin = async || {
            let me = &self.shared.options.me;
            let mut names = self.application.service.split('.').map(str::to_owned);
            let peer = self.downstream.identity.as_ref();
            // Without a certificate nobody's word about itself counts.
            let said = peer.and(source).and_then(|source| source.to_str().ok());
            self.shared.options.telemetry.http(&Conversation {
                reporter: Reporter::Destination,
                source: peer.map_or_else(Party::default, |peer| {
                    let (cluster, workload) = source_of(said);
                    Party {
                        workload,
                        namespace: peer.namespace.clone(),
                        principal: peer.to_string(),
                        app: peer.account.clone(),
                        cluster,
                    }
                }),
                destination: me.clone(),
                service: self.application.service.clone(),
                service_name: names.next().unwrap_or_default(),
                service_namespace: names.next().unwrap_or_else(|| me.namespace.clone()),
                mutual_tls: peer.is_some(),
            })
        };
        self.metrics.get_or_init(begin).await.clone()
    }
}

/// `cluster;workload` of [`SOURCE`], each only if it can be what it says.
fn source_of(said: Option<&str>) -> (Option<ClusterId>, String) {
    let (cluster, workload) = said.and_then(|said| said.split_once(';')).unwrap_or_default();
    let fine = workload.len() <= 253
        && workload
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-.".contains(&b));
    (cluster.parse().ok(), if fine { workload.to_owned() } else { String::new() })
}

pub(crate) async fn answer(
    context: &Context,
    mut request: Request<Incoming>,
) -> Response<ResponseBody> {
    let client = hyper::upgrade::on(&mut request);
    let (mut parts, incoming) = request.into_parts();
    let wish = headers::upgrade(&parts);
    let refusal = refusal::of(&parts, context.downstream.head_max());
    let came = parts.version;
    let trailers = headers::takes_trailers(&parts.headers);
    let mut record = Record::begin(&parts);
    headers::begin_request(&mut parts);
    record.line.request_id = headers::id(&parts.headers);
    let source = parts.headers.remove(&SOURCE);
    record.metrics = Some(context.metrics(source.as_ref()).await);
    record.line.upstream_host = Some(context.application.address.to_string());
    record.line.upstream_cluster =
        Some(format!("inbound|{}||", context.application.address.port()));
    record.line.downstream_remote_address = Some(context.downstream.peer.to_string());
    record.line.downstream_local_address = Some(context.downstream.local.to_string());
    record.line.requested_server_name = context.downstream.server_name.clone();
    record.line.downstream_peer_uri_san =
        context.downstream.identity.as_ref().map(ToString::to_string);
    if let Some(refused) = refusal {
        if let Some(limit) = refused.limit {
            context.shared.counters.limit(limit.to_owned());
        }
        return reply(record, refused.status, "DPE", &refused.why, None);
    }
    if let Some(denial) = context.application.admission.verdict().denial() {
        return deny(record, denial);
    }
    let admitted = context.admitted.clone();
    let wire = Wire::towards(context.application.protocol, came, record.grpc);
    // There is no switching on HTTP/2; who asks must live with an answer (RFC 9110 section 7.8).
    let wish = wish.filter(|_| wire == Wire::Http1);
    headers::end_hop(&mut parts.headers, wish.as_ref());
    headers::arrive(&mut parts.headers, context.proof.as_ref());

    let body = Received::request(incoming, came, &context.shared.limits());
    let payload = match payload::keep(body, KEEP_MAX).await {
        Ok(payload) => payload,
        Err(broken) => return unreceived(record, &broken),
    };
    let hop = Hop { parts: &parts, wire, trailers, payload: &payload };
    let exchanged = exchange(context, hop, &record).await;
    payload.forget();
    let (mut response, connection) = match exchanged {
        Ok(answer) => answer,
        Err(Failed { status, flags, reason, marker }) => {
            return reply(record, status, flags, &reason, marker);
        }
    };
    // Only a sidecar may say that an application was not reached.
    response.headers_mut().remove(&UNSERVED);
    record.answered(&response);
    let service_time = u64::try_from(record.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
    record.line.upstream_service_time = Some(service_time);
    if let (StatusCode::SWITCHING_PROTOCOLS, Some(client)) =
        (response.status(), wish.as_ref().map(|_| client))
    {
        let server = hyper::upgrade::on(&mut response);
        let admission = context.application.admission.clone();
        let revoked = async move { drop(admission.revoked().await) };
        let held = (context.held.clone(), connection);
        let drain = &context.shared.options.drain;
        upgrade::join(client, server, drain, record, held, revoked);
        // What was chosen, which may be less than was asked for (RFC 9110 section 7.8).
        let chosen = response.headers().get(header::UPGRADE).cloned().or(wish);
        headers::end_hop(response.headers_mut(), chosen.as_ref());
        return response.map(|_| ResponseBody::Local(bytes::Bytes::new()));
    }
    headers::end_response(&mut response, came);
    let (shared, address) = (context.shared.clone(), context.application.address);
    let answered = std::mem::take(response.version_mut());
    let grpc = record.grpc;
    response.map(|inner| {
        let finish = move |ended, passed| {
            drop(admitted);
            record.end(ended, passed);
            if ended == Ended::Whole || wire == Wire::Http2 {
                shared.applications.give((address, wire), connection, IDLE, false);
            }
        };
        ResponseBody::Relay(Box::new(Relay::new(
            Received::new(inner, answered),
            grpc,
            None,
            finish,
        )))
    })
}

/// Why no response came.
struct Failed {
    status: StatusCode,
    flags: &'static str,
    reason: String,
    /// For the sidecar at the other end, where it may ask somebody else.
    marker: Option<HeaderValue>,
}

/// One request on its last hop.
#[derive(Clone, Copy)]
struct Hop<'a> {
    parts: &'a Parts,
    wire: Wire,
    /// The client takes trailers.
    trailers: bool,
    payload: &'a Payload,
}

/// Sends the request on a kept connection or a new one; a kept one that proves dead before any
/// response byte is replaced once, where that cannot do something twice.
async fn exchange(
    context: &Context,
    hop: Hop<'_>,
    record: &Record,
) -> Result<(Response<Incoming>, Connection<()>), Failed> {
    let Hop { parts, wire, trailers, payload } = hop;
    let address = context.application.address;
    let shared = &context.shared;
    let mut fresh = false;
    loop {
        let kept = if fresh { None } else { kept(context, wire).await };
        let reused = kept.is_some();
        let mut connection = match kept {
            Some(connection) => connection,
            None => connect(context, wire).await.map_err(|problem| Failed {
                status: StatusCode::SERVICE_UNAVAILABLE,
                flags: "UF",
                reason: format!("the application does not take connections: {problem}"),
                marker: Some(UNSENT),
            })?,
        };
        let body = payload.body(&record.requested);
        let request = headers::frame(parts, wire, trailers, &address.to_string(), body);
        let mut failure = match connection.try_send(request).await {
            Ok(response) => return Ok((response, connection)),
            Err(failure) => failure,
        };
        if let Some(Refusal { status, flags, reason }) = payload.broken() {
            return Err(Failed { status, flags, reason, marker: None });
        }
        let unsent = failure.take_message().is_some() || grpc::is_refused(failure.error());
        let again = payload.is_ended() && is_idempotent(&parts.method);
        if !(reused && (unsent && payload.is_complete() || again)) {
            let problem = failure.error();
            let (flags, marker) = if unsent { ("UF", UNSENT) } else { ("UC", RESET) };
            let reason = format!("the application ended the connection: {problem}");
            let status = StatusCode::SERVICE_UNAVAILABLE;
            return Err(Failed { status, flags, reason, marker: Some(marker) });
        }
        shared.counters.again("stale");
        fresh = true;
    }
}

/// A connection that is there already, or a stream on a new one that is expected to take more soon.
async fn kept(context: &Context, wire: Wire) -> Option<Connection<()>> {
    let (pool, key) = (&context.shared.applications, (context.application.address, wire));
    let free = || pool.take(&key, Instant::now(), 1, |()| true);
    let now = free();
    if now.is_some() || wire == Wire::Http1 {
        return now;
    }
    tokio::select! {
        biased;
        Ok(connection) = pool.wait(key, false) => Some(connection),
        // Another connection would be answered no sooner.
        promised = pool.promised(&key, UNSAID_MAX) => promised.then(free).flatten(),
    }
}

async fn connect(context: &Context, wire: Wire) -> io::Result<Connection<()>> {
    let address = context.application.address;
    let source = (context.shared.options.application_source)(address.ip());
    let stream = timeout(CONNECT_TIMEOUT, dial(address, source)).await.map_err(|_| {
        io::Error::new(io::ErrorKind::TimedOut, "it did not answer the handshake within 5 s")
    })??;
    let connection = Connection::open(stream, wire, false, ()).await.map_err(io::Error::other)?;
    context.shared.applications.share((address, wire), &connection, IDLE);
    Ok(connection)
}

async fn dial(address: SocketAddr, source: Option<IpAddr>) -> io::Result<TcpStream> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    socket.set_nodelay(true)?;
    if let Some(source) = source {
        socket.bind((source, 0).into())?;
    }
    socket.connect(address).await
}

/// May be sent twice: it changes nothing, or the second time changes nothing more (RFC 9110
/// section 9.2.2, without TRACE, which no application wants).
pub(crate) fn is_idempotent(method: &Method) -> bool {
    [Method::GET, Method::HEAD, Method::OPTIONS, Method::PUT, Method::DELETE].contains(method)
}

/// What Envoy answers to who may not call.
const DENIED: &str = "RBAC: access denied";

/// The answer to who may not call. Nothing in it asks for another attempt.
fn deny(mut record: Record, denial: String) -> Response<ResponseBody> {
    (record.code, record.flags) = (StatusCode::FORBIDDEN.as_u16(), "");
    record.line.response_code_details = Some(denial);
    let mut response = Response::builder()
        .status(StatusCode::FORBIDDEN)
        .header(header::CONTENT_TYPE, "text/plain")
        .body(ResponseBody::Local(bytes::Bytes::from_static(DENIED.as_bytes())))
        .expect("a literal header makes a response");
    if record.grpc {
        *response.body_mut() = ResponseBody::Local(bytes::Bytes::new());
        let told = grpc::tell(&mut response, DENIED);
        (record.code, record.grpc_status) = (200, Some(told as u16));
    }
    response
}

/// How long an answer that is under way may go on once its caller is denied.
const LAST_ANSWERS: Duration = Duration::from_secs(5);

impl Context {
    /// Returns once the caller is denied and an answer from before has not ended in time: a stream
    /// may be as long as its connection.
    pub(crate) fn outstayed(&self) -> impl Future<Output = ()> + use<> {
        let (admission, admitted) = (self.application.admission.clone(), self.admitted.clone());
        async move {
            loop {
                admission.revoked().await;
                tokio::time::sleep(LAST_ANSWERS).await;
                // Held by the connection and here; else by requests.
                if !admission.verdict().allows() && Arc::strong_count(&admitted) > 2 {
                    return;
                }
            }
        }
    }
}

/// The answer to a request whose body did not come as it should.
pub(crate) fn unreceived(record: Record, broken: &Broken) -> Response<ResponseBody> {
    let Refusal { status, flags, reason } = broken.refusal();
    reply(record, status, flags, &reason, None)
}

/// An answer of our own: told like any other.
pub(crate) fn reply(
    mut record: Record,
    status: StatusCode,
    flags: &'static str,
    sentence: &str,
    marker: Option<HeaderValue>,
) -> Response<ResponseBody> {
    record.code = status.as_u16();
    record.flags = flags;
    record.line.response_code_details = Some(sentence.to_owned());
    let mut response = local(status, sentence);
    if record.grpc {
        *response.body_mut() = ResponseBody::Local(bytes::Bytes::new());
        let told = grpc::tell(&mut response, sentence);
        (record.code, record.grpc_status) = (200, Some(told as u16));
    } else if [StatusCode::BAD_REQUEST, StatusCode::REQUEST_TIMEOUT].contains(&status) {
        // What follows on this connection cannot be trusted to be a request.
        let close = HeaderValue::from_static("close");
        response.headers_mut().insert(header::CONNECTION, close);
    }
    // For the sidecar at the other end, which may ask somebody else.
    if let Some(marker) = marker {
        response.headers_mut().insert(UNSERVED, marker);
    }
    response
}
