//! A connection that stops being HTTP: both sides switched, from here on bytes.

use crate::body::{Ended, Passed};
use crate::record::Record;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use proxy::drain::Drain;
use proxy::tunnel::{self, End};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio_util::io::{InspectReader, InspectWriter};

/// Closed after this long without a byte either way.
const IDLE: Duration = Duration::from_secs(3_600);

/// Carries bytes between two upgraded connections until either ends, or `unwanted` does; a drain
/// cuts them at its end. `held` is kept as long: the places of both, which count for their limits.
/// `record` is told how many bytes went either way, and written then.
pub(crate) fn join(
    client: OnUpgrade,
    server: OnUpgrade,
    drain: &Drain,
    record: Record,
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
        let (requested, responded) = (record.requested.clone(), AtomicU64::new(0));
        let count = |counter: &AtomicU64, octets: &[u8]| {
            counter.fetch_add(octets.len() as u64, Ordering::Relaxed);
        };
        let client = InspectWriter::new(TokioIo::new(client), |octets| count(&responded, octets));
        let mut client = InspectReader::new(client, |octets| count(&requested, octets));
        let mut server = TokioIo::new(server);
        let ended = tokio::select! {
            transferred = tunnel::copy(&mut client, &mut server, IDLE) => match transferred.end {
                End::Finished => Ended::Whole,
                End::ClientFailed => Ended::ClientLeft,
                End::ServerFailed => Ended::UpstreamFailed,
                End::Idle => Ended::NotTaken,
            },
            () = live.cut() => Ended::Whole,
            () = unwanted => Ended::Whole,
        };
        let passed = Passed { bytes: responded.load(Ordering::Relaxed), grpc_status: None };
        record.end(ended, passed);
    });
}
