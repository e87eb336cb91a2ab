//! Answers that come before their request has ended, and connections that end with bytes unread.

use crate::inbound::{draining, sidecar};
use crate::world::{PATIENCE, World, accept, accept_as_copy, bind};
use mesh::name::Protocol;
use proxy::drain::Drain;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

/// More than all the buffers on its way hold.
const LARGE: usize = 32 * 1024 * 1024;
/// A lost answer is a race.
const ROUNDS: usize = 20;

/// Answers as soon as it has read a head, and leaves with the body unread: its kernel resets.
async fn refuse(mut io: impl AsyncRead + AsyncWrite + Unpin) {
    let mut head = Vec::new();
    while !head.windows(4).any(|bytes| bytes == b"\r\n\r\n") {
        if io.read_buf(&mut head).await.unwrap_or(0) == 0 {
            return;
        }
    }
    let answer = "HTTP/1.1 413 Content Too Large\r\nconnection: close\r\ncontent-length: 9\r\n\r\n\
                  too large";
    let _ = io.write_all(answer.as_bytes()).await;
    let _ = io.flush().await;
}

/// What a client is answered that uploads `size` bytes and, `meanwhile` or after the last, listens.
async fn upload(to: SocketAddr, size: usize, meanwhile: bool) -> String {
    let (mut from, mut into) = TcpStream::connect(to).await.unwrap().into_split();
    let head = format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: {size}\r\n\r\n");
    let sending = tokio::spawn(async move {
        let _ = into.write_all(head.as_bytes()).await;
        for _ in 0..size / 65_536 {
            if into.write_all(&[b'x'; 65_536]).await.is_err() {
                break;
            }
        }
        into
    });
    let sent = match meanwhile {
        true => None,
        false => Some(timeout(PATIENCE, sending).await.expect("somebody reads").unwrap()),
    };
    let mut answer = Vec::new();
    let _ = timeout(PATIENCE, from.read_to_end(&mut answer)).await.expect("an end");
    drop(sent);
    String::from_utf8(answer).unwrap()
}

async fn refused(to: SocketAddr, size: usize, meanwhile: bool) {
    for round in 0..ROUNDS {
        let answer = upload(to, size, meanwhile).await;
        let whole = answer.starts_with("HTTP/1.1 413 ") && answer.ends_with("too large");
        assert!(whole, "round {round}: {answer:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_applications_early_answer_to_a_large_upload_arrives() {
    let (listener, application) = bind().await;
    accept(listener, |stream, _| refuse(stream));
    let (address, metrics) = sidecar(application, true).await;
    refused(address, LARGE, true).await;
    let text = metrics.encode();
    assert!(!text.contains("response_flags=\"UC\""), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copys_early_answer_to_a_large_upload_arrives() {
    let (listener, copy) = bind().await;
    accept_as_copy(listener, Some(b"istio-http/1.1"), Arc::default(), refuse);
    let world = World::with(vec![copy], |_| {}).await;
    refused(world.address, LARGE, true).await;
    let text = world.metrics.encode();
    assert!(!text.contains("response_flags=\"UC\""), "{text}");
}

/// Many clients look for an answer only once all is sent.
#[tokio::test(flavor = "multi_thread")]
async fn an_early_answer_waits_for_a_client_that_sends_all_before_it_listens() {
    let (listener, application) = bind().await;
    accept(listener, |stream, _| refuse(stream));
    let (address, _) = sidecar(application, true).await;
    refused(address, LARGE, false).await;
}

/// Reads a head, says this, and leaves after a while with all else unread.
async fn say(mut io: impl AsyncRead + AsyncWrite + Unpin, answer: &[u8]) {
    let mut head = Vec::new();
    while !head.windows(4).any(|bytes| bytes == b"\r\n\r\n") {
        if io.read_buf(&mut head).await.unwrap_or(0) == 0 {
            return;
        }
    }
    let _ = io.write_all(answer).await;
    let _ = io.flush().await;
    sleep(Duration::from_millis(500)).await;
}

/// Sends a head and as much of its body as somebody takes.
async fn blocked(to: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(to).await.unwrap();
    let head = format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: {LARGE}\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let sending = async { while stream.write_all(&[b'x'; 65_536]).await.is_ok() {} };
    let _ = timeout(Duration::from_millis(200), sending).await;
    stream
}

/// Clients and servers have left; nothing of ours is left either.
async fn nothing_stays(drain: &Drain) {
    assert_eq!(drain.drain(Duration::from_secs(10)).await, 0, "connections live on");
}

/// It takes the rest of the body for requests, as careless servers do.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_says_more_after_its_early_answer_leaves_nothing_behind() {
    let (listener, application) = bind().await;
    let answers = b"HTTP/1.1 413 Content Too Large\r\ncontent-length: 9\r\n\r\ntoo large\
                    HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n";
    accept(listener, |stream, _| say(stream, answers));
    let drain = Drain::new();
    let address = draining(application, Protocol::Http, &drain).await;
    let mut client = blocked(address).await;
    let mut answer = Vec::new();
    while !answer.ends_with(b"too large") {
        let read = timeout(PATIENCE, client.read_buf(&mut answer)).await.expect("an answer");
        assert_ne!(read.unwrap(), 0, "{answer:?}");
    }
    drop(client);
    nothing_stays(&drain).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_in_an_early_answer_leaves_nothing_behind() {
    const BODY: usize = 8 * 1024 * 1024;
    let (listener, application) = bind().await;
    accept(listener, |stream, _| async move {
        let head = format!("HTTP/1.1 413 Content Too Large\r\ncontent-length: {BODY}\r\n\r\n");
        say(stream, &[head.as_bytes(), &[b'y'; BODY]].concat()).await;
    });
    let drain = Drain::new();
    let address = draining(application, Protocol::Http, &drain).await;
    let mut client = blocked(address).await;
    client.read_u8().await.unwrap();
    drop(client);
    nothing_stays(&drain).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_was_given_up_leaves_nothing_behind() {
    let (listener, copy) = bind().await;
    accept_as_copy(listener, Some(b"istio-http/1.1"), Arc::default(), |stream| say(stream, b""));
    let world = World::with(vec![copy], |route| route.timeout_ms = 300).await;
    let mut client = blocked(world.address).await;
    let mut answer = [0; 12];
    timeout(PATIENCE, client.read_exact(&mut answer)).await.expect("an answer").unwrap();
    assert_eq!(&answer, b"HTTP/1.1 504");
    drop(client);
    nothing_stays(&world.drain).await;
}
