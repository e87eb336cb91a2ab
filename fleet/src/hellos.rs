//! New connections to gateways, at a rate that no machine could shake hands at: each sends a
//! ClientHello and waits for the first octet of the workload's answer.

use crate::client_hello::{Name, client_hello};
use crate::load::{end_at_once, micros, micros_now, write};
use crate::verdict::{Kind, Outcome, Record};
use anyhow::{Context, Result, bail, ensure};
use futures::future::BoxFuture;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, mpsc};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

/// First octet of a handshake record: the workload's ServerHello.
const HANDSHAKE: u8 = 22;
/// A connection without an answer after this is failed.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// What to open.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Gateways, taken in turn; one that takes no connection is passed over for the next.
    #[arg(long, value_delimiter = ',')]
    pub to: Vec<SocketAddr>,
    /// The server name that is asked for.
    #[arg(long)]
    pub sni: String,
    /// Connections a second.
    #[arg(long)]
    pub rate: f64,
    #[arg(long)]
    pub seconds: f64,
    /// Where the records go as JSON lines.
    #[arg(long)]
    pub out: PathBuf,
}

/// Runs the load to its end.
pub fn run(options: Options) -> BoxFuture<'static, Result<()>> {
    Box::pin(work(options))
}

async fn work(options: Options) -> Result<()> {
    ensure!(!options.to.is_empty(), "no gateway is named");
    let file = std::fs::File::create(&options.out)
        .with_context(|| format!("writing {}", options.out.display()))?;
    let (records, written) = mpsc::channel();
    let writer = std::thread::spawn(move || write(file, &written));
    let flight: Arc<[u8]> = client_hello(Name::Host(&options.sni), "istio").into();
    let gateways: Arc<[SocketAddr]> = options.to.into();
    let mut due = Instant::now();
    let (end, step) = (
        due + Duration::from_secs_f64(options.seconds),
        Duration::from_secs_f64(1.0 / options.rate),
    );
    let (mut under_way, mut turn) = (JoinSet::new(), 0);
    while due < end {
        sleep_until(due).await;
        while under_way.try_join_next().is_some() {}
        let (gateways, flight, records) = (gateways.clone(), flight.clone(), records.clone());
        under_way.spawn(async move {
            // Nobody reads any more once the writer has failed.
            let _ = records.send(one(&gateways, turn, &flight, due).await);
        });
        (due, turn) = (due + step, turn + 1);
    }
    while under_way.join_next().await.is_some() {}
    drop(records);
    let ended = tokio::task::spawn_blocking(move || writer.join()).await?;
    ended.map_err(|_| anyhow::anyhow!("the writer of records panicked"))??;
    Ok(())
}

async fn one(gateways: &[SocketAddr], turn: usize, flight: &[u8], due: Instant) -> Record {
    let start_us = micros_now().saturating_sub(micros(due.elapsed()));
    let asked = match timeout(ANSWER_MAX, ask(gateways, turn, flight)).await {
        Ok(asked) => asked,
        Err(_) => Err(anyhow::anyhow!("no answer after {ANSWER_MAX:?}")),
    };
    let took_us = micros(due.elapsed());
    let (outcome, by, error) = match asked {
        Ok(by) => (Outcome::Answered, Some(by.to_string()), None),
        Err(problem) => (Outcome::Failed, None, Some(format!("{problem:#}"))),
    };
    let head_us = (outcome == Outcome::Answered).then_some(took_us);
    Record { start_us, took_us, head_us, kind: Kind::Fresh, outcome, status: 0, by, error }
}

/// The gateway that led to a workload.
async fn ask(gateways: &[SocketAddr], turn: usize, flight: &[u8]) -> Result<SocketAddr> {
    let mut refused = None;
    for offset in 0..gateways.len() {
        let gateway = gateways[(turn + offset) % gateways.len()];
        let mut stream = match TcpStream::connect(gateway).await {
            Ok(stream) => stream,
            // It takes no more connections: nothing of this one is lost there.
            Err(problem) => {
                refused = Some(problem);
                continue;
            }
        };
        end_at_once(&stream)?;
        stream.write_all(flight).await.context("the hello was not taken")?;
        let octet = stream.read_u8().await.context("closed before an answer")?;
        ensure!(octet == HANDSHAKE, "the answer begins with {octet}");
        return Ok(gateway);
    }
    match refused {
        Some(problem) => Err(problem).context("no gateway takes a connection"),
        None => bail!("no gateway is named"),
    }
}
