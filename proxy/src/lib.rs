//! The engine without HTTP: it reads whom a client asks for, picks an endpoint, races connections
//! to it, remembers who failed, and copies bytes. It is handed Programs and never speaks xDS.

pub mod accept;
pub mod access;
pub mod admission;
pub mod drain;
pub mod engine;
pub mod pages;
pub mod peek;
pub mod prefixed;
pub mod telemetry;
pub mod tunnel;
pub mod upstream;
mod wanted;

pub use engine::{Engine, NotHere, Options};
pub use upstream::{
    Ask, Attempt, ConnectFailed, Established, InFlight, Outcome, Picked, Slot, Stream, Upstream,
};
