//! Callers who break off in the middle of what they send: nobody takes a part for the whole.

use crate::http2;
use crate::inbound::{draining, sidecar};
use crate::world::{Copy, Does, PATIENCE, World, accept, accept_as_copy, bind};
use mesh::name::Protocol;
use proxy::drain::Drain;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::timeout;

/// Longer than any body that is kept before it is sent on.
const LONG: usize = 200_000;

/// How a caller breaks off.
#[derive(Debug, Clone, Copy)]
enum Break {
    /// It ends what it says, as one does who has said all.
    End,
    Reset,
}

/// How an upload says where it ends.
const FRAMINGS: [&str; 2] =
    ["transfer-encoding: chunked\r\n\r\n30d40\r\n", "content-length: 200000\r\n\r\n"];

/// Begins an upload of which the last octet never comes, and breaks off once `heard` has said that
/// something of it has arrived.
async fn break_off(through: SocketAddr, framing: &str, how: Break, heard: &mut mpsc::Receiver<()>) {
    let mut stream = TcpStream::connect(through).await.unwrap();
    let head = format!("POST / HTTP/1.1\r\nhost: hello.shop.global\r\n{framing}");
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(&[b'x'; LONG - 1]).await.unwrap();
    timeout(PATIENCE, heard.recv()).await.unwrap().unwrap();
    match how {
        Break::End => stream.shutdown().await.unwrap(),
        Break::Reset => {
            proxy::tunnel::reset(&stream);
            return;
        }
    }
    let mut answer = Vec::new();
    let _ = timeout(PATIENCE, stream.read_to_end(&mut answer)).await.unwrap();
    let answer = String::from_utf8_lossy(&answer);
    assert!(!answer.starts_with("HTTP/1.1 2"), "{how:?} {framing:?}: {answer}");
}

/// Reads all that comes of a request, and says when its body has begun.
async fn read_on(mut stream: impl tokio::io::AsyncRead + Unpin, told: mpsc::Sender<()>) -> String {
    let (mut all, mut buffer) = (Vec::new(), vec![0; 16_384]);
    loop {
        match stream.read(&mut buffer).await {
            Ok(0) | Err(_) => return String::from_utf8(all).unwrap().to_ascii_lowercase(),
            Ok(length) => all.extend_from_slice(&buffer[..length]),
        }
        if all.len() > 1_000 {
            let _ = told.try_send(());
        }
    }
}

/// What was heard is less than what its head promised.
fn assert_a_part(heard: &str, framing: &str) {
    let (head, body) = heard.split_once("\r\n\r\n").unwrap();
    let chunked = framing.starts_with("transfer-encoding");
    let promise = if chunked { "transfer-encoding: chunked" } else { "content-length: 200000" };
    assert!(head.contains(promise), "{head}");
    assert!(body.len() >= 900, "something of it went out: {}", body.len());
    assert!(!body.ends_with("0\r\n\r\n"), "the last chunk says that this is all");
    assert!(chunked || body.len() < LONG, "{}", body.len());
}

#[tokio::test]
async fn an_application_never_takes_a_part_of_an_upload_for_the_whole() {
    for (framing, how) in FRAMINGS.map(|it| [(it, Break::End), (it, Break::Reset)]).concat() {
        let (listener, application) = bind().await;
        let ((told, mut heard), (whole, mut all)) = (mpsc::channel(1), mpsc::channel(1));
        accept(listener, move |stream, _| {
            let (told, whole) = (told.clone(), whole.clone());
            async move { drop(whole.send(read_on(stream, told).await).await) }
        });
        let (address, _) = sidecar(application, true).await;
        break_off(address, framing, how, &mut heard).await;
        let heard = timeout(PATIENCE, all.recv()).await.expect("its connection ends").unwrap();
        assert_a_part(&heard, framing);
    }
}

#[tokio::test]
async fn what_an_application_breaks_off_is_no_whole_upload_across_the_mesh() {
    for (framing, how) in FRAMINGS.map(|it| [(it, Break::End), (it, Break::Reset)]).concat() {
        let (listener, address) = bind().await;
        let ((told, mut heard), (whole, mut all)) = (mpsc::channel(1), mpsc::channel(1));
        let alpn = Some(&b"istio-http/1.1"[..]);
        accept_as_copy(listener, alpn, Arc::default(), move |stream| {
            let (told, whole) = (told.clone(), whole.clone());
            async move { drop(whole.send(read_on(stream, told).await).await) }
        });
        let world = World::with(vec![address], |_| {}).await;
        break_off(world.address, framing, how, &mut heard).await;
        let heard = timeout(PATIENCE, all.recv()).await.expect("its connection ends").unwrap();
        assert_a_part(&heard, framing);
    }
}

#[tokio::test]
async fn an_application_that_speaks_http2_has_a_broken_upload_reset() {
    for (framing, how) in FRAMINGS.map(|it| [(it, Break::End), (it, Break::Reset)]).concat() {
        let ((told, mut heard), (whole, mut all)) = (mpsc::channel(1), mpsc::channel(1));
        let application = http2::Copy::uploaded(told, whole).await;
        let address = draining(application, Protocol::Http2, &Drain::new()).await;
        break_off(address, framing, how, &mut heard).await;
        let came = timeout(PATIENCE, all.recv()).await.expect("its stream ends").unwrap();
        assert!(came.is_err(), "{how:?} {framing:?}: {came:?} octets, and in order");
    }
}

#[tokio::test]
async fn a_short_upload_that_broke_off_reaches_no_application() {
    let application = Copy::start_plain("app", Does::Answer).await;
    let (address, _) = sidecar(application.address, true).await;
    let request = "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\nonly";
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = String::new();
    let _ = timeout(PATIENCE, stream.read_to_string(&mut answer)).await.unwrap();
    assert!(!answer.starts_with("HTTP/1.1 2"), "{answer}");
    assert_eq!(application.connections.load(std::sync::atomic::Ordering::SeqCst), 0);
}
