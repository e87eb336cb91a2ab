//! HTTP/1.1, HTTP/2 and gRPC on the engine: connections kept on both sides, requests tried again where
//! that is safe, and every response told to metrics and log.
//!
//! hyper reads and writes the messages; what is decided here is where a request goes, when it goes a
//! second time (design decision 14), and what may not pass from one hop to the next.

mod body;
mod budget;
mod connection;
mod dials;
mod farewell;
mod grpc;
mod head_timer;
mod headers;
mod idle;
mod inbound;
mod last_words;
mod latency;
mod observed;
mod outbound;
mod payload;
mod pool;
mod quiet;
mod received;
mod record;
mod refusal;
mod serve;
mod upgrade;
mod version;

pub use idle::IDLE_MAX;
pub use inbound::Application;
pub use serve::{Downstream, Http, Options};
