//! The HTTP side as applications see it: real sockets, real mutual TLS, upstreams that misbehave.

mod breaks;
mod drain;
mod early;
mod floods;
mod heads;
mod http2;
mod idle;
mod inbound;
mod outbound;
#[path = "../../../runtime/tests/support/port.rs"]
mod port;
mod smuggling;
mod streams;
mod upgrades;
mod world;
