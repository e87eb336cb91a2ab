//! A server that leaves loses no request that is on its way: its connections of HTTP/1.1 are told, and
//! closed once nothing comes any more.

use crate::inbound::draining;
use crate::world::{Copy, Does, PATIENCE, World, accept, bind};
use mesh::name::Protocol;
use proxy::drain::Drain;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

/// One way between a client and its server.
const AWAY: Duration = Duration::from_millis(20);
const CLIENTS: u64 = 20;
const POST: &str = "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\nhi";

/// Carries what is read as long after, and then its end.
async fn late(mut from: impl AsyncRead + Unpin, mut into: impl AsyncWrite + Unpin) {
    let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel();
    let reading = async move {
        let mut octets = vec![0; 64 * 1024];
        while let Ok(length @ 1..) = from.read(&mut octets).await {
            let _ = sender.send((Instant::now() + AWAY, octets[..length].to_vec()));
        }
        let _ = sender.send((Instant::now() + AWAY, Vec::new()));
    };
    let writing = async {
        while let Some((at, octets)) = receiver.recv().await {
            tokio::time::sleep_until(at.into()).await;
            let _ = into.write_all(&octets).await;
        }
        let _ = into.shutdown().await;
    };
    tokio::join!(reading, writing);
}

/// A network between clients and the server at `to`.
async fn network(to: SocketAddr) -> SocketAddr {
    let (listener, address) = bind().await;
    accept(listener, move |client, _| async move {
        client.set_nodelay(true).unwrap();
        let server = TcpStream::connect(to).await.unwrap();
        server.set_nodelay(true).unwrap();
        let ((from, into), (back, out)) = (client.into_split(), server.into_split());
        tokio::join!(late(from, out), late(back, into));
    });
    address
}

/// One whole answer; `None` where the server has closed before its first byte.
async fn answer(stream: &mut TcpStream) -> Option<String> {
    rest_of(Vec::new(), stream).await
}

/// The same of one that has begun.
async fn rest_of(mut said: Vec<u8>, stream: &mut TcpStream) -> Option<String> {
    loop {
        let read = timeout(PATIENCE, stream.read_buf(&mut said)).await.expect("in time");
        let text = String::from_utf8_lossy(&said).into_owned();
        if read.unwrap_or(0) == 0 {
            assert_eq!(text, "", "an answer is whole");
            return None;
        }
        let body = text.split_once("\r\n\r\n").map(|(_, body)| body);
        // The copies' answers: "a 2".
        if body.is_some_and(|body| body.ends_with(" 2") || body.ends_with("0\r\n\r\n")) {
            return Some(text);
        }
    }
}

fn is_last(answer: &str) -> bool {
    answer.contains("\r\nconnection: close\r\n")
}

/// Posts again and again until it is told that its connection ends.
async fn post_until_told(to: SocketAddr, rest: Duration) {
    let mut stream = TcpStream::connect(to).await.unwrap();
    let begun = Instant::now();
    let mut posts = 0;
    while begun.elapsed() < PATIENCE {
        stream.write_all(POST.as_bytes()).await.unwrap();
        let answer = answer(&mut stream).await;
        let answer = answer.unwrap_or_else(|| panic!("post {posts} is lost, every {rest:?}"));
        posts += 1;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        if is_last(&answer) {
            return;
        }
        sleep(rest).await;
    }
    panic!("told nothing in {posts} answers");
}

async fn drained_under_posts(server: SocketAddr, drain: &Drain) {
    let away = network(server).await;
    let clients: Vec<_> = (0..CLIENTS)
        .map(|at| tokio::spawn(post_until_told(away, Duration::from_millis(1 + at * 20))))
        .collect();
    sleep(Duration::from_millis(500)).await;
    let cut = drain.drain(PATIENCE).await;
    for client in clients {
        client.await.unwrap();
    }
    assert_eq!(cut, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn kept_connections_of_callers_lose_no_post() {
    let application = Copy::start_plain("a", Does::Answer).await;
    let drain = Drain::new();
    let server = draining(application.address, Protocol::Http, &drain).await;
    drained_under_posts(server, &drain).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kept_connections_of_applications_lose_no_post() {
    let copy = Copy::start("a", Does::Answer).await;
    let world = World::new(&[&copy]).await;
    drained_under_posts(world.address, &world.drain).await;
}

#[tokio::test]
async fn a_first_request_on_its_way_is_answered_and_who_says_nothing_is_left() {
    let application = Copy::start_plain("a", Does::Answer).await;
    let drain = Drain::new();
    let server = draining(application.address, Protocol::Http, &drain).await;
    let (mut soon, mut never) =
        (TcpStream::connect(server).await.unwrap(), TcpStream::connect(server).await.unwrap());
    while drain.count() < 2 {
        sleep(Duration::from_millis(1)).await;
    }
    let begun = Instant::now();
    let draining = tokio::spawn(async move { drain.drain(PATIENCE).await });
    sleep(AWAY * 10).await;
    soon.write_all(POST.as_bytes()).await.unwrap();
    let answer = answer(&mut soon).await.expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 200") && is_last(&answer), "{answer}");
    assert_eq!(never.read(&mut [0; 1]).await.unwrap_or(0), 0);
    assert_eq!(draining.await.unwrap(), 0);
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn after_an_answer_that_was_under_way_there_is_time_for_another_request() {
    let (say, chunks) = tokio::sync::mpsc::channel(4);
    let application = Copy::start_plain("a", Does::Chunks(Arc::new(Mutex::new(chunks)))).await;
    let drain = Drain::new();
    let server = draining(application.address, Protocol::Http, &drain).await;
    let mut stream = TcpStream::connect(server).await.unwrap();
    stream.write_all(POST.as_bytes()).await.unwrap();
    say.send("word").await.unwrap();
    let mut begun = Vec::new();
    while !begun.ends_with(b"word\r\n") {
        stream.read_buf(&mut begun).await.unwrap();
    }
    let draining = tokio::spawn(async move { drain.drain(PATIENCE).await });
    // Longer than an idle connection is left.
    sleep(Duration::from_secs(3)).await;
    application.now_does(Does::Answer);
    drop(say);
    let first = rest_of(begun, &mut stream).await.expect("its end");
    assert!(!is_last(&first), "its head was out already");
    sleep(AWAY * 10).await;
    stream.write_all(POST.as_bytes()).await.unwrap();
    let answer = answer(&mut stream).await.expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 200") && is_last(&answer), "{answer}");
    assert_eq!(draining.await.unwrap(), 0);
}

#[tokio::test]
async fn who_is_asked_for_another_protocol_is_told_too() {
    let asks = "HTTP/1.1 426 Upgrade Required\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
                content-length: 2\r\n\r\n 2";
    let application = Copy::start_plain("a", Does::Raw(asks)).await;
    let drain = Drain::new();
    let server = draining(application.address, Protocol::Http, &drain).await;
    let mut stream = TcpStream::connect(server).await.unwrap();
    while drain.count() == 0 {
        sleep(Duration::from_millis(1)).await;
    }
    let draining = tokio::spawn(async move { drain.drain(PATIENCE).await });
    sleep(AWAY).await;
    stream.write_all(POST.as_bytes()).await.unwrap();
    let answer = answer(&mut stream).await.expect("an answer");
    for word in ["upgrade: websocket", "connection: upgrade", "close"] {
        assert!(answer.contains(word), "{word}: {answer}");
    }
    assert_eq!(draining.await.unwrap(), 0);
}
