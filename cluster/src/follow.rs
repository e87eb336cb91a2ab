//! One kind, followed for ever: list, watch, relist, back off, and never forget the last good state.

use crate::heard::{Heard, chain};
use crate::refusal;
use futures::StreamExt as _;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Resource};
use rand::Rng as _;
use serde::de::DeserializeOwned;
use std::collections::BTreeSet;
use std::fmt::Debug;
use std::pin::pin;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Seconds after which the server ends a watch as we ask it to; each end is a sign of life.
/// kube-runtime gives up [`crate::heard::SILENCE`] after the last event, five seconds later.
pub const WATCH_SECONDS: u32 = 23;

/// What became of the objects of a kind.
#[derive(Debug, Clone)]
pub enum Change<K> {
    /// All there are: a whole list was seen.
    Replaced(Vec<K>),
    Applied(K),
    Deleted(K),
}

/// Which objects to follow, and where to note how fresh they are.
pub struct Follow<K> {
    /// The same kind in its versions, the preferred one first; the next is tried where the server
    /// does not know it. Their clients should be [`Heard::listen`]ing.
    pub apis: Vec<Api<K>>,
    pub config: watcher::Config,
    pub heard: Heard,
}

/// Follows one kind until `end`, or until nobody listens.
///
/// `trim` keeps of an object what is needed, at once, so that whole objects never pile up; `send`
/// takes what [`Change`] becomes by `wrap`. A kind the server does not know is an empty list, asked
/// for again every 30 s.
pub async fn follow<K, T, I>(
    follow: Follow<K>,
    trim: impl Fn(K) -> T,
    wrap: impl Fn(Change<T>) -> I,
    send: mpsc::Sender<I>,
    end: CancellationToken,
) where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    // Cancelled between two polls only: no change is ever half sent.
    tokio::select! {
        () = end.cancelled() => (),
        _ = run(follow, trim, wrap, send) => (),
    }
}

/// A kind the server does not know is asked for again after this.
const RECHECK: Duration = Duration::from_secs(30);
/// A kind that had objects must be unknown for so long before we believe they are gone: a starting
/// API server may not have read its CRDs yet.
const UNKNOWN_BELIEVED: Duration = Duration::from_secs(10);
/// A whole list is read again after so long, in case a restored etcd went back in time without the
/// watch noticing; +-20 %.
const RESYNC: Duration = Duration::from_secs(600);
const RETRY_MIN: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(5);

/// Returns when nobody listens any more.
async fn run<K, T, I>(
    follow: Follow<K>,
    trim: impl Fn(K) -> T,
    wrap: impl Fn(Change<T>) -> I,
    send: mpsc::Sender<I>,
) -> Result<(), mpsc::error::SendError<I>>
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let Follow { apis, config, heard } = follow;
    let config = config.timeout(WATCH_SECONDS);
    let mut version = 0;
    let mut names = BTreeSet::new(); // What there is, to count it.
    let mut failures = 0u32;
    let mut unknown_since: Option<Instant> = None;
    loop {
        let mut stream = pin!(watcher(apis[version].clone(), config.clone()));
        let resync = Instant::now() + jitter(RESYNC);
        let mut list: Vec<T> = Vec::new();
        let mut listed = BTreeSet::new();
        loop {
            let event = tokio::select! {
                event = stream.next() => event.expect("kube's watcher never ends"),
                () = tokio::time::sleep_until(resync) => break,
            };
            match event {
                Ok(Event::Init) => {
                    list.clear();
                    listed.clear();
                }
                Ok(Event::InitApply(object)) => {
                    listed.insert(key(&object));
                    list.push(trim(object));
                }
                Ok(Event::InitDone) => {
                    (failures, unknown_since) = (0, None);
                    names = std::mem::take(&mut listed);
                    heard.synced(names.len());
                    send.send(wrap(Change::Replaced(std::mem::take(&mut list)))).await?;
                }
                Ok(Event::Apply(object)) => {
                    failures = 0;
                    names.insert(key(&object));
                    heard.synced(names.len());
                    send.send(wrap(Change::Applied(trim(object)))).await?;
                }
                Ok(Event::Delete(object)) => {
                    failures = 0;
                    names.remove(&key(&object));
                    heard.synced(names.len());
                    send.send(wrap(Change::Deleted(trim(object)))).await?;
                }
                Err(error) if is_unknown(&error) => {
                    version += 1;
                    if version < apis.len() {
                        break;
                    }
                    version = 0;
                    let since = *unknown_since.get_or_insert_with(Instant::now);
                    if names.is_empty() || since.elapsed() >= UNKNOWN_BELIEVED {
                        names.clear();
                        heard.not_installed();
                        send.send(wrap(Change::Replaced(Vec::new()))).await?;
                        tokio::time::sleep(RECHECK).await;
                    } else {
                        tokio::time::sleep(RETRY_MAX).await;
                    }
                    break;
                }
                Err(error) => {
                    let denied = matches!(refusal::status(&error), Some(401 | 403));
                    heard.refused(&refusal::told(&error), denied);
                    tracing::debug!(error = chain(&error), failures, "a watch failed");
                    failures = failures.saturating_add(1);
                    let delay = RETRY_MIN.saturating_mul(1 << failures.min(5)).min(RETRY_MAX);
                    tokio::time::sleep(jitter(delay)).await;
                }
            }
        }
    }
}

/// The server answers that it has no such kind.
fn is_unknown(error: &watcher::Error) -> bool {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status)) => status.code == 404,
        watcher::Error::InitialListFailed(_)
        | watcher::Error::WatchStartFailed(_)
        | watcher::Error::WatchError(_)
        | watcher::Error::WatchFailed(_)
        | watcher::Error::NoResourceVersion => false,
    }
}

fn key<K: Resource>(object: &K) -> (Option<String>, Option<String>) {
    (object.meta().namespace.clone(), object.meta().name.clone())
}

/// +-20 %, so that many watches do not come back as one.
fn jitter(delay: Duration) -> Duration {
    delay.mul_f64(rand::rng().random_range(0.8..1.2))
}
