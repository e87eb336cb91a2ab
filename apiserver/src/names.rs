//! What may stand in a name, a label or an annotation, as Kubernetes judges it.

use crate::object::at;
use crate::refusal::Cause;
use serde_json::{Value, json};

const SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const LABEL_1035: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";
const QUALIFIED: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const VALUE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";

/// Most bytes of all annotations together.
const ANNOTATIONS_MAX: usize = 256 << 10;

/// What a kind's names may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NameRule {
    Subdomain,
    Label,
    /// Any text that can be one part of a path: RBAC's names.
    Path,
}

impl NameRule {
    /// What is wrong with a name; nothing where it is good.
    pub(crate) fn judge(self, name: &str) -> Vec<String> {
        match self {
            Self::Subdomain => subdomain(name),
            Self::Label => label(name),
            Self::Path => path(name),
        }
    }
}

fn too_long(text: &str, most: usize) -> Option<String> {
    (text.len() > most).then(|| format!("must be no more than {most} bytes"))
}

fn is_label(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    !text.is_empty() && text.bytes().all(inner) && !text.starts_with('-') && !text.ends_with('-')
}

pub(crate) fn subdomain(text: &str) -> Vec<String> {
    let good = text.split('.').all(is_label);
    too_long(text, 253).into_iter().chain((!good).then(|| SUBDOMAIN.to_owned())).collect()
}

pub(crate) fn label(text: &str) -> Vec<String> {
    too_long(text, 63).into_iter().chain((!is_label(text)).then(|| LABEL.to_owned())).collect()
}

pub(crate) fn label_1035(text: &str) -> Vec<String> {
    let good = is_label(text) && text.starts_with(|c: char| c.is_ascii_lowercase());
    too_long(text, 63).into_iter().chain((!good).then(|| LABEL_1035.to_owned())).collect()
}

pub(crate) fn path(text: &str) -> Vec<String> {
    if text == "." || text == ".." {
        return vec![format!("may not be '{text}'")];
    }
    let bad = ["/", "%"].into_iter().filter(|part| text.contains(part));
    bad.map(|part| format!("may not contain '{part}'")).collect()
}

fn is_name_part(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    let ends = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = text.as_bytes();
    bytes.iter().all(|b| inner(*b)) && ends(bytes.first()) && ends(bytes.last())
}

/// `name` or `prefix/name`, as label keys are.
pub(crate) fn qualified(text: &str) -> Vec<String> {
    let (prefix, name) = match text.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, text),
    };
    let mut wrong = vec![];
    if let Some(prefix) = prefix {
        if prefix.is_empty() {
            wrong.push("prefix part must be non-empty".to_owned());
        } else {
            wrong.extend(subdomain(prefix).into_iter().map(|why| format!("prefix part {why}")));
        }
    }
    if name.is_empty() {
        wrong.push("name part must be non-empty".to_owned());
    } else if name.len() > 63 {
        wrong.push("name part must be no more than 63 bytes".to_owned());
    }
    if !is_name_part(name) {
        wrong.push(QUALIFIED.to_owned());
    }
    wrong
}

pub(crate) fn label_value(text: &str) -> Vec<String> {
    let good = text.is_empty() || is_name_part(text);
    too_long(text, 63).into_iter().chain((!good).then(|| VALUE.to_owned())).collect()
}

/// Labels anywhere in an object.
pub(crate) fn labels(field: &str, labels: Option<&Value>) -> Vec<Cause> {
    let mut causes = vec![];
    for (key, value) in labels.and_then(Value::as_object).into_iter().flatten() {
        causes.extend(qualified(key).iter().map(|why| Cause::invalid(field, &json!(key), why)));
        let text = value.as_str().unwrap_or_default();
        causes.extend(label_value(text).iter().map(|why| Cause::invalid(field, value, why)));
    }
    causes
}

/// What is wrong with an object's metadata.
pub(crate) fn metadata(object: &Value, rule: NameRule) -> Vec<Cause> {
    let mut causes = vec![];
    let meta = |field: &str| at(object, &["metadata", field]);
    let text = |field: &str| meta(field).and_then(Value::as_str).unwrap_or_default();
    let name = text("name");
    if name.is_empty() {
        causes.push(Cause::required("metadata.name", "name or generateName is required"));
    } else {
        let wrong = rule.judge(name);
        causes.extend(wrong.iter().map(|why| Cause::invalid("metadata.name", &json!(name), why)));
    }
    causes.extend(labels("metadata.labels", meta("labels")));
    let mut total = 0;
    for (key, value) in meta("annotations").and_then(Value::as_object).into_iter().flatten() {
        let wrong = qualified(&key.to_ascii_lowercase());
        let wrong =
            wrong.iter().map(|why| Cause::invalid("metadata.annotations", &json!(key), why));
        causes.extend(wrong);
        total += key.len() + value.as_str().map_or(0, str::len);
    }
    if total > ANNOTATIONS_MAX {
        causes.push(Cause::too_long("metadata.annotations", ANNOTATIONS_MAX));
    }
    let finalizers = meta("finalizers").and_then(Value::as_array).into_iter().flatten();
    for (index, finalizer) in finalizers.enumerate() {
        let place = format!("metadata.finalizers[{index}]");
        let text = finalizer.as_str().unwrap_or_default();
        let mut wrong = qualified(text);
        if wrong.is_empty() && !text.contains('/') && !STANDARD_FINALIZERS.contains(&text) {
            wrong
                .push("name is neither a standard finalizer name nor is it fully qualified".into());
        }
        let wrong = wrong.iter().map(|why| Cause::invalid(&place, finalizer, why));
        causes.extend(wrong);
    }
    let owners = meta("ownerReferences").and_then(Value::as_array).into_iter().flatten();
    let mut controllers = 0;
    for owner in owners {
        for field in ["apiVersion", "kind", "name", "uid"] {
            if owner[field].as_str().unwrap_or_default().is_empty() {
                let place = format!("metadata.ownerReferences.{field}");
                let why = if field == "apiVersion" {
                    "version must not be empty"
                } else {
                    "must not be empty"
                };
                causes.push(Cause::invalid(place, &json!(""), why));
            }
        }
        controllers += usize::from(owner["controller"] == true);
    }
    if controllers > 1 {
        let owners = meta("ownerReferences").unwrap_or(&Value::Null);
        let why = "Only one reference can have Controller set to true";
        causes.push(Cause::invalid("metadata.ownerReferences", owners, why));
    }
    causes
}

const STANDARD_FINALIZERS: [&str; 3] = ["kubernetes", "orphan", "foregroundDeletion"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_judged() {
        for good in ["a", "a-b", "a.b-1", "0"] {
            assert!(subdomain(good).is_empty(), "{good}");
        }
        for bad in ["", "A", "-a", "a-", "a..b", "a_b", ".a", "ä"] {
            assert!(!subdomain(bad).is_empty(), "{bad}");
        }
        assert!(!label("a.b").is_empty() && !label(&"a".repeat(64)).is_empty());
        assert!(label("1a").is_empty() && !label_1035("1a").is_empty());
        assert!(
            path("system:node").is_empty() && !path("a/b").is_empty() && !path("..").is_empty()
        );
        assert!(qualified("a.b/C_d").is_empty() && qualified("x").is_empty());
        for bad in ["", "/a", "a/", "a/b/c", "A b", "UPPER/x"] {
            assert!(!qualified(bad).is_empty(), "{bad}");
        }
        assert!(label_value("").is_empty() && !label_value("-").is_empty());
    }
}
