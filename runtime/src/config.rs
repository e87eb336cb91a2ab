//! A process's configuration file: YAML into a typed value, errors that name file, line and field.

use serde::de::DeserializeOwned;
use std::path::{Path, PathBuf};

/// Longest configuration file that is read, bytes.
pub const FILE_MAX: u64 = 16 * 1024 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error(
        "ISM1001 cannot read the configuration {path}: {source}. Fix: pass --config FILE with a file this user may read"
    )]
    Unreadable { path: PathBuf, source: std::io::Error },
    #[error(
        "ISM1002 the configuration {path} has {size} bytes; at most {FILE_MAX} are read. Fix: split it, or point at the right file"
    )]
    TooLarge { path: PathBuf, size: u64 },
    #[error(
        "ISM1003 the configuration {path} is not what was expected: {problem}. Fix: correct that line; unknown fields are refused so that a typo cannot be ignored"
    )]
    Invalid { path: PathBuf, problem: String },
}

/// Reads `path` into `T`; give `T` `#[serde(deny_unknown_fields, rename_all = "camelCase")]`.
pub fn load<T: DeserializeOwned>(path: &Path) -> Result<T, ConfigError> {
    let unreadable = |source| ConfigError::Unreadable { path: path.to_owned(), source };
    let size = std::fs::metadata(path).map_err(unreadable)?.len();
    if size > FILE_MAX {
        return Err(ConfigError::TooLarge { path: path.to_owned(), size });
    }
    let text = std::fs::read_to_string(path).map_err(unreadable)?;
    serde_saphyr::from_str(&text)
        .map_err(|e| ConfigError::Invalid { path: path.to_owned(), problem: e.to_string() })
}
