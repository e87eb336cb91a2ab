//! Which secret speaks for which cluster: Istio's remote secrets, read without IO.

use super::{LINKS_MAX, Problem};
use crate::api::label;
use crate::follow::Change;
use crate::kubeconfig::{self, KUBECONFIG_MAX, Rules};
use crate::renewal::{Credential, Renewed};
use k8s_openapi::api::core::v1::Secret;
use mesh::finding::{Finding, ObjectRef, Severity};
use mesh::name::ClusterId;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// Of a Secret, what matters here. Printing it shows no credential.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct SecretData {
    object: ObjectRef,
    /// Seconds since the epoch.
    created: i64,
    /// Annotation `networking.istio.io/cluster`.
    cluster: Option<String>,
    /// Kubeconfig by cluster id.
    data: BTreeMap<String, Vec<u8>>,
}

impl fmt::Debug for SecretData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} with keys {:?}", self.object, self.data.keys().collect::<Vec<_>>())
    }
}

/// Who speaks for a cluster, and what with.
pub(super) struct Source {
    pub(super) secret: ObjectRef,
    pub(super) kubeconfig: Result<kubeconfig::Remote, Problem>,
}

/// What all secrets say together.
pub(super) struct Read {
    pub(super) sources: BTreeMap<String, Source>,
    pub(super) findings: Vec<Finding>,
    /// Clusters whose held credential ours renews, after [`Self::renew`].
    pub(super) renewed: BTreeSet<String>,
}

impl Read {
    /// Lets the newest token of each link win, the held or ours; returns what can be renewed.
    pub(super) fn renew(
        &mut self,
        ours: &BTreeMap<String, Renewed>,
    ) -> BTreeMap<String, Credential> {
        let mut credentials = BTreeMap::new();
        for (cluster, source) in &mut self.sources {
            // A held credential that is refused keeps what works; ours must not be thrown away.
            let Ok(held) = source.kubeconfig.clone() else {
                self.renewed.insert(cluster.clone());
                continue;
            };
            if let Some(ours) = ours.get(cluster) {
                if ours.renews(&held) {
                    self.renewed.insert(cluster.clone());
                }
                if let Some(newest) = ours.newest(&held) {
                    source.kubeconfig = Ok(newest);
                }
            }
            let in_use = source.kubeconfig.clone().ok();
            let credential = in_use.and_then(|in_use| Credential::of(held, in_use));
            credentials.extend(credential.map(|credential| (cluster.clone(), credential)));
        }
        credentials
    }
}

/// Takes what changed of our own Secrets; `None` until they are listed.
pub(super) fn note_renewed(
    all: &mut Option<BTreeMap<String, Renewed>>,
    change: Change<Option<Renewed>>,
) {
    let keyed = |one: Renewed| (one.cluster.clone(), one);
    match change {
        Change::Replaced(list) => *all = Some(list.into_iter().flatten().map(keyed).collect()),
        Change::Applied(one) => all.get_or_insert_default().extend(one.map(keyed)),
        Change::Deleted(one) => {
            one.and_then(|one| all.get_or_insert_default().remove(&one.cluster));
        }
    }
}

pub(super) fn trim(secret: Secret) -> Option<SecretData> {
    let meta = secret.metadata;
    let object = ObjectRef::new("Secret", &meta.namespace?, &meta.name?);
    let created = meta.creation_timestamp.map_or(0, |time| time.0.as_second());
    let cluster = meta.annotations.and_then(|mut all| all.remove(label::REMOTE_CLUSTER));
    let data = secret.data.unwrap_or_default();
    let data = data
        .into_iter()
        // Beyond the limit, one byte more says so, and the megabyte is not kept.
        .map(|(key, mut value)| {
            value.0.truncate(KUBECONFIG_MAX + 1);
            (key, value.0)
        })
        .collect();
    Some(SecretData { object, created, cluster, data })
}

pub(super) fn note(
    secrets: &mut BTreeMap<ObjectRef, SecretData>,
    namespace: &str,
    change: Change<Option<SecretData>>,
) {
    match change {
        Change::Replaced(all) => {
            secrets.retain(|object, _| object.namespace != namespace);
            secrets.extend(all.into_iter().flatten().map(|secret| (secret.object.clone(), secret)));
        }
        Change::Applied(secret) => {
            secrets.extend(secret.map(|secret| (secret.object.clone(), secret)));
        }
        Change::Deleted(secret) => {
            secret.and_then(|secret| secrets.remove(&secret.object));
        }
    }
}

/// Reads all secrets. Where two claim one cluster, the one in `owners` keeps it (Istio: the first
/// to register wins), else the older.
pub(super) fn sources(
    secrets: &BTreeMap<ObjectRef, SecretData>,
    owners: &BTreeMap<String, ObjectRef>,
    rules: Rules,
) -> Read {
    let mut read =
        Read { sources: BTreeMap::new(), findings: Vec::new(), renewed: BTreeSet::new() };
    let mut ordered: Vec<&SecretData> = secrets.values().collect();
    ordered.sort_by_key(|secret| (secret.created, &secret.object));
    let refuse = |secret: &SecretData, code, field: String, problem: String, fix: String| Finding {
        severity: Severity::Refused,
        code,
        object: secret.object.clone(),
        field,
        problem,
        fix,
    };

    let mut claims: BTreeMap<String, Vec<&SecretData>> = BTreeMap::new();
    for secret in ordered {
        if secret.data.is_empty() {
            let problem = Problem::new(
                "SecretWithoutData",
                format!(
                    "{} has the label {}=true but no data. Fix: isthmus create-remote-secret writes it whole, with the cluster id as key and a kubeconfig as value",
                    secret.object,
                    label::MULTI_CLUSTER,
                ),
            );
            read.findings.push(refuse(
                secret,
                2101,
                "data".into(),
                "it has no data, so it leads to no cluster.".into(),
                "write it with isthmus create-remote-secret, or remove its label istio/multiCluster".into(),
            ));
            // The annotation says whose it should have been: that link shows the problem.
            let named = secret.cluster.as_ref().filter(|id| id.parse::<ClusterId>().is_ok());
            if let Some(cluster) = named.filter(|id| !read.sources.contains_key(*id)) {
                let source = Source { secret: secret.object.clone(), kubeconfig: Err(problem) };
                read.sources.insert(cluster.clone(), source);
            }
            continue;
        }
        for key in secret.data.keys() {
            match key.parse::<ClusterId>() {
                Ok(_) => claims.entry(key.clone()).or_default().push(secret),
                Err(why) => read.findings.push(refuse(
                    secret,
                    2102,
                    format!("data[{key}]"),
                    format!("{why}; this key leads to no cluster."),
                    "use the cluster's id as key, like west".into(),
                )),
            }
        }
    }

    for (cluster, claimants) in claims {
        let owner = owners.get(&cluster);
        let kept = claimants.iter().find(|secret| Some(&secret.object) == owner);
        let secret = kept.unwrap_or(&claimants[0]);
        for other in claimants.iter().filter(|other| other.object != secret.object) {
            read.findings.push(refuse(
                other,
                2103,
                format!("data[{cluster}]"),
                format!(
                    "cluster id {cluster} is already claimed by {}, so this key is not used.",
                    secret.object
                ),
                format!(
                    "give one of the two clusters another id, or delete {} or {}",
                    secret.object, other.object
                ),
            ));
        }
        if read.sources.len() >= LINKS_MAX && !read.sources.contains_key(&cluster) {
            read.findings.push(refuse(
                secret,
                2104,
                format!("data[{cluster}]"),
                format!("there are {LINKS_MAX} links already, so this one is not used."),
                "remove links that are no longer needed".into(),
            ));
            continue;
        }
        let kubeconfig = kubeconfig::parse(&secret.data[&cluster], rules).map_err(|refused| {
            Problem::new(refused.reason(), format!("{} data[{cluster}]: {refused}", secret.object))
        });
        read.sources.insert(cluster, Source { secret: secret.object.clone(), kubeconfig });
    }
    read.findings.sort();
    read
}

#[cfg(test)]
#[path = "secrets_tests.rs"]
mod tests;
