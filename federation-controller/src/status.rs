//! What is said of each link: conditions with ages, in its ClusterLink, on the admin page, as
//! metrics, and on disk for a start while no API server answers.

use crate::doors::Door;
use crate::links::{self, Consent, Judged, Trust};
use crate::renew::Failure;
use cluster::api::Time;
use cluster::api::cluster_link::{ClusterLink, ClusterLinkStatus, Condition};
use cluster::remote::{Problem, Reachable, Remote};
use cluster::renewal::Life;
use mesh::federate::LinkSummary;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{SystemTime, UNIX_EPOCH};

/// What is known of one link just now.
pub(crate) struct Facts<'a> {
    pub name: &'a str,
    pub object: Option<&'a ClusterLink>,
    pub remote: Option<&'a Remote>,
    pub judged: Option<&'a Judged>,
    pub summary: Option<&'a LinkSummary>,
    /// All that is planned stands in our own API server.
    pub standing: bool,
    /// Of a credential that this controller renews: how long the one in use lives.
    pub credential: Option<Life>,
    /// Why it could not be renewed at the last attempt.
    pub renewal: Option<&'a Failure>,
    /// Its gateways as seen from here; `None` before they were knocked at.
    pub doors: Option<&'a BTreeMap<SocketAddr, Door>>,
}

/// A condition before its age is known: kind, status, reason, message.
type Said = (&'static str, &'static str, String, String);

/// Statuses of all links, with the moment each condition last changed. The one writer of them.
#[derive(Debug, Default)]
pub(crate) struct Statuses {
    links: BTreeMap<String, ClusterLinkStatus>,
}

impl Statuses {
    /// Starts from what was known before, on disk or in objects.
    pub(crate) fn remember(&mut self, name: &str, status: ClusterLinkStatus) {
        self.links.entry(name.into()).or_insert(status);
    }

    /// Renews one link's status; `now` dates what changed.
    pub(crate) fn renew(&mut self, facts: &Facts<'_>, now: SystemTime) -> &ClusterLinkStatus {
        if let Some(standing) = facts.object.and_then(|link| link.status.clone()) {
            self.remember(facts.name, standing);
        }
        let old = self.links.get(facts.name).cloned().unwrap_or_default();
        let next = status(facts, old, now);
        let held = self.links.entry(facts.name.to_owned()).or_default();
        *held = next;
        held
    }

    pub(crate) fn retain(&mut self, keep: impl Fn(&str) -> bool) {
        self.links.retain(|name, _| keep(name));
    }

    pub(crate) fn all(&self) -> &BTreeMap<String, ClusterLinkStatus> {
        &self.links
    }

    /// Nothing can be known while our own API server was never heard since the start: what the disk
    /// says is shown as `Unknown`.
    pub(crate) fn unheard(&mut self, why: &str, now: SystemTime) {
        for status in self.links.values_mut() {
            let said: Vec<Said> = vec![
                ("Reachable", "Unknown", "OwnApiServerUnheard".into(), why.into()),
                ("Ready", "Unknown", "OwnApiServerUnheard".into(), why.into()),
            ];
            let judged = status.conditions.iter().find_map(|it| it.observed_generation);
            for one in said {
                let condition = dated(one, &status.conditions, now, judged);
                status.conditions.retain(|old| old.kind != condition.kind);
                status.conditions.push(condition);
            }
            status.conditions.sort_by_key(|condition| rank(&condition.kind));
        }
    }
}

fn status(facts: &Facts<'_>, old: ClusterLinkStatus, now: SystemTime) -> ClusterLinkStatus {
    let told = facts.judged.and_then(|judged| judged.told.as_deref());
    let remote = facts.remote;
    let mut status = old.clone();
    if let Some(told) = told {
        status.cluster = told.cluster.to_string();
        status.uid = told.uid.clone();
        status.network = told.network.to_string();
        status.trust_domain = told.trust_domain.to_string();
        status.gateways = told.gateways.iter().take(64).map(ToString::to_string).collect();
    }
    if let Some(remote) = remote {
        if !remote.server.is_empty() {
            status.server = remote.server.clone();
        }
        if !remote.credential.is_empty() && remote.credential != old.credential {
            status.credential = remote.credential.clone();
            status.generation = old.generation + 1;
        }
        if let Some(heard) = remote.state.last_heard {
            status.last_heard = Some(time(heard.wall));
        }
    }
    let known = |judged| links::known(judged, remote);
    status.complete = facts.standing && facts.judged.is_some_and(known);
    // An unsynced link keeps its numbers with what it published; a link that counts for nothing has none.
    match facts.summary {
        Some(summary) if told.is_some() => {
            (status.services, status.endpoints) = (summary.services, summary.endpoints);
        }
        Some(_) => {}
        None if facts.judged.is_some() => (status.services, status.endpoints) = (0, 0),
        None => {}
    }
    let said = conditions(facts, &old);
    let judged = facts.object.and_then(|link| link.metadata.generation);
    let said = said.into_iter().map(|said| dated(said, &old.conditions, now, judged));
    status.conditions = said.collect();
    // A link's own clock is finer than ours: it noticed first.
    if let (Some(remote), Some(reachable)) =
        (remote, status.conditions.iter_mut().find(|condition| condition.kind == "Reachable"))
    {
        let before = old.condition("Reachable");
        if before.is_none_or(|before| before.status != reachable.status) {
            reachable.last_transition_time = time(remote.state.reachable.since.wall);
        }
    }
    status
}

fn dated(
    (kind, status, reason, message): Said,
    old: &[Condition],
    now: SystemTime,
    judged: Option<i64>,
) -> Condition {
    let before = old.iter().find(|condition| condition.kind == kind && condition.status == status);
    Condition {
        kind: kind.into(),
        status: status.into(),
        reason,
        message,
        last_transition_time: before
            .map_or_else(|| time(now), |before| before.last_transition_time.clone()),
        observed_generation: judged,
    }
}

fn conditions(facts: &Facts<'_>, old: &ClusterLinkStatus) -> Vec<Said> {
    let accepted = accepted(facts);
    let reachable = reachable(facts);
    let synced = synced(facts, old);
    let trusted = trusted(facts, old);
    let ready = ready(facts, [&accepted, &synced, &trusted, &reachable]);
    let gateways = gateways(facts, old);
    let credential = credential(facts);
    let all = [accepted, reachable, synced, trusted].into_iter();
    all.chain(gateways).chain(credential).chain([ready]).collect()
}

fn rank(kind: &str) -> usize {
    let order = [
        "Accepted",
        "Reachable",
        "Synced",
        "TrustEstablished",
        "GatewaysReachable",
        "CredentialRenewed",
        "Ready",
    ];
    order.iter().position(|one| *one == kind).unwrap_or(order.len())
}

fn accepted(facts: &Facts<'_>) -> Said {
    const KIND: &str = "Accepted";
    let name = facts.name;
    match facts.judged.map(|judged| &judged.consent) {
        Some(Consent::Accepted(policy)) if policy.namespaces.is_empty() => (
            KIND,
            "True",
            "AcceptedNothing".into(),
            format!(
                "Accepted, but spec.import.namespaces is empty, so nothing is imported. Fix: isthmus link names namespaces, or patch ClusterLink {name}"
            ),
        ),
        Some(Consent::Accepted(_)) => (KIND, "True", "Accepted".into(), "Accepted.".into()),
        Some(Consent::Unreadable { why, .. }) => (
            KIND,
            "False",
            "BadImportPolicy".into(),
            format!("{why}. What it published before is kept."),
        ),
        Some(Consent::Awaiting) | None => (
            KIND,
            "False",
            "AwaitingConsent".into(),
            format!(
                "Nothing is imported until this cluster accepts. Fix: isthmus link, or kubectl patch clusterlink {name} with spec.accepted: true and spec.import.namespaces"
            ),
        ),
    }
}

fn reachable(facts: &Facts<'_>) -> Said {
    const KIND: &str = "Reachable";
    let Some(remote) = facts.remote else {
        return (KIND, "Unknown", "SecretMissing".into(), no_secret(facts.name));
    };
    let state = &remote.state;
    let reason = |otherwise: &str| match (&state.error, &remote.problem) {
        (Some(error), _) => (error.reason.clone(), error.message.clone()),
        (None, Some(problem)) => (problem.reason.clone(), problem.message.clone()),
        (None, None) => (otherwise.into(), format!("{} is being asked.", remote.server)),
    };
    match state.reachable.is {
        Reachable::True => (KIND, "True", "Answers".into(), format!("{} answers.", remote.server)),
        Reachable::False => {
            let (reason, message) = reason("Refused");
            (KIND, "False", reason, message)
        }
        Reachable::Unknown => {
            let (reason, message) = reason("Connecting");
            (KIND, "Unknown", reason, message)
        }
    }
}

fn no_secret(name: &str) -> String {
    format!(
        "No secret with label istio/multiCluster=true has a key {name}. Fix: isthmus create-remote-secret, or delete the ClusterLink"
    )
}

fn synced(facts: &Facts<'_>, old: &ClusterLinkStatus) -> Said {
    const KIND: &str = "Synced";
    let problem =
        |status, problem: &Problem| (KIND, status, problem.reason.clone(), problem.message.clone());
    let Some(remote) = facts.remote else {
        return (KIND, "False", "SecretMissing".into(), no_secret(facts.name));
    };
    if remote.leaving {
        return (
            KIND,
            "False",
            "SecretDeleted".into(),
            format!("{} is deleted; what it published is withdrawn.", remote.secret),
        );
    }
    if let Some(wrong) = facts.judged.and_then(|judged| judged.wrong.as_ref()) {
        return problem("False", wrong);
    }
    if let Some(told) = &remote.state.exports {
        // The last good list stands; what keeps it from being renewed is said.
        return match (&remote.state.error, &remote.problem) {
            (Some(error), _) if remote.state.reachable.is == Reachable::True => {
                problem("False", error)
            }
            // An older credential still reads it; the secret's present content does not.
            (_, Some(waits)) if waits.reason != "Replacing" => problem("True", waits),
            (_, _) => (
                KIND,
                "True",
                "Synced".into(),
                format!("{} exported services were read.", told.services.len()),
            ),
        };
    }
    match (&remote.problem, &remote.state.error) {
        (Some(waits), _) | (None, Some(waits)) => problem("False", waits),
        (None, None) => {
            let kept = if old.services > 0 { " What it published before is kept." } else { "" };
            (KIND, "False", "Reading".into(), format!("It is being read for the first time.{kept}"))
        }
    }
}

fn trusted(facts: &Facts<'_>, old: &ClusterLinkStatus) -> Said {
    const KIND: &str = "TrustEstablished";
    match facts.judged.map(|judged| &judged.trust) {
        Some(Trust::Established) => (
            KIND,
            "True",
            "SameRoots".into(),
            "Both clusters have the same root certificates.".into(),
        ),
        Some(Trust::Refused(problem)) => {
            (KIND, "False", problem.reason.clone(), problem.message.clone())
        }
        // Not heard since our start: what was true before is not forgotten for that.
        Some(Trust::Unknown) | None => match old.condition(KIND) {
            Some(before) if before.status == "True" => (
                KIND,
                "True",
                "SameRootsBefore".into(),
                "The roots were the same when it was last read.".into(),
            ),
            Some(_) | None => (
                KIND,
                "Unknown",
                "NotRead".into(),
                "Its root certificates were not read yet.".into(),
            ),
        },
    }
}

/// Whether its gateways answer from inside this cluster, as its callers dial them; nothing of a cluster
/// that has none. It is no part of Ready: a call has other gateways, or other clusters.
fn gateways(facts: &Facts<'_>, old: &ClusterLinkStatus) -> Option<Said> {
    const KIND: &str = "GatewaysReachable";
    /// Gateways named in one message, and octets of what each said.
    const NAMED: usize = 4;
    const SAID: usize = 200;
    let Some(doors) = facts.doors else {
        // Not knocked at since our start: what was known is not forgotten for that.
        let before = old.condition(KIND)?;
        let status = if before.status == "True" { "True" } else { "False" };
        return Some((KIND, status, before.reason.clone(), before.message.clone()));
    };
    let shut = doors.iter().filter_map(|(address, door)| {
        let (why, what) = match door {
            Door::Open => return None,
            Door::Silent(why) => (why, ""),
            Door::Foreign(why) => (why, "something else answers: "),
        };
        let why: String = why.chars().filter(|c| !c.is_control()).take(SAID).collect();
        Some(format!("{address} ({what}{why})"))
    });
    let shut: Vec<String> = shut.collect();
    if doors.is_empty() {
        return None;
    }
    if shut.is_empty() {
        let message = format!("All of its gateways ({}) answer from this cluster.", doors.len());
        return Some((KIND, "True", "Answer".into(), message));
    }
    let reason = if shut.len() == doors.len() { "NoneAnswers" } else { "SomeSilent" };
    let more = match shut.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let message = format!(
        "ISM2407 {} of its {} gateways do not answer from inside this cluster: {}{more}. Fix: open the \
         way from this cluster's nodes to them (firewall, security group, route), or start them.",
        shut.len(),
        doors.len(),
        shut[..shut.len().min(NAMED)].join(", "),
    );
    Some((KIND, "False", reason.into(), message))
}

/// Whether the link's token is kept fresh; nothing of a credential that is not ours to renew. It is no
/// part of Ready: until its end the token in use is as good as ever.
fn credential(facts: &Facts<'_>) -> Option<Said> {
    const KIND: &str = "CredentialRenewed";
    let ends = facts.credential?.expires;
    let until = time(ends).0;
    Some(match facts.renewal {
        None => (KIND, "True", "Fresh".into(), format!("The token in use lives until {until}.")),
        Some(failure) => (
            KIND,
            "False",
            "RenewalFailed".into(),
            format!(
                "It could not be renewed, {} attempts so far; the token in use lives until {until}, \
                 and after that this link is not heard any more: {}. It is tried again by itself; \
                 isthmus link {} with both contexts mints a new one at once.",
                failure.attempts, failure.why, facts.name
            ),
        ),
    })
}

/// Ready where calls can work: what is reachable is not part of it, since a link outlives its API.
fn ready(facts: &Facts<'_>, [accepted, synced, trusted, reachable]: [&Said; 4]) -> Said {
    const KIND: &str = "Ready";
    let failed = [accepted, trusted, synced].into_iter().find(|said| said.1 == "False");
    if let Some((_, _, reason, message)) = failed {
        return (KIND, "False", reason.clone(), message.clone());
    }
    if let Some((_, _, reason, message)) =
        [trusted, reachable].into_iter().find(|said| said.1 != "True")
    {
        return (KIND, "Unknown", reason.clone(), message.clone());
    }
    let problem = facts.remote.and_then(|remote| remote.problem.as_ref());
    if let Some(problem) = problem {
        return (KIND, "True", problem.reason.clone(), problem.message.clone());
    }
    (KIND, "True", "Ready".into(), "Accepted, read and trusted.".into())
}

/// One link on the admin page `/links`.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Shown {
    pub name: String,
    pub cluster: String,
    pub uid: String,
    pub server: String,
    pub network: String,
    pub trust_domain: String,
    pub gateways: Vec<String>,
    pub generation: u64,
    pub credential: String,
    pub services: u32,
    pub endpoints: u32,
    /// Since its API server last answered; `null` if never.
    pub heartbeat_age_seconds: Option<u64>,
    pub conditions: Vec<ShownCondition>,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ShownCondition {
    #[serde(rename = "type")]
    pub kind: String,
    pub status: String,
    pub reason: String,
    pub message: String,
    /// RFC 3339.
    pub since: String,
    pub age_seconds: u64,
}

/// A link as people and tools see it at `now`.
pub(crate) fn shown(name: &str, status: &ClusterLinkStatus, now: SystemTime) -> Shown {
    let conditions = status.conditions.iter().map(|condition| ShownCondition {
        kind: condition.kind.clone(),
        status: condition.status.clone(),
        reason: condition.reason.clone(),
        message: condition.message.clone(),
        since: condition.last_transition_time.0.to_string(),
        age_seconds: age(&condition.last_transition_time, now),
    });
    Shown {
        name: name.into(),
        cluster: status.cluster.clone(),
        uid: status.uid.clone(),
        server: status.server.clone(),
        network: status.network.clone(),
        trust_domain: status.trust_domain.clone(),
        gateways: status.gateways.clone(),
        generation: status.generation,
        credential: status.credential.clone(),
        services: status.services,
        endpoints: status.endpoints,
        heartbeat_age_seconds: status.last_heard.as_ref().map(|heard| age(heard, now)),
        conditions: conditions.collect(),
    }
}

/// What is kept on disk.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Saved {
    pub links: BTreeMap<String, ClusterLinkStatus>,
}

fn age(then: &Time, now: SystemTime) -> u64 {
    let now = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    now.saturating_sub(u64::try_from(then.0.as_second()).unwrap_or(0))
}

/// Whole seconds, as Kubernetes keeps them.
fn time(at: SystemTime) -> Time {
    let seconds = at.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    cluster::api::time(i64::try_from(seconds).unwrap_or(i64::MAX))
}

#[cfg(test)]
#[path = "status_tests.rs"]
mod tests;
