//! Pages have room for so many connections, and it is counted when it runs out.

use runtime::admin::{Listen, Pages, serve};
use runtime::metrics::Metrics;
use runtime::readiness::Readiness;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

/// Connections one page server serves at once.
const CONNECTIONS_MAX: usize = 64;

/// A connection that has been answered once and stays open.
async fn visit(address: SocketAddr) -> TcpStream {
    let mut client = TcpStream::connect(address).await.unwrap();
    client.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    let mut answer = [0; 12];
    client.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200");
    client
}

fn met(metrics: &Metrics) -> u64 {
    let shown = metrics.encode();
    let name = "isthmus_pages_limited_total{limit=\"connections\"} ";
    let count = shown.lines().find_map(|line| line.strip_prefix(name));
    count.expect(&shown).parse().unwrap()
}

#[tokio::test]
async fn one_connection_too_many_waits_and_is_counted() {
    let metrics = Metrics::new();
    // Both kinds: pages that show the numbers, and others that are only counted in them.
    let health = Pages::new().with_readiness(&Readiness::new()).counted_in(&metrics);
    let numbers = Pages::new().with_metrics(&metrics);
    assert_eq!(met(&metrics), 0, "it is shown before it is met");
    for pages in [numbers, health] {
        let before = met(&metrics);
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        let end = CancellationToken::new();
        let listen = Listen::Tcp { address, public: false };
        let address = serve(listen, pages, end.clone()).await.unwrap().unwrap();
        let mut open = Vec::new();
        for _ in 1..CONNECTIONS_MAX {
            open.push(visit(address).await);
        }
        assert_eq!(met(&metrics), before, "there is room");
        open.push(visit(address).await);
        let mut more = tokio::spawn(visit(address));
        let waits = tokio::time::timeout(Duration::from_millis(200), &mut more).await;
        assert!(waits.is_err(), "one more is served");
        assert_eq!(met(&metrics), before + 1);
        open.pop();
        let served = tokio::time::timeout(Duration::from_secs(10), more).await;
        served.expect("a place is free").unwrap();
        end.cancel();
    }
}
