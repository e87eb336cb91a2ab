//! A connection that stops being HTTP: both sides switched, from here on bytes.

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use proxy::drain::Drain;
use proxy::tunnel;
use std::time::Duration;

/// Closed after this long without a byte either way.
const IDLE: Duration = Duration::from_secs(3_600);

/// Carries bytes between two upgraded connections until either ends, or `unwanted` does; a drain
/// cuts them at its end. `held` is kept as long: the places of both, which count for their limits.
pub(crate) fn join(
    client: OnUpgrade,
    server: OnUpgrade,
    drain: &Drain,
    held: impl Send + 'static,
    unwanted: impl Future<Output = ()> + Send + 'static,
) {
    let live = drain.live();
    tokio::spawn(async move {
        let _held = held;
        let (client, server) = match tokio::try_join!(client, server) {
            Ok(both) => both,
            Err(problem) => {
                tracing::debug!(error = %problem, "a switch of protocols did not come about");
                return;
            }
        };
        let (mut client, mut server) = (TokioIo::new(client), TokioIo::new(server));
        tokio::select! {
            _ = tunnel::copy(&mut client, &mut server, IDLE) => {}
            () = live.cut() => {}
            () = unwanted => {}
        }
    });
}
