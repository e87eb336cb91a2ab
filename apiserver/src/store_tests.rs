//! What the store remembers, in memory and on disk.

use super::*;

fn change(name: &str, value: Option<u64>) -> Change {
    let value = value.map(|n| json!({"metadata": {"name": name, "namespace": "a"}, "n": n}));
    Change { resource: "/things".into(), key: ("a".into(), name.into()), value }
}

#[track_caller]
fn names(store: &Store) -> Vec<String> {
    let (all, _) = store.list("/things", Some("a"));
    all.iter().map(|entry| format!("{}={}", object::name(&entry.value), entry.value["n"])).collect()
}

#[test]
fn revisions_count_and_history_tells() {
    let store = Store::in_memory(10);
    store.writer().commit(vec![change("x", Some(1)), change("y", Some(2))]).unwrap();
    store.writer().commit(vec![change("x", None)]).unwrap();
    assert_eq!((store.revision(), names(&store)), (13, vec!["y=2".to_owned()]));
    let (events, upto) = store.since(11, 10).unwrap();
    assert_eq!((events.len(), upto), (2, 13));
    assert!(events[1].after.is_none() && events[1].before.is_some());
    let (first, upto) = store.since(10, 1).unwrap();
    assert_eq!((first.len(), upto), (1, 11));
    assert_eq!(store.since(9, 1).unwrap_err(), TooOld(10));
    assert_eq!(store.list("/things", Some("b")).0.len(), 0);
}

#[test]
fn history_is_bounded() {
    let store = Store::in_memory(1);
    for n in 0..HISTORY as u64 + 5 {
        store.writer().commit(vec![change("x", Some(n))]).unwrap();
    }
    assert_eq!(store.since(1, 1).unwrap_err(), TooOld(6));
    assert_eq!(store.since(6, HISTORY + 1).unwrap().0.len(), HISTORY);
}

#[test]
fn a_store_opens_as_it_was_with_its_history() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    let store = Store::open(&path, 100).unwrap();
    store.writer().commit(vec![change("x", Some(1))]).unwrap();
    store.writer().commit(vec![change("y", Some(2))]).unwrap();
    store.writer().commit(vec![change("x", None)]).unwrap();
    drop(store);
    let store = Store::open(&path, 900).unwrap();
    assert_eq!((store.revision(), names(&store)), (103, vec!["y=2".to_owned()]));
    assert_eq!(store.since(101, 10).unwrap().0.len(), 2);
    assert_eq!(store.get("/things", &("a".into(), "y".into())).unwrap().revision, 102);
}

#[test]
fn a_store_that_grows_is_rewritten_and_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    let store = Store::open(&path, 1).unwrap();
    let text = "x".repeat(1 << 20);
    for n in 0..40_u64 {
        let mut one = change("big", Some(n));
        one.value.as_mut().unwrap()["text"] = json!(text);
        store.writer().commit(vec![one, change(&format!("n{n}"), Some(n))]).unwrap();
    }
    let (revision, before) = (store.revision(), names(&store));
    assert!(std::fs::metadata(&path).unwrap().len() < 30 << 20);
    drop(store);
    let store = Store::open(&path, 1).unwrap();
    assert_eq!((store.revision(), names(&store)), (revision, before));
    let big = store.get("/things", &("a".into(), "big".into())).unwrap();
    assert_eq!(big.value["metadata"]["resourceVersion"], json!(big.revision.to_string()));
}
