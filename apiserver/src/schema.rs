//! Schemas of custom resources: pruning, defaults, and the check, which a JSON-Schema library does.

use crate::refusal::Cause;
use jsonschema::error::{TypeKind, ValidationErrorKind};
use jsonschema::paths::LocationSegment;
use serde_json::{Value, json};

/// Takes away fields the schema does not describe.
pub(crate) fn prune(value: &mut Value, schema: &Value, root: bool) {
    let kept = schema["x-kubernetes-preserve-unknown-fields"] == true;
    match value {
        Value::Object(map) => {
            let properties = schema["properties"].as_object();
            let rest = schema.get("additionalProperties").filter(|rest| **rest != false);
            let embedded = schema["x-kubernetes-embedded-resource"] == true;
            map.retain(|name, value| {
                let own = root || embedded;
                if own && ["apiVersion", "kind", "metadata"].contains(&name.as_str()) {
                    return true;
                }
                match properties.and_then(|known| known.get(name)).or(rest) {
                    Some(below) => {
                        prune(value, below, false);
                        true
                    }
                    None => kept,
                }
            });
        }
        Value::Array(list) => {
            for item in list {
                prune(item, &schema["items"], false);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// Fills in defaults, and drops nulls where null is no value.
pub(crate) fn fill(value: &mut Value, schema: &Value) {
    match value {
        Value::Object(map) => {
            let properties = schema["properties"].as_object();
            for (name, below) in properties.into_iter().flatten() {
                let null = map.get(name).is_some_and(Value::is_null) && below["nullable"] != true;
                if null {
                    map.remove(name);
                }
                if let Some(standard) = below.get("default").filter(|_| !map.contains_key(name)) {
                    map.insert(name.clone(), standard.clone());
                }
            }
            for (name, value) in map {
                let known = properties.and_then(|known| known.get(name));
                if let Some(below) = known.or(schema.get("additionalProperties")) {
                    fill(value, below);
                }
            }
        }
        Value::Array(list) => list.iter_mut().for_each(|item| fill(item, &schema["items"])),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// A schema ready to judge objects.
#[derive(Debug)]
pub(crate) struct Checker {
    validator: jsonschema::Validator,
    lists: bool,
    schema: Value,
}

impl Checker {
    pub(crate) fn new(schema: &Value) -> Result<Self, String> {
        let translated = translate(schema);
        // OpenAPI v3 keeps draft 4's exclusive bounds.
        let validator = jsonschema::options()
            .with_draft(jsonschema::Draft::Draft4)
            .should_validate_formats(false)
            .build(&translated)
            .map_err(|error| error.to_string())?;
        let lists = schema.to_string().contains("\"x-kubernetes-list-type\"");
        Ok(Self { validator, lists, schema: schema.clone() })
    }

    pub(crate) fn check(&self, object: &Value) -> Vec<Cause> {
        let mut causes: Vec<Cause> = vec![];
        for error in self.validator.iter_errors(object) {
            cause(&error, &mut causes);
        }
        if self.lists {
            unique("", object, &self.schema, &mut causes);
        }
        causes.dedup();
        causes
    }
}

/// OpenAPI's and Kubernetes' own words as plain JSON Schema.
fn translate(schema: &Value) -> Value {
    let Value::Object(map) = schema else { return schema.clone() };
    let mut out = serde_json::Map::new();
    for (word, value) in map {
        let value = match word.as_str() {
            "properties" | "definitions" => {
                let described = value.as_object().into_iter().flatten();
                described.map(|(name, below)| (name.clone(), translate(below))).collect()
            }
            "items" | "additionalProperties" | "not" => translate(value),
            "allOf" | "anyOf" | "oneOf" => {
                value.as_array().into_iter().flatten().map(translate).collect()
            }
            // No part of the check, or an error to a JSON-Schema library.
            "description" | "default" | "example" | "nullable" | "externalDocs" | "title" => {
                continue;
            }
            word if word.starts_with("x-kubernetes-") => continue,
            _ => value.clone(),
        };
        out.insert(word.clone(), value);
    }
    if map.get("x-kubernetes-int-or-string") == Some(&json!(true)) {
        out.remove("anyOf");
        out.insert("type".into(), json!(["integer", "string"]));
    }
    if map.get("nullable") == Some(&json!(true)) {
        return json!({"anyOf": [{"type": "null"}, out]});
    }
    Value::Object(out)
}

/// `spec.ports[0].name`.
fn place(location: &jsonschema::paths::Location) -> String {
    let mut place = String::new();
    for segment in location {
        match segment {
            LocationSegment::Index(index) => place.push_str(&format!("[{index}]")),
            LocationSegment::Property(name) => {
                if !place.is_empty() {
                    place.push('.');
                }
                place.push_str(&name);
            }
        }
    }
    place
}

fn cause(error: &jsonschema::ValidationError<'_>, causes: &mut Vec<Cause>) {
    let place = place(error.instance_path());
    let value = error.instance().as_ref();
    let shown = if place.is_empty() { "<nil>" } else { &place };
    match error.kind() {
        ValidationErrorKind::Required { property } => {
            let name = property.as_str().unwrap_or_default();
            let place = if place.is_empty() { name.to_owned() } else { format!("{place}.{name}") };
            causes.push(Cause::required(place, ""));
        }
        ValidationErrorKind::Type { kind } => {
            let wanted = match kind {
                TypeKind::Single(kind) => kind.to_string(),
                TypeKind::Multiple(kinds) => {
                    kinds.iter().map(|kind| kind.to_string()).collect::<Vec<_>>().join(",")
                }
            };
            let why = format!("{shown} in body must be of type {wanted}: {}", value);
            causes.push(Cause::mistyped(place.clone(), value, &why));
        }
        ValidationErrorKind::Enum { options } => {
            let allowed = options.as_array().into_iter().flatten();
            let allowed: Vec<&str> = allowed.filter_map(Value::as_str).collect();
            causes.push(Cause::unsupported(place, value, &allowed));
        }
        // The library looks behind `nullable`, and so do we.
        ValidationErrorKind::AnyOf { context } if context.len() == 2 && is_nullable(context) => {
            for error in &context[1] {
                cause(error, causes);
            }
        }
        ValidationErrorKind::Pattern { pattern } => {
            let why = format!("{shown} in body should match '{pattern}'");
            causes.push(Cause::invalid(place.clone(), value, why));
        }
        ValidationErrorKind::MaxLength { limit } => {
            let limit = usize::try_from(*limit).unwrap_or(usize::MAX);
            causes.push(Cause::too_long(place, limit));
        }
        ValidationErrorKind::MaxItems { limit } => {
            let limit = usize::try_from(*limit).unwrap_or(usize::MAX);
            causes.push(Cause::too_many(place, value.as_array().map_or(0, Vec::len), limit));
        }
        ValidationErrorKind::MaxProperties { limit } => {
            let limit = usize::try_from(*limit).unwrap_or(usize::MAX);
            causes.push(Cause::too_many(place, value.as_object().map_or(0, |m| m.len()), limit));
        }
        _ => {
            let why = format!("{shown} in body is refused: {error}");
            causes.push(Cause::invalid(place.clone(), value, why));
        }
    }
}

fn is_nullable(context: &[Vec<jsonschema::ValidationError<'static>>]) -> bool {
    matches!(
        context[0].first().map(|error| error.kind()),
        Some(ValidationErrorKind::Type { kind: TypeKind::Single(kind) }) if kind.to_string() == "null"
    )
}

/// Items of lists that are sets or maps differ.
fn unique(place: &str, value: &Value, schema: &Value, causes: &mut Vec<Cause>) {
    match value {
        Value::Object(map) => {
            for (name, value) in map {
                let known = schema["properties"].get(name);
                if let Some(below) = known.or(schema.get("additionalProperties")) {
                    let place =
                        if place.is_empty() { name.clone() } else { format!("{place}.{name}") };
                    unique(&place, value, below, causes);
                }
            }
        }
        Value::Array(list) => {
            let shape = crate::shape::Shape::of_schema(schema);
            let mut seen = std::collections::BTreeSet::new();
            for (index, item) in list.iter().enumerate() {
                let place = format!("{place}[{index}]");
                if let Some(step) = crate::fields::step_of(item, &shape) {
                    let key = step.0[2..].to_owned();
                    if !seen.insert(step) {
                        let key = serde_json::from_str(&key).unwrap_or_default();
                        causes.push(Cause::duplicate(&place, &key));
                    }
                }
                unique(&place, item, &schema["items"], causes);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}
