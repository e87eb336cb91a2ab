//! A workload's proxy: what its application sends goes into the mesh, what the mesh sends goes to
//! its application, and names are answered beside it.

mod config;
mod inbound;
mod loopback;
mod named;
mod names;
mod original;
mod outbound;
mod probe;
pub mod redirect;
mod refusal;
mod run;
mod sabotage;
mod sniff;

pub use config::{Config, DnsConfig, Many, SvidFiles};
pub use loopback::{Loopback, Name, Slots};
pub use probe::{Grpc, Header, HttpGet, Probe, Scheme, TcpSocket};
pub use run::{run, threads};
