//! The table of ambiguous requests on both sides of a sidecar: what arrives is one request, or none.
//! `cargo xtask e2e smuggling` sends the same to servers that are not ours.

use crate::inbound::sidecar;
use crate::world::{Client, Copy, Does, World};
use payloads::{Meant, Names, Payload, Wire};
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

#[expect(unreachable_pub, dead_code, reason = "the harness reads the same table")]
#[path = "../../../fleet/src/smuggling/payloads/mod.rs"]
mod payloads;

const HOST: &str = "hello.shop.global";
/// So long without an octet, before and after somebody else was answered, and nothing more is expected.
const SILENCE: Duration = Duration::from_millis(350);

fn names(index: usize) -> Names {
    Names { host: HOST.into(), id: format!("x-{index}") }
}

/// Sends one payload and reads what comes; the number of 200s.
async fn send(to: SocketAddr, index: usize, payload: &Payload) -> usize {
    let mut stream = TcpStream::connect(to).await.unwrap();
    // Who has heard enough may close while we still speak.
    let _ = stream.write_all(&payload.bytes(&names(index))).await;
    let (mut heard, mut buffer, mut asked) = (Vec::new(), [0; 4096], false);
    loop {
        match timeout(SILENCE, stream.read(&mut buffer)).await {
            Ok(Ok(length @ 1..)) => {
                heard.extend(&buffer[..length]);
                asked = false;
            }
            Ok(Ok(0) | Err(_)) => break,
            Err(_) if asked => break,
            // On a slow machine silence may be slowness: who asks now, later than we, is answered first.
            Err(_) => {
                Client::connect(to).await.get().await;
                asked = true;
            }
        }
    }
    String::from_utf8_lossy(&heard).matches("HTTP/1.1 200").count()
}

/// Sends all of the table; returns what was wrong with what the copy saw.
async fn wrong(to: SocketAddr, copy: &Copy) -> Vec<String> {
    let all: Vec<(usize, &Payload)> = payloads::all().enumerate().collect();
    let mut answered = Vec::new();
    for lot in all.chunks(24) {
        let sent = lot.iter().map(|(index, payload)| send(to, *index, payload));
        answered.extend(futures::future::join_all(sent).await);
    }
    let requests = copy.requests.lock().unwrap().clone();
    let targets: Vec<&str> =
        requests.iter().filter_map(|(head, _)| head.split(' ').nth(1)).collect();
    let count = |wanted: &str| {
        let names = |target: &&&str| {
            let after = target.split_once(wanted).map(|(_, rest)| rest);
            after.is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_digit()))
        };
        targets.iter().filter(names).count()
    };
    let mut wrong = Vec::new();
    for (index, payload) in all {
        let names = names(index);
        let (outer, second) = (count(&names.path()), count(&names.second()));
        let wanted = match payload.meant {
            Meant::Refused => outer + second == 0,
            Meant::AtMostOne => outer <= 1 && second == 0,
            Meant::One => (outer, second) == (1, 0),
            Meant::Pair => (outer, second) == (1, 1),
        };
        let most = if payload.meant == Meant::Pair { 2 } else { 1 };
        if !wanted || count(&names.hidden()) > 0 || answered[index] > most {
            wrong.push(format!(
                "{:?} {}: {outer} and {second} arrived, {} canaries, {} answers",
                payload.wire,
                payload.name,
                count(&names.hidden()),
                answered[index]
            ));
        }
    }
    wrong
}

#[tokio::test]
async fn nothing_arrives_that_nobody_sent() {
    let copy = Copy::start("a", Does::Answer).await;
    let world = World::new(&[&copy]).await;
    let wrong = wrong(world.address, &copy).await;
    assert!(wrong.is_empty(), "into the mesh:\n{}", wrong.join("\n"));
}

#[tokio::test]
async fn nothing_arrives_at_an_application_that_nobody_sent() {
    let application = Copy::start_plain("app", Does::Answer).await;
    let (address, _) = sidecar(application.address, true).await;
    let wrong = wrong(address, &application).await;
    assert!(wrong.is_empty(), "out of the mesh:\n{}", wrong.join("\n"));
}

#[tokio::test]
async fn the_check_sees_what_arrives_without_a_sidecar() {
    let naive = Copy::start_plain("naive", Does::Answer).await;
    let wrong = wrong(naive.address, &naive).await;
    let smuggled = wrong.iter().filter(|wrong| !wrong.contains(" 0 canaries")).count();
    assert!(smuggled > 0, "a server that reads lines carelessly takes canaries for requests");
    assert!(payloads::all().any(|payload| payload.wire == Wire::Two));
}
