//! The federation controller of one cluster: it publishes what its cluster exports, watches the
//! linked clusters' API servers for what they export, writes that into its own API server, and
//! answers the mesh's names over DNS. It writes nowhere else, and only while it leads; of the linked
//! ones it asks nothing but the next token of its own account.

mod ask;
mod config;
mod doors;
mod export;
mod links;
mod numbers;
mod publish;
mod renew;
mod resolve;
mod run;
mod status;
mod store;

pub use config::{Config, Dns};
pub use run::run;
