//! The controller at work: everything it watches, and the one task that draws conclusions.

use crate::ask::{self, Asked};
use crate::config::Config;
use crate::doors::{self, Doors};
use crate::links;
use crate::numbers::Numbers;
use crate::publish::Publisher;
use crate::renew::{self, Renewing};
use crate::resolve;
use crate::status::{Facts, Saved, Shown, Statuses, shown};
use crate::store::Store;
use anyhow::Context as _;
use cluster::apply::{self, Desired, Progress};
use cluster::events::Events;
use cluster::kubeconfig::Rules;
use cluster::lease::{self, Fence};
use cluster::link_objects::{self, Objects, Wanted};
use cluster::remote::{self, Limits, Remotes};
use cluster::renewal::Shelf;
use cluster::watch as own_watch;
use mesh::federate::Plan;
use mesh::finding::Finding;
use mesh::zone::Zone;
use runtime::admin::{self, Listen, Pages};
use runtime::metrics::Metrics;
use runtime::readiness::Readiness;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Name of the leader's Lease, in the root namespace.
const LEASE: &str = "isthmus-federation";
/// Of a cluster that announces no gateway.
static NO_DOORS: BTreeMap<std::net::SocketAddr, doors::Door> = BTreeMap::new();
/// Ages and numbers are renewed so often.
const TICK: Duration = Duration::from_secs(1);
/// After the end is asked for, the lease is handed over within this.
const HAND_OVER: Duration = Duration::from_secs(5);

/// Runs until `end`.
pub fn run(config: Config, end: CancellationToken) -> runtime::Work<'static> {
    Box::pin(work(config, end))
}

async fn work(config: Config, end: CancellationToken) -> anyhow::Result<()> {
    if let Some(folder) = &config.state {
        std::fs::create_dir_all(folder).with_context(|| {
            format!("ISM2401 cannot create the state folder {}. Fix: name a folder this user may write, or leave state out", folder.display())
        })?;
    }
    anyhow::ensure!(
        (0.001..=0.9).contains(&config.renew_at),
        "ISM2404 renewAt is {}, a share from 0.001 to 0.9 is wanted. Fix: leave it out, half is used then",
        config.renew_at
    );
    let metrics = Metrics::new();
    let readiness = Readiness::new();
    readiness.wait_for("inventory", "the own API server was not read yet");
    let view = View::default();
    let (answers, asked) = watch::channel(vec![]);
    let pages = pages(&view, asked).with_readiness(&readiness).with_metrics(&metrics);
    admin::serve(Listen::Tcp { address: config.admin, public: false }, pages, end.clone()).await?;
    let public = Pages::new().with_readiness(&readiness).with_metrics(&metrics);
    admin::serve(Listen::Tcp { address: config.metrics, public: true }, public, end.clone())
        .await?;

    let client = cluster::client::connect(&config.kubeconfig).await?;
    let zone_store = Store::new(config.state.as_deref(), "zone.json");
    let last_zone: Zone = zone_store.load().unwrap_or_default();
    // Whatever an old zone lacks may exist by now: never NXDOMAIN from it.
    let (zone, zones) = watch::channel(Arc::new(Zone { complete: false, ..last_zone }));
    // Whoever is asked about names that are not ours knows the world's; else the machine's resolvers.
    let upstreams = config.dns.iter().flat_map(|dns| dns.upstreams.clone()).collect::<Vec<_>>();
    let resolvers = if upstreams.is_empty() { resolve::system() } else { upstreams };
    let listen = config.dns.iter().flat_map(|dns| dns.listen.clone()).collect();
    tokio::spawn(ask::keep(listen, answers, end.clone()));
    let clients = config.dns.as_ref().map(|dns| dns.clients).unwrap_or_default();
    let dns = config.dns.clone().map(|dns| {
        let options = dns::Options {
            listen: dns.listen,
            upstreams: dns.upstreams,
            allow: dns.allow,
            zone: zones,
            metrics: metrics.clone(),
        };
        tokio::spawn(dns::serve(options, end.clone()))
    });

    // The lease outlives the writers by a moment, so that it is handed over, not waited for.
    let writing = end.child_token();
    let fence =
        lease::elect(client.clone(), &config.root_namespace, LEASE, &config.holder, end.clone());
    let (desired, desires) = watch::channel(None);
    let (wanted, wants) = watch::channel(Arc::new(Wanted::default()));
    let rules = Rules { allow_loopback: config.allow_loopback };
    let remotes = remote::links(
        client.clone(),
        remote::Options {
            secret_namespaces: config.secret_namespaces.clone(),
            root_namespace: config.root_namespace.clone(),
            rules,
            limits: Limits::default(),
        },
        end.clone(),
    );
    let (wanted_names, names_wanted) = watch::channel(BTreeSet::new());
    let (found_names, names) = watch::channel(resolve::Table::default());
    tokio::spawn(resolve::keep(resolvers, names_wanted, found_names, end.clone()));
    let (failures, failed) = watch::channel(renew::Failures::default());
    let renewing = Renewing {
        failures,
        shelf: Shelf::new(client.clone(), &config.root_namespace),
        remotes: remotes.clone(),
        fence: fence.clone(),
        rules,
        at: config.renew_at,
    };
    tokio::spawn(renew::keep(renewing, writing.clone()));
    let events = Events::start(client.clone(), fence.clone(), writing.clone());
    let own = own_watch::own(
        client.clone(),
        own_watch::Options::of(&config.root_namespace)?,
        end.clone(),
    );
    let (knocked, doors) = watch::channel(None);
    tokio::spawn(doors::keep(own.inventory.clone(), knocked, end.clone()));
    let controller = Controller {
        own,
        remotes,
        doors,
        failed,
        names,
        wanted_names,
        objects: link_objects::start(
            client.clone(),
            &config.root_namespace,
            wants,
            fence.clone(),
            events.clone(),
            writing.clone(),
        ),
        progress: apply::start(client, desires, fence.clone(), events, writing),
        fence: fence.clone(),
        desired,
        wanted,
        zone,
        publisher: Publisher::new(clients),
        statuses: Statuses::default(),
        link_store: Store::new(config.state.as_deref(), "links.json"),
        zone_store,
        numbers: Numbers::new(&metrics),
        readiness,
        view,
        started: Instant::now(),
    };
    let control = tokio::spawn(controller.control(end.clone()));
    let dns = async {
        match dns {
            Some(dns) => dns
                .await
                .context("the DNS server ended")?
                .context("ISM2402 the DNS server cannot serve"),
            None => {
                end.cancelled().await;
                Ok(())
            }
        }
    };
    tokio::select! {
        result = dns => result?,
        () = end.cancelled() => {}
    }
    // A DNS server that could not bind is the end of the whole process.
    end.cancel();
    control.await.context("the controller ended")?;
    let _ = tokio::time::timeout(HAND_OVER, fence.ended()).await;
    Ok(())
}

/// What the admin pages show.
#[derive(Debug, Clone, Default)]
struct View(Arc<std::sync::Mutex<Seen>>);

#[derive(Debug, Default)]
struct Seen {
    links: BTreeMap<String, cluster::api::cluster_link::ClusterLinkStatus>,
    plan: Arc<Plan>,
    findings: BTreeSet<Finding>,
    own: OwnServer,
    writing: Writing,
    /// Names of the mesh that DNS answers.
    names: usize,
}

/// `/links`, whole.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct LinksPage {
    own_api_server: OwnServer,
    writing: Writing,
    links: Vec<Shown>,
}

/// Whether our own API server answers, and for how long it has not.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct OwnServer {
    reachable: bool,
    /// `null` if it was never heard.
    heartbeat_age_seconds: Option<u64>,
    waiting_for: Vec<String>,
}

#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Writing {
    leading: bool,
    pending: usize,
    written: u64,
    refused: Vec<String>,
}

/// `/dns`: what our own DNS knows, and what it answered last when we asked it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct DnsPage {
    names: usize,
    asked: Vec<Asked>,
}

fn pages(view: &View, asked: watch::Receiver<Vec<Asked>>) -> Pages {
    let of = |view: &View| view.clone();
    let (links, plan, findings, names) = (of(view), of(view), of(view), of(view));
    Pages::new()
        .with_json("/links", move || {
            let seen = links.0.lock().expect("no page panics");
            let now = SystemTime::now();
            LinksPage {
                own_api_server: seen.own.clone(),
                writing: seen.writing.clone(),
                links: seen.links.iter().map(|(name, status)| shown(name, status, now)).collect(),
            }
        })
        .with_json("/dns", move || DnsPage {
            names: names.0.lock().expect("no page panics").names,
            asked: asked.borrow().clone(),
        })
        .with_json("/plan", move || PlanPage::of(&plan.0.lock().expect("no page panics").plan))
        .with_json("/findings", move || findings.0.lock().expect("no page panics").findings.clone())
}

/// A plan as JSON: maps by object have no JSON form, lists do.
#[derive(Debug, Serialize)]
struct PlanPage {
    entries: Vec<mesh::inventory::ServiceEntry>,
    gateways: Vec<mesh::inventory::RemoteGateway>,
    /// Virtual addresses that are kept from other hosts for a while.
    resting: Vec<mesh::inventory::Resting>,
    deletions: Vec<String>,
    findings: Vec<Finding>,
}

impl PlanPage {
    fn of(plan: &Plan) -> Self {
        Self {
            entries: plan.entries.values().cloned().collect(),
            gateways: plan.gateways.values().cloned().collect(),
            resting: plan.resting.values().cloned().collect(),
            deletions: plan.deletions.iter().map(ToString::to_string).collect(),
            findings: plan.findings.clone(),
        }
    }
}

/// The one task that draws conclusions, and all it draws them from and tells them to.
struct Controller {
    own: own_watch::Watched,
    remotes: watch::Receiver<Arc<Remotes>>,
    /// `None` until all were knocked at once.
    doors: watch::Receiver<Option<Doors>>,
    failed: watch::Receiver<renew::Failures>,
    names: watch::Receiver<resolve::Table>,
    wanted_names: watch::Sender<BTreeSet<mesh::name::Hostname>>,
    objects: watch::Receiver<Objects>,
    progress: watch::Receiver<Progress>,
    fence: Fence,
    desired: watch::Sender<Option<Arc<Desired>>>,
    wanted: watch::Sender<Arc<Wanted>>,
    zone: watch::Sender<Arc<Zone>>,
    publisher: Publisher,
    statuses: Statuses,
    link_store: Store,
    zone_store: Store,
    numbers: Numbers,
    readiness: Readiness,
    view: View,
    started: Instant,
}

/// With nothing from the own API server for so long after the start, what the disk says is shown.
const UNHEARD: Duration = Duration::from_secs(5);

impl Controller {
    async fn control(mut self, end: CancellationToken) {
        for (name, status) in self.link_store.load::<Saved>().unwrap_or_default().links {
            self.statuses.remember(&name, status);
        }
        let mut tick = tokio::time::interval(TICK);
        loop {
            self.round();
            // A sender that ends means that the process does.
            let news = tokio::select! {
                () = end.cancelled() => return,
                news = self.own.inventory.changed() => news,
                news = self.remotes.changed() => news,
                news = self.doors.changed() => news,
                news = self.objects.changed() => news,
                news = self.progress.changed() => news,
                news = self.names.changed() => news,
                _ = tick.tick() => Ok(()),
            };
            if news.is_err() {
                return;
            }
        }
    }

    fn round(&mut self) {
        let own = self.own.inventory.borrow_and_update().clone();
        let remotes = self.remotes.borrow_and_update().clone();
        let objects = self.objects.borrow_and_update().clone();
        let progress = self.progress.borrow_and_update().clone();
        let health = self.own.health.borrow().clone();
        let (now, wall) = (Instant::now(), SystemTime::now());

        if let (Some(own), Some(objects)) = (&own, &objects) {
            let names = self.names.borrow_and_update().clone();
            self.publisher.renew(own, objects, &remotes, &names, wall);
            self.wanted_names.send_if_modified(|before| {
                let news = *before != self.publisher.names;
                if news {
                    before.clone_from(&self.publisher.names);
                }
                news
            });
            send(&self.desired, self.publisher.desired.clone());
            if let Some(zone) = self.publisher.zone.clone()
                && !Arc::ptr_eq(&self.zone.borrow(), &zone)
            {
                self.zone_store.save(&*zone);
                self.zone.send_replace(zone);
            }
            self.readiness.done("inventory");
        } else {
            let why = health.waiting.join("; ");
            self.readiness.wait_for(
                "inventory",
                if why.is_empty() { "links are not listed yet" } else { &why },
            );
        }
        self.tell(objects.as_deref(), &remotes, wall);
        if objects.is_none() && now.saturating_duration_since(self.started) >= UNHEARD {
            let why = "The own API server has not answered since this controller started; what is known is from its disk.";
            self.statuses.unheard(why, wall);
        }

        let age = health.age(now).map(|age| age.as_secs());
        let leading = self.fence.permit(now).is_some();
        self.numbers.links(self.statuses.all(), wall);
        self.numbers.writing(leading, &progress);
        self.numbers.own_age(age);
        let mut seen = self.view.0.lock().expect("no page panics");
        seen.links = self.statuses.all().clone();
        seen.plan = self.publisher.plan.clone();
        seen.names = self.zone.borrow().names.len();
        seen.findings =
            remotes.findings.iter().chain(&self.publisher.plan.findings).cloned().collect();
        let told = remotes.links.values().filter_map(|remote| remote.state.exports.as_deref());
        seen.findings.extend(told.flat_map(|told| told.findings.iter().cloned()));
        seen.findings.extend(own.iter().flat_map(|own| own.findings.iter().cloned()));
        seen.own = OwnServer {
            reachable: health.reachable(),
            heartbeat_age_seconds: age,
            waiting_for: health.waiting,
        };
        seen.writing = Writing {
            leading,
            pending: progress.pending,
            written: progress.written,
            refused: progress
                .problems
                .iter()
                .map(|problem| format!("{}: {}", problem.object, problem.why))
                .collect(),
        };
    }

    /// Renews every link's status, and what should stand of ClusterLinks.
    fn tell(
        &mut self,
        objects: Option<&BTreeMap<String, cluster::api::cluster_link::ClusterLink>>,
        remotes: &Remotes,
        wall: SystemTime,
    ) {
        let Some(objects) = objects else { return };
        let failed = self.failed.borrow().clone();
        let doors = self.doors.borrow_and_update().clone();
        self.numbers.renewals(&failed);
        let names: BTreeSet<&String> = objects.keys().chain(remotes.links.keys()).collect();
        let mut wanted = Wanted::default();
        (wanted.create, wanted.delete) = links::objects_wanted(objects, remotes);
        for name in &names {
            let facts = Facts {
                name,
                object: objects.get(*name),
                remote: remotes.links.get(*name),
                judged: self.publisher.judged.get(*name),
                summary: self.publisher.plan.links.get(*name),
                standing: self.publisher.standing,
                credential: remotes.credentials.get(*name).map(|one| one.life()),
                renewal: failed.get(*name),
                doors: doors.as_deref().map(|all| {
                    let of = all.iter().find(|(cluster, _)| cluster.as_str() == name.as_str());
                    of.map_or(&NO_DOORS, |(_, doors)| doors)
                }),
            };
            // Before the secrets are listed, a missing one is not known to be missing.
            if facts.remote.is_none() && !remotes.synced {
                if let Some(standing) = facts.object.and_then(|link| link.status.clone()) {
                    self.statuses.remember(name, standing);
                }
                continue;
            }
            let status = self.statuses.renew(&facts, wall).clone();
            wanted.status.insert((*name).clone(), status);
        }
        if remotes.synced {
            let keep: BTreeSet<String> = names.into_iter().cloned().collect();
            self.statuses.retain(|name| keep.contains(name));
        }
        self.link_store.save(&Saved { links: self.statuses.all().clone() });
        self.wanted.send_if_modified(|before| {
            let news = **before != wanted;
            if news {
                *before = Arc::new(wanted);
            }
            news
        });
    }
}

fn send(to: &watch::Sender<Option<Arc<Desired>>>, value: Option<Arc<Desired>>) {
    to.send_if_modified(|before| {
        let same = match (before.as_ref(), value.as_ref()) {
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            (None, None) => true,
            (Some(_), None) | (None, Some(_)) => false,
        };
        if !same {
            *before = value;
        }
        !same
    });
}
