//! Every link of every cluster: the first condition that does not hold, and whose fault that may be.

use super::super::item::{About, Group, Item, Mark};
use super::super::seen::{Cluster, Seen};
use super::unread;
use crate::output;
use cluster::api::cluster_link::{CONDITIONS, ClusterLink, ClusterLinkStatus, Condition};

pub(super) fn links(seen: &Seen, items: &mut Vec<Item>) {
    for cluster in &seen.clusters {
        let Some(look) = cluster.look() else { continue };
        match &look.links {
            Ok(links) => {
                for link in links {
                    items.push(one(seen, cluster, link));
                }
            }
            Err(why) => {
                items.push(unread(Group::Links, &cluster.context, "ClusterLinks", why));
            }
        }
    }
}

fn one(seen: &Seen, cluster: &Cluster, link: &ClusterLink) -> Item {
    let context = &cluster.context;
    let name = link.metadata.name.clone().unwrap_or_default();
    let about = About::Link(context.clone(), name.clone());
    let pair = format!("{context}->{name}");
    let status = link.status.clone().unwrap_or_default();
    let peer = seen.peer(&name, &status.uid);
    if let Some((mark, sentence)) = wrong(context, peer_context(peer, &name), &status, seen.now) {
        return Item::wrong(Group::Links, mark, about, &pair, &sentence).following(causes(
            context,
            peer,
            &name,
            fails(&status),
        ));
    }
    let heard = status.last_heard.as_ref().map_or_else(String::new, |at| {
        format!(", heard {} ago", output::age(seen.now - at.0.as_second()))
    });
    let (services, endpoints) = (status.services, status.endpoints);
    let said = format!(
        "Ready, {}, {}{heard}",
        output::count(services, "service"),
        output::count(endpoints, "endpoint")
    );
    Item::good(Group::Links, About::Other, &pair, said)
}

/// The first condition that does not hold.
fn fails(status: &ClusterLinkStatus) -> Option<&Condition> {
    let mut all = CONDITIONS.iter().filter_map(|kind| status.condition(kind));
    all.find(|condition| condition.status != "True")
}

/// What is wrong with a link of `context` to what the operator calls `peer`, as a sentence; `None` where
/// nothing is.
pub(in crate::check) fn wrong(
    context: &str,
    peer: &str,
    status: &ClusterLinkStatus,
    now: i64,
) -> Option<(Mark, String)> {
    let broken = |sentence: &str| Some((Mark::Broken, sentence.to_owned()));
    if status.conditions.is_empty() {
        return broken(
            "ISM2618 the federation controller has said nothing about this link yet. Fix: see that it \
             runs.",
        );
    }
    if let Some(condition) = fails(status) {
        let hurts = hurts(condition, status);
        let otherwise = format!("isthmus link {context} {peer} makes it anew.");
        let age = output::age(now - condition.last_transition_time.0.as_second());
        let (what, fix) = condition.message.split_once("Fix: ").unwrap_or((&condition.message, ""));
        let what = what.trim_end();
        let sentence = format!(
            "ISM2618 {}={} for {age} ({}): {what} {hurts} Fix: {}",
            condition.kind,
            condition.status,
            condition.reason,
            if fix.is_empty() { &otherwise } else { fix }
        );
        let mark = match condition.kind.as_str() {
            "CredentialRenewed" => Mark::Warning,
            _ if condition.reason == "SomeSilent" => Mark::Warning,
            _ => Mark::Broken,
        };
        return Some((mark, sentence));
    }
    if !status.conditions.iter().any(|it| it.kind == "Ready") {
        return broken("ISM2618 it is not judged yet. Fix: see that its controller runs.");
    }
    if let Some(ready) = refused(status) {
        return broken(&format!(
            "ISM2618 its newest credential is not used ({}), the one before it goes on until its end: {}",
            ready.reason, ready.message
        ));
    }
    nothing_imported(status).then(|| {
        let sentence = "ISM2619 it is accepted for no namespace, so nothing is imported. Fix: name \
            namespaces in spec.import.namespaces of the ClusterLink, or isthmus link --import.";
        (Mark::Warning, sentence.to_owned())
    })
}

/// How the operator calls the cluster behind a link.
fn peer_context<'a>(peer: Option<&'a Cluster>, name: &'a str) -> &'a str {
    peer.map_or(name, |peer| peer.context.as_str())
}

/// Ready, by what was before: the secret's present content is refused.
fn refused(status: &ClusterLinkStatus) -> Option<&Condition> {
    status.condition("Ready").filter(|it| !["Ready", "Replacing"].contains(&it.reason.as_str()))
}

fn nothing_imported(status: &ClusterLinkStatus) -> bool {
    status.condition("Accepted").is_some_and(|it| it.reason == "AcceptedNothing")
}

/// Whether traffic is hurt, a sentence.
fn hurts(condition: &Condition, status: &ClusterLinkStatus) -> &'static str {
    match condition.kind.as_str() {
        "Accepted" | "TrustEstablished" => "Nothing is imported over it.",
        "CredentialRenewed" => "Calls go on.",
        _ if condition.reason == "SomeSilent" => "Calls go by its other gateways.",
        "GatewaysReachable" => "Calls go to other clusters, or fail.",
        _ if condition.reason == "SecretDeleted" => "Nothing can be called over it.",
        _ if status.endpoints > 0 => "Calls go on with what was last heard.",
        _ => "Nothing can be called over it.",
    }
}

/// What may be behind it: the reader's own controller, then what the condition speaks of.
fn causes(
    context: &str,
    peer: Option<&Cluster>,
    name: &str,
    fails: Option<&Condition>,
) -> Vec<About> {
    let mut causes = vec![About::Controller(context.into())];
    let peer = peer_context(peer, name).to_owned();
    let reason = fails.map_or("", |condition| condition.reason.as_str());
    match reason {
        // Shut for this machine, too; its door is named by the cluster's own id.
        "NoneAnswers" | "SomeSilent" => causes.extend([
            About::Door(name.to_owned()),
            About::DoorService(peer),
            About::Roots,
            About::Ids,
        ]),
        "RootsDiffer" => causes.push(About::Roots),
        "DuplicateClusterId" | "DuplicateCluster" | "ClusterIdDiffers" | "SelfLink" => {
            causes.push(About::Ids);
        }
        // What the link's own objects say is nobody else's fault.
        "AwaitingConsent" | "BadImportPolicy" | "SecretMissing" | "SecretDeleted" => {}
        _ => causes.extend([
            About::Server(peer.clone()),
            About::Installed(peer),
            About::Roots,
            About::Ids,
        ]),
    }
    causes
}
