//! Clients that stand still: given up where they could move and do not, and only then.

use crate::world::{Copy, Does, PATIENCE, World};
use bytes::Bytes;
use http::Request;
use mesh::name::Protocol;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{sleep, timeout};

/// So long that a pause of [`REST`] stays far below it on a slow machine too.
const IDLE: Duration = Duration::from_secs(3);
const REST: Duration = Duration::from_millis(500);

async fn impatient(copies: &[&Copy], idle_max: Duration) -> World {
    let endpoints = copies.iter().map(|copy| copy.address).collect();
    World::within(idle_max, Protocol::Http, endpoints, |_| {}).await
}

/// A response with so many octets.
fn long(octets: usize) -> Does {
    let body = "x".repeat(octets);
    let text = format!("HTTP/1.1 200 OK\r\ncontent-length: {octets}\r\n\r\n{body}");
    Does::Raw(Box::leak(text.into_boxed_str()))
}

async fn counted(world: &World, limit: &str, times: u32) {
    let line = format!("isthmus_http_limits_total{{limit=\"{limit}\"}} {times}\n");
    let counted = async {
        while !world.metrics.encode().contains(&line) {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, counted)
        .await
        .unwrap_or_else(|_| panic!("no {line}: {}", world.metrics.encode()));
}

#[tokio::test]
async fn a_stream_whose_response_nobody_takes_is_reset_and_its_neighbours_are_not() {
    const WINDOW: usize = 16 * 1024;
    const LENGTH: usize = 14 * WINDOW;
    let copy = Copy::start("a", long(LENGTH)).await;
    let world = impatient(&[&copy], IDLE).await;
    let stream = TcpStream::connect(world.address).await.unwrap();
    let (sender, connection) = h2::client::Builder::new()
        .initial_window_size(WINDOW as u32)
        .handshake::<_, Bytes>(stream)
        .await
        .unwrap();
    tokio::spawn(connection);
    let mut sender = sender.ready().await.unwrap();
    let mut get = || {
        let request = Request::get("http://hello.shop.global/").body(()).unwrap();
        sender.send_request(request, true).unwrap().0
    };
    let (still, slow) = (get(), get());
    let begun = Instant::now();
    let still = async {
        let mut body = still.await.unwrap().into_body();
        let mut taken = 0;
        let reset = loop {
            match body.data().await {
                // Taken, and no room made for more.
                Some(Ok(data)) => taken += data.len(),
                Some(Err(reset)) => break reset,
                None => panic!("it ended after {taken}"),
            }
        };
        assert_eq!((taken, reset.reason()), (WINDOW, Some(h2::Reason::CANCEL)));
        begun.elapsed()
    };
    // Slower than the limit in all, and never standing still for as long.
    let slow = async {
        let mut body = slow.await.unwrap().into_body();
        let mut taken = 0;
        while let Some(data) = body.data().await {
            let length = data.expect("it goes on").len();
            taken += length;
            sleep(REST * (length as u32) / WINDOW as u32).await;
            body.flow_control().release_capacity(length).unwrap();
        }
        assert_eq!(taken, LENGTH);
        begun.elapsed()
    };
    let (reset_after, ended_after) =
        timeout(PATIENCE, async { tokio::join!(still, slow) }).await.unwrap();
    assert!(reset_after >= IDLE, "{reset_after:?}");
    assert!(ended_after > IDLE * 2, "{ended_after:?}");
    counted(&world, "response_not_taken", 1).await;
}

/// A connection that has asked for a response, with little room for it.
async fn asking(world: &World) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(16 * 1024).unwrap();
    let mut stream = socket.connect(world.address).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    stream
}

#[tokio::test]
async fn a_connection_whose_response_nobody_takes_is_closed() {
    // Much more than the kernel's buffers hold.
    let copy = Copy::start("a", long(24 << 20)).await;
    let world = impatient(&[&copy], IDLE).await;
    let mut stream = asking(&world).await;
    counted(&world, "response_not_taken", 1).await;
    let text = world.metrics.encode();
    assert!(text.contains("response_flags=\"SI\""), "{text}");
    let mut rest = Vec::new();
    let _ = timeout(PATIENCE, stream.read_to_end(&mut rest)).await.expect("it is closed");
    assert!(rest.len() < 24 << 20, "all of it came");
}

#[tokio::test]
async fn a_slow_reader_of_a_long_response_is_not_hurt() {
    let copy = Copy::start("a", long(24 << 20)).await;
    let world = impatient(&[&copy], Duration::from_secs(2)).await;
    let mut stream = asking(&world).await;
    let (begun, mut taken, mut buffer) = (Instant::now(), 0, vec![0; 512 * 1024]);
    while taken < 24 << 20 {
        let length = timeout(PATIENCE, stream.read(&mut buffer)).await.unwrap().unwrap();
        assert!(length > 0, "it ended after {taken}");
        taken += length;
        // 8 MiB a second.
        let due = Duration::from_micros(taken as u64 / 8);
        sleep(due.saturating_sub(begun.elapsed())).await;
    }
    assert!(begun.elapsed() > Duration::from_secs(2), "{:?}", begun.elapsed());
    assert!(!world.metrics.encode().contains("response_not_taken"));
}

/// Sends these parts of a request, `pause` apart, and reads the answer to its end.
async fn spoken(world: &World, parts: &[&str], pause: Duration) -> (String, Duration) {
    let mut stream = TcpStream::connect(world.address).await.unwrap();
    let begun = Instant::now();
    for (index, part) in parts.iter().enumerate() {
        if index > 0 {
            sleep(pause).await;
        }
        stream.write_all(part.as_bytes()).await.unwrap();
    }
    let mut answer = Vec::new();
    let _ = timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("it is closed");
    (String::from_utf8_lossy(&answer).into_owned(), begun.elapsed())
}

#[tokio::test]
async fn a_body_that_was_announced_and_does_not_come_is_not_waited_for() {
    let copy = Copy::start("a", Does::Answer).await;
    let world = impatient(&[&copy], IDLE).await;
    let much = "x".repeat(300_000);
    let head = "POST / HTTP/1.1\r\nhost: a\r\ncontent-length:";
    let kept = format!("{head} 10\r\n\r\nabc");
    let streamed = format!("{head} 600000\r\n\r\n{much}");
    for (times, request) in [kept, streamed].into_iter().enumerate() {
        let (answer, took) = spoken(&world, &[&request], Duration::ZERO).await;
        let line = request.lines().next().unwrap_or_default().to_owned();
        assert!(answer.starts_with("HTTP/1.1 408 "), "{times} {line}: {answer}");
        assert!(answer.contains("connection: close"), "{answer}");
        assert!(took >= IDLE && took < PATIENCE, "{took:?}");
        counted(&world, "request_not_sent", times as u32 + 1).await;
    }
    assert_eq!(copy.seen(), 0, "nothing of them arrived whole");
    assert_eq!(world.client().await.get().await.status, 200);
}

#[tokio::test]
async fn a_body_of_unknown_length_may_rest_and_a_known_one_be_slow() {
    let copy = Copy::start("a", Does::Answer).await;
    let world = impatient(&[&copy], IDLE).await;
    let close = "POST / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n";
    for method in ["POST", "PUT", "GET"] {
        let close = close.replace("POST", method);
        let begun = format!("{close}transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n");
        let (answer, _) = spoken(&world, &[&begun, "0\r\n\r\n"], IDLE * 2).await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{method}: {answer}");
    }
    let begun = format!("{close}content-length: 8\r\n\r\n");
    let parts = [&*begun, "a", "b", "c", "d", "e", "f", "g", "h"];
    let (answer, took) = spoken(&world, &parts, REST).await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && took > IDLE, "{took:?} {answer}");
    assert_eq!(copy.seen(), 4);
}

#[tokio::test]
async fn clients_that_break_off_put_no_server_under_suspicion() {
    let near = Copy::start("near", Does::Answer).await;
    let far = Copy::start("far", Does::Answer).await;
    let world = World::new(&[&near, &far]).await;
    let bad = "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabcdef";
    for _ in 0..12 {
        let (answer, _) = spoken(&world, &[bad], Duration::ZERO).await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    }
    let mut client = world.client().await;
    for _ in 0..4 {
        assert_eq!(client.get().await.body.as_deref(), Some("near 0"));
    }
    assert_eq!(far.seen(), 0);
    let text = world.metrics.encode();
    assert!(text.contains("response_code=\"400\"") && !text.contains("response_flags=\"UC\""));
}
