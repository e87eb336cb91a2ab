//! What is wrong with a text of YAML that may hold credentials: the reason and its place, and nothing
//! of the text itself.

use crate::plain::plain;
use runtime::yaml;
use serde_saphyr::Error;

/// Longest reason, characters.
const REASON_MAX: usize = 160;

/// The parser's error in one sentence. Its own rendering quotes the lines around.
pub(crate) fn told(error: &Error) -> String {
    let names = matches!(
        error.without_snippet(),
        Error::SerdeUnknownField { .. } | Error::SerdeMissingField { .. }
    );
    yaml::placed(error, plain(&hidden(&yaml::reason(error), names), REASON_MAX))
}

/// Without what is quoted: it is the document's. Names of fields, in backticks, may stay.
fn hidden(message: &str, names: bool) -> String {
    let mut out = String::new();
    let mut quoted = None;
    let mut chars = message.chars();
    while let Some(c) = chars.next() {
        match (quoted, c) {
            (Some(_), '\\') => _ = chars.next(),
            (Some(quote), c) if c == quote => {
                quoted = None;
                out.push_str("..");
            }
            (Some(_), _) => {}
            (None, '"') => quoted = Some(c),
            (None, '`') if !names => quoted = Some(c),
            (None, c) => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;
    use serde_json::Value;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code, reason = "read from the text, not by the test")]
    struct One {
        port: u16,
    }

    #[test]
    fn a_reason_has_its_place_and_nothing_of_the_document() {
        let secret = "eyJSECRET";
        let cases = [
            (format!("token: {secret}\na: [\nb: {secret}]: c\n"), "line "),
            (format!("port: {secret}\n"), "line 1, column 7"),
            (format!("port: \"{secret}\\\"{secret}\"\n"), "line 1"),
            ("port: 1\nprot: 2\n".to_owned(), "`prot`"),
            ("port: 1\nport: 2\n".to_owned(), "the key port is there twice at line 2"),
            ("port: 1\n---\nport: 2\n".to_owned(), "several documents, one is expected"),
            ("[".repeat(300), "recursion limit exceeded at line 1"),
        ];
        for (text, word) in cases {
            let said = match serde_saphyr::from_str::<One>(&text) {
                Err(error) => told(&error),
                Ok(_) => panic!("{text} can be read"),
            };
            assert!(said.contains(word) && !said.contains(secret), "{text}: {said}");
            let advice = ["from_str", "Options", "breach", "|", "\n"];
            assert!(!advice.iter().any(|word| said.contains(word)), "{said}");
        }
        let many = format!("[{}]", "a,".repeat(250_001));
        let said = told(&serde_saphyr::from_str::<Value>(&many).unwrap_err());
        assert!(said.starts_with("it is too large"), "{said}");
    }
}
