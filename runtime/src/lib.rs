//! What every process of the mesh needs and no more: its configuration file, logs, metrics,
//! readiness, an admin page on loopback, and a clean end.

pub mod config;
pub mod telemetry;
pub mod readiness;
pub mod shutdown;
pub mod metrics;
pub mod admin;
pub mod page;
