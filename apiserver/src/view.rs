//! The form an answer takes: the object, its metadata alone, or a table for people.

use crate::kind::Kind;
use crate::object::Object;
use crate::refusal::Refusal;
use crate::server::seen;
use crate::table::{self, Columns};
use http::{HeaderMap, header};
use serde_json::{Value, json};

/// What the client wants to read.
#[derive(Debug, Clone)]
pub(crate) enum View {
    Whole,
    Metadata,
    Table {
        include: String,
        now: jiff::Timestamp,
        headed: bool,
    },
    /// Discovery in one answer.
    Aggregated,
}

impl View {
    /// By the `Accept` header: the first form that can be given.
    pub(crate) fn wanted(
        headers: &HeaderMap,
        include: &str,
        now: jiff::Timestamp,
    ) -> Result<Self, Refusal> {
        let accept = headers.get(header::ACCEPT).and_then(|text| text.to_str().ok());
        let accept = accept.unwrap_or_default();
        if accept.trim().is_empty() {
            return Ok(Self::Whole);
        }
        for choice in accept.split(',') {
            let mut words = choice.split(';').map(str::trim);
            let media = words.next().unwrap_or_default();
            if !["application/json", "*/*", "application/*", "application/yaml"].contains(&media) {
                continue;
            }
            let words: Vec<(&str, &str)> = words.filter_map(|word| word.split_once('=')).collect();
            let word =
                |name: &str| words.iter().find(|(key, _)| *key == name).map(|(_, value)| *value);
            match (word("as"), word("v")) {
                (None, _) => return Ok(Self::Whole),
                (Some("Table"), Some("v1")) => {
                    return Ok(Self::Table { include: include.to_owned(), now, headed: false });
                }
                (Some("PartialObjectMetadata" | "PartialObjectMetadataList"), Some("v1")) => {
                    return Ok(Self::Metadata);
                }
                (Some("APIGroupDiscoveryList"), Some("v2")) => return Ok(Self::Aggregated),
                _ => {}
            }
        }
        let message = "only the following media types are accepted: application/json";
        Err(Refusal::new(406, "NotAcceptable", message))
    }

    /// One object.
    pub(crate) fn one(&self, kind: &Kind, object: &Object) -> Value {
        match self {
            Self::Whole | Self::Aggregated => seen(kind, object).into_owned(),
            Self::Metadata => metadata(object),
            Self::Table { include, now, .. } => table::table(
                kind,
                std::iter::once(object),
                include,
                *now,
                Columns::Shown,
                object_revision(object),
            ),
        }
    }

    /// One object of a watch: a table's columns are told once.
    pub(crate) fn streamed(&mut self, kind: &Kind, object: &Object) -> Value {
        match self {
            Self::Whole | Self::Aggregated => seen(kind, object).into_owned(),
            Self::Metadata => metadata(object),
            Self::Table { include, now, headed } => {
                *now = jiff::Timestamp::now();
                let columns = if *headed { Columns::Told } else { Columns::Shown };
                *headed = true;
                table::table(
                    kind,
                    std::iter::once(object),
                    include,
                    *now,
                    columns,
                    object_revision(object),
                )
            }
        }
    }

    /// A bookmark.
    pub(crate) fn marked(&self, kind: &Kind, mark: Object) -> Value {
        match self {
            Self::Whole | Self::Aggregated => mark,
            Self::Metadata => metadata(&mark),
            Self::Table { include, now, .. } => {
                let revision = object_revision(&mark).to_owned();
                table::table(kind, std::iter::once(&mark), include, *now, Columns::Told, &revision)
            }
        }
    }

    /// Many objects with the metadata of their list.
    pub(crate) fn many<'a>(
        &self,
        kind: &Kind,
        objects: impl Iterator<Item = &'a Object>,
        list: Value,
    ) -> Value {
        match self {
            Self::Whole | Self::Aggregated => {
                let items: Vec<Value> =
                    objects.map(|object| seen(kind, object).into_owned()).collect();
                json!({
                    "kind": format!("{}List", kind.kind), "apiVersion": kind.api_version(),
                    "metadata": list, "items": items,
                })
            }
            Self::Metadata => {
                let items: Vec<Value> = objects.map(metadata).collect();
                json!({
                    "kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1",
                    "metadata": list, "items": items,
                })
            }
            Self::Table { include, now, .. } => {
                let mut table = table::table(kind, objects, include, *now, Columns::Shown, "");
                table["metadata"] = list;
                table
            }
        }
    }
}

fn object_revision(object: &Object) -> &str {
    crate::object::text(object, &["metadata", "resourceVersion"])
}

fn metadata(object: &Object) -> Value {
    json!({
        "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1",
        "metadata": object["metadata"],
    })
}
