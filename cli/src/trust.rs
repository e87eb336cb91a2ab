//! `isthmus trust init` and `trust issue`: one root kept offline, one intermediate a cluster.

use crate::Target;
use crate::output;
use ::trust::bundle::Bundle;
use ::trust::root;
use anyhow::{Context as _, Result, ensure};
use clap::{Args, Subcommand};
use mesh::name::{ClusterId, TrustDomain};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

const DAY: Duration = Duration::from_secs(86_400);

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Make a root: its certificate, and its key under a passphrase. It belongs in no cluster.
    Init(Init),
    /// Make a cluster's intermediate and print it as Secret `cacerts`.
    Issue(Issue),
}

#[derive(Debug, Args)]
pub(crate) struct Init {
    /// The mesh's name, as the root certificate will carry it.
    name: String,
    /// Folder for both files (made if absent); never inside a git work tree.
    #[arg(long)]
    dir: PathBuf,
    /// File with the passphrase; asked for at the terminal if not given.
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Issue {
    /// The cluster's id, as in its ConfigMap isthmus-mesh.
    cluster: String,
    /// Folder that `trust init` filled.
    #[arg(long)]
    dir: PathBuf,
    /// Trust domain it may sign for; CLUSTER.mesh if not given.
    #[arg(long)]
    trust_domain: Option<String>,
    /// File with the passphrase; asked for at the terminal if not given.
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
    /// How long it is good, days.
    #[arg(long, default_value_t = 365, value_parser = clap::value_parser!(u32).range(1..=3650))]
    days: u32,
    /// Namespace of the signing key, which the control plane alone may read.
    #[arg(long, default_value = cluster::secret::NAMESPACE)]
    namespace: String,
    /// Apply the Secret, and its namespace, to this cluster instead of printing it.
    #[arg(long)]
    apply: bool,
    #[command(flatten)]
    target: Target,
    #[arg(short, long, value_enum, default_value_t = output::Language::Yaml)]
    output: output::Language,
}

pub(crate) fn passphrase(file: Option<&Path>, twice: bool) -> Result<String> {
    if let Some(path) = file {
        let text = std::fs::read_to_string(path).with_context(|| {
            format!(
                "ISM2040 cannot read the passphrase from {}. Fix: give a readable file",
                path.display()
            )
        })?;
        return Ok(text.trim_end_matches(['\r', '\n']).to_owned());
    }
    let ask = |what: &str| {
        rpassword::prompt_password(what).context(
            "ISM2040 no terminal to ask for the passphrase. Fix: pass --passphrase-file FILE",
        )
    };
    let first = ask("passphrase of the root's key: ")?;
    if twice {
        ensure!(
            first == ask("the same again: ")?,
            "ISM2040 the two differ. Fix: type the same twice"
        );
    }
    Ok(first)
}

/// Secret `cacerts` of a cluster, in the shape of Istio's plug-in authorities.
pub(crate) fn cacerts_secret(
    made: &root::Cacerts,
    cluster: &ClusterId,
    domain: &TrustDomain,
    namespace: &str,
) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Secret", "type": "Opaque",
        "metadata": {
            "name": "cacerts", "namespace": namespace,
            "labels": {"app.kubernetes.io/managed-by": "isthmus-cli", "app.kubernetes.io/part-of": "isthmus"},
            "annotations": {"isthmus.dev/trust-domain": domain.as_str(), "isthmus.dev/cluster": cluster.as_str()},
        },
        "stringData": {
            "ca-cert.pem": made.ca_cert, "ca-key.pem": made.ca_key.reveal(),
            "root-cert.pem": made.root_cert, "cert-chain.pem": made.cert_chain,
        },
    })
}

impl Verb {
    pub(crate) async fn run(self) -> Result<ExitCode> {
        match self {
            Self::Init(init) => init.run(),
            Self::Issue(issue) => issue.run().await,
        }
    }
}

impl Init {
    fn run(self) -> Result<ExitCode> {
        let passphrase = passphrase(self.passphrase_file.as_deref(), true)?;
        let files = root::create(&self.name, &passphrase)?;
        let (certificate, key) = root::write_files(&self.dir, &files)?;
        let bundle = Bundle::from_pem(&files.certificate_pem)?;
        say!("  root         {}  {}", self.name, bundle.fingerprint());
        say!("  certificate  {}", certificate.display());
        say!(
            "  key          {} (encrypted; keep it safe, it belongs in no cluster)",
            key.display()
        );
        say!("next: isthmus trust issue CLUSTER --dir {}", self.dir.display());
        Ok(ExitCode::SUCCESS)
    }
}

impl Issue {
    async fn run(self) -> Result<ExitCode> {
        let cluster: ClusterId =
            self.cluster.parse().context("ISM2041 the cluster's id. Fix: correct it")?;
        let domain = self.trust_domain.clone().unwrap_or_else(|| format!("{cluster}.mesh"));
        let domain: TrustDomain =
            domain.parse().context("ISM2041 --trust-domain. Fix: correct it")?;
        let files = root::read_files(&self.dir)?;
        let passphrase = passphrase(self.passphrase_file.as_deref(), false)?;
        let made = root::issue_intermediate(
            &files.certificate_pem,
            &files.encrypted_key_pem,
            &passphrase,
            &domain,
            DAY * self.days,
        )?;
        let secret = cacerts_secret(&made, &cluster, &domain, &self.namespace);
        if self.apply {
            let operator = self.target.load().await?;
            let namespace = json!({
                "apiVersion": "v1", "kind": "Namespace", "metadata": {"name": self.namespace},
            });
            operator.apply(&[namespace, secret]).await?;
            say!(
                "  intermediate  {domain} for {cluster}, {} days, in {}",
                self.days,
                operator.context
            );
            return Ok(ExitCode::SUCCESS);
        }
        note!("this Secret holds {cluster}'s signing key: apply it, do not store it");
        output::value(self.output.into(), &secret)?;
        Ok(ExitCode::SUCCESS)
    }
}
