//! Loop 2: own inventory and linked clusters become a plan, and the plan what should stand.

use crate::config::Clients;
use crate::export::Exported;
use crate::links::{self, Judged};
use crate::resolve::{self, Table};
use cluster::api::cluster_link::ClusterLink;
use cluster::apply::Desired;
use cluster::remote::Remotes;
use mesh::export::Exports;
use mesh::federate::{Plan, plan};
use mesh::inventory::Inventory;
use mesh::name::Hostname;
use mesh::zone::Zone;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

/// What follows from all that is known. Equal inputs give the same `Arc`s, which is silence.
#[derive(Debug, Default)]
pub(crate) struct Publisher {
    exported: Exported,
    inputs: Option<(Arc<Inventory>, Vec<Exports>)>,
    complete: Option<bool>,
    clients: Clients,
    /// All that is planned stands in our own API server: until then a planned name is not absent.
    pub standing: bool,
    pub plan: Arc<Plan>,
    pub desired: Option<Arc<Desired>>,
    pub zone: Option<Arc<Zone>>,
    pub judged: BTreeMap<String, Judged>,
    /// Names of gateways of accepted links, to be resolved.
    pub names: BTreeSet<Hostname>,
}

impl Publisher {
    /// Knows nothing yet; its zone answers the questions of `clients`.
    pub(crate) fn new(clients: Clients) -> Self {
        Self { clients, ..Self::default() }
    }

    /// Recomputes what changed. Nothing is planned before all that could be lost is known: the own
    /// inventory, and which links there are.
    pub(crate) fn renew(
        &mut self,
        own: &Arc<Inventory>,
        objects: &BTreeMap<String, ClusterLink>,
        remotes: &Remotes,
        names: &Table,
        now: SystemTime,
    ) {
        self.judged = links::judge(own, objects, remotes);
        let mut exports = links::exports(own, objects, &self.judged);
        self.names = resolve::names(&exports);
        resolve::put(&mut exports, names);
        let same_own = self.inputs.as_ref().is_some_and(|(known, _)| Arc::ptr_eq(known, own));
        let now = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let now = i64::try_from(now).unwrap_or(i64::MAX);
        let rested = self.plan.resting.values().any(|rest| rest.until <= now);
        let same = same_own && self.inputs.as_ref().is_some_and(|(_, known)| *known == exports);
        if !same || rested {
            let plan = plan(own, &exports, now);
            let services = self.exported.services(own);
            let desired = Desired::of(&plan, &services);
            if self.desired.as_deref() != Some(&desired) {
                self.desired = Some(Arc::new(desired));
            }
            if *self.plan != plan {
                self.plan = Arc::new(plan);
            }
            self.standing = self.plan.entries.keys().all(|entry| own.entries.contains_key(entry));
            self.inputs = Some((own.clone(), exports));
        }
        let complete = self.standing && links::complete(&self.judged, remotes);
        if !same_own || self.complete != Some(complete) {
            self.complete = Some(complete);
            let zone = match self.clients {
                Clients::Captured => mesh::zone::zone(own, complete),
                Clients::WithoutSidecar => mesh::zone::zone_without_sidecar(own, complete),
            };
            if self.zone.as_deref() != Some(&zone) {
                self.zone = Some(Arc::new(zone));
            }
        }
    }
}
