//! Other programs take the processors for a while: what comes after that is answered as before.

use super::headroom::{IN_TIME, carried_of};
use super::{Rates, Stage, TWO_THOUSAND};
use anyhow::Result;
use fleet::load::micros_now;
use fleet::verdict::{Kind, figures};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::time::sleep;

/// Until it is known what the load leaves of the machine.
const LEAVES: Duration = Duration::from_secs(4);
/// Threads that want all of a processor, for each that there is.
const THREADS: usize = 3;
/// How long they do.
const BUSY: Duration = Duration::from_secs(10);
/// By then what has piled up is gone: it is served from what the load leaves, or was given up.
const OVER: Duration = Duration::from_secs(10);
/// Of the load, with all of the above and as long again.
const SECONDS: f64 = 45.0;
/// By then the load has ended.
const LOAD_MAX: Duration = Duration::from_secs(90);
/// Longest answer of 99 in 100, once it is over.
const P99_MAX_MS: u64 = 250;

pub(super) async fn starved(stage: &Stage<'_>) -> Result<()> {
    let rates = Rates::fresh(TWO_THOUSAND, SECONDS);
    let (load, Rates { fresh: sent, .. }) = carried_of(stage, rates, LEAVES, IN_TIME).await?;
    let begun = micros_now();
    let busy = Busy::start(THREADS);
    sleep(BUSY).await;
    drop(busy);
    let ended = micros_now();
    let records = load.finish(LOAD_MAX).await?;
    let during = figures(&records, Kind::Fresh, begun, ended);
    stage.note(&format!("while they were busy: {during}"));
    let from = ended + u64::try_from(OVER.as_micros())?;
    let after = figures(&records, Kind::Fresh, from, u64::MAX);
    stage.judge(
        &format!(
            "{sent} new connections a second to a sidecar, the processors taken for {} s: after {} s \
             all are answered as before",
            BUSY.as_secs(),
            OVER.as_secs(),
        ),
        &format!("{after}; at most {P99_MAX_MS} ms for 99 in 100"),
        after.requests > 0 && after.failed + after.cut == 0 && after.p99_ms <= P99_MAX_MS,
        &[],
    );
    Ok(())
}

/// Threads that do nothing, all the time; they end when this is dropped.
struct Busy {
    end: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Busy {
    fn start(each: usize) -> Self {
        let end = Arc::new(AtomicBool::new(false));
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let spin = |end: Arc<AtomicBool>| {
            move || {
                while !end.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            }
        };
        let threads =
            (0..each * processors).map(|_| std::thread::spawn(spin(end.clone()))).collect();
        Self { end, threads }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}
