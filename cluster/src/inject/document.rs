//! Files of manifests: every pod and pod template in them through [`inject`], the rest as it stands.

use super::{Injection, NamespaceLabels, Settings, apply, inject};
use crate::yaml;
use anyhow::{Result, anyhow, ensure};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// Longest text that is read, bytes.
pub const TEXT_MAX: usize = 16 * 1024 * 1024;

/// Documents of one text: YAML with `---` between, or JSON.
#[derive(Debug)]
pub struct Documents {
    parts: Vec<Part>,
}

#[derive(Debug)]
struct Part {
    text: String,
    object: Value,
}

/// The whole text after injection, and what became of each object that has a pod in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Done {
    pub text: String,
    pub outcomes: Vec<Outcome>,
}

/// One object's pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// `Deployment shop/hello`.
    pub object: String,
    pub injected: bool,
    /// Why not, or what to know of it.
    pub said: Vec<String>,
}

impl Documents {
    /// # Errors
    /// ISM2706, with the number of the document that is no YAML.
    pub fn read(text: &str) -> Result<Self> {
        ensure!(
            text.len() <= TEXT_MAX,
            "ISM2706 the manifests have {} bytes, at most {TEXT_MAX} are read. Fix: split them",
            text.len()
        );
        let mut parts = Vec::new();
        for (index, text) in split(text).into_iter().enumerate() {
            let object = serde_saphyr::from_str(&text).map_err(|error| {
                anyhow!(
                    "ISM2706 document {} of the manifests is no YAML: {}. Fix: correct that line of it",
                    index + 1,
                    yaml::told(&error)
                )
            })?;
            parts.push(Part { text, object });
        }
        Ok(Self { parts })
    }

    /// Namespaces whose labels [`Self::inject`] needs.
    pub fn namespaces(&self, default: &str) -> BTreeSet<String> {
        let objects = self.parts.iter().flat_map(|part| members(&part.object));
        objects.filter(|object| template(object).is_some()).map(|o| namespace(o, default)).collect()
    }

    /// Namespaces that are not in `labels` have none.
    pub fn inject(
        &self,
        labels: &BTreeMap<String, NamespaceLabels>,
        default: &str,
        settings: &Settings,
    ) -> Done {
        let mut outcomes = Vec::new();
        let none = NamespaceLabels::new();
        let mut one = |object: &mut Value| -> bool {
            let Some(path) = template(object) else { return false };
            let namespace = namespace(object, default);
            let pod = object.pointer(path).cloned().unwrap_or_default();
            let injection = inject(&pod, labels.get(&namespace).unwrap_or(&none), settings);
            let (injected, said) = match &injection {
                Injection::Inject { patch, warnings } => {
                    if let Some(place) = object.pointer_mut(path) {
                        *place = apply(&pod, patch);
                    }
                    (true, warnings.clone())
                }
                Injection::Leave(why) => (false, vec![why.to_string()]),
            };
            let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let meta = &object["metadata"];
            let name = [&meta["name"], &meta["generateName"]].into_iter().map(word);
            let name = name.into_iter().find(|name| !name.is_empty()).unwrap_or_default();
            let object = format!("{} {namespace}/{name}", word(&object["kind"]));
            outcomes.push(Outcome { object, injected, said });
            injected
        };
        let mut text = String::new();
        for (index, part) in self.parts.iter().enumerate() {
            if index > 0 {
                text.push_str("---\n");
            }
            let mut object = part.object.clone();
            let changed = match object.get_mut("items").and_then(Value::as_array_mut) {
                // Every member, not only the first that changes.
                Some(items) => {
                    items.iter_mut().filter_map(|item| one(item).then_some(())).count() > 0
                }
                None => one(&mut object),
            };
            if changed {
                text.push_str(&serde_saphyr::to_string(&object).expect("what was YAML is YAML"));
            } else {
                text.push_str(&part.text);
            }
            if !text.is_empty() && !text.ends_with('\n') {
                text.push('\n');
            }
        }
        Done { text, outcomes }
    }
}

/// Injects into a whole text at once.
pub fn documents(
    text: &str,
    labels: &BTreeMap<String, NamespaceLabels>,
    default: &str,
    settings: &Settings,
) -> Result<Done> {
    Ok(Documents::read(text)?.inject(labels, default, settings))
}

/// Texts between lines of `---`; nothing else at a line's beginning ends a document.
fn split(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    for line in text.split_inclusive('\n') {
        let rest = line.strip_prefix("---");
        if rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(char::is_whitespace)) {
            parts.push(String::new());
            // A comment or a value may stand behind the marker.
            let rest = rest.unwrap_or_default();
            if !rest.trim().is_empty() {
                parts.last_mut().expect("one was pushed").push_str(rest.trim_start());
            }
        } else {
            parts.last_mut().expect("there is always one").push_str(line);
        }
    }
    if parts.len() > 1 && parts[0].trim().is_empty() {
        parts.remove(0);
    }
    parts
}

/// The object, or the members of a List.
fn members(object: &Value) -> impl Iterator<Item = &Value> {
    let items = object["items"].as_array();
    items.into_iter().flatten().chain(items.is_none().then_some(object))
}

fn namespace(object: &Value, default: &str) -> String {
    let namespace = object["metadata"]["namespace"].as_str().filter(|name| !name.is_empty());
    namespace.unwrap_or(default).to_owned()
}

/// Where an object has a pod's metadata and spec.
fn template(object: &Value) -> Option<&'static str> {
    let group = object["apiVersion"].as_str()?.rsplit_once('/').map_or("", |(group, _)| group);
    let path = match (group, object["kind"].as_str()?) {
        ("", "Pod") => "",
        ("apps", "Deployment" | "StatefulSet" | "DaemonSet" | "ReplicaSet")
        | ("", "ReplicationController")
        | ("batch", "Job") => "/spec/template",
        ("batch", "CronJob") => "/spec/jobTemplate/spec/template",
        ("", "PodTemplate") => "/template",
        _ => return None,
    };
    object.pointer(path).is_some_and(Value::is_object).then_some(path)
}
