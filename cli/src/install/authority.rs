//! The signing key of each cluster: kept where it is good, else issued from the root's folder.

use super::site::Site;
use crate::remedy;
use crate::trust::{cacerts_secret, passphrase};
use ::trust::bundle::Bundle;
use ::trust::issue::Issuer;
use ::trust::root::{self, RootFiles};
use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use std::path::Path;
use std::time::{Duration, SystemTime};

/// A key that is good for less than this is issued anew.
const RENEW_BEFORE: Duration = Duration::from_secs(60 * 86_400);
/// How long an issued one is good; never longer than the root.
const VALIDITY: Duration = Duration::from_secs(365 * 86_400);

/// The mesh's root, opened as far as it is needed.
pub(super) struct Root {
    files: Option<RootFiles>,
    passphrase: Option<String>,
}

/// What is to be done about a cluster's key.
#[derive(Debug, PartialEq, Eq)]
enum Need {
    /// It stands, and is good.
    Keep,
    Issue,
}

impl Root {
    /// Reads the root's folder, and asks for the passphrase where a cluster needs a key.
    pub(super) fn open(
        sites: &[Site],
        folder: Option<&Path>,
        passphrase_file: Option<&Path>,
    ) -> Result<Self> {
        let files = folder.map(root::read_files).transpose()?;
        let mut needed = false;
        for site in sites {
            needed |= need(site, files.as_ref())? == Need::Issue;
        }
        let passphrase = needed.then(|| passphrase(passphrase_file, false)).transpose()?;
        Ok(Self { files, passphrase })
    }

    /// Secret `cacerts`, where it has to be written.
    pub(super) fn cacerts(&self, site: &Site) -> Result<Option<Value>> {
        let (Need::Issue, Some(files), Some(passphrase)) =
            (need(site, self.files.as_ref())?, &self.files, &self.passphrase)
        else {
            return Ok(None);
        };
        let made = root::issue_intermediate(
            &files.certificate_pem,
            &files.encrypted_key_pem,
            passphrase,
            &site.trust_domain,
            VALIDITY,
        )?;
        let namespace = cluster::secret::NAMESPACE;
        Ok(Some(cacerts_secret(&made, &site.cluster, &site.trust_domain, namespace)))
    }

    /// The root certificates that a cluster's workloads trust.
    pub(super) fn pem<'a>(&'a self, site: &'a Site) -> Result<&'a str> {
        if let Some(files) = &self.files {
            return Ok(&files.certificate_pem);
        }
        let stands = site.cacerts.as_ref().map(|cacerts| cacerts.root_cert.as_str());
        let stands = stands.with_context(|| no_root(site))?;
        agreed(site, stands)?;
        Ok(stands)
    }
}

/// As [`Root::pem`], with the key left locked.
pub(super) fn root_pem(site: &Site, folder: Option<&Path>) -> Result<String> {
    let root = Root { files: folder.map(root::read_files).transpose()?, passphrase: None };
    Ok(root.pem(site)?.to_owned())
}

fn no_root(site: &Site) -> String {
    format!(
        "ISM2078 {} has no Secret {}/cacerts yet, and no root to issue one from was given. Fix: make \
         a root once with `isthmus trust init MESH --dir DIR`, then pass --trust-dir DIR",
        site.operator.context,
        cluster::secret::NAMESPACE
    )
}

/// Where a cluster that is installed trusts other roots than those of its signing key, only the operator
/// knows which are meant.
fn agreed(site: &Site, stands: &str) -> Result<()> {
    // Roots that cannot be read are trusted by nobody, and written anew.
    let Some(Ok(roots)) = site.roots.as_deref().map(Bundle::from_pem) else { return Ok(()) };
    let context = &site.operator.context;
    ensure!(
        roots == Bundle::from_pem(stands)?,
        "ISM2089 Secret {}/cacerts of {context} is of another root than ConfigMap {}/isthmus-mesh names: \
         what it signs is refused by every cluster that trusts those. Nothing was changed. Fix: where the \
         Secret is wrong, {}; where it is right, pass its root's folder as --trust-dir",
        cluster::secret::NAMESPACE,
        mesh::export::ROOT_NAMESPACE,
        remedy::another_root(context, site.name())
    );
    Ok(())
}

fn need(site: &Site, files: Option<&RootFiles>) -> Result<Need> {
    let Some(cacerts) = &site.cacerts else {
        ensure!(files.is_some(), "{}", no_root(site));
        return Ok(Need::Issue);
    };
    let stands = Bundle::from_pem(&cacerts.root_cert)?.fingerprint();
    if let Some(files) = files {
        let given = Bundle::from_pem(&files.certificate_pem)?.fingerprint();
        ensure!(
            stands == given,
            "ISM2079 Secret {}/cacerts of {} is of another root ({}) than --trust-dir ({}): every \
             workload there would be cut off. Fix: name the folder of that root, or leave --trust-dir \
             out",
            cluster::secret::NAMESPACE,
            site.operator.context,
            &stands[..16],
            &given[..16]
        );
    }
    if files.is_none() {
        agreed(site, &cacerts.root_cert)?;
    }
    let issuer = Issuer::from_cacerts(
        &cacerts.ca_cert,
        &cacerts.cert_chain,
        &cacerts.ca_key,
        &cacerts.root_cert,
    );
    let left = issuer.map(|issuer| issuer.expires().duration_since(SystemTime::now()));
    let good = matches!(left, Ok(Ok(left)) if left > RENEW_BEFORE);
    Ok(if good || files.is_none() { Need::Keep } else { Need::Issue })
}
