//! gRPC and protobuf, and only here: the codec, the sessions (delta, and the state of the world on top
//! of it), the relay for foreign proxies, and the wire on which certificates are asked for.
//!
//! [`codec`] turns values of `mesh::program` into xDS resources and back. [`session`] holds the
//! two halves of a delta xDS conversation as machines without I/O. [`serve`] and [`subscribe`]
//! put them on streams that somebody else accepted or dialled: no TLS in this room. [`relay`] and
//! [`bootstrap`] are what an agent offers to a foreign proxy.

pub mod bootstrap;
pub mod codec;
pub mod issue;
mod length;
pub mod nds;
pub mod node;
pub mod relay;
pub mod serve;
pub mod session;
pub mod subscribe;
