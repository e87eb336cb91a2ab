//! The root certificates a process trusts.

use crate::pem;
use crate::verified::Verified;
use rustls_pki_types::{CertificateDer, TrustAnchor};
use sha2::{Digest as _, Sha256};
use std::sync::Arc;
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// Most root certificates in one bundle: rotations overlap two, meshes that merge a few more.
pub const ROOTS_MAX: usize = 64;

/// At least one root certificate. Public material.
#[derive(Debug, Clone)]
pub struct Bundle {
    /// Sorted, without duplicates: two bundles of the same roots are equal.
    roots: Vec<CertificateDer<'static>>,
    anchors: Vec<TrustAnchor<'static>>,
    /// By these roots; shared by copies.
    verified: Arc<Verified>,
}

impl PartialEq for Bundle {
    fn eq(&self, other: &Self) -> bool {
        self.roots == other.roots
    }
}

impl Eq for Bundle {}

/// Why a text is no bundle.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "ISM5401 the root certificates cannot be used: {0}. Fix: give the PEM of the mesh's root \
     certificate, root-cert.pem of `isthmus trust init`"
)]
pub struct NotABundle(String);

impl Bundle {
    /// Reads PEM with one or more certificates of authorities. Other PEM blocks are passed over.
    pub fn from_pem(text: &str) -> Result<Self, NotABundle> {
        let mut roots = pem::certificates(text).map_err(NotABundle)?;
        roots.sort_by(|a, b| a.as_ref().cmp(b.as_ref()));
        roots.dedup();
        if roots.len() > ROOTS_MAX {
            return Err(NotABundle(format!("{} roots, at most {ROOTS_MAX} are read", roots.len())));
        }
        let mut anchors = Vec::with_capacity(roots.len());
        for root in &roots {
            let (_, parsed) = X509Certificate::from_der(root)
                .map_err(|e| NotABundle(format!("a certificate is not readable: {e}")))?;
            if !parsed.is_ca() {
                return Err(NotABundle(format!(
                    "the certificate of {:?} is not an authority's (CA:true is missing)",
                    parsed.subject().to_string()
                )));
            }
            let anchor = webpki::anchor_from_trusted_cert(root)
                .map_err(|e| NotABundle(format!("a certificate is not readable: {e}")))?;
            anchors.push(anchor.to_owned());
        }
        Ok(Self { roots, anchors, verified: Arc::default() })
    }

    /// The roots, one PEM block each, in a fixed order.
    pub fn pem(&self) -> String {
        self.roots.iter().map(|root| pem::certificate(root)).collect()
    }

    /// SHA-256 over the roots' DER in a fixed order, hex: equal for equal sets of roots.
    pub fn fingerprint(&self) -> String {
        let mut hash = Sha256::new();
        for root in &self.roots {
            hash.update(root);
        }
        hex::encode(hash.finalize())
    }

    /// Seconds since the epoch at which the first of the roots expires
    /// (metric `citadel_server_root_cert_expiry_seconds`).
    pub fn expires(&self) -> i64 {
        self.roots
            .iter()
            .filter_map(|root| X509Certificate::from_der(root).ok())
            .map(|(_, root)| root.validity().not_after.timestamp())
            .min()
            .expect("a bundle has a readable root")
    }

    pub(crate) fn anchors(&self) -> &[TrustAnchor<'static>] {
        &self.anchors
    }

    pub(crate) fn verified(&self) -> &Verified {
        &self.verified
    }

    pub(crate) fn contains(&self, certificate: &CertificateDer<'_>) -> bool {
        self.roots.iter().any(|root| root.as_ref() == certificate.as_ref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::root;

    fn root(name: &str) -> String {
        root::create(name, "a long passphrase").unwrap().certificate_pem
    }

    #[test]
    fn the_order_of_roots_does_not_matter() {
        let (a, b) = (root("a"), root("b"));
        let one = Bundle::from_pem(&format!("{a}{b}")).unwrap();
        let two = Bundle::from_pem(&format!("{b}{a}{b}")).unwrap();
        assert_eq!(one, two);
        assert_eq!(one.fingerprint(), two.fingerprint());
        assert_eq!(one.fingerprint().len(), 64);
        assert_ne!(one.fingerprint(), Bundle::from_pem(&a).unwrap().fingerprint());
        assert_eq!(Bundle::from_pem(&one.pem()).unwrap(), one);
    }

    #[test]
    fn what_is_no_bundle_says_why() {
        let why = |text: &str| Bundle::from_pem(text).unwrap_err().to_string();
        assert!(why("").contains("there is no certificate in it"));
        assert!(why(&"x".repeat(pem::TEXT_MAX + 1)).contains("at most"));
        let broken = root("a").replace("-----END CERTIFICATE-----", "");
        assert!(why(&broken).contains("not PEM"), "{}", why(&broken));
        let key = rcgen::KeyPair::generate().unwrap();
        let leaf = rcgen::CertificateParams::default().self_signed(&key).unwrap();
        assert!(why(&leaf.pem()).contains("not an authority's"));
    }
}
