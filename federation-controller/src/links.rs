//! What each link is worth: whose cluster it leads to, whether it may be believed, what to import.
//!
//! Pure: objects and remote states in, a judgement per link out.

use cluster::api::cluster_link::ClusterLink;
use cluster::remote::{Problem, Reachable, Remote, Remotes, Told};
use mesh::export::{Exports, ImportPolicy};
use mesh::inventory::Inventory;
use mesh::name::ClusterId;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use trust::bundle::Bundle;

/// One link, judged.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Judged {
    pub consent: Consent,
    /// What it told, once synced since this process started.
    pub told: Option<Arc<Told>>,
    /// Why it is not the cluster it should be; then nothing of it is imported.
    pub wrong: Option<Problem>,
    pub trust: Trust,
    /// No secret leads there, and that is certain.
    pub secret_missing: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Consent {
    Awaiting,
    Accepted(ImportPolicy),
    /// Accepted, with a policy that cannot be read: of what stands, the namespaces that can be read
    /// are kept, and nothing new comes in.
    Unreadable {
        why: String,
        kept: ImportPolicy,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Trust {
    /// It has our roots.
    Established,
    Refused(Problem),
    /// It has not been heard yet.
    Unknown,
}

/// Judges every link that has an object, a secret, or both. `None` while it is not known which
/// links there are.
pub(crate) fn judge(
    own: &Inventory,
    objects: &BTreeMap<String, ClusterLink>,
    remotes: &Remotes,
) -> BTreeMap<String, Judged> {
    let roots = Bundle::from_pem(&own.mesh.root_certificates);
    let names: BTreeSet<&String> = objects.keys().chain(remotes.links.keys()).collect();
    let one = |name: &String| {
        let remote = remotes.links.get(name);
        let told = remote.and_then(|remote| remote.state.exports.clone());
        let judged = Judged {
            consent: consent(objects.get(name)),
            wrong: told.as_deref().and_then(|told| wrong(own, name, told, remotes)),
            trust: told.as_deref().map_or(Trust::Unknown, |told| trusted(&roots, told)),
            told,
            secret_missing: remote.is_none() && remotes.synced,
        };
        (name.clone(), judged)
    };
    names.into_iter().map(one).collect()
}

/// What to plan with: a link that is accepted, and nothing known against it, counts; unsynced where
/// it has not told us yet, so that what it published before is kept.
pub(crate) fn exports(
    own: &Inventory,
    objects: &BTreeMap<String, ClusterLink>,
    judged: &BTreeMap<String, Judged>,
) -> Vec<Exports> {
    let mut all = Vec::new();
    for (name, link) in judged {
        let import = match &link.consent {
            Consent::Awaiting => continue,
            Consent::Accepted(policy) => policy.clone(),
            Consent::Unreadable { kept, .. } => kept.clone(),
        };
        let refused = matches!(link.trust, Trust::Refused(_));
        if link.secret_missing || link.wrong.is_some() || refused {
            continue;
        }
        let readable = matches!(link.consent, Consent::Accepted(_));
        match link.told.as_deref().filter(|_| readable) {
            Some(told) => all.push(Exports {
                link: name.clone(),
                cluster: told.cluster.clone(),
                uid: told.uid.clone(),
                network: told.network.clone(),
                trust_domain: told.trust_domain.clone(),
                services: told.services.clone(),
                gateways: told.gateways.clone(),
                import,
                synced: true,
            }),
            None => all.extend(remembered(own, name, objects.get(name), import)),
        }
    }
    all
}

/// True once every accepted link is [`known`]: only then is an absent name a name that does not
/// exist.
pub(crate) fn complete(judged: &BTreeMap<String, Judged>, remotes: &Remotes) -> bool {
    let accepted = judged.iter().filter(|(_, link)| !matches!(link.consent, Consent::Awaiting));
    let mut accepted = accepted.map(|(name, link)| known(link, remotes.links.get(name)));
    remotes.synced && accepted.all(|known| known)
}

/// An accepted link that has told us all and is heard just now, or is certain to count for nothing.
///
/// One that fell silent after it had told us all is not known: its names stay (decision 13), but
/// what it exports since we cannot say, and NXDOMAIN would be a claim about now (decision 10).
pub(crate) fn known(link: &Judged, remote: Option<&Remote>) -> bool {
    let heard = remote.is_some_and(|remote| remote.state.reachable.is == Reachable::True);
    match link.consent {
        Consent::Awaiting | Consent::Unreadable { .. } => false,
        Consent::Accepted(_) => (link.told.is_some() && heard) || link.secret_missing,
    }
}

/// A link that has not told us anything since we started: who it was, from its own object, or from
/// what it published here before.
fn remembered(
    own: &Inventory,
    name: &str,
    object: Option<&ClusterLink>,
    import: ImportPolicy,
) -> Option<Exports> {
    let cluster: ClusterId = name.parse().ok()?;
    let status = object.and_then(|link| link.status.clone()).unwrap_or_default();
    let door = own
        .remote_gateways
        .values()
        .find(|door| door.published && door.cluster.as_ref() == Some(&cluster));
    let network = status.network.parse().ok().or_else(|| door.map(|door| door.network.clone()));
    let domain = status
        .trust_domain
        .parse()
        .ok()
        .or_else(|| door.and_then(|door| door.trust_domain.clone()));
    Some(Exports {
        link: name.into(),
        uid: status.uid,
        // Never heard at all: then nothing of it stands here, and any name will do.
        network: network.or_else(|| name.parse().ok())?,
        trust_domain: domain.or_else(|| name.parse().ok())?,
        cluster,
        services: BTreeMap::new(),
        gateways: Vec::new(),
        import,
        synced: false,
    })
}

fn consent(object: Option<&ClusterLink>) -> Consent {
    match object {
        Some(link) if link.spec.accepted => match link.spec.import.policy() {
            Ok(policy) => Consent::Accepted(policy),
            Err(why) => Consent::Unreadable { why, kept: link.spec.import.readable() },
        },
        Some(_) | None => Consent::Awaiting,
    }
}

/// Why the cluster behind a link is not the one it is named for.
fn wrong(own: &Inventory, name: &str, told: &Told, remotes: &Remotes) -> Option<Problem> {
    let Told { cluster, uid, .. } = told;
    let ours = &own.mesh.cluster;
    if *uid == own.uid {
        return Some(Problem::new(
            "SelfLink",
            format!(
                "link {name} leads to this cluster {ours} itself (uid {uid}). Fix: isthmus create-remote-secret with the context of the other cluster"
            ),
        ));
    }
    if cluster == ours || name == ours.as_str() {
        return Some(Problem::new(
            "DuplicateClusterId",
            format!(
                "link {name} leads to a cluster (uid {uid}) that bears this cluster's own id {ours} (uid {}). Fix: give one of the two another id in its ConfigMap isthmus-mesh",
                own.uid
            ),
        ));
    }
    let twins = remotes.links.iter().filter(|(other, _)| other.as_str() != name);
    let twin = twins
        .filter_map(|(other, remote)| Some((other, remote.state.exports.as_deref()?)))
        .find(|(_, other)| other.uid == *uid);
    if cluster.as_str() == name {
        return None; // A twin under another name is the one that is wrong.
    }
    Some(match twin {
        Some((other, _)) => Problem::new(
            "DuplicateCluster",
            format!(
                "links {name} and {other} lead to one and the same cluster (uid {uid}), which calls itself {cluster}. Fix: delete the secret that names it {name}"
            ),
        ),
        None => match remotes
            .links
            .get(cluster.as_str())
            .and_then(|other| other.state.exports.as_deref())
        {
            Some(other) => Problem::new(
                "DuplicateClusterId",
                format!(
                    "links {name} and {cluster} lead to two clusters (uids {uid} and {}) that both call themselves {cluster}. Fix: give one of the two another id in its ConfigMap isthmus-mesh",
                    other.uid
                ),
            ),
            None => Problem::new(
                "ClusterIdDiffers",
                format!(
                    "link {name} leads to a cluster that calls itself {cluster} (uid {uid}). Fix: name the key in the secret {cluster}, or correct ConfigMap isthmus-mesh there"
                ),
            ),
        },
    })
}

/// A link is trusted where both clusters have the same roots: else no handshake could succeed, and
/// what is said over the link is somebody's whom we do not know.
fn trusted(own: &Result<Bundle, trust::bundle::NotABundle>, told: &Told) -> Trust {
    let refuse = |reason, message: String| Trust::Refused(Problem::new(reason, message));
    let own = match own {
        Ok(own) => own,
        Err(why) => {
            return refuse(
                "OwnRootMissing",
                format!(
                    "this cluster's ConfigMap isthmus-mesh has no usable rootCertificates: {why}"
                ),
            );
        }
    };
    let cluster = &told.cluster;
    match Bundle::from_pem(&told.root_certificates) {
        Err(why) => refuse(
            "RootMissing",
            format!("cluster {cluster} publishes no usable rootCertificates: {why}"),
        ),
        Ok(theirs) if theirs.fingerprint() != own.fingerprint() => {
            let short = |bundle: &Bundle| bundle.fingerprint()[..16].to_owned();
            refuse(
                "RootsDiffer",
                format!(
                    "cluster {cluster} has other root certificates ({}) than this one ({}), so no call between them can succeed and nothing is imported. Fix: give the one of the two that has not the mesh's root its own again: isthmus trust issue CLUSTER --dir DIR --apply with the folder of that root, then isthmus install --trust-dir DIR there",
                    short(&theirs),
                    short(own)
                ),
            )
        }
        Ok(_) => Trust::Established,
    }
}

/// Links to make for secrets that have none, and unaccepted ones to remove with their secret.
pub(crate) fn objects_wanted(
    objects: &BTreeMap<String, ClusterLink>,
    remotes: &Remotes,
) -> (BTreeMap<String, mesh::finding::ObjectRef>, Vec<String>) {
    let missing = |(name, remote): (&String, &Remote)| {
        (!objects.contains_key(name) && !remote.leaving)
            .then(|| (name.clone(), remote.secret.clone()))
    };
    let create = remotes.links.iter().filter_map(missing).collect();
    let ours = |link: &ClusterLink| {
        let labels = link.metadata.labels.as_ref();
        labels
            .and_then(|all| all.get(cluster::api::label::MANAGED_BY))
            .is_some_and(|by| by == cluster::api::label::MANAGER)
    };
    let orphan = |name: &&String| {
        let link = &objects[*name];
        remotes.synced && !remotes.links.contains_key(*name) && !link.spec.accepted && ours(link)
    };
    (create, objects.keys().filter(orphan).cloned().collect())
}

#[cfg(test)]
#[path = "links_tests.rs"]
pub(crate) mod tests;
