//! The rows: one operation each, in an order in which later ones find what earlier ones made.

mod access;
mod custom;
mod endpoints;
mod foreign;
mod plain;
mod services;

pub(crate) use foreign::definitions;

use serde_json::Value;

#[derive(Debug, Clone, Copy)]
pub(crate) enum Who {
    Admin,
    Anonymous,
    Stranger,
}

/// One operation.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) method: &'static str,
    pub(crate) path: String,
    pub(crate) media: &'static str,
    pub(crate) body: String,
    pub(crate) who: Who,
    /// JSON pointers into the answer that are compared too.
    pub(crate) shows: &'static str,
    /// Why the answers are not the same.
    pub(crate) differs: Option<&'static str>,
    /// A path that is there soon after.
    pub(crate) brings: &'static str,
}

impl Row {
    pub(crate) fn new(name: &'static str, method: &'static str, path: impl Into<String>) -> Self {
        Self {
            name,
            method,
            path: path.into(),
            media: "application/json",
            body: String::new(),
            who: Who::Admin,
            shows: "",
            differs: None,
            brings: "",
        }
    }

    pub(crate) fn body(mut self, body: Value) -> Self {
        self.body = body.to_string();
        self
    }

    pub(crate) fn text(mut self, body: &str) -> Self {
        self.body = body.to_owned();
        self
    }

    pub(crate) fn who(mut self, who: Who) -> Self {
        self.who = who;
        self
    }

    pub(crate) fn shows(mut self, paths: &'static str) -> Self {
        self.shows = paths;
        self
    }

    pub(crate) fn differs(mut self, reason: &'static str) -> Self {
        self.differs = Some(reason);
        self
    }

    fn brings(mut self, path: &'static str) -> Self {
        self.brings = path;
        self
    }

    fn media(mut self, media: &'static str) -> Self {
        self.media = media;
        self
    }
}

pub(crate) fn post(name: &'static str, path: &str, body: Value) -> Row {
    Row::new(name, "POST", path).body(body)
}

pub(crate) fn put(name: &'static str, path: &str, body: Value) -> Row {
    Row::new(name, "PUT", path).body(body)
}

pub(crate) fn get(name: &'static str, path: &str) -> Row {
    Row::new(name, "GET", path)
}

pub(crate) fn delete(name: &'static str, path: &str) -> Row {
    Row::new(name, "DELETE", path)
}

pub(crate) fn merge(name: &'static str, path: &str, body: Value) -> Row {
    Row::new(name, "PATCH", path).body(body).media("application/merge-patch+json")
}

pub(crate) fn strategic(name: &'static str, path: &str, body: Value) -> Row {
    Row::new(name, "PATCH", path).body(body).media("application/strategic-merge-patch+json")
}

pub(crate) fn json_patch(name: &'static str, path: &str, body: Value) -> Row {
    Row::new(name, "PATCH", path).body(body).media("application/json-patch+json")
}

/// By manager `manager`; `path` may carry a query.
pub(crate) fn apply(name: &'static str, path: &str, manager: &str, body: Value) -> Row {
    let sign = if path.contains('?') { '&' } else { '?' };
    let path = format!("{path}{sign}fieldManager={manager}");
    Row::new(name, "PATCH", path).body(body).media("application/apply-patch+yaml")
}

pub(crate) fn rows() -> Vec<Row> {
    let mut all = plain::rows();
    all.extend(services::rows());
    all.extend(endpoints::rows());
    all.extend(access::rows());
    all.extend(custom::rows());
    all.extend(foreign::rows());
    all
}
