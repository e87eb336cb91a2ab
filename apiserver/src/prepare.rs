//! What every write goes through: decoding, defaults, what is carried over, checks, allocation.

use crate::allocate;
use crate::definition;
use crate::kind::{Kind, Rules};
use crate::names::{self, NameRule};
use crate::object::{self, Object, fresh_uid, set_meta, text, timestamp};
use crate::refusal::{Cause, Refusal};
use crate::server::Server;
use serde_json::{Value, json};

/// Reads a body into its type.
pub(crate) fn decode(kind: &Kind, body: &Value) -> Result<Object, Refusal> {
    let decoded = match &kind.rules {
        Rules::Builtin(builtin) => (builtin.decode)(body),
        Rules::Custom(custom) => custom.prune(body),
        Rules::Review => Ok(body.clone()),
    };
    decoded.map_err(|why| {
        Refusal::bad_request(format!(
            "{} in version {:?} cannot be handled as a {}: {why}",
            kind.kind, kind.version, kind.kind
        ))
    })
}

/// Fields that decoding dropped.
pub(crate) fn aliens(path: &str, given: &Value, decoded: &Value, found: &mut Vec<String>) {
    match (given, decoded) {
        (Value::Object(given), Value::Object(decoded)) => {
            for (name, value) in given {
                let place = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                match decoded.get(name) {
                    Some(kept) => aliens(&place, value, kept, found),
                    None if value.is_null() || place == "stringData" => {}
                    None => found.push(place),
                }
            }
        }
        (Value::Array(given), Value::Array(decoded)) => {
            for (index, (given, decoded)) in given.iter().zip(decoded).enumerate() {
                aliens(&format!("{path}[{index}]"), given, decoded, found);
            }
        }
        _ => {}
    }
}

/// `decoded` without what decoding added: an applied configuration owns what it says, no more.
pub(crate) fn only_given(given: &Value, decoded: &Value) -> Value {
    match (given, decoded) {
        (Value::Object(given), Value::Object(decoded)) => {
            let kept = decoded.iter().filter_map(|(name, value)| {
                let given = given
                    .get(name)
                    .or((name == "data").then(|| given.get("stringData")).flatten())?;
                Some((name.clone(), only_given(given, value)))
            });
            kept.collect()
        }
        (Value::Array(given), Value::Array(decoded)) => {
            given.iter().zip(decoded).map(|(given, decoded)| only_given(given, decoded)).collect()
        }
        _ => decoded.clone(),
    }
}

/// Refuses what is written into a namespace that is not there, or is going.
pub(crate) fn in_namespace(
    server: &Server,
    namespace: &str,
    kind: &Kind,
    name: &str,
) -> Result<(), Refusal> {
    let found = server.store.get("/namespaces", &(String::new(), namespace.to_owned()));
    let Some(found) = found else {
        let registry = server.registry();
        let namespaces = registry.find("", "v1", "namespaces");
        return Err(namespaces.map_or_else(
            || Refusal::internal("namespaces are not served"),
            |kind| Refusal::not_found(kind, namespace),
        ));
    };
    if object::is_deleting(&found.value) {
        let why = format!(
            "unable to create new content in namespace {namespace} because it is being terminated"
        );
        let mut refusal = Refusal::forbidden(kind, name, &why);
        refusal.causes = vec![Cause {
            reason: "NamespaceTerminating",
            field: "metadata.namespace".into(),
            message: format!("namespace {namespace} is being terminated"),
        }];
        return Err(refusal);
    }
    Ok(())
}

/// Metadata of a new object; a status of its own it may not bring.
pub(crate) fn fresh(kind: &Kind, new: &mut Object, now: jiff::Timestamp) {
    set_meta(new, "uid", json!(fresh_uid()));
    set_meta(new, "creationTimestamp", timestamp(now));
    let none = [
        "resourceVersion",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "selfLink",
        "managedFields",
    ];
    none.iter().for_each(|field| set_meta(new, field, Value::Null));
    set_meta(new, "generation", if counts(kind) { json!(1) } else { Value::Null });
    if kind.status && !kind.is("", "nodes") {
        remove(new, "status");
    }
    if kind.is("", "namespaces") {
        // What the client wrote is not asked.
        remove(new, "spec");
    }
}

fn remove(object: &mut Object, field: &str) {
    if let Some(fields) = object.as_object_mut() {
        fields.remove(field);
    }
}

fn counts(kind: &Kind) -> bool {
    match &kind.rules {
        Rules::Builtin(builtin) => builtin.generation,
        Rules::Custom(_) => true,
        Rules::Review => false,
    }
}

pub(crate) fn default(kind: &Kind, object: &mut Object) {
    match &kind.rules {
        Rules::Builtin(builtin) => (builtin.defaults)(object),
        Rules::Custom(custom) => custom.defaults(object),
        Rules::Review => {}
    }
    // Indexing for a default may have left a null.
    if let (Rules::Builtin(_), Some(fields)) = (&kind.rules, object.as_object_mut()) {
        fields.retain(|_, value| !value.is_null());
        fields.values_mut().for_each(object::strip_nulls);
    }
}

/// What a write leaves as it is: identity, and status or all but the status.
pub(crate) fn carry(kind: &Kind, old: &Object, new: &mut Object, status: bool) {
    if status {
        let fresh = new.get("status").cloned();
        let managed = new["metadata"].get("managedFields").cloned();
        *new = old.clone();
        match fresh {
            Some(fresh) => new["status"] = fresh,
            None => remove(new, "status"),
        }
        set_meta(new, "managedFields", managed.unwrap_or_default());
        new["apiVersion"] = json!(kind.api_version());
        return;
    }
    let kept = [
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generation",
        "generateName",
        "selfLink",
        "name",
        "namespace",
    ];
    for field in kept {
        set_meta(new, field, old["metadata"].get(field).cloned().unwrap_or_default());
    }
    if kind.status {
        match old.get("status") {
            Some(status) => new["status"] = status.clone(),
            None => remove(new, "status"),
        }
    }
    if kind.is("", "namespaces") {
        new["spec"] = old["spec"].clone();
    }
}

/// Counts a new generation where more than metadata and status changed.
pub(crate) fn generation(kind: &Kind, old: &Object, new: &mut Object) {
    if kind.is("apiextensions.k8s.io", "customresourcedefinitions") {
        let since = old["metadata"]["creationTimestamp"].clone();
        definition::establish(new, &since);
    }
    if !counts(kind) {
        return;
    }
    let wish = |object: &Object| {
        let mut object = object.clone();
        remove(&mut object, "metadata");
        remove(&mut object, "apiVersion");
        if kind.status {
            remove(&mut object, "status");
        }
        object
    };
    let before = old["metadata"]["generation"].as_i64().unwrap_or(1);
    let after = if wish(old) == wish(new) { before } else { before + 1 };
    set_meta(new, "generation", json!(after));
}

/// All that is wrong with an object.
pub(crate) fn validate(
    server: &Server,
    kind: &Kind,
    new: &Object,
    old: Option<&Object>,
) -> Vec<Cause> {
    let rule = match &kind.rules {
        Rules::Builtin(builtin) => builtin.names,
        Rules::Custom(_) | Rules::Review => NameRule::Subdomain,
    };
    let mut causes = names::metadata(new, rule);
    if let Some(old) = old.filter(|old| object::is_deleting(old)) {
        let before = object::items(old, &["metadata", "finalizers"]);
        let after = object::items(new, &["metadata", "finalizers"]);
        let late: Vec<&Value> = after.iter().filter(|one| !before.contains(one)).collect();
        if !late.is_empty() {
            let why = format!(
                "no new finalizers can be added if the object is being deleted, found new finalizers {late:?}"
            );
            causes.push(Cause::forbidden("metadata.finalizers", &why));
        }
    }
    match &kind.rules {
        Rules::Builtin(builtin) => causes.extend((builtin.validate)(new, old, server.policy)),
        Rules::Custom(custom) => causes.extend(custom.validate(new)),
        Rules::Review => {}
    }
    causes
}

/// What depends on other objects.
pub(crate) fn admit(
    server: &Server,
    kind: &Kind,
    new: &Object,
    old: Option<&Object>,
) -> Result<(), Refusal> {
    if kind.is("", "pods") && old.is_none() {
        let namespace = object::namespace(new);
        let account = text(new, &["spec", "serviceAccountName"]);
        let key = (namespace.to_owned(), account.to_owned());
        if server.store.get("/serviceaccounts", &key).is_none() {
            let why = format!(
                "error looking up service account {namespace}/{account}: serviceaccount {account:?} not found"
            );
            return Err(Refusal::forbidden(kind, object::name(new), &why));
        }
    }
    if kind.is("apiextensions.k8s.io", "customresourcedefinitions") {
        let group = text(new, &["spec", "group"]);
        if crate::builtin::owns(group) {
            let why = format!("group {group} is built in");
            return Err(Refusal::forbidden(kind, object::name(new), &why));
        }
    }
    Ok(())
}

/// Hands out addresses and ports.
pub(crate) fn allocate(
    server: &Server,
    kind: &Kind,
    new: &mut Object,
    old: Option<&Object>,
) -> Result<(), Refusal> {
    if !kind.is("", "services") {
        return Ok(());
    }
    let all = server.store.list("/services", None).0;
    let own = (object::namespace(new).to_owned(), object::name(new).to_owned());
    let others = all.iter().map(|entry| &entry.value);
    let others: Vec<&Object> = others
        .filter(|other| (object::namespace(other), object::name(other)) != (&*own.0, &*own.1))
        .collect();
    allocate::service(new, old, &others, server.services)
        .map_err(|cause| Refusal::invalid(kind, &own.1, vec![cause]))
}
