//! A sidecar's life: bound, given an identity, ready, serving, drained.

use crate::config::Config;
use crate::inbound::{Inbound, Terms};
use crate::named::Named;
use crate::names::Names;
use crate::original::{Capture, Own};
use crate::outbound::Outbound;
use crate::probe;
use crate::redirect::inbound_source;
use crate::refusal::Refusals;
use proxy::Engine;
use proxy::accept::{Caps, accept};
use proxy::drain::{Drain, Live};
use proxy::telemetry::{Party, Telemetry, workload};
use proxy_http::Http;
use runtime::admin::{self, Listen, Pages};
use runtime::metrics::Metrics;
use runtime::readiness::Readiness;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// At the end, inbound connections are taken for so long after the last new one …
const QUIET: Duration = Duration::from_millis(1_000);
/// … and no longer than this: by then everybody has heard that this pod goes (decision 25).
const WITHDRAWAL_MAX: Duration = Duration::from_secs(5);

/// The threads that [`run`] is to work on.
///
/// # Errors
/// What the kernel says where it starts none.
pub fn threads(config: &Config) -> std::io::Result<Runtime> {
    // Counts a limit of the container's, too.
    let processors = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let threads = config.threads(processors);
    tracing::info!(threads, processors, "threads carry traffic");
    Builder::new_multi_thread().worker_threads(threads).enable_all().build()
}

/// Serves until `end`, then drains.
pub fn run(config: Config, end: CancellationToken) -> runtime::Work<'static> {
    Box::pin(work(config, end))
}

async fn work(config: Config, end: CancellationToken) -> anyhow::Result<()> {
    config.check()?;
    let slots = config.table()?.map(Arc::new);
    let agent_config = config.agent()?;
    let readiness = Readiness::new();
    readiness.wait_for("identity", "no certificate has been issued yet");
    readiness.wait_for("listeners", "nothing is accepted before there is an identity");
    let metrics = Metrics::new();
    // Everything but listeners outlives `end`: what drains needs it.
    let closed = CancellationToken::new();
    let _close = closed.clone().drop_guard();

    // Bound first, so that a port in use is said at once and not after an identity was fetched.
    let outbound = bind(&config.outbound_listeners(slots.as_deref()))?;
    let inbound = bind(&config.inbound_listeners())?;
    let names = Names::bind(&config, slots.clone(), &metrics)?;
    let public = |address| Listen::Tcp { address, public: true };
    let health = Pages::new().with_readiness(&readiness).counted_in(&metrics);
    admin::serve(public(config.health()), health, closed.clone()).await?;
    let numbers = Pages::new().with_metrics(&metrics);
    admin::serve(public(config.metrics()), numbers, closed.clone()).await?;
    if !config.probes.is_empty() {
        let probes = probe::pages(&config.probes, config.pod_addresses[0], &metrics);
        let probes = probes.counted_in(&metrics);
        admin::serve(public(config.prober()), probes, closed.clone()).await?;
    }

    let starting = agent::start(agent_config, &readiness, &metrics, closed.clone());
    let agent = tokio::select! {
        agent = starting => agent?,
        () = end.cancelled() => return Ok(()),
    };
    readiness.done("identity");
    let engine = Engine::new(proxy::Options {
        metrics: metrics.clone(),
        svid: agent.svid.clone(),
        bundle: agent.bundle.clone(),
        cluster: config.cluster.clone(),
        network: config.network(),
        snapshot: crate::sabotage::maybe(agent.snapshot.clone())?,
        want: agent.want.clone(),
    });
    let pages = Pages::new().with_readiness(&readiness).with_metrics(&metrics);
    let pages = proxy::pages::with_engine(pages, &engine, agent::to_json);
    let admin = Listen::Tcp { address: config.admin, public: false };
    admin::serve(admin, pages, closed.clone()).await?;

    let drain = Drain::new();
    let telemetry = Telemetry::register(&metrics);
    let me = Party {
        workload: workload(&config.pod).to_owned(),
        namespace: config.namespace.clone(),
        principal: agent.svid.borrow().identity.to_string(),
        app: config.account.clone(),
        cluster: Some(config.cluster.clone()),
    };
    let http = Http::new(proxy_http::Options {
        engine: engine.clone(),
        telemetry: telemetry.clone(),
        metrics: metrics.clone(),
        me: me.clone(),
        svid: agent.svid.clone(),
        drain: drain.clone(),
        application_source: |ip| Some(inbound_source(ip)),
        idle_max: Duration::from_secs(config.stream_idle_seconds.get()),
    });
    let refusals = Refusals::register(&metrics);
    let own = || own(&config);
    let capture = match slots {
        Some(table) => Capture::Slots { table, snapshot: agent.snapshot.clone() },
        None => Capture::Redirected,
    };
    let out = Arc::new(Outbound {
        engine: engine.clone(),
        http: http.clone(),
        telemetry: telemetry.clone(),
        refusals: refusals.clone(),
        me: me.clone(),
        capture: capture.clone(),
        own: own(),
        vip_ranges: config.vip_ranges.clone(),
        named: Named::default(),
    });
    let into = Arc::new(Inbound {
        engine,
        http,
        telemetry,
        refusals,
        me,
        capture,
        own: own(),
        terms: Terms::new(agent.svid.clone(), agent.bundle.clone()),
        rules: proxy::admission::follow(agent.snapshot.clone()),
    });
    let stop = CancellationToken::new();
    let last = Arc::new(Last::new());
    let mut accepting = JoinSet::new();
    for listener in outbound {
        let out = out.clone();
        let serve = move |stream, peer, live| {
            let out = out.clone();
            async move { out.serve(stream, peer, live).await }
        };
        accepting.spawn(listen(listener, config.max_connections, &stop, &drain, serve));
    }
    for listener in inbound {
        let (into, last) = (into.clone(), last.clone());
        let serve = move |stream, peer, live| {
            last.touch();
            let into = into.clone();
            async move { into.serve(stream, peer, live).await }
        };
        accepting.spawn(listen(listener, config.max_connections, &stop, &drain, serve));
    }
    if let Some(names) = names {
        tokio::spawn(names.run(agent.snapshot.clone(), agent.want.is_some(), closed.clone()));
    }
    readiness.done("listeners");
    tracing::info!(pod = %config.pod, cluster = %config.cluster, "serving");

    end.cancelled().await;
    readiness.wait_for("end", "this pod is going");
    last.quiet().await;
    stop.cancel();
    // Each serves what waits at its listener first, and that is to be drained, too.
    while accepting.join_next().await.is_some() {}
    let cut = drain.drain(Duration::from_secs(config.drain_seconds)).await;
    tracing::info!(cut, "drained");
    proxy::access::flush().await;
    Ok(())
}

fn bind(addresses: &[SocketAddr]) -> anyhow::Result<Vec<TcpListener>> {
    let mut listeners = Vec::new();
    for address in addresses {
        let listener = admin::bind_tcp(*address)?;
        // Now: who connects before there is an identity waits, and is accepted as it was then.
        proxy::upstream::tune(&listener);
        listeners.push(listener);
    }
    Ok(listeners)
}

/// Accepts until `stop`, and then what waits by then.
fn listen<F, A>(
    listener: TcpListener,
    max: usize,
    stop: &CancellationToken,
    drain: &Drain,
    serve: F,
) -> impl Future<Output = ()> + Send + 'static
where
    F: Fn(TcpStream, SocketAddr, Live) -> A + Send + Sync + 'static,
    A: Future<Output = ()> + Send + 'static,
{
    let (stop, drain) = (stop.clone(), drain.clone());
    // Outbound comes from one address and inbound through few gateways: no cap per source.
    let caps = Caps { all: max, per_source: max };
    async move {
        let shed = |peer: SocketAddr, why| tracing::warn!(%peer, ?why, "a connection was shed");
        accept(listener, caps, stop, shed, |stream, peer, place| {
            tokio::spawn(serve(stream, peer, drain.live().holding(place)));
        })
        .await;
    }
}

fn own(config: &Config) -> Own {
    // Without capture nothing is led in circles, and the pod's own ports are the application's.
    let captured = config.loopback.is_none();
    let listeners = config.outbound().into_iter().chain(config.inbound());
    let listeners = listeners.filter(|_| captured);
    let dns = config.dns_listen();
    let prober = (!config.probes.is_empty()).then(|| config.prober());
    let pages = [config.admin, config.metrics(), config.health()].into_iter().chain(prober);
    let ports = listeners.chain(dns).chain(pages).map(|address| address.port()).collect();
    Own { addresses: config.pod_addresses.clone(), ports }
}

/// When the last connection came.
struct Last {
    began: Instant,
    at_ms: AtomicU64,
}

impl Last {
    fn new() -> Self {
        Self { began: Instant::now(), at_ms: AtomicU64::new(0) }
    }

    fn touch(&self) {
        self.at_ms.store(self.now_ms(), Ordering::Relaxed);
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Returns once nobody came for [`QUIET`], at the latest after [`WITHDRAWAL_MAX`].
    async fn quiet(&self) {
        let wait = async {
            self.touch();
            loop {
                let since = self.now_ms().saturating_sub(self.at_ms.load(Ordering::Relaxed));
                let Some(rest) = QUIET.checked_sub(Duration::from_millis(since)) else { return };
                tokio::time::sleep(rest.max(Duration::from_millis(1))).await;
            }
        };
        let _ = tokio::time::timeout(WITHDRAWAL_MAX, wait).await;
    }
}
