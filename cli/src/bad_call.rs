//! Mistakes in the words of a call that clap cannot see: they end it with exit 2, before any work.

use cluster::operator::NoSuchContext;
use std::fmt;

/// Words of the call that fit neither each other nor what they are about.
#[derive(Debug)]
pub(crate) struct BadCall(String);

impl fmt::Display for BadCall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for BadCall {}

pub(crate) fn bad_call(sentence: impl Into<String>) -> anyhow::Error {
    BadCall(sentence.into()).into()
}

/// Whether it was the words of the call; a context that is not there is one of them.
pub(crate) fn is_bad_call(error: &anyhow::Error) -> bool {
    error.is::<BadCall>() || no_context(error)
}

pub(crate) fn no_context(error: &anyhow::Error) -> bool {
    error.is::<NoSuchContext>()
}
