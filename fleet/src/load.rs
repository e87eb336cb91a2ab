//! Open-loop load: requests start when the clock says so, whether or not the last ones came back.

use crate::verdict::{Kind, Outcome, Record};
use anyhow::{Context, Result};
use bytes::Bytes;
use futures::future::BoxFuture;
use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use http::{Method, Request};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use rand::{Rng, SeedableRng};
use serde::Deserialize;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::OnceCell;
use tokio::time::{Instant, timeout};

/// What to send, how fast, how long.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// `HOST:PORT` of the HTTP service, resolved by the system resolver for every connection.
    #[arg(long)]
    pub http: String,
    /// `HOST:PORT` of the TCP service (the server speaks first).
    #[arg(long)]
    pub tcp: Option<String>,
    /// Name server to ask in place of the system's.
    #[arg(long)]
    pub dns: Option<SocketAddr>,
    #[arg(long, default_value = "/")]
    pub path: String,
    /// GETs a second over keep-alive connections.
    #[arg(long, default_value_t = 0.0)]
    pub gets: f64,
    /// POSTs a second over keep-alive connections.
    #[arg(long, default_value_t = 0.0)]
    pub posts: f64,
    /// New TCP connections a second.
    #[arg(long, default_value_t = 0.0)]
    pub connects: f64,
    /// New connections a second with one GET each.
    #[arg(long, default_value_t = 0.0)]
    pub fresh: f64,
    #[arg(long)]
    pub seconds: f64,
    /// A request without a whole answer after this is failed.
    #[arg(long, default_value_t = 5.0)]
    pub limit: f64,
    /// Where the records go as JSON lines, each when it ends.
    #[arg(long)]
    pub out: PathBuf,
    /// Seed of the jitter.
    #[arg(long, default_value_t = 7)]
    pub seed: u64,
}

type Connection = SendRequest<Full<Bytes>>;

struct Client {
    options: Options,
    idle: Mutex<Vec<Connection>>,
    /// Of the HTTP service, for new connections.
    addresses: OnceCell<Vec<SocketAddr>>,
    records: mpsc::Sender<Record>,
}

/// Runs the load; SIGTERM ends it early, with all that was recorded.
pub fn run(options: Options) -> BoxFuture<'static, Result<()>> {
    Box::pin(work(options))
}

async fn work(options: Options) -> Result<()> {
    let (records, written) = mpsc::channel();
    let writer = {
        let file = std::fs::File::create(&options.out)
            .with_context(|| format!("writing {}", options.out.display()))?;
        std::thread::spawn(move || write(file, &written))
    };
    let client = Arc::new(Client {
        idle: Mutex::new(vec![]),
        addresses: OnceCell::new(),
        records,
        options: options.clone(),
    });
    let end = Instant::now() + Duration::from_secs_f64(options.seconds);
    let mut streams = vec![];
    for (kind, rate) in [
        (Kind::Get, options.gets),
        (Kind::Post, options.posts),
        (Kind::Tcp, options.connects),
        (Kind::Fresh, options.fresh),
    ] {
        if rate > 0.0 {
            let seed = options.seed + kind as u64;
            streams.push(tokio::spawn(stream(client.clone(), kind, rate, end, seed)));
        }
    }
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    let aborts: Vec<_> = streams.iter().map(tokio::task::JoinHandle::abort_handle).collect();
    tokio::select! {
        _ = futures::future::join_all(streams) => {}
        _ = terminate.recv() => aborts.iter().for_each(tokio::task::AbortHandle::abort),
    }
    // The writer ends with the last sender: requests that were aborted have let theirs go by now.
    drop(client);
    tokio::task::spawn_blocking(move || writer.join())
        .await?
        .map_err(|_| anyhow::anyhow!("the writer of records panicked"))?
        .with_context(|| format!("writing {}", options.out.display()))
}

/// How late a record may be written: a wake-up for each would take time from what is measured.
const BATCH: Duration = Duration::from_millis(20);

/// Writes records in small batches, whole lines only.
pub(crate) fn write(file: std::fs::File, records: &mpsc::Receiver<Record>) -> std::io::Result<()> {
    let mut file = std::io::BufWriter::new(file);
    while let Ok(record) = records.recv() {
        std::thread::sleep(BATCH);
        let mut next = Some(record);
        // What has come meanwhile goes along.
        while let Some(record) = next {
            serde_json::to_writer(&mut file, &record)?;
            file.write_all(b"\n")?;
            next = records.try_recv().ok();
        }
        file.flush()?;
    }
    Ok(())
}

/// Starts one kind at `rate` a second until `end`, then waits for the last answers.
async fn stream(client: Arc<Client>, kind: Kind, rate: f64, end: Instant, seed: u64) {
    let mut random = rand::rngs::StdRng::seed_from_u64(seed);
    let mut tasks = tokio::task::JoinSet::new();
    let mut due = Instant::now();
    while due < end {
        tokio::time::sleep_until(due).await;
        while tasks.try_join_next().is_some() {}
        tasks.spawn(one(client.clone(), kind, due));
        // Jitter of half a period each way keeps the mean rate and breaks any lockstep.
        due += Duration::from_secs_f64(random.random_range(0.5..1.5) / rate);
    }
    while tasks.join_next().await.is_some() {}
}

/// One request from its due time on, so that a late start counts as latency.
async fn one(client: Arc<Client>, kind: Kind, due: Instant) {
    let limit = Duration::from_secs_f64(client.options.limit);
    let late = due.elapsed();
    let start_us = micros_now().saturating_sub(u64::try_from(late.as_micros()).unwrap_or(0));
    let mut progress = Progress::default();
    let work = async {
        match kind {
            Kind::Get | Kind::Post => client.http(kind, &mut progress).await,
            Kind::Tcp => client.tcp(&mut progress).await,
            Kind::Fresh => client.fresh(&mut progress).await,
        }
    };
    let (outcome, error) = match timeout(limit, work).await {
        Ok(Ok(())) => (Outcome::Answered, None),
        Ok(Err(error)) => (progress.failure(), Some(format!("{error:#}"))),
        Err(_) => {
            let what = if progress.began { "answer incomplete" } else { "no answer" };
            (progress.failure(), Some(format!("{what} after {limit:?}, {}", progress.stage)))
        }
    };
    let head_us = progress.head.map(|at| micros(at.saturating_duration_since(due)));
    let record = Record {
        start_us,
        took_us: micros(due.elapsed()),
        head_us,
        kind,
        outcome,
        status: progress.status,
        by: progress.by,
        error,
    };
    // Without a writer nobody wants to know.
    let _ = client.records.send(record);
}

#[derive(Default)]
struct Progress {
    stage: &'static str,
    began: bool,
    head: Option<Instant>,
    status: u16,
    by: Option<String>,
}

impl Progress {
    fn failure(&self) -> Outcome {
        if self.began { Outcome::Cut } else { Outcome::Failed }
    }

    fn begin(&mut self) {
        self.began = true;
        self.head = Some(Instant::now());
    }
}

#[derive(Deserialize)]
struct Who {
    cluster: String,
    pod: String,
}

impl Client {
    async fn http(&self, kind: Kind, progress: &mut Progress) -> Result<()> {
        let pooled = loop {
            let last = self.idle.lock().expect("no holder panics").pop();
            match last {
                Some(connection) if connection.is_closed() || !connection.is_ready() => {}
                other => break other,
            }
        };
        let mut connection = match pooled {
            Some(connection) => connection,
            None => {
                progress.stage = "connecting";
                let stream = dial(&self.options.http, self.options.dns).await?;
                let (sender, driver) = handshake(TokioIo::new(stream)).await?;
                tokio::spawn(driver);
                sender
            }
        };
        progress.stage = "waiting for the head";
        let (method, body) = match kind {
            Kind::Post => (Method::POST, Bytes::from_static(b"0123456789abcdef")),
            Kind::Get | Kind::Tcp | Kind::Fresh => (Method::GET, Bytes::new()),
        };
        let request = Request::builder()
            .method(method)
            .uri(&self.options.path)
            .header("host", &self.options.http)
            .body(Full::new(body))?;
        let response = connection.send_request(request).await?;
        progress.begin();
        progress.stage = "reading the body";
        progress.status = response.status().as_u16();
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        if !status.is_success() {
            progress.began = false;
            anyhow::bail!("status {status}: {}", String::from_utf8_lossy(&body));
        }
        let who: Who = serde_json::from_slice(&body).context("an answer that is not ours")?;
        progress.by = Some(format!("{}/{}", who.cluster, who.pod));
        // Ready again once the driver has seen the end of the body.
        if connection.ready().await.is_ok() {
            self.idle.lock().expect("no holder panics").push(connection);
        }
        Ok(())
    }

    /// The server ends it.
    async fn fresh(&self, progress: &mut Progress) -> Result<()> {
        progress.stage = "connecting";
        let Options { http, dns, path, .. } = &self.options;
        // Resolved once: what is tried is connections, not names.
        let addresses = self.addresses.get_or_try_init(|| addresses(http, *dns)).await?;
        let mut stream = connect(http, addresses).await?;
        end_at_once(&stream)?;
        progress.stage = "waiting for the head";
        let request = format!("GET {path} HTTP/1.1\r\nhost: {http}\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::with_capacity(2_048);
        if stream.read_buf(&mut answer).await? > 0 {
            progress.begin();
        }
        progress.stage = "reading the body";
        stream.read_to_end(&mut answer).await?;
        let answer = std::str::from_utf8(&answer).context("an answer that is not ours")?;
        let (head, body) = answer.split_once("\r\n\r\n").context("closed before the head")?;
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
        progress.status = status.context("a head without a status")?;
        if progress.status != 200 {
            progress.began = false;
            anyhow::bail!("status {}: {body}", progress.status);
        }
        let who: Who = serde_json::from_str(body).context("an answer that is not ours")?;
        progress.by = Some(format!("{}/{}", who.cluster, who.pod));
        Ok(())
    }

    async fn tcp(&self, progress: &mut Progress) -> Result<()> {
        let target = self.options.tcp.as_deref().context("--connects needs --tcp")?;
        progress.stage = "connecting";
        let stream = dial(target, self.options.dns).await?;
        progress.stage = "waiting for the banner";
        let (read, mut write) = stream.into_split();
        let mut lines = BufReader::new(read).lines();
        let banner = lines.next_line().await?.context("closed before the banner")?;
        progress.begin();
        let who: Who = serde_json::from_str(&banner).context("a banner that is not ours")?;
        progress.by = Some(format!("{}/{}", who.cluster, who.pod));
        progress.stage = "waiting for the echo";
        write.write_all(b"ping\n").await?;
        let echo = lines.next_line().await?.context("closed before the echo")?;
        anyhow::ensure!(echo == "ping", "the echo is {echo:?}");
        Ok(())
    }
}

pub(crate) async fn dial(target: &str, dns: Option<SocketAddr>) -> Result<TcpStream> {
    connect(target, &addresses(target, dns).await?).await
}

async fn addresses(target: &str, dns: Option<SocketAddr>) -> Result<Vec<SocketAddr>> {
    let Some(server) = dns else {
        let found = tokio::net::lookup_host(target).await;
        return Ok(found.with_context(|| format!("resolving {target}"))?.collect());
    };
    let (name, port) = target.rsplit_once(':').context("a target is HOST:PORT")?;
    let port: u16 = port.parse().with_context(|| format!("the port of {target}"))?;
    Ok(ask(server, name).await?.into_iter().map(|ip| (ip, port).into()).collect())
}

/// Its end leaves no socket in TIME-WAIT, neither here nor there: at thousands of connections a second
/// from one address, the kernel would soon spend its time looking for a free port.
pub(crate) fn end_at_once(stream: &TcpStream) -> std::io::Result<()> {
    socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO))
}

async fn connect(target: &str, addresses: &[SocketAddr]) -> Result<TcpStream> {
    let stream = TcpStream::connect(addresses)
        .await
        .with_context(|| format!("connecting to {target} at {addresses:?}"))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// The IPv4 addresses that `server` has for `name`.
pub async fn ask(server: SocketAddr, name: &str) -> Result<Vec<Ipv4Addr>> {
    let mut question = Message::new(rand::random(), MessageType::Query, OpCode::Query);
    question.metadata.recursion_desired = true;
    question.add_query(Query::query(Name::from_ascii(format!("{name}."))?, RecordType::A));
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await?;
    socket.connect(server).await?;
    socket.send(&question.to_vec()?).await?;
    let mut buffer = [0; 4096];
    let length = timeout(Duration::from_secs(2), socket.recv(&mut buffer))
        .await
        .with_context(|| format!("{server} says nothing about {name}"))??;
    let answer = Message::from_vec(&buffer[..length])?;
    let code = answer.metadata.response_code;
    anyhow::ensure!(code == ResponseCode::NoError, "{server} says {code} about {name}");
    let addresses = answer.answers.iter().filter_map(|record| record.data.ip_addr());
    Ok(addresses
        .filter_map(|ip| match ip {
            IpAddr::V4(ip) => Some(ip),
            IpAddr::V6(_) => None,
        })
        .collect())
}

pub(crate) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// Microseconds since the epoch; the harness reads the same clock.
pub fn micros_now() -> u64 {
    micros(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
}

/// One GET; its body. Asks `dns` in place of the system's resolver where one is given.
pub async fn get(url: &str, dns: Option<SocketAddr>, limit: Duration) -> Result<String> {
    let uri: http::Uri = url.parse().context("a URL")?;
    let host = uri.host().context("a URL with a host")?.to_owned();
    let authority = uri.authority().context("a URL with a host")?.to_string();
    let target = format!("{host}:{}", uri.port_u16().unwrap_or(80));
    let path = uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
    let work = async {
        let stream = dial(&target, dns).await?;
        let (mut sender, driver) = handshake(TokioIo::new(stream)).await?;
        tokio::spawn(driver);
        let request = Request::get(path).header("host", authority).body(Full::new(Bytes::new()))?;
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        let body = String::from_utf8_lossy(&body).into_owned();
        anyhow::ensure!(status.is_success(), "status {status}: {body}");
        Ok(body)
    };
    timeout(limit, work).await.with_context(|| format!("no answer in {limit:?}"))?
}

/// `isthmus-e2e resolve NAME`: the IPv4 addresses the system's resolver finds, one a line.
pub async fn resolve(name: &str) -> Result<()> {
    for address in tokio::net::lookup_host((name, 0)).await? {
        if let std::net::IpAddr::V4(address) = address.ip() {
            println!("{address}");
        }
    }
    Ok(())
}
