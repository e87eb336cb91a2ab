//! What every process of the mesh needs and no more: its configuration file and the words for what is
//! wrong with it, logs, metrics, readiness, pages about itself, places for connections, and a clean end.

pub mod admin;
pub mod config;
pub mod metrics;
pub mod page;
pub mod places;
pub mod readiness;
pub mod shutdown;
pub mod telemetry;
pub mod yaml;

use std::pin::Pin;

/// A program at work, behind a pointer, so that its code is made once, in its own room and with that
/// room's optimisations: a bare `async fn` is compiled again, as its caller is, in every program and
/// test that awaits it.
pub type Work<'a, T = ()> = Pin<Box<dyn Future<Output = anyhow::Result<T>> + Send + 'a>>;
