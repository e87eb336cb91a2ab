//! Who talks to whom, as labels of metrics, and how many such pairs are told apart.

use mesh::name::ClusterId;
use std::collections::HashSet;
use std::sync::{Arc, Mutex};

/// Conversations of one process that have series of their own. What a peer says of itself is among the labels,
/// and series are never removed: without a bound a peer would decide how much memory they take.
const CONVERSATIONS_MAX: usize = 2_000;
/// What the workloads of all others are called.
const OTHERS: &str = "other";

/// Who told the metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reporter {
    Source,
    Destination,
}

/// One side of a conversation. Unknown fields stay empty and are shown as `unknown`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Party {
    pub workload: String,
    pub namespace: String,
    /// SPIFFE identity as verified.
    pub principal: String,
    pub app: String,
    pub cluster: Option<ClusterId>,
}

/// All standard labels but those of a single response.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Conversation {
    pub reporter: Reporter,
    pub source: Party,
    pub destination: Party,
    /// Host: `hello.shop.global`.
    pub service: String,
    pub service_name: String,
    pub service_namespace: String,
    pub mutual_tls: bool,
}

/// The conversations that have series of their own.
#[derive(Debug, Default)]
pub(super) struct Known {
    all: Mutex<HashSet<Arc<Conversation>>>,
}

impl Known {
    /// This one, or the one that stands for it where there are too many; true for the latter.
    pub(super) fn admit(&self, conversation: &Conversation) -> (Arc<Conversation>, bool) {
        let mut all = self.all.lock().expect("no holder panics");
        if let Some(known) = all.get(conversation) {
            return (known.clone(), false);
        }
        if all.len() >= CONVERSATIONS_MAX {
            return (Arc::new(conversation.as_other()), true);
        }
        let admitted = Arc::new(conversation.clone());
        all.insert(admitted.clone());
        (admitted, false)
    }
}

impl Conversation {
    /// Without all that tells it from others, but who reports it and how it was secured.
    fn as_other(&self) -> Self {
        let other = || Party { workload: OTHERS.into(), ..Party::default() };
        Self {
            reporter: self.reporter,
            source: other(),
            destination: other(),
            service: String::new(),
            service_name: String::new(),
            service_namespace: String::new(),
            mutual_tls: self.mutual_tls,
        }
    }
}

/// The workload a pod belongs to, by how Kubernetes names pods: `hello-7d4b9c6f5-x2x9z` and
/// `hello-0` are `hello`.
pub fn workload(pod: &str) -> &str {
    // Kubernetes makes suffixes of these characters only (apimachinery, `SafeEncodeString`).
    let safe = |text: &str| text.bytes().all(|b| b"bcdfghjklmnpqrstvwxz2456789".contains(&b));
    let Some((rest, last)) = pod.rsplit_once('-') else { return pod };
    if !last.is_empty() && last.bytes().all(|b| b.is_ascii_digit()) && last.len() < 5 {
        return rest;
    }
    if last.len() != 5 || !safe(last) {
        return pod;
    }
    match rest.rsplit_once('-') {
        Some((name, hash)) if (8..=10).contains(&hash.len()) && safe(hash) => name,
        Some(_) | None => rest,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_belong_to_workloads() {
        for (pod, name) in [
            ("hello-7d4b9c6f5-x2x9z", "hello"),
            ("hello-world-7d4b9c6f5-x2x9z", "hello-world"),
            ("db-0", "db"),
            ("agent-x2x9z", "agent"),
            ("hello", "hello"),
            ("hello-west", "hello-west"),
        ] {
            assert_eq!(workload(pod), name, "{pod}");
        }
    }

    #[test]
    fn a_peer_cannot_make_series_without_end() {
        let known = Known::default();
        let from = |workload: String, mutual_tls| Conversation {
            reporter: Reporter::Destination,
            source: Party { workload, ..Party::default() },
            destination: Party::default(),
            service: "hello.shop.global".into(),
            service_name: "hello".into(),
            service_namespace: "shop".into(),
            mutual_tls,
        };
        for number in 0..CONVERSATIONS_MAX {
            assert!(!known.admit(&from(format!("w{number}"), true)).1);
        }
        let (others, beyond) = known.admit(&from("one-more".into(), true));
        assert!(beyond && others.source.workload == OTHERS && others.service.is_empty());
        assert_eq!(others, known.admit(&from("and-another".into(), true)).0, "all in one");
        assert!(!known.admit(&from("and-another".into(), false)).0.mutual_tls);
        let (first, beyond) = known.admit(&from("w0".into(), true));
        assert!(!beyond && first.source.workload == "w0", "who was known stays so");
    }
}
