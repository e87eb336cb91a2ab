//! Histories of a writer: what it writes, when, and what it never does.

use super::*;
use crate::apply::object::{Body, Deletions};
use serde_json::json;

fn object(name: &str) -> ObjectRef {
    ObjectRef::new("ServiceEntry", "shop", name)
}

fn body(content: u64) -> Body {
    Body { labels: BTreeMap::new(), annotations: BTreeMap::new(), spec: json!({"weight": content}) }
}

fn standing(content: u64, version: &str, term: u64) -> Standing {
    Standing {
        version: version.into(),
        uid: "uid".into(),
        term: Some(term),
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
        spec: json!({"weight": content}),
    }
}

struct World {
    writer: Writer,
    now: Instant,
    term: u64,
}

impl World {
    /// Nothing stands, everything is listed.
    fn new() -> Self {
        let mut writer = Writer::new(super::super::KINDS);
        for kind in super::super::KINDS {
            writer.stands(kind, Change::Replaced(vec![]));
        }
        Self { writer, now: Instant::now(), term: 1 }
    }
    fn wants(&mut self, all: &[(&str, u64)], deletions: &[&str]) {
        let objects = all.iter().map(|(name, content)| (object(name), body(*content))).collect();
        let named = deletions.iter().map(|name| object(name)).collect();
        let deletions = Deletions { named, exports: true };
        self.writer.wants(Some(Arc::new(Desired { objects, deletions })));
    }
    fn stands(&mut self, name: &str, standing: Standing) {
        self.writer.stands("ServiceEntry", Change::Applied(Some((object(name), standing))));
    }
    fn step(&mut self) -> Vec<Act> {
        self.writer.step(self.now, self.term, 16).0
    }
    fn words(&mut self) -> String {
        let words: Vec<String> = self
            .step()
            .iter()
            .map(|act| match &act.write {
                Write::Create(_) => format!("create {}", act.object.name),
                Write::Update(body) => {
                    format!("update {} at {}", act.object.name, body["metadata"]["resourceVersion"])
                }
                Write::Delete { .. } => format!("delete {}", act.object.name),
                Write::Read => format!("read {}", act.object.name),
            })
            .collect();
        words.join(", ")
    }
    fn done(&mut self, name: &str, outcome: Outcome) {
        self.writer.done(self.now, &object(name), outcome);
    }
    fn wait(&mut self, ms: u64) {
        self.now += Duration::from_millis(ms);
    }
}

#[test]
fn nothing_is_written_before_all_is_known() {
    let mut w = World { writer: Writer::new(super::super::KINDS), now: Instant::now(), term: 1 };
    w.wants(&[("a", 1)], &[]);
    assert_eq!(w.words(), "");
    w.writer
        .stands("ServiceEntry", Change::Replaced(vec![Some((object("a"), standing(1, "5", 1)))]));
    w.writer.stands("Gateway", Change::Replaced(vec![]));
    assert_eq!(w.words(), "");
    w.writer.stands("ExportedService", Change::Replaced(vec![]));
    assert_eq!(w.words(), "", "it stands already");
}

#[test]
fn the_first_change_goes_out_at_once_and_the_next_are_merged() {
    let mut w = World::new();
    w.wants(&[("a", 1)], &[]);
    assert_eq!(w.words(), "create a");
    w.wants(&[("a", 2)], &[]);
    assert_eq!(w.words(), "", "one request at a time");
    w.done("a", Outcome::Stands(standing(1, "5", 1)));
    assert_eq!(w.words(), "", "not within the interval");
    w.wait(100);
    w.wants(&[("a", 3)], &[]);
    w.wait(100);
    assert_eq!(w.words(), "update a at \"5\"");
    w.done("a", Outcome::Stands(standing(3, "6", 1)));
    w.wait(60_000);
    assert_eq!(w.words(), "");
}

#[test]
fn five_writes_a_second_and_object_at_most() {
    let mut w = World::new();
    let mut writes = 0;
    for content in 1..=1_000 {
        w.wants(&[("a", content)], &[]);
        for act in w.step() {
            writes += 1;
            let version = writes.to_string();
            w.done(&act.object.name, Outcome::Stands(standing(content, &version, 1)));
        }
        w.wait(2);
    }
    assert!((9..=11).contains(&writes), "{writes} writes in 2 s");
}

#[test]
fn an_old_watch_event_is_no_news() {
    let mut w = World::new();
    w.stands("a", standing(1, "5", 1));
    w.wants(&[("a", 2)], &[]);
    assert_eq!(w.words(), "update a at \"5\"");
    w.done("a", Outcome::Stands(standing(2, "9", 1)));
    w.stands("a", standing(1, "5", 1));
    w.wait(1_000);
    assert_eq!(w.words(), "", "version 5 is before our own write 9");
    w.stands("a", standing(7, "10", 1));
    assert_eq!(w.words(), "update a at \"10\"", "a person's edit is taken back");
}

#[test]
fn only_what_the_plan_names_is_deleted() {
    let mut w = World::new();
    w.stands("kept", standing(1, "5", 1));
    w.stands("gone", standing(1, "6", 1));
    w.wants(&[], &["gone"]);
    assert_eq!(w.words(), "delete gone");
    w.done("gone", Outcome::Gone);
    w.wait(60_000);
    assert_eq!(w.words(), "");
}

#[test]
fn an_object_named_for_deletion_and_wanted_stays() {
    let mut w = World::new();
    w.stands("a", standing(1, "5", 1));
    w.wants(&[("a", 1)], &["a"]);
    assert_eq!(w.words(), "");
}

#[test]
fn a_new_leader_stamps_what_stands_after_what_differs() {
    let mut w = World::new();
    w.stands("a", standing(1, "5", 1));
    w.stands("b", standing(1, "6", 1));
    w.wants(&[("a", 1), ("b", 2)], &[]);
    assert_eq!(w.words(), "update b at \"6\"");
    w.done("b", Outcome::Stands(standing(2, "7", 1)));
    w.term = 2;
    w.wait(1_000);
    let acts = w.step();
    assert_eq!(acts.len(), 2);
    for act in acts {
        let Write::Update(body) = &act.write else { panic!("{act:?}") };
        assert_eq!(body["metadata"]["annotations"]["isthmus.dev/term"], "2");
        assert!(body["metadata"]["resourceVersion"].is_string());
    }
}

#[test]
fn a_conflict_is_read_again_before_the_next_write() {
    let mut w = World::new();
    w.stands("a", standing(1, "5", 1));
    w.wants(&[("a", 2)], &[]);
    assert_eq!(w.words(), "update a at \"5\"");
    w.done("a", Outcome::Conflict("the object has been modified".into()));
    assert!(w.writer.problems().is_empty(), "once is nothing");
    w.wait(200);
    assert_eq!(w.words(), "read a");
    w.done("a", Outcome::Seen(standing(3, "8", 2)));
    w.wait(200);
    assert_eq!(w.words(), "update a at \"8\"");
}

#[test]
fn a_refusal_is_told_and_tried_less_and_less() {
    let mut w = World::new();
    w.wants(&[("a", 1)], &[]);
    let mut tries = 0;
    for _ in 0..600 {
        for act in w.step() {
            tries += 1;
            w.done(&act.object.name, Outcome::Refused("spec.hosts: Invalid value (422)".into()));
        }
        w.wait(100);
    }
    assert!((5..=10).contains(&tries), "{tries} tries in a minute");
    assert_eq!(w.writer.problems()[0].object, object("a"));
    w.wants(&[], &[]);
    w.step();
    w.wait(60_000);
    w.step();
    assert!(w.writer.problems().is_empty(), "nobody wants it any more");
}

#[test]
fn an_unanswered_write_is_read_again() {
    let mut w = World::new();
    w.wants(&[("a", 1)], &[]);
    w.words();
    w.done("a", Outcome::Unknown("no answer".into()));
    w.wait(1_000);
    assert_eq!(w.words(), "read a");
    w.done("a", Outcome::Seen(standing(1, "5", 1)));
    w.wait(1_000);
    assert_eq!(w.words(), "", "it had happened");
}

#[test]
fn a_hundred_objects_share_the_room() {
    let mut w = World::new();
    let names: Vec<String> = (0..100).map(|n| format!("o{n:03}")).collect();
    let all: Vec<(&str, u64)> = names.iter().map(|name| (name.as_str(), 1)).collect();
    w.wants(&all, &[]);
    let mut written = 0;
    for round in 0..7 {
        let acts = w.step();
        assert!(acts.len() <= 16, "round {round}");
        for act in acts {
            written += 1;
            w.done(&act.object.name, Outcome::Stands(standing(1, "5", 1)));
        }
    }
    assert_eq!(written, 100);
    w.wait(1_000);
    w.step();
    assert_eq!(w.writer.pending(), 0);
}
