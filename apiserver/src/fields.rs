//! Sets of fields, as `managedFields` writes them (FieldsV1), and how two objects differ in them.

use crate::shape::{List, Shape, item_key};
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};

/// A set of places in an object, as a tree.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Fields {
    /// This place itself is in the set.
    pub(crate) member: bool,
    pub(crate) below: BTreeMap<Step, Fields>,
}

/// One step down: `f:name`, `k:{"key":1}` or `v:"value"`, in FieldsV1's own words.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Step(pub String);

impl Step {
    pub(crate) fn field(name: &str) -> Self {
        Self(format!("f:{name}"))
    }

    pub(crate) fn key(key: &Value) -> Self {
        Self(format!("k:{key}"))
    }

    pub(crate) fn value(value: &Value) -> Self {
        Self(format!("v:{value}"))
    }
}

impl Fields {
    /// Everything that is in `value`.
    pub(crate) fn of(value: &Value, shape: &Shape) -> Self {
        let mut set = Self::default();
        match value {
            Value::Object(map) if !shape.atomic && !map.is_empty() => {
                for (name, value) in map {
                    set.below.insert(Step::field(name), Self::of(value, shape.field(name)));
                }
            }
            Value::Array(list) if shape.list != List::Atomic => {
                for item in list {
                    let (step, mut below) = match &shape.list {
                        List::Map(keys) => match item_key(item, keys) {
                            Some(key) => (Step::key(&key), Self::of(item, shape.item())),
                            None => continue,
                        },
                        List::Set | List::Atomic => (Step::value(item), Self::default()),
                    };
                    below.member = true;
                    set.below.insert(step, below);
                }
                set.member = list.is_empty();
            }
            _ => set.member = true,
        }
        set
    }

    pub(crate) fn is_empty(&self) -> bool {
        !self.member && self.below.values().all(Self::is_empty)
    }

    pub(crate) fn union(&mut self, other: &Self) {
        self.member |= other.member;
        for (step, below) in &other.below {
            self.below.entry(step.clone()).or_default().union(below);
        }
    }

    /// What both hold.
    pub(crate) fn common(&self, other: &Self) -> Self {
        let mut set = Self { member: self.member && other.member, ..Self::default() };
        for (step, below) in &self.below {
            if let Some(theirs) = other.below.get(step) {
                let common = below.common(theirs);
                if !common.is_empty() {
                    set.below.insert(step.clone(), common);
                }
            }
        }
        set
    }

    /// What the other does not hold.
    pub(crate) fn without(&self, other: &Self) -> Self {
        let mut set = Self { member: self.member && !other.member, ..Self::default() };
        for (step, below) in &self.below {
            let left = match other.below.get(step) {
                Some(theirs) => below.without(theirs),
                None => below.clone(),
            };
            if !left.is_empty() {
                set.below.insert(step.clone(), left);
            }
        }
        set
    }

    /// Leaves out a place and all below it.
    pub(crate) fn drop_path(&mut self, path: &[&str]) {
        let [first, rest @ ..] = path else { return };
        let step = Step::field(first);
        if rest.is_empty() {
            self.below.remove(&step);
        } else if let Some(below) = self.below.get_mut(&step) {
            below.drop_path(rest);
            if below.is_empty() {
                self.below.remove(&step);
            }
        }
    }

    pub(crate) fn to_json(&self) -> Value {
        let mut map = Map::new();
        if self.member && !self.below.is_empty() {
            map.insert(".".into(), Value::Object(Map::new()));
        }
        for (step, below) in &self.below {
            map.insert(step.0.clone(), below.to_json());
        }
        Value::Object(map)
    }

    pub(crate) fn from_json(value: &Value) -> Self {
        let mut set = Self::parse(value);
        // The root is no place.
        set.member = false;
        set
    }

    fn parse(value: &Value) -> Self {
        let Some(map) = value.as_object().filter(|map| !map.is_empty()) else {
            return Self { member: true, ..Self::default() };
        };
        let below = map.iter().filter(|(step, _)| *step != ".");
        let below = below.map(|(step, below)| (canonical(step), Self::parse(below))).collect();
        Self { member: map.contains_key("."), below }
    }

    /// Every place as a person reads it: `.spec.ports[port=80,protocol="TCP"].name`.
    pub(crate) fn paths(&self) -> Vec<String> {
        let mut all = vec![];
        self.walk(&mut String::new(), &mut all);
        all
    }

    fn walk(&self, path: &mut String, all: &mut Vec<String>) {
        if self.member {
            all.push(path.clone());
        }
        for (step, below) in &self.below {
            let length = path.len();
            match step.0.split_at(2) {
                ("f:", name) => {
                    path.push('.');
                    path.push_str(name);
                }
                ("k:", key) => {
                    let key: Map<String, Value> = serde_json::from_str(key).unwrap_or_default();
                    let key: Vec<String> = key.iter().map(|(k, v)| format!("{k}={v}")).collect();
                    path.push_str(&format!("[{}]", key.join(",")));
                }
                (_, value) => path.push_str(&format!("[={value}]")),
            }
            below.walk(path, all);
            path.truncate(length);
        }
    }
}

/// JSON inside a step in the spelling of our own.
fn canonical(step: &str) -> Step {
    if let Some((kind @ ("k:" | "v:"), json)) = step.split_at_checked(2) {
        if let Ok(value) = serde_json::from_str::<Value>(json) {
            return Step(format!("{kind}{value}"));
        }
    }
    Step(step.to_owned())
}

/// How one object became another.
#[derive(Debug, Default)]
pub(crate) struct Difference {
    pub(crate) removed: Fields,
    /// Modified or added.
    pub(crate) changed: Fields,
}

/// Compares two objects of one shape.
pub(crate) fn difference(old: &Value, new: &Value, shape: &Shape) -> Difference {
    let mut found = Difference::default();
    if old == new {
        return found;
    }
    match (old, new) {
        (Value::Object(old), Value::Object(new)) if !shape.atomic => {
            let names: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
            for name in names {
                let below = shape.field(name);
                found.add(Step::field(name), old.get(name), new.get(name), below);
            }
            // An object that is there and empty is a value.
            found.changed.member = new.is_empty();
            found.removed.member = old.is_empty();
        }
        (Value::Array(old), Value::Array(new)) if shape.list != List::Atomic => {
            let (old, new) = (steps(old, shape), steps(new, shape));
            let all: BTreeSet<&Step> = old.keys().chain(new.keys()).collect();
            for step in all {
                found.add(
                    step.clone(),
                    old.get(step).copied(),
                    new.get(step).copied(),
                    shape.item(),
                );
            }
        }
        _ => {
            found.changed = Fields::of(new, shape);
            found.removed = Fields::of(old, shape).without(&found.changed);
        }
    }
    found
}

impl Difference {
    fn add(&mut self, step: Step, old: Option<&Value>, new: Option<&Value>, shape: &Shape) {
        let (mut removed, mut changed) = match (old, new) {
            (Some(old), Some(new)) => {
                let below = difference(old, new, shape);
                (below.removed, below.changed)
            }
            (Some(old), None) => (Fields::of(old, shape), Fields::default()),
            (None, Some(new)) => (Fields::default(), Fields::of(new, shape)),
            (None, None) => return,
        };
        if !step.0.starts_with("f:") {
            removed.member |= new.is_none();
            changed.member |= old.is_none();
        }
        if !removed.is_empty() {
            self.removed.below.insert(step.clone(), removed);
        }
        if !changed.is_empty() {
            self.changed.below.insert(step, changed);
        }
    }
}

/// Items of a list by the step that leads to them.
pub(crate) fn steps<'a>(list: &'a [Value], shape: &Shape) -> BTreeMap<Step, &'a Value> {
    let items = list.iter().filter_map(|item| Some((step_of(item, shape)?, item)));
    items.collect()
}

/// The step that leads to an item of a list that is a map or a set.
pub(crate) fn step_of(item: &Value, shape: &Shape) -> Option<Step> {
    match &shape.list {
        List::Map(keys) => item_key(item, keys).map(|key| Step::key(&key)),
        List::Set => Some(Step::value(item)),
        List::Atomic => None,
    }
}

#[cfg(test)]
#[path = "fields_tests.rs"]
mod tests;
