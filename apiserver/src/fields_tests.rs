//! Sets of fields against what `managedFields` of a real API server looks like.

use super::*;
use serde_json::json;

fn shape() -> Shape {
    Shape::of("spec.ports[port,protocol=TCP] spec.selector!")
}

#[test]
fn a_set_is_written_as_kubernetes_writes_it() {
    let object = json!({
        "metadata": {"labels": {"a": "b"}, "finalizers": ["x/y"]},
        "spec": {"ports": [{"port": 80, "name": "http"}], "selector": {"app": "x"}, "empty": {}, "list": [1, 2]},
    });
    let set = Fields::of(&object, &shape());
    let expected = json!({
        "f:metadata": {"f:labels": {"f:a": {}}, "f:finalizers": {"v:\"x/y\"": {}}},
        "f:spec": {
            "f:ports": {"k:{\"port\":80,\"protocol\":\"TCP\"}": {".": {}, "f:port": {}, "f:name": {}}},
            "f:selector": {}, "f:empty": {}, "f:list": {},
        },
    });
    assert_eq!(set.to_json(), expected);
    assert_eq!(Fields::from_json(&expected), set);
    assert_eq!(set.paths()[0], ".metadata.finalizers[=\"x/y\"]");
    assert!(set.paths().contains(&".spec.ports[port=80,protocol=\"TCP\"].name".to_owned()));
}

#[test]
fn sets_are_joined_cut_and_compared() {
    let one = Fields::of(&json!({"a": 1, "b": {"c": 1, "d": 1}}), &Shape::default());
    let two = Fields::of(&json!({"b": {"c": 5}, "e": 1}), &Shape::default());
    assert_eq!(one.common(&two).paths(), [".b.c"]);
    assert_eq!(one.without(&two).paths(), [".a", ".b.d"]);
    let mut both = one.clone();
    both.union(&two);
    assert_eq!(both.paths(), [".a", ".b.c", ".b.d", ".e"]);
    both.drop_path(&["b", "c"]);
    both.drop_path(&["b", "d"]);
    both.drop_path(&["absent", "x"]);
    assert_eq!(both.paths(), [".a", ".e"]);
}

#[track_caller]
fn check(old: Value, new: Value, removed: &[&str], changed: &[&str]) {
    let found = difference(&old, &new, &shape());
    assert_eq!(found.removed.paths(), removed, "removed");
    assert_eq!(found.changed.paths(), changed, "changed");
}

#[test]
fn differences_are_the_fields_that_differ() {
    check(json!({"a": 1}), json!({"a": 1}), &[], &[]);
    check(json!({"a": 1, "b": 1}), json!({"a": 2, "c": 1}), &[".b"], &[".a", ".c"]);
    check(json!({"a": {"x": 1}}), json!({"a": {"x": 1, "y": 2}}), &[], &[".a.y"]);
    check(json!({"l": [1]}), json!({"l": [2]}), &[], &[".l"]);
    check(
        json!({"spec": {"selector": {"a": "1"}}}),
        json!({"spec": {"selector": {"b": "1"}}}),
        &[],
        &[".spec.selector"],
    );
    check(
        json!({"spec": {"ports": [{"port": 1, "name": "a"}, {"port": 2}]}}),
        json!({"spec": {"ports": [{"port": 1, "name": "b", "protocol": "TCP"}]}}),
        &[".spec.ports[port=2,protocol=\"TCP\"]", ".spec.ports[port=2,protocol=\"TCP\"].port"],
        &[
            ".spec.ports[port=1,protocol=\"TCP\"].name",
            ".spec.ports[port=1,protocol=\"TCP\"].protocol",
        ],
    );
}
