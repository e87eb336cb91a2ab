//! The agent against a control plane on real sockets: identity, configuration, restarts without it.

use agent::{Agent, AgentConfig, RootCertificates, Source as Origin, start};
use futures::future::BoxFuture;
use mesh::name::Identity;
use mesh::program::*;
use mesh::sni::probe_host;
use mesh::world::{Role, View};
use runtime::metrics::Metrics;
use runtime::readiness::Readiness;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
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
use xds::issue::{Issue, Refused, Request};
use xds::node::Node;
use xds::serve::{Changed, Sessions, Source};

const PASSPHRASE: &str = "a long passphrase for tests";
const TOKEN: &str = "the token of the gateway";

/// One cluster's control plane, which serves whatever program it holds.
struct ControlPlane {
    issuer: Issuer,
    program: Mutex<Program>,
    generation: watch::Sender<u64>,
}

impl Issue for ControlPlane {
    fn issue(&self, request: Request) -> BoxFuture<'_, Result<Vec<String>, Refused>> {
        Box::pin(async move {
            if request.token.as_deref() != Some(TOKEN) {
                return Err(Refused::Unauthenticated("the token is not good".into()));
            }
            let signed =
                self.issuer.sign(&request.csr_pem, &gateway(), request.ttl, SystemTime::now());
            signed.map_err(|e| Refused::Invalid(e.to_string()))
        })
    }
}

impl Source for ControlPlane {
    fn view(&self, peer: &Identity, node: &Node) -> Result<View, String> {
        if *peer != gateway() {
            return Err(format!("{peer} is a stranger"));
        }
        Ok(View {
            role: node.role,
            dialect: node.dialect,
            cluster: "west".parse().unwrap(),
            network: "west".parse().unwrap(),
            locality: Default::default(),
            namespace: node.namespace.clone(),
            identity: peer.clone(),
            workload: node.pod.clone(),
        })
    }

    fn resource(&self, _: &View, name: &ResourceName) -> Option<Arc<Resource>> {
        self.program.lock().unwrap().get(name).cloned()
    }

    fn names(&self, _: &View, kind: ResourceKind) -> Vec<ResourceName> {
        let program = self.program.lock().unwrap();
        program.keys().filter(|name| name.kind == kind).cloned().collect()
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.generation.subscribe()
    }

    fn changed_since(&self, _: u64) -> Changed {
        Changed::All
    }
}

fn gateway() -> Identity {
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
struct Machine {
    control_plane: Arc<ControlPlane>,
    root: String,
    folder: tempfile::TempDir,
}

impl Machine {
    fn new() -> Self {
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
        let control_plane = ControlPlane {
            issuer,
            program: Mutex::new(program),
            generation: watch::Sender::new(1),
        };
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("root.pem"), &root.certificate_pem).unwrap();
        std::fs::write(folder.path().join("token"), format!("{TOKEN}\n")).unwrap();
        Self { control_plane: Arc::new(control_plane), root: root.certificate_pem, folder }
    }

    fn file(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    /// Serves until `end`, as `account`.
    async fn serve(&self, account: &str, end: CancellationToken) -> SocketAddr {
        let identity: Identity =
            format!("spiffe://west.mesh/ns/isthmus-system/sa/{account}").parse().unwrap();
        let (key, csr) = trust::issue::new_key_and_csr(&identity);
        let chain = self
            .control_plane
            .issuer
            .sign(&csr, &identity, Duration::ZERO, SystemTime::now())
            .unwrap();
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
        let control_plane = self.control_plane.clone();
        let issuer: Arc<dyn Issue> = control_plane.clone();
        tokio::spawn(async move {
            let sessions = Sessions::default();
            xds::serve::serve(incoming, control_plane, Some(issuer), sessions, end).await
        });
        address
    }

    fn config(&self, address: SocketAddr, state: bool) -> AgentConfig {
        AgentConfig {
            role: Role::Gateway,
            cluster: "west".parse().unwrap(),
            network: None,
            trust_domain: "west.mesh".parse().unwrap(),
            namespace: "isthmus-system".into(),
            pod: "gw-0".into(),
            account: "isthmus-gateway".into(),
            address: "10.244.0.7".parse().unwrap(),
            root_certificates: RootCertificates::File(self.file("root.pem")),
            source: Origin::ControlPlane {
                address: address.into(),
                token: self.file("token"),
                state: state.then(|| self.file("state")),
            },
            follow: vec![ResourceName::gateway()],
        }
    }
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let limit = Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(Instant::now() < limit, "never: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn knows(agent: &Agent, name: &ResourceName) -> bool {
    agent.snapshot.borrow().program.contains_key(name)
}

#[tokio::test]
async fn gets_an_identity_follows_its_names_and_what_is_wanted() {
    let machine = Machine::new();
    let end = CancellationToken::new();
    let address = machine.serve("isthmus-control-plane", end.clone()).await;
    let (readiness, metrics) = (Readiness::new(), Metrics::new());
    let agent =
        start(machine.config(address, false), &readiness, &metrics, end.clone()).await.unwrap();
    assert_eq!(agent.svid.borrow().identity, gateway());
    tokio::time::timeout(Duration::from_secs(10), readiness.ready()).await.unwrap();
    assert!(knows(&agent, &ResourceName::gateway()));

    let shown = metrics.encode();
    let left = shown.lines().find_map(|line| line.strip_prefix("istio_agent_cert_expiry_seconds "));
    let left: i64 = left.expect(&shown).parse().unwrap();
    assert!((86_000..=86_400).contains(&left), "{left}");
    assert!(shown.contains("isthmus_certificate_renewal_failures_total 0"), "{shown}");

    // What is not followed comes only once it is wanted, and absent names are answered.
    let wanted = ResourceName::outbound("240.240.7.2".parse().unwrap(), 80);
    agent.want.as_ref().unwrap().send(wanted.clone()).await.unwrap();
    until("absent", || agent.snapshot.borrow().absent.contains(&wanted)).await;
    end.cancel();
}

#[tokio::test]
async fn a_restart_without_a_control_plane_runs_on_the_last_good_state() {
    let machine = Machine::new();
    let first = CancellationToken::new();
    let address = machine.serve("isthmus-control-plane", first.clone()).await;
    let agent =
        start(machine.config(address, true), &Readiness::new(), &Metrics::new(), first.clone())
            .await;
    let svid = agent.unwrap().svid.borrow().chain.clone();
    let program = machine.file("state/program.json");
    let kept = |path: &Path| {
        std::fs::read_to_string(path).is_ok_and(|text| text.contains("probe.west.isthmus.internal"))
    };
    until("the program is on disk", || kept(&program)).await;
    first.cancel();

    let (readiness, second) = (Readiness::new(), CancellationToken::new());
    let metrics = Metrics::new();
    let again = start(machine.config(address, true), &readiness, &metrics, second.clone());
    let again = tokio::time::timeout(Duration::from_secs(5), again).await.unwrap().unwrap();
    assert_eq!(again.svid.borrow().chain, svid, "the kept identity");
    assert!(readiness.is_ready(), "{:?}", readiness.awaited());
    assert!(knows(&again, &ResourceName::gateway()));
    assert!(!again.snapshot.borrow().connected);
    second.cancel();
}

#[tokio::test]
async fn an_impostor_gets_neither_token_nor_say() {
    let machine = Machine::new();
    let end = CancellationToken::new();
    // Same root, same domain, another account.
    let address = machine.serve("intruder", end.clone()).await;
    let readiness = Readiness::new();
    let config = machine.config(address, false);
    let starting = tokio::spawn({
        let (readiness, end) = (readiness.clone(), end.clone());
        async move { start(config, &readiness, &Metrics::new(), end).await }
    });
    until("the reason is told", || {
        readiness.awaited().get("identity").is_some_and(|why| why.contains("ISM6010"))
    })
    .await;
    end.cancel();
    assert!(starting.await.unwrap().is_err());
}

#[tokio::test]
async fn a_bad_token_is_said_and_a_new_one_is_read() {
    let machine = Machine::new();
    let end = CancellationToken::new();
    std::fs::write(machine.file("token"), "expired").unwrap();
    let address = machine.serve("isthmus-control-plane", end.clone()).await;
    let readiness = Readiness::new();
    let config = machine.config(address, false);
    let starting = tokio::spawn({
        let (readiness, end) = (readiness.clone(), end.clone());
        async move { start(config, &readiness, &Metrics::new(), end).await }
    });
    until("the refusal is told", || {
        let awaited = readiness.awaited();
        awaited.get("identity").is_some_and(|why| why.contains("the token is not good"))
    })
    .await;
    std::fs::write(machine.file("token"), TOKEN).unwrap();
    let agent = tokio::time::timeout(Duration::from_secs(10), starting).await.unwrap();
    assert_eq!(agent.unwrap().unwrap().svid.borrow().identity, gateway());
    end.cancel();
}
