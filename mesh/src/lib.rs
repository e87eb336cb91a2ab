//! The heart of Isthmus: what a mesh is, and every decision about it, as values and pure functions.
//!
//! No input, no output, no clock, no randomness, no logging, no async. Whatever happens outside
//! becomes a value here ([`inventory::Inventory`], [`export::Exports`]); whatever is decided here
//! leaves as a value ([`program::Program`], [`federate::Plan`], [`zone::Zone`]).
//! Modules in reading order:

pub mod authorize;
pub mod compile;
pub mod explain;
pub mod export;
pub mod federate;
pub mod finding;
pub mod inventory;
pub mod name;
pub mod program;
pub mod sni;
pub mod world;
pub mod zone;

#[cfg(test)]
mod fixture;
