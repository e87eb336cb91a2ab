//! What every process of the mesh needs and no more: its configuration file, logs, metrics,
//! readiness, an admin page on loopback, and a clean end.

pub mod admin;
pub mod config;
pub mod metrics;
pub mod page;
pub mod readiness;
pub mod shutdown;
pub mod telemetry;
