//! Patches: JSON Patch, JSON Merge Patch, and the strategic kind that kubectl uses for built-in kinds.

use crate::object::Object;
use crate::refusal::Refusal;
use crate::shape::{List, Shape};
use serde_json::{Map, Value};

/// Most operations of one JSON Patch.
const OPERATIONS_MAX: usize = 10_000;

pub(crate) fn json(object: &mut Object, patch: Value) -> Result<(), Refusal> {
    let count = patch.as_array().map_or(0, Vec::len);
    if count > OPERATIONS_MAX {
        let message = format!(
            "The allowed maximum operations in a JSON patch is {OPERATIONS_MAX}, got {count}"
        );
        return Err(Refusal::new(413, "RequestEntityTooLarge", message));
    }
    let patch: json_patch::Patch =
        serde_json::from_value(patch).map_err(|error| Refusal::bad_request(error.to_string()))?;
    json_patch::patch(object, &patch).map_err(|error| {
        let message =
            format!("the server rejected our request due to an error in our request: {error}");
        Refusal::new(422, "Invalid", message)
    })
}

pub(crate) fn merge(object: &mut Object, patch: &Value) -> Result<(), Refusal> {
    if !patch.is_object() {
        return Err(Refusal::bad_request("a merge patch of an object is an object"));
    }
    json_patch::merge(object, patch);
    Ok(())
}

pub(crate) fn strategic(object: &mut Object, patch: &Value, shape: &Shape) -> Result<(), Refusal> {
    let (Value::Object(into), Value::Object(patch)) = (object, patch) else {
        return Err(Refusal::bad_request("a strategic merge patch of an object is an object"));
    };
    maps(into, patch, shape);
    Ok(())
}

fn maps(into: &mut Map<String, Value>, patch: &Map<String, Value>, shape: &Shape) {
    if patch.get("$patch").is_some_and(|word| word == "replace") {
        into.clear();
    }
    if let Some(kept) = patch.get("$retainKeys").and_then(Value::as_array) {
        into.retain(|name, _| kept.iter().any(|word| word == name.as_str()));
    }
    for (name, value) in patch {
        if let Some(field) = name.strip_prefix("$deleteFromPrimitiveList/") {
            if let Some(list) = into.get_mut(field).and_then(Value::as_array_mut) {
                let gone = value.as_array().map(Vec::as_slice).unwrap_or_default();
                list.retain(|item| !gone.contains(item));
            }
            continue;
        }
        if name.starts_with('$') {
            continue;
        }
        let below = shape.field(name);
        match value {
            Value::Null => {
                into.remove(name);
            }
            Value::Object(map) if map.get("$patch").is_some_and(|word| word == "delete") => {
                into.remove(name);
            }
            Value::Object(map) => {
                let place = into.entry(name.clone()).or_insert_with(|| Value::Object(Map::new()));
                if !place.is_object() {
                    *place = Value::Object(Map::new());
                }
                if let Some(place) = place.as_object_mut() {
                    maps(place, map, below);
                }
            }
            Value::Array(list) => {
                let before = into.get(name).and_then(Value::as_array).cloned().unwrap_or_default();
                into.insert(name.clone(), lists(before, list, below).into());
            }
            Value::Bool(_) | Value::Number(_) | Value::String(_) => {
                into.insert(name.clone(), value.clone());
            }
        }
    }
}

fn lists(mut into: Vec<Value>, patch: &[Value], shape: &Shape) -> Vec<Value> {
    let word = |item: &Value, word: &str| item.get("$patch").is_some_and(|found| found == word);
    match &shape.list {
        List::Map(keys) if !keys.is_empty() => {
            if patch.iter().any(|item| word(item, "replace")) {
                into.clear();
            }
            // Strategic merges know one key.
            let key = &keys[0].0;
            for item in patch {
                let same = |standing: &Value| standing.get(key) == item.get(key);
                if word(item, "delete") {
                    into.retain(|standing| !same(standing));
                } else if word(item, "replace") {
                } else if let Some(standing) = into.iter_mut().find(|standing| same(standing)) {
                    if let (Value::Object(into), Value::Object(patch)) = (standing, item) {
                        maps(into, patch, shape.item());
                    }
                } else {
                    into.push(item.clone());
                }
            }
            into
        }
        List::Set => {
            for item in patch {
                if !into.contains(item) {
                    into.push(item.clone());
                }
            }
            into
        }
        List::Map(_) | List::Atomic => patch.to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn strategic_patches_merge_lists_by_key() {
        let shape = Shape::of("spec.ports[port,protocol=TCP] spec.selector!");
        let mut object =
            json!({"spec": {"ports": [{"port": 80, "name": "a"}, {"port": 90}], "x": 1}});
        let patch = json!({
            "metadata": {"labels": {"a": "b"}, "finalizers": ["x/y"]},
            "spec": {
                "$setElementOrder/ports": [{"port": 80}],
                "ports": [{"port": 80, "name": "b"}, {"port": 90, "$patch": "delete"}, {"port": 100}],
                "x": null,
            },
        });
        strategic(&mut object, &patch, &shape).unwrap();
        let expected = json!({
            "metadata": {"labels": {"a": "b"}, "finalizers": ["x/y"]},
            "spec": {"ports": [{"port": 80, "name": "b"}, {"port": 100}]},
        });
        assert_eq!(object, expected);
        let patch = json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["x/y"]}});
        strategic(&mut object, &patch, &shape).unwrap();
        assert_eq!(object["metadata"]["finalizers"], json!([]));
    }
}
