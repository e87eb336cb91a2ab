//! What a proxy keeps on disk for starts while nobody answers: files of mode 0600, written whole.

use anyhow::Context as _;
use mesh::program::Program;
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use trust::svid::Svid;

/// Longest file that is read back, bytes.
const FILE_MAX: u64 = 256 * 1024 * 1024;

/// A folder of the proxy's own.
#[derive(Debug, Clone)]
pub(crate) struct State {
    folder: PathBuf,
}

impl State {
    pub(crate) fn open(folder: PathBuf) -> anyhow::Result<Self> {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder).with_context(
            || {
                format!(
                    "ISM1015 cannot make the state folder {}. Fix: name one this user may write, \
                     or leave `state` out",
                    folder.display()
                )
            },
        )?;
        Ok(Self { folder })
    }

    /// The last good configuration; empty where there is none. One that cannot be read is none:
    /// the control plane will tell it again.
    pub(crate) fn program(&self) -> Program {
        let Some(text) = self.read("program.json") else { return Program::new() };
        match xds::codec::from_json(&text) {
            Ok(program) => {
                let age = self.age("program.json");
                tracing::info!(
                    resources = program.len(),
                    age_seconds = age,
                    "last good configuration"
                );
                program
            }
            Err(error) => {
                tracing::warn!(%error, "the last good configuration cannot be read, starting empty");
                Program::new()
            }
        }
    }

    pub(crate) fn save_program(&self, program: &Program) -> anyhow::Result<()> {
        self.write("program.json", &xds::codec::to_json(program).to_string())
    }

    pub(crate) fn svid(&self) -> Option<Svid> {
        // Key and chain are one file, so that they cannot be of two renewals.
        let text = self.read("svid.pem")?;
        match Svid::from_pem(&text, &text) {
            Ok(svid) => Some(svid),
            Err(error) => {
                tracing::warn!(%error, "the kept identity cannot be read, asking for another");
                None
            }
        }
    }

    pub(crate) fn save_svid(&self, svid: &Svid) -> anyhow::Result<()> {
        self.write("svid.pem", &format!("{}{}", svid.chain_pem(), svid.key_pem().reveal()))
    }

    fn read(&self, name: &str) -> Option<String> {
        let path = self.folder.join(name);
        if std::fs::metadata(&path).ok()?.len() > FILE_MAX {
            tracing::warn!(path = %path.display(), "a state file is too large, it is not read");
            return None;
        }
        std::fs::read_to_string(path).ok()
    }

    fn age(&self, name: &str) -> Option<u64> {
        let written = std::fs::metadata(self.folder.join(name)).ok()?.modified().ok()?;
        Some(written.elapsed().unwrap_or_default().as_secs())
    }

    fn write(&self, name: &str, text: &str) -> anyhow::Result<()> {
        write_private(&self.folder, name, text)
    }
}

/// Mode 0600, and whole or not at all: a crash between leaves the former file.
pub(crate) fn write_private(folder: &Path, name: &str, text: &str) -> anyhow::Result<()> {
    let (path, new) = (folder.join(name), folder.join(format!(".{name}.new")));
    let failed = |path: &Path| format!("cannot write {}", path.display());
    // A leftover may have another mode: it is made anew.
    let _ = std::fs::remove_file(&new);
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&new)
        .with_context(|| failed(&new))?;
    file.write_all(text.as_bytes()).with_context(|| failed(&new))?;
    file.sync_data().with_context(|| failed(&new))?;
    std::fs::rename(&new, &path).with_context(|| failed(&path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn state_is_private_and_survives_garbage() {
        let folder = tempfile::tempdir().unwrap();
        let state = State::open(folder.path().join("deep/er")).unwrap();
        assert!(state.program().is_empty());
        state.save_program(&Program::new()).unwrap();
        let file = folder.path().join("deep/er/program.json");
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        std::fs::write(&file, "{not json").unwrap();
        assert!(state.program().is_empty());
        assert!(state.svid().is_none());
    }

    #[test]
    fn an_identity_is_found_again() {
        let folder = tempfile::tempdir().unwrap();
        let state = State::open(folder.path().into()).unwrap();
        let root = trust::root::create("test", "a long passphrase").unwrap();
        let domain = "west.mesh".parse().unwrap();
        let year = std::time::Duration::from_secs(365 * 86_400);
        let ca = trust::root::issue_intermediate(
            &root.certificate_pem,
            &root.encrypted_key_pem,
            "a long passphrase",
            &domain,
            year,
        )
        .unwrap();
        let issuer = trust::issue::Issuer::from_cacerts(
            &ca.ca_cert,
            &ca.cert_chain,
            ca.ca_key.reveal(),
            &ca.root_cert,
        )
        .unwrap();
        let identity = "spiffe://west.mesh/ns/shop/sa/hello".parse().unwrap();
        let (key, csr) = trust::issue::new_key_and_csr(&identity);
        let now = std::time::SystemTime::now();
        let chain = issuer.sign(&csr, &identity, std::time::Duration::ZERO, now).unwrap();
        let svid = Svid::from_pem(&chain.concat(), key.reveal()).unwrap();
        state.save_svid(&svid).unwrap();
        let found = state.svid().unwrap();
        assert_eq!((found.identity, found.chain), (svid.identity, svid.chain));
    }
}
