//! Certificates the harness makes itself: API servers' serving certificates, and a liar's.

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType, date_time_ymd,
};
use std::net::IpAddr;

/// A certificate with its key, PEM.
#[derive(Debug, Clone)]
pub struct Pair {
    pub certificate: String,
    pub key: String,
}

/// A certificate authority in the harness's hands.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub certificate: String,
}

impl Authority {
    /// A self-signed authority.
    pub fn new(name: &str) -> Result<Self> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key)?.pem();
        Ok(Self { issuer: Issuer::new(params, key), certificate })
    }

    /// An authority from PEM files somebody else made.
    pub fn from_pem(certificate: &str, key: &str) -> Result<Self> {
        let key = KeyPair::from_pem(key).context("an authority's key")?;
        let issuer = Issuer::from_ca_cert_pem(certificate, key)?;
        Ok(Self { issuer, certificate: certificate.to_owned() })
    }

    /// A serving certificate for `names` and `addresses`.
    pub fn serving(&self, names: &[&str], addresses: &[IpAddr]) -> Result<Pair> {
        let mut params =
            CertificateParams::new(names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>())?;
        params.subject_alt_names.extend(addresses.iter().map(|a| SanType::IpAddress(*a)));
        self.leaf(params)
    }

    /// A serving certificate for `name` whose time is over.
    pub fn expired(&self, name: &str) -> Result<Pair> {
        let mut params = CertificateParams::new(vec![name.to_owned()])?;
        params.not_before = date_time_ymd(2024, 1, 1);
        params.not_after = date_time_ymd(2024, 2, 1);
        self.leaf(params)
    }

    /// A workload certificate that says it is `identity`, whether or not this authority may.
    pub fn workload(&self, identity: &str) -> Result<Pair> {
        let mut params = CertificateParams::new(Vec::<String>::new())?;
        params.subject_alt_names.push(SanType::URI(identity.try_into()?));
        self.leaf(params)
    }

    /// A client's certificate, as Kubernetes reads it: a user and a group.
    pub fn client(&self, user: &str, group: &str) -> Result<Pair> {
        let mut params = CertificateParams::new(Vec::<String>::new())?;
        params.distinguished_name.push(DnType::CommonName, user);
        params.distinguished_name.push(DnType::OrganizationName, group);
        self.leaf(params)
    }

    fn leaf(&self, mut params: CertificateParams) -> Result<Pair> {
        let key = KeyPair::generate()?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&key, &self.issuer)?.pem();
        Ok(Pair { certificate, key: key.serialize_pem() })
    }
}

/// A fresh key pair: the private key and the public key, PEM.
pub fn key_pair() -> Result<(String, String)> {
    let key = KeyPair::generate()?;
    Ok((key.serialize_pem(), key.public_key_pem()))
}
