//! Clusters that `kind` makes in Docker, for machines that have both: the same pods, addresses and load
//! balancers as on nodes of our own making, on nodes of somebody else's.
//!
//! Gateways stay Services of type LoadBalancer, as `isthmus install` ships them. kind brings nobody who
//! gives these an address; what its users add is MetalLB in layer 2 mode, with addresses from the end of
//! the Docker network. [`load_balancer`] does just that from outside, so that nothing has to be pulled, and
//! a gateway's address can be changed and taken away as a scenario wants it.

mod address;
mod home;
#[cfg(test)]
mod tests;
mod tools;

pub use home::Home;
pub use tools::{Limits, Tools};

use crate::nodes::load_balancer::{self, Host, Range};
use crate::nodes::{Site, workloads};
use crate::parts::PodParts;
use crate::pods::{PodCluster, Pods};
use address::{ASKED, Address};
use anyhow::{Context, Result, bail, ensure};
use kube::config::{Context as KubeContext, KubeConfigOptions, Kubeconfig, NamedContext};
use std::path::PathBuf;
use std::time::Duration;
use tokio::task::JoinHandle;

/// How long a cluster's nodes may take to be ready, as `kind` is told.
const WAIT: &str = "180s";
/// How long a cluster's DNS may take after that.
const DNS_MAX: Duration = Duration::from_secs(180);
/// Where an API server listens in its node.
const PORT: u16 = 6443;

/// One cluster as it is to be.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    pub site: Site,
    /// kind's configuration, `kind.x-k8s.io/v1alpha4`.
    pub config: &'static str,
}

/// What is made, and where its files are.
#[derive(Debug)]
pub struct Fleet<'a> {
    pub tools: &'a Tools,
    pub home: &'a Home,
    pub plans: &'a [Plan],
    /// Leaves the clusters when `work` has ended.
    pub keep: bool,
}

/// Makes the clusters, does `work` on them, and deletes them, however it ended: also where `end` came
/// first (Ctrl-C), and where one of them could not be made. `tell` hears of each step. That Docker
/// answers was asked before ([`Tools::answering`]).
pub async fn on_clusters<T>(
    fleet: &Fleet<'_>,
    parts: &PodParts,
    end: impl Future<Output = anyhow::Error>,
    tell: impl Fn(&str) + Copy,
    work: impl AsyncFnOnce(&Pods) -> T,
) -> Result<T> {
    fleet.clean().await?;
    let whole = async {
        let folder = fleet.home.run.join("images");
        let images = workloads(&parts.workloads, &parts.own.program, &folder)?;
        tell("images written");
        let made = fleet.make(&images, tell).await?;
        let (pods, balancers) = fleet.seen(made, parts).await?;
        for cluster in pods.clusters.values() {
            let ready = cluster.deployment_ready("kube-system", "coredns", DNS_MAX).await;
            ready.with_context(|| format!("cluster {}: its DNS", cluster.name))?;
            tell(&format!("{}: cluster DNS ready", cluster.name));
        }
        let done = work(&pods).await;
        drop(balancers);
        anyhow::Ok(done)
    };
    fleet.whatever_comes(whole, end).await
}

/// A cluster that is there, with its images.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Made {
    site: Site,
    /// As kind calls it.
    name: String,
    address: Address,
    /// As kind wrote it.
    kubeconfig: String,
}

impl Fleet<'_> {
    /// Does `work` unless `end` comes first, then deletes the clusters unless they are kept.
    async fn whatever_comes<T>(
        &self,
        work: impl Future<Output = Result<T>>,
        end: impl Future<Output = anyhow::Error>,
    ) -> Result<T> {
        let done = tokio::select! {
            done = work => done,
            why = end => Err(why),
        };
        if self.keep {
            self.home.keep()?;
            return done;
        }
        let gone = self.delete().await.and_then(|()| self.home.remove());
        match (done, gone) {
            (Ok(done), gone) => gone.map(|()| done),
            (Err(why), Ok(())) => Err(why),
            // The first is the cause, and the second what is left to do.
            (Err(why), Err(left)) => bail!("{why:#}\nand then: {left:#}"),
        }
    }

    /// Names of the clusters, as kind has them.
    pub fn names(&self) -> Vec<String> {
        self.plans.iter().map(|plan| self.name(*plan)).collect()
    }

    fn name(&self, plan: Plan) -> String {
        format!("{}-{}", self.home.prefix, plan.site.name)
    }

    /// Those that are there now.
    async fn there(&self) -> Result<Vec<String>> {
        let said = self.tools.kind(&["get", "clusters"], self.tools.limits.answer).await?;
        let names = self.names();
        Ok(said.lines().map(str::to_owned).filter(|name| names.contains(name)).collect())
    }

    /// Deletes what a crash left, and refuses what was to stay.
    async fn clean(&self) -> Result<()> {
        let there = self.there().await?;
        if !there.is_empty() && self.home.kept() {
            bail!(
                "clusters of an earlier run are up, and were to stay. Take them down ({}), or choose \
                 another --prefix",
                self.deletion()
            );
        }
        self.home.unkeep()?;
        if there.is_empty() { Ok(()) } else { self.delete().await }
    }

    /// The operator's kubeconfig: one context for each cluster, by its own name. There once all are made.
    pub fn operator(&self) -> PathBuf {
        self.home.run.join("operator.kubeconfig")
    }

    /// Deletes all there is of it, unless it was to stay: a run that found such a one has touched nothing.
    async fn sweep(&self) -> Result<()> {
        if self.home.kept() {
            return Ok(());
        }
        if !self.there().await?.is_empty() {
            self.delete().await?;
        }
        self.home.remove()
    }

    /// What deletes them by hand.
    pub fn deletion(&self) -> String {
        format!("kind delete clusters {}", self.names().join(" "))
    }

    /// Deletes them. A node whose making was cut short may come up late: looks whether all are gone.
    async fn delete(&self) -> Result<()> {
        // Else kind would change the user's own.
        let config = self.home.run.join("deleted.kubeconfig").display().to_string();
        let names = self.names();
        let names = names.iter().map(String::as_str);
        let delete: Vec<&str> =
            ["delete", "clusters", "--kubeconfig", &config].into_iter().chain(names).collect();
        for _ in 0..3 {
            let by_hand = || format!("deleting the clusters. Fix: {}", self.deletion());
            self.tools.kind(&delete, self.tools.limits.delete).await.with_context(by_hand)?;
            if self.there().await?.is_empty() {
                return Ok(());
            }
        }
        bail!("clusters are there again after each deletion. Fix: {}", self.deletion())
    }

    /// Makes all of them and loads the images into their nodes. The first is made alone: with it kind
    /// makes the network they share, and Docker has the nodes' image after it.
    async fn make(&self, images: &[PathBuf], tell: impl Fn(&str) + Copy) -> Result<Vec<Made>> {
        let (first, others) = self.plans.split_first().context("a fleet has clusters")?;
        let mut made = vec![self.make_one(*first, images, tell).await?];
        // All of them end before one's failure is told: none comes up after the deletion.
        let others = others.iter().map(|plan| self.make_one(*plan, images, tell));
        for other in futures::future::join_all(others).await {
            made.push(other?);
        }
        Ok(made)
    }

    async fn make_one(&self, plan: Plan, images: &[PathBuf], tell: impl Fn(&str)) -> Result<Made> {
        let (site, name, limits) = (plan.site, self.name(plan), self.tools.limits);
        let file = |what: &str| self.home.run.join(format!("{}.{what}", site.name));
        let (config, kubeconfig) = (file("yaml"), file("kubeconfig"));
        std::fs::write(&config, plan.config)
            .with_context(|| format!("writing {}", config.display()))?;
        let (config, kubeconfig) = (config.display().to_string(), kubeconfig.display().to_string());
        let told = ["--config", &config, "--kubeconfig", &kubeconfig, "--wait", WAIT];
        let create = [&["create", "cluster", "--name", &name][..], &told].concat();
        let whose = || format!("cluster {}", site.name);
        self.tools.kind(&create, limits.create).await.with_context(whose)?;
        tell(&format!("{}: its node is there", site.name));
        for image in images {
            let image = image.display().to_string();
            let load = ["load", "image-archive", &image, "--name", &name];
            self.tools.kind(&load, limits.load).await.with_context(whose)?;
        }
        tell(&format!("{}: images in its node", site.name));
        let get = ["get", "kubeconfig", "--name", &name];
        let kubeconfig = self.tools.kind(&get, limits.answer).await.with_context(whose)?;
        let node = node(&name);
        let said = self.tools.docker(&["inspect", "--format", ASKED, &node]).await;
        let address = said.and_then(|said| Address::of(&said));
        let address = address.with_context(|| format!("the node {node}"))?;
        Ok(Made { site, name, address, kubeconfig })
    }

    /// The clusters as scenarios see them, and those who give Services their addresses.
    async fn seen(&self, made: Vec<Made>, parts: &PodParts) -> Result<(Pods, Vec<Balancer>)> {
        let whole = operator(&made)?;
        let operator = self.operator();
        std::fs::write(&operator, serde_saphyr::to_string(&whole)?)
            .with_context(|| format!("writing {}", operator.display()))?;
        let (mut clusters, mut balancers) = (std::collections::BTreeMap::new(), vec![]);
        for one in made {
            let name = one.site.name;
            let context = Some(name.to_owned());
            let options = KubeConfigOptions { context, ..Default::default() };
            let whose = || format!("cluster {name}: the kubeconfig that kind wrote");
            let config = kube::Config::from_custom_kubeconfig(whole.clone(), &options).await;
            let client = kube::Client::try_from(config.with_context(whose)?).with_context(whose)?;
            let balanced = one.address.balanced(one.site.number)?;
            let docker = self.tools.docker.clone();
            let node = node(&one.name);
            let host = Host::Container { docker, name: node.clone() };
            let (first, last) = balanced;
            let range = Range { first, last, nodes: vec![(node, host)] };
            let asked = client.clone();
            let serve = async move { load_balancer::serve(&range, &asked, |_| ()).await };
            balancers.push(Balancer(tokio::spawn(serve)));
            clusters.insert(name, PodCluster { name, client, balanced });
        }
        let pods = Pods {
            clusters,
            isthmus: parts.isthmus.clone(),
            operator,
            run: self.home.run.clone(),
            kubectl: parts.kubectl.clone(),
        };
        Ok((pods, balancers))
    }
}

/// Ends with the fleet.
struct Balancer(JoinHandle<Result<()>>);

impl Drop for Balancer {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The one node of a cluster, to Docker and to Kubernetes.
fn node(cluster: &str) -> String {
    format!("{cluster}-control-plane")
}

/// One kubeconfig of what kind wrote for each, with contexts by the clusters' own names. Servers are at
/// their nodes' addresses, where this machine and pods of other clusters reach them alike: `isthmus link`
/// hands them on. kind's own are ports of this machine's loopback.
fn operator(made: &[Made]) -> Result<Kubeconfig> {
    let mut whole = Kubeconfig::default();
    for one in made {
        let what = || format!("the kubeconfig of {}", one.name);
        let name = one.site.name.to_owned();
        let mut read = Kubeconfig::from_yaml(&one.kubeconfig).with_context(what)?;
        ensure!(
            (read.clusters.len(), read.auth_infos.len()) == (1, 1),
            "{} has {} clusters and {} users, not one of each",
            what(),
            read.clusters.len(),
            read.auth_infos.len()
        );
        let (mut cluster, mut user) = (read.clusters.remove(0), read.auth_infos.remove(0));
        let address = cluster.cluster.as_mut().with_context(what)?;
        address.server = Some(format!("https://{}:{PORT}", one.address.node));
        cluster.name.clone_from(&name);
        user.name.clone_from(&name);
        let context =
            KubeContext { cluster: name.clone(), user: Some(name.clone()), ..Default::default() };
        whole.contexts.push(NamedContext {
            name: name.clone(),
            context: Some(context),
            ..Default::default()
        });
        whole.clusters.push(cluster);
        whole.auth_infos.push(user);
        whole.current_context.get_or_insert(name);
    }
    (whole.api_version, whole.kind) = (Some("v1".into()), Some("Config".into()));
    Ok(whole)
}

/// Deletes what a run of this prefix left that ended without a word, for its janitor.
pub async fn clean(prefix: &str, plans: &[Plan]) -> Result<()> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let (tools, home) = (Tools::find(&path, Limits::default())?, Home::left(prefix)?);
    Fleet { tools: &tools, home: &home, plans, keep: false }.sweep().await
}
