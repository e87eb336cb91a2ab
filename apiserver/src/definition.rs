//! CustomResourceDefinitions: judged, and turned into kinds.

use crate::builtin::Policy;
use crate::custom::Custom;
use crate::kind::{Kind, Rules};
use crate::names;
use crate::object::{self, Object, items, text};
use crate::refusal::Cause;
use crate::shape::Shape;
use serde_json::{Value, json};
use std::sync::Arc;

/// Structure is judged in [`validate`]; schemas are kept as they are written.
pub(crate) fn decode(value: &Value) -> Result<Value, String> {
    let mut kept = serde_json::Map::new();
    for field in ["apiVersion", "kind", "metadata", "spec", "status"] {
        if let Some(value) = value.get(field) {
            let fits =
                value.is_object() || (value.is_string() && field.len() > 3 && field != "spec");
            if !fits {
                return Err(format!("json: cannot unmarshal into Go struct field .{field}"));
            }
            kept.insert(field.into(), value.clone());
        }
    }
    // The rest goes through its type, for what is mistyped.
    let typed: k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition =
        serde::Deserialize::deserialize(value).map_err(|error: serde_json::Error| error.to_string())?;
    let metadata = serde_json::to_value(typed.metadata).map_err(|error| error.to_string())?;
    kept.insert("metadata".into(), metadata);
    Ok(Value::Object(kept))
}

pub(crate) fn defaults(object: &mut Object) {
    let spec = &mut object["spec"];
    let kind = text(spec, &["names", "kind"]).to_owned();
    if !kind.is_empty() {
        let names = &mut spec["names"];
        if text(names, &["singular"]).is_empty() {
            names["singular"] = json!(kind.to_lowercase());
        }
        if text(names, &["listKind"]).is_empty() {
            names["listKind"] = json!(format!("{kind}List"));
        }
    }
    if spec["conversion"].is_null() {
        spec["conversion"] = json!({"strategy": "None"});
    }
}

/// What the apiextensions controllers write: the names are accepted, it is served.
pub(crate) fn establish(object: &mut Object, time: &Value) {
    let names = object["spec"]["names"].clone();
    let stored =
        items(object, &["spec", "versions"]).iter().find(|version| version["storage"] == true);
    let stored = stored.map(|version| version["name"].clone()).unwrap_or_default();
    let status = &mut object["status"];
    if !status.is_object() {
        *status = json!({});
    }
    status["acceptedNames"] = names;
    let versions = status["storedVersions"].as_array().cloned().unwrap_or_default();
    if !versions.contains(&stored) {
        let all = versions.into_iter().chain([stored]).collect();
        status["storedVersions"] = Value::Array(all);
    }
    if items(status, &["conditions"]).is_empty() {
        let condition = |kind: &str, reason: &str, message: &str| {
            json!({
                "type": kind, "status": "True", "reason": reason, "message": message,
                "lastTransitionTime": time,
            })
        };
        status["conditions"] = json!([
            condition("NamesAccepted", "NoConflicts", "no conflicts found"),
            condition(
                "Established",
                "InitialNamesAccepted",
                "the initial names have been accepted"
            ),
        ]);
    }
}

pub(crate) fn validate(new: &Object, old: Option<&Object>, _: Policy) -> Vec<Cause> {
    let mut causes = vec![];
    let spec = &new["spec"];
    let group = text(spec, &["group"]);
    if group.is_empty() {
        causes.push(Cause::required("spec.group", ""));
    } else if group.split('.').count() < 2 {
        let why = "should be a domain with at least one dot";
        causes.push(Cause::invalid("spec.group", &json!(group), why));
    } else {
        let wrong = names::subdomain(group).into_iter();
        causes.extend(wrong.map(|why| Cause::invalid("spec.group", &json!(group), why)));
    }
    let scope = &spec["scope"];
    match scope.as_str().unwrap_or_default() {
        "" => causes.push(Cause::required("spec.scope", "")),
        "Cluster" | "Namespaced" => {}
        _ => causes.push(Cause::unsupported("spec.scope", scope, &["Cluster", "Namespaced"])),
    }
    for field in ["plural", "singular", "kind", "listKind"] {
        let name = text(spec, &["names", field]);
        let place = format!("spec.names.{field}");
        if name.is_empty() {
            causes.push(Cause::required(place, ""));
        } else {
            let wrong = names::label_1035(&name.to_lowercase()).into_iter();
            causes.extend(wrong.map(|why| Cause::invalid(&place, &json!(name), why)));
        }
    }
    let named = format!("{}.{group}", text(spec, &["names", "plural"]));
    let name = object::name(new);
    if name != named {
        let why = "must be spec.names.plural+\".\"+spec.group";
        causes.push(Cause::invalid("metadata.name", &json!(name), why));
    }
    judge_versions(spec, &mut causes);
    if let Some(old) = old {
        for (field, path) in [
            ("spec.group", &["spec", "group"][..]),
            ("spec.scope", &["spec", "scope"]),
            ("spec.names.kind", &["spec", "names", "kind"]),
            ("spec.names.plural", &["spec", "names", "plural"]),
        ] {
            if text(old, path) != text(new, path) {
                causes.push(Cause::invalid(field, &json!(text(new, path)), "field is immutable"));
            }
        }
    }
    causes
}

fn judge_versions(spec: &Value, causes: &mut Vec<Cause>) {
    let versions = items(spec, &["versions"]);
    let stored = versions.iter().filter(|version| version["storage"] == true).count();
    if stored != 1 {
        let why = "must have exactly one version marked as storage version";
        causes.push(Cause::invalid("spec.versions", &spec["versions"], why));
        if stored == 0 {
            let why = "must have the storage version";
            causes.push(Cause::invalid("status.storedVersions", &json!([]), why));
        }
    }
    for (index, version) in versions.iter().enumerate() {
        let place = |field: &str| format!("spec.versions[{index}].{field}");
        let name = text(version, &["name"]);
        let wrong = names::label_1035(name).into_iter();
        causes.extend(wrong.map(|why| Cause::invalid(place("name"), &json!(name), why)));
        if versions[..index].iter().any(|before| text(before, &["name"]) == name) {
            causes.push(Cause::invalid(
                "spec.versions",
                &spec["versions"],
                "must contain unique version names",
            ));
        }
        let schema = &version["schema"]["openAPIV3Schema"];
        // The only version's schema is told as everybody's.
        let root = match versions.len() {
            1 => "spec.validation.openAPIV3Schema".to_owned(),
            _ => place("schema.openAPIV3Schema"),
        };
        if !schema.is_object() {
            let why = "schemas are required";
            causes.push(Cause::required(place("schema.openAPIV3Schema"), why));
            continue;
        }
        if text(schema, &["type"]) != "object" {
            let place = format!("{root}.type");
            causes.push(match schema.get("type") {
                None => Cause::required(place, "must not be empty at the root"),
                Some(kind) => Cause::invalid(place, kind, "must be object at the root"),
            });
        }
        structural(&root, schema, true, causes);
        if causes.is_empty() {
            if let Err(why) = crate::schema::Checker::new(schema) {
                causes.push(Cause::invalid(root, &json!(""), why));
            }
        }
    }
}

/// Every place says its type, as structural schemas must.
fn structural(place: &str, schema: &Value, root: bool, causes: &mut Vec<Cause>) {
    let int_or_string = schema["x-kubernetes-int-or-string"] == true;
    let kept = schema["x-kubernetes-preserve-unknown-fields"] == true;
    if !root && schema.get("type").is_none() && !int_or_string && !kept {
        causes.push(Cause::required(
            format!("{place}.type"),
            "must not be empty for specified object fields",
        ));
    }
    let kinds = ["array", "boolean", "integer", "number", "object", "string"];
    if let Some(kind) =
        schema.get("type").filter(|kind| !kinds.contains(&kind.as_str().unwrap_or_default()))
    {
        causes.push(Cause::unsupported(format!("{place}.type"), kind, &kinds));
    }
    if schema["type"] == "array" && !schema["items"].is_object() {
        causes.push(Cause::required(format!("{place}.items"), "must be specified"));
    }
    for (name, below) in schema["properties"].as_object().into_iter().flatten() {
        // What the server defines itself need not be described.
        if !(root && name == "metadata") {
            structural(&format!("{place}.properties[{name}]"), below, false, causes);
        }
    }
    for field in ["items", "additionalProperties"] {
        if schema[field].is_object() {
            structural(&format!("{place}.{field}"), &schema[field], false, causes);
        }
    }
}

/// The kinds a definition serves; its schemas were judged when it was written.
pub(crate) fn kinds(definition: &Object) -> Vec<Kind> {
    let spec = &definition["spec"];
    let group = text(spec, &["group"]);
    let plural = text(spec, &["names", "plural"]);
    let words = |field: &str| -> Vec<String> {
        items(spec, &["names", field]).iter().filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let versions = items(spec, &["versions"]);
    let served = versions.iter().filter(|version| version["served"] == true);
    let kinds = served.filter_map(|version| {
        let schema = &version["schema"]["openAPIV3Schema"];
        let custom = Custom::new(version).ok()?;
        Some(Kind {
            group: group.to_owned(),
            version: text(version, &["name"]).to_owned(),
            kind: text(spec, &["names", "kind"]).to_owned(),
            plural: plural.to_owned(),
            singular: text(spec, &["names", "singular"]).to_owned(),
            short: words("shortNames"),
            categories: words("categories"),
            namespaced: spec["scope"] == "Namespaced",
            status: version["subresources"]["status"].is_object(),
            resource: format!("{group}/{plural}").into(),
            shape: Arc::new(Shape::of_custom(schema)),
            rules: Rules::Custom(Arc::new(custom)),
        })
    });
    kinds.collect()
}
