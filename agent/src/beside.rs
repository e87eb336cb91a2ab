//! The agent's life beside a foreign proxy: an identity, a socket, a bootstrap, and the proxy
//! itself where it is the agent's child.

use crate::config::Config;
use crate::socket::{self, Admitted};
use crate::{dial, envoy, numbers};
use anyhow::Context as _;
use futures::StreamExt as _;
use mesh::world::Dialect;
use runtime::admin::{self, Listen, Pages};
use runtime::metrics::Metrics;
use runtime::readiness::Readiness;
use std::ffi::{OsStr, OsString};
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use trust::bundle::Bundle;
use trust::svid::Svid;
use xds::bootstrap::{Bootstrap, GrpcBootstrap};
use xds::relay::{Heard, KeyPair};

/// Of the time to end in, this part (a tenth), and at least so much, is left to SIGTERM.
const TERM_PART: u32 = 10;
const TERM_MIN: Duration = Duration::from_secs(1);

/// What the command line adds to the file.
#[derive(Debug, Clone, Default)]
pub struct Beside {
    /// Where Envoy's bootstrap is written before anything is served.
    pub bootstrap: Option<PathBuf>,
    /// Where a gRPC client's bootstrap is written, with the certificate's files beside the socket;
    /// [`Beside::proxy`] finds it in `GRPC_XDS_BOOTSTRAP`.
    pub grpc_bootstrap: Option<PathBuf>,
    /// The proxy's program and its arguments; started once there is an identity.
    pub proxy: Vec<OsString>,
}

/// Serves until `end`, or until the proxy it started is gone, which is an error.
pub fn run(config: Config, beside: Beside, end: CancellationToken) -> runtime::Work<'static> {
    Box::pin(work(config, beside, end))
}

async fn work(config: Config, beside: Beside, end: CancellationToken) -> anyhow::Result<()> {
    config.check()?;
    let readiness = Readiness::new();
    readiness.wait_for("identity", "no certificate has been issued yet");
    readiness.wait_for("proxy", "no proxy has taken its listeners yet");
    // Who wrote the bootstrap knows where the admin pages are.
    let admin = beside.bootstrap.is_some().then_some(config.proxy_admin);
    let metrics = Metrics::new();
    // The proxy drains behind `end`, and needs its socket for it.
    let closed = CancellationToken::new();
    let _close = closed.clone().drop_guard();
    if let Some(file) = &beside.bootstrap {
        write_bootstrap(file, &envoy_bootstrap(&config))?;
    }
    // Bound first, so that a socket of somebody else is said at once.
    let listener = socket::bind(&config.socket)?;
    let public = |address| Listen::Tcp { address, public: true };
    let health = Pages::new().with_readiness(&readiness).counted_in(&metrics);
    admin::serve(public(config.health), health, closed.clone()).await?;
    let pages = Pages::new().with_metrics(&metrics);
    admin::serve(public(config.metrics), pages, closed.clone()).await?;

    let starting = crate::start(config.agent(), &readiness, &metrics, closed.clone());
    let agent = tokio::select! {
        agent = starting => agent?,
        () = end.cancelled() => return Ok(()),
    };
    readiness.done("identity");
    let server = dial::control_plane(&config.trust_domain);
    let (svid, bundle) = (agent.svid.clone(), agent.bundle.clone());
    let connector =
        dial::connector(config.control_plane.clone(), Some(svid.clone()), bundle.clone(), &server);
    let heard = watch::Sender::new(Heard::default());
    let counted = socket::Numbers::default();
    numbers::register_relay(&metrics, heard.subscribe(), &counted);
    let incoming = socket::accept(listener, &config.peers, counted).map(Local);
    tokio::spawn(serves(heard.subscribe(), admin, readiness, closed.clone()));
    let pairs = key_pair(svid, bundle, closed.clone());
    if let Some(file) = &beside.grpc_bootstrap {
        // Checked when the socket was bound: nobody else may write there.
        let folder = config.socket.parent().unwrap_or_else(|| Path::new(".")).to_owned();
        crate::files::write(&folder, &pairs.borrow())?;
        tokio::spawn(crate::files::keep(folder.clone(), pairs.clone(), closed.clone()));
        // Last: who finds it finds all that it names.
        write_bootstrap(file, &grpc_bootstrap(&config, &folder))?;
    }
    let relaying = xds::relay::serve(incoming, connector, pairs, heard, closed.clone());
    let relaying = tokio::spawn(relaying);
    tracing::info!(pod = %config.pod, socket = %config.socket.display(), "serving a foreign proxy");
    let drain = Duration::from_secs(config.drain_seconds);
    let proxied = follow_proxy(&beside, admin, drain, &end);
    let ended = tokio::select! {
        ended = proxied => ended,
        relayed = relaying => match relayed.context("the relay panicked")? {
            Ok(()) => Ok(()),
            Err(error) => Err(error),
        },
    };
    // Ours: the next agent need not wonder whose it is.
    let _ = std::fs::remove_file(&config.socket);
    ended
}

fn envoy_bootstrap(config: &Config) -> serde_json::Value {
    let node = xds::node::Node { dialect: Dialect::Envoy, ..config.agent().node() };
    let closed: Vec<_> =
        config.vip_ranges.iter().map(|net| (net.network(), net.prefix_len())).collect();
    let bootstrap = Bootstrap {
        node: &node,
        socket: &config.socket,
        admin: config.proxy_admin,
        closed: &closed,
        ipv6: config.pod_addresses.iter().any(|address| address.is_ipv6()),
    };
    bootstrap.to_json()
}

fn grpc_bootstrap(config: &Config, certificates: &Path) -> serde_json::Value {
    let node = xds::node::Node { dialect: Dialect::Grpc, ..config.agent().node() };
    GrpcBootstrap { node: &node, socket: &config.socket, certificates }.to_json()
}

fn write_bootstrap(file: &Path, bootstrap: &serde_json::Value) -> anyhow::Result<()> {
    let text = serde_json::to_string_pretty(bootstrap).expect("a value is written");
    // Whole or not at all: a proxy may be waiting for it.
    let fresh = file.with_extension("new");
    std::fs::write(&fresh, text).and_then(|()| std::fs::rename(&fresh, file)).with_context(|| {
        format!(
            "ISM1028 cannot write the bootstrap {}. Fix: name a file in a folder this user may \
             write",
            file.display()
        )
    })
}

/// Ready once the proxy has taken its listeners, and an Envoy (with `admin` pages) serves by them.
async fn serves(
    mut heard: watch::Receiver<Heard>,
    admin: Option<SocketAddr>,
    readiness: Readiness,
    end: CancellationToken,
) {
    let serving = async {
        if heard.wait_for(|heard| heard.configured).await.is_err() {
            return;
        }
        if let Some(admin) = admin {
            envoy::serves(admin, |why| readiness.wait_for("proxy", why)).await;
        }
        readiness.done("proxy");
    };
    tokio::select! {
        () = serving => {}
        () = end.cancelled() => {}
    }
}

/// Certificate, key and roots, whenever one of them changes.
fn key_pair(
    mut svid: watch::Receiver<Arc<Svid>>,
    mut bundle: watch::Receiver<Arc<Bundle>>,
    end: CancellationToken,
) -> watch::Receiver<Arc<KeyPair>> {
    let pair = |svid: &Svid, bundle: &Bundle| {
        Arc::new(KeyPair {
            chain: svid.chain_pem(),
            key: svid.key_pem().reveal().to_owned(),
            roots: bundle.pem(),
        })
    };
    let first = pair(&svid.borrow_and_update(), &bundle.borrow_and_update());
    let pairs = watch::Sender::new(first);
    let receiver = pairs.subscribe();
    tokio::spawn(async move {
        loop {
            let changed = tokio::select! {
                () = end.cancelled() => return,
                changed = svid.changed() => changed,
                changed = bundle.changed() => changed,
            };
            if changed.is_err() {
                return;
            }
            let (svid, bundle) =
                (svid.borrow_and_update().clone(), bundle.borrow_and_update().clone());
            pairs.send_replace(pair(&svid, &bundle));
        }
    });
    receiver
}

/// Starts the proxy, where there is one, and ends it with us; without one, waits for `end`.
async fn follow_proxy(
    beside: &Beside,
    admin: Option<SocketAddr>,
    drain: Duration,
    end: &CancellationToken,
) -> anyhow::Result<()> {
    let Some((program, arguments)) = beside.proxy.split_first() else {
        end.cancelled().await;
        return Ok(());
    };
    if beside.bootstrap.is_some() && !arguments.iter().any(|it| names_drain_time(it)) {
        tracing::warn!(
            "ISM1048 the proxy's command line names no --drain-time-s: a policy that changes reaches \
             connections that are open only as Envoy closes them, which may take 600 s. \
             Fix: add --drain-time-s 5 --drain-strategy immediate"
        );
    }
    let mut command = Command::new(program);
    command.envs(beside.grpc_bootstrap.iter().map(|file| ("GRPC_XDS_BOOTSTRAP", file)));
    let mut child = command.args(arguments).kill_on_drop(true).spawn().with_context(|| {
        format!(
            "ISM1029 cannot start the proxy {}. Fix: name a program this user may run",
            program.display()
        )
    })?;
    tokio::select! {
        status = child.wait() => {
            let status = status.context("waiting for the proxy")?;
            anyhow::bail!(
                "ISM1043 the proxy {} ended by itself with {status}. Fix: its own log, above, says why",
                program.display()
            );
        }
        () = end.cancelled() => {}
    }
    stop(&mut child, admin, drain).await
}

/// Envoy takes a flag's value beside it or behind `=`.
fn names_drain_time(argument: &OsStr) -> bool {
    argument.to_str().is_some_and(|it| it.split('=').next() == Some("--drain-time-s"))
}

/// An Envoy is drained first; then SIGTERM, and SIGKILL where all that does not end it within `limit`.
async fn stop(child: &mut Child, admin: Option<SocketAddr>, limit: Duration) -> anyhow::Result<()> {
    let over = Instant::now() + limit;
    if let Some(admin) = admin {
        let draining = limit.saturating_sub(TERM_MIN.max(limit / TERM_PART));
        tokio::select! {
            () = envoy::drain(admin, draining) => {}
            // What became of it is said below.
            _ = child.wait() => {}
        }
    }
    // Not waited for yet, so the id is still its own.
    if let Some(id) = child.id().and_then(|id| i32::try_from(id).ok()) {
        let pid = nix::unistd::Pid::from_raw(id);
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
    }
    match tokio::time::timeout_at(over, child.wait()).await {
        Ok(status) => {
            tracing::info!(status = %status.context("waiting for the proxy")?, "the proxy ended");
        }
        Err(_) => {
            tracing::warn!("the proxy has not ended in time and is killed");
            child.kill().await.context("killing the proxy")?;
        }
    }
    Ok(())
}

/// A local connection that keeps its place until it ends.
struct Local(Admitted);

impl AsyncRead for Local {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Local {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0.stream).poll_shutdown(cx)
    }
}
