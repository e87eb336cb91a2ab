//! The server's own keys: an authority, its serving certificate, the key of tokens, the administrator's token.

use anyhow::Context;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use serde::{Deserialize, Serialize};
use std::net::IpAddr;
use std::sync::Arc;

/// What makes a server the same one after a restart. All PEM but the token.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Own {
    pub(crate) authority: String,
    pub(crate) authority_key: String,
    pub(crate) token_key: String,
    pub(crate) token_public: String,
    pub(crate) admin_token: String,
}

impl Own {
    pub(crate) fn fresh(name: &str) -> anyhow::Result<Self> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, format!("{name} kubernetes"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        validity(&mut params);
        let key = KeyPair::generate()?;
        let authority = params.self_signed(&key)?;
        let tokens = KeyPair::generate()?;
        Ok(Self {
            authority: authority.pem(),
            authority_key: key.serialize_pem(),
            token_key: tokens.serialize_pem(),
            token_public: tokens.public_key_pem(),
            admin_token: hex::encode(rand::random::<[u8; 32]>()),
        })
    }

    /// TLS for these names, under the authority.
    pub(crate) fn serving(
        &self,
        names: &[String],
        addresses: &[IpAddr],
    ) -> anyhow::Result<Arc<rustls::ServerConfig>> {
        let key = KeyPair::from_pem(&self.authority_key).context("the authority's key")?;
        let issuer = Issuer::from_ca_cert_pem(&self.authority, key).context("the authority")?;
        let mut params = CertificateParams::new(names.to_vec())?;
        let addresses = addresses.iter().map(|address| SanType::IpAddress(*address));
        params.subject_alt_names.extend(addresses);
        params.distinguished_name.push(DnType::CommonName, "kube-apiserver");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        validity(&mut params);
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &issuer)?;
        let private = rustls::pki_types::PrivatePkcs8KeyDer::from(key.serialize_der());
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], private.into())?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}

fn validity(params: &mut CertificateParams) {
    let now = time::OffsetDateTime::now_utc();
    params.not_before = now - time::Duration::days(1);
    params.not_after = now + time::Duration::days(3650);
}
