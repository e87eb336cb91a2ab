//! A port of loopback that is one test's own: nobody listens there until the test does, or a program it
//! starts, and the kernel gives it to nobody else. A port that was found free and let go may be another's
//! by then. All rooms' tests share this file.

use std::net::SocketAddr;
use tokio::net::TcpSocket;

/// Refuses connections until somebody listens at its address; held until dropped.
#[derive(Debug)]
pub(crate) struct Port {
    pub(crate) address: SocketAddr,
    _socket: TcpSocket,
}

impl Port {
    pub(crate) fn held() -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        // Who listens here says the same (tokio, std and Go always do): Linux lets several bind one
        // address as long as one at most listens, and counts it as taken where it chooses a port.
        socket.set_reuseaddr(true).unwrap();
        socket.bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        Self { address: socket.local_addr().unwrap(), _socket: socket }
    }
}
