//! A DNS server over `mesh::zone`: answers the mesh's names from memory, forwards the rest.
//!
//! hickory reads and writes the wire format. The sockets are served here, since hickory's server
//! starts an unbounded task per datagram and has no limit on TCP connections
//! (design/reliability-and-security.md section 7).

mod answer;
mod forward;
mod lookup;
mod serve;
mod telemetry;

pub use lookup::{Found, answers, lookup};
pub use serve::Server;

use ipnet::IpNet;
use mesh::zone::Zone;
use runtime::metrics::Metrics;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// What a DNS server needs.
#[derive(Debug, Clone)]
pub struct Options {
    /// Each is served over UDP and TCP.
    pub listen: Vec<SocketAddr>,
    /// Who is asked about names that are not ours; none: they are refused.
    pub upstreams: Vec<SocketAddr>,
    /// Who may ask; empty: loopback only, so that nobody runs an open resolver by leaving it out.
    pub allow: Vec<IpNet>,
    /// What is answered from memory; each question reads the newest.
    pub zone: watch::Receiver<Arc<Zone>>,
    pub metrics: Metrics,
}

/// Binds all of `listen` and serves until `end`.
pub fn serve(options: Options, end: CancellationToken) -> runtime::Work<'static> {
    Box::pin(async move {
        Server::bind(options)?.run(end).await;
        Ok(())
    })
}
