//! Bytes both ways: whole, in order, with half-close, and by copy and splice alike.

use proxy::tunnel::{End, Transferred, copy, reset, splice};
use std::io::ErrorKind;
use std::os::fd::AsFd as _;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};
use tokio::net::{TcpListener, TcpStream};

const HOUR: Duration = Duration::from_secs(3_600);

async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let dialled = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    (dialled, listener.accept().await.unwrap().0)
}

/// A tunnel between two sockets: client's end, server's end, and its result.
async fn tunnel(spliced: bool) -> (TcpStream, TcpStream, tokio::task::JoinHandle<Transferred>) {
    let (client, mut a) = pair().await;
    let (server, mut b) = pair().await;
    let task = tokio::spawn(async move {
        if spliced { splice(&mut a, &mut b, HOUR).await } else { copy(&mut a, &mut b, HOUR).await }
    });
    (client, server, task)
}

fn bytes(count: usize, seed: u32) -> Vec<u8> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..count).map(|_| next()).collect()
}

#[tokio::test]
async fn small_messages_go_both_ways_and_half_close_lets_the_answer_come() {
    for spliced in [false, true] {
        let (mut client, mut server, task) = tunnel(spliced).await;
        for message in [&b"one"[..], b"two", b"three"] {
            client.write_all(message).await.unwrap();
            let mut back = vec![0; message.len()];
            server.read_exact(&mut back).await.unwrap();
            assert_eq!(back, message);
            server.write_all(b"ok").await.unwrap();
            client.read_exact(&mut [0; 2]).await.unwrap();
        }
        client.shutdown().await.unwrap();
        assert_eq!(server.read(&mut [0]).await.unwrap(), 0, "the end is passed on");
        server.write_all(b"goodbye").await.unwrap();
        drop(server);
        let mut rest = String::new();
        client.read_to_string(&mut rest).await.unwrap();
        assert_eq!(rest, "goodbye");
        let expected = Transferred { sent: 11, received: 13, end: End::Finished };
        assert_eq!(task.await.unwrap(), expected, "spliced: {spliced}");
    }
}

#[tokio::test]
async fn bulk_both_ways_at_once_with_slow_readers_is_whole() {
    for spliced in [false, true] {
        let (client, server, task) = tunnel(spliced).await;
        let (there, back) = (bytes(12_000_000, 1), bytes(9_000_000, 2));
        let send = |stream: TcpStream, mine: Vec<u8>, slow: bool| async move {
            let (mut read, mut write) = stream.into_split();
            let writing = tokio::spawn(async move {
                write.write_all(&mine).await.unwrap();
                write.shutdown().await.unwrap();
            });
            let (mut all, mut buf) = (Vec::new(), vec![0; 70_000]);
            loop {
                let n = read.read(&mut buf).await.unwrap();
                if n == 0 {
                    break;
                }
                all.extend_from_slice(&buf[..n]);
                if slow && all.len() % 7 == 0 {
                    tokio::task::yield_now().await;
                }
            }
            writing.await.unwrap();
            all
        };
        let (got_back, got_there) =
            tokio::join!(send(client, there.clone(), true), send(server, back.clone(), false));
        assert!(got_there == there && got_back == back, "bytes changed; spliced: {spliced}");
        let expected = Transferred {
            sent: there.len() as u64,
            received: back.len() as u64,
            end: End::Finished,
        };
        assert_eq!(task.await.unwrap(), expected);
    }
}

#[tokio::test]
async fn bytes_of_a_broken_bulk_never_come_out_elsewhere() {
    for round in 0..20 {
        let (mut client, server, task) = tunnel(true).await;
        // Fills pipe and sockets, then breaks with bytes on their way.
        let secret = vec![b'S'; 8_000_000];
        let writing = tokio::spawn(async move {
            let _ = client.write_all(&secret).await;
            client
        });
        tokio::task::yield_now().await;
        reset(&server);
        drop(server);
        assert_ne!(task.await.unwrap().end, End::Finished);
        drop(writing.await.unwrap());

        let (mut client, mut server, task) = tunnel(true).await;
        let clean = vec![b'c'; 300_000];
        let sending = tokio::spawn(async move {
            client.write_all(&clean).await.unwrap();
            client.shutdown().await.unwrap();
            client
        });
        let mut all = Vec::new();
        server.read_to_end(&mut all).await.unwrap();
        assert!(all.len() == 300_000 && all.iter().all(|b| *b == b'c'), "round {round}");
        drop((server, sending.await.unwrap()));
        task.await.unwrap();
    }
}

#[tokio::test]
async fn who_failed_is_told() {
    for spliced in [false, true] {
        let (client, mut server, task) = tunnel(spliced).await;
        reset(&client);
        drop(client);
        assert_eq!(task.await.unwrap().end, End::ClientFailed, "spliced: {spliced}");
        let told = server.read(&mut [0; 1]).await.map_err(|problem| problem.kind());
        let (cut, ended) = (Err(ErrorKind::ConnectionReset), Ok(0));
        assert_eq!(told, if spliced { cut } else { ended });
        let (mut client, server, task) = tunnel(spliced).await;
        reset(&server);
        drop(server);
        assert_eq!(task.await.unwrap().end, End::ServerFailed, "spliced: {spliced}");
        assert_eq!(client.read(&mut [0; 1]).await.unwrap(), 0, "spliced: {spliced}");
        // It had said all before it failed: what is on its way is not thrown away.
        let (mut client, mut server, task) = tunnel(spliced).await;
        client.write_all(b"all").await.unwrap();
        client.shutdown().await.unwrap();
        let mut all = String::new();
        server.read_to_string(&mut all).await.unwrap();
        reset(&client);
        drop(client);
        // Noticed with the answer.
        server.write_all(b"late").await.unwrap();
        assert_eq!(task.await.unwrap().end, End::ClientFailed, "spliced: {spliced}");
        assert_eq!((all.as_str(), server.read(&mut [0; 1]).await.unwrap()), ("all", 0));
    }
}

#[tokio::test]
async fn what_a_server_said_before_it_failed_arrives() {
    for spliced in [false, true] {
        let (mut client, mut a) = pair().await;
        let (mut server, mut b) = pair().await;
        // More than the client's window and less than our queue: it lies with us until it is read.
        socket2::SockRef::from(&a).set_send_buffer_size(212_992).unwrap();
        let unread = b.as_fd().try_clone_to_owned().map(std::net::TcpStream::from).unwrap();
        let task = tokio::spawn(async move {
            if spliced {
                splice(&mut a, &mut b, HOUR).await
            } else {
                copy(&mut a, &mut b, HOUR).await
            }
        });
        let all = bytes(200_000, 7);
        server.write_all(&all).await.unwrap();
        while unread.peek(&mut [0]).is_ok() {
            tokio::task::yield_now().await;
        }
        reset(&server);
        drop(server);
        assert_eq!(task.await.unwrap().end, End::ServerFailed, "spliced: {spliced}");
        drop(unread);
        let mut got = Vec::new();
        client.read_to_end(&mut got).await.unwrap();
        assert!(got == all, "{} of {} octets; spliced: {spliced}", got.len(), all.len());
    }
}

#[tokio::test(start_paused = true)]
async fn idle_is_counted_from_the_last_byte() {
    let (mut client, mut a) = duplex(64);
    let (mut server, mut b) = duplex(64);
    let begun = tokio::time::Instant::now();
    let idle = Duration::from_secs(100);
    let task = tokio::spawn(async move { copy(&mut a, &mut b, idle).await });
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_secs(90)).await;
        client.write_all(b"x").await.unwrap();
        server.read_exact(&mut [0]).await.unwrap();
    }
    let expected = Transferred { sent: 3, received: 0, end: End::Idle };
    assert_eq!(task.await.unwrap(), expected);
    assert_eq!(begun.elapsed().as_secs(), 370);
}

#[tokio::test]
async fn a_tunnel_between_sockets_is_small() {
    let (mut a, mut b) = pair().await;
    let size = size_of_val(&splice(&mut a, &mut b, HOUR));
    assert!(size <= 640, "an idle tunnel's future has {size} bytes");
}
