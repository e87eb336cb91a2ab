//! Three clusters on real API servers in network namespaces: brought up, loaded, hurt, judged.

pub mod apiserver;
pub mod authority;
pub mod client_hello;
pub mod fleet;
pub mod forger;
pub mod hello;
pub mod launcher;
pub mod link;
pub mod load;
pub mod netns;
pub mod objects;
pub mod parts;
pub mod process;
pub mod scenario;
pub mod trust;
pub mod verdict;
