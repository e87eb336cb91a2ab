//! Request heads that come too slowly, are too long, or have too many lines: refused, and counted by the
//! name of the limit they are over.

use crate::http2::{Body, Copy as Copy2, client, speaking};
use crate::world::{Copy, Does, PATIENCE, World, raw};
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt as _, Full};
use mesh::name::Protocol;
use mesh::program::{ResourceKind, ResourceName};
use proxy_http::Downstream;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::time::{Instant, pause, resume, sleep, timeout};

/// What a head may take.
const HEAD: Duration = Duration::from_secs(10);
const SECOND: Duration = Duration::from_secs(1);

/// A connection into the mesh without a socket: while a test's clock is stopped, all time passes that
/// nobody uses.
fn connected(world: &World) -> DuplexStream {
    let (client, server) = tokio::io::duplex(64 * 1024);
    let (http, live) = (world.http.clone(), world.drain.live());
    tokio::spawn(async move {
        let route = ResourceName::new(ResourceKind::Route, "hello");
        let (peer, local) = ("127.0.0.1:1".parse().unwrap(), "240.240.7.2:80".parse().unwrap());
        let downstream = Downstream { peer, local, identity: None, server_name: None };
        http.outbound(server, route, downstream, &live).await;
    });
    client
}

/// How often connections and requests were over the limit of that name.
fn counted(world: &World, limit: &str) -> u32 {
    let text = world.metrics.encode();
    let line = format!("isthmus_http_limits_total{{limit=\"{limit}\"}} ");
    text.lines().find_map(|it| it.strip_prefix(&line)).map_or(0, |count| count.parse().unwrap())
}

/// Reads until the other side ends the connection; what it said.
async fn end(client: &mut DuplexStream) -> String {
    let mut said = Vec::new();
    client.read_to_end(&mut said).await.unwrap();
    String::from_utf8(said).unwrap()
}

#[tokio::test]
async fn a_head_that_stops_or_crawls_ends_its_connection_and_is_counted() {
    let copy = Copy::start("a", Does::Answer).await;
    let world = World::new(&[&copy]).await;
    pause();
    let long = format!("GET / HTTP/1.1\r\nhost: a\r\nx: {}\r\n\r\n", "y".repeat(100));
    // The last two are a preface of HTTP/2, and may become one.
    for (index, head) in [&*long, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "P"].iter().enumerate() {
        let (mut client, begun) = (connected(&world), Instant::now());
        client.write_all(&head.as_bytes()[..head.len().div_ceil(2)]).await.unwrap();
        assert_eq!(timeout(HEAD * 3, end(&mut client)).await.expect("it is ended"), "");
        let took = begun.elapsed();
        assert!(took >= HEAD && took <= HEAD * 2 + SECOND, "{head:?} after {took:?}");
        assert_eq!(counted(&world, "head_timeout"), index as u32 + 1, "{head:?}");
    }
    for (index, head) in [&*long, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"].iter().enumerate() {
        let (client, begun) = (connected(&world), Instant::now());
        let (mut reader, mut writer) = tokio::io::split(client);
        let drip = async {
            for byte in head.bytes() {
                if writer.write_all(&[byte]).await.is_err() {
                    break;
                }
                sleep(SECOND).await;
            }
            std::future::pending::<()>().await;
        };
        let mut said = Vec::new();
        let ended = async {
            tokio::select! {
                () = drip => {}
                read = reader.read_to_end(&mut said) => assert_eq!(read.unwrap(), 0),
            }
        };
        timeout(HEAD * 3, ended).await.expect("it is ended");
        let took = begun.elapsed();
        assert!(took >= HEAD && took <= HEAD * 2 + SECOND, "{head:?} after {took:?}");
        assert_eq!(counted(&world, "head_timeout"), index as u32 + 4, "{head:?}");
    }
    assert_eq!(counted(&world, "idle_timeout"), 0);
    assert_eq!(copy.seen(), 0);
}

/// Sends the rest of a request, in time as it passes for everybody, and reads the answer.
async fn answered(client: &mut DuplexStream, rest: &str) {
    resume();
    client.write_all(rest.as_bytes()).await.unwrap();
    let mut said = String::new();
    while !said.ends_with("a 0") {
        let mut buffer = [0; 1024];
        let length = timeout(PATIENCE, client.read(&mut buffer)).await.unwrap().unwrap();
        assert!(length > 0, "{said}");
        said.push_str(std::str::from_utf8(&buffer[..length]).unwrap());
    }
    assert!(said.starts_with("HTTP/1.1 200 "), "{said}");
    pause();
}

#[tokio::test]
async fn a_head_may_take_its_time_and_a_connection_rest_between_two() {
    let copy = Copy::start("a", Does::Answer).await;
    let world = World::new(&[&copy]).await;
    pause();
    let mut client = connected(&world);
    client.write_all(b"GET / HTTP/1.1\r\nho").await.unwrap();
    sleep(HEAD - SECOND).await;
    answered(&mut client, "st: a\r\n\r\n").await;
    sleep(Duration::from_secs(3_000)).await;
    answered(&mut client, "GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let rested = Instant::now();
    assert_eq!(timeout(HEAD * 1_000, end(&mut client)).await.expect("it is ended"), "");
    let took = rested.elapsed();
    assert!(took >= SECOND * 3_500 && took <= SECOND * 3_700, "after {took:?}");
    // Nothing was begun, so that it was not a slow head.
    assert_eq!((counted(&world, "head_timeout"), counted(&world, "idle_timeout")), (0, 1));
}

/// A client that says nothing at all is the same.
#[tokio::test]
async fn a_connection_on_which_nobody_ever_speaks_ends_after_an_hour() {
    let world = World::new(&[]).await;
    pause();
    let (mut client, begun) = (connected(&world), Instant::now());
    assert_eq!(timeout(HEAD * 1_000, end(&mut client)).await.expect("it is ended"), "");
    assert_eq!(begun.elapsed().as_secs(), 3_600);
    assert_eq!((counted(&world, "head_timeout"), counted(&world, "idle_timeout")), (0, 1));
}

#[tokio::test]
async fn too_many_and_too_long_headers_are_counted_apart_over_http1() {
    let copy = Copy::start("a", Does::Answer).await;
    let world = World::new(&[&copy]).await;
    let many: String = (0..101).map(|n| format!("h{n}: 1\r\n")).collect();
    let long = "y".repeat(70_000);
    let lines = "line\n".repeat(30_000);
    let count = ("headers_count", format!("GET / HTTP/1.1\r\nhost: a\r\n{many}\r\n"));
    let size = ("headers_size", format!("GET / HTTP/1.1\r\nhost: a\r\nx: {long}\r\n\r\n"));
    let target = ("headers_size", format!("GET /{long} HTTP/1.1\r\nhost: a\r\n\r\n"));
    // A body before them is of no account, however long it is and whatever it says.
    let length = lines.len();
    let post = format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: {length}\r\n\r\n{lines}");
    let (mut counts, mut sizes) = (0, 0);
    for body in ["", &post] {
        for (limit, request) in [&count, &size, &target] {
            let answer = raw(world.address, &format!("{body}{request}")).await;
            assert!(answer.contains("HTTP/1.1 431 "), "{limit}: {answer}");
            match *limit {
                "headers_count" => counts += 1,
                _ => sizes += 1,
            }
            let both = || (counted(&world, "headers_count"), counted(&world, "headers_size"));
            // At its connection's end, which comes a little after the client's.
            let told = async {
                while both().0 + both().1 < counts + sizes {
                    sleep(Duration::from_millis(5)).await;
                }
            };
            let _ = timeout(PATIENCE, told).await;
            assert_eq!(both(), (counts, sizes), "{limit}");
        }
    }
    assert_eq!(copy.seen(), 3, "the bodies before them");
}

#[tokio::test]
async fn too_many_and_too_long_headers_are_counted_apart_over_http2() {
    let copy = Copy2::echo().await;
    let world = speaking(Protocol::Http2, &[&copy]).await;
    let mut sender = client(&world).await;
    let empty = || -> Body { Full::new(Bytes::new()).map_err(|never| match never {}).boxed() };
    let mut status = async |headers: &[(String, String)]| {
        let mut request = Request::get("http://hello.shop.global/");
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let request = request.body(empty()).unwrap();
        let response = timeout(PATIENCE, sender.send_request(request)).await.unwrap().unwrap();
        let told = response.headers().get("grpc-status").map(|it| it.to_str().unwrap().to_owned());
        (response.status().as_u16(), told)
    };
    let counts = || (counted(&world, "headers_count"), counted(&world, "headers_size"));
    let one = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let many: Vec<_> = (0..101).map(|n| one(&format!("h{n}"), "1")).collect();
    assert_eq!(status(&many).await, (431, None));
    assert_eq!(counts(), (1, 0));
    let mut long = vec![one("x", &"y".repeat(70_000))];
    assert_eq!(status(&long).await, (431, None));
    assert_eq!(counts(), (1, 1));
    // RESOURCE_EXHAUSTED, and no HTTP.
    long.push(one("content-type", "application/grpc"));
    assert_eq!(status(&long).await, (200, Some("8".to_owned())));
    assert_eq!(counts(), (1, 2));
    // So long that h2 answers before us, and nobody is told.
    assert_eq!(status(&[one("x", &"y".repeat(200_000))]).await, (431, None));
    assert_eq!(counts(), (1, 2));
    assert_eq!(status(&[one("x", &"y".repeat(60_000))]).await.0, 200);
    assert_eq!(counts(), (1, 2));
}

/// hyper ends such a connection in order and tells nobody, so that no limit is counted for it.
#[tokio::test]
async fn a_client_of_http2_that_answers_no_ping_loses_its_connection() {
    let copy = Copy2::echo().await;
    let world = speaking(Protocol::Http2, &[&copy]).await;
    pause();
    // A preface and settings; then nothing, or a frame of which most is missing.
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    for rest in [&b""[..], b"\0\x10\0\x01\x04\0\0\0\x01\x83"] {
        let (mut client, begun) = (connected(&world), Instant::now());
        client.write_all(&[preface, rest].concat()).await.unwrap();
        let mut said = Vec::new();
        let ended = timeout(HEAD * 10, client.read_to_end(&mut said)).await;
        ended.expect("it is ended").unwrap();
        let took = begun.elapsed();
        assert!(took >= SECOND * 39 && took <= SECOND * 60, "after {took:?}");
    }
}

#[tokio::test]
async fn a_client_of_http2_that_reads_nothing_loses_its_connection() {
    let copy = Copy2::echo().await;
    let world = speaking(Protocol::Http2, &[&copy]).await;
    pause();
    let (mut client, begun) = (connected(&world), Instant::now());
    let mut all = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
    // Pings, until their answers fill what lies between.
    all.extend(b"\0\0\x08\x06\0\0\0\0\0pingping".repeat(20_000));
    let sent = timeout(HEAD * 100, client.write_all(&all)).await.expect("it is ended");
    assert!(sent.is_err() && begun.elapsed() >= SECOND * 300, "after {:?}", begun.elapsed());
    assert_eq!(counted(&world, "response_not_taken"), 1);
}
