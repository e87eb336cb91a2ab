//! A clean end: SIGTERM or SIGINT begins it, a second one cuts it short.

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// A token that is cancelled by the first SIGTERM or SIGINT. The second exits at once, status 130.
pub fn on_signal() -> std::io::Result<CancellationToken> {
    let token = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let begun = token.clone();
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            if begun.is_cancelled() {
                tracing::warn!("second signal: ending without draining");
                std::process::exit(130);
            }
            tracing::info!("ending: signal received, draining");
            begun.cancel();
        }
    });
    Ok(token)
}
