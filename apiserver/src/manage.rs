//! Who owns which field: server-side apply, and the book-keeping of every other write.

use crate::fields::{self, Fields, Step, difference, step_of};
use crate::object::{self, Object};
use crate::refusal::{Cause, Refusal};
use crate::shape::{List, Shape};
use serde_json::{Map, Value, json};

/// Who writes, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Author {
    pub(crate) manager: String,
    /// `Apply` or `Update`.
    pub(crate) operation: &'static str,
    pub(crate) api_version: String,
    /// `status`, or empty.
    pub(crate) subresource: String,
}

/// One entry of `managedFields`.
#[derive(Debug, Clone, PartialEq)]
struct Owner {
    manager: String,
    operation: String,
    api_version: String,
    subresource: String,
    time: Value,
    fields: Fields,
}

impl Owner {
    fn is(&self, author: &Author) -> bool {
        self.manager == author.manager
            && self.operation == author.operation
            && self.subresource == author.subresource
            && (self.api_version == author.api_version || self.operation == "Apply")
    }

    fn parse(value: &Value) -> Self {
        let text = |field: &str| object::text(value, &[field]).to_owned();
        Self {
            manager: text("manager"),
            operation: text("operation"),
            api_version: text("apiVersion"),
            subresource: text("subresource"),
            time: value["time"].clone(),
            fields: Fields::from_json(&value["fieldsV1"]),
        }
    }

    fn to_json(&self) -> Value {
        let mut json = json!({
            "manager": self.manager, "operation": self.operation, "apiVersion": self.api_version,
            "fieldsType": "FieldsV1", "fieldsV1": self.fields.to_json(),
        });
        if !self.time.is_null() {
            json["time"] = self.time.clone();
        }
        if !self.subresource.is_empty() {
            json["subresource"] = json!(self.subresource);
        }
        json
    }
}

/// What nobody owns: identity, and what the server writes.
const UNOWNED: [&[&str]; 12] = [
    &["apiVersion"],
    &["kind"],
    &["metadata", "name"],
    &["metadata", "namespace"],
    &["metadata", "creationTimestamp"],
    &["metadata", "selfLink"],
    &["metadata", "uid"],
    &["metadata", "generation"],
    &["metadata", "managedFields"],
    &["metadata", "resourceVersion"],
    &["metadata", "deletionTimestamp"],
    &["metadata", "deletionGracePeriodSeconds"],
];

fn owned(mut set: Fields) -> Fields {
    UNOWNED.iter().for_each(|path| set.drop_path(path));
    // An object's being there, and its metadata's, are nobody's either.
    set.member = false;
    if let Some(metadata) = set.below.get_mut(&Step::field("metadata")) {
        metadata.member = false;
        if metadata.is_empty() {
            set.below.remove(&Step::field("metadata"));
        }
    }
    set
}

fn owners(object: &Object) -> Vec<Owner> {
    object::items(object, &["metadata", "managedFields"]).iter().map(Owner::parse).collect()
}

fn write_owners(object: &mut Object, mut owners: Vec<Owner>) {
    owners.retain(|owner| !owner.fields.is_empty());
    let list: Vec<Value> = owners.iter().map(Owner::to_json).collect();
    object::set_meta(
        object,
        "managedFields",
        if list.is_empty() { Value::Null } else { list.into() },
    );
}

/// Notes that `author` made `new` out of `old`; `new` comes out with its `managedFields`.
pub(crate) fn update(old: &Object, new: &mut Object, shape: &Shape, author: &Author, time: &Value) {
    // Who sends an empty list wants the book closed.
    let reset = object::at(new, &["metadata", "managedFields"])
        .and_then(Value::as_array)
        .is_some_and(|list| list.is_empty() || list == &[json!({})]);
    let mut owners = if reset { vec![] } else { owners(old) };
    object::set_meta(new, "managedFields", Value::Null);
    let found = difference(old, new, shape);
    let (changed, removed) = (owned(found.changed), owned(found.removed));
    if reset || (changed.is_empty() && removed.is_empty()) {
        write_owners(new, owners);
        return;
    }
    let mut known = false;
    for owner in &mut owners {
        owner.fields = owner.fields.without(&removed);
        if owner.is(author) {
            owner.fields.union(&changed);
            owner.time = time.clone();
            known = true;
        } else {
            owner.fields = owner.fields.without(&changed);
        }
    }
    if !known && !changed.is_empty() {
        owners.push(fresh(author, time, changed));
    }
    write_owners(new, owners);
}

fn fresh(author: &Author, time: &Value, fields: Fields) -> Owner {
    Owner {
        manager: author.manager.clone(),
        operation: author.operation.into(),
        api_version: author.api_version.clone(),
        subresource: author.subresource.clone(),
        time: time.clone(),
        fields,
    }
}

/// An applied configuration over a live object.
pub(crate) struct Applied {
    pub(crate) object: Object,
    owners: Vec<Owner>,
    author: Author,
    forced: bool,
}

/// Merges `config` into `live`: what the author applied before and no longer does is taken away where nobody else
/// owns it. [`Applied::settle`] finishes it, once defaults are filled in.
pub(crate) fn apply(
    live: &Object,
    config: &Object,
    shape: &Shape,
    author: &Author,
    forced: bool,
    time: &Value,
) -> Applied {
    let mut config = config.clone();
    object::set_meta(&mut config, "managedFields", Value::Null);
    object::set_meta(&mut config, "resourceVersion", Value::Null);
    let wanted = owned(Fields::of(&config, shape));
    let mut owners = owners(live);
    let mut bare = live.clone();
    object::set_meta(&mut bare, "managedFields", Value::Null);
    let mut merged = merge(&bare, &config, shape);
    if let Some(own) = owners.iter_mut().find(|owner| owner.is(author)) {
        let before = std::mem::replace(&mut own.fields, wanted);
        own.api_version.clone_from(&author.api_version);
        let mut given_up = before.without(&own.fields);
        for owner in owners.iter().filter(|owner| !owner.is(author)) {
            given_up = given_up.without(&owner.fields);
        }
        let mut kept = Fields::default();
        for owner in &owners {
            kept.union(&owner.fields);
        }
        take_away(&mut merged, &given_up, &kept, shape);
    } else {
        owners.push(fresh(author, time, wanted));
    }
    Applied { object: merged, owners, author: author.clone(), forced }
}

impl Applied {
    /// Compares with the live object: conflicts where others own what changes, unless forced.
    pub(crate) fn settle(
        mut self,
        live: &Object,
        mut object: Object,
        shape: &Shape,
        time: &Value,
    ) -> Result<Object, Vec<(String, String)>> {
        let mut bare = live.clone();
        object::set_meta(&mut bare, "managedFields", Value::Null);
        object::set_meta(&mut object, "managedFields", Value::Null);
        let found = difference(&bare, &object, shape);
        let (changed, removed) = (owned(found.changed), owned(found.removed));
        let author = self.author;
        let mine = self.owners.iter().find(|owner| owner.is(&author)).map(|own| own.fields.clone());
        let mine = mine.unwrap_or_default();
        let mut conflicts = vec![];
        for owner in self.owners.iter_mut().filter(|owner| !owner.is(&author)) {
            let lost = owner.fields.common(&changed).common(&mine);
            if !lost.is_empty() && !self.forced {
                let who = if owner.operation == "Update" {
                    let at = owner.time.as_str().map(|at| format!(" at {at}")).unwrap_or_default();
                    let sub = if owner.subresource.is_empty() {
                        String::new()
                    } else {
                        format!(" with subresource {:?}", owner.subresource)
                    };
                    format!("{:?}{sub} using {}{at}", owner.manager, owner.api_version)
                } else {
                    format!("{:?}", owner.manager)
                };
                conflicts.extend(lost.paths().into_iter().map(|path| (who.clone(), path)));
            }
            owner.fields = owner.fields.without(&changed).without(&removed);
        }
        if !conflicts.is_empty() {
            return Err(conflicts);
        }
        let mut before = live.clone();
        write_owners(&mut object, self.owners);
        // The time moves only with the content.
        forget_times(&mut before);
        let mut after = object.clone();
        forget_times(&mut after);
        if before == after {
            return Ok(live.clone());
        }
        if let Some(Value::Array(list)) = object["metadata"].get_mut("managedFields") {
            for entry in list {
                if entry["manager"] == author.manager.as_str()
                    && entry["operation"] == author.operation
                    && object::text(entry, &["subresource"]) == author.subresource
                {
                    entry["time"] = time.clone();
                }
            }
        }
        Ok(object)
    }
}

/// Takes the times out of `managedFields`, to compare two objects.
pub(crate) fn forget_times(object: &mut Object) {
    if let Some(Value::Array(list)) = object["metadata"].get_mut("managedFields") {
        for entry in list.iter_mut().filter_map(Value::as_object_mut) {
            entry.remove("time");
        }
    }
}

/// The refusal for conflicts, as kubectl shows it.
pub(crate) fn conflict(
    kind: &crate::kind::Kind,
    name: &str,
    conflicts: Vec<(String, String)>,
) -> Refusal {
    let count = conflicts.len();
    let noun = if count == 1 { "conflict" } else { "conflicts" };
    let mut said = String::new();
    let mut whos: Vec<&String> = conflicts.iter().map(|(who, _)| who).collect();
    whos.dedup();
    for who in &whos {
        let paths: Vec<&str> =
            conflicts.iter().filter(|(w, _)| w == *who).map(|(_, path)| path.as_str()).collect();
        match &paths[..] {
            [one] if whos.len() == 1 => said = format!("conflict with {who}: {one}"),
            many => {
                let list: String = many.iter().map(|path| format!("\n- {path}")).collect();
                said = format!(
                    "{said}{}conflicts with {who}:{list}",
                    if said.is_empty() { "" } else { "\n" }
                );
            }
        }
    }
    let mut refusal = Refusal::conflict(kind, name, "");
    refusal.message = format!("Apply failed with {count} {noun}: {said}");
    refusal.about = None;
    refusal.causes = conflicts
        .into_iter()
        .map(|(who, path)| Cause {
            reason: "FieldManagerConflict",
            message: format!("conflict with {who}"),
            field: path,
        })
        .collect();
    refusal
}

fn merge(live: &Value, config: &Value, shape: &Shape) -> Value {
    match (live, config) {
        (Value::Object(live), Value::Object(config)) if !shape.atomic => {
            let mut merged: Map<String, Value> = live.clone();
            for (name, value) in config {
                let value = match live.get(name) {
                    Some(old) => merge(old, value, shape.field(name)),
                    None => value.clone(),
                };
                merged.insert(name.clone(), value);
            }
            Value::Object(merged)
        }
        (Value::Array(live), Value::Array(config)) if shape.list != List::Atomic => {
            let old = fields::steps(live, shape);
            let wanted = fields::steps(config, shape);
            let pair = |item: &Value| match step_of(item, shape)
                .and_then(|step| old.get(&step).copied())
            {
                Some(standing) => merge(standing, item, shape.item()),
                None => item.clone(),
            };
            if old.keys().all(|step| wanted.contains_key(step)) {
                return config.iter().map(pair).collect();
            }
            let kept = live.iter().map(|item| {
                match step_of(item, shape).and_then(|step| wanted.get(&step).copied()) {
                    Some(config) => merge(item, config, shape.item()),
                    None => item.clone(),
                }
            });
            let fresh = config
                .iter()
                .filter(|item| step_of(item, shape).is_none_or(|step| !old.contains_key(&step)));
            kept.chain(fresh.cloned()).collect()
        }
        _ => config.clone(),
    }
}

/// Removes what is in `given_up`; what is then empty goes too, except where `kept` has something.
fn take_away(value: &mut Value, given_up: &Fields, kept: &Fields, shape: &Shape) {
    let none = Fields::default();
    match value {
        Value::Object(map) if !shape.atomic => {
            for (step, below) in &given_up.below {
                let Some(name) = step.0.strip_prefix("f:") else { continue };
                let others = kept.below.get(step).unwrap_or(&none);
                let Some(value) = map.get_mut(name) else { continue };
                if below.member && others.is_empty() && below.below.is_empty() {
                    map.remove(name);
                    continue;
                }
                take_away(value, below, others, shape.field(name));
                let empty = value.as_object().is_some_and(Map::is_empty)
                    || value.as_array().is_some_and(Vec::is_empty);
                if empty && others.is_empty() {
                    map.remove(name);
                }
            }
        }
        Value::Array(list) if shape.list != List::Atomic => {
            list.retain_mut(|item| {
                let Some(step) = step_of(item, shape) else { return true };
                let Some(below) = given_up.below.get(&step) else { return true };
                let others = kept.below.get(&step).unwrap_or(&none);
                if below.member && others.is_empty() {
                    return false;
                }
                take_away(item, below, others, shape.item());
                true
            });
        }
        _ => {}
    }
}

#[cfg(test)]
#[path = "manage_tests.rs"]
mod tests;
