//! TLS configurations of the mesh: 1.3 only, hybrid post-quantum key exchange first, nothing
//! resumed, and certificates, keys and roots read anew for every handshake.

use crate::bundle::Bundle;
use crate::svid::Svid;
use crate::verify::{self, Refused, Usage};
use mesh::name::{Identity, TrustDomain};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, OtherError,
    ServerConfig, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, LazyLock};
use tokio::sync::watch;

/// Said where rustls could ask for a signature of TLS 1.2; the versions are fixed, so it does not.
const NO_TLS12: &str = "the mesh speaks TLS 1.3 only";

/// Which clients a server lets in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Clients {
    /// With a certificate; of these trust domains, or of any that our roots lead to.
    Required { trust_domains: Option<BTreeSet<TrustDomain>> },
    /// With or without one; a certificate that is sent must be good.
    Optional,
    /// No certificate is asked for.
    None,
}

/// Which servers a client talks to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expected {
    AnyOf(Arc<BTreeSet<Identity>>),
    AnyIn(Arc<BTreeSet<TrustDomain>>),
}

/// A server's side.
pub fn server_config(
    svid: watch::Receiver<Arc<Svid>>,
    bundle: watch::Receiver<Arc<Bundle>>,
    clients: Clients,
    alpn: &[&[u8]],
) -> Arc<ServerConfig> {
    let builder = ServerConfig::builder_with_provider(provider().clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the provider has cipher suites for TLS 1.3");
    let builder = match clients {
        Clients::None => builder.with_no_client_auth(),
        Clients::Optional => {
            builder.with_client_cert_verifier(Arc::new(ClientVerifier { bundle, required: None }))
        }
        Clients::Required { trust_domains } => {
            builder.with_client_cert_verifier(Arc::new(ClientVerifier {
                bundle,
                required: Some(trust_domains),
            }))
        }
    };
    let mut config = builder.with_cert_resolver(Arc::new(Presented(svid)));
    // A resumed session would keep a certificate and a verdict that may have changed since.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    Arc::new(config)
}

/// A client's side. The server's name is routed by, never verified: identities are.
pub fn client_config(
    svid: Option<watch::Receiver<Arc<Svid>>>,
    bundle: watch::Receiver<Arc<Bundle>>,
    expected: Expected,
    alpn: &[&[u8]],
) -> Arc<ClientConfig> {
    let builder = ClientConfig::builder_with_provider(provider().clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the provider has cipher suites for TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(ServerVerifier { bundle, expected }));
    let mut config = match svid {
        Some(svid) => builder.with_client_cert_resolver(Arc::new(Presented(svid))),
        None => builder.with_no_client_auth(),
    };
    config.resumption = Resumption::disabled();
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    Arc::new(config)
}

/// A client's side towards a workload's own TLS, whoever shows whichever certificate: for probes on
/// the kubelet's behalf, which verifies none either. Nothing that matters may be sent over it.
pub fn unverified_client_config(alpn: &[&[u8]]) -> Arc<ClientConfig> {
    let mut config = ClientConfig::builder_with_provider(provider().clone())
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .expect("the provider has cipher suites for both versions")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody))
        .with_no_client_auth();
    config.resumption = Resumption::disabled();
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    Arc::new(config)
}

/// Verifies nothing.
#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

/// Who the peer of a finished handshake is: its certificates have been verified by then.
pub fn peer_identity(certificates: &[CertificateDer<'_>]) -> Option<Identity> {
    verify::claimed(certificates.first()?).ok()
}

/// The verifier's reason in an error of rustls, where it was the verifier that refused.
pub fn refused(error: &Error) -> Option<&Refused> {
    match error {
        Error::InvalidCertificate(CertificateError::Other(OtherError(reason))) => {
            reason.downcast_ref()
        }
        // rustls's errors are not exhaustive by declaration.
        _ => None,
    }
}

/// The same for an I/O error of a TLS stream.
pub fn refused_io(error: &std::io::Error) -> Option<&Refused> {
    refused(error.get_ref()?.downcast_ref()?)
}

/// aws-lc-rs with X25519MLKEM768 first; the classical groups stay for Envoys without it.
pub(crate) fn provider() -> &'static Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
        Arc::new(CryptoProvider {
            kx_groups: vec![
                aws_lc_rs::kx_group::X25519MLKEM768,
                aws_lc_rs::kx_group::X25519,
                aws_lc_rs::kx_group::SECP256R1,
            ],
            ..aws_lc_rs::default_provider()
        })
    });
    &PROVIDER
}

/// The current certificate, whatever name is asked for.
#[derive(Debug)]
struct Presented(watch::Receiver<Arc<Svid>>);

impl ResolvesServerCert for Presented {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.borrow().certified())
    }
}

impl ResolvesClientCert for Presented {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.borrow().certified())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// `required` is `None` where a client may come without a certificate.
struct ClientVerifier {
    bundle: watch::Receiver<Arc<Bundle>>,
    required: Option<Option<BTreeSet<TrustDomain>>>,
}

struct ServerVerifier {
    bundle: watch::Receiver<Arc<Bundle>>,
    expected: Expected,
}

impl ClientCertVerifier for ClientVerifier {
    fn client_auth_mandatory(&self) -> bool {
        self.required.is_some()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // Hints tell a stranger whom we trust, and our clients have one certificate only.
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let identity = check(&self.bundle, leaf, others, now, Usage::Client)?;
        if let Some(Some(domains)) = &self.required
            && !domains.contains(&identity.domain)
        {
            return Err(other(Refused::DomainNotAccepted(identity)));
        }
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General(NO_TLS12.into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, leaf, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let found = check(&self.bundle, leaf, others, now, Usage::Server)?;
        let fits = match &self.expected {
            Expected::AnyOf(identities) => identities.contains(&found),
            Expected::AnyIn(domains) => domains.contains(&found.domain),
        };
        if !fits {
            let expected = match &self.expected {
                Expected::AnyOf(identities) => list(identities.iter()),
                Expected::AnyIn(domains) => format!("anyone in {}", list(domains.iter())),
            };
            return Err(other(Refused::NotExpected { found, expected }));
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General(NO_TLS12.into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, leaf, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

impl fmt::Debug for ClientVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientVerifier").field("required", &self.required).finish_non_exhaustive()
    }
}

impl fmt::Debug for ServerVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerVerifier").field("expected", &self.expected).finish_non_exhaustive()
    }
}

fn check(
    bundle: &watch::Receiver<Arc<Bundle>>,
    leaf: &CertificateDer<'_>,
    others: &[CertificateDer<'_>],
    now: UnixTime,
    usage: Usage,
) -> Result<Identity, Error> {
    let bundle = bundle.borrow().clone();
    let chain: Vec<CertificateDer<'_>> = std::iter::once(leaf).chain(others).cloned().collect();
    verify::verify(&chain, &bundle, now, usage).map_err(other)
}

fn other(refused: Refused) -> Error {
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(refused))))
}

/// The first few for people; a service may have hundreds.
fn list<T: fmt::Display>(items: impl ExactSizeIterator<Item = T>) -> String {
    const SHOWN: usize = 4;
    let total = items.len();
    let shown: Vec<String> = items.take(SHOWN).map(|item| item.to_string()).collect();
    match total {
        0 => "nobody".into(),
        n if n > SHOWN => format!("{} or {} others", shown.join(", "), n - SHOWN),
        _ => shown.join(" or "),
    }
}
