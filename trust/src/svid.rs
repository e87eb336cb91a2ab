//! A workload's certificate and key: made and kept on the workload, never printed.

use crate::issue::KeyPem;
use crate::{pem, tls, verify};
use mesh::name::Identity;
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// An X.509-SVID with its key, as TLS presents it.
pub struct Svid {
    pub identity: Identity,
    /// Leaf first, without the root: the peer has its own.
    pub chain: Vec<CertificateDer<'static>>,
    pub not_before: SystemTime,
    pub not_after: SystemTime,
    key: PrivateKeyDer<'static>,
    certified: Arc<CertifiedKey>,
}

/// Why certificate and key are no SVID.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "ISM5402 the workload certificate cannot be used: {0}. Fix: ask the control plane for a new \
     one; a chain file holds the leaf first, then the intermediate, and the key file the leaf's key"
)]
pub struct NotAnSvid(String);

impl Svid {
    /// Reads a chain, leaf first (roots at its end are dropped), and the leaf's key, PKCS#8 or SEC1.
    pub fn from_pem(chain_pem: &str, key_pem: &str) -> Result<Self, NotAnSvid> {
        let mut chain =
            pem::certificates(chain_pem).map_err(|e| NotAnSvid(format!("of the chain, {e}")))?;
        let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes())
            .map_err(|_| NotAnSvid("the key is not a PEM private key".into()))?;
        while chain.len() > 1 && self_issued(&chain[chain.len() - 1]) {
            chain.pop();
        }
        let leaf = &chain[0];
        let identity = verify::claimed(leaf).map_err(|e| NotAnSvid(e.to_string()))?;
        let (not_before, not_after) =
            validity(leaf).ok_or_else(|| NotAnSvid("its validity is not readable".into()))?;
        let certified = CertifiedKey::from_der(chain.clone(), key.clone_key(), tls::provider())
            .map_err(|e| NotAnSvid(format!("key and certificate do not fit: {e}")))?;
        let certified = Arc::new(certified);
        Ok(Self { identity, chain, not_before, not_after, key, certified })
    }

    /// The chain as PEM, leaf first, without the root.
    pub fn chain_pem(&self) -> String {
        self.chain.iter().map(|certificate| pem::certificate(certificate)).collect()
    }

    /// The key, for an agent that serves it to a proxy on the same machine.
    pub fn key_pem(&self) -> KeyPem {
        let label = match self.key {
            PrivateKeyDer::Sec1(_) => "EC PRIVATE KEY",
            PrivateKeyDer::Pkcs1(_) => "RSA PRIVATE KEY",
            // PKCS#8 is what `from_pem` reads beside these two.
            _ => "PRIVATE KEY",
        };
        KeyPem::new(pem::encode(label, self.key.secret_der()))
    }

    pub(crate) fn certified(&self) -> Arc<CertifiedKey> {
        self.certified.clone()
    }
}

impl fmt::Debug for Svid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Svid")
            .field("identity", &self.identity.to_string())
            .field("not_before", &self.not_before)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

/// From when to when a certificate is valid; `None` before 1970 or where it is not readable.
pub(crate) fn validity(certificate: &CertificateDer<'_>) -> Option<(SystemTime, SystemTime)> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    let time = |seconds: i64| {
        let seconds = u64::try_from(seconds).ok()?;
        SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
    };
    let validity = certificate.validity();
    Some((time(validity.not_before.timestamp())?, time(validity.not_after.timestamp())?))
}

fn self_issued(certificate: &CertificateDer<'_>) -> bool {
    X509Certificate::from_der(certificate)
        .is_ok_and(|(_, c)| c.issuer().as_raw() == c.subject().as_raw())
}
