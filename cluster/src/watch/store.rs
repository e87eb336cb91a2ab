//! The parsed objects of one kind, and which of them a change really touched.

use crate::follow::Change;
use crate::parse::Parsed;
use kube::Resource;
use mesh::finding::Finding;
use std::collections::{BTreeMap, BTreeSet};

/// Which object of a kind: namespace (empty for cluster-scoped ones) and name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) namespace: String,
    pub(super) name: String,
}

impl Key {
    pub(super) fn of<K: Resource>(object: &K) -> Self {
        let meta = object.meta();
        Self::new(
            meta.namespace.as_deref().unwrap_or_default(),
            meta.name.as_deref().unwrap_or_default(),
        )
    }

    pub(super) fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

/// An object as a follower hands it over: parsed, and the rest of it dropped.
pub(super) type Item<T> = (Key, Parsed<T>);

/// All objects of a kind.
#[derive(Debug)]
pub(super) struct Store<T> {
    pub(super) values: BTreeMap<Key, T>,
    /// Of objects that have any.
    pub(super) findings: BTreeMap<Key, Vec<Finding>>,
    /// One whole list was seen.
    pub(super) synced: bool,
}

impl<T> Default for Store<T> {
    fn default() -> Self {
        Self { values: BTreeMap::new(), findings: BTreeMap::new(), synced: false }
    }
}

/// What a change touched.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Touched {
    /// Objects whose value is another one now, or gone.
    pub(super) values: Vec<Key>,
    pub(super) findings: bool,
}

impl<T: PartialEq> Store<T> {
    pub(super) fn apply(&mut self, change: Change<Item<T>>) -> Touched {
        let mut touched = Touched::default();
        match change {
            Change::Applied((key, parsed)) => self.put(key, parsed, &mut touched),
            Change::Deleted((key, _)) => self.remove(key, &mut touched),
            Change::Replaced(items) => {
                self.synced = true;
                let listed: BTreeSet<Key> = items.iter().map(|(key, _)| key.clone()).collect();
                let known = self.values.keys().chain(self.findings.keys());
                let gone: BTreeSet<Key> =
                    known.filter(|key| !listed.contains(key)).cloned().collect();
                for key in gone {
                    self.remove(key, &mut touched);
                }
                for (key, parsed) in items {
                    self.put(key, parsed, &mut touched);
                }
            }
        }
        touched
    }

    fn put(&mut self, key: Key, parsed: Parsed<T>, touched: &mut Touched) {
        let findings = Some(parsed.findings).filter(|findings| !findings.is_empty());
        if self.findings.get(&key) != findings.as_ref() {
            touched.findings = true;
            match findings {
                Some(findings) => self.findings.insert(key.clone(), findings),
                None => self.findings.remove(&key),
            };
        }
        if self.values.get(&key) != parsed.value.as_ref() {
            touched.values.push(key.clone());
            match parsed.value {
                Some(value) => self.values.insert(key, value),
                None => self.values.remove(&key),
            };
        }
    }

    fn remove(&mut self, key: Key, touched: &mut Touched) {
        self.put(key, Parsed::nothing(), touched);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(name: &str, value: u8) -> Item<u8> {
        (Key::new("", name), Parsed { value: Some(value), findings: Vec::new() })
    }

    #[test]
    fn only_what_differs_is_touched() {
        let mut store = Store::default();
        let names = |touched: Touched| -> Vec<String> {
            touched.values.into_iter().map(|key| key.name).collect()
        };
        assert_eq!(
            names(store.apply(Change::Replaced(vec![item("a", 1), item("b", 2)]))),
            ["a", "b"]
        );
        assert!(names(store.apply(Change::Applied(item("a", 1)))).is_empty());
        assert_eq!(names(store.apply(Change::Applied(item("a", 3)))), ["a"]);
        let relist = vec![item("a", 3), item("c", 4)];
        assert_eq!(names(store.apply(Change::Replaced(relist))), ["b", "c"]);
        assert_eq!(names(store.apply(Change::Deleted(item("c", 4)))), ["c"]);
        assert!(names(store.apply(Change::Deleted(item("c", 4)))).is_empty());
        assert_eq!(store.values.len(), 1);
    }
}
