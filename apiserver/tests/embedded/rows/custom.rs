//! CustomResourceDefinitions, and objects of them.

use super::{Row, apply, delete, get, merge, post, put, strategic};
use serde_json::{Value, json};

const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const THINGS: &str = "/apis/example.com/v1/namespaces/t/things";

fn definition(change: impl FnOnce(&mut Value)) -> Value {
    let mut definition = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "things.example.com"},
        "spec": {
            "group": "example.com", "scope": "Namespaced",
            "names": {"plural": "things", "kind": "Thing"},
            "versions": [{
                "name": "v1", "served": true, "storage": true, "subresources": {"status": {}},
                "schema": {"openAPIV3Schema": {
                    "type": "object", "required": ["spec"],
                    "properties": {
                        "spec": {
                            "type": "object", "required": ["size"],
                            "properties": {
                                "size": {"type": "integer", "minimum": 1, "maximum": 10},
                                "colour": {"type": "string", "enum": ["red", "blue"], "default": "red"},
                                "code": {"type": "string", "pattern": "^[a-z]+$", "maxLength": 5},
                                "parts": {
                                    "type": "array", "maxItems": 3, "x-kubernetes-list-type": "map",
                                    "x-kubernetes-list-map-keys": ["name"],
                                    "items": {
                                        "type": "object", "required": ["name"],
                                        "properties": {"name": {"type": "string"}, "weight": {"type": "number"}},
                                    },
                                },
                                "tags": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}},
                                "either": {"x-kubernetes-int-or-string": true},
                                "maybe": {"type": "string", "nullable": true},
                                "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
                                "map": {"type": "object", "additionalProperties": {"type": "integer"}},
                            },
                        },
                        "status": {"type": "object", "properties": {"done": {"type": "boolean"}}},
                    },
                }},
            }],
        },
    });
    change(&mut definition);
    definition
}

fn thing(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "example.com/v1", "kind": "Thing", "metadata": {"name": name}, "spec": spec})
}

pub(super) fn rows() -> Vec<Row> {
    vec![
        post("a definition by another name", DEFINITIONS, definition(|d| d["metadata"]["name"] = json!("other.example.com"))),
        post("a definition of no scope", DEFINITIONS, definition(|d| d["spec"]["scope"] = json!(""))),
        post("a definition of an unknown scope", DEFINITIONS, definition(|d| d["spec"]["scope"] = json!("World"))),
        post("a definition without schema", DEFINITIONS, definition(|d| { d["spec"]["versions"][0].as_object_mut().unwrap().remove("schema"); })),
        post("a definition stored nowhere", DEFINITIONS, definition(|d| d["spec"]["versions"][0]["storage"] = json!(false))),
        post("a definition whose root is no object", DEFINITIONS, definition(|d| d["spec"]["versions"][0]["schema"]["openAPIV3Schema"] = json!({"type": "string"}))),
        post("a definition without types", DEFINITIONS, definition(|d| { d["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"] = json!({"properties": {"a": {"type": "string"}}}); })),
        post("a definition", DEFINITIONS, definition(|_| {})).shows("/spec/names /spec/conversion /metadata/generation"),
        Row::new("served soon after", "GET", DEFINITIONS.to_owned() + "/things.example.com").shows("/spec/scope"),
        get("a definition is read", &format!("{DEFINITIONS}/things.example.com")).shows("/status/acceptedNames /status/storedVersions"),
        merge("a definition's scope stays", &format!("{DEFINITIONS}/things.example.com"), json!({"spec": {"scope": "Cluster"}})),
        post("a thing", THINGS, thing("a", json!({"size": 1}))).shows("/spec /metadata/generation"),
        post("a thing without spec", THINGS, json!({"apiVersion": "example.com/v1", "kind": "Thing", "metadata": {"name": "b"}})),
        post("a thing without size", THINGS, thing("b", json!({}))),
        post("a thing too small", THINGS, thing("b", json!({"size": 0}))),
        post("a thing too big", THINGS, thing("b", json!({"size": 11}))),
        post("a size that is text", THINGS, thing("b", json!({"size": "1"}))),
        post("a size that is a fraction", THINGS, thing("b", json!({"size": 1.5})))
            .differs("kube-apiserver tells it twice, once for no field"),
        post("a spec that is a list", THINGS, json!({"apiVersion": "example.com/v1", "kind": "Thing", "metadata": {"name": "b"}, "spec": []})),
        post("an unknown colour", THINGS, thing("b", json!({"size": 1, "colour": "green"}))),
        post("a bad code", THINGS, thing("b", json!({"size": 1, "code": "A"}))),
        post("a long code", THINGS, thing("b", json!({"size": 1, "code": "abcdef"}))),
        post("too many parts", THINGS, thing("b", json!({"size": 1, "parts": [{"name": "a"}, {"name": "b"}, {"name": "c"}, {"name": "d"}]}))),
        post("a part without name", THINGS, thing("b", json!({"size": 1, "parts": [{"weight": 1}]}))),
        post("a part twice", THINGS, thing("b", json!({"size": 1, "parts": [{"name": "a"}, {"name": "a"}]}))),
        post("a tag twice", THINGS, thing("b", json!({"size": 1, "tags": ["a", "a"]}))),
        post("either of them", THINGS, thing("c", json!({"size": 1, "either": "50%", "maybe": null, "free": {"x": {"y": 1}}, "map": {"a": 1}}))).shows("/spec"),
        post("neither of them", THINGS, thing("b", json!({"size": 1, "either": true}))),
        post("null where none may be", THINGS, thing("d", json!({"size": 1, "code": null}))).shows("/spec"),
        post("a map of texts", THINGS, thing("b", json!({"size": 1, "map": {"a": "b"}}))),
        post("unknown fields are pruned", THINGS, thing("e", json!({"size": 1, "alien": {"x": 1}}))).shows("/spec"),
        post("unknown fields, strictly", &format!("{THINGS}?fieldValidation=Strict"), thing("f", json!({"size": 1, "alien": 1}))),
        post("several faults at once", THINGS, thing("b", json!({"size": 0, "code": "A", "colour": "green"}))),
        put("a PUT without version", &format!("{THINGS}/a"), thing("a", json!({"size": 2}))),
        merge("a thing grows", &format!("{THINGS}/a"), json!({"spec": {"size": 2}})).shows("/spec /metadata/generation"),
        merge("a thing is labelled", &format!("{THINGS}/a"), json!({"metadata": {"labels": {"a": "b"}}})).shows("/metadata/labels /metadata/generation"),
        merge("a thing's status by the main door", &format!("{THINGS}/a"), json!({"status": {"done": true}})).shows("/status /metadata/generation"),
        merge("a thing's status", &format!("{THINGS}/a/status"), json!({"status": {"done": true, "alien": 1}})).shows("/status /metadata/generation"),
        merge("a thing's status that is none", &format!("{THINGS}/a/status"), json!({"status": {"done": "yes"}})),
        merge("a thing's spec by the status's door", &format!("{THINGS}/a/status"), json!({"spec": {"size": 5}})).shows("/spec/size"),
        strategic("a strategic patch of a thing", &format!("{THINGS}/a"), json!({"spec": {"size": 3}})),
        apply("a thing applied", &format!("{THINGS}/p"), "one", thing("p", json!({"size": 1, "parts": [{"name": "a", "weight": 1}]}))).shows("/spec"),
        apply("a part more by another", &format!("{THINGS}/p"), "two", thing("p", json!({"size": 1, "parts": [{"name": "b"}]}))).shows("/spec"),
        apply("a part changed by another", &format!("{THINGS}/p"), "two", thing("p", json!({"size": 1, "parts": [{"name": "a", "weight": 2}]}))),
        apply("a bad thing applied", &format!("{THINGS}/p"), "one", thing("p", json!({"size": 100}))),
        get("a thing that is not there", &format!("{THINGS}/zzz")),
        get("an unknown kind of a custom group", "/apis/example.com/v1/namespaces/t/unicorns"),
        get("an unknown version of a custom group", "/apis/example.com/v9/namespaces/t/things"),
        get("things", THINGS).shows("/kind /apiVersion"),
        delete("a thing is deleted", &format!("{THINGS}/a")).shows("/status /details/name /details/group /details/kind"),
        delete("a definition that is not there", &format!("{DEFINITIONS}/others.example.com")),
    ]
}
