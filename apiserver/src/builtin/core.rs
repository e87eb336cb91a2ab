//! Namespaces, nodes, configuration, secrets, events and leases.

use super::{Policy, decode};
use crate::names;
use crate::object::{Object, at, items, text};
use crate::refusal::Cause;
use base64::Engine;
use serde_json::{Value, json};

/// Most bytes in a ConfigMap or a Secret.
const DATA_MAX: usize = 1 << 20;

pub(super) fn namespace_defaults(object: &mut Object) {
    if object["spec"]["finalizers"].is_null() {
        object["spec"]["finalizers"] = json!(["kubernetes"]);
    }
    if object["status"]["phase"].is_null() {
        object["status"]["phase"] = json!("Active");
    }
    // Controllers select namespaces by it.
    let name = text(object, &["metadata", "name"]).to_owned();
    if !name.is_empty() {
        if !object["metadata"]["labels"].is_object() {
            object["metadata"]["labels"] = json!({});
        }
        object["metadata"]["labels"]["kubernetes.io/metadata.name"] = json!(name);
    }
}

pub(super) fn node(new: &Object, old: Option<&Object>, _: Policy) -> Vec<Cause> {
    let mut causes = vec![];
    for (index, address) in items(new, &["status", "addresses"]).iter().enumerate() {
        let first = items(new, &["status", "addresses"]).iter().position(|one| one == address);
        if first != Some(index) {
            causes.push(Cause::duplicate(format!("status.addresses[{index}]"), address));
        }
    }
    let provider = |node: &Object| text(node, &["spec", "providerID"]).to_owned();
    if old.is_some_and(|old| !provider(old).is_empty() && provider(old) != provider(new)) {
        let why = "node updates may only change labels, taints, or capacity (or configSource, if the DynamicKubeletConfig feature gate is enabled)";
        causes.push(Cause::forbidden("spec.providerID", why));
    }
    causes
}

/// Data keys, their size, and that an immutable one stays.
fn data(new: &Object, old: Option<&Object>, fields: &[&str]) -> Vec<Cause> {
    let mut causes = vec![];
    let mut size = 0;
    for field in fields {
        for (key, value) in new[*field].as_object().into_iter().flatten() {
            size += value.as_str().map_or(0, str::len);
            let good = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
            let wrong = key.is_empty() || key.len() > 253 || !key.bytes().all(good);
            if wrong || key == "." || key.starts_with("..") {
                let why = "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')";
                causes.push(Cause::invalid(format!("{field}[{key}]"), &json!(key), why));
            }
        }
    }
    if size > DATA_MAX {
        let field = if fields.len() > 1 { "[]" } else { "data" };
        causes.push(Cause::too_long(field, DATA_MAX));
    }
    if let Some(old) = old.filter(|old| old["immutable"] == true) {
        let why = "field is immutable when `immutable` is set";
        if new["immutable"] != true {
            causes.push(Cause::forbidden("immutable", why));
        }
        for field in fields {
            if new[*field] != old[*field] {
                causes.push(Cause::forbidden(*field, why));
            }
        }
    }
    causes
}

pub(super) fn config_map(new: &Object, old: Option<&Object>, _: Policy) -> Vec<Cause> {
    let mut causes = data(new, old, &["data", "binaryData"]);
    for key in new["binaryData"].as_object().into_iter().flatten().map(|(key, _)| key) {
        if new["data"].get(key).is_some() {
            let why = "duplicate of key present in data";
            causes.push(Cause::invalid(format!("data[{key}]"), &json!(key), why));
        }
    }
    causes
}

/// `stringData` becomes `data`.
pub(super) fn decode_secret(value: &Value) -> Result<Value, String> {
    let mut secret = decode::<k8s_openapi::api::core::v1::Secret>(value)?;
    let plain = secret.as_object_mut().and_then(|secret| secret.remove("stringData"));
    if let Some(Value::Object(plain)) = plain {
        for (key, value) in plain {
            let bytes = value.as_str().unwrap_or_default();
            let coded = base64::engine::general_purpose::STANDARD.encode(bytes);
            secret["data"][key] = json!(coded);
        }
    }
    Ok(secret)
}

pub(super) fn secret_defaults(object: &mut Object) {
    if text(object, &["type"]).is_empty() {
        object["type"] = json!("Opaque");
    }
}

pub(super) fn secret(new: &Object, old: Option<&Object>, _: Policy) -> Vec<Cause> {
    let mut causes = data(new, old, &["data"]);
    let kind = text(new, &["type"]);
    if old.is_some_and(|old| text(old, &["type"]) != kind) {
        causes.push(Cause::invalid("type", &new["type"], "field is immutable"));
    }
    let needed: &[&str] = match kind {
        "kubernetes.io/tls" => &["tls.crt", "tls.key"],
        "kubernetes.io/dockerconfigjson" => &[".dockerconfigjson"],
        "kubernetes.io/dockercfg" => &[".dockercfg"],
        "kubernetes.io/ssh-auth" => &["ssh-privatekey"],
        _ => &[],
    };
    for key in needed {
        if new["data"].get(key).is_none() {
            causes.push(Cause::required(format!("data[{key}]"), ""));
        }
    }
    let account = "kubernetes.io/service-account.name";
    if kind == "kubernetes.io/service-account-token"
        && text(new, &["metadata", "annotations", account]).is_empty()
    {
        causes.push(Cause::required(format!("metadata.annotations[{account}]"), ""));
    }
    let either = ["username", "password"];
    if kind == "kubernetes.io/basic-auth" && either.iter().all(|key| new["data"].get(key).is_none())
    {
        causes.extend(either.map(|key| Cause::required(format!("data[{key}]"), "")));
    }
    causes
}

pub(super) fn event(new: &Object, _: Option<&Object>, _: Policy) -> Vec<Cause> {
    let (own, about) =
        (text(new, &["metadata", "namespace"]), text(new, &["involvedObject", "namespace"]));
    let fits = if about.is_empty() { own == "default" || own.is_empty() } else { about == own };
    let why = "does not match event.namespace";
    let wrong = || Cause::invalid("involvedObject.namespace", &json!(about), why);
    (!fits).then(wrong).into_iter().collect()
}

pub(super) fn lease(new: &Object, _: Option<&Object>, _: Policy) -> Vec<Cause> {
    let mut causes = vec![];
    let number = |field: &str| at(new, &["spec", field]).and_then(Value::as_i64);
    if let Some(seconds) = number("leaseDurationSeconds").filter(|seconds| *seconds <= 0) {
        let why = "must be greater than 0";
        causes.push(Cause::invalid("spec.leaseDurationSeconds", &json!(seconds), why));
    }
    if let Some(count) = number("leaseTransitions").filter(|count| *count < 0) {
        let why = "must be greater than or equal to 0";
        causes.push(Cause::invalid("spec.leaseTransitions", &json!(count), why));
    }
    if at(new, &["spec", "holderIdentity"]).is_some_and(|holder| holder == "") {
        causes.push(Cause::invalid("spec.holderIdentity", &json!(""), "must not be empty"));
    }
    let strategy = text(new, &["spec", "strategy"]);
    if !strategy.is_empty() && !names::qualified(strategy).is_empty() {
        causes.push(Cause::invalid("spec.strategy", &json!(strategy), "is no qualified name"));
    }
    causes
}
