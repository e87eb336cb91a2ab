//! A control plane that is stuck is left for another one by our own proxies, within 45 s: one that
//! takes a stream and is silent, one that falls silent later, and one that only repeats itself.

#[path = "support/replicas.rs"]
mod replicas;
mod support;

use mesh::program::{ResourceName, Want};
use replicas::{Replica, SILENT, WELL};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use support::plane::node;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use xds::subscribe::{self, Subscription, WATCHDOG};

/// A proxy that dials `replicas` in turn, the last one from then on, and how often it did.
fn proxy(replicas: &'static [Replica]) -> (Subscription, Arc<AtomicUsize>) {
    let (connector, dialled) = replicas::dial(replicas);
    (subscribe::start(node(), connector, CancellationToken::new()), dialled)
}

fn name(number: u16) -> ResourceName {
    ResourceName::outbound("240.240.9.9".parse().unwrap(), number)
}

async fn want(proxy: &Subscription, name: &ResourceName) {
    proxy.want.send(Want::Subscribe(name.clone())).await.unwrap();
}

/// How long until the proxy hears that there is no `name`.
async fn answered(proxy: &Subscription, name: &ResourceName) -> Duration {
    let start = Instant::now();
    let mut snapshot = proxy.snapshot.clone();
    let heard = snapshot.wait_for(|shown| shown.connected && shown.absent.contains(name));
    let heard = tokio::time::timeout(WATCHDOG * 10, heard).await;
    heard.expect("no replica that answers was found").unwrap();
    start.elapsed()
}

/// The watchdog's time, and a moment to dial.
#[track_caller]
fn left_in_time(waited: Duration) {
    assert!(WATCHDOG <= Duration::from_secs(45), "the promise is 45 s");
    assert!((WATCHDOG..WATCHDOG + Duration::from_secs(1)).contains(&waited), "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn a_control_plane_that_never_answers_is_left() {
    let (proxy, dialled) = proxy(&[SILENT, WELL]);
    want(&proxy, &name(1)).await;
    left_in_time(answered(&proxy, &name(1)).await);
    assert_eq!(dialled.load(Ordering::SeqCst), 2);
}

#[tokio::test(start_paused = true)]
async fn a_control_plane_that_answers_once_is_left_at_the_next_question() {
    let (proxy, dialled) = proxy(&[Replica { answers: 1, ..SILENT }, WELL]);
    want(&proxy, &name(1)).await;
    assert!(answered(&proxy, &name(1)).await < Duration::from_secs(1));
    // It owes nothing, and is not left.
    tokio::time::sleep(WATCHDOG * 4).await;
    assert_eq!(dialled.load(Ordering::SeqCst), 1);
    assert!(proxy.snapshot.borrow().connected);
    want(&proxy, &name(2)).await;
    left_in_time(answered(&proxy, &name(2)).await);
    assert_eq!(dialled.load(Ordering::SeqCst), 2);
}

#[tokio::test(start_paused = true)]
async fn a_control_plane_that_only_repeats_itself_is_left() {
    let (proxy, dialled) = proxy(&[Replica { answers: 1, repeats: true, ..SILENT }, WELL]);
    want(&proxy, &name(1)).await;
    assert!(answered(&proxy, &name(1)).await < Duration::from_secs(1));
    tokio::time::sleep(WATCHDOG * 4).await;
    assert_eq!(dialled.load(Ordering::SeqCst), 1);
    want(&proxy, &name(2)).await;
    left_in_time(answered(&proxy, &name(2)).await);
    assert_eq!(dialled.load(Ordering::SeqCst), 2);
}

#[tokio::test(start_paused = true)]
async fn one_stuck_replica_after_another_is_left() {
    let (proxy, dialled) = proxy(&[SILENT, Replica { answers: 1, ..SILENT }, WELL]);
    want(&proxy, &name(1)).await;
    left_in_time(answered(&proxy, &name(1)).await);
    want(&proxy, &name(2)).await;
    left_in_time(answered(&proxy, &name(2)).await);
    assert_eq!(dialled.load(Ordering::SeqCst), 3);
}
