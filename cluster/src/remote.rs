//! Linked clusters: remote secrets become watches of their API servers, and those become values.
//!
//! Reading order: this file (what is published, and the one task that owns it), `secrets` (which
//! secret speaks for which cluster), `link` (credentials of one cluster, a machine without IO),
//! `drive` (one credential at work), `problem` (errors as reasons with a fix).

mod drive;
mod link;
pub(crate) mod problem;
mod secrets;

pub use link::{Reachability, Reachable};
pub use problem::Problem;

use crate::api::label;
use crate::follow::{Change, Follow, follow};
use crate::heard::{Heard, Moment};
use crate::kubeconfig::Rules;
use crate::renewal::{self, Credential, Renewed};
use drive::Report;
use k8s_openapi::api::core::v1::Secret;
use kube::runtime::watcher;
use kube::{Api, Client};
use link::{Action, Input, Link};
use mesh::export::ExportedService;
use mesh::finding::{Finding, ObjectRef};
use mesh::inventory::GatewayAddress;
use mesh::name::{ClusterId, Network, ServiceName, TrustDomain};
use secrets::SecretData;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

/// Where to look for links, and how much one may cost (threat A8).
#[derive(Debug, Clone)]
pub struct Options {
    /// Namespaces whose remote secrets count (decision 17).
    pub secret_namespaces: Vec<String>,
    /// Where a linked cluster keeps its ConfigMap `isthmus-mesh` and its gateway.
    pub root_namespace: String,
    pub rules: Rules,
    pub limits: Limits,
}

/// What one link may make us hold.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// ExportedServices; a list beyond is not used, the last good one is kept.
    pub services: usize,
    /// Addresses of gateways.
    pub gateways: usize,
    /// Bytes of one answer: a page of a list, or what a watch says in its 23 seconds.
    pub answer_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { services: 5_000, gateways: 64, answer_bytes: 32 * 1024 * 1024 }
    }
}

/// All links, as of now.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Remotes {
    /// Every secret namespace and our own Secrets have been listed: only then is an absent secret
    /// a deleted one.
    pub synced: bool,
    /// By cluster id, the key in the secret.
    pub links: BTreeMap<String, Remote>,
    /// Secrets that speak for nobody, and why; sorted.
    pub findings: Vec<Finding>,
    /// By cluster id, the credentials that can be renewed.
    pub credentials: BTreeMap<String, Credential>,
    /// Clusters whose renewed token renews nothing any more.
    pub void: BTreeSet<String>,
}

/// One linked cluster.
#[derive(Debug, Clone, PartialEq)]
pub struct Remote {
    pub secret: ObjectRef,
    /// Its API server's URL; empty where the kubeconfig is refused.
    pub server: String,
    /// Start of the SHA-256 of the kubeconfig in use.
    pub credential: String,
    /// Why the secret's present content is not in use; an older credential may still be.
    pub problem: Option<Problem>,
    /// Its secret is gone; what it told is kept for [`link::GRACE`], in case it is being replaced.
    pub leaving: bool,
    pub state: RemoteState,
}

/// What is known of a linked cluster, and how fresh that is.
#[derive(Debug, Clone, PartialEq)]
pub struct RemoteState {
    /// What it told, once one whole list of everything was seen; kept through outages.
    pub exports: Option<Arc<Told>>,
    pub reachable: Reachability,
    pub last_heard: Option<Moment>,
    /// Why it is not synced, or not fresh.
    pub error: Option<Problem>,
}

/// All that a linked cluster told us.
#[derive(Debug, Clone, PartialEq)]
pub struct Told {
    /// The id it gives itself.
    pub cluster: ClusterId,
    /// UID of its Namespace `kube-system`.
    pub uid: String,
    pub network: Network,
    pub trust_domain: TrustDomain,
    /// PEM, from its ConfigMap `isthmus-mesh`.
    pub root_certificates: String,
    pub gateways: Vec<GatewayAddress>,
    pub services: BTreeMap<ServiceName, ExportedService>,
    /// Objects of it that are not believed; at most [`FINDINGS_MAX`].
    pub findings: Vec<Finding>,
}

/// Findings kept per link.
pub const FINDINGS_MAX: usize = 100;
/// Links at once; secrets beyond are named in a finding.
pub const LINKS_MAX: usize = 256;

/// Watches remote secrets, and the clusters they lead to, until `end`.
pub fn links(
    client: Client,
    options: Options,
    end: CancellationToken,
) -> watch::Receiver<Arc<Remotes>> {
    let (send, receive) = watch::channel(Arc::new(Remotes::default()));
    tokio::spawn(run(client, options, send, end));
    receive
}

/// The machine steps at least so often, for what only time changes.
const TICK: Duration = Duration::from_millis(500);

enum News {
    Secrets(String, Change<Option<SecretData>>),
    Renewed(Change<Option<Renewed>>),
    Report { cluster: String, generation: u64, report: Report },
}

async fn run(
    client: Client,
    options: Options,
    publish: watch::Sender<Arc<Remotes>>,
    end: CancellationToken,
) {
    let (send, mut news) = mpsc::channel(256);
    let mut unlisted: BTreeSet<String> = options.secret_namespaces.iter().cloned().collect();
    for namespace in unlisted.clone() {
        let what = follow_secrets(&client, &namespace, &format!("{}=true", label::MULTI_CLUSTER));
        let wrap = move |change| News::Secrets(namespace.clone(), change);
        tokio::spawn(follow(what, secrets::trim, wrap, send.clone(), end.clone()));
    }
    let what = follow_secrets(&client, &options.root_namespace, label::CREDENTIAL);
    tokio::spawn(follow(what, renewal::trim, News::Renewed, send.clone(), end.clone()));

    let mut secrets: BTreeMap<ObjectRef, SecretData> = BTreeMap::new();
    // Before our own Secrets are listed, an older credential would be used for a moment.
    let mut renewed: Option<BTreeMap<String, Renewed>> = None;
    let mut links: BTreeMap<String, Held> = BTreeMap::new();
    let mut findings = Vec::new();
    let (mut credentials, mut void) = (BTreeMap::new(), BTreeSet::new());
    let mut tick = tokio::time::interval(TICK);
    loop {
        let first = tokio::select! {
            () = end.cancelled() => return,
            _ = tick.tick() => None,
            news = news.recv() => Some(news.expect("this task holds a sender")),
        };
        let now = Moment::now();
        let mut secrets_changed = false;
        // Whatever else is there already is one change with it.
        for item in first.into_iter().chain(std::iter::from_fn(|| news.try_recv().ok()).take(1_000))
        {
            match item {
                News::Secrets(namespace, change) => {
                    secrets_changed = true;
                    if matches!(change, Change::Replaced(_)) {
                        unlisted.remove(&namespace);
                    }
                    secrets::note(&mut secrets, &namespace, change);
                }
                News::Renewed(change) => {
                    secrets_changed = true;
                    secrets::note_renewed(&mut renewed, change);
                }
                News::Report { cluster, generation, report } => {
                    if let Some(held) = links.get_mut(&cluster) {
                        let actions = held.link.step(now, Input::Report { generation, report });
                        held.act(&cluster, actions, &options, &send, &end);
                    }
                }
            }
        }
        if let Some(renewed) = renewed.as_ref().filter(|_| secrets_changed) {
            let owners: BTreeMap<String, ObjectRef> =
                links.iter().map(|(id, held)| (id.clone(), held.link.secret().clone())).collect();
            let mut read = secrets::sources(&secrets, &owners, options.rules);
            credentials = read.renew(renewed);
            let renews = |ours: &&Renewed| read.renewed.contains(&ours.cluster);
            // Only then is an absent secret a deleted one.
            let void_now = renewed.values().filter(|ours| unlisted.is_empty() && !renews(ours));
            void = void_now.map(|ours| ours.cluster.clone()).collect();
            findings = read.findings;
            for (cluster, source) in &read.sources {
                let held = links.entry(cluster.clone()).or_insert_with(|| Held {
                    link: Link::new(source.secret.clone(), now),
                    tasks: BTreeMap::new(),
                });
                let input = Input::Secret(source.secret.clone(), source.kubeconfig.clone());
                let actions = held.link.step(now, input);
                held.act(cluster, actions, &options, &send, &end);
            }
            if unlisted.is_empty() {
                for (cluster, held) in &mut links {
                    if !read.sources.contains_key(cluster) {
                        let actions = held.link.step(now, Input::SecretGone);
                        held.act(cluster, actions, &options, &send, &end);
                    }
                }
            }
        }
        links.retain(|cluster, held| {
            let actions = held.link.step(now, Input::Tick);
            let over = actions.contains(&Action::Forget);
            held.act(cluster, actions, &options, &send, &end);
            !over
        });

        let remotes = Remotes {
            // Links are made of secrets only once both kinds are listed.
            synced: unlisted.is_empty() && renewed.is_some(),
            links: links.iter().map(|(id, held)| (id.clone(), held.link.remote())).collect(),
            findings: findings.clone(),
            credentials: credentials.clone(),
            void: void.clone(),
        };
        publish.send_if_modified(|before| {
            let news = **before != remotes;
            if news {
                *before = Arc::new(remotes);
            }
            news
        });
    }
}

/// A link, and the tasks that work for it by generation.
struct Held {
    link: Link,
    tasks: BTreeMap<u64, CancellationToken>,
}

impl Held {
    fn act(
        &mut self,
        cluster: &str,
        actions: Vec<Action>,
        options: &Options,
        send: &mpsc::Sender<News>,
        end: &CancellationToken,
    ) {
        for action in actions {
            match action {
                Action::Start { generation, kubeconfig } => {
                    let stop = end.child_token();
                    self.tasks.insert(generation, stop.clone());
                    let (cluster, send) = (cluster.to_owned(), send.clone());
                    let report = move |report| {
                        let (cluster, send) = (cluster.clone(), send.clone());
                        async move {
                            let news = News::Report { cluster, generation, report };
                            send.send(news).await.is_ok()
                        }
                    };
                    tokio::spawn(drive::drive(kubeconfig, options.clone(), report, stop));
                }
                Action::Stop { generation } => {
                    if let Some(stop) = self.tasks.remove(&generation) {
                        stop.cancel();
                    }
                }
                Action::Forget => self.tasks.values().for_each(CancellationToken::cancel),
            }
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.tasks.values().for_each(CancellationToken::cancel);
    }
}

fn follow_secrets(client: &Client, namespace: &str, selector: &str) -> Follow<Secret> {
    let heard = Heard::default();
    let client = heard.listen(client.clone());
    Follow {
        apis: vec![Api::namespaced(client, namespace)],
        config: watcher::Config::default().labels(selector),
        heard,
    }
}

/// Time since `moment`, whole seconds.
pub fn age(moment: Moment, now: Instant) -> u64 {
    now.saturating_duration_since(moment.at).as_secs()
}
