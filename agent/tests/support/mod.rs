//! A cluster's control plane on real sockets, and all that stays when its process dies.
#![allow(dead_code, reason = "each test uses a part")]

#[path = "../../../xds/tests/support/world.rs"]
mod world;

use agent::{AgentConfig, Config, Source as Origin};
use futures::future::BoxFuture;
use mesh::name::Identity;
use mesh::program::*;
use mesh::sni::probe_host;
use mesh::world::Role;
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use trust::issue::Issuer;
use trust::svid::Svid;
use trust::tls::Clients;
use world::World;
use xds::issue::{Issue, Refused, Request, TurnedAway};
use xds::serve::Sessions;

const PASSPHRASE: &str = "a long passphrase for tests";
pub(crate) const TOKEN: &str = "the token of the gateway";

/// One cluster's authority.
pub(crate) struct Authority {
    issuer: Issuer,
    /// Of certificates, at most.
    pub(crate) lifetime: Mutex<Duration>,
}

impl Issue for Authority {
    fn issue(&self, request: Request) -> BoxFuture<'_, Result<Vec<String>, Refused>> {
        Box::pin(async move {
            if request.token.as_deref() != Some(TOKEN) {
                return Err(Refused::Unauthenticated("the token is not good".into()));
            }
            let ttl = request.ttl.min(*self.lifetime.lock().unwrap());
            let signed = self.issuer.sign(&request.csr_pem, &gateway(), ttl, SystemTime::now());
            signed.map_err(|e| Refused::Invalid(e.to_string()))
        })
    }

    fn turned_away(&self, _: TurnedAway) {}
}

pub(crate) fn gateway() -> Identity {
    "spiffe://west.mesh/ns/isthmus-system/sa/isthmus-gateway".parse().unwrap()
}

fn listener() -> Arc<Resource> {
    let probe = probe_host(&"west".parse().unwrap());
    Arc::new(Resource::Listener(Listener::Gateway(GatewayListener {
        routes: BTreeMap::new(),
        probe,
    })))
}

/// Everything but the control plane's process: what stays when that dies.
pub(crate) struct Machine {
    pub(crate) authority: Arc<Authority>,
    world: Arc<World>,
    root: String,
    folder: tempfile::TempDir,
}

impl Machine {
    pub(crate) fn new() -> Self {
        let root = trust::root::create("test", PASSPHRASE).unwrap();
        let ca = trust::root::issue_intermediate(
            &root.certificate_pem,
            &root.encrypted_key_pem,
            PASSPHRASE,
            &"west.mesh".parse().unwrap(),
            Duration::from_secs(30 * 86_400),
        )
        .unwrap();
        let issuer =
            Issuer::from_cacerts(&ca.ca_cert, &ca.cert_chain, ca.ca_key.reveal(), &ca.root_cert)
                .unwrap();
        let bundle = ValidationContext {
            name: "ROOTCA".into(),
            root_certificates: root.certificate_pem.clone(),
        };
        let program = Program::from([
            (ResourceName::gateway(), listener()),
            (ResourceName::root_ca(), Arc::new(Resource::Secret(bundle))),
        ]);
        let authority = Authority { issuer, lifetime: Mutex::new(Duration::from_secs(86_400)) };
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("root.pem"), &root.certificate_pem).unwrap();
        std::fs::write(folder.path().join("token"), format!("{TOKEN}\n")).unwrap();
        let (authority, world) = (Arc::new(authority), World::new(program));
        Self { authority, world, root: root.certificate_pem, folder }
    }

    pub(crate) fn file(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    /// Serves until `end`, as `account`.
    pub(crate) async fn serve(&self, account: &str, end: CancellationToken) -> SocketAddr {
        let identity: Identity =
            format!("spiffe://west.mesh/ns/isthmus-system/sa/{account}").parse().unwrap();
        let (key, csr) = trust::issue::new_key_and_csr(&identity);
        let chain =
            self.authority.issuer.sign(&csr, &identity, Duration::ZERO, SystemTime::now()).unwrap();
        let svid = Svid::from_pem(&chain.concat(), key.reveal()).unwrap();
        let bundle = trust::bundle::Bundle::from_pem(&self.root).unwrap();
        let config = trust::tls::server_config(
            watch::Sender::new(Arc::new(svid)).subscribe(),
            watch::Sender::new(Arc::new(bundle)).subscribe(),
            Clients::Optional,
            &[b"h2"],
        );
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (accepted, incoming) = mpsc::channel(16);
        let ended = end.clone();
        tokio::spawn(async move {
            loop {
                let stream = tokio::select! {
                    () = ended.cancelled() => return,
                    stream = listener.accept() => stream.unwrap().0,
                };
                let Ok(tls) = TlsAcceptor::from(config.clone()).accept(stream).await else {
                    continue;
                };
                let peer = tls.get_ref().1.peer_certificates().and_then(trust::tls::peer_identity);
                let _ = accepted.send((tls, peer)).await;
            }
        });
        let incoming = futures::stream::unfold(incoming, |mut incoming| async {
            incoming.recv().await.map(|stream| (stream, incoming))
        });
        let (world, authority) = (self.world.clone(), self.authority.clone());
        tokio::spawn(async move {
            xds::serve::serve(incoming, world, Some(authority), Sessions::default(), end).await
        });
        address
    }

    pub(crate) fn edit(&self, name: &ResourceName, value: Option<Resource>) {
        self.world.edit(name, value);
    }

    /// Of an agent beside a foreign proxy, all of whose pages are on ports that nobody knows.
    pub(crate) fn beside(&self, control_plane: SocketAddr) -> Config {
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        Config {
            cluster: "west".parse().unwrap(),
            network: None,
            namespace: "isthmus-system".into(),
            pod: "gw-0".into(),
            account: "isthmus-gateway".into(),
            trust_domain: "west.mesh".parse().unwrap(),
            root_certificates: agent::RootCertificates::File(self.file("root.pem")),
            pod_addresses: vec!["10.244.0.7".parse().unwrap()],
            control_plane: control_plane.into(),
            token: self.file("token"),
            state: None,
            socket: self.file("uds/socket"),
            peers: Vec::new(),
            proxy_admin: any,
            metrics: any,
            health: any,
            vip_ranges: Vec::new(),
            drain_seconds: 1,
        }
    }

    pub(crate) fn config(&self, address: SocketAddr, state: bool) -> AgentConfig {
        AgentConfig {
            role: Role::Gateway,
            cluster: "west".parse().unwrap(),
            network: None,
            trust_domain: "west.mesh".parse().unwrap(),
            namespace: "isthmus-system".into(),
            pod: "gw-0".into(),
            account: "isthmus-gateway".into(),
            address: "10.244.0.7".parse().unwrap(),
            root_certificates: agent::RootCertificates::File(self.file("root.pem")),
            source: Origin::ControlPlane {
                address: address.into(),
                token: self.file("token"),
                state: state.then(|| self.file("state")),
            },
            follow: vec![ResourceName::gateway()],
        }
    }
}

/// Against a hang only: no promise is about these times.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let limit = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < limit, "never: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
