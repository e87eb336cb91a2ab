//! What is said of a link, and since when.

use super::*;
use crate::doors::Door;
use crate::links::judge;
use crate::links::tests::{object, own, remote, remotes, root, told};
use cluster::remote::{Reachability, Remotes};
use std::time::Duration;

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds)
}

struct World {
    root: String,
    statuses: Statuses,
    credential: Option<Life>,
    renewal: Option<Failure>,
    doors: Option<BTreeMap<SocketAddr, Door>>,
}

impl World {
    fn new() -> Self {
        let statuses = Statuses::default();
        Self { root: root("mesh"), statuses, credential: None, renewal: None, doors: None }
    }
    fn say(&mut self, accepted: bool, remotes: &Remotes, now: u64) -> ClusterLinkStatus {
        let objects = BTreeMap::from([object("west", accepted)]);
        let judged = judge(&own(&self.root), &objects, remotes);
        let facts = Facts {
            name: "west",
            object: objects.get("west"),
            remote: remotes.links.get("west"),
            judged: judged.get("west"),
            summary: None,
            standing: true,
            credential: self.credential,
            renewal: self.renewal.as_ref(),
            doors: self.doors.as_ref(),
        };
        self.statuses.renew(&facts, at(now)).clone()
    }
    fn synced(&self) -> Remotes {
        remotes(&[("west", Some(told("west", "u-w", &self.root)))])
    }
}

fn words(status: &ClusterLinkStatus) -> String {
    let word = |c: &Condition| format!("{}={}/{}", c.kind, c.status, c.reason);
    status.conditions.iter().map(word).collect::<Vec<_>>().join(" ")
}

#[test]
fn a_new_link_awaits_consent() {
    let mut w = World::new();
    let remotes = w.synced();
    let status = w.say(false, &remotes, 100);
    assert_eq!(
        words(&status),
        "Accepted=False/AwaitingConsent Reachable=True/Answers Synced=True/Synced TrustEstablished=True/SameRoots Ready=False/AwaitingConsent"
    );
    assert_eq!(
        (status.uid.as_str(), status.network.as_str(), status.generation),
        ("u-w", "net-west", 1)
    );
    assert!(status.condition("Accepted").unwrap().message.contains("Fix: "));
}

#[test]
fn a_link_is_complete_while_it_is_accepted_and_heard() {
    let mut w = World::new();
    let mut remotes = w.synced();
    assert!(!w.say(false, &remotes, 100).complete);
    assert!(w.say(true, &remotes, 101).complete);
    remotes.links.get_mut("west").unwrap().state.reachable.is = Reachable::Unknown;
    assert!(!w.say(true, &remotes, 102).complete);
    // No secret leads there, and that is certain: it counts for nothing.
    let gone = Remotes { synced: true, ..Remotes::default() };
    assert!(w.say(true, &gone, 103).complete);
}

#[test]
fn a_credential_that_is_not_renewed_is_said_and_hurts_nothing_yet() {
    let mut w = World::new();
    let remotes = w.synced();
    assert_eq!(
        w.say(true, &remotes, 100).condition("CredentialRenewed"),
        None,
        "not ours to renew"
    );
    w.credential = Some(Life { issued: at(0), expires: at(1_000) });
    let status = w.say(true, &remotes, 101);
    assert_eq!(status.condition("CredentialRenewed").unwrap().status, "True");
    w.renewal =
        Some(Failure { why: "ISM2502 west gives no new token. Fix: let it".into(), attempts: 3 });
    let status = w.say(true, &remotes, 102);
    let said = status.condition("CredentialRenewed").unwrap();
    assert_eq!((said.status.as_str(), said.reason.as_str()), ("False", "RenewalFailed"));
    for word in ["3 attempts", "1970-01-01T00:16:40Z", "ISM2502", "isthmus link west"] {
        assert!(said.message.contains(word), "{word}: {}", said.message);
    }
    assert_eq!(status.condition("Ready").unwrap().status, "True");
    w.renewal = None;
    let status = w.say(true, &remotes, 200);
    let said = status.condition("CredentialRenewed").unwrap();
    assert_eq!((said.status.as_str(), said.last_transition_time.0.as_second()), ("True", 200));
}

#[test]
fn gateways_that_are_shut_are_named_and_a_restart_forgets_none() {
    let mut w = World::new();
    let remotes = w.synced();
    let said = |status: &ClusterLinkStatus| status.condition("GatewaysReachable").cloned();
    assert_eq!(said(&w.say(true, &remotes, 100)), None, "not knocked at yet");
    let address = |last: u8| SocketAddr::from(([192, 0, 2, last], 15443));
    w.doors = Some([(address(1), Door::Open), (address(2), Door::Open)].into());
    assert_eq!(said(&w.say(true, &remotes, 101)).unwrap().status, "True");
    let shut = w.doors.as_mut().unwrap();
    shut.insert(address(2), Door::Silent("no connection within 2000 ms".into()));
    let some = said(&w.say(true, &remotes, 102)).unwrap();
    assert_eq!((some.status.as_str(), some.reason.as_str()), ("False", "SomeSilent"));
    for word in ["ISM2407 1 of its 2", "192.0.2.2:15443 (no connection", "Fix: "] {
        assert!(some.message.contains(word), "{word}: {}", some.message);
    }
    w.doors.as_mut().unwrap().insert(address(1), Door::Foreign("a\nb".into()));
    let status = w.say(true, &remotes, 103);
    let none = said(&status).unwrap();
    assert_eq!((none.reason.as_str(), &none.last_transition_time), ("NoneAnswers", &time(at(102))));
    assert!(none.message.contains("192.0.2.1:15443 (something else answers: ab)"), "{none:?}");
    assert_eq!(status.condition("Ready").unwrap().status, "True", "calls may go elsewhere");
    w.doors = None;
    assert_eq!(said(&w.say(true, &remotes, 104)).unwrap().reason, "NoneAnswers", "not knocked at");
    w.doors = Some(BTreeMap::new());
    assert_eq!(said(&w.say(true, &remotes, 105)), None, "it has no gateway any more");
}

#[test]
fn a_transition_is_dated_once() {
    let mut w = World::new();
    let remotes = w.synced();
    w.say(false, &remotes, 100);
    let status = w.say(true, &remotes, 200);
    assert_eq!(words(&status).split(' ').next_back(), Some("Ready=True/Ready"));
    let since = |status: &ClusterLinkStatus, kind: &str| {
        status.condition(kind).unwrap().last_transition_time.0.as_second()
    };
    assert_eq!((since(&status, "Ready"), since(&status, "Synced")), (200, 100));
    let status = w.say(true, &remotes, 300);
    assert_eq!((since(&status, "Ready"), since(&status, "Accepted")), (200, 200));
}

#[test]
fn an_unreachable_link_says_unknown_with_its_age_and_keeps_the_rest() {
    let mut w = World::new();
    let mut remotes = w.synced();
    w.say(true, &remotes, 100);
    let west = remotes.links.get_mut("west").unwrap();
    let since = cluster::heard::Moment { at: west.state.reachable.since.at, wall: at(500) };
    west.state.reachable = Reachability { is: Reachable::Unknown, since };
    west.state.error =
        Some(Problem::new("ConnectionRefused", "https://10.0.0.2:6443 refuses connections."));
    let status = w.say(true, &remotes, 502);
    assert_eq!(
        words(&status),
        "Accepted=True/Accepted Reachable=Unknown/ConnectionRefused Synced=True/Synced TrustEstablished=True/SameRoots Ready=Unknown/ConnectionRefused"
    );
    let shown = shown("west", &status, at(620));
    let reachable = shown.conditions.iter().find(|c| c.kind == "Reachable").unwrap();
    assert_eq!(reachable.age_seconds, 120);
}

#[test]
fn a_restart_forgets_neither_identity_nor_trust() {
    let mut w = World::new();
    let remotes_before = w.synced();
    let before = w.say(true, &remotes_before, 100);
    let mut again = World { root: w.root.clone(), ..World::new() };
    again.statuses.remember("west", before);
    let status = again.say(true, &remotes(&[("west", None)]), 200);
    assert_eq!(status.uid, "u-w");
    assert_eq!(status.condition("TrustEstablished").unwrap().status, "True");
    assert_eq!(status.condition("Reachable").unwrap().status, "Unknown");
    assert_eq!(status.condition("Synced").unwrap().status, "False");
    assert_eq!(status.generation, 1, "the same credential is no new generation");
}

#[test]
fn another_credential_is_another_generation() {
    let mut w = World::new();
    let mut remotes = w.synced();
    w.say(true, &remotes, 100);
    remotes.links.get_mut("west").unwrap().credential = "fedcba9876543210".into();
    assert_eq!(w.say(true, &remotes, 101).generation, 2);
    assert_eq!(w.say(true, &remotes, 102).generation, 2);
}

#[test]
fn what_is_wrong_with_a_secret_is_said_at_its_link() {
    let mut w = World::new();
    let mut refused = remotes(&[("west", None)]);
    let west = refused.links.get_mut("west").unwrap();
    (west.server, west.credential) = Default::default();
    west.problem =
        Some(Problem::new("SelfPointingServer", "self-pointing server 127.0.0.1. Fix: ..."));
    let status = w.say(true, &refused, 100);
    for kind in ["Reachable", "Synced", "Ready"] {
        assert_eq!(status.condition(kind).unwrap().reason, "SelfPointingServer", "{kind}");
    }
    // While an older credential works, the link does, and says what waits.
    let mut waits = w.synced();
    waits.links.get_mut("west").unwrap().problem =
        Some(Problem::new("ExecNotAllowed", "exec. Fix: a token"));
    let status = w.say(true, &waits, 200);
    assert_eq!(status.condition("Reachable").unwrap().status, "True");
    assert_eq!(status.condition("Synced").unwrap().reason, "ExecNotAllowed");
    let ready = status.condition("Ready").unwrap();
    assert_eq!((ready.status.as_str(), ready.reason.as_str()), ("True", "ExecNotAllowed"));
}

#[test]
fn a_wrong_certificate_authority_is_named() {
    let mut w = World::new();
    let mut remotes = remotes(&[("west", None)]);
    let west = remotes.links.get_mut("west").unwrap();
    west.state.reachable.is = Reachable::False;
    west.state.error =
        Some(Problem::new("WrongCertificateAuthority", "not signed by the CA. Fix: ..."));
    let status = w.say(true, &remotes, 100);
    assert_eq!(words(&status).split(' ').nth(1), Some("Reachable=False/WrongCertificateAuthority"));
}

#[test]
fn a_deleted_secret_shows_at_once() {
    let mut w = World::new();
    let mut leaving = w.synced();
    leaving.links.get_mut("west").unwrap().leaving = true;
    assert_eq!(w.say(true, &leaving, 100).condition("Synced").unwrap().reason, "SecretDeleted");
    let status = w.say(true, &remotes(&[]), 103);
    assert_eq!(status.condition("Synced").unwrap().reason, "SecretMissing");
    assert_eq!(status.condition("Ready").unwrap().status, "False");
}

#[test]
fn what_the_disk_says_is_unknown_while_nobody_answers() {
    let mut w = World::new();
    let remotes = w.synced();
    w.say(true, &remotes, 100);
    w.statuses.unheard("nobody answers", at(200));
    w.statuses.unheard("nobody answers", at(260));
    let status = &w.statuses.all()["west"];
    assert_eq!(words(status).split(' ').next_back(), Some("Ready=Unknown/OwnApiServerUnheard"));
    assert_eq!(shown("west", status, at(260)).conditions[1].age_seconds, 60);
    let _ = remote(None);
}

#[test]
fn a_condition_says_which_spec_it_judges() {
    let mut w = World::new();
    let remotes = w.synced();
    let mut say = |generation: Option<i64>| {
        let (name, mut link) = object("west", true);
        link.metadata.generation = generation;
        let objects = BTreeMap::from([(name, link)]);
        let judged = judge(&own(&w.root), &objects, &remotes);
        let facts = Facts {
            name: "west",
            object: objects.get("west"),
            remote: remotes.links.get("west"),
            judged: judged.get("west"),
            summary: None,
            standing: true,
            credential: None,
            renewal: None,
            doors: None,
        };
        let status = w.statuses.renew(&facts, at(100)).clone();
        assert!(status.conditions.len() > 4, "{status:?}");
        status.conditions.iter().map(|it| it.observed_generation).collect::<Vec<_>>()
    };
    assert!(say(Some(3)).iter().all(|it| *it == Some(3)));
    assert!(say(Some(4)).iter().all(|it| *it == Some(4)));
    assert!(say(None).iter().all(Option::is_none), "an API server that does not count them");
}
