//! HTTP/2 and gRPC from an application into the mesh, with servers that refuse, reset and go away.

use crate::inbound::draining;
use crate::port::Port;
use crate::world::{PATIENCE, World, accept_as_copy, bind};
use bytes::Bytes;
use futures::future::{BoxFuture, join_all};
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use mesh::name::Protocol;
use proxy::drain::Drain;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::timeout;

type Serve =
    Arc<dyn Fn(Request<RecvStream>, SendResponse<Bytes>) -> BoxFuture<'static, ()> + Send + Sync>;

/// A copy of the service behind its sidecar: mutual TLS in front of raw HTTP/2.
#[derive(Debug, Clone)]
pub(crate) struct Copy {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
    pub(crate) requests: Arc<AtomicUsize>,
}

impl Copy {
    async fn start(serve: Serve) -> Self {
        Self::behind(Some(b"istio-h2"), serve).await
    }

    async fn behind(alpn: Option<&'static [u8]>, serve: Serve) -> Self {
        let (listener, address) = bind().await;
        let copy = Self { address, connections: Arc::default(), requests: Arc::default() };
        let requests = copy.requests.clone();
        accept_as_copy(listener, alpn, copy.connections.clone(), move |stream| {
            let (requests, serve) = (requests.clone(), serve.clone());
            async move {
                let Ok(mut connection) = h2::server::handshake(stream).await else { return };
                while let Some(Ok((request, respond))) = connection.accept().await {
                    requests.fetch_add(1, Ordering::SeqCst);
                    tokio::spawn(serve(request, respond));
                }
            }
        });
        copy
    }

    /// Says back what it was sent, as an application without a sidecar.
    async fn echo_plain() -> Self {
        Self::behind(None, Arc::new(|request, respond| Box::pin(echo(request, respond)))).await
    }

    /// Says back what it was sent, and ends with trailers that say so.
    pub(crate) async fn echo() -> Self {
        Self::start(Arc::new(|request, respond| Box::pin(echo(request, respond)))).await
    }

    /// An application without a sidecar that says when an upload has begun, and how many octets came or
    /// that it was reset; where it listens.
    pub(crate) async fn uploaded(
        told: mpsc::Sender<()>,
        whole: mpsc::Sender<Result<usize, h2::Error>>,
    ) -> SocketAddr {
        let read_on: Serve = Arc::new(move |request, _respond| {
            let (told, whole) = (told.clone(), whole.clone());
            Box::pin(async move {
                let (mut body, mut came) = (request.into_body(), Ok(0));
                while let (Some(data), Ok(octets)) = (body.data().await, &mut came) {
                    match data {
                        Ok(data) => {
                            *octets += data.len();
                            let _ = body.flow_control().release_capacity(data.len());
                            let _ = told.try_send(());
                        }
                        Err(problem) => came = Err(problem),
                    }
                }
                let _ = whole.send(came).await;
            })
        });
        Self::behind(None, read_on).await.address
    }
}

async fn echo(request: Request<RecvStream>, mut respond: SendResponse<Bytes>) {
    let uri = request.uri().to_string();
    let te = request.headers().get("te").cloned();
    let (_, mut body) = request.into_parts();
    let mut response = Response::new(());
    response.headers_mut().insert("x-uri", HeaderValue::from_str(&uri).unwrap());
    if let Some(te) = te {
        response.headers_mut().insert("x-te", te);
    }
    let mut stream = respond.send_response(response, false).unwrap();
    while let Some(Ok(data)) = body.data().await {
        let _ = body.flow_control().release_capacity(data.len());
        stream.send_data(data, false).unwrap();
    }
    let asked = body.trailers().await.unwrap().unwrap_or_default();
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    trailers.extend(asked);
    let _ = stream.send_trailers(trailers);
}

fn refuse(reason: Reason) -> Serve {
    Arc::new(move |_, mut respond| {
        Box::pin(async move {
            respond.send_reset(reason);
        })
    })
}

pub(crate) type Body = http_body_util::combinators::BoxBody<Bytes, std::io::Error>;

pub(crate) async fn client(world: &World) -> SendRequest<Body> {
    dial(world.address).await
}

pub(crate) async fn dial(to: SocketAddr) -> SendRequest<Body> {
    let stream = TcpStream::connect(to).await.unwrap();
    // Nagle would keep a second request until the first is acknowledged.
    stream.set_nodelay(true).unwrap();
    let (sender, connection) =
        http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    sender
}

fn whole(text: &'static str) -> Body {
    Full::new(Bytes::from(text)).map_err(|never| match never {}).boxed()
}

/// A body that says what the test says.
fn spoken() -> (mpsc::Sender<Frame<Bytes>>, Body) {
    let (sender, mut receiver) = mpsc::channel(8);
    let frames = futures::stream::poll_fn(move |cx| receiver.poll_recv(cx).map(|f| f.map(Ok)));
    (sender, StreamBody::new(frames).boxed())
}

fn call(body: Body) -> Request<Body> {
    Request::post("http://hello.shop.global/shop.Hello/Say?x")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(body)
        .unwrap()
}

/// Returns once a copy has been asked something.
async fn asked(copy: &Copy) {
    let asked = async {
        while copy.requests.load(Ordering::SeqCst) == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, asked).await.expect("it is asked in time");
}

pub(crate) async fn speaking(protocol: Protocol, copies: &[&Copy]) -> World {
    World::speaking(protocol, copies.iter().map(|copy| copy.address).collect(), |_| {}).await
}

/// All of a response.
struct Got {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
    trailers: HeaderMap,
}

async fn collect(response: Response<Incoming>) -> hyper::Result<Got> {
    let (parts, body) = response.into_parts();
    let collected = body.collect().await?;
    let trailers = collected.trailers().cloned().unwrap_or_default();
    let (status, headers) = (parts.status, parts.headers);
    Ok(Got { status, headers, body: collected.to_bytes(), trailers })
}

async fn send(sender: &mut SendRequest<Body>, request: Request<Body>) -> Got {
    let whole = async { collect(sender.send_request(request).await.unwrap()).await.unwrap() };
    timeout(PATIENCE, whole).await.expect("an answer in time")
}

#[tokio::test]
async fn a_call_arrives_whole_with_its_authority_and_both_sides_trailers() {
    let copy = Copy::echo().await;
    let world = speaking(Protocol::Grpc, &[&copy]).await;
    let (words, body) = spoken();
    let mut trailers = HeaderMap::new();
    trailers.insert("x-asked", HeaderValue::from_static("1"));
    let say = async {
        words.send(Frame::data("one ".into())).await.unwrap();
        words.send(Frame::data("two".into())).await.unwrap();
        words.send(Frame::trailers(trailers)).await.unwrap();
        drop(words);
    };
    let mut sender = client(&world).await;
    let (got, ()) = tokio::join!(send(&mut sender, call(body)), say);
    assert_eq!((got.status, &got.body[..]), (StatusCode::OK, &b"one two"[..]));
    assert_eq!(got.headers["x-uri"], "http://hello.shop.global/shop.Hello/Say?x");
    assert_eq!(got.headers["x-te"], "trailers");
    assert_eq!(got.trailers["grpc-status"], "0");
    assert_eq!(got.trailers["x-asked"], "1");
    let text = world.metrics.encode();
    let line = text.lines().find(|line| line.starts_with("istio_requests_total")).unwrap();
    assert!(line.contains("request_protocol=\"grpc\""), "{line}");
    assert!(line.contains("grpc_response_status=\"0\""), "{line}");
}

#[tokio::test]
async fn trailers_come_after_a_long_body_too() {
    let copy = Copy::echo().await;
    let world = speaking(Protocol::Http2, &[&copy]).await;
    let (words, body) = spoken();
    let mut trailers = HeaderMap::new();
    trailers.insert("x-asked", HeaderValue::from_static("1"));
    let piece = Bytes::from(vec![7; 64 * 1024]);
    let say = async move {
        for _ in 0..64 {
            words.send(Frame::data(piece.clone())).await.unwrap();
        }
        words.send(Frame::trailers(trailers)).await.unwrap();
    };
    let mut request = call(body);
    request.headers_mut().remove("content-type");
    let mut sender = client(&world).await;
    let (got, ()) = tokio::join!(send(&mut sender, request), say);
    assert_eq!(got.body.len(), 64 * 64 * 1024);
    assert_eq!(got.trailers["x-asked"], "1");
}

#[tokio::test]
async fn messages_go_both_ways_while_a_call_is_open() {
    let copy = Copy::echo().await;
    let world = speaking(Protocol::Grpc, &[&copy]).await;
    let (words, body) = spoken();
    let mut sender = client(&world).await;
    let response = timeout(PATIENCE, sender.send_request(call(body))).await.unwrap().unwrap();
    let mut answers = response.into_body();
    for text in ["ping", "pong"] {
        words.send(Frame::data(text.into())).await.unwrap();
        let heard = timeout(PATIENCE, answers.frame()).await.unwrap().unwrap().unwrap();
        assert_eq!(heard.into_data().unwrap(), text);
    }
}

#[tokio::test]
async fn many_calls_share_one_connection() {
    let copy = Copy::echo().await;
    let world = speaking(Protocol::Http2, &[&copy]).await;
    let mut first = client(&world).await;
    assert_eq!(send(&mut first, call(whole("first"))).await.body, "first");
    let calls = (0..50).map(|_| {
        let mut sender = first.clone();
        async move { send(&mut sender, call(whole("again"))).await.body }
    });
    assert!(join_all(calls).await.iter().all(|body| body == "again"));
    assert_eq!(copy.connections.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_refused_call_is_made_again_elsewhere_also_when_it_streams() {
    let refusing = Copy::start(refuse(Reason::REFUSED_STREAM)).await;
    let good = Copy::echo().await;
    let world = speaking(Protocol::Grpc, &[&refusing, &good]).await;
    let (words, body) = spoken();
    words.send(Frame::data("kept".into())).await.unwrap();
    let mut sender = client(&world).await;
    let calling = send(&mut sender, call(body));
    let (got, ()) = tokio::join!(calling, async {
        asked(&good).await;
        words.send(Frame::data(" and more".into())).await.unwrap();
        drop(words);
    });
    assert_eq!(got.body, "kept and more");
    assert!(refusing.requests.load(Ordering::SeqCst) >= 1);
}

/// A sidecar tells a call in gRPC's own words that its application is not there.
#[tokio::test]
async fn a_call_that_did_not_reach_its_application_is_made_again_elsewhere() {
    let unsent: Serve = Arc::new(|_, mut respond| {
        let head = Response::builder()
            .header("content-type", "application/grpc")
            .header("grpc-status", "14")
            .header("x-isthmus-unserved", "unsent");
        let _ = respond.send_response(head.body(()).unwrap(), true);
        Box::pin(async {})
    });
    let (bad, good) = (Copy::start(unsent).await, Copy::echo().await);
    let world = speaking(Protocol::Grpc, &[&bad, &good]).await;
    let got = send(&mut client(&world).await, call(whole("kept"))).await;
    assert_eq!((got.body, bad.requests.load(Ordering::SeqCst)), ("kept".into(), 1));
    // Where there is nobody else, the client is told.
    let world = speaking(Protocol::Grpc, &[&bad]).await;
    let request = call(whole("kept"));
    let response = client(&world).await.send_request(request).await.unwrap();
    assert_eq!(response.headers()["grpc-status"], "14");
    assert!(!response.headers().contains_key("x-isthmus-unserved"));
}

#[tokio::test]
async fn what_nobody_answers_ends_with_a_status() {
    let nobody = Port::held();
    let world = World::speaking(Protocol::Grpc, vec![nobody.address], |_| {}).await;
    let mut sender = client(&world).await;
    let got = send(&mut sender, call(whole("x"))).await;
    assert_eq!(got.status, StatusCode::OK);
    assert_eq!(got.headers["grpc-status"], "14");
    assert_eq!(got.headers["content-type"], "application/grpc");
    // A request that is no call is told in HTTP's words.
    let plain = Request::get("http://hello.shop.global/").body(whole("")).unwrap();
    assert_eq!(send(&mut sender, plain).await.status, StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test]
async fn a_call_that_breaks_off_ends_with_a_status_and_other_requests_are_cut() {
    let seen = Arc::new(tokio::sync::Notify::new());
    let told = seen.clone();
    let broken: Serve = Arc::new(move |_, mut respond| {
        let told = told.clone();
        Box::pin(async move {
            let mut stream = respond.send_response(Response::new(()), false).unwrap();
            stream.send_data("part".into(), false).unwrap();
            told.notified().await;
            stream.send_reset(Reason::CANCEL);
        })
    });
    let copy = Copy::start(broken).await;
    let world = speaking(Protocol::Http2, &[&copy]).await;
    let mut sender = client(&world).await;
    let response = sender.send_request(call(whole("x"))).await.unwrap();
    seen.notify_one();
    let got = timeout(PATIENCE, collect(response)).await.unwrap().expect("it ends in order");
    assert_eq!(got.trailers["grpc-status"], "1", "what gRPC calls a reset with CANCEL");
    let plain = Request::get("http://hello.shop.global/").body(whole("")).unwrap();
    let response = sender.send_request(plain).await.unwrap();
    seen.notify_one();
    assert!(timeout(PATIENCE, collect(response)).await.unwrap().is_err(), "cut, not ended");
}

#[tokio::test]
async fn a_caller_who_leaves_is_told_to_the_server() {
    let (left, mut leaving) = mpsc::channel(1);
    let waiting: Serve = Arc::new(move |_, mut respond| {
        let left = left.clone();
        Box::pin(async move {
            let reset = std::future::poll_fn(|cx| respond.poll_reset(cx)).await;
            let _ = left.send(reset.ok()).await;
        })
    });
    let copy = Copy::start(waiting).await;
    let world = speaking(Protocol::Grpc, &[&copy]).await;
    let mut sender = client(&world).await;
    let calling = tokio::spawn(async move { sender.send_request(call(whole("x"))).await.is_ok() });
    asked(&copy).await;
    calling.abort();
    let reason = timeout(PATIENCE, leaving.recv()).await.unwrap().unwrap();
    assert_eq!(reason, Some(Reason::CANCEL));
}

#[tokio::test]
async fn a_callers_own_deadline_ends_its_call() {
    let silent: Serve = Arc::new(|_, mut respond| {
        Box::pin(async move {
            let _ = std::future::poll_fn(|cx| respond.poll_reset(cx)).await;
        })
    });
    let copy = Copy::start(silent).await;
    let world = speaking(Protocol::Grpc, &[&copy]).await;
    let mut request = call(whole("x"));
    request.headers_mut().insert("grpc-timeout", HeaderValue::from_static("150m"));
    let got = send(&mut client(&world).await, request).await;
    assert_eq!(got.headers["grpc-status"], "4", "DEADLINE_EXCEEDED");
}

#[tokio::test]
async fn a_call_goes_by_http2_though_its_port_is_named_http() {
    let copy = Copy::echo().await;
    let world = speaking(Protocol::Http, &[&copy]).await;
    let got = send(&mut client(&world).await, call(whole("x"))).await;
    assert_eq!((&got.body[..], &got.trailers["grpc-status"]), (&b"x"[..], &"0".parse().unwrap()));
}

#[tokio::test]
async fn requests_that_could_mean_two_things_are_refused() {
    let copy = Copy::echo().await;
    let world = speaking(Protocol::Http2, &[&copy]).await;
    let mut sender = client(&world).await;
    let request = |method: Method, uri: &str, host: Option<&'static str>| {
        let mut request = Request::new(whole(""));
        *request.method_mut() = method;
        *request.uri_mut() = uri.parse().unwrap();
        if let Some(host) = host {
            request.headers_mut().insert("host", HeaderValue::from_static(host));
        }
        request
    };
    for refused in [
        request(Method::GET, "http://hello.shop.global/", Some("admin.shop.global")),
        request(Method::GET, "http://admin@hello.shop.global/", None),
        request(Method::CONNECT, "hello.shop.global:80", None),
    ] {
        let what = format!("{:?}", refused.uri());
        assert_eq!(send(&mut sender, refused).await.status, StatusCode::BAD_REQUEST, "{what}");
    }
    assert_eq!(copy.requests.load(Ordering::SeqCst), 0);
    let same = request(Method::GET, "http://hello.shop.global/", Some("Hello.Shop.Global"));
    assert_eq!(send(&mut sender, same).await.status, StatusCode::OK);
}

#[tokio::test]
async fn our_own_answer_to_head_has_no_body() {
    let copy = Copy::echo().await;
    let world = speaking(Protocol::Http2, &[&copy]).await;
    let request = Request::head("http://admin@hello.shop.global/").body(whole("")).unwrap();
    let got = send(&mut client(&world).await, request).await;
    assert_eq!((got.status, got.body.len()), (StatusCode::BAD_REQUEST, 0));
}

/// An octet of a long message: no two of its neighbourhood are alike, so that a gap would show.
fn octets(from: usize, length: usize) -> Bytes {
    (from..from + length).map(|at| (at * 31 + at / 251) as u8).collect::<Vec<u8>>().into()
}

/// A call is open when its server is told to end: the client learns that its connection takes no other,
/// and the call goes on to its end, of which nothing is missing.
async fn drained_under_a_call(address: SocketAddr, drain: &Drain, kind: &'static str) {
    const FIRST: usize = 100;
    const LENGTH: usize = 1024 * 1024;
    let stream = TcpStream::connect(address).await.unwrap();
    let (sender, connection) = h2::client::handshake(stream).await.unwrap();
    let connection = tokio::spawn(connection);
    let mut sender = sender.ready().await.unwrap();
    let request = Request::post("http://hello.shop.global/shop.Hello/Say")
        .header("content-type", kind)
        .header("te", "trailers");
    let (response, mut words) = sender.send_request(request.body(()).unwrap(), false).unwrap();
    words.send_data(octets(0, FIRST), false).unwrap();
    let mut body = timeout(PATIENCE, response).await.unwrap().unwrap().into_body();
    let mut heard = Vec::new();
    while heard.len() < FIRST {
        heard.extend(timeout(PATIENCE, body.data()).await.unwrap().unwrap().unwrap());
    }

    let draining = tokio::spawn({
        let drain = drain.clone();
        async move { drain.drain(PATIENCE * 2).await }
    });
    // Asks nothing of the server, so that only what the server says by itself ends the wait.
    let told = async {
        loop {
            match std::future::poll_fn(|cx| sender.poll_ready(cx)).await {
                Ok(()) => tokio::time::sleep(Duration::from_millis(5)).await,
                Err(problem) => return problem,
            }
        }
    };
    let told = timeout(PATIENCE, told).await.expect("the client is told that its server leaves");
    assert!(told.is_go_away() && told.is_remote(), "{told}");
    assert_eq!(told.reason(), Some(Reason::NO_ERROR));
    assert!(!connection.is_finished() && !draining.is_finished(), "the call is open");

    let speaking = async {
        for at in (FIRST..LENGTH).step_by(10_000) {
            words.send_data(octets(at, 10_000.min(LENGTH - at)), false).unwrap();
            tokio::task::yield_now().await;
        }
        let mut asked = HeaderMap::new();
        asked.insert("x-asked", HeaderValue::from_static("1"));
        words.send_trailers(asked).unwrap();
    };
    let hearing = async {
        while let Some(data) = body.data().await {
            let data = data.expect("it goes on");
            body.flow_control().release_capacity(data.len()).unwrap();
            heard.extend(data);
        }
        body.trailers().await.unwrap().expect("trailers")
    };
    let both = async { tokio::join!(speaking, hearing) };
    let ((), trailers) = timeout(PATIENCE, both).await.expect("the call ends");
    assert!(heard == octets(0, LENGTH), "{} octets, of {LENGTH}", heard.len());
    assert_eq!(
        (&trailers["grpc-status"], &trailers["x-asked"]),
        (&"0".parse().unwrap(), &"1".parse().unwrap())
    );
    let ended =
        timeout(PATIENCE, connection).await.expect("the connection ends after its last call");
    ended.unwrap().expect("in order");
    assert_eq!(timeout(PATIENCE, draining).await.unwrap().unwrap(), 0, "nothing had to be cut");
}

#[tokio::test]
async fn a_call_outlives_the_drain_of_its_connection_which_takes_no_other() {
    for (protocol, kind) in [(Protocol::Http2, "text/plain"), (Protocol::Grpc, "application/grpc")]
    {
        let copy = Copy::echo().await;
        let world = speaking(protocol, &[&copy]).await;
        drained_under_a_call(world.address, &world.drain, kind).await;
        assert_eq!(copy.requests.load(Ordering::SeqCst), 1);
    }
}

#[tokio::test]
async fn a_call_to_an_application_outlives_the_drain_of_its_connection() {
    for kind in ["text/plain", "application/grpc"] {
        let application = Copy::echo_plain().await;
        let drain = Drain::new();
        let address = draining(application.address, Protocol::Http2, &drain).await;
        drained_under_a_call(address, &drain, kind).await;
        assert_eq!(application.requests.load(Ordering::SeqCst), 1);
    }
}
