//! A store's file cut or damaged at every byte.

use super::*;

fn filled(path: &Path) -> Vec<u8> {
    let (mut journal, before) = Journal::open(path).unwrap();
    assert!(before.is_empty());
    for text in ["first", "second", "third"] {
        journal.append(text.as_bytes()).unwrap();
    }
    std::fs::read(path).unwrap()
}

#[track_caller]
fn reopen(path: &Path) -> Vec<String> {
    let (_, records) = Journal::open(path).unwrap();
    records.into_iter().map(|r| String::from_utf8(r).unwrap()).collect()
}

#[test]
fn a_file_cut_at_any_byte_opens_with_its_whole_records() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    let bytes = filled(&path);
    let ends: Vec<usize> = records(&bytes).unwrap().0.iter().map(|r| r.end + TAIL).collect();
    for cut in 0..=bytes.len() {
        std::fs::write(&path, &bytes[..cut]).unwrap();
        let whole = ends.iter().filter(|end| **end <= cut).count();
        assert_eq!(reopen(&path), ["first", "second", "third"][..whole], "cut at {cut}");
        // And it goes on from there.
        let (mut journal, _) = Journal::open(&path).unwrap();
        journal.append(b"more").unwrap();
        drop(journal);
        assert_eq!(reopen(&path).last().unwrap(), "more");
    }
}

#[test]
fn damage_before_a_whole_record_is_named_with_its_offset() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    let bytes = filled(&path);
    let second = records(&bytes).unwrap().0[1].clone();
    for place in MAGIC.len()..second.end {
        let mut damaged = bytes.clone();
        damaged[place] ^= 0x40;
        std::fs::write(&path, damaged).unwrap();
        let error = Journal::open(&path).unwrap_err().to_string();
        assert!(error.contains("ISM7105") && error.contains("Fix:"), "{place}: {error}");
        let offset = if place < second.start - HEAD { 16 } else { second.start - HEAD };
        assert!(error.contains(&format!("offset {offset}:")), "{place}: {error}");
    }
}

#[test]
fn another_file_and_a_second_process_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    std::fs::write(&path, "a letter to somebody").unwrap();
    assert!(Journal::open(&path).unwrap_err().to_string().contains("ISM7104"));
    std::fs::remove_file(&path).unwrap();
    let _held = Journal::open(&path).unwrap();
    assert!(Journal::open(&path).unwrap_err().to_string().contains("ISM7102"));
}

#[test]
fn a_rewritten_file_holds_what_it_was_given_and_what_came_after() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    filled(&path);
    let (mut journal, _) = Journal::open(&path).unwrap();
    journal.rewrite([b"all".to_vec()].into_iter()).unwrap();
    journal.append(b"later").unwrap();
    drop(journal);
    assert_eq!(reopen(&path), ["all", "later"]);
}
