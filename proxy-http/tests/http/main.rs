//! The HTTP side as applications see it: real sockets, real mutual TLS, upstreams that misbehave.

mod floods;
mod http2;
mod inbound;
mod outbound;
mod world;
