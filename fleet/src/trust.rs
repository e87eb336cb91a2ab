//! One root for the fleet, and an intermediate for each cluster.

use crate::authority::Authority;
use crate::{Home, trust_domain};
use anyhow::{Context, Result, ensure};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Command;

/// The offline root, as `isthmus trust init` left it in a folder.
pub struct Trust {
    dir: PathBuf,
    passphrase: PathBuf,
    /// What `trust init` said.
    pub said: String,
    /// PEM.
    pub root_certificate: String,
}

impl Trust {
    /// `isthmus trust init NAME`.
    pub fn init(home: &Home, name: &str, phrase: &str) -> Result<Self> {
        let dir = home.run.join("trust");
        std::fs::create_dir_all(&dir)?;
        let passphrase = home.run.join("passphrase");
        std::fs::write(&passphrase, format!("{phrase}\n"))?;
        std::fs::set_permissions(&passphrase, PermissionsExt::from_mode(0o600))?;
        let mut command = Command::new(&home.parts.isthmus);
        command.args(["trust", "init", name, "--dir"]).arg(&dir);
        command.arg("--passphrase-file").arg(&passphrase);
        let said = output(&mut command)?;
        let root_certificate = first_pem(&dir, "CERTIFICATE")?;
        Ok(Self { dir, passphrase, said, root_certificate })
    }

    /// `isthmus trust issue CLUSTER`: the manifest of Secret `cacerts`.
    pub fn cacerts(&self, home: &Home, cluster: &str) -> Result<String> {
        let mut command = Command::new(&home.parts.isthmus);
        command.args([
            "trust",
            "issue",
            cluster,
            "--trust-domain",
            &trust_domain(cluster),
            "--dir",
        ]);
        command.arg(&self.dir).arg("--passphrase-file").arg(&self.passphrase).args(["-o", "yaml"]);
        let manifest = output(&mut command)?;
        std::fs::write(self.dir.join(format!("{cluster}.cacerts.yaml")), &manifest)?;
        Ok(manifest)
    }

    /// The intermediate of a cluster, as one who stole it would use it.
    pub fn authority(&self, cluster: &str) -> Result<Authority> {
        use base64::Engine;
        let text = std::fs::read_to_string(self.dir.join(format!("{cluster}.cacerts.yaml")))?;
        let documents = crate::objects::parse(&text)?;
        let secret = documents.first().context("an empty manifest")?;
        let field = |name: &str| -> Result<String> {
            if let Some(text) = secret["stringData"][name].as_str() {
                return Ok(text.to_owned());
            }
            let text = secret["data"][name].as_str().with_context(|| format!("no {name}"))?;
            let bytes = base64::engine::general_purpose::STANDARD.decode(text)?;
            Ok(String::from_utf8(bytes)?)
        };
        Authority::from_pem(&field("ca-cert.pem")?, &field("ca-key.pem")?)
    }
}

/// Runs a command that must succeed; its stdout.
pub fn output(command: &mut Command) -> Result<String> {
    // Ctrl-C at the terminal is for us, who end things in order.
    let out = command.process_group(0).output().with_context(|| format!("starting {command:?}"))?;
    let stderr = String::from_utf8_lossy(&out.stderr);
    ensure!(out.status.success(), "{command:?} ended with {}: {stderr}", out.status);
    Ok(String::from_utf8(out.stdout)?)
}

/// The first file in `dir` with a PEM block of `label`.
fn first_pem(dir: &std::path::Path, label: &str) -> Result<String> {
    let begin = format!("-----BEGIN {label}-----");
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        if text.contains(&begin) {
            return Ok(text);
        }
    }
    anyhow::bail!("isthmus trust init left no {label} in {}", dir.display())
}
