//! Who stands at the other end: webpki builds a path to our roots, and on that path one URI name
//! on the leaf and one on its issuer tie the identity to the cluster that issued it.
//!
//! webpki treats URI name constraints as "permitted never matches", so the tie is not made of
//! constraints: the root signs the trust domain into each intermediate as its one URI SAN, and an
//! intermediate that issues for another domain is refused here.

use crate::bundle::Bundle;
use crate::verified::Key;
use mesh::name::{Identity, TrustDomain};
use rustls_pki_types::{CertificateDer, UnixTime};
use std::ops::RangeInclusive;
use webpki::{EndEntityCert, KeyUsage};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};
use x509_parser::time::ASN1Time;

/// Most certificates a peer may send; a path has two below the root, and some send the root too.
pub const CHAIN_MAX: usize = 8;

/// As what the peer presents itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Usage {
    Client,
    Server,
}

/// Why a peer's certificates were refused: one variant a rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("ISM5201 the peer sent no certificate")]
    NoCertificate,
    #[error("ISM5202 the peer sent {0} certificates, at most {CHAIN_MAX} are read")]
    TooManyCertificates(usize),
    #[error("ISM5203 the peer's certificate is not readable: {0}")]
    Unreadable(String),
    #[error("ISM5204 no root certificate of ours leads to the peer's certificate")]
    UnknownRoot,
    #[error("ISM5205 the peer's certificate is signed by itself, not by a cluster's authority")]
    SelfSigned,
    #[error(
        "ISM5206 a certificate of the peer has expired at {not_after} (seconds since the epoch), it is {now} now"
    )]
    Expired { not_after: u64, now: u64 },
    #[error(
        "ISM5207 a certificate of the peer is valid from {not_before} on (seconds since the epoch), it is {now} now; compare the clocks"
    )]
    NotYetValid { not_before: u64, now: u64 },
    #[error("ISM5208 the peer's certificate is not for the use as {0:?} (extended key usage)")]
    WrongUsage(Usage),
    #[error("ISM5209 the peer's certificate is an authority's (CA:true), not a workload's")]
    LeafIsAuthority,
    #[error(
        "ISM5210 the peer's certificate may sign certificates or revocation lists (key usage), a workload's may not"
    )]
    LeafMaySign,
    #[error(
        "ISM5211 the peer's certificate was issued by a root directly, not by a cluster's intermediate"
    )]
    IssuedByRoot,
    #[error(
        "ISM5212 the path from the peer's certificate to the root is longer than leaf, intermediate, root"
    )]
    PathTooLong,
    #[error("ISM5213 the peer's certificate was issued by one that is not an authority's")]
    IssuerIsNoAuthority,
    #[error("ISM5214 a signature in the peer's chain is not by who is named as its issuer")]
    FalseSignature,
    #[error("ISM5215 the peer's certificate has no alternative name at all")]
    LeafWithoutNames,
    #[error("ISM5216 the peer's certificate has no URI name, only {0}")]
    LeafWithoutUri(String),
    #[error("ISM5217 the peer's certificate has {0} URI names, it must have exactly one")]
    LeafWithManyUris(usize),
    #[error(
        "ISM5218 a URI name in the peer's chain has a character that is not printable ASCII: {0:?}"
    )]
    NameWithControl(String),
    #[error("ISM5219 the peer's URI name is no identity: {0}")]
    NotAnIdentity(mesh::name::NotAnIdentity),
    #[error(
        "ISM5220 the authority that issued the peer's certificate has no URI name: it says no trust domain"
    )]
    IssuerWithoutUri,
    #[error(
        "ISM5221 the authority that issued the peer's certificate has {0} URI names, it must have exactly one"
    )]
    IssuerWithManyUris(usize),
    #[error(
        "ISM5222 the authority that issued the peer's certificate is named {0:?}, it must be spiffe://DOMAIN without a path"
    )]
    NotATrustDomain(String),
    #[error(
        "ISM5223 the peer claims {identity}, issued by the authority of {issuer}, which may issue for {issuer} only"
    )]
    ForeignIssuer { identity: Identity, issuer: TrustDomain },
    #[error("ISM5224 the alternative names in the peer's chain are not readable: {0}")]
    UnreadableNames(String),
    #[error("ISM5225 the peer is {0}, and its trust domain is not one of those accepted here")]
    DomainNotAccepted(Identity),
    #[error("ISM5226 the peer is {found}, expected was {expected}")]
    NotExpected { found: Identity, expected: String },
    #[error("ISM5227 the peer's chain breaks another rule of X.509: {0}")]
    Invalid(String),
}

/// Verifies a chain, leaf first, at `now`: the identity, or the first rule it breaks.
pub fn verify(
    chain: &[CertificateDer<'_>],
    bundle: &Bundle,
    now: UnixTime,
    usage: Usage,
) -> Result<Identity, Refused> {
    let (leaf, sent) = chain.split_first().ok_or(Refused::NoCertificate)?;
    if chain.len() > CHAIN_MAX {
        return Err(Refused::TooManyCertificates(chain.len()));
    }
    let key = Key::of(chain, usage);
    if let Some(identity) = bundle.verified().recall(key, now) {
        return Ok(identity);
    }
    let eku = match usage {
        Usage::Client => KeyUsage::client_auth(),
        Usage::Server => KeyUsage::server_auth(),
    };
    let refuse = |e| of_webpki(e, leaf, usage);
    let entity = EndEntityCert::try_from(leaf).map_err(refuse)?;
    let algorithms = webpki::ALL_VERIFICATION_ALGS;
    let path = entity
        .verify_for_usage(algorithms, bundle.anchors(), sent, now, eku, None, None)
        .map_err(refuse)?;

    // From here on only what webpki verified is read: a sent certificate off the path says nothing.
    let mut issuers = path.intermediate_certificates();
    let issuer = issuers.next().ok_or(Refused::IssuedByRoot)?;
    if issuers.next().is_some() {
        return Err(Refused::PathTooLong);
    }
    let issuer_der = issuer.der();
    let issuer = parse(&issuer_der)?;
    let domain = trust_domain(&issuer)?;
    let leaf = parse(leaf)?;
    let usages = leaf.key_usage().map_err(|e| Refused::Unreadable(e.to_string()))?;
    if usages.is_some_and(|usages| usages.value.key_cert_sign() || usages.value.crl_sign()) {
        return Err(Refused::LeafMaySign);
    }
    let identity = identity(&leaf)?;
    if identity.domain != domain {
        return Err(Refused::ForeignIssuer { identity, issuer: domain });
    }
    if let (Some(one), Some(other)) = (validity(&leaf), validity(&issuer)) {
        let during = *one.start().max(other.start())..=*one.end().min(other.end());
        bundle.verified().remember(key, identity.clone(), during);
    }
    Ok(identity)
}

/// Seconds since the epoch; `None` where it began before.
fn validity(certificate: &X509Certificate<'_>) -> Option<RangeInclusive<u64>> {
    let validity = certificate.validity();
    let seconds = |time: ASN1Time| u64::try_from(time.timestamp()).ok();
    Some(seconds(validity.not_before)?..=seconds(validity.not_after)?)
}

/// The identity a certificate claims, by the rules for a leaf; says nothing of who issued it.
pub(crate) fn claimed(leaf: &CertificateDer<'_>) -> Result<Identity, Refused> {
    identity(&parse(leaf)?)
}

/// The trust domain an intermediate is for, by the rules for an issuer.
pub(crate) fn issues_for(intermediate: &CertificateDer<'_>) -> Result<TrustDomain, Refused> {
    trust_domain(&parse(intermediate)?)
}

fn parse<'a>(der: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, Refused> {
    let (rest, certificate) =
        X509Certificate::from_der(der).map_err(|e| Refused::Unreadable(e.to_string()))?;
    if !rest.is_empty() {
        return Err(Refused::Unreadable("bytes follow the certificate".into()));
    }
    Ok(certificate)
}

fn identity(leaf: &X509Certificate<'_>) -> Result<Identity, Refused> {
    let names = Names::of(leaf)?;
    let name = match names.uris[..] {
        [name] => name,
        [] if names.others.is_empty() => return Err(Refused::LeafWithoutNames),
        [] => return Err(Refused::LeafWithoutUri(names.others.join(", "))),
        [_, _, ..] => return Err(Refused::LeafWithManyUris(names.uris.len())),
    };
    printable(name)?.parse().map_err(Refused::NotAnIdentity)
}

fn trust_domain(issuer: &X509Certificate<'_>) -> Result<TrustDomain, Refused> {
    let names = Names::of(issuer)?;
    let name = match names.uris[..] {
        [name] => printable(name)?,
        [] => return Err(Refused::IssuerWithoutUri),
        [_, _, ..] => return Err(Refused::IssuerWithManyUris(names.uris.len())),
    };
    let domain = name.strip_prefix("spiffe://").and_then(|domain| domain.parse().ok());
    domain.ok_or_else(|| Refused::NotATrustDomain(short(name)))
}

/// A certificate's alternative names: URIs as they are, the others for people.
struct Names<'a> {
    uris: Vec<&'a str>,
    others: Vec<String>,
}

impl<'a> Names<'a> {
    fn of(certificate: &'a X509Certificate<'_>) -> Result<Self, Refused> {
        let mut names = Self { uris: Vec::new(), others: Vec::new() };
        let extension = certificate
            .subject_alternative_name()
            .map_err(|e| Refused::UnreadableNames(e.to_string()))?;
        let Some(extension) = extension else { return Ok(names) };
        for name in &extension.value.general_names {
            match name {
                GeneralName::URI(uri) => names.uris.push(uri),
                // A name the parser gave up on could be a URI that another verifier reads.
                GeneralName::Invalid(tag, _) => {
                    return Err(Refused::UnreadableNames(format!("a name of type {tag}")));
                }
                GeneralName::DNSName(name) => names.others.push(format!("DNS {:?}", short(name))),
                GeneralName::RFC822Name(_) => names.others.push("an e-mail address".into()),
                GeneralName::IPAddress(_) => names.others.push("an IP address".into()),
                GeneralName::OtherName(..)
                | GeneralName::X400Address(_)
                | GeneralName::DirectoryName(_)
                | GeneralName::EDIPartyName(_)
                | GeneralName::RegisteredID(_) => {
                    names.others.push("a name of another type".into())
                }
            }
        }
        Ok(names)
    }
}

fn printable(name: &str) -> Result<&str, Refused> {
    if name.bytes().all(|b| b.is_ascii_graphic()) {
        return Ok(name);
    }
    Err(Refused::NameWithControl(short(name)))
}

/// As much of a stranger's text as goes into a log.
fn short(text: &str) -> String {
    text.chars().take(128).collect()
}

fn of_webpki(error: webpki::Error, leaf: &CertificateDer<'_>, usage: Usage) -> Refused {
    use webpki::Error as E;
    match error {
        E::UnknownIssuer => match parse(leaf) {
            Ok(leaf) if leaf.issuer().as_raw() == leaf.subject().as_raw() => Refused::SelfSigned,
            Ok(_) | Err(_) => Refused::UnknownRoot,
        },
        E::CertExpired { time, not_after } => {
            Refused::Expired { not_after: not_after.as_secs(), now: time.as_secs() }
        }
        E::CertNotValidYet { time, not_before } => {
            Refused::NotYetValid { not_before: not_before.as_secs(), now: time.as_secs() }
        }
        E::RequiredEkuNotFoundContext(_) => Refused::WrongUsage(usage),
        E::CaUsedAsEndEntity => Refused::LeafIsAuthority,
        E::EndEntityUsedAsCa => Refused::IssuerIsNoAuthority,
        E::PathLenConstraintViolated | E::MaximumPathDepthExceeded => Refused::PathTooLong,
        E::InvalidSignatureForPublicKey => Refused::FalseSignature,
        E::BadDer | E::TrailingData(_) => Refused::Unreadable(error.to_string()),
        // webpki's errors are not exhaustive by declaration.
        other => Refused::Invalid(other.to_string()),
    }
}
