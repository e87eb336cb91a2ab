//! Where a redirected connection was going.

use socket2::SockRef;
use std::io;
use std::net::{IpAddr, SocketAddr};
use tokio::net::TcpStream;

/// The destination before the redirect, as the kernel's connection tracking remembers it.
pub(crate) fn destination(stream: &TcpStream) -> io::Result<SocketAddr> {
    let socket = SockRef::from(stream);
    let address = match stream.local_addr()? {
        SocketAddr::V4(_) => socket.original_dst_v4()?,
        // A v4 connection on a v6 socket has its original destination in v4's option.
        SocketAddr::V6(local) if local.ip().to_ipv4_mapped().is_some() => {
            socket.original_dst_v4()?
        }
        SocketAddr::V6(_) => socket.original_dst_v6()?,
    };
    address.as_socket().ok_or_else(|| io::Error::other("it is no IP address"))
}

/// Addresses and ports that are the sidecar's own: a connection to them goes round in circles.
#[derive(Debug)]
pub(crate) struct Own {
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) ports: Vec<u16>,
}

impl Own {
    /// `destination` is where the sidecar itself listens.
    pub(crate) fn is_itself(&self, destination: SocketAddr) -> bool {
        let ip = destination.ip().to_canonical();
        self.ports.contains(&destination.port())
            && (ip.is_loopback() || ip.is_unspecified() || self.addresses.contains(&ip))
    }

    pub(crate) fn is_mine(&self, ip: IpAddr) -> bool {
        self.addresses.contains(&ip.to_canonical())
    }
}
