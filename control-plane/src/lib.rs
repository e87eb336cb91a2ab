//! The control plane of one cluster: it watches its own API server, issues certificates to its own
//! workloads, and tells each proxy what it runs. It knows of other clusters only what the
//! federation controller wrote into that API server.

mod accept;
mod authority;
mod limit;
mod numbers;
mod pages;
mod place;
mod run;
mod serve;
mod webhook;

pub use run::{Config, run};
pub use webhook::Config as WebhookConfig;
