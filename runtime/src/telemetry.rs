//! Logs: one JSON object a line to standard error, level by `ISTHMUS_LOG` (`info` by default).

use tracing_subscriber::EnvFilter;

/// Starts logging for this process. A second call is silence, so tests may call it.
pub fn start() {
    let filter = EnvFilter::try_from_env("ISTHMUS_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let _ = tracing_subscriber::fmt()
        .json()
        .flatten_event(true)
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .try_init();
}
