//! A table of forged chains, each refused for its own reason, and the one that is right.

use mesh::name::Identity;
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose as Eku, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls_pki_types::{CertificateDer, UnixTime};
use std::time::Duration;
use time::{Duration as Span, OffsetDateTime};
use trust::bundle::Bundle;
use trust::verify::{Refused, Usage, verify};

const HELLO: &str = "spiffe://west.mesh/ns/shop/sa/hello";

/// An authority of the test's making: nothing keeps it from forging.
struct Authority {
    der: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

fn dns(text: &str) -> SanType {
    SanType::DnsName(text.try_into().unwrap())
}

fn authority(
    name: &str,
    sans: Vec<SanType>,
    path_length: Option<u8>,
    by: Option<&Authority>,
) -> Authority {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.subject_alt_names = sans;
    params.is_ca = IsCa::Ca(match path_length {
        Some(length) => BasicConstraints::Constrained(length),
        None => BasicConstraints::Unconstrained,
    });
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let certificate = match by {
        Some(by) => params.signed_by(&key, &by.issuer).unwrap(),
        None => params.self_signed(&key).unwrap(),
    };
    Authority { der: certificate.der().clone(), issuer: Issuer::new(params, key) }
}

/// A good workload certificate's contents, for a test to spoil.
fn workload(sans: Vec<SanType>) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = sans;
    params.not_before = OffsetDateTime::now_utc() - Span::minutes(2);
    params.not_after = OffsetDateTime::now_utc() + Span::hours(24);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![Eku::ServerAuth, Eku::ClientAuth];
    params
}

fn signed(params: &CertificateParams, by: &Authority) -> CertificateDer<'static> {
    params.signed_by(&KeyPair::generate().unwrap(), &by.issuer).unwrap().der().clone()
}

fn judge(chain: &[CertificateDer<'static>], bundle: &Bundle) -> Result<Identity, Refused> {
    let as_client = verify(chain, bundle, UnixTime::now(), Usage::Client);
    let as_server = verify(chain, bundle, UnixTime::now(), Usage::Server);
    match (&as_client, &as_server) {
        (Err(Refused::WrongUsage(Usage::Client)), Err(Refused::WrongUsage(Usage::Server))) => {}
        _ => assert_eq!(as_client, as_server),
    }
    as_server
}

fn bundle(roots: &[&Authority]) -> Bundle {
    let pem: String = roots
        .iter()
        .map(|root| {
            let text = pkcs8::der::pem::encode_string(
                "CERTIFICATE",
                pkcs8::der::pem::LineEnding::LF,
                &root.der,
            );
            text.unwrap()
        })
        .collect();
    Bundle::from_pem(&pem).unwrap()
}

#[test]
fn each_forged_chain_is_refused_for_its_own_reason() {
    let root = authority("root", vec![], Some(1), None);
    let west = authority("west", vec![uri("spiffe://west.mesh")], Some(0), Some(&root));
    let east = authority("east", vec![uri("spiffe://east.mesh")], Some(0), Some(&root));
    let trusted = bundle(&[&root]);
    let hello = || vec![uri(HELLO)];
    // A leaf with these names by this authority, as a chain.
    let named =
        |sans: Vec<SanType>, by: &Authority| vec![signed(&workload(sans), by), by.der.clone()];
    let spoiled = |spoil: &dyn Fn(&mut CertificateParams)| {
        let mut params = workload(hello());
        spoil(&mut params);
        vec![signed(&params, &west), west.der.clone()]
    };
    let code = |chain: &[CertificateDer<'static>]| match judge(chain, &trusted) {
        Ok(identity) => panic!("{identity} was let in"),
        Err(refused) => refused,
    };

    // What is right: with and without the root sent along.
    let identity: Identity = HELLO.parse().unwrap();
    let mut good = named(hello(), &west);
    assert_eq!(judge(&good, &trusted), Ok(identity.clone()));
    good.push(root.der.clone());
    assert_eq!(judge(&good, &trusted), Ok(identity.clone()));
    // A certificate that is sent but lies off the path says nothing, neither good nor bad.
    good.insert(1, east.der.clone());
    assert_eq!(judge(&good, &trusted), Ok(identity.clone()));

    // Another cluster's authority for our domain, also with our intermediate sent beside it.
    let foreign = Refused::ForeignIssuer { identity, issuer: "east.mesh".parse().unwrap() };
    let mut minted = named(hello(), &east);
    assert_eq!(code(&minted), foreign);
    minted.push(west.der.clone());
    assert_eq!(code(&minted), foreign);
    minted.swap(1, 2);
    assert_eq!(code(&minted), foreign);

    // The leaf's names.
    assert_eq!(code(&named(vec![], &west)), Refused::LeafWithoutNames);
    assert_eq!(
        code(&named(vec![dns("hello.shop")], &west)),
        Refused::LeafWithoutUri("DNS \"hello.shop\"".into())
    );
    let two = vec![uri(HELLO), uri("spiffe://west.mesh/ns/shop/sa/admin")];
    assert_eq!(code(&named(two, &west)), Refused::LeafWithManyUris(2));
    assert_eq!(code(&named(vec![uri(HELLO), uri(HELLO)], &west)), Refused::LeafWithManyUris(2));
    let nul = "spiffe://west.mesh/ns/shop/sa/admin\0hello";
    assert_eq!(code(&named(vec![uri(nul)], &west)), Refused::NameWithControl(nul.into()));
    for name in [
        "spiffe://West.mesh/ns/shop/sa/hello",
        "spiffe://west.mesh/ns/shop/sa/Hello",
        "SPIFFE://west.mesh/ns/shop/sa/hello",
        "spiffe://west.mesh/ns/shop/sa/hello/",
        "spiffe://west.mesh/ns/shop/sa/hel%6co",
        "spiffe://west.mesh/ns/shop/../admin/sa/hello",
        "spiffe://west.mesh:443/ns/shop/sa/hello",
        "spiffe://me@west.mesh/ns/shop/sa/hello",
        "spiffe://west.mesh",
        "https://west.mesh/ns/shop/sa/hello",
        "",
    ] {
        let refused = code(&named(vec![uri(name)], &west));
        assert!(matches!(refused, Refused::NotAnIdentity(_)), "{name}: {refused}");
    }
    let twice = spoiled(&|p| {
        // The same extension again, by hand: two parsers could read one each.
        let again = vec![0x30, 0x08, 0x86, 0x06, b'u', b'r', b'n', b':', b'a', b'b'];
        p.custom_extensions = vec![CustomExtension::from_oid_content(&[2, 5, 29, 17], again)];
    });
    let refused = code(&twice);
    let read = matches!(refused, Refused::UnreadableNames(_) | Refused::Invalid(_));
    assert!(read || matches!(refused, Refused::Unreadable(_)), "{refused}");

    // Its dates and uses.
    let expired = code(&spoiled(&|p| p.not_after = OffsetDateTime::now_utc() - Span::seconds(5)));
    assert!(matches!(expired, Refused::Expired { .. }), "{expired}");
    let early = code(&spoiled(&|p| p.not_before = OffsetDateTime::now_utc() + Span::hours(1)));
    assert!(matches!(early, Refused::NotYetValid { .. }), "{early}");
    let usage = code(&spoiled(&|p| p.extended_key_usages = vec![Eku::EmailProtection]));
    assert_eq!(usage, Refused::WrongUsage(Usage::Server));
    let signer = code(&spoiled(&|p| p.key_usages.push(KeyUsagePurpose::KeyCertSign)));
    assert_eq!(signer, Refused::LeafMaySign);
    let ca = code(&spoiled(&|p| p.is_ca = IsCa::Ca(BasicConstraints::Constrained(0))));
    assert_eq!(ca, Refused::LeafIsAuthority);

    // Its issuers.
    assert_eq!(code(&[signed(&workload(hello()), &root)]), Refused::IssuedByRoot);
    let unnamed = authority("unnamed", vec![], Some(0), Some(&root));
    assert_eq!(code(&named(hello(), &unnamed)), Refused::IssuerWithoutUri);
    let only_dns = authority("dns", vec![dns("west.mesh")], Some(0), Some(&root));
    assert_eq!(code(&named(hello(), &only_dns)), Refused::IssuerWithoutUri);
    let both = vec![uri("spiffe://west.mesh"), uri("spiffe://east.mesh")];
    let both = authority("both", both, Some(0), Some(&root));
    assert_eq!(code(&named(hello(), &both)), Refused::IssuerWithManyUris(2));
    for name in ["spiffe://west.mesh/", "spiffe://West.mesh", "west.mesh", HELLO] {
        let odd = authority("odd", vec![uri(name)], Some(0), Some(&root));
        let refused = code(&named(hello(), &odd));
        assert_eq!(refused, Refused::NotATrustDomain(name.into()));
    }
    let nul = authority("nul", vec![uri("spiffe://west.mesh\0")], Some(0), Some(&root));
    let refused = code(&named(hello(), &nul));
    assert_eq!(refused, Refused::NameWithControl("spiffe://west.mesh\0".into()));

    // The path: an intermediate's intermediate, where its constraint forbids it and where none does.
    let under = authority("under", vec![uri("spiffe://west.mesh")], Some(0), Some(&west));
    let mut long = named(hello(), &under);
    long.push(west.der.clone());
    assert_eq!(code(&long), Refused::PathTooLong);
    let lax_root = authority("lax root", vec![], None, None);
    let lax = authority("lax", vec![uri("spiffe://west.mesh")], None, Some(&lax_root));
    let under = authority("under", vec![uri("spiffe://west.mesh")], Some(0), Some(&lax));
    let mut long = named(hello(), &under);
    long.push(lax.der.clone());
    assert_eq!(judge(&long, &bundle(&[&lax_root])), Err(Refused::PathTooLong));
    // An intermediate among the roots makes it a root: what it issued has no intermediate.
    assert_eq!(judge(&named(hello(), &west), &bundle(&[&west])), Err(Refused::IssuedByRoot));
    let key = KeyPair::generate().unwrap();
    let mut plain = workload(vec![uri("spiffe://west.mesh")]);
    plain.distinguished_name.push(DnType::CommonName, "a workload");
    plain.key_usages.push(KeyUsagePurpose::KeyCertSign);
    let der = plain.signed_by(&key, &root.issuer).unwrap().der().clone();
    let no_authority = Authority { der, issuer: Issuer::new(plain, key) };
    assert_eq!(code(&named(hello(), &no_authority)), Refused::IssuerIsNoAuthority);

    // Roots and signatures.
    let other_root = authority("other root", vec![], Some(1), None);
    let stranger =
        authority("stranger", vec![uri("spiffe://west.mesh")], Some(0), Some(&other_root));
    assert_eq!(code(&named(hello(), &stranger)), Refused::UnknownRoot);
    // The same name as our root, another key.
    let twin = authority("root", vec![], Some(1), None);
    let of_twin = authority("west", vec![uri("spiffe://west.mesh")], Some(0), Some(&twin));
    assert_eq!(code(&named(hello(), &of_twin)), Refused::FalseSignature);
    assert_eq!(code(&named(hello(), &west)[..1]), Refused::UnknownRoot);
    let mut own = workload(hello());
    own.distinguished_name.push(DnType::CommonName, "myself");
    let own = own.self_signed(&KeyPair::generate().unwrap()).unwrap();
    assert_eq!(code(&[own.der().clone()]), Refused::SelfSigned);

    // What is no chain.
    assert_eq!(code(&[]), Refused::NoCertificate);
    assert_eq!(code(&vec![west.der.clone(); 9]), Refused::TooManyCertificates(9));
    let garbage = code(&[CertificateDer::from(vec![0x30, 0x03, 1, 2, 3])]);
    assert!(matches!(garbage, Refused::Unreadable(_)), "{garbage}");
}

#[test]
fn a_chain_known_to_be_good_is_still_judged_by_clock_and_use() {
    let root = authority("root", vec![], None, None);
    let west = authority("west", vec![uri("spiffe://west.mesh")], Some(0), Some(&root));
    let mut params = workload(vec![uri(HELLO)]);
    params.extended_key_usages = vec![Eku::ServerAuth];
    let chain = [signed(&params, &west), west.der.clone()];
    let bundle = bundle(&[&root]);
    let judge = |now: u64, usage| {
        let now = UnixTime::since_unix_epoch(Duration::from_secs(now));
        verify(&chain, &bundle, now, usage)
    };
    let now = UnixTime::now().as_secs();
    for _ in 0..2 {
        assert_eq!(judge(now, Usage::Server).unwrap().to_string(), HELLO);
        assert!(matches!(judge(now, Usage::Client), Err(Refused::WrongUsage(_))));
        assert!(matches!(judge(now + 25 * 3_600, Usage::Server), Err(Refused::Expired { .. })));
        assert!(matches!(judge(now - 3_600, Usage::Server), Err(Refused::NotYetValid { .. })));
    }
    // A leaf that another key signed, once the good one is known.
    let other = authority("west", vec![uri("spiffe://west.mesh")], Some(0), Some(&root));
    let forged = [signed(&params, &other), west.der.clone()];
    assert_eq!(
        verify(&forged, &bundle, UnixTime::now(), Usage::Server),
        Err(Refused::FalseSignature)
    );
}

#[test]
fn the_clock_is_the_callers() {
    let root = authority("root", vec![], Some(1), None);
    let west = authority("west", vec![uri("spiffe://west.mesh")], Some(0), Some(&root));
    let chain = [signed(&workload(vec![uri(HELLO)]), &west), west.der.clone()];
    let at = |now: Duration| {
        verify(&chain, &bundle(&[&root]), UnixTime::since_unix_epoch(now), Usage::Server)
    };
    let now = Duration::from_secs(UnixTime::now().as_secs());
    let hours = |n: u64| Duration::from_secs(n * 3600);
    assert!(at(now).is_ok());
    assert!(matches!(at(now + hours(25)), Err(Refused::Expired { .. })));
    assert!(matches!(at(now - hours(1)), Err(Refused::NotYetValid { .. })));
}
