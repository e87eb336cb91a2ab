//! A delta xDS conversation as two machines without I/O: requests and time in, responses out.

pub mod client;
pub mod server;
pub mod sotw;
