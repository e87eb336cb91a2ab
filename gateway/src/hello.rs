//! The first bytes of a connection: read until they say who is asked for, kept to be sent on.

use proxy::peek::{Hello, Peek, Reader};
use std::cell::RefCell;
use std::io;
use tokio::net::TcpStream;

/// ALPN of connections that a mesh's client opens (Istio: `istio` for TCP, the others for HTTP).
const MESH_ALPN: [&[u8]; 5] =
    [b"istio", b"istio-peer-exchange", b"istio-http/1.0", b"istio-http/1.1", b"istio-h2"];

thread_local! {
    /// Where reads go; never held over a wait.
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; 16 * 1024]);
}

/// Reads until there is an answer. `Err` is the reason to close, for the metric.
pub(crate) async fn read(stream: &TcpStream) -> Result<(Hello, Vec<u8>), &'static str> {
    let mut reader = Reader::new();
    loop {
        if stream.readable().await.is_err() {
            return Err("connection_failed");
        }
        let peeked = SCRATCH.with_borrow_mut(|scratch| match stream.try_read(scratch) {
            Ok(0) => Err("closed_early"),
            Ok(n) => Ok(reader.push(&scratch[..n])),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(Peek::More),
            Err(_) => Err("connection_failed"),
        })?;
        match peeked {
            Peek::More => {}
            Peek::Hello(hello) => return Ok((hello, reader.into_bytes())),
            Peek::Refused(refusal) => return Err(refusal.reason()),
        }
    }
}

/// Whether the client says that it speaks mesh: a browser or a scanner does not.
pub(crate) fn is_mesh(hello: &Hello) -> bool {
    hello.alpn.iter().any(|protocol| MESH_ALPN.contains(&&protocol[..]))
}
