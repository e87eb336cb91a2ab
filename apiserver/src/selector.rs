//! Label and field selectors.

use crate::kind::Kind;
use crate::names;
use crate::object::{Object, at};
use crate::refusal::Refusal;
use serde_json::Value;

/// What a list or watch is narrowed to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Selector {
    labels: Vec<Requirement>,
    fields: Vec<(Vec<String>, bool, String)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Requirement {
    In(String, Vec<String>),
    NotIn(String, Vec<String>),
    Exists(String),
    Absent(String),
    Above(String, i64),
    Below(String, i64),
}

impl Selector {
    pub(crate) fn parse(kind: &Kind, labels: &str, fields: &str) -> Result<Self, Refusal> {
        let labels = split(labels).into_iter().map(|part| {
            requirement(part).ok_or_else(|| {
                Refusal::bad_request(format!(
                    "unable to parse requirement: {part:?} is no label requirement"
                ))
            })
        });
        let fields = fields.split(',').map(str::trim).filter(|part| !part.is_empty()).map(|part| {
            let (path, same, value) = if let Some((path, value)) = part.split_once("!=") {
                (path, false, value)
            } else if let Some((path, value)) = part.split_once("==").or(part.split_once('=')) {
                (path, true, value)
            } else {
                let message = format!("invalid selector: '{part}'; can't understand '{part}'");
                return Err(Refusal::bad_request(message));
            };
            if !selectable(kind, path) {
                let message = if kind.is_custom() {
                    format!("field label not supported: {path}")
                } else {
                    format!("field label {path:?} not supported for {:?}", kind.kind)
                };
                return Err(Refusal::bad_request(message));
            }
            Ok((path.split('.').map(str::to_owned).collect(), same, value.to_owned()))
        });
        Ok(Self {
            labels: labels.collect::<Result<_, _>>()?,
            fields: fields.collect::<Result<_, _>>()?,
        })
    }

    pub(crate) fn fits(&self, object: &Object) -> bool {
        let labels = at(object, &["metadata", "labels"]);
        let label = |key: &str| labels.and_then(|labels| labels.get(key)).and_then(Value::as_str);
        let number = |key: &str| label(key).and_then(|text| text.parse::<i64>().ok());
        self.labels.iter().all(|requirement| match requirement {
            Requirement::In(key, values) => {
                label(key).is_some_and(|value| values.iter().any(|wanted| wanted == value))
            }
            Requirement::NotIn(key, values) => {
                label(key).is_none_or(|value| values.iter().all(|wanted| wanted != value))
            }
            Requirement::Exists(key) => label(key).is_some(),
            Requirement::Absent(key) => label(key).is_none(),
            Requirement::Above(key, bound) => number(key).is_some_and(|value| value > *bound),
            Requirement::Below(key, bound) => number(key).is_some_and(|value| value < *bound),
        }) && self.fields.iter().all(|(path, same, wanted)| {
            let path: Vec<&str> = path.iter().map(String::as_str).collect();
            let found = match at(object, &path) {
                Some(Value::String(text)) => text.clone(),
                Some(Value::Null) | None => String::new(),
                Some(other) => other.to_string(),
            };
            (found == *wanted) == *same
        })
    }
}

fn selectable(kind: &Kind, path: &str) -> bool {
    let own: &[&str] = match (&*kind.group, &*kind.plural) {
        ("", "pods") => &[
            "spec.nodeName",
            "spec.restartPolicy",
            "spec.schedulerName",
            "spec.serviceAccountName",
            "spec.hostNetwork",
            "status.phase",
            "status.podIP",
            "status.nominatedNodeName",
        ],
        ("", "secrets") => &["type"],
        ("", "nodes") => &["spec.unschedulable"],
        ("", "namespaces") => &["status.phase"],
        ("", "services") => &["spec.clusterIP", "spec.type"],
        ("", "events") => &[
            "involvedObject.kind",
            "involvedObject.namespace",
            "involvedObject.name",
            "involvedObject.uid",
            "involvedObject.apiVersion",
            "involvedObject.resourceVersion",
            "involvedObject.fieldPath",
            "reason",
            "reportingComponent",
            "source",
            "type",
        ],
        _ => &[],
    };
    path == "metadata.name"
        || (path == "metadata.namespace" && kind.namespaced)
        || own.contains(&path)
}

/// At commas outside parentheses.
fn split(text: &str) -> Vec<&str> {
    let (mut parts, mut from, mut depth) = (vec![], 0, 0);
    for (at, letter) in text.char_indices() {
        match letter {
            '(' => depth += 1,
            ')' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&text[from..at]);
                from = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[from..]);
    if text.trim().is_empty() { vec![] } else { parts.into_iter().map(str::trim).collect() }
}

fn requirement(part: &str) -> Option<Requirement> {
    let key = |text: &str| {
        let text = text.trim();
        names::qualified(text).is_empty().then(|| text.to_owned())
    };
    let value = |text: &str| {
        let text = text.trim();
        names::label_value(text).is_empty().then(|| text.to_owned())
    };
    if let Some((left, right)) = part.split_once("!=") {
        return Some(Requirement::NotIn(key(left)?, vec![value(right)?]));
    }
    if let Some((left, right)) = part.split_once("==").or(part.split_once('=')) {
        return Some(Requirement::In(key(left)?, vec![value(right)?]));
    }
    if let Some((left, right)) = part.split_once('>') {
        return Some(Requirement::Above(key(left)?, right.trim().parse().ok()?));
    }
    if let Some((left, right)) = part.split_once('<') {
        return Some(Requirement::Below(key(left)?, right.trim().parse().ok()?));
    }
    if let Some((left, list)) = part.split_once('(') {
        let values: Option<Vec<String>> = list.strip_suffix(')')?.split(',').map(value).collect();
        let mut words = left.split_whitespace();
        return match (words.next(), words.next(), words.next()) {
            (Some(name), Some("in"), None) => Some(Requirement::In(key(name)?, values?)),
            (Some(name), Some("notin"), None) => Some(Requirement::NotIn(key(name)?, values?)),
            _ => None,
        };
    }
    match part.strip_prefix('!') {
        Some(name) => Some(Requirement::Absent(key(name)?)),
        None => Some(Requirement::Exists(key(part)?)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[track_caller]
    fn check(labels: &str, fields: &str, expected: Option<bool>) {
        let registry = crate::builtin::registry();
        let pods = registry.find("", "v1", "pods").unwrap();
        let pod = json!({
            "metadata": {"name": "a", "labels": {"app": "hello", "n": "5"}},
            "spec": {"nodeName": "east"},
        });
        let fits = Selector::parse(pods, labels, fields).ok().map(|selector| selector.fits(&pod));
        assert_eq!(fits, expected, "{labels:?} {fields:?}");
    }

    #[test]
    fn selectors_select() {
        check("", "", Some(true));
        check("app=hello", "", Some(true));
        check("app==hello,n", "", Some(true));
        check("app!=hello", "", Some(false));
        check("other!=x", "", Some(true));
        check("app in (a, hello),n notin (1,2)", "", Some(true));
        check("app in (a)", "", Some(false));
        check("!app", "", Some(false));
        check("!b", "", Some(true));
        check("n>4", "", Some(true));
        check("n<5", "", Some(false));
        check("a b", "", None);
        check("app in hello", "", None);
        check("", "metadata.name=a", Some(true));
        check("", "spec.nodeName!=east", Some(false));
        check("", "spec.nodeName=east,metadata.name=b", Some(false));
        check("", "spec.image=x", None);
        check("", "metadata.name", None);
    }
}
