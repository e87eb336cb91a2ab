//! Tables: the columns kubectl prints.

use crate::kind::{Kind, Rules};
use crate::object::{Object, at, items, text};
use serde_json::{Value, json};

/// Whether the columns are described, or were before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Columns {
    Shown,
    Told,
}

struct Column {
    name: String,
    kind: String,
    format: String,
    /// 0 is always shown.
    priority: i64,
    cell: Cell,
}

enum Cell {
    Name,
    Age,
    Path(String),
    Words(fn(&Object) -> String),
    Count(fn(&Object) -> usize),
}

pub(crate) fn table<'a>(
    kind: &Kind,
    objects: impl Iterator<Item = &'a Object>,
    include: &str,
    now: jiff::Timestamp,
    shown: Columns,
    revision: &str,
) -> Value {
    let columns = columns(kind);
    let definitions: Vec<Value> = columns
        .iter()
        .map(|column| {
            json!({
                "name": column.name, "type": column.kind, "format": column.format,
                "description": "", "priority": column.priority,
            })
        })
        .collect();
    let rows: Vec<Value> = objects
        .map(|object| {
            let cells: Vec<Value> =
                columns.iter().map(|column| cell(column, object, now)).collect();
            let mut row = json!({"cells": cells});
            match include {
                "None" => {}
                "Object" => row["object"] = crate::server::seen(kind, object).into_owned(),
                _ => {
                    row["object"] = json!({
                        "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1",
                        "metadata": object["metadata"],
                    });
                }
            }
            row
        })
        .collect();
    let definitions = if shown == Columns::Shown { json!(definitions) } else { Value::Null };
    json!({
        "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": {"resourceVersion": revision},
        "columnDefinitions": definitions, "rows": rows,
    })
}

fn cell(column: &Column, object: &Object, now: jiff::Timestamp) -> Value {
    match &column.cell {
        Cell::Name => json!(crate::object::name(object)),
        Cell::Age => json!(age(text(object, &["metadata", "creationTimestamp"]), now)),
        Cell::Words(words) => json!(words(object)),
        Cell::Count(count) => json!(count(object)),
        Cell::Path(path) => {
            let found = json_path(object, path);
            match (&*column.kind, found) {
                (_, None) => Value::Null,
                ("date", Some(Value::String(time))) => json!(age(&time, now)),
                ("string", Some(Value::String(text))) => json!(text),
                ("string", Some(other)) => json!(other.to_string()),
                (_, Some(other)) => other,
            }
        }
    }
}

/// How long ago, as kubectl prints it.
pub(crate) fn age(time: &str, now: jiff::Timestamp) -> String {
    let Ok(time) = time.parse::<jiff::Timestamp>() else { return "<unknown>".into() };
    let seconds = (now.as_second() - time.as_second()).max(0);
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match seconds {
        0..120 => format!("{seconds}s"),
        120..600 => match seconds % 60 {
            0 => format!("{minutes}m"),
            rest => format!("{minutes}m{rest}s"),
        },
        600..10_800 => format!("{minutes}m"),
        10_800..28_800 => match minutes % 60 {
            0 => format!("{hours}h"),
            rest => format!("{hours}h{rest}m"),
        },
        28_800..172_800 => format!("{hours}h"),
        172_800..691_200 => match hours % 24 {
            0 => format!("{days}d"),
            rest => format!("{days}d{rest}h"),
        },
        _ => format!("{days}d"),
    }
}

fn columns(kind: &Kind) -> Vec<Column> {
    let name = Column {
        name: "Name".into(),
        kind: "string".into(),
        format: "name".into(),
        priority: 0,
        cell: Cell::Name,
    };
    let age = || Column {
        name: "Age".into(),
        kind: "string".into(),
        format: String::new(),
        priority: 0,
        cell: Cell::Age,
    };
    let words = |name: &str, priority: i64, words: fn(&Object) -> String| Column {
        name: name.into(),
        kind: "string".into(),
        format: String::new(),
        priority,
        cell: Cell::Words(words),
    };
    let count = |name: &str, count: fn(&Object) -> usize| Column {
        name: name.into(),
        kind: "integer".into(),
        format: String::new(),
        priority: 0,
        cell: Cell::Count(count),
    };
    let mut all = vec![name];
    if let Rules::Custom(custom) = &kind.rules {
        all.extend(custom.columns.iter().map(|column| Column {
            name: text(column, &["name"]).to_owned(),
            kind: text(column, &["type"]).to_owned(),
            format: text(column, &["format"]).to_owned(),
            priority: column["priority"].as_i64().unwrap_or(0),
            cell: Cell::Path(text(column, &["jsonPath"]).to_owned()),
        }));
        if custom.columns.is_empty() {
            all.push(age());
        }
        return all;
    }
    match (&*kind.group, &*kind.plural) {
        ("", "namespaces") => {
            all.push(words("Status", 0, |o| text(o, &["status", "phase"]).into()))
        }
        ("", "nodes") => {
            all.push(words("Status", 0, |o| ready(o, "Ready", "NotReady")));
            all.push(words("Roles", 0, |_| "<none>".into()));
        }
        ("", "pods") => {
            all.push(words("Ready", 0, |o| {
                let all = items(o, &["spec", "containers"]).len();
                let told = items(o, &["status", "containerStatuses"]);
                format!("{}/{all}", told.iter().filter(|one| one["ready"] == true).count())
            }));
            all.push(words("Status", 0, |o| {
                if crate::object::is_deleting(o) {
                    "Terminating".into()
                } else {
                    text(o, &["status", "phase"]).into()
                }
            }));
            all.push(count("Restarts", |o| {
                let told = items(o, &["status", "containerStatuses"]).iter();
                told.filter_map(|one| one["restartCount"].as_u64()).sum::<u64>() as usize
            }));
            all.push(age());
            all.push(words("IP", 1, |o| or_none(text(o, &["status", "podIP"]))));
            all.push(words("Node", 1, |o| or_none(text(o, &["spec", "nodeName"]))));
            return all;
        }
        ("", "services") => {
            all.push(words("Type", 0, |o| text(o, &["spec", "type"]).into()));
            all.push(words("Cluster-IP", 0, |o| or_none(text(o, &["spec", "clusterIP"]))));
            all.push(words("External-IP", 0, external));
            all.push(words("Port(s)", 0, ports));
            all.push(age());
            all.push(words("Selector", 1, |o| pairs(at(o, &["spec", "selector"]))));
            return all;
        }
        ("", "configmaps") => all.push(count("Data", |o| {
            ["data", "binaryData"].iter().filter_map(|f| o[*f].as_object()).map(|m| m.len()).sum()
        })),
        ("", "secrets") => {
            all.push(words("Type", 0, |o| text(o, &["type"]).into()));
            all.push(count("Data", |o| o["data"].as_object().map_or(0, |map| map.len())));
        }
        ("", "endpoints") => all.push(words("Endpoints", 0, |o| {
            let subsets = items(o, &["subsets"]).iter();
            let ips = subsets.flat_map(|s| items(s, &["addresses"])).map(|a| text(a, &["ip"]));
            or_none(&ips.collect::<Vec<_>>().join(","))
        })),
        ("", "events") => {
            all.truncate(0);
            all.push(words("Last Seen", 0, |o| {
                age_of(text(o, &["lastTimestamp"]), text(o, &["eventTime"]))
            }));
            all.push(words("Type", 0, |o| text(o, &["type"]).into()));
            all.push(words("Reason", 0, |o| text(o, &["reason"]).into()));
            all.push(words("Object", 0, |o| {
                let kind = text(o, &["involvedObject", "kind"]).to_lowercase();
                format!("{kind}/{}", text(o, &["involvedObject", "name"]))
            }));
            all.push(words("Message", 0, |o| text(o, &["message"]).into()));
            return all;
        }
        ("discovery.k8s.io", "endpointslices") => {
            all.push(words("AddressType", 0, |o| text(o, &["addressType"]).into()));
            all.push(words("Ports", 0, |o| {
                let ports = items(o, &["ports"]).iter().map(|port| port["port"].to_string());
                or_unset(&ports.collect::<Vec<_>>().join(","))
            }));
            all.push(words("Endpoints", 0, |o| {
                let endpoints = items(o, &["endpoints"]).iter();
                let ips =
                    endpoints.flat_map(|e| items(e, &["addresses"])).filter_map(Value::as_str);
                or_unset(&ips.collect::<Vec<_>>().join(","))
            }));
        }
        ("coordination.k8s.io", "leases") => {
            all.push(words("Holder", 0, |o| text(o, &["spec", "holderIdentity"]).into()));
        }
        ("rbac.authorization.k8s.io", "rolebindings" | "clusterrolebindings") => {
            all.push(words("Role", 0, |o| {
                format!("{}/{}", text(o, &["roleRef", "kind"]), text(o, &["roleRef", "name"]))
            }));
        }
        ("rbac.authorization.k8s.io", _) | ("apiextensions.k8s.io", _) => {
            all.push(words("Created At", 0, |o| text(o, &["metadata", "creationTimestamp"]).into()))
        }
        _ => {}
    }
    if all.last().is_none_or(|last| last.name != "Created At") {
        all.push(age());
    }
    all
}

fn age_of(last: &str, first: &str) -> String {
    age(if last.is_empty() { first } else { last }, jiff::Timestamp::now())
}

fn or_none(text: &str) -> String {
    if text.is_empty() { "<none>".into() } else { text.into() }
}

fn or_unset(text: &str) -> String {
    if text.is_empty() { "<unset>".into() } else { text.into() }
}

fn ready(object: &Object, yes: &str, no: &str) -> String {
    let conditions = items(object, &["status", "conditions"]);
    match conditions.iter().find(|one| one["type"] == "Ready") {
        Some(one) if one["status"] == "True" => yes.into(),
        Some(_) => no.into(),
        None => "Unknown".into(),
    }
}

fn external(service: &Object) -> String {
    let ingress = items(service, &["status", "loadBalancer", "ingress"]).iter();
    let given = ingress.map(|one| {
        let ip = text(one, &["ip"]);
        if ip.is_empty() { text(one, &["hostname"]) } else { ip }
    });
    let given = given.collect::<Vec<_>>().join(",");
    match text(service, &["spec", "type"]) {
        "LoadBalancer" if given.is_empty() => "<pending>".into(),
        "ExternalName" => text(service, &["spec", "externalName"]).into(),
        _ => or_none(&given),
    }
}

fn ports(service: &Object) -> String {
    let ports = items(service, &["spec", "ports"]).iter().map(|port| {
        let node = port["nodePort"].as_i64().map(|node| format!(":{node}")).unwrap_or_default();
        format!("{}{node}/{}", port["port"], text(port, &["protocol"]))
    });
    or_none(&ports.collect::<Vec<_>>().join(","))
}

fn pairs(map: Option<&Value>) -> String {
    let pairs = map.and_then(Value::as_object).into_iter().flatten();
    let pairs = pairs.map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()));
    or_none(&pairs.collect::<Vec<_>>().join(","))
}

/// The JSON paths printer columns use: fields, indices, `[*]` and `[?(@.a=="b")]`.
pub(crate) fn json_path(object: &Value, path: &str) -> Option<Value> {
    let mut found = vec![object];
    let mut rest = path.trim_start_matches('$');
    while !rest.is_empty() {
        if let Some(inner) = rest.strip_prefix('[') {
            let (inside, after) = inner.split_once(']')?;
            rest = after;
            let filter = inside.strip_prefix("?(@.").and_then(|f| f.strip_suffix(')'));
            found = if let Some((field, wanted)) = filter.and_then(|f| f.split_once("==")) {
                let wanted = wanted.trim().trim_matches(['"', '\'']);
                let path: Vec<&str> = field.trim().split('.').collect();
                let all = found.iter().filter_map(|value| value.as_array()).flatten();
                all.filter(|item| text(item, &path) == wanted).collect()
            } else if inside == "*" {
                found.iter().filter_map(|value| value.as_array()).flatten().collect()
            } else if let Ok(index) = inside.parse::<usize>() {
                found.iter().filter_map(|value| value.get(index)).collect()
            } else {
                let name = inside.trim_matches(['"', '\'']);
                found.iter().filter_map(|value| value.get(name)).collect()
            };
        } else {
            let tail = rest.strip_prefix('.').unwrap_or(rest);
            // A dot may be part of a name: `\.`.
            let mut name = String::new();
            let mut letters = tail.char_indices().peekable();
            let mut end = tail.len();
            while let Some((at, letter)) = letters.next() {
                match letter {
                    '\\' => name.extend(letters.next().map(|(_, escaped)| escaped)),
                    '.' | '[' => {
                        end = at;
                        break;
                    }
                    _ => name.push(letter),
                }
            }
            rest = &tail[end..];
            if name.is_empty() {
                return None;
            }
            found = found.iter().filter_map(|value| value.get(&*name)).collect();
        }
    }
    match found[..] {
        [] => None,
        [one] => Some(one.clone()),
        [..] => {
            let words: Vec<String> = found
                .iter()
                .map(|value| value.as_str().map_or_else(|| value.to_string(), str::to_owned))
                .collect();
            Some(json!(words.join(",")))
        }
    }
}
