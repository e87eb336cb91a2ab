//! Signing workload certificates: what the certificate says comes from who asked, never from the
//! request; of the request only the public key is used.

use crate::bundle::Bundle;
use crate::verify::{self, Refused, Usage};
use crate::{pem, svid};
use mesh::name::{Identity, TrustDomain};
use pkcs8::der::zeroize::Zeroizing;
use rcgen::{
    CertificateParams, CertificateSigningRequest, DistinguishedName, ExtendedKeyUsagePurpose,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType, SerialNumber, SubjectPublicKeyInfo,
    string::Ia5String,
};
use rustls_pki_types::{
    CertificateDer, CertificateSigningRequestDer, UnixTime, pem::PemObject as _,
};
use std::fmt;
use std::time::{Duration, SystemTime};
use time::OffsetDateTime;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer as _;

/// What a workload certificate lives when the request does not say (Istio's default), and at most.
pub const TTL_MAX: Duration = Duration::from_secs(24 * 3600);
/// How far in the past a certificate begins: clocks of nodes differ.
pub const BACKDATE: Duration = Duration::from_secs(120);
/// Longest request that is read, bytes; one for P-256 has about 500.
pub const CSR_MAX: usize = 16 * 1024;

/// A private key as PEM: wiped from memory when dropped, and not printable.
#[derive(Clone)]
pub struct KeyPem(Zeroizing<String>);

impl KeyPem {
    pub fn new(pem: String) -> Self {
        Self(Zeroizing::new(pem))
    }

    /// The text itself, for a file of mode 0600 or a Secret.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for KeyPem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyPem(..)")
    }
}

/// One cluster's authority: its intermediate certificate and key.
pub struct Issuer {
    domain: TrustDomain,
    signer: rcgen::Issuer<'static, KeyPair>,
    /// The intermediate, then what lies between it and the root, as PEM.
    chain: Vec<String>,
    root: String,
    bundle: Bundle,
    /// When the intermediate expires.
    expires: SystemTime,
}

#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    #[error(
        "ISM5101 Secret cacerts, key {key}: {problem}. Fix: write it anew with `isthmus trust issue CLUSTER`"
    )]
    Cacerts { key: &'static str, problem: String },
    #[error(
        "ISM5102 what this cluster's authority signs would be refused: {0}. Fix: write Secret cacerts anew with `isthmus trust issue CLUSTER`"
    )]
    Refused(#[from] Refused),
    #[error(
        "ISM5103 the certificate request cannot be used: {0}. Fix: send a PKCS#10 request in PEM, signed by its own P-256 key"
    )]
    Request(String),
    #[error(
        "ISM5104 {identity} is of another trust domain; this cluster's authority issues for {domain} only. Fix: ask the control plane of that cluster"
    )]
    Domain { identity: Identity, domain: TrustDomain },
    #[error(
        "ISM5105 this cluster's authority has expired. Fix: write Secret cacerts anew with `isthmus trust issue CLUSTER`"
    )]
    Expired,
    #[error(
        "ISM5106 signing failed: {0}. Fix: this is a defect of Isthmus, report it with this line"
    )]
    Signing(String),
}

impl Issuer {
    /// From the keys of Secret `cacerts`. Proves that what it will sign is accepted by our own
    /// verifier, so a wrong Secret shows at once and not at the first handshake.
    pub fn from_cacerts(
        ca_cert: &str,
        cert_chain: &str,
        ca_key: &str,
        root_cert: &str,
    ) -> Result<Self, IssueError> {
        Self::at(ca_cert, cert_chain, ca_key, root_cert, SystemTime::now())
    }

    fn at(
        ca_cert: &str,
        cert_chain: &str,
        ca_key: &str,
        root_cert: &str,
        now: SystemTime,
    ) -> Result<Self, IssueError> {
        let wrong = |key: &'static str| move |problem: String| IssueError::Cacerts { key, problem };
        let own = pem::certificates(ca_cert).map_err(wrong("ca-cert.pem"))?.swap_remove(0);
        let domain = verify::issues_for(&own)?;
        let bundle =
            Bundle::from_pem(root_cert).map_err(|e| wrong("root-cert.pem")(e.to_string()))?;
        let key = KeyPair::from_pem(ca_key)
            .map_err(|_| wrong("ca-key.pem")("it is not a PEM private key".into()))?;
        let (_, parsed) = x509_parser::parse_x509_certificate(&own)
            .map_err(|e| wrong("ca-cert.pem")(e.to_string()))?;
        if parsed.public_key().subject_public_key.data.as_ref() != key.public_key_raw() {
            return Err(wrong("ca-key.pem")("it is not the key of ca-cert.pem".into()));
        }
        let (_, expires) = svid::validity(&own)
            .ok_or_else(|| wrong("ca-cert.pem")("its validity is not readable".into()))?;

        // Istio writes the intermediate into the chain too, and some tools the root.
        let mut between = vec![own.clone()];
        if !cert_chain.trim().is_empty() {
            for certificate in pem::certificates(cert_chain).map_err(wrong("cert-chain.pem"))? {
                if certificate != own && !bundle.contains(&certificate) {
                    between.push(certificate);
                }
            }
        }
        let signer = rcgen::Issuer::from_ca_cert_der(&own, key)
            .map_err(|e| wrong("ca-cert.pem")(e.to_string()))?;
        let chain = between.iter().map(|certificate| pem::certificate(certificate)).collect();
        let root = bundle.pem();
        let issuer = Self { domain, signer, chain, root, bundle, expires };
        issuer.prove(now)?;
        Ok(issuer)
    }

    /// The trust domain it issues for.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.domain
    }

    /// The roots its certificates lead to.
    pub fn bundle(&self) -> &Bundle {
        &self.bundle
    }

    /// When the intermediate expires.
    pub fn expires(&self) -> SystemTime {
        self.expires
    }

    /// Signs the key of a PKCS#10 request for `identity`. `ttl` zero means the default; it is cut
    /// to [`TTL_MAX`] and to the authority's own end. PEM, leaf first, root last.
    pub fn sign(
        &self,
        csr_pem: &str,
        identity: &Identity,
        ttl: Duration,
        now: SystemTime,
    ) -> Result<Vec<String>, IssueError> {
        self.sign_server(csr_pem, identity, &[], ttl, now)
    }

    /// The same with names of DNS beside the identity, for a server that outsiders of the mesh verify
    /// by its name: the API server its webhooks (RFC 9525). Peers in the mesh do not look at them.
    pub fn sign_server(
        &self,
        csr_pem: &str,
        identity: &Identity,
        names: &[String],
        ttl: Duration,
        now: SystemTime,
    ) -> Result<Vec<String>, IssueError> {
        if identity.domain != self.domain {
            let (identity, domain) = (identity.clone(), self.domain.clone());
            return Err(IssueError::Domain { identity, domain });
        }
        if now >= self.expires {
            return Err(IssueError::Expired);
        }
        let key = requested_key(csr_pem)?;
        let ttl = if ttl.is_zero() { TTL_MAX } else { ttl.min(TTL_MAX) };
        let mut params = CertificateParams::default();
        // An empty subject makes the name critical (RFC 5280, 4.2.1.6), as Istio has it.
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![uri(&identity.to_string())];
        for name in names {
            let ascii = Ia5String::try_from(name.as_str());
            let ascii = ascii.map_err(|_| IssueError::Signing(format!("{name:?} is not ASCII")))?;
            params.subject_alt_names.push(SanType::DnsName(ascii));
        }
        params.not_before = OffsetDateTime::from(now - BACKDATE);
        params.not_after = OffsetDateTime::from((now + ttl).min(self.expires));
        params.serial_number = Some(serial());
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let leaf =
            params.signed_by(&key, &self.signer).map_err(|e| IssueError::Signing(e.to_string()))?;
        let mut chain = vec![pem::certificate(leaf.der())];
        chain.extend(self.chain.iter().cloned());
        chain.push(self.root.clone());
        Ok(chain)
    }

    fn prove(&self, now: SystemTime) -> Result<(), IssueError> {
        let identity = Identity {
            domain: self.domain.clone(),
            namespace: "isthmus-system".into(),
            account: "proof".into(),
        };
        let (_, csr) = new_key_and_csr(&identity);
        let mut chain: Vec<CertificateDer<'static>> = Vec::new();
        for text in self.sign(&csr, &identity, TTL_MAX, now)? {
            let certificates = pem::certificates(&text).map_err(IssueError::Signing)?;
            chain.extend(certificates.into_iter().filter(|c| !self.bundle.contains(c)));
        }
        let since = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let now = UnixTime::since_unix_epoch(since);
        verify::verify(&chain, &self.bundle, now, Usage::Server)?;
        verify::verify(&chain, &self.bundle, now, Usage::Client)?;
        Ok(())
    }
}

impl fmt::Debug for Issuer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Issuer")
            .field("domain", &self.domain.as_str())
            .field("expires", &self.expires)
            .finish_non_exhaustive()
    }
}

/// A new P-256 key, and a request in PEM that proves it is held.
pub fn new_key_and_csr(identity: &Identity) -> (KeyPem, String) {
    let key = new_key();
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![uri(&identity.to_string())];
    let csr: CertificateSigningRequest =
        params.serialize_request(&key).expect("a URI and a P-256 key make a request");
    (KeyPem::new(key.serialize_pem()), csr.pem().expect("a request has a PEM form"))
}

pub(crate) fn new_key() -> KeyPair {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("the system has randomness for a key")
}

/// An alternative name from a text that is ASCII by its type.
pub(crate) fn uri(text: &str) -> SanType {
    SanType::URI(Ia5String::try_from(text).expect("identities and trust domains are ASCII"))
}

/// 16 random bytes, positive: a renewal for the same key must not repeat a number.
pub(crate) fn serial() -> SerialNumber {
    let mut bytes: [u8; 16] = rand::random();
    bytes[0] = (bytes[0] & 0x7f) | 0x40;
    SerialNumber::from_slice(&bytes)
}

/// The request's public key, once the request's signature has proven that its sender holds it.
fn requested_key(csr_pem: &str) -> Result<SubjectPublicKeyInfo, IssueError> {
    let wrong = |problem: &str| IssueError::Request(problem.into());
    if csr_pem.len() > CSR_MAX {
        return Err(wrong("it is too long"));
    }
    let der = CertificateSigningRequestDer::from_pem_slice(csr_pem.as_bytes())
        .map_err(|_| wrong("it is not PEM"))?;
    let (rest, csr) = X509CertificationRequest::from_der(&der)
        .map_err(|_| wrong("it is not a PKCS#10 request"))?;
    if !rest.is_empty() {
        return Err(wrong("bytes follow it"));
    }
    let key = SubjectPublicKeyInfo::from_der(csr.certification_request_info.subject_pki.raw)
        .ok()
        .filter(|key| rcgen::PublicKeyData::algorithm(key) == &PKCS_ECDSA_P256_SHA256)
        .ok_or_else(|| wrong("its key is not a P-256 key"))?;
    let signed = csr.certification_request_info.raw;
    let signature = csr.signature_value.data.as_ref();
    let public = rcgen::PublicKeyData::der_bytes(&key);
    aws_lc_rs::signature::UnparsedPublicKey::new(
        &aws_lc_rs::signature::ECDSA_P256_SHA256_ASN1,
        public,
    )
    .verify(signed, signature)
    .map_err(|_| wrong("its signature is not by its own key"))?;
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::root;
    use crate::svid::Svid;

    fn west() -> TrustDomain {
        "west.mesh".parse().unwrap()
    }

    fn hello() -> Identity {
        "spiffe://west.mesh/ns/shop/sa/hello".parse().unwrap()
    }

    fn cacerts() -> root::Cacerts {
        let files = root::create("Example", "a long passphrase").unwrap();
        let (root, key) = (&files.certificate_pem, &files.encrypted_key_pem);
        let year = root::INTERMEDIATE_VALIDITY;
        root::issue_intermediate(root, key, "a long passphrase", &west(), year).unwrap()
    }

    fn issuer(c: &root::Cacerts) -> Result<Issuer, IssueError> {
        Issuer::from_cacerts(&c.ca_cert, &c.cert_chain, c.ca_key.reveal(), &c.root_cert)
    }

    #[test]
    fn a_request_becomes_an_svid_of_who_asked() {
        let issuer = issuer(&cacerts()).unwrap();
        // The request names another account: it is not read.
        let (key, csr) = new_key_and_csr(&"spiffe://west.mesh/ns/shop/sa/admin".parse().unwrap());
        let now = SystemTime::now();
        let chain = issuer.sign(&csr, &hello(), Duration::ZERO, now).unwrap();
        assert_eq!(chain.len(), 3);
        assert_eq!(chain[2], issuer.bundle.pem());
        let svid = Svid::from_pem(&chain.concat(), key.reveal()).unwrap();
        assert_eq!(svid.identity, hello());
        assert_eq!(svid.chain.len(), 2, "the root is not sent");
        let lives = svid.not_after.duration_since(now).unwrap();
        assert!(lives <= TTL_MAX && lives > TTL_MAX - Duration::from_secs(2), "{lives:?}");
        assert!(svid.not_before <= now - BACKDATE);
        let again = Svid::from_pem(&svid.chain_pem(), svid.key_pem().reveal()).unwrap();
        assert_eq!(again.chain, svid.chain);
        assert!(!format!("{svid:?} {key:?} {issuer:?}").contains("PRIVATE"));

        let second = issuer.sign(&csr, &hello(), Duration::ZERO, now).unwrap();
        assert_ne!(chain[0], second[0], "serial numbers do not repeat");
    }

    #[test]
    fn a_server_has_names_that_outsiders_verify() {
        let issuer = issuer(&cacerts()).unwrap();
        let identity =
            "spiffe://west.mesh/ns/isthmus-system/sa/isthmus-control-plane".parse().unwrap();
        let (key, csr) = new_key_and_csr(&identity);
        let name = "isthmus-control-plane.isthmus-system.svc";
        let now = SystemTime::now();
        let chain =
            issuer.sign_server(&csr, &identity, &[name.into()], Duration::ZERO, now).unwrap();
        let svid = Svid::from_pem(&chain.concat(), key.reveal()).unwrap();
        assert_eq!(svid.identity, identity);
        // For the mesh it is who it is, names or not.
        let since = now.duration_since(SystemTime::UNIX_EPOCH).unwrap();
        let at = UnixTime::since_unix_epoch(since);
        let seen = verify::verify(&svid.chain, issuer.bundle(), at, Usage::Server).unwrap();
        assert_eq!(seen, identity);
        let leaf = webpki::EndEntityCert::try_from(&svid.chain[0]).unwrap();
        let valid = |name: &str| {
            let name = rustls_pki_types::ServerName::try_from(name.to_owned()).unwrap();
            leaf.verify_is_valid_for_subject_name(&name).is_ok()
        };
        assert!(valid(name) && !valid("isthmus-control-plane.other.svc"));
    }

    #[test]
    fn a_ttl_is_cut() {
        let issuer = issuer(&cacerts()).unwrap();
        let (key, csr) = new_key_and_csr(&hello());
        let sign = |ttl, now| {
            let chain = issuer.sign(&csr, &hello(), ttl, now).unwrap();
            Svid::from_pem(&chain.concat(), key.reveal()).unwrap().not_after
        };
        let now = SystemTime::now();
        let hour = Duration::from_secs(3600);
        assert!(sign(hour, now) <= now + hour);
        assert!(sign(hour * 1000, now) <= now + TTL_MAX);
        assert_eq!(sign(hour * 24, issuer.expires() - hour), issuer.expires());
        let late = issuer.sign(&csr, &hello(), hour, issuer.expires());
        assert!(matches!(late, Err(IssueError::Expired)));
    }

    #[test]
    fn what_is_not_signed() {
        let issuer = issuer(&cacerts()).unwrap();
        let sign = |csr: &str, identity: &Identity| {
            issuer.sign(csr, identity, Duration::ZERO, SystemTime::now()).unwrap_err().to_string()
        };
        let (_, csr) = new_key_and_csr(&hello());
        let foreign = "spiffe://east.mesh/ns/shop/sa/hello".parse().unwrap();
        assert!(sign(&csr, &foreign).contains("ISM5104"));
        assert!(sign("", &hello()).contains("not PEM"));
        assert!(sign(&"x".repeat(CSR_MAX + 1), &hello()).contains("too long"));
        let other = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
        let params = CertificateParams::default();
        let p384 = params.serialize_request(&other).unwrap().pem().unwrap();
        assert!(sign(&p384, &hello()).contains("not a P-256 key"));

        // Another's public key with a signature of one's own: no proof of holding it.
        let der = CertificateSigningRequestDer::from_pem_slice(csr.as_bytes()).unwrap();
        let mut der = der.as_ref().to_vec();
        let (_, victim) = new_key_and_csr(&hello());
        let victim = CertificateSigningRequestDer::from_pem_slice(victim.as_bytes()).unwrap();
        let point = |der: &[u8]| {
            let (_, csr) = X509CertificationRequest::from_der(der).unwrap();
            csr.certification_request_info.subject_pki.subject_public_key.data.to_vec()
        };
        let (own, theirs) = (point(&der), point(&victim));
        let at = der.windows(own.len()).position(|window| window == own).unwrap();
        der[at..at + own.len()].copy_from_slice(&theirs);
        let stolen = pem::encode("CERTIFICATE REQUEST", &der);
        assert!(sign(&stolen, &hello()).contains("not by its own key"));
    }

    #[test]
    fn a_wrong_secret_shows_at_once() {
        let (good, other) = (cacerts(), cacerts());
        let why = |c: &root::Cacerts| issuer(c).unwrap_err().to_string();
        let mut c = good.clone();
        c.ca_key = other.ca_key.clone();
        assert!(why(&c).contains("not the key of ca-cert.pem"), "{}", why(&c));
        let mut c = good.clone();
        c.root_cert = other.root_cert;
        assert!(why(&c).contains("ISM5102") && why(&c).contains("ISM5204"), "{}", why(&c));
        let mut c = good.clone();
        c.ca_cert = c.root_cert.clone();
        assert!(why(&c).contains("ISM5220"), "{}", why(&c));
        let mut c = good;
        c.ca_key = KeyPem::new("nothing".into());
        assert!(why(&c).contains("ca-key.pem"), "{}", why(&c));
    }
}
