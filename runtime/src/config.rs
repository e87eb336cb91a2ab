//! A process's configuration: YAML from a file or a variable of the environment into a typed value,
//! errors that name place, line and field.

use crate::yaml;
use serde::de::DeserializeOwned;
use std::io::Read as _;
use std::path::{Path, PathBuf};

/// Longest configuration that is read, bytes.
pub const FILE_MAX: u64 = 16 * 1024 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error(
        "ISM1001 cannot read the configuration {path}: {source}. Fix: pass --config FILE with a file this user may read"
    )]
    Unreadable { path: PathBuf, source: std::io::Error },
    #[error(
        "ISM1002 the configuration {path} has more than {FILE_MAX} bytes. Fix: split it, or point at the right file"
    )]
    TooLarge { path: PathBuf },
    #[error(
        "ISM1003 the configuration {place} is not what was expected: {problem}. Fix: correct that line; unknown fields are refused so that a typo cannot be ignored"
    )]
    Invalid { place: String, problem: String },
    #[error(
        "ISM1008 there is no configuration in ${name}: the variable {problem}. Fix: set it to the configuration's YAML, or pass --config FILE"
    )]
    Unset { name: String, problem: &'static str },
}

/// Reads `path` into `T`; give `T` `#[serde(deny_unknown_fields, rename_all = "camelCase")]`.
pub fn load<T: DeserializeOwned>(path: &Path) -> Result<T, ConfigError> {
    let unreadable = |source| ConfigError::Unreadable { path: path.to_owned(), source };
    let mut text = String::new();
    // No longer than that of a pipe either, which does not say its length before.
    let file = std::fs::File::open(path).map_err(unreadable)?;
    file.take(FILE_MAX + 1).read_to_string(&mut text).map_err(unreadable)?;
    if text.len() as u64 > FILE_MAX {
        return Err(ConfigError::TooLarge { path: path.to_owned() });
    }
    parse(&text, || path.display().to_string())
}

/// The same from the text of a variable of the environment, as a pod's kubelet fills it in.
pub fn load_variable<T: DeserializeOwned>(name: &str) -> Result<T, ConfigError> {
    let unset = |problem| ConfigError::Unset { name: name.to_owned(), problem };
    let text = std::env::var_os(name).ok_or_else(|| unset("is not set"))?;
    let text = text.into_string().map_err(|_| unset("is not UTF-8"))?;
    parse(&text, || format!("${name}"))
}

fn parse<T: DeserializeOwned>(
    text: &str,
    place: impl FnOnce() -> String,
) -> Result<T, ConfigError> {
    serde_saphyr::from_str(text)
        .map_err(|error| ConfigError::Invalid { place: place(), problem: yaml::problem(&error) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct One {
        #[allow(dead_code, reason = "read from the text, not by the test")]
        port: u16,
    }

    #[test]
    fn a_problem_is_one_line_without_the_lines_around_it() {
        let cases = [
            ("# eyJSECRET\nprot: 1\n", "unknown field `prot`"),
            ("port: 1\nport: 2\n", "the key port is there twice at line 2, column 1"),
            ("port: 1\n---\nport: 2\n", "it holds several documents, one is expected"),
            ("port: [ # eyJSECRET\n", " at line "),
        ];
        for (text, word) in cases {
            let said = parse::<One>(text, || "here".into()).unwrap_err().to_string();
            assert!(said.contains(word) && said.contains("ISM1003"), "{text}: {said}");
            assert!(
                !["SECRET", "\n", "Options", "from_str"].iter().any(|it| said.contains(it)),
                "{said}"
            );
        }
        let many = format!("[{}]", "1,".repeat(250_001));
        let said = parse::<serde_json::Value>(&many, || "here".into()).unwrap_err().to_string();
        assert!(said.contains("it is too large"), "{said}");
    }

    #[test]
    fn a_variable_is_read_like_a_file() {
        // Cargo sets these for every test, so nothing has to be changed in this process.
        let wrong = load_variable::<One>("CARGO_PKG_NAME").unwrap_err().to_string();
        assert!(wrong.starts_with("ISM1003 the configuration $CARGO_PKG_NAME is not"), "{wrong}");
        let unset = load_variable::<One>("ISTHMUS_NO_SUCH_VARIABLE").unwrap_err().to_string();
        assert!(unset.starts_with("ISM1008 ") && unset.contains("is not set"), "{unset}");
        assert!(
            load_variable::<String>("CARGO_PKG_NAME").is_ok_and(|name| name.contains("runtime"))
        );
    }
}
