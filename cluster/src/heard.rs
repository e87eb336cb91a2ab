//! How old our knowledge of an API server is: the last moment a byte of an answer came, per kind.

use http_body_util::BodyExt as _;
use kube::Client;
use kube::client::Body;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime};

/// Silence after which a watch counts as unheard. A healthy one speaks at least every
/// [`crate::follow::WATCH_SECONDS`], when the server ends it as we asked; five seconds more are for
/// the way there and back, and with the next connect (5 s) a hang still shows within 35 s.
pub const SILENCE: Duration = Duration::from_secs(28);

/// What one watch knows of its own freshness. Cheap to clone; all clones are one.
#[derive(Debug, Clone, Default)]
pub struct Heard(Arc<Mutex<Record>>);

#[derive(Debug, Clone, Default)]
struct Record {
    synced: bool,
    heard: Option<Moment>,
    /// The last request, or what came back of it, broke without an answer.
    unanswered: Option<String>,
    /// The server answered, but not with what we asked for.
    refused: Option<String>,
    /// It refused because of who asks: 401 or 403.
    denied: bool,
    note: Option<String>,
    objects: usize,
}

/// When something was last heard, by both clocks: one to measure ages, one to show people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    pub at: Instant,
    pub wall: SystemTime,
}

impl Moment {
    pub fn now() -> Self {
        Self { at: Instant::now(), wall: SystemTime::now() }
    }
}

/// The freshness of one kind at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KindHealth {
    /// One whole list has been seen; stays true through outages.
    pub synced: bool,
    /// Last answer of any sort, also an error answer.
    pub heard: Option<Moment>,
    /// Why it cannot be read just now; `None` while all is well.
    pub error: Option<String>,
    /// What else there is to know: `not installed`.
    pub note: Option<String>,
    /// The API server does not answer this watch: no connection, or [`SILENCE`].
    pub silent: bool,
    /// The API server says that this credential may not read it, or is none (401, 403).
    pub denied: bool,
    /// Objects of this kind, as of the last event.
    pub objects: usize,
}

impl Heard {
    /// A client whose answers, head and body, are noted here.
    pub fn listen(&self, client: Client) -> Client {
        let namespace = client.default_namespace().to_owned();
        let heard = self.clone();
        let service = tower::service_fn(move |request: http::Request<Body>| {
            let (client, heard) = (client.clone(), heard.clone());
            async move {
                let answer = client.send(request).await.inspect_err(|error| {
                    heard.unanswered(&chain(error));
                })?;
                heard.answered(answer.status().is_success());
                // A body that breaks off is no news yet: the next request tells whether anybody
                // still answers.
                Ok::<_, kube::Error>(answer.map(|body| {
                    body.map_frame(move |frame| {
                        heard.answered(false);
                        frame
                    })
                }))
            }
        });
        Client::new(service, namespace)
    }

    /// The state as of `now`.
    pub fn health(&self, now: Instant) -> KindHealth {
        let record = self.lock();
        // A kind that is not installed is asked for rarely: its silence says nothing.
        let watched = record.heard.filter(|_| record.note.is_none());
        let quiet = watched.filter(|heard| now.saturating_duration_since(heard.at) > SILENCE);
        let silence = quiet.map(|heard| {
            let age = now.saturating_duration_since(heard.at).as_secs();
            format!("no answer for {age} s")
        });
        KindHealth {
            synced: record.synced,
            heard: record.heard,
            silent: record.unanswered.is_some() || silence.is_some(),
            error: record.unanswered.clone().or(silence).or_else(|| record.refused.clone()),
            note: record.note.clone(),
            denied: record.refused.is_some() && record.denied,
            objects: record.objects,
        }
    }

    /// `fine` is an answer that is what we asked for, as far as its head tells.
    fn answered(&self, fine: bool) {
        let mut record = self.lock();
        record.heard = Some(Moment::now());
        record.unanswered = None;
        if fine {
            record.refused = None;
        }
    }

    fn unanswered(&self, why: &str) {
        self.lock().unanswered = Some(why.chars().take(ERROR_MAX).collect());
    }

    /// The server answers, but with an error.
    pub(crate) fn refused(&self, why: &str, denied: bool) {
        let mut record = self.lock();
        record.refused = Some(why.chars().take(ERROR_MAX).collect());
        record.denied = denied;
    }

    /// A whole list, or a change to it, was seen.
    pub(crate) fn synced(&self, objects: usize) {
        let mut record = self.lock();
        record.synced = true;
        record.refused = None;
        record.note = None;
        record.objects = objects;
    }

    /// The server does not know this kind: empty, and that is all there is to know.
    pub(crate) fn not_installed(&self) {
        self.synced(0);
        self.lock().note = Some("not installed".into());
    }

    fn lock(&self) -> MutexGuard<'_, Record> {
        self.0.lock().expect("nothing panics while it holds a record of health")
    }
}

/// Longest error kept: what a stranger's server writes does not fill our memory or a status page.
const ERROR_MAX: usize = 512;

/// An error with its causes in one line, as kube's own `Display` leaves them out.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let part = error.to_string();
        if !text.contains(&part) {
            text = format!("{text}: {part}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_and_broken_connections_show_and_end_with_the_next_answer() {
        let heard = Heard::default();
        let start = Instant::now();
        assert!(!heard.health(start).silent, "nothing was asked yet");
        heard.answered(true);
        heard.synced(3);
        let health = heard.health(Instant::now());
        assert!(!health.silent && health.synced && health.objects == 3 && health.error.is_none());

        let later = Instant::now() + SILENCE + Duration::from_secs(2);
        let health = heard.health(later);
        assert!(health.silent && health.synced, "{health:?}");
        assert_eq!(health.error.as_deref(), Some("no answer for 30 s"));

        heard.unanswered("connection refused");
        let health = heard.health(Instant::now());
        assert!(health.silent);
        assert_eq!(health.error.as_deref(), Some("connection refused"));

        heard.answered(true);
        heard.refused("pods is forbidden", true);
        let health = heard.health(Instant::now());
        assert!(health.denied);
        assert!(!health.silent, "an error is an answer");
        assert_eq!(health.error.as_deref(), Some("pods is forbidden"));
        heard.synced(4);
        let health = heard.health(Instant::now());
        assert!(health.error.is_none() && !health.denied, "{health:?}");
    }

    #[test]
    fn a_kind_that_is_not_installed_may_be_quiet() {
        let heard = Heard::default();
        heard.answered(false);
        heard.not_installed();
        let health = heard.health(Instant::now() + SILENCE * 2);
        assert!(health.synced && !health.silent && health.error.is_none(), "{health:?}");
        assert_eq!(health.note.as_deref(), Some("not installed"));
        heard.unanswered("connection refused");
        assert!(heard.health(Instant::now()).silent, "a broken connection is told all the same");
        heard.answered(true);
        heard.synced(1);
        let health = heard.health(Instant::now() + SILENCE * 2);
        assert!(health.silent && health.note.is_none(), "installed, it is watched: {health:?}");
    }
}
