//! Kubernetes Events on transitions: what became of a ClusterLink or an ExportedService, where
//! `kubectl describe` shows it (`said.rs` says what).
//!
//! Whoever writes the state says the transition, after the write: what stands in the API server is
//! the state before, so a restart repeats nothing. [`Pace`] decides without IO what is written: the
//! same said again soon counts up one Event, and an object that cannot rest is cut off. Events tell
//! people; one that is lost changes nothing, and none is tried twice.

mod said;

pub use said::{Said, Weight, of_export, of_link};

use crate::api::{self, label};
use crate::heard::chain;
use crate::lease::{Fence, REQUEST_TIMEOUT};
use k8s_openapi::api::core::v1::Event;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::json;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Said again within this long, it is the same Event, counted (client-go's aggregation has ten minutes too).
pub const SAME_WITHIN: Duration = Duration::from_secs(600);
/// Events of one object at once (client-go's number); then one for each [`REFILL`] (client-go: 300 s).
pub const BURST: u32 = 25;
pub const REFILL: Duration = Duration::from_secs(60);
/// Objects and reasons that are remembered; the oldest are forgotten, and say a new Event.
pub const REMEMBERED_MAX: usize = 2_048;
/// Waiting to be written; more are dropped.
const QUEUE_MAX: usize = 256;
/// Longest message, octets (the API server takes 1,024).
const MESSAGE_MAX: usize = 1_000;

/// What it happened to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Regarding {
    /// Of our own group.
    pub kind: &'static str,
    pub namespace: String,
    pub name: String,
    pub uid: String,
}

/// Takes transitions; never waits.
#[derive(Debug, Clone)]
pub struct Events(mpsc::Sender<(Regarding, Said)>);

impl Events {
    /// Writes what it is told to the API server, while `fence` permits, until `end`.
    pub fn start(client: Client, fence: Fence, end: CancellationToken) -> Self {
        let (send, told) = mpsc::channel(QUEUE_MAX);
        tokio::spawn(write(client, fence, told, end));
        Self(send)
    }

    pub fn say(&self, regarding: Regarding, said: Said) {
        if self.0.try_send((regarding, said)).is_err() {
            tracing::debug!("an event is dropped: too many wait");
        }
    }
}

/// What to do about one transition.
#[derive(Debug, PartialEq, Eq)]
enum Act {
    Create,
    /// The Event of this name, for the so-many-th time.
    Count {
        name: String,
        count: i32,
    },
    /// Too many of this object.
    Drop,
}

/// Which Event is whose, and how many an object may have; without IO.
#[derive(Debug, Default)]
struct Pace {
    last: BTreeMap<(Regarding, &'static str), Last>,
    /// What an object has left, and when that was so.
    left: BTreeMap<Regarding, (u32, Instant)>,
}

#[derive(Debug)]
struct Last {
    name: String,
    count: i32,
    at: Instant,
}

impl Pace {
    fn decide(&mut self, regarding: &Regarding, reason: &'static str, now: Instant) -> Act {
        self.forget_rested(now);
        let (left, since) = self.left.entry(regarding.clone()).or_insert((BURST, now));
        let passed = now.saturating_duration_since(*since).as_secs() / REFILL.as_secs();
        if passed > 0 {
            *left = left.saturating_add(u32::try_from(passed).unwrap_or(BURST)).min(BURST);
            *since = now;
        }
        if *left == 0 {
            return Act::Drop;
        }
        *left -= 1;
        let known = self.last.get_mut(&(regarding.clone(), reason));
        match known.filter(|last| now.saturating_duration_since(last.at) < SAME_WITHIN) {
            Some(last) => {
                (last.count, last.at) = (last.count.saturating_add(1), now);
                Act::Count { name: last.name.clone(), count: last.count }
            }
            None => Act::Create,
        }
    }

    fn created(&mut self, regarding: &Regarding, reason: &'static str, name: &str, now: Instant) {
        let last = Last { name: name.to_owned(), count: 1, at: now };
        self.last.insert((regarding.clone(), reason), last);
        while self.last.len() > REMEMBERED_MAX {
            let oldest =
                self.last.iter().min_by_key(|(_, last)| last.at).map(|(key, _)| key.clone());
            oldest.and_then(|key| self.last.remove(&key));
        }
    }

    /// Objects that have all of their Events again need not be known.
    fn forget_rested(&mut self, now: Instant) {
        self.left.retain(|_, (left, since)| {
            *left < BURST && now.saturating_duration_since(*since) < REFILL * BURST
        });
    }

    /// It is not there any more, or never was.
    fn forget(&mut self, regarding: &Regarding, reason: &'static str) {
        self.last.remove(&(regarding.clone(), reason));
    }
}

async fn write(
    client: Client,
    fence: Fence,
    mut told: mpsc::Receiver<(Regarding, Said)>,
    end: CancellationToken,
) {
    let mut pace = Pace::default();
    loop {
        let news = tokio::select! {
            () = end.cancelled() => return,
            news = told.recv() => news,
        };
        let Some((regarding, said)) = news else { return };
        let now = Instant::now();
        if fence.permit(now).is_none() {
            continue;
        }
        let written: Api<Event> = Api::namespaced(client.clone(), &regarding.namespace);
        let act = pace.decide(&regarding, said.reason, now);
        let work = async {
            if let Act::Count { name, count } = &act {
                let patch = json!({"count": count, "lastTimestamp": stamp(), "message": short(&said.message)});
                let params = PatchParams::default();
                match written.patch(name, &params, &Patch::Merge(&patch)).await {
                    // It has ended (an hour by default): the next one is a new one.
                    Err(kube::Error::Api(status)) if status.code == 404 => {}
                    done => return done.map(|_| None),
                }
            }
            let event = event(&regarding, &said);
            written.create(&PostParams::default(), &event).await.map(|event| event.metadata.name)
        };
        if act == Act::Drop {
            tracing::debug!(object = regarding.name, reason = said.reason, "too many events of it");
            continue;
        }
        match tokio::time::timeout(REQUEST_TIMEOUT, work).await {
            Ok(Ok(Some(name))) => pace.created(&regarding, said.reason, &name, now),
            Ok(Ok(None)) => {}
            Ok(Err(error)) => {
                pace.forget(&regarding, said.reason);
                tracing::warn!(error = chain(&error), "an event could not be written");
            }
            Err(_) => pace.forget(&regarding, said.reason),
        }
    }
}

fn event(regarding: &Regarding, said: &Said) -> Event {
    let Regarding { kind, namespace, name, uid } = regarding;
    let now = stamp();
    let weight = match said.weight {
        Weight::Normal => "Normal",
        Weight::Warning => "Warning",
    };
    let object = json!({
        "metadata": {"generateName": format!("{}.", name.chars().take(200).collect::<String>()), "namespace": namespace},
        "involvedObject": {
            "apiVersion": api::GROUP_VERSION, "kind": kind, "namespace": namespace, "name": name, "uid": uid,
        },
        "type": weight, "reason": said.reason, "message": short(&said.message), "count": 1,
        "firstTimestamp": now, "lastTimestamp": now,
        "source": {"component": label::MANAGER}, "reportingComponent": label::MANAGER,
    });
    serde_json::from_value(object).expect("an Event of ours is one")
}

/// RFC 3339, whole seconds.
fn stamp() -> String {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let seconds = since.map_or(0, |since| since.as_secs());
    api::time(i64::try_from(seconds).unwrap_or(i64::MAX)).0.to_string()
}

fn short(text: &str) -> String {
    let mut cut = text.len().min(MESSAGE_MAX);
    while !text.is_char_boundary(cut) {
        cut -= 1;
    }
    if cut < text.len() { format!("{}…", &text[..cut]) } else { text.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn regarding(name: &str) -> Regarding {
        Regarding {
            kind: "ClusterLink",
            namespace: "isthmus-system".into(),
            name: name.into(),
            uid: "u".into(),
        }
    }

    #[test]
    fn the_same_again_counts_up_and_what_never_rests_is_cut_off() {
        let (mut pace, start) = (Pace::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        let west = regarding("west");
        assert_eq!(pace.decide(&west, "Silent", at(0)), Act::Create);
        pace.created(&west, "Silent", "west.1", at(0));
        for count in 2..=25 {
            let act = pace.decide(&west, "Silent", at(1));
            assert_eq!(act, Act::Count { name: "west.1".into(), count });
        }
        assert_eq!(pace.decide(&west, "Silent", at(2)), Act::Drop, "its burst is spent");
        assert_eq!(pace.decide(&west, "Heard", at(2)), Act::Drop);
        assert_eq!(
            pace.decide(&regarding("north"), "Silent", at(2)),
            Act::Create,
            "others are not"
        );
        let again = Act::Count { name: "west.1".into(), count: 26 };
        assert_eq!(pace.decide(&west, "Silent", at(61)), again, "one a minute");
        assert_eq!(pace.decide(&west, "Silent", at(62)), Act::Drop);
        assert_eq!(pace.decide(&west, "Silent", at(61 + 600)), Act::Create, "long ago is another");
    }

    #[test]
    fn memory_is_bounded() {
        let (mut pace, start) = (Pace::default(), Instant::now());
        for number in 0..REMEMBERED_MAX as u64 + 100 {
            let one = regarding(&number.to_string());
            let now = start + REFILL * u32::try_from(number).unwrap();
            pace.decide(&one, "Linked", now);
            pace.created(&one, "Linked", "x", now);
        }
        assert_eq!(pace.last.len(), REMEMBERED_MAX);
        assert!(!pace.last.contains_key(&(regarding("0"), "Linked")), "the oldest went");
        assert!(pace.left.len() < 40, "{}", pace.left.len());
        let mut refused = Pace::default();
        for number in 0..100 {
            // None is ever created.
            refused.decide(&regarding(&number.to_string()), "Linked", start + REFILL * number);
        }
        assert!(refused.left.len() < 40, "{}", refused.left.len());
    }

    #[test]
    fn a_message_is_cut_between_letters() {
        let long = short(&"é".repeat(800));
        assert!(long.ends_with('…') && long.len() <= MESSAGE_MAX + '…'.len_utf8());
        assert_eq!(short("é"), "é");
        let said = Said { weight: Weight::Warning, reason: "Silent", message: "m".into() };
        let event = event(&regarding("west"), &said);
        assert_eq!(event.involved_object.uid.as_deref(), Some("u"));
        assert_eq!(event.type_.as_deref(), Some("Warning"));
    }
}
