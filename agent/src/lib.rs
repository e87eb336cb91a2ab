//! What a proxy needs before it can run: its identity, its configuration, its last good state.
//! Our own proxies call [`start`]; beside a foreign one [`run`] is a program.

mod beside;
mod config;
mod dial;
mod envoy;
mod files;
mod identity;
mod numbers;
mod socket;
mod state;

pub use beside::{Beside, run};
pub use config::Config;
pub use dial::{HostPort, NotHostPort};

use anyhow::Context as _;
use mesh::name::{ClusterId, Identity, Network, TrustDomain};
use mesh::program::{Resource, ResourceName, Snapshot, Want};
use mesh::world::{Dialect, Role};
use prometheus_client::metrics::counter::Counter;
use runtime::metrics::Metrics;
use runtime::readiness::Readiness;
use serde::Deserialize;
use state::State;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use trust::bundle::Bundle;
use trust::svid::Svid;
use xds::node::Node;
use xds::subscribe::Subscription;

/// A Program as the JSON list of xDS resources that [`Source::Files`] reads.
pub use xds::codec::to_json;

/// The last good configuration is written at most so often.
const SAVE_EVERY: Duration = Duration::from_secs(1);

/// Who this proxy is, and where identity and configuration come from.
#[derive(Debug, Clone)]
pub struct AgentConfig {
    pub role: Role,
    pub cluster: ClusterId,
    /// As far as the proxy knows it; the control plane knows better.
    pub network: Option<Network>,
    pub trust_domain: TrustDomain,
    pub namespace: String,
    pub pod: String,
    /// Service account.
    pub account: String,
    /// The pod's address, part of the xDS node id.
    pub address: IpAddr,
    pub root_certificates: RootCertificates,
    pub source: Source,
    /// Names every proxy of this role follows from its start on (its listeners, its zone).
    pub follow: Vec<ResourceName>,
}

#[derive(Debug, Clone)]
pub enum Source {
    /// A control plane: SVID by CSR with the token, configuration by xDS over mTLS.
    ControlPlane {
        address: HostPort,
        /// File of the service account token, audience `istio-ca`; read again for every request.
        token: PathBuf,
        /// Folder for the last good configuration and identity (files 0600); `None` keeps none.
        state: Option<PathBuf>,
    },
    /// Files that an operator wrote: a JSON list of xDS resources, and an SVID.
    Files { resources: PathBuf, chain: PathBuf, key: PathBuf },
}

/// Root certificates, PEM: a file, or the text itself (a pod is given it with its configuration).
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(from = "String")]
pub enum RootCertificates {
    File(PathBuf),
    Text(String),
}

impl From<String> for RootCertificates {
    fn from(text: String) -> Self {
        if text.contains("-----BEGIN ") { Self::Text(text) } else { Self::File(text.into()) }
    }
}

impl RootCertificates {
    fn bundle(&self) -> anyhow::Result<Bundle> {
        match self {
            Self::File(path) => {
                let text = read(path, "rootCertificates")?;
                Bundle::from_pem(&text).with_context(|| format!("in {}", path.display()))
            }
            Self::Text(text) => Bundle::from_pem(text).context("in rootCertificates"),
        }
    }
}

/// What [`start`] hands over; all of it goes on being renewed until `end`.
#[derive(Debug)]
pub struct Agent {
    pub svid: watch::Receiver<Arc<Svid>>,
    pub bundle: watch::Receiver<Arc<Bundle>>,
    pub snapshot: watch::Receiver<Arc<Snapshot>>,
    /// Takes names to begin and cease following; `None` where the configuration is a file.
    pub want: Option<mpsc::Sender<Want>>,
}

impl AgentConfig {
    fn identity(&self) -> anyhow::Result<Identity> {
        let text =
            format!("spiffe://{}/ns/{}/sa/{}", self.trust_domain, self.namespace, self.account);
        text.parse().context(
            "ISM1010 trustDomain, namespace and account make no identity. \
             Fix: write a namespace and a service account as Kubernetes names them",
        )
    }

    pub(crate) fn node(&self) -> Node {
        Node {
            role: self.role,
            address: self.address,
            pod: self.pod.clone(),
            namespace: self.namespace.clone(),
            cluster: self.cluster.to_string(),
            network: self.network.as_ref().map(|network| network.to_string()).unwrap_or_default(),
            account: self.account.clone(),
            locality: Default::default(),
            dialect: Dialect::Isthmus,
        }
    }
}

/// Returns once there is an SVID; `readiness` says meanwhile what is awaited (`identity`,
/// `configuration`) and why. Errors are those that waiting cannot mend.
pub fn start<'a>(
    config: AgentConfig,
    readiness: &'a Readiness,
    metrics: &'a Metrics,
    end: CancellationToken,
) -> runtime::Work<'a, Agent> {
    Box::pin(begin(config, readiness, metrics, end))
}

async fn begin(
    config: AgentConfig,
    readiness: &Readiness,
    metrics: &Metrics,
    end: CancellationToken,
) -> anyhow::Result<Agent> {
    let bundle = watch::Sender::new(Arc::new(config.root_certificates.bundle()?));
    match config.source.clone() {
        Source::Files { resources, chain, key } => {
            let program = read(&resources, "resources")?;
            let program = xds::codec::from_json(&program).with_context(|| {
                format!(
                    "ISM1011 the resources in {} are not what a proxy can run. \
                     Fix: write a JSON list of xDS resources as `isthmus proxy-config -o json` prints",
                    resources.display()
                )
            })?;
            let svid = Svid::from_pem(&read(&chain, "svid.chain")?, &read(&key, "svid.key")?)
                .with_context(|| format!("in {} and {}", chain.display(), key.display()))?;
            let snapshot = Snapshot { program, connected: false, ..Snapshot::default() };
            let (svid, snapshot) =
                (watch::Sender::new(Arc::new(svid)), watch::Sender::new(Arc::new(snapshot)));
            numbers::register(metrics, svid.subscribe(), Counter::default());
            Ok(Agent {
                svid: svid.subscribe(),
                bundle: bundle.subscribe(),
                snapshot: snapshot.subscribe(),
                want: None,
            })
        }
        Source::ControlPlane { address, token, state } => {
            let state = state.map(State::open).transpose()?;
            let identity = config.identity()?;
            let (hurry, hurried) = watch::channel(0);
            let failed = Counter::default();
            let server = dial::control_plane(&config.trust_domain);
            let issuing = dial::connector(address.clone(), None, bundle.subscribe(), &server);
            let issue = identity::Issue {
                identity,
                token,
                connector: issuing,
                state: state.clone(),
                failed: failed.clone(),
            };
            let svid = tokio::select! {
                svid = issue.first(readiness) => svid,
                () = end.cancelled() => anyhow::bail!("ended before there was an identity"),
            };
            let svid = issue.keep(svid, hurried, end.clone());
            numbers::register(metrics, svid.clone(), failed);
            let connector =
                dial::connector(address, Some(svid.clone()), bundle.subscribe(), &server);
            let known = state.as_ref().map(State::program).unwrap_or_default();
            let subscription =
                xds::subscribe::start_from(config.node(), connector, known, end.clone());
            follow(&config.follow, &subscription.want).await;
            let agent = Agent {
                svid,
                bundle: bundle.subscribe(),
                snapshot: subscription.snapshot.clone(),
                want: Some(subscription.want.clone()),
            };
            await_configuration(config.follow, &subscription, readiness, end.clone());
            tokio::spawn(keep_up(subscription.snapshot, bundle, hurry, state, end));
            Ok(agent)
        }
    }
}

fn read(path: &Path, field: &str) -> anyhow::Result<String> {
    std::fs::read_to_string(path).with_context(|| {
        format!(
            "ISM1012 cannot read {} ({field}). Fix: name a file that exists and this user may read",
            path.display()
        )
    })
}

/// Subscribes to `names` and the root certificates.
async fn follow(names: &[ResourceName], want: &mpsc::Sender<Want>) {
    for name in names.iter().cloned().chain([ResourceName::root_ca()]) {
        // A subscription that is over has ended with everything else.
        let _ = want.send(Want::Subscribe(name)).await;
    }
}

/// Not ready until all of `names` are known, be it from the last good configuration.
fn await_configuration(
    names: Vec<ResourceName>,
    subscription: &Subscription,
    readiness: &Readiness,
    end: CancellationToken,
) {
    let (mut snapshot, readiness) = (subscription.snapshot.clone(), readiness.clone());
    let complete = move |snapshot: &Arc<Snapshot>| {
        let known = |name| snapshot.program.contains_key(name) || snapshot.absent.contains(name);
        names.iter().all(known)
    };
    if complete(&snapshot.borrow()) {
        return;
    }
    readiness.wait_for("configuration", "the control plane has not sent it yet");
    tokio::spawn(async move {
        tokio::select! {
            () = end.cancelled() => {}
            found = snapshot.wait_for(complete) => if found.is_ok() {
                drop(found);
                readiness.done("configuration");
            },
        }
    });
}

/// Follows what comes: roots into the bundle, the whole into the state folder.
async fn keep_up(
    mut snapshot: watch::Receiver<Arc<Snapshot>>,
    bundle: watch::Sender<Arc<Bundle>>,
    hurry: watch::Sender<u64>,
    state: Option<State>,
    end: CancellationToken,
) {
    loop {
        let now = snapshot.borrow_and_update().clone();
        // What was read from disk is older than the root file; only what is said now counts.
        if now.connected
            && let Some(Resource::Secret(roots)) =
                now.program.get(&ResourceName::root_ca()).map(|resource| &**resource)
        {
            match Bundle::from_pem(&roots.root_certificates) {
                Ok(new) => {
                    let changed = bundle.send_if_modified(|old| {
                        let differs = old.fingerprint() != new.fingerprint();
                        if differs {
                            *old = Arc::new(new);
                        }
                        differs
                    });
                    if changed {
                        tracing::info!("the root certificates changed");
                        hurry.send_modify(|count| *count += 1);
                    }
                }
                Err(error) => tracing::warn!(%error, "the control plane sent unusable roots"),
            }
        }
        if now.connected
            && let Some(state) = state.clone()
        {
            let saved = tokio::task::spawn_blocking(move || state.save_program(&now.program)).await;
            if let Ok(Err(error)) = saved {
                tracing::warn!(
                    error = format!("{error:#}"),
                    "the last good configuration is not kept"
                );
            }
        }
        let next = async {
            // Changes within a moment make one file.
            tokio::time::sleep(SAVE_EVERY).await;
            snapshot.changed().await
        };
        tokio::select! {
            () = end.cancelled() => return,
            changed = next => if changed.is_err() { return },
        }
    }
}
