//! The whole of it: what starts after what, and what ends before what.

use crate::accept::{self, accept};
use crate::authority::{self, Authority};
use crate::numbers::{Live, Numbers};
use crate::pages::pages;
use crate::serve::{Served, follow};
use crate::webhook::{self, Webhook};
use anyhow::Context as _;
use cluster::inject::{Settings, namespace_labels, read_settings};
use cluster::secret::Cacerts;
use cluster::watch::WatchHealth;
use futures::future::BoxFuture;
use mesh::inventory::Inventory;
use runtime::admin::{self, Listen, Pages};
use runtime::metrics::Metrics;
use runtime::readiness::Readiness;
use serde::Deserialize;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use trust::issue::Issuer;
use trust::rotation;
use trust::tls::{self, Clients};
use xds::serve::Sessions;

/// The configuration file of `isthmus control-plane`.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Config {
    /// How to reach the own cluster's API server.
    pub kubeconfig: PathBuf,
    /// xDS and certificates, over TLS.
    #[serde(default = "listen")]
    pub listen: SocketAddr,
    /// Admin pages; loopback only.
    #[serde(default = "admin_address")]
    pub admin: SocketAddr,
    /// Metrics and readiness, for everyone.
    #[serde(default = "metrics_address")]
    pub metrics: SocketAddr,
    /// Where ConfigMap `isthmus-mesh` is.
    #[serde(default = "root_namespace")]
    pub root_namespace: String,
    /// Where Secret `cacerts` is; only the control plane may read it there (docs/adr/0008).
    #[serde(default = "authority_namespace")]
    pub authority_namespace: String,
    /// The mutating webhook that injects sidecars; without it there is none.
    pub webhook: Option<webhook::Config>,
}

fn listen() -> SocketAddr {
    SocketAddr::from(([0, 0, 0, 0], 15012))
}

fn admin_address() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 15014))
}

fn metrics_address() -> SocketAddr {
    SocketAddr::from(([0, 0, 0, 0], 15015))
}

fn root_namespace() -> String {
    "isthmus-system".into()
}

fn authority_namespace() -> String {
    cluster::secret::NAMESPACE.into()
}

/// First and longest pause between attempts to read Secret `cacerts` at the start.
const CACERTS_RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

/// Finished handshakes that wait to be served.
const WAITING: usize = 64;

/// Runs until `end`: then unready, no new connections, streams end, and the watches last.
pub fn run(config: Config, end: CancellationToken) -> runtime::Work<'static> {
    Box::pin(work(config, end))
}

async fn work(config: Config, end: CancellationToken) -> anyhow::Result<()> {
    let Config { kubeconfig, listen, admin, metrics: metrics_at, .. } = config;
    let (root_namespace, authority_namespace) = (config.root_namespace, config.authority_namespace);
    let names = webhook::names(&root_namespace, config.webhook.as_ref());
    // Ending by ourselves is not the caller's end.
    let end = end.child_token();
    // What shows our state outlives what has one.
    let last = CancellationToken::new();
    let _last = last.clone().drop_guard();

    let readiness = Readiness::new();
    readiness.wait_for("authority", "Secret cacerts has not been read");
    readiness.wait_for("inventory", "the own API server has not been read");
    let (metrics, numbers) = (Metrics::new(), Numbers::default());
    let (served, sessions) = (Arc::new(Served::new(&root_namespace)), Sessions::default());

    // A port in use shows here, before anything has been started.
    let listener = admin::bind_tcp(listen)?;
    let webhook = match &config.webhook {
        Some(webhook) => {
            webhook::wait_for_settings(&readiness);
            Some(admin::bind_tcp(webhook.listen)?)
        }
        None => None,
    };
    let own_pages = pages(&served, &sessions, &readiness, &metrics);
    let address = Listen::Tcp { address: admin, public: false };
    admin::serve(address, own_pages, last.clone()).await?;
    let public = Pages::new().with_metrics(&metrics).with_readiness(&readiness);
    let address = Listen::Tcp { address: metrics_at, public: true };
    admin::serve(address, public, last.clone()).await?;

    let client = cluster::client::connect(&kubeconfig).await?;
    let options = cluster::watch::Options::of(&root_namespace)?;
    let watched = cluster::watch::own(client.clone(), options, last.clone());
    let (issuer_known, issuer_shown) = watch::channel(None::<Arc<Issuer>>);
    metrics.register(|registry| {
        numbers.register(registry);
        registry.register_collector(Box::new(Live {
            served: served.clone(),
            sessions: sessions.clone(),
            issuer: issuer_shown.clone(),
            health: watched.health.clone(),
        }));
    });
    let following = tokio::spawn(follow(served.clone(), watched.inventory.clone()));

    let read = {
        let client = client.clone();
        async move || cluster::secret::read_cacerts(&client, &authority_namespace).await
    };
    let first = tokio::select! {
        () = end.cancelled() => return Ok(()),
        first = first_authority(&read, &readiness) => first,
    };
    let (cacerts, issuer) = first;
    let svid = authority::own_svid(&issuer, &root_namespace, &names)
        .context("the control plane cannot sign its own certificate")?;
    let bundle = Arc::new(issuer.bundle().clone());
    tracing::info!(
        trust_domain = %issuer.trust_domain(),
        root = bundle.fingerprint(),
        "authority ready"
    );
    issuer_known.send_replace(Some(issuer.clone()));
    let (bundles, bundle) = watch::channel(bundle);
    let (issuers, issuer) = watch::channel(issuer);
    let (svids, svid) = watch::channel(Arc::new(svid));
    let (hurry, hurried) = watch::channel(0);
    readiness.done("authority");

    let renew = {
        let (issuer, numbers) = (issuer.clone(), numbers.clone());
        let root_namespace = root_namespace.clone();
        async move || {
            let issuer = issuer.borrow().clone();
            let made = authority::own_svid(&issuer, &root_namespace, &names);
            made.inspect_err(|_| numbers.renewal_failed("certificate"))
        }
    };
    let reviewing = client.clone();
    let review: authority::Review = Box::new(move |token| {
        let client = reviewing.clone();
        Box::pin(async move { cluster::token::review(&client, &token, authority::AUDIENCE).await })
    });
    let issue = Authority::new(issuer.clone(), served.clone(), review, numbers.clone());
    let reloading = numbers.clone();
    let injecting = {
        let reading = client.clone();
        let settings = move |own: Arc<Inventory>| -> BoxFuture<'static, anyhow::Result<Settings>> {
            let (client, root_namespace) = (reading.clone(), root_namespace.clone());
            Box::pin(async move { read_settings(&client, &root_namespace, Some(&own.mesh)).await })
        };
        let labels = move |namespace: String| -> BoxFuture<'static, anyhow::Result<_>> {
            let client = client.clone();
            Box::pin(async move { namespace_labels(&client, &namespace).await })
        };
        let webhook = webhook.map(|listener| Webhook {
            listener,
            tls: tls::server_config(svid.clone(), bundle.clone(), Clients::None, &[b"http/1.1"]),
            cluster: webhook::Cluster { settings: Box::new(settings), labels: Box::new(labels) },
            own: watched.inventory.clone(),
            numbers: numbers.clone(),
            readiness: readiness.clone(),
            end: end.clone(),
        });
        async move {
            match webhook {
                Some(webhook) => webhook.run().await,
                None => std::future::pending().await,
            }
        }
    };
    let tls = tls::server_config(svid, bundle, Clients::Optional, &[b"h2"]);
    let (accepted, incoming) = mpsc::channel(WAITING);
    let accepting = tokio::spawn(accept(
        listener,
        tls,
        accept::Limits::default(),
        numbers,
        accepted,
        end.clone(),
    ));
    let serving = xds::serve::serve(
        ReceiverStream::new(incoming),
        served.clone(),
        Some(Arc::new(issue)),
        sessions,
        end.clone(),
    );

    let aside = async {
        tokio::join!(
            authority::reload(read, cacerts, &issuers, &bundles, &hurry, authority::RELOAD, || {
                reloading.renewal_failed("authority");
            }),
            rotation::keep(&svids, hurried, renew),
            mirror(issuer.clone(), &issuer_known),
            injecting,
            report(&readiness, watched.inventory.clone(), watched.health.clone(), issuer.clone()),
        )
    };
    let unready = async {
        end.cancelled().await;
        readiness.wait_for("end", "the control plane is ending");
        std::future::pending::<()>().await;
    };
    let served = tokio::select! {
        served = serving => served,
        _ = aside => unreachable!("the tasks beside serving have no end"),
        () = unready => unreachable!("pending for ever"),
    };
    end.cancel();
    accepting.await.context("accepting connections")?;
    last.cancel();
    following.await.context("following the inventory")?;
    served.context("serving xDS")
}

/// Asks for Secret `cacerts` until there is a good one; readiness says what is wrong with it.
async fn first_authority(
    read: &impl AsyncFn() -> anyhow::Result<Cacerts>,
    readiness: &Readiness,
) -> (Cacerts, Arc<Issuer>) {
    let (mut pause, longest) = CACERTS_RETRY;
    loop {
        let why = match read().await {
            Ok(cacerts) => match authority::issuer(&cacerts) {
                Ok(issuer) => return (cacerts, Arc::new(issuer)),
                Err(error) => error.to_string(),
            },
            Err(error) => format!("{error:#}"),
        };
        if readiness.awaited().get("authority") != Some(&why) {
            tracing::warn!(why, "no authority yet, asking again");
        }
        readiness.wait_for("authority", &why);
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(longest);
    }
}

/// Shows a replaced authority to the metrics.
async fn mirror(
    mut issuer: watch::Receiver<Arc<Issuer>>,
    shown: &watch::Sender<Option<Arc<Issuer>>>,
) -> std::convert::Infallible {
    while issuer.changed().await.is_ok() {
        let newest = issuer.borrow_and_update().clone();
        shown.send_replace(Some(newest));
    }
    std::future::pending().await
}

/// Keeps readiness true to what is known: an inventory, and one trust domain for it and for the
/// authority. Once ready for the inventory it stays so: what is known is served, however old.
async fn report(
    readiness: &Readiness,
    mut inventory: watch::Receiver<Option<Arc<Inventory>>>,
    mut health: watch::Receiver<WatchHealth>,
    mut issuer: watch::Receiver<Arc<Issuer>>,
) -> std::convert::Infallible {
    loop {
        let mesh = inventory.borrow_and_update().as_ref().map(|own| own.mesh.clone());
        let issuer_now = issuer.borrow_and_update().clone();
        let waiting = health.borrow_and_update().waiting.join("; ");
        match mesh {
            None if waiting.is_empty() => {
                readiness.wait_for("inventory", "the own API server has not been read");
            }
            None => readiness.wait_for("inventory", &waiting),
            Some(mesh) => {
                readiness.done("inventory");
                let issues_for = issuer_now.trust_domain();
                if mesh.trust_domain == *issues_for {
                    readiness.done("trust domain");
                } else {
                    let why = format!(
                        "ISM4017 ConfigMap isthmus-mesh says trustDomain {}, Secret cacerts is for {issues_for}. \
                         Fix: correct the ConfigMap, or write the Secret with `isthmus trust issue`",
                        mesh.trust_domain
                    );
                    readiness.wait_for("trust domain", &why);
                }
            }
        }
        let changed = tokio::select! {
            changed = inventory.changed() => changed,
            changed = health.changed() => changed,
            changed = issuer.changed() => changed,
        };
        if changed.is_err() {
            return std::future::pending().await;
        }
    }
}
