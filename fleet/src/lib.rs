//! Clusters as processes on one machine: API servers, the mesh's programs, pods, load and verdicts.

pub mod apiserver;
pub mod authority;
pub mod client_hello;
mod cluster;
pub mod forger;
pub mod hello;
pub mod launcher;
pub mod link;
pub mod load;
pub mod netns;
pub mod objects;
pub mod parts;
pub mod process;
pub mod trust;
pub mod verdict;

pub use cluster::*;
