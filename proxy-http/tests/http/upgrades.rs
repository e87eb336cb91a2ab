//! Connections that stop being HTTP.

use crate::inbound::sidecar;
use crate::world::{Copy, Does, World};
use std::net::SocketAddr;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Wishes for two protocols, of which a copy that echoes chooses the second; the head of the answer.
async fn wish_for_two(through: SocketAddr) -> String {
    let mut stream = TcpStream::connect(through).await.unwrap();
    let head = "GET /chat HTTP/1.1\r\nhost: hello.shop.global\r\nconnection: upgrade\r\n\
                upgrade: chat/2, websocket\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    stream.write_all(b"ping").await.unwrap();
    let mut echo = [0; 4];
    stream.read_exact(&mut echo).await.unwrap();
    assert_eq!(&echo, b"ping");
    String::from_utf8(head).unwrap().to_ascii_lowercase()
}

/// It was asked for both, and its client was told what it chose.
fn assert_told(copy: &Copy, answer: &str) {
    assert!(copy.last_head().contains("upgrade: chat/2, websocket\r\n"), "{}", copy.last_head());
    assert!(answer.starts_with("http/1.1 101 "), "{answer}");
    let told: Vec<_> = answer.lines().filter(|line| line.starts_with("upgrade:")).collect();
    assert_eq!(told, ["upgrade: websocket"], "{answer}");
    assert!(answer.contains("connection: upgrade\r\n"), "{answer}");
}

#[tokio::test]
async fn who_wishes_for_two_protocols_is_told_which_was_chosen() {
    let copy = Copy::start("a", Does::Echo).await;
    let world = World::new(&[&copy]).await;
    assert_told(&copy, &wish_for_two(world.address).await);
}

#[tokio::test]
async fn a_caller_is_told_which_protocol_the_application_chose() {
    let application = Copy::start_plain("app", Does::Echo).await;
    let (address, _) = sidecar(application.address, false).await;
    assert_told(&application, &wish_for_two(address).await);
}
