//! Handshakes in memory between the configurations of both sides.

use mesh::name::{Identity, TrustDomain};
use rustls::{
    ClientConfig, ClientConnection, HandshakeKind, NamedGroup, ProtocolVersion, ServerConfig,
    ServerConnection,
};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::watch;
use trust::bundle::Bundle;
use trust::issue::{Issuer, new_key_and_csr};
use trust::root::{self, RootFiles};
use trust::svid::Svid;
use trust::tls::{self, Clients, Expected};
use trust::verify::Refused;

const PASSPHRASE: &str = "correct horse battery";

struct Mesh {
    root: RootFiles,
    bundle: watch::Receiver<Arc<Bundle>>,
}

impl Mesh {
    fn new() -> Self {
        let root = root::create("Example", PASSPHRASE).unwrap();
        let bundle = Bundle::from_pem(&root.certificate_pem).unwrap();
        Self { root, bundle: watch::channel(Arc::new(bundle)).1 }
    }

    fn svid(&self, identity: &str) -> Arc<Svid> {
        let identity: Identity = identity.parse().unwrap();
        let c = root::issue_intermediate(
            &self.root.certificate_pem,
            &self.root.encrypted_key_pem,
            PASSPHRASE,
            &identity.domain,
            root::INTERMEDIATE_VALIDITY,
        )
        .unwrap();
        let issuer =
            Issuer::from_cacerts(&c.ca_cert, &c.cert_chain, c.ca_key.reveal(), &c.root_cert)
                .unwrap();
        let (key, csr) = new_key_and_csr(&identity);
        let chain = issuer.sign(&csr, &identity, Duration::ZERO, SystemTime::now()).unwrap();
        Arc::new(Svid::from_pem(&chain.concat(), key.reveal()).unwrap())
    }
}

fn fixed<T>(value: T) -> watch::Receiver<T> {
    watch::channel(value).1
}

fn any_of(identities: &[&str]) -> Expected {
    let identities: BTreeSet<Identity> = identities.iter().map(|i| i.parse().unwrap()).collect();
    Expected::AnyOf(Arc::new(identities))
}

fn domains(names: &[&str]) -> BTreeSet<TrustDomain> {
    names.iter().map(|name| name.parse().unwrap()).collect()
}

type Ends = (ClientConnection, ServerConnection);

/// Runs a handshake; the error is of the side that refused.
fn shake(client: Arc<ClientConfig>, server: Arc<ServerConfig>) -> Result<Ends, rustls::Error> {
    let name = "outbound_.80_._.hello.shop.global".try_into().unwrap();
    let mut client = ClientConnection::new(client, name).unwrap();
    let mut server = ServerConnection::new(server).unwrap();
    let mut wire = Vec::new();
    while client.is_handshaking() || server.is_handshaking() {
        wire.clear();
        while client.wants_write() {
            client.write_tls(&mut wire).unwrap();
        }
        let mut read = &wire[..];
        while !read.is_empty() {
            server.read_tls(&mut read).unwrap();
            server.process_new_packets()?;
        }
        wire.clear();
        while server.wants_write() {
            server.write_tls(&mut wire).unwrap();
        }
        let mut read = &wire[..];
        while !read.is_empty() {
            client.read_tls(&mut read).unwrap();
            client.process_new_packets()?;
        }
    }
    Ok((client, server))
}

fn refusal(result: Result<Ends, rustls::Error>) -> Refused {
    let error = result.err().unwrap();
    tls::refused(&error).unwrap_or_else(|| panic!("not by the verifier: {error}")).clone()
}

const HELLO: &str = "spiffe://west.mesh/ns/shop/sa/hello";
const CLIENT: &str = "spiffe://east.mesh/ns/shop/sa/client";

#[test]
fn both_sides_know_each_other_and_nothing_is_resumed() {
    let mesh = Mesh::new();
    let any = Clients::Required { trust_domains: None };
    let server =
        tls::server_config(fixed(mesh.svid(HELLO)), mesh.bundle.clone(), any, &[b"istio", b"h2"]);
    let client = tls::client_config(
        Some(fixed(mesh.svid(CLIENT))),
        mesh.bundle,
        any_of(&[HELLO]),
        &[b"istio"],
    );
    for _ in 0..2 {
        let (client, server) = shake(client.clone(), server.clone()).unwrap();
        assert_eq!(client.protocol_version(), Some(ProtocolVersion::TLSv1_3));
        let group = client.negotiated_key_exchange_group().unwrap().name();
        assert_eq!(group, NamedGroup::X25519MLKEM768);
        assert_eq!(client.handshake_kind(), Some(HandshakeKind::Full));
        assert_eq!(client.tls13_tickets_received(), 0);
        assert_eq!(server.alpn_protocol(), Some(&b"istio"[..]));
        let who = tls::peer_identity(server.peer_certificates().unwrap()).unwrap();
        assert_eq!(who.to_string(), CLIENT);
        let who = tls::peer_identity(client.peer_certificates().unwrap()).unwrap();
        assert_eq!(who.to_string(), HELLO);
    }
}

#[test]
fn a_refusal_says_why() {
    let mesh = Mesh::new();
    let server =
        |clients| tls::server_config(fixed(mesh.svid(HELLO)), mesh.bundle.clone(), clients, &[]);
    let client = |mesh: &Mesh, bundle: &Mesh, expected| {
        tls::client_config(Some(fixed(mesh.svid(CLIENT))), bundle.bundle.clone(), expected, &[])
    };
    let only = |names: &[&str]| Clients::Required { trust_domains: Some(domains(names)) };
    let in_west = Expected::AnyIn(Arc::new(domains(&["west.mesh"])));

    let shaken = shake(client(&mesh, &mesh, in_west.clone()), server(only(&["east.mesh"])));
    assert!(shaken.is_ok());
    let refused =
        refusal(shake(client(&mesh, &mesh, in_west.clone()), server(only(&["west.mesh"]))));
    assert_eq!(refused, Refused::DomainNotAccepted(CLIENT.parse().unwrap()));
    let expected = any_of(&[CLIENT]);
    let refused = refusal(shake(client(&mesh, &mesh, expected), server(Clients::None)));
    let found = HELLO.parse().unwrap();
    assert_eq!(refused, Refused::NotExpected { found, expected: CLIENT.into() });
    let in_north = Expected::AnyIn(Arc::new(domains(&["north.mesh"])));
    let refused = refusal(shake(client(&mesh, &mesh, in_north), server(Clients::None)));
    assert!(matches!(refused, Refused::NotExpected { .. }));
    let nobody = Expected::AnyOf(Arc::default());
    let refused = refusal(shake(client(&mesh, &mesh, nobody), server(Clients::None)));
    assert!(refused.to_string().ends_with("expected was nobody"), "{refused}");

    // A client of another mesh that trusts ours.
    let stranger = client(&Mesh::new(), &mesh, in_west.clone());
    assert_eq!(
        refusal(shake(stranger.clone(), server(only(&["east.mesh"])))),
        Refused::UnknownRoot
    );
    // A bad certificate is no better than none where one is optional.
    assert_eq!(refusal(shake(stranger, server(Clients::Optional))), Refused::UnknownRoot);

    // Without a certificate.
    let bare = tls::client_config(None, mesh.bundle.clone(), in_west, &[]);
    let (_, server_end) = shake(bare.clone(), server(Clients::Optional)).unwrap();
    assert!(server_end.peer_certificates().is_none());
    let error = shake(bare, server(only(&["east.mesh"]))).err().unwrap();
    assert_eq!(error, rustls::Error::NoCertificatesPresented);
}

#[test]
fn a_new_certificate_and_a_new_root_serve_the_next_handshake() {
    let (old, new) = (Mesh::new(), Mesh::new());
    let (svid, svids) = watch::channel(old.svid(HELLO));
    let (bundle, bundles) = watch::channel(old.bundle.borrow().clone());
    let server = tls::server_config(svids, bundles.clone(), Clients::None, &[]);
    let client = tls::client_config(None, bundles, any_of(&[HELLO]), &[]);
    shake(client.clone(), server.clone()).unwrap();
    svid.send_replace(new.svid(HELLO));
    assert_eq!(refusal(shake(client.clone(), server.clone())), Refused::UnknownRoot);
    bundle.send_replace(new.bundle.borrow().clone());
    shake(client, server).unwrap();
}

#[test]
fn tls_1_2_is_not_spoken() {
    let mesh = Mesh::new();
    let server = tls::server_config(fixed(mesh.svid(HELLO)), mesh.bundle, Clients::None, &[]);
    let old = ClientConfig::builder_with_provider(Arc::new(
        rustls::crypto::aws_lc_rs::default_provider(),
    ))
    .with_protocol_versions(&[&rustls::version::TLS12])
    .unwrap()
    .with_root_certificates(rustls::RootCertStore::empty())
    .with_no_client_auth();
    assert!(shake(Arc::new(old), server).is_err());
}
