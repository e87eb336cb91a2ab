//! Where a connection was going: redirected by the kernel, or sent to a slot.

use crate::loopback::Table;
use crate::names::served;
use mesh::program::Snapshot;
use socket2::SockRef;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use tokio::net::TcpStream;
use tokio::sync::watch;

/// How connections come to this sidecar.
#[derive(Debug, Clone)]
pub(crate) enum Capture {
    /// The kernel leads them here, and remembers where they were going.
    Redirected,
    /// They are sent here: names lead to slots, and the pod's ports are the sidecar's.
    Slots { table: Arc<Table>, snapshot: watch::Receiver<Arc<Snapshot>> },
}

/// An inbound connection's two ends of interest.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Meant {
    /// What the peer connected to.
    pub(crate) to: SocketAddr,
    /// Where the application has it.
    pub(crate) application: SocketAddr,
}

impl Capture {
    /// Where the application wanted to go, as the mesh has it.
    pub(crate) fn outbound(&self, stream: &TcpStream) -> Result<SocketAddr, String> {
        match self {
            Self::Redirected => destination(stream).map_err(|problem| problem.to_string()),
            Self::Slots { table, snapshot } => {
                let slot = stream.local_addr().map_err(|problem| problem.to_string())?;
                table.destination(slot, served(&snapshot.borrow()))
            }
        }
    }

    /// Whom a peer meant.
    pub(crate) fn inbound(&self, stream: &TcpStream) -> io::Result<Meant> {
        match self {
            Self::Redirected => {
                let to = destination(stream)?;
                let to = SocketAddr::new(to.ip().to_canonical(), to.port());
                Ok(Meant { to, application: to })
            }
            Self::Slots { table, .. } => {
                let to = stream.local_addr()?;
                Ok(Meant { to, application: table.application(to) })
            }
        }
    }
}

/// The destination before the redirect, as the kernel's connection tracking remembers it.
fn destination(stream: &TcpStream) -> io::Result<SocketAddr> {
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
