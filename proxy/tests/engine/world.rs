//! A small mesh for tests: a root, clusters with trust domains, and servers of every temper.

#![allow(unreachable_pub, reason = "two test crates share this file")]

#[path = "../../../runtime/tests/support/port.rs"]
mod port;

use mesh::name::{ClusterId, Identity};
use mesh::program::*;
pub(crate) use port::Port;
use proxy::{Engine, Options};
use runtime::metrics::Metrics;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, SystemTime};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use trust::bundle::Bundle;
use trust::issue::Issuer;
use trust::svid::Svid;
use trust::tls::Clients;

const PASSPHRASE: &str = "a long passphrase for tests";

/// Clusters east, west and north with trust domain `NAME.mesh` under one root.
pub struct World {
    issuers: BTreeMap<&'static str, Issuer>,
    pub root_pem: String,
}

/// A server, counted and ended with its guard.
pub struct Server {
    pub address: SocketAddr,
    pub connections: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<()>,
}

impl Server {
    pub fn count(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    pub async fn kill(self) {
        self.task.abort();
        let _ = self.task.await;
    }
}

pub fn watched<T>(value: T) -> watch::Receiver<Arc<T>> {
    watch::Sender::new(Arc::new(value)).subscribe()
}

impl World {
    /// One for all tests of a process: keeping a root's key costs a second by design.
    pub fn shared() -> &'static Self {
        static WORLD: LazyLock<World> = LazyLock::new(World::new);
        &WORLD
    }

    fn new() -> Self {
        let root = trust::root::create("test", PASSPHRASE).unwrap();
        let mut issuers = BTreeMap::new();
        for cluster in ["east", "west", "north"] {
            let ca = trust::root::issue_intermediate(
                &root.certificate_pem,
                &root.encrypted_key_pem,
                PASSPHRASE,
                &format!("{cluster}.mesh").parse().unwrap(),
                Duration::from_secs(30 * 86_400),
            )
            .unwrap();
            let key = ca.ca_key.reveal();
            let issuer = Issuer::from_cacerts(&ca.ca_cert, &ca.cert_chain, key, &ca.root_cert);
            issuers.insert(cluster, issuer.unwrap());
        }
        Self { issuers, root_pem: root.certificate_pem }
    }

    pub fn bundle(&self) -> watch::Receiver<Arc<Bundle>> {
        watched(Bundle::from_pem(&self.root_pem).unwrap())
    }

    /// Chain and key, PEM.
    pub fn pem(&self, cluster: &str, namespace: &str, account: &str) -> (String, String) {
        let identity = identity(cluster, namespace, account);
        let (key, csr) = trust::issue::new_key_and_csr(&identity);
        let chain = self.issuers[cluster]
            .sign(&csr, &identity, Duration::from_secs(3_600), SystemTime::now())
            .unwrap();
        (chain.concat(), key.reveal().to_owned())
    }

    pub fn svid(
        &self,
        cluster: &str,
        namespace: &str,
        account: &str,
    ) -> watch::Receiver<Arc<Svid>> {
        let (chain, key) = self.pem(cluster, namespace, account);
        watched(Svid::from_pem(&chain, &key).unwrap())
    }

    /// Answers every connection with `name` and a newline, then echoes.
    pub async fn echo(&self, cluster: &str, account: &str, name: &str) -> Server {
        self.echo_at("127.0.0.1:0".parse().unwrap(), cluster, "shop", account, name).await
    }

    pub async fn echo_at(
        &self,
        address: SocketAddr,
        cluster: &str,
        namespace: &str,
        account: &str,
        name: &str,
    ) -> Server {
        let config = trust::tls::server_config(
            self.svid(cluster, namespace, account),
            self.bundle(),
            Clients::Required { trust_domains: None },
            &[b"istio", b"istio-http/1.1"],
        );
        let greeting = format!("{name}\n");
        serve(address, move |stream| {
            let (acceptor, greeting) = (TlsAcceptor::from(config.clone()), greeting.clone());
            async move {
                let Ok(mut tls) = acceptor.accept(stream).await else { return };
                if tls.write_all(greeting.as_bytes()).await.is_err() {
                    return;
                }
                let _ = tls.flush().await;
                let (mut read, mut write) = tokio::io::split(tls);
                let _ = tokio::io::copy(&mut read, &mut write).await;
                let _ = write.shutdown().await;
            }
        })
        .await
    }

    pub fn engine(&self, snapshot: watch::Receiver<Arc<Snapshot>>) -> Engine {
        Engine::new(Options {
            metrics: Metrics::new(),
            svid: self.svid("east", "shop", "client"),
            bundle: self.bundle(),
            cluster: "east".parse().unwrap(),
            network: "east".parse().unwrap(),
            snapshot,
            want: None,
        })
    }
}

/// A server that does `with` to each connection, on a socket that may be bound again at once.
pub async fn serve<F, Fut>(address: SocketAddr, with: F) -> Server
where
    F: Fn(TcpStream) -> Fut + Send + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind(address).await.unwrap();
    let address = listener.local_addr().unwrap();
    let connections = Arc::new(AtomicUsize::new(0));
    let counted = connections.clone();
    let task = tokio::spawn(async move {
        let mut all = tokio::task::JoinSet::new();
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            counted.fetch_add(1, Ordering::SeqCst);
            all.spawn(with(stream));
        }
    });
    Server { address, connections, task }
}

/// Takes connections and says nothing, as a stopped process does.
pub async fn silent() -> Server {
    serve("127.0.0.1:0".parse().unwrap(), |mut stream| async move {
        let mut buf = [0; 1024];
        while stream.read(&mut buf).await.is_ok_and(|n| n > 0) {}
    })
    .await
}

/// An address whose SYNs are dropped: a listener whose queue is full.
pub struct BlackHole {
    pub address: SocketAddr,
    _listener: socket2::Socket,
    _queued: Vec<std::net::TcpStream>,
}

pub fn black_hole() -> BlackHole {
    let listener =
        socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    listener.bind(&any.into()).unwrap();
    listener.listen(0).unwrap();
    let address = listener.local_addr().unwrap().as_socket().unwrap();
    let mut queued = Vec::new();
    // Until one is not answered any more, the queue is not full.
    while let Ok(stream) =
        std::net::TcpStream::connect_timeout(&address, Duration::from_millis(100))
    {
        queued.push(stream);
    }
    BlackHole { address, _listener: listener, _queued: queued }
}

pub fn identity(cluster: &str, namespace: &str, account: &str) -> Identity {
    format!("spiffe://{cluster}.mesh/ns/{namespace}/sa/{account}").parse().unwrap()
}

pub fn name() -> ClusterName {
    "outbound|80||hello.shop.global".parse().unwrap()
}

/// A pod of `cluster`, its network of the same name.
pub fn pod(address: SocketAddr, cluster: &str) -> LbEndpoint {
    LbEndpoint {
        address,
        cluster: cluster.parse().unwrap(),
        network: cluster.parse().unwrap(),
        weight: 1,
        tls: true,
        gateway: false,
        workload: "hello-0".into(),
    }
}

pub fn gateway(address: SocketAddr, cluster: &str) -> LbEndpoint {
    LbEndpoint { gateway: true, workload: String::new(), ..pod(address, cluster) }
}

/// The destination of [`name`], with one locality group per list, by priority; all clusters'
/// accounts are `hello`.
pub fn snapshot(tiers: &[&[LbEndpoint]]) -> Snapshot {
    let name = name();
    let clusters: BTreeSet<ClusterId> =
        tiers.iter().flat_map(|tier| tier.iter().map(|e| e.cluster.clone())).collect();
    let server_identities = clusters
        .into_iter()
        .map(|c| (c.clone(), BTreeSet::from([identity(c.as_str(), "shop", "hello")])))
        .collect();
    let cluster = Cluster {
        name,
        sni: "outbound_.80_._.hello.shop.global".into(),
        protocol: mesh::name::Protocol::Tcp,
        load_balancing: LoadBalancing::RoundRobin,
        connect_timeout_ms: 1_000,
        outlier: OutlierDetection { base_ejection_ms: 400, ..OutlierDetection::default() },
        pool: ConnectionPool::default(),
        server_identities,
    };
    with(cluster, tiers)
}

pub fn with(cluster: Cluster, tiers: &[&[LbEndpoint]]) -> Snapshot {
    let name = cluster.name.clone();
    let groups = tiers
        .iter()
        .enumerate()
        .map(|(priority, endpoints)| LocalityGroup {
            priority: priority as u32,
            locality: Default::default(),
            weight: endpoints.iter().map(|e| e.weight).sum(),
            endpoints: endpoints.to_vec(),
        })
        .collect();
    let endpoints = Endpoints { cluster: name.clone(), groups };
    let mut snapshot = Snapshot { connected: true, ..Snapshot::default() };
    let cluster_name = ResourceName::new(ResourceKind::Cluster, name.to_string());
    let endpoints_name = ResourceName::new(ResourceKind::Endpoints, name.to_string());
    snapshot.program.insert(cluster_name, Arc::new(Resource::Cluster(cluster)));
    snapshot.program.insert(endpoints_name, Arc::new(Resource::Endpoints(endpoints)));
    snapshot
}
