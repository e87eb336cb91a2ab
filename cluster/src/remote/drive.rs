//! One credential at work: watches of a linked API server, and a probe that tells hung from quiet.

use super::problem::{Problem, Verdict, dated, judge, judge_text};
use super::{FINDINGS_MAX, Options, Told};
use crate::api::exported_service::ExportedService as Object;
use crate::api::label;
use crate::client;
use crate::follow::{Change, Follow, follow};
use crate::heard::{Heard, Moment};
use crate::kubeconfig;
use http_body_util::Limited;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Service};
use kube::client::Body;
use kube::runtime::watcher;
use kube::{Api, Client};
use mesh::export::ExportedService;
use mesh::finding::{Finding, ObjectRef, Severity};
use mesh::inventory::GatewayAddress;
use mesh::name::ServiceName;
use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// The light request that shows a hang: so often, and answered within [`PROBE_TIMEOUT`].
/// Together they show `Unknown` within 10 s, a killed server at once.
pub(super) const PROBE_EVERY: Duration = Duration::from_secs(5);
pub(super) const PROBE_TIMEOUT: Duration = Duration::from_secs(5);
/// After a broken watch the next probe comes at once, but no closer to the last one.
const PROBE_MIN: Duration = Duration::from_secs(1);
/// How often broken watches are looked for.
const TICK: Duration = Duration::from_millis(250);

/// What a credential at work knows.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Report {
    /// Once everything was listed once, and while it is complete; then the last good.
    pub(super) told: Option<Arc<Told>>,
    /// Why `told` is not there, or not renewed.
    pub(super) waiting: Option<Problem>,
    /// What is wrong with the last request; `None` while it answers.
    pub(super) verdict: Option<Verdict>,
    /// Last answer of any sort.
    pub(super) heard: Option<Moment>,
}

/// Works with one credential until `stop`, or until nobody takes its reports.
pub(super) async fn drive<F: Future<Output = bool> + Send>(
    kubeconfig: Box<kubeconfig::Remote>,
    options: Options,
    report: impl Fn(Report) -> F + Send + Sync + 'static,
    stop: CancellationToken,
) {
    let _cleanup = stop.clone().drop_guard();
    let server = kubeconfig.server();
    let expires = crate::renewal::expires(&kubeconfig);
    let client = match client::build_remote(kubeconfig.config(), options.rules) {
        Ok(client) => client,
        Err(error) => {
            let problem = Problem::new("BadKubeconfig", format!("{error:#}"));
            let verdict = Some(Verdict::Refused(problem));
            report(Report { verdict, ..Report::default() }).await;
            stop.cancelled().await;
            return;
        }
    };
    let (send, mut news) = mpsc::channel(256);
    let listed = Arc::new(AtomicUsize::new(0));
    let watches = start(&client, &options, &listed, &send, &stop);
    let (ask, asked) = mpsc::channel(1);
    tokio::spawn(probe(client, asked, send, stop.clone()));

    let mut known = Known::default();
    let mut last_probe = Instant::now();
    let mut probing = ask.try_send(()).is_ok();
    let mut sent = Report::default();
    let mut tick = tokio::time::interval(TICK);
    loop {
        let first = tokio::select! {
            () = stop.cancelled() => return,
            _ = tick.tick() => None,
            item = news.recv() => match item {
                Some(item) => Some(item),
                None => return,
            },
        };
        for item in
            first.into_iter().chain(std::iter::from_fn(|| news.try_recv().ok()).take(10_000))
        {
            listed.store(0, Ordering::Relaxed);
            match item {
                Item::Services(change) => known.services(change, &options),
                Item::Gateways(change) => known.gateways(change),
                Item::Mesh(change) => known.mesh(change),
                Item::Probed(result) => {
                    probing = false;
                    known.probed(&server, result);
                }
            }
        }
        let now = Instant::now();
        let healths: Vec<_> =
            watches.iter().map(|(kind, heard)| (*kind, heard.health(now))).collect();
        let broken = healths.iter().any(|(_, health)| health.silent);
        let rest = now.saturating_duration_since(last_probe);
        if !probing
            && (rest >= PROBE_EVERY || broken && rest >= PROBE_MIN && known.verdict.is_none())
        {
            last_probe = now;
            probing = ask.try_send(()).is_ok();
        }
        known.missing = healths
            .iter()
            .find(|(_, health)| health.note.is_some())
            .map(|(kind, _)| (*kind).to_owned());
        // A broken stream leaves its words behind until the next event; a refusal is known by them.
        let refuses = |error: &str| error.contains("forbidden") || error.contains("Unauthorized");
        known.denied = healths
            .iter()
            .filter(|(_, health)| !health.silent)
            .find_map(|(kind, health)| Some((kind, health.error.as_ref()?, health.synced)))
            .filter(|(_, error, synced)| !synced || refuses(error))
            .map(|(kind, error, _)| format!("{kind}: {error}"));
        let watched = healths.iter().filter_map(|(_, health)| health.heard);
        let heard = watched.chain(known.answered).max_by_key(|moment| moment.at);
        known.tell(&server, &options);
        let next = Report {
            told: known.told.clone(),
            waiting: known.waiting.clone(),
            verdict: known.verdict.clone().map(|verdict| dated(verdict, &server, expires)),
            // Every byte moves it; a second is as fine as anybody reads it.
            heard: coarse(sent.heard, heard),
        };
        if next != sent {
            sent = next.clone();
            if !report(next).await {
                return;
            }
        }
    }
}

/// Keeps `before` where `after` is less than a second later.
fn coarse(before: Option<Moment>, after: Option<Moment>) -> Option<Moment> {
    let second = Duration::from_secs(1);
    match (before, after) {
        (Some(a), Some(b)) if b.at.saturating_duration_since(a.at) < second => Some(a),
        (_, after) => after,
    }
}

enum Item {
    /// `None` where there are more than the limit, so they are not even kept.
    Services(Change<Option<Box<Exported>>>),
    Gateways(Change<(String, Vec<GatewayAddress>)>),
    Mesh(Change<BTreeMap<String, String>>),
    Probed(Result<String, Verdict>),
}

/// One ExportedService: what it says, or why it is not believed.
struct Exported {
    key: (String, String),
    value: Result<ExportedService, Box<Finding>>,
}

fn start(
    client: &Client,
    options: &Options,
    listed: &Arc<AtomicUsize>,
    send: &mpsc::Sender<Item>,
    stop: &CancellationToken,
) -> Vec<(&'static str, Heard)> {
    let mut watches = Vec::new();
    let mut listen = |kind| {
        let heard = Heard::default();
        watches.push((kind, heard.clone()));
        (heard.clone(), bounded(heard.listen(client.clone()), options.limits.answer_bytes))
    };
    let root = &options.root_namespace;

    let (heard, own) = listen("ExportedService");
    let what =
        Follow { apis: vec![Api::<Object>::all(own)], config: watcher::Config::default(), heard };
    let (listed, most) = (listed.clone(), options.limits.services);
    let trim = move |object: Object| {
        // Beyond twice the limit nothing is kept: a million objects cost a million small words.
        if listed.fetch_add(1, Ordering::Relaxed) > most.saturating_mul(2) {
            return None;
        }
        let namespace = object.metadata.namespace.clone().unwrap_or_default();
        let name = object.metadata.name.clone().unwrap_or_default();
        Some(Box::new(Exported { key: (namespace, name), value: object.value() }))
    };
    tokio::spawn(follow(what, trim, Item::Services, send.clone(), stop.clone()));

    let (heard, own) = listen("Service");
    let config = watcher::Config::default().labels("istio=eastwestgateway");
    let what = Follow { apis: vec![Api::<Service>::namespaced(own, root)], config, heard };
    let most = options.limits.gateways;
    let trim = move |service| gateway(service, most);
    tokio::spawn(follow(what, trim, Item::Gateways, send.clone(), stop.clone()));

    let (heard, own) = listen("ConfigMap");
    let config = watcher::Config::default().fields("metadata.name=isthmus-mesh");
    let what = Follow { apis: vec![Api::<ConfigMap>::namespaced(own, root)], config, heard };
    let trim = |map: ConfigMap| map.data.unwrap_or_default();
    tokio::spawn(follow(what, trim, Item::Mesh, send.clone(), stop.clone()));
    watches
}

/// A client whose answers end with an error after `most` bytes.
fn bounded(client: Client, most: usize) -> Client {
    let namespace = client.default_namespace().to_owned();
    let service = tower::service_fn(move |request: http::Request<Body>| {
        let client = client.clone();
        async move {
            let answer = client.send(request).await?;
            Ok::<_, kube::Error>(answer.map(|body| Limited::new(body, most)))
        }
    });
    Client::new(service, namespace)
}

/// Asks for Namespace `kube-system` whenever told to: its UID says which cluster this is.
async fn probe(
    client: Client,
    mut asked: mpsc::Receiver<()>,
    send: mpsc::Sender<Item>,
    stop: CancellationToken,
) {
    let namespaces: Api<Namespace> = Api::all(client.clone());
    // Errors are judged with the server's name by whoever takes them.
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            next = asked.recv() => if next.is_none() { return },
        }
        let answer = tokio::time::timeout(PROBE_TIMEOUT, namespaces.get("kube-system"));
        let result = tokio::select! {
            () = stop.cancelled() => return,
            answer = answer => match answer {
                Ok(Ok(namespace)) => Ok(namespace.metadata.uid.unwrap_or_default()),
                Ok(Err(error)) => Err(judge("the API server", &error)),
                Err(_) => Err(judge_text("the API server", "no answer within 5 s")),
            },
        };
        if send.send(Item::Probed(result)).await.is_err() {
            return;
        }
    }
}

/// The addresses of a gateway Service, in Istio's way: load-balancer ingress, port 15443 or label
/// `networking.istio.io/gatewayPort`.
fn gateway(service: Service, most: usize) -> (String, Vec<GatewayAddress>) {
    let labels = service.metadata.labels.unwrap_or_default();
    let labelled = labels.get("networking.istio.io/gatewayPort").and_then(|port| port.parse().ok());
    let ports = service.spec.and_then(|spec| spec.ports).unwrap_or_default();
    let named = ports.iter().find(|port| port.name.as_deref() == Some("tls"));
    let number = named.and_then(|port| u16::try_from(port.port).ok());
    let port = labelled.or(number).unwrap_or(15443);
    let ingress = service
        .status
        .and_then(|status| status.load_balancer)
        .and_then(|balancer| balancer.ingress)
        .unwrap_or_default();
    let mut addresses: Vec<GatewayAddress> = ingress
        .into_iter()
        .filter_map(|one| one.ip.or(one.hostname))
        .filter(|host| host.len() <= 253)
        .take(most)
        .map(|host| GatewayAddress { host, port })
        .collect();
    addresses.sort();
    (service.metadata.name.unwrap_or_default(), addresses)
}

/// One ExportedService, or what is wrong with it.
type Read = Result<ExportedService, Box<Finding>>;

/// All that was heard so far.
#[derive(Default)]
struct Known {
    services: Option<BTreeMap<(String, String), Read>>,
    /// More than the limit: the last good list stays in use.
    too_many: Option<usize>,
    gateways: Option<BTreeMap<String, Vec<GatewayAddress>>>,
    mesh: Option<Option<BTreeMap<String, String>>>,
    uid: Option<String>,
    answered: Option<Moment>,
    verdict: Option<Verdict>,
    /// A kind the server does not know.
    missing: Option<String>,
    /// A watch that is answered with an error.
    denied: Option<String>,
    told: Option<Arc<Told>>,
    waiting: Option<Problem>,
    stale: bool,
}

impl Known {
    fn services(&mut self, change: Change<Option<Box<Exported>>>, options: &Options) {
        let most = options.limits.services;
        self.stale = true;
        match change {
            Change::Replaced(all) => {
                if all.len() > most {
                    self.too_many = Some(all.len());
                    return;
                }
                self.too_many = None;
                self.services =
                    Some(all.into_iter().flatten().map(|one| (one.key, one.value)).collect());
            }
            Change::Applied(Some(one)) => {
                let services = self.services.get_or_insert_default();
                if services.len() >= most && !services.contains_key(&one.key) {
                    self.too_many = Some(services.len() + 1);
                    return;
                }
                services.insert(one.key, one.value);
            }
            Change::Deleted(Some(one)) => {
                let services = self.services.get_or_insert_default();
                services.remove(&one.key);
                // A list that was cut cannot be mended by a deletion: the next whole list can.
            }
            Change::Applied(None) | Change::Deleted(None) => {}
        }
    }

    fn gateways(&mut self, change: Change<(String, Vec<GatewayAddress>)>) {
        self.stale = true;
        match change {
            Change::Replaced(all) => self.gateways = Some(all.into_iter().collect()),
            Change::Applied((name, addresses)) => {
                self.gateways.get_or_insert_default().insert(name, addresses);
            }
            Change::Deleted((name, _)) => {
                self.gateways.get_or_insert_default().remove(&name);
            }
        }
    }

    fn mesh(&mut self, change: Change<BTreeMap<String, String>>) {
        self.stale = true;
        self.mesh = Some(match change {
            Change::Replaced(all) => all.into_iter().next(),
            Change::Applied(data) => Some(data),
            Change::Deleted(_) => None,
        });
    }

    fn probed(&mut self, server: &str, result: Result<String, Verdict>) {
        match result {
            Ok(uid) => {
                self.verdict = None;
                self.answered = Some(Moment::now());
                if self.uid.as_ref() != Some(&uid) {
                    self.stale = true;
                    self.uid = Some(uid);
                }
            }
            Err(Verdict::Silent(problem)) => {
                self.verdict = Some(Verdict::Silent(named(server, problem)))
            }
            Err(Verdict::Refused(problem)) => {
                self.verdict = Some(Verdict::Refused(named(server, problem)))
            }
        }
    }

    /// Renews `told` and `waiting` from all that was heard.
    fn tell(&mut self, server: &str, options: &Options) {
        self.waiting = self.why_not(server, options);
        if self.waiting.is_some() || !self.stale {
            return;
        }
        let (Some(services), Some(gateways), Some(Some(data)), Some(uid)) =
            (&self.services, &self.gateways, &self.mesh, &self.uid)
        else {
            return;
        };
        match told(uid, data, gateways, services, options) {
            Ok(told) => {
                self.stale = false;
                if self.told.as_deref() != Some(&told) {
                    self.told = Some(Arc::new(told));
                }
            }
            Err(problem) => self.waiting = Some(problem),
        }
    }

    fn why_not(&self, server: &str, options: &Options) -> Option<Problem> {
        if let Some(kind) = &self.missing {
            return Some(Problem::new(
                "NotInstalled",
                format!(
                    "{server} does not know the kind {kind}. Fix: install Isthmus (its CRDs and its controllers) in that cluster"
                ),
            ));
        }
        if let Some(denied) = &self.denied {
            return Some(Problem::new(
                "ReadFailed",
                format!(
                    "{server} does not let us read {denied}. Fix: isthmus create-remote-secret there prints the roles a link needs"
                ),
            ));
        }
        if let Some(count) = self.too_many {
            return Some(Problem::new(
                "TooManyServices",
                format!(
                    "{server} exports {count} services, at most {} are taken from one link; the last good list stays in use. Fix: export fewer",
                    options.limits.services
                ),
            ));
        }
        if matches!(self.mesh, Some(None)) {
            return Some(Problem::new(
                "NoMeshConfig",
                format!(
                    "{server} has no ConfigMap {}/isthmus-mesh. Fix: install Isthmus in that cluster",
                    options.root_namespace
                ),
            ));
        }
        if self.services.is_none()
            || self.gateways.is_none()
            || self.mesh.is_none()
            || self.uid.is_none()
        {
            return Some(Problem::new(
                "Reading",
                format!("{server} is being read for the first time."),
            ));
        }
        None
    }
}

fn named(server: &str, problem: Problem) -> Problem {
    Problem { message: problem.message.replacen("the API server", server, 1), ..problem }
}

fn told(
    uid: &str,
    data: &BTreeMap<String, String>,
    gateways: &BTreeMap<String, Vec<GatewayAddress>>,
    services: &BTreeMap<(String, String), Result<ExportedService, Box<Finding>>>,
    options: &Options,
) -> Result<Told, Problem> {
    let map = ObjectRef::new("ConfigMap", &options.root_namespace, "isthmus-mesh");
    let bad = |key: &str, why: String| {
        Problem::new(
            "BadMeshConfig",
            format!("{map} data[{key}] of that cluster: {why}. Fix: correct it there"),
        )
    };
    fn read<T: std::str::FromStr>(data: &BTreeMap<String, String>, key: &str) -> Result<T, String>
    where
        T::Err: std::fmt::Display,
    {
        let text = data.get(key).ok_or_else(|| "it is missing".to_owned())?;
        text.trim().parse().map_err(|why| format!("{why}"))
    }
    let mut addresses: Vec<GatewayAddress> = gateways.values().flatten().cloned().collect();
    addresses.sort();
    addresses.dedup();
    addresses.truncate(options.limits.gateways);
    let mut findings: Vec<Finding> = Vec::new();
    let mut good: BTreeMap<ServiceName, ExportedService> = BTreeMap::new();
    for service in services.values() {
        match service {
            Ok(service) => drop(good.insert(service.name.clone(), service.clone())),
            Err(finding) => findings.push(Finding::clone(finding)),
        }
    }
    if addresses.is_empty() {
        findings.push(Finding {
            severity: Severity::Warning,
            code: 2202,
            object: ObjectRef::new("Service", &options.root_namespace, "isthmus-eastwestgateway"),
            field: "status.loadBalancer.ingress".into(),
            problem: format!("that cluster shows no gateway address (label istio=eastwestgateway, {}), so nothing of it can be called.", label::NETWORK),
            fix: "give its gateway Service an address that other clusters reach".into(),
        });
    }
    findings.sort();
    findings.truncate(FINDINGS_MAX);
    Ok(Told {
        cluster: read(data, "cluster").map_err(|why| bad("cluster", why))?,
        uid: uid.to_owned(),
        network: read(data, "network").map_err(|why| bad("network", why))?,
        trust_domain: read(data, "trustDomain").map_err(|why| bad("trustDomain", why))?,
        root_certificates: data.get("rootCertificates").cloned().unwrap_or_default(),
        gateways: addresses,
        services: good,
        findings,
    })
}

#[cfg(test)]
#[path = "drive_tests.rs"]
mod tests;
