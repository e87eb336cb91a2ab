//! A few files that outlive the process: written whole, 0600, and only when they differ.

use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// Longest file that is read back, bytes.
const FILE_MAX: u64 = 64 * 1024 * 1024;

/// One file in the state folder; does nothing where there is no folder.
#[derive(Debug)]
pub(crate) struct Store {
    path: Option<PathBuf>,
    last: String,
}

impl Store {
    pub(crate) fn new(folder: Option<&Path>, name: &str) -> Self {
        Self { path: folder.map(|folder| folder.join(name)), last: String::new() }
    }

    /// What was written last, if it can be read; a broken file is as good as none.
    pub(crate) fn load<T: DeserializeOwned>(&self) -> Option<T> {
        let path = self.path.as_ref()?;
        let size = std::fs::metadata(path).ok()?.len();
        let text = (size <= FILE_MAX).then(|| std::fs::read_to_string(path).ok()).flatten()?;
        match serde_json::from_str(&text) {
            Ok(value) => Some(value),
            Err(error) => {
                tracing::warn!(%error, path = %path.display(), "a saved state is not readable, starting without it");
                None
            }
        }
    }

    /// Writes `value`, unless it is what was written last. A full disk costs a warning, not the mesh.
    pub(crate) fn save<T: Serialize>(&mut self, value: &T) {
        let Some(path) = &self.path else { return };
        let text = serde_json::to_string(value).expect("a saved state is plain data");
        if text == self.last {
            return;
        }
        match write(path, &text) {
            Ok(()) => self.last = text,
            Err(error) => {
                tracing::warn!(%error, path = %path.display(), "a state could not be saved")
            }
        }
    }
}

/// A new file takes the old one's place, so that a crash leaves one or the other.
fn write(path: &Path, text: &str) -> std::io::Result<()> {
    let new = path.with_extension("new");
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&new)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&new, path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn what_is_saved_is_loaded_and_private() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = Store::new(Some(folder.path()), "links.json");
        assert_eq!(store.load::<Vec<u8>>(), None);
        store.save(&vec![1, 2]);
        assert_eq!(store.load::<Vec<u8>>(), Some(vec![1, 2]));
        let mode =
            std::fs::metadata(folder.path().join("links.json")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        std::fs::write(folder.path().join("links.json"), "{").unwrap();
        assert_eq!(store.load::<Vec<u8>>(), None);
    }
}
