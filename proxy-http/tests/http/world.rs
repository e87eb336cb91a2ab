//! A small mesh: a client's sidecar, copies of a service in two clusters, and what they do.

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use mesh::name::{ClusterId, Hostname, Identity, Protocol};
use mesh::program::{
    Cluster, ClusterName, ConnectionPool, Endpoints, LbEndpoint, LoadBalancing, LocalityGroup,
    OutlierDetection, Program, Resource, ResourceKind, ResourceName, Retry, Route, Snapshot,
};
use proxy::Engine;
use proxy::drain::Drain;
use proxy::telemetry::{Party, Telemetry};
use proxy_http::{Downstream, Http, Options};
use runtime::metrics::Metrics;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, SystemTime};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use trust::bundle::Bundle;
use trust::issue::{Issuer, new_key_and_csr};
use trust::svid::Svid;
use trust::tls::{Clients, server_config};

pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

static ISSUER: LazyLock<Issuer> = LazyLock::new(|| {
    let root = trust::root::create("test", "passphrase").unwrap();
    let cacerts = trust::root::issue_intermediate(
        &root.certificate_pem,
        &root.encrypted_key_pem,
        "passphrase",
        &"test.mesh".parse().unwrap(),
        Duration::from_secs(3_600),
    )
    .unwrap();
    Issuer::from_cacerts(
        &cacerts.ca_cert,
        &cacerts.cert_chain,
        cacerts.ca_key.reveal(),
        &cacerts.root_cert,
    )
    .unwrap()
});

pub(crate) fn identity(account: &str) -> Identity {
    format!("spiffe://test.mesh/ns/shop/sa/{account}").parse().unwrap()
}

fn svid(account: &str) -> watch::Receiver<Arc<Svid>> {
    let identity = identity(account);
    let (key, csr) = new_key_and_csr(&identity);
    let ttl = Duration::from_secs(600);
    let chain = ISSUER.sign(&csr, &identity, ttl, SystemTime::now()).unwrap().concat();
    watch::channel(Arc::new(Svid::from_pem(&chain, key.reveal()).unwrap())).1
}

fn bundle() -> watch::Receiver<Arc<Bundle>> {
    watch::channel(Arc::new(Bundle::from_pem(&ISSUER.bundle().pem()).unwrap())).1
}

/// What a copy does with a request.
#[derive(Debug, Clone)]
pub(crate) enum Does {
    /// Its name, and what it was sent.
    Answer,
    /// These bytes as they are.
    Raw(&'static str),
    /// These bytes, then the connection ends.
    RawAndClose(&'static str),
    Hang,
    /// An answer, once the test says so.
    AnswerWhen(Arc<tokio::sync::Notify>),
    Close,
    /// Chunks, the next one when the test says so.
    Chunks(Arc<Mutex<tokio::sync::mpsc::Receiver<&'static str>>>),
    /// Switches protocols, then echoes.
    Echo,
}

/// A head and a body, as received.
type Heard = (String, Vec<u8>);

/// A connection, with TLS or without.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A port of its own.
pub(crate) async fn bind() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// Serves each connection on a task of its own.
pub(crate) fn accept<F>(
    listener: TcpListener,
    serve: impl Fn(TcpStream, SocketAddr) -> F + Send + 'static,
) where
    F: Future<Output = ()> + Send + 'static,
{
    tokio::spawn(async move {
        loop {
            let (stream, peer) = listener.accept().await.unwrap();
            tokio::spawn(serve(stream, peer));
        }
    });
}

/// The same for a copy, whose sidecar demands mutual TLS for `alpn`; `None`: it has no sidecar.
pub(crate) fn accept_as_copy<F>(
    listener: TcpListener,
    alpn: Option<&'static [u8]>,
    connections: Arc<AtomicUsize>,
    serve: impl Fn(Box<dyn Stream>) -> F + Clone + Send + 'static,
) where
    F: Future<Output = ()> + Send + 'static,
{
    let tls = alpn.map(|alpn| {
        let clients = Clients::Required { trust_domains: None };
        TlsAcceptor::from(server_config(svid("hello"), bundle(), clients, &[alpn]))
    });
    accept(listener, move |stream, _| {
        connections.fetch_add(1, Ordering::SeqCst);
        let (tls, serve) = (tls.clone(), serve.clone());
        async move {
            let Some(tls) = tls else { return serve(Box::new(stream)).await };
            let Ok(stream) = tls.accept(stream).await else { return };
            assert_eq!(stream.get_ref().1.alpn_protocol(), alpn);
            serve(Box::new(stream)).await;
        }
    });
}

/// One copy of the service, as its sidecar: mutual TLS in front of raw HTTP/1.1.
#[derive(Debug, Clone)]
pub(crate) struct Copy {
    pub(crate) name: &'static str,
    pub(crate) address: SocketAddr,
    pub(crate) connections: Arc<AtomicUsize>,
    pub(crate) requests: Arc<Mutex<Vec<Heard>>>,
    does: Arc<Mutex<Does>>,
}

impl Copy {
    pub(crate) async fn start(name: &'static str, does: Does) -> Self {
        Self::behind(Some(b"istio-http/1.1"), name, does).await
    }

    /// An application without a sidecar.
    pub(crate) async fn start_plain(name: &'static str, does: Does) -> Self {
        Self::behind(None, name, does).await
    }

    async fn behind(alpn: Option<&'static [u8]>, name: &'static str, does: Does) -> Self {
        let (listener, address) = bind().await;
        let copy = Self {
            name,
            address,
            connections: Arc::default(),
            requests: Arc::default(),
            does: Arc::new(Mutex::new(does)),
        };
        let this = copy.clone();
        accept_as_copy(listener, alpn, copy.connections.clone(), move |stream| {
            let this = this.clone();
            async move {
                let _ = this.serve(stream).await;
            }
        });
        copy
    }

    pub(crate) fn now_does(&self, does: Does) {
        *self.does.lock().unwrap() = does;
    }

    pub(crate) fn seen(&self) -> usize {
        self.requests.lock().unwrap().len()
    }

    pub(crate) fn last_head(&self) -> String {
        self.requests.lock().unwrap().last().unwrap().0.clone()
    }

    async fn serve(&self, mut io: impl Stream) -> std::io::Result<()> {
        let mut read = Vec::new();
        loop {
            let end = loop {
                if let Some(at) = read.windows(4).position(|w| w == b"\r\n\r\n") {
                    break at + 4;
                }
                if io.read_buf(&mut read).await? == 0 {
                    return Ok(());
                }
            };
            let head = String::from_utf8_lossy(&read[..end]).to_ascii_lowercase();
            read.drain(..end);
            let length: usize = head
                .lines()
                .find_map(|line| line.strip_prefix("content-length: "))
                .map_or(0, |value| value.trim().parse().unwrap());
            let chunked = head.contains("transfer-encoding: chunked");
            let done = |read: &[u8]| match chunked {
                true => read.ends_with(b"0\r\n\r\n"),
                false => read.len() >= length,
            };
            while !done(&read) {
                if io.read_buf(&mut read).await? == 0 {
                    return Ok(());
                }
            }
            let body = std::mem::take(&mut read);
            let size = body.len();
            self.requests.lock().unwrap().push((head, body));
            let does = self.does.lock().unwrap().clone();
            if let Does::AnswerWhen(told) = &does {
                told.notified().await;
            }
            match does {
                Does::Answer | Does::AnswerWhen(_) => {
                    let text = format!("{} {size}", self.name);
                    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", text.len());
                    io.write_all((head + &text).as_bytes()).await?;
                }
                Does::Raw(text) => io.write_all(text.as_bytes()).await?,
                Does::RawAndClose(text) => {
                    io.write_all(text.as_bytes()).await?;
                    return io.shutdown().await;
                }
                Does::Hang => std::future::pending().await,
                Does::Close => return Ok(()),
                Does::Chunks(chunks) => {
                    io.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await?;
                    io.flush().await?;
                    loop {
                        let next = std::future::poll_fn(|cx| chunks.lock().unwrap().poll_recv(cx));
                        let text = next.await.unwrap_or_default();
                        let chunk = format!("{:x}\r\n{text}\r\n", text.len());
                        io.write_all(chunk.as_bytes()).await?;
                        io.flush().await?;
                        if text.is_empty() {
                            break;
                        }
                    }
                }
                Does::Echo => {
                    let head = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\n\
                                upgrade: websocket\r\n\r\n";
                    io.write_all(head.as_bytes()).await?;
                    io.flush().await?;
                    let mut buffer = [0; 1024];
                    loop {
                        let length = io.read(&mut buffer).await?;
                        if length == 0 {
                            return Ok(());
                        }
                        io.write_all(&buffer[..length]).await?;
                        io.flush().await?;
                    }
                }
            }
            io.flush().await?;
        }
    }
}

/// A client's sidecar with one route to the service.
pub(crate) struct World {
    pub(crate) http: Http,
    pub(crate) metrics: Metrics,
    pub(crate) drain: Drain,
    /// Where the application connects to.
    pub(crate) address: SocketAddr,
    snapshot: watch::Sender<Arc<Snapshot>>,
    route: Route,
    endpoints: Vec<SocketAddr>,
    protocol: Protocol,
    /// A clone for each connection of a client, in whatever form.
    pub(crate) held: Arc<()>,
}

pub(crate) fn options(
    metrics: &Metrics,
    drain: &Drain,
    snapshot: watch::Receiver<Arc<Snapshot>>,
) -> Options {
    let client = svid("client");
    let engine = Engine::new(proxy::Options {
        metrics: metrics.clone(),
        svid: client.clone(),
        bundle: bundle(),
        cluster: "east".parse().unwrap(),
        network: "east".parse().unwrap(),
        snapshot,
        want: None,
    });
    Options {
        engine,
        telemetry: Telemetry::register(metrics),
        metrics: metrics.clone(),
        me: Party {
            workload: "client".into(),
            namespace: "shop".into(),
            principal: identity("client").to_string(),
            app: "client".into(),
            cluster: Some("east".parse().unwrap()),
        },
        svid: client,
        drain: drain.clone(),
        application_source: |_| None,
        idle_max: proxy_http::IDLE_MAX,
    }
}

impl World {
    /// The copies in this order of preference: each alone in its priority.
    pub(crate) async fn new(copies: &[&Copy]) -> Self {
        Self::with(copies.iter().map(|copy| copy.address).collect(), |_| {}).await
    }

    pub(crate) async fn with(endpoints: Vec<SocketAddr>, adapt: impl Fn(&mut Route)) -> Self {
        Self::speaking(Protocol::Http, endpoints, adapt).await
    }

    pub(crate) async fn speaking(
        protocol: Protocol,
        endpoints: Vec<SocketAddr>,
        adapt: impl Fn(&mut Route),
    ) -> Self {
        Self::within(proxy_http::IDLE_MAX, protocol, endpoints, adapt).await
    }

    /// With clients that may stand still for so long.
    pub(crate) async fn within(
        idle_max: Duration,
        protocol: Protocol,
        endpoints: Vec<SocketAddr>,
        adapt: impl Fn(&mut Route),
    ) -> Self {
        let host: Hostname = "hello.shop.global".parse().unwrap();
        let mut route = Route {
            name: "hello".into(),
            cluster: ClusterName::outbound(80, "", &host),
            timeout_ms: 0,
            retry: Retry::default(),
        };
        adapt(&mut route);
        let metrics = Metrics::new();
        let drain = Drain::new();
        let (snapshot, receiver) = watch::channel(Arc::default());
        let http = Http::new(Options { idle_max, ..options(&metrics, &drain, receiver) });
        let (listener, address) = bind().await;
        let held = Arc::default();
        let world =
            Self { http, metrics, drain, address, snapshot, route, endpoints, protocol, held };
        world.publish("hello");
        let (http, drain) = (world.http.clone(), world.drain.clone());
        let held = Arc::downgrade(&world.held);
        accept(listener, move |stream, peer| {
            let (http, live) = (http.clone(), drain.live().holding(held.upgrade()));
            async move {
                let route = ResourceName::new(ResourceKind::Route, "hello");
                let local = "240.240.7.2:80".parse().unwrap();
                let downstream = Downstream { peer, local, identity: None, server_name: None };
                http.outbound(stream, route, downstream, &live).await;
            }
        });
        world
    }

    /// Publishes the program, with `account` as who may answer.
    pub(crate) fn publish(&self, account: &str) {
        let name = self.route.cluster.clone();
        let west: ClusterId = "west".parse().unwrap();
        let cluster = Cluster {
            name: name.clone(),
            sni: "outbound_.80_._.hello.shop.global".into(),
            protocol: self.protocol,
            load_balancing: LoadBalancing::RoundRobin,
            connect_timeout_ms: 1_000,
            outlier: OutlierDetection::default(),
            pool: ConnectionPool::default(),
            server_identities: BTreeMap::from([(west.clone(), [identity(account)].into())]),
        };
        let group = |(priority, address): (usize, &SocketAddr)| LocalityGroup {
            priority: priority as u32,
            locality: Default::default(),
            weight: 1,
            endpoints: vec![LbEndpoint {
                address: *address,
                cluster: west.clone(),
                network: "west".parse().unwrap(),
                weight: 1,
                tls: true,
                gateway: false,
                workload: "hello-1".into(),
            }],
        };
        let endpoints = Endpoints {
            cluster: name.clone(),
            groups: self.endpoints.iter().enumerate().map(group).collect(),
        };
        let text = name.to_string();
        let program: Program = [
            (ResourceKind::Route, "hello".to_owned(), Resource::Route(self.route.clone())),
            (ResourceKind::Cluster, text.clone(), Resource::Cluster(cluster)),
            (ResourceKind::Endpoints, text, Resource::Endpoints(endpoints)),
        ]
        .into_iter()
        .map(|(kind, name, resource)| (ResourceName::new(kind, name), Arc::new(resource)))
        .collect();
        self.snapshot.send_replace(Arc::new(Snapshot { program, ..Snapshot::default() }));
    }

    pub(crate) async fn client(&self) -> Client {
        Client::connect(self.address).await
    }
}

/// An application with one connection.
pub(crate) struct Client {
    sender: hyper::client::conn::http1::SendRequest<Full<Bytes>>,
}

/// A whole response: status, headers, body; `None` where it was cut.
#[derive(Debug)]
pub(crate) struct Got {
    pub(crate) status: u16,
    pub(crate) headers: http::HeaderMap,
    pub(crate) body: Option<String>,
}

impl Client {
    pub(crate) async fn connect(to: SocketAddr) -> Self {
        let stream = TcpStream::connect(to).await.unwrap();
        let (sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        Self { sender }
    }

    pub(crate) async fn send(&mut self, method: &str, body: impl Into<Bytes>) -> Got {
        let request = http::Request::builder()
            .method(method)
            .uri("/path?query")
            .header("host", "hello.shop.global")
            .body(Full::new(body.into()))
            .unwrap();
        self.request(request).await
    }

    pub(crate) async fn get(&mut self) -> Got {
        self.send("GET", "").await
    }

    pub(crate) async fn request(&mut self, request: http::Request<Full<Bytes>>) -> Got {
        let got = tokio::time::timeout(PATIENCE, async {
            self.sender.ready().await.unwrap();
            let response = self.sender.send_request(request).await.unwrap();
            let (parts, body) = response.into_parts();
            let body = body.collect().await.ok();
            let text = body.map(|b| String::from_utf8_lossy(&b.to_bytes()).into_owned());
            Got { status: parts.status.as_u16(), headers: parts.headers, body: text }
        });
        got.await.expect("an answer in time")
    }
}

/// Sends bytes and reads until the other side closes.
pub(crate) async fn raw(to: SocketAddr, text: &str) -> String {
    let mut stream = TcpStream::connect(to).await.unwrap();
    stream.write_all(text.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await.unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}
