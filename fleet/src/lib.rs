//! Clusters on one machine, as processes or with real nodes: API servers, the mesh's programs, pods,
//! images, load and verdicts.

pub mod apiserver;
pub mod authority;
pub mod client_hello;
mod cluster;
pub mod exact;
mod foreign;
pub mod forger;
pub mod hello;
pub mod hellos;
mod home;
pub mod image;
pub mod kind;
pub mod launcher;
pub mod link;
pub mod lint;
pub mod load;
pub mod netns;
pub mod nodes;
pub mod objects;
pub mod parts;
pub mod peers;
mod place;
pub mod pods;
pub mod process;
mod programs;
pub mod smuggling;
pub mod spot;
pub mod streams;
pub mod trust;
pub mod verdict;

pub use cluster::{CLUSTERS, Cluster, GATEWAY, Plan, SYSTEM, trust_domain};
pub use foreign::ACCOUNT as ENVOY_ACCOUNT;
pub use home::{Home, Options, clean, clean_folder, janitor, unclaimed};
pub use place::Place;

use anyhow::Result;
use netns::Netns;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use trust::Trust;

/// All of it; taken down when dropped.
pub struct Fleet {
    // Dropped in this order: processes and namespaces first, then files.
    pub clusters: BTreeMap<&'static str, Cluster>,
    pub trust: Trust,
    /// What joins the clusters' nodes and gateways, where they are namespaces.
    pub wan: Option<Netns>,
    pub home: Home,
}

impl Fleet {
    /// Brings up all clusters with their objects: no program of the mesh runs, and none is linked.
    pub async fn up(home: Home, wan: Option<Netns>, plans: &[Plan], phrase: &str) -> Result<Self> {
        let trust = Trust::init(&home, &home.prefix, phrase)?;
        let mut clusters = BTreeMap::new();
        for plan in plans {
            clusters.insert(plan.name, Cluster::start(*plan, &home, wan.as_ref())?);
        }
        let all = clusters.values_mut().map(|cluster| cluster.populate(&home, &trust));
        futures::future::try_join_all(all).await?;
        let all: Vec<_> = clusters.values().map(|c: &Cluster| (c.plan.name, &c.api)).collect();
        std::fs::write(home.operator(), apiserver::operator_kubeconfig(&all))?;
        Ok(Self { clusters, trust, wan, home })
    }

    /// Starts the programs of every cluster, each gated on the readiness of the one before it; how
    /// long that took.
    pub async fn start_programs(&self) -> Result<Duration> {
        let started = Instant::now();
        let all = self.clusters.values().map(|cluster| cluster.start_programs(&self.home));
        futures::future::try_join_all(all).await?;
        Ok(started.elapsed())
    }

    pub fn cluster(&self, name: &str) -> &Cluster {
        &self.clusters[name]
    }

    /// Resumes, restarts and heals everything, and waits until it is ready again.
    pub async fn mend(&self) -> Result<()> {
        let all = self.clusters.values().map(Cluster::mend);
        futures::future::try_join_all(all).await.map(|_| ())
    }

    /// Memory of every process that runs, in bytes: the sum of what each has of its own and its
    /// part of what they share (Pss).
    pub fn memory(&self) -> u64 {
        let all = self.clusters.values().flat_map(Cluster::processes);
        all.map(|process| process::pss(process.pid())).sum()
    }
}
