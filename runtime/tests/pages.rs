//! Pages have room for so many connections of one source, and it is counted when it runs out.

use runtime::admin::{Listen, Pages, serve};
use runtime::metrics::Metrics;
use runtime::readiness::Readiness;
use std::net::SocketAddr;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio_util::sync::CancellationToken;

/// Connections of one source that one page server serves at once.
const PER_SOURCE_MAX: usize = 32;

async fn connect(from: &str, address: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::new(from.parse().unwrap(), 0)).unwrap();
    socket.connect(address).await.unwrap()
}

/// All that is answered to one request, up to the end of the connection.
async fn visit(mut client: TcpStream) -> String {
    // Who is closed at once may not get this out.
    let _ = client.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let mut answer = Vec::new();
    let _ = client.read_to_end(&mut answer).await;
    String::from_utf8(answer).unwrap()
}

fn met(metrics: &Metrics) -> u64 {
    let shown = metrics.encode();
    let name = "isthmus_pages_limited_total{limit=\"connections\"} ";
    let count = shown.lines().find_map(|line| line.strip_prefix(name));
    count.expect(&shown).parse().unwrap()
}

#[tokio::test]
async fn one_source_does_not_keep_the_others_out() {
    let metrics = Metrics::new();
    // Both kinds: pages that show the numbers, and others that are only counted in them.
    let health = Pages::new().with_readiness(&Readiness::new()).counted_in(&metrics);
    let numbers = Pages::new().with_metrics(&metrics);
    assert_eq!(met(&metrics), 0, "it is shown before it is met");
    for pages in [numbers, health] {
        let before = met(&metrics);
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        let end = CancellationToken::new();
        let listen = Listen::Tcp { address, public: true };
        let address = serve(listen, pages, end.clone()).await.unwrap().unwrap();
        let mut silent = Vec::new();
        for _ in 0..PER_SOURCE_MAX {
            silent.push(connect("127.0.0.1", address).await);
        }
        assert_eq!(visit(connect("127.0.0.1", address).await).await, "", "one too many");
        assert_eq!(met(&metrics), before + 1);
        let answer = visit(connect("127.0.0.2", address).await).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "another source is served: {answer}");
        silent.pop();
        // The place is free once the server has seen the end.
        while !visit(connect("127.0.0.1", address).await).await.starts_with("HTTP/1.1 200") {}
        end.cancel();
    }
}

#[tokio::test]
async fn who_looks_from_this_machine_keeps_the_connection() {
    let (address, end) = (SocketAddr::from(([127, 0, 0, 1], 0)), CancellationToken::new());
    let listen = Listen::Tcp { address, public: false };
    let address = serve(listen, Pages::new(), end.clone()).await.unwrap().unwrap();
    let mut client = connect("127.0.0.1", address).await;
    for _ in 0..3 {
        client.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        let mut answer = [0; 12];
        client.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"HTTP/1.1 200");
        let mut rest = Vec::new();
        while !rest.ends_with(b"\r\n\r\n") {
            assert_ne!(client.read_buf(&mut rest).await.unwrap(), 0);
        }
    }
    end.cancel();
}
