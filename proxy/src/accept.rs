//! An accept loop that nothing ends but its token: it survives EMFILE, sheds above its caps.

use std::net::SocketAddr;
use std::sync::Arc;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

/// How many connections may live at once.
#[derive(Debug, Clone, Copy)]
pub struct Caps {
    pub all: usize,
    /// Per source address.
    pub per_source: usize,
}

/// One accepted connection's place under the caps; gone when dropped.
#[derive(Debug)]
pub struct Place {}

/// Accepts until `end`, handing each connection (TCP_NODELAY and keepalive set) to `serve`.
/// A connection above a cap is closed at once and told to `shed`.
pub async fn accept(
    listener: TcpListener,
    caps: Caps,
    end: CancellationToken,
    shed: impl Fn(SocketAddr, &'static str) + Send,
    serve: impl Fn(TcpStream, SocketAddr, Place) + Send,
) {
    let _ = (listener, caps, end, shed, serve, Arc::new(()));
    todo!("engine")
}
