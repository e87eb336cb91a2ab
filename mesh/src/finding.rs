//! What was wrong with an object, and what we did instead: one sentence, kept beside the result.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Which object: `Service shop/hello`, `Secret isthmus-system/istio-remote-secret-west`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ObjectRef {
    pub kind: String,
    /// Empty for cluster-scoped objects.
    pub namespace: String,
    pub name: String,
}

impl ObjectRef {
    pub fn new(kind: &str, namespace: &str, name: &str) -> Self {
        Self { kind: kind.into(), namespace: namespace.into(), name: name.into() }
    }
}

impl TryFrom<String> for ObjectRef {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        let (kind, place) = text
            .split_once(' ')
            .ok_or("an object reads KIND NAMESPACE/NAME, or KIND NAME for cluster-scoped ones")?;
        let (namespace, name) = place.split_once('/').unwrap_or(("", place));
        Ok(Self::new(kind, namespace, name))
    }
}

impl From<ObjectRef> for String {
    fn from(object: ObjectRef) -> Self {
        object.to_string()
    }
}

impl fmt::Display for ObjectRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            write!(f, "{} {}", self.kind, self.name)
        } else {
            write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
        }
    }
}

/// How much it matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The object, or the named part of it, is not used.
    Refused,
    /// It is used, but not as its author may think.
    Warning,
    /// Worth knowing.
    Note,
}

/// One bad object costs itself only: here is what, where in it, why, and how to mend it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Finding {
    pub severity: Severity,
    /// `ISM` and four digits; `isthmus explain CODE` tells more.
    pub code: u16,
    pub object: ObjectRef,
    /// JSON path in the object, as kubectl writes it: `spec.ports[0].number`; may be empty.
    pub field: String,
    /// What is wrong and what we did instead, a full sentence without the object's name.
    pub problem: String,
    /// What to do about it, an imperative sentence.
    pub fix: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ISM{:04} {}", self.code, self.object)?;
        if !self.field.is_empty() {
            write!(f, " {}", self.field)?;
        }
        write!(f, ": {} Fix: {}", self.problem, self.fix)
    }
}
