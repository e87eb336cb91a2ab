//! Who owns what after applies and updates.

use super::*;

fn author(manager: &str, operation: &'static str) -> Author {
    Author {
        manager: manager.into(),
        operation,
        api_version: "v1".into(),
        subresource: String::new(),
    }
}

fn shape() -> Shape {
    Shape::of("spec.ports[port,protocol=TCP]")
}

#[track_caller]
fn applied(
    live: &Value,
    who: &str,
    config: Value,
    force: bool,
) -> Result<Value, Vec<(String, String)>> {
    let time = json!("2026-01-01T00:00:00Z");
    let applied = apply(live, &config, &shape(), &author(who, "Apply"), force, &time);
    let object = applied.object.clone();
    applied.settle(live, object, &shape(), &time)
}

#[track_caller]
fn updated(live: &Value, who: &str, mut new: Value) -> Value {
    update(live, &mut new, &shape(), &author(who, "Update"), &json!("2026-01-02T00:00:00Z"));
    new
}

/// `manager: paths`, one line each.
fn book(object: &Value) -> String {
    let lines: Vec<String> = owners(object)
        .iter()
        .map(|owner| {
            format!("{} {}: {}", owner.manager, owner.operation, owner.fields.paths().join(" "))
        })
        .collect();
    lines.join("\n")
}

#[test]
fn an_apply_owns_what_it_says_and_gives_up_what_it_no_longer_says() {
    let one = applied(&json!({}), "a", json!({"spec": {"x": 1, "y": 1}}), false).unwrap();
    assert_eq!(book(&one), "a Apply: .spec.x .spec.y");
    let two = applied(&one, "a", json!({"spec": {"x": 2}}), false).unwrap();
    assert_eq!(two["spec"], json!({"x": 2}));
    let same = applied(&two, "a", json!({"spec": {"x": 2}}), false).unwrap();
    assert_eq!(same, two, "nothing changed, also no time");
}

#[test]
fn others_fields_are_theirs_until_forced() {
    let one = applied(&json!({}), "a", json!({"spec": {"x": 1}}), false).unwrap();
    let two = updated(&one, "b", {
        let mut o = one.clone();
        o["spec"]["y"] = json!(1);
        o
    });
    assert_eq!(book(&two), "a Apply: .spec.x\nb Update: .spec.y");
    let conflicts = applied(&two, "a", json!({"spec": {"x": 1, "y": 2}}), false).unwrap_err();
    assert_eq!(
        conflicts,
        [("\"b\" using v1 at 2026-01-02T00:00:00Z".to_owned(), ".spec.y".to_owned())]
    );
    let three = applied(&two, "a", json!({"spec": {"x": 1, "y": 2}}), true).unwrap();
    assert_eq!(book(&three), "a Apply: .spec.x .spec.y");
}

#[test]
fn an_update_takes_what_it_changes_and_the_removed_is_nobodys() {
    let one = applied(&json!({}), "a", json!({"spec": {"x": 1, "y": 1}}), false).unwrap();
    let two = updated(&one, "b", {
        let mut o = one.clone();
        o["spec"] = json!({"x": 2});
        o
    });
    assert_eq!(book(&two), "b Update: .spec.x");
    let closed = updated(&two, "b", json!({"metadata": {"managedFields": []}, "spec": {"x": 2}}));
    assert_eq!(book(&closed), "");
}

#[test]
fn items_of_a_list_that_is_a_map_have_owners_of_their_own() {
    let one =
        applied(&json!({}), "a", json!({"spec": {"ports": [{"port": 1}, {"port": 2}]}}), false)
            .unwrap();
    let two = applied(
        &one,
        "b",
        json!({"spec": {"ports": [{"port": 2, "name": "n"}, {"port": 3}]}}),
        false,
    )
    .unwrap();
    assert_eq!(two["spec"]["ports"], json!([{"port": 1}, {"port": 2, "name": "n"}, {"port": 3}]));
    // `a` keeps 1 only: 2 is still b's.
    let three = applied(&two, "a", json!({"spec": {"ports": [{"port": 1}]}}), false).unwrap();
    assert_eq!(three["spec"]["ports"], json!([{"port": 1}, {"port": 2, "name": "n"}, {"port": 3}]));
    let four = applied(&three, "b", json!({"spec": {}}), false).unwrap();
    assert_eq!(four["spec"]["ports"], json!([{"port": 1}]));
}
