//! The east-west gateway: the engine behind an SNI table. It never decrypts what it forwards.

mod config;
mod connection;
mod hello;
mod numbers;

use anyhow::Context as _;
pub use config::{Config, SvidFiles};
use connection::Gateway;
use mesh::program::ResourceName;
use mesh::world::Role;
use numbers::Numbers;
use proxy::accept::{Caps, Shed, accept};
use proxy::drain::Drain;
use proxy::telemetry::Telemetry;
use runtime::admin::{Listen, Pages, bind_tcp, serve};
use runtime::metrics::Metrics;
use runtime::readiness::Readiness;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use trust::tls::Clients;

/// Once unready, new connections are still taken for so long, or until none came for a second:
/// others need a moment to withdraw this gateway.
const WITHDRAWAL_MAX: Duration = Duration::from_secs(5);
const WITHDRAWN_AFTER: Duration = Duration::from_secs(1);

/// Runs until `end`, then drains.
pub fn run(config: Config, end: CancellationToken) -> runtime::Work<'static> {
    Box::pin(async move { start(config, end).await?.ended().await })
}

/// A gateway that serves.
#[derive(Debug)]
pub struct Running {
    /// Where it listens, as bound.
    pub address: SocketAddr,
    pub metrics: Metrics,
    pub readiness: Readiness,
    serving: tokio::task::JoinHandle<()>,
}

impl Running {
    /// Returns once it has drained.
    pub async fn ended(self) -> anyhow::Result<()> {
        self.serving.await.context("the gateway's accept loop failed")
    }
}

/// Returns once it listens: it has its identity then, and its configuration follows.
pub fn start(config: Config, end: CancellationToken) -> runtime::Work<'static, Running> {
    Box::pin(begin(config, end))
}

async fn begin(config: Config, end: CancellationToken) -> anyhow::Result<Running> {
    config.check()?;
    let (metrics, readiness) = (Metrics::new(), Readiness::new());
    readiness.wait_for("identity", "starting");
    // Pages and probes outlive `end` until the drain is over.
    let over = CancellationToken::new();
    let guard = over.clone().drop_guard();
    let public = |address| Listen::Tcp { address, public: true };
    let health = Pages::new().with_readiness(&readiness).counted_in(&metrics);
    serve(public(config.health), health, over.clone()).await?;
    serve(public(config.metrics), Pages::new().with_metrics(&metrics), over.clone()).await?;
    let pages = Pages::new().with_readiness(&readiness).with_metrics(&metrics);
    let admin = Listen::Tcp { address: config.admin, public: false };
    let starting = tokio::select! {
        agent = agent::start(config.agent(), &readiness, &metrics, over.clone()) => agent,
        () = end.cancelled() => anyhow::bail!("ended before it had an identity"),
    };
    let agent = starting?;
    readiness.done("identity");
    let engine = proxy::Engine::new(proxy::Options {
        metrics: metrics.clone(),
        svid: agent.svid.clone(),
        bundle: agent.bundle.clone(),
        cluster: config.cluster.clone(),
        network: config.network(),
        snapshot: agent.snapshot.clone(),
        want: agent.want,
    });
    let drain = Drain::new();
    let live = drain.clone();
    let pages = proxy::pages::with_engine(pages, &engine, agent::to_json)
        .with_json("/connections", move || live.count());
    serve(admin, pages, over.clone()).await?;
    let listener = bind_tcp(config.listen)?;
    let address = listener.local_addr().context("a bound socket has an address")?;
    tracing::info!(%address, cluster = %config.cluster, "the gateway listens");

    let numbers = Numbers::register(&metrics);
    // The one name it answers itself: proof of path, process and trust, for members of the mesh.
    let probes = trust::tls::server_config(
        agent.svid,
        agent.bundle,
        Clients::Required { trust_domains: None },
        &[b"istio", b"istio-http/1.1", b"istio-h2"],
    );
    let gateway = Arc::new(Gateway {
        engine,
        numbers: numbers.clone(),
        telemetry: Telemetry::register(&metrics),
        counters: Default::default(),
        probes,
        drain: drain.clone(),
        cluster: config.cluster.clone(),
        namespace: config.namespace.clone(),
        account: config.account.clone(),
        access_log: config.access_log,
        last: connection::LastAccept::new(),
    });
    let caps = Caps { all: config.max_connections, per_source: config.max_connections_per_source };
    let accepting = CancellationToken::new();
    let loop_end = accepting.clone();
    let shed = numbers;
    let served = gateway.clone();
    let accept_loop = async move {
        accept(
            listener,
            caps,
            loop_end,
            move |_, why| {
                shed.refused(match why {
                    Shed::TooMany => "too_many_connections",
                    Shed::TooManyOfOneSource => "too_many_of_one_source",
                });
            },
            move |stream, peer, place| {
                served.last.touch();
                // Now: a drain that begins before the task does must wait for it.
                let (gateway, live) = (served.clone(), served.drain.live());
                tokio::spawn(async move { gateway.serve(stream, peer, place, live).await });
            },
        )
        .await;
    };
    let limit = Duration::from_secs(config.drain_seconds);
    let unready = readiness.clone();
    let serving = tokio::spawn(async move {
        let _guard = guard;
        let accept_loop = tokio::spawn(accept_loop);
        end.cancelled().await;
        unready.wait_for("drain", "this gateway is ending");
        let withdrawn = Instant::now() + WITHDRAWAL_MAX.min(limit);
        while Instant::now() < withdrawn && gateway.last.ago() < WITHDRAWN_AFTER {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        accepting.cancel();
        let _ = accept_loop.await;
        let cut = drain.drain(limit).await;
        tracing::info!(cut, "the gateway has drained");
        proxy::access::flush().await;
    });
    Ok(Running { address, metrics, readiness, serving })
}

/// What a gateway follows from its start on; clusters and endpoints come with its listener.
pub(crate) fn follow() -> Vec<ResourceName> {
    vec![ResourceName::gateway()]
}

pub(crate) const ROLE: Role = Role::Gateway;
