//! What is wrong with a text of YAML, and where: without the lines around it, which the parser would
//! quote, and without its advice to programmers.

use serde_saphyr::budget::BudgetBreach;
use serde_saphyr::{DefaultMessageFormatter, Error, MessageFormatter as _};

/// The reason and its place, in one line. It may name and quote what stands there: for texts that hold
/// no credentials.
pub fn problem(error: &Error) -> String {
    placed(error, reason(error))
}

/// A reason with the place of its error, where that is known.
pub fn placed(error: &Error, reason: String) -> String {
    match error.location() {
        Some(place) => format!("{reason} at line {}, column {}", place.line(), place.column()),
        None => reason,
    }
}

/// The reason alone.
pub fn reason(error: &Error) -> String {
    match error {
        Error::WithSnippet { error, .. } | Error::AliasError { error, .. } => reason(error),
        Error::MultipleDocuments { .. }
        | Error::Budget { breach: BudgetBreach::Documents { .. }, .. } => {
            "it holds several documents, one is expected".into()
        }
        Error::Budget { .. } => "it is too large, or too deeply nested, to be read".into(),
        Error::DuplicateMappingKey { key: Some(key), .. } => {
            format!("the key {key} is there twice")
        }
        Error::DuplicateMappingKey { key: None, .. } => "a key is there twice".into(),
        other => DefaultMessageFormatter.format_message(other).into_owned(),
    }
}
