//! What a hostile HTTP/2 client can send costs its own connection, and nobody else's time.

use crate::http2::{Copy, client, speaking};
use crate::world::{PATIENCE, World};
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt as _, Full};
use mesh::name::Protocol;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Frames that are sent at most; the other side may end the connection before.
const FRAMES: usize = 20_000;

/// One frame (RFC 9113 section 4.1).
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// Streams that a client may have open on one connection.
const STREAMS_MAX: u32 = 1_024;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
/// GET, http, /, and authority `a`, in HPACK.
const GET: &[u8] = b"\x82\x86\x84\x41\x01a";

/// Sends a preface, settings and then frames, until all are sent or nobody takes them. Reads nothing.
async fn flood(world: &World, settings: &[u8], frames: impl Iterator<Item = Vec<u8>>) -> TcpStream {
    let mut stream = TcpStream::connect(world.address).await.unwrap();
    let mut bytes = [PREFACE, &frame(SETTINGS, 0, 0, settings)].concat();
    for frame in frames.take(FRAMES) {
        bytes.extend(frame);
        if bytes.len() > 64 * 1024 {
            // Who takes no more has us wait; who has had enough has ended it.
            let written = timeout(Duration::from_secs(1), stream.write_all(&bytes)).await;
            if !matches!(written, Ok(Ok(()))) {
                return stream;
            }
            bytes.clear();
        }
    }
    let _ = timeout(Duration::from_secs(1), stream.write_all(&bytes)).await;
    stream
}

/// The frames that come on a connection.
struct Frames(BufReader<TcpStream>);

impl Frames {
    fn of(stream: TcpStream) -> Self {
        Self(BufReader::new(stream))
    }

    /// Kind, stream and payload of the next; `None` at the end.
    async fn next(&mut self) -> Option<(u8, u32, Vec<u8>)> {
        let mut head = [0; 9];
        self.0.read_exact(&mut head).await.ok()?;
        let [high, middle, low, kind, _, stream @ ..] = head;
        let mut payload = vec![0; u32::from_be_bytes([0, high, middle, low]) as usize];
        self.0.read_exact(&mut payload).await.ok()?;
        Some((kind, u32::from_be_bytes(stream), payload))
    }
}

/// Others are answered meanwhile, all of them.
async fn others_are_served(world: &World) {
    let mut sender = client(world).await;
    for _ in 0..20 {
        let empty = Full::new(Bytes::new()).map_err(|never| match never {}).boxed();
        let request = Request::get("http://hello.shop.global/").body(empty).unwrap();
        let answer = async { sender.send_request(request).await.unwrap().status() };
        let status = timeout(PATIENCE, answer).await.expect("an answer");
        assert_eq!(status, 200);
    }
}

/// The other side ends the connection.
async fn ends(mut stream: TcpStream) {
    let ended = async {
        let mut buffer = [0; 4096];
        while matches!(stream.read(&mut buffer).await, Ok(read) if read > 0) {}
    };
    timeout(PATIENCE, ended).await.expect("it is ended");
}

async fn is_counted(world: &World, limit: &str) {
    let line = format!("isthmus_http_limits_total{{limit=\"{limit}\"}} 1");
    let counted = async {
        while !world.metrics.encode().contains(&line) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, counted).await.unwrap_or_else(|_| panic!("no {line}"));
}

#[tokio::test]
async fn resets_in_a_flood_end_the_connection_and_are_counted() {
    let copy = Copy::echo().await;
    let world = speaking(Protocol::Http2, &[&copy]).await;
    let resets = (1..u32::MAX).step_by(2).flat_map(|stream| {
        let asked = frame(HEADERS, END_STREAM | END_HEADERS, stream, GET);
        [asked, frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes())]
    });
    let stream = flood(&world, &[], resets).await;
    is_counted(&world, "resets").await;
    ends(stream).await;
    let served = copy.requests.load(Ordering::SeqCst);
    assert!(served < 100, "{served} of {} came through", FRAMES / 2);
    others_are_served(&world).await;
}

#[tokio::test]
async fn headers_without_an_end_end_the_connection_and_are_counted() {
    let copy = Copy::echo().await;
    let world = speaking(Protocol::Http2, &[&copy]).await;
    let begun = frame(HEADERS, END_STREAM, 1, GET);
    // A literal header without indexing, name `b`, value `c`.
    let more = std::iter::repeat_with(|| frame(CONTINUATION, 0, 1, b"\0\x01b\x01c"));
    let stream = flood(&world, &[], std::iter::once(begun).chain(more)).await;
    is_counted(&world, "continuations").await;
    ends(stream).await;
    assert_eq!(copy.requests.load(Ordering::SeqCst), 0);
    others_are_served(&world).await;
}

#[tokio::test]
async fn headers_that_grow_when_unpacked_end_the_connection_and_are_counted() {
    let copy = Copy::echo().await;
    let world = speaking(Protocol::Http2, &[&copy]).await;
    // One entry of 3,900 octets goes into the table, and is named 4,000 times: 15 MB of headers.
    let mut block = GET.to_vec();
    block.extend(b"\x40\x01b\x7f\xbd\x1d");
    block.extend([b'x'; 3_900]);
    block.extend([0xbe; 4_000]);
    let bomb = std::iter::once(frame(HEADERS, END_STREAM | END_HEADERS, 1, &block));
    let stream = flood(&world, &[], bomb).await;
    is_counted(&world, "headers_size").await;
    ends(stream).await;
    others_are_served(&world).await;
    // The requests of the others, and not the bomb.
    assert_eq!(copy.requests.load(Ordering::SeqCst), 20);
}

#[tokio::test]
async fn pings_and_settings_whose_answers_nobody_reads_stop_nobody() {
    let copy = Copy::echo().await;
    let world = speaking(Protocol::Http2, &[&copy]).await;
    let pings = flood(&world, &[], std::iter::repeat_with(|| frame(PING, 0, 0, &[7; 8])));
    let settings = flood(&world, &[], std::iter::repeat_with(|| frame(SETTINGS, 0, 0, &[])));
    let (pings, settings, ()) = tokio::join!(pings, settings, others_are_served(&world));
    others_are_served(&world).await;
    // They are withstood, and no limit: one answer is owed at a time and nothing is read while it cannot
    // be written, so that they cost no memory. Who reads after all finds the connection as it was.
    for (stream, kind) in [(pings, PING), (settings, SETTINGS)] {
        let answers = async {
            let mut heard = Frames::of(stream);
            for _ in 0..100 {
                while heard.next().await.expect("it goes on").0 != kind {}
            }
        };
        timeout(PATIENCE, answers).await.expect("answers");
    }
    assert!(!world.metrics.encode().contains("isthmus_http_limits_total"));
}

#[tokio::test]
async fn a_client_that_takes_no_body_stops_nobody() {
    let copy = Copy::echo().await;
    let world = speaking(Protocol::Http2, &[&copy]).await;
    // SETTINGS_INITIAL_WINDOW_SIZE 0: no response's body may be sent, ever.
    let asked = (1..1_000).step_by(2).map(|stream| {
        let block = b"\x83\x86\x84\x41\x01a";
        [frame(HEADERS, END_HEADERS, stream, block), frame(0, END_STREAM, stream, &[7; 64])]
            .concat()
    });
    let stream = flood(&world, &[0, 4, 0, 0, 0, 0], asked).await;
    others_are_served(&world).await;
    // It is withstood: what waits is bounded by the streams that may be open and what each may keep. The
    // limit on how long comes later, and has its own tests in `idle`.
    let heads = async {
        let mut heard = Frames::of(stream);
        let (mut answered, mut octets) = (0, 0);
        while answered < 499 {
            match heard.next().await.expect("it goes on") {
                (HEADERS, ..) => answered += 1,
                (DATA, _, payload) => octets += payload.len(),
                _ => {}
            }
        }
        octets
    };
    let octets = timeout(PATIENCE, heads).await.expect("all heads of responses");
    assert_eq!(octets, 0, "of a body that may not be sent");
    assert!(!world.metrics.encode().contains("isthmus_http_limits_total"));
}

/// Opens so many streams and ends none of them.
fn opened(streams: u32) -> impl Iterator<Item = Vec<u8>> {
    // POST, as a GET would be kept until it is whole.
    let block = b"\x83\x86\x84\x41\x01a";
    (0..streams).map(|index| frame(HEADERS, END_HEADERS, 2 * index + 1, block))
}

#[tokio::test]
async fn streams_beyond_the_limit_are_refused_and_the_others_are_not() {
    const MORE: u32 = 50;
    let copy = Copy::echo().await;
    let world = speaking(Protocol::Http2, &[&copy]).await;
    let stream = flood(&world, &[], opened(STREAMS_MAX + MORE)).await;
    let heard = async {
        let mut heard = Frames::of(stream);
        let (mut answered, mut refused) = (0, 0);
        while answered < STREAMS_MAX || refused < MORE {
            match heard.next().await.expect("the connection goes on") {
                (HEADERS, stream, _) if stream < 2 * STREAMS_MAX => answered += 1,
                (RST_STREAM, stream, code) => {
                    assert!(stream >= 2 * STREAMS_MAX, "{stream} is within the limit");
                    assert_eq!(code, 7_u32.to_be_bytes(), "REFUSED_STREAM");
                    refused += 1;
                }
                (HEADERS, stream, _) => panic!("{stream} was answered"),
                _ => {}
            }
        }
        (answered, refused)
    };
    let heard = timeout(PATIENCE, heard).await.expect("all are answered or refused");
    assert_eq!(heard, (STREAMS_MAX, MORE));
    assert_eq!(copy.requests.load(Ordering::SeqCst), STREAMS_MAX as usize);
    others_are_served(&world).await;
}

#[tokio::test]
async fn who_goes_on_opening_streams_loses_the_connection_and_is_counted() {
    let copy = Copy::echo().await;
    let world = speaking(Protocol::Http2, &[&copy]).await;
    let stream = flood(&world, &[], opened(STREAMS_MAX + 1_000)).await;
    is_counted(&world, "resets_own").await;
    ends(stream).await;
    assert!(copy.requests.load(Ordering::SeqCst) <= STREAMS_MAX as usize);
    others_are_served(&world).await;
}
