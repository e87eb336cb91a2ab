//! What is wrong, from what was observed: pure, section by section, each line with what it may follow
//! from.

mod links;
mod pods;
mod programs;
mod services;

use super::item::{About, Group, Item, Mark};
use super::seen::{Cluster, Seen};
use crate::remedy;
use crate::remote_secret::{Place, reachable_server};
use cluster::operator::look::{Look, Right, Silent};
use mesh::finding::{Finding, Severity};
use std::collections::{BTreeMap, BTreeSet};
use trust::bundle::Bundle;
use trust::issue::Issuer;
use trust::probe::Probed;

pub(super) use links::wrong as wrong_link;

/// Seconds by which clocks may differ before it is told; certificates begin 120 s in the past.
const CLOCK_WARNING: i64 = 30;
const CLOCK_MAX: i64 = 120;
/// Days before an intermediate's end from which it is told, and a root's.
const INTERMEDIATE_DAYS: i64 = 60;
const ROOT_DAYS: i64 = 180;
const DAY: i64 = 86_400;

/// All that is to be said, in any order.
pub(super) fn judge(seen: &Seen) -> Vec<Item> {
    let mut items = Vec::new();
    for cluster in &seen.clusters {
        match &cluster.look {
            Ok(look) => {
                server(cluster, look, &mut items);
                identity(seen, cluster, look, &mut items);
                signing(seen, cluster, look, &mut items);
                pods::pods(seen, cluster, look, &mut items);
                programs::lease(seen, cluster, look, &mut items);
                gateways(cluster, look, &mut items);
            }
            Err(silent) => items.push(unanswered(cluster, silent)),
        }
        programs::pages(seen, cluster, &mut items);
    }
    ids(seen, &mut items);
    roots(seen, &mut items);
    doors(seen, &mut items);
    links::links(seen, &mut items);
    services::services(seen, &mut items);
    services::objects(seen, &mut items);
    items
}

fn unanswered(cluster: &Cluster, silent: &Silent) -> Item {
    let Cluster { context, server, .. } = cluster;
    let (what, fix) = match silent.reason.as_str() {
        "Unauthorized" => ("does not accept your credential", "log in again"),
        "Forbidden" => ("does not let you in", "use a context that may read it"),
        "WrongCertificateAuthority" => {
            ("is not signed by the CA of your kubeconfig", "correct certificate-authority-data")
        }
        "WrongServerName" => {
            ("has a certificate for another name", "use an address it names, or tls-server-name")
        }
        "BadServerCertificate" => {
            ("has a certificate that is not valid", "renew it, and compare the clocks")
        }
        "ConnectionRefused" => ("refuses connections", "start it, or correct its address"),
        "NameNotFound" => ("has a name that does not resolve here", "correct its name"),
        "ServerError" => ("answers with an error", "look at its log"),
        _ => ("does not answer", "start it, or open the way there"),
    };
    // What lies around the cause is our client's affair.
    let said = silent.said.rsplit("(Connect): ").next().unwrap_or(&silent.said);
    let said = said.rsplit("connect error: ").next().unwrap_or(said);
    let rest = format!(
        "the API server {server} {what} ({said}); its proxies go on with what they have. Fix: {fix}; \
         `kubectl --context {context} get ns` must work."
    );
    let sentence =
        if silent.refused { format!("ISM2602 {rest}") } else { format!("ISM2601 {rest}") };
    Item::wrong(Group::Servers, Mark::Broken, About::Server(context.clone()), context, &sentence)
}

fn server(cluster: &Cluster, look: &Look, items: &mut Vec<Item>) {
    let context = &cluster.context;
    let took = look.took.as_millis();
    let clock = look.ahead.map_or_else(String::new, |ahead| format!(", clock {ahead:+} s"));
    let text = format!("{} answers in {took} ms{clock}", look.version);
    items.push(Item::good(Group::Servers, About::Other, context, text));
    if let Some(ahead) = look.ahead.filter(|ahead| ahead.abs() > CLOCK_WARNING) {
        let mark = if ahead.abs() > CLOCK_MAX { Mark::Broken } else { Mark::Warning };
        let sentence = format!(
            "ISM2603 its clock is {ahead:+} s from this machine's; certificates and tokens of one look \
             expired or not yet valid to the other. Fix: let NTP or chrony set both clocks."
        );
        items.push(Item::wrong(Group::Servers, mark, About::Other, context, &sentence));
    }
    match &look.missing {
        Ok(missing) => {
            for kind in missing {
                let sentence = format!(
                    "ISM2604 it does not serve {}.{}/{}. Fix: {}.",
                    kind.kind,
                    kind.group,
                    kind.versions.join(" or "),
                    kind.fix
                );
                let about = About::Installed(context.clone());
                items.push(Item::wrong(Group::Servers, Mark::Broken, about, context, &sentence));
            }
        }
        Err(why) => items.push(unread(Group::Servers, context, "which kinds it serves", why)),
    }
    match &look.denied {
        Err(why) => items.push(unread(Group::Servers, context, "what you may do", why)),
        Ok(None) => {}
        Ok(Some(denied)) => {
            rights(context, look, denied, items);
            let hint = format!("pass --server {context}=https://ADDRESS:PORT to isthmus link");
            let place = Place { given: None, hint: &hint };
            if let Err(why) = reachable_server(&cluster.server, context, false, place) {
                let sentence = why.to_string();
                let (mark, about) = (Mark::Warning, About::Other);
                items.push(Item::wrong(Group::Servers, mark, about, context, &sentence));
            }
        }
    }
}

/// What this user may not do, as far as linking needs it.
fn rights(context: &str, look: &Look, denied: &[&Right], items: &mut Vec<Item>) {
    let about = About::Server(context.to_owned());
    if denied.is_empty() {
        if look.missing == Ok(vec![]) {
            let said = "serves every kind that is needed; you may do all that linking needs";
            items.push(Item::good(Group::Servers, About::Other, context, said.into()));
        }
    } else {
        let names: Vec<String> = denied
            .iter()
            .map(|it| {
                let dot = if it.group.is_empty() { "" } else { "." };
                format!("{} {}{dot}{}", it.verb, it.resource, it.group)
            })
            .collect();
        let sentence = format!(
            "ISM2621 you may not {}. Fix: use a context that may, or ask for these rights.",
            names.join(", ")
        );
        items.push(Item::wrong(Group::Servers, Mark::Broken, about, context, &sentence));
    }
}

/// The code of [`unread`].
pub(super) const UNREAD: &str = "ISM2622";

/// What the operator may not see is said, and is nobody's fault.
fn unread(group: Group, context: &str, what: &str, why: &str) -> Item {
    let sentence = format!("ISM2622 {what} could not be read: {why}");
    Item::wrong(group, Mark::Warning, About::Other, context, &sentence)
        .following([About::Installed(context.into()), About::Server(context.into())])
}

/// A finding as a line. What an importer leaves out on purpose is no fault: `ISM3102`.
fn finding(group: Group, about: About, context: &str, finding: &Finding) -> Option<Item> {
    let mark = match (finding.severity, finding.code) {
        (Severity::Note, _) => return None,
        (Severity::Warning, _) | (Severity::Refused, 3102) => Mark::Warning,
        (Severity::Refused, _) => Mark::Broken,
    };
    Some(Item::wrong(group, mark, about, context, &finding.to_string()))
}

fn identity(seen: &Seen, cluster: &Cluster, look: &Look, items: &mut Vec<Item>) {
    let context = &cluster.context;
    let about = About::Installed(context.clone());
    let root = &seen.root_namespace;
    if look.namespace == Ok(false) {
        let sentence = format!(
            "ISM2605 Namespace {root} does not exist: Isthmus is not installed there. Fix: kubectl \
             --context {context} create namespace {root}, then install Isthmus in it."
        );
        items.push(Item::wrong(Group::Identity, Mark::Broken, about.clone(), context, &sentence));
    }
    let (mesh, findings) = match &look.mesh {
        Ok(read) => read,
        Err(why) => {
            let item = Item::wrong(Group::Identity, Mark::Broken, about.clone(), context, why);
            items.push(item.following([about]));
            return;
        }
    };
    let wrong = findings.iter();
    items.extend(wrong.filter_map(|it| finding(Group::Identity, about.clone(), context, it)));
    let Some(mesh) = mesh else { return };
    match Bundle::from_pem(&mesh.root_certificates) {
        Err(why) => {
            let sentence = format!("{why}.");
            items.push(Item::wrong(Group::Identity, Mark::Broken, about, context, &sentence));
        }
        Ok(bundle) => {
            let left = (bundle.expires() - seen.now).div_euclid(DAY);
            let said = format!(
                "cluster {}, network {}, trust domain {}, root good for {left} days",
                mesh.cluster, mesh.network, mesh.trust_domain
            );
            items.push(Item::good(Group::Identity, About::Other, context, said));
            if let Some(item) = ending(context, "the root certificate", left, ROOT_DAYS) {
                items.push(item);
            }
        }
    }
}

/// Something that ends soon, or has ended.
fn ending(context: &str, what: &str, days: i64, warn: i64) -> Option<Item> {
    let (mark, when) = match days {
        ..0 => (Mark::Broken, format!("has ended {} days ago", -days)),
        _ if days < warn => (Mark::Warning, format!("ends in {days} days")),
        _ => return None,
    };
    let sentence =
        format!("ISM2606 {what} {when}. Fix: issue a new one with `isthmus trust issue`.");
    Some(Item::wrong(Group::Signing, mark, About::Other, context, &sentence))
}

/// Two clusters of one id, and one cluster under two contexts.
fn ids(seen: &Seen, items: &mut Vec<Item>) {
    for (place, a) in seen.clusters.iter().enumerate() {
        for b in &seen.clusters[place + 1..] {
            let uid = |cluster: &Cluster| cluster.look()?.uid.clone().ok();
            let id = |cluster: &Cluster| {
                Some(cluster.look()?.mesh.as_ref().ok()?.0.as_ref()?.cluster.clone())
            };
            let both = format!("{} and {}", a.context, b.context);
            let sentence = if uid(a).is_some() && uid(a) == uid(b) {
                format!(
                    "ISM2607 the two contexts lead to one cluster (kube-system has UID {}). Fix: name each \
                     cluster once.",
                    uid(a).unwrap_or_default()
                )
            } else if let Some(twin) = id(a).filter(|one| Some(one) == id(b).as_ref()) {
                format!(
                    "ISM2607 both clusters call themselves {twin}, so links to them cannot be told apart. \
                     Fix: rename one in its ConfigMap {}/isthmus-mesh, data.cluster.",
                    seen.root_namespace
                )
            } else {
                continue;
            };
            items.push(Item::wrong(Group::Identity, Mark::Broken, About::Ids, &both, &sentence));
        }
    }
}

/// Linked clusters, and those that are to be, must have the same roots.
fn roots(seen: &Seen, items: &mut Vec<Item>) {
    let mut of: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for cluster in &seen.clusters {
        let links = |other: &Cluster, to: &Cluster| {
            let look = other.look();
            let all = look.and_then(|look| look.links.as_ref().ok()).into_iter().flatten();
            all.filter_map(|link| link.metadata.name.as_deref()).any(|name| name == to.id())
        };
        let linked = seen.clusters.iter().any(|it| links(it, cluster) || links(cluster, it));
        let mesh = cluster.look().and_then(|look| look.mesh.as_ref().ok()?.0.as_ref());
        let bundle = mesh.and_then(|mesh| Bundle::from_pem(&mesh.root_certificates).ok());
        if let Some(bundle) = bundle.filter(|_| linked || seen.pre) {
            of.entry(bundle.fingerprint()).or_default().push(&cluster.context);
        }
    }
    if of.len() < 2 {
        return;
    }
    // The odd ones out are told first: there the mistake is likelier.
    let mut sides: Vec<(String, Vec<&str>)> = of.into_iter().collect();
    sides.sort_by_key(|(_, contexts)| contexts.len());
    let (_, odd) = &sides[0];
    let odd_ones = seen.clusters.iter().filter(|it| odd.contains(&it.context.as_str()));
    let again: Vec<String> =
        odd_ones.map(|it| remedy::another_root(&it.context, it.id())).collect();
    let said = sides.iter().map(|(print, contexts)| {
        format!("{} has {}..", contexts.join(", "), print.get(..8).unwrap_or(print))
    });
    let which = if seen.pre { "clusters" } else { "linked clusters" };
    let sentence = format!(
        "ISM2608 {which} have different root certificates, so nothing of the one is believed by \
         the other: {}. Fix: where {} has not the mesh's: {}.",
        said.collect::<Vec<_>>().join("; "),
        odd.join(", "),
        again.join("; ")
    );
    items.push(Item::wrong(
        Group::Identity,
        Mark::Broken,
        About::Roots,
        &odd.join(", "),
        &sentence,
    ));
}

fn signing(seen: &Seen, cluster: &Cluster, look: &Look, items: &mut Vec<Item>) {
    let context = &cluster.context;
    let about = About::Signing(context.clone());
    let installed = || [About::Installed(context.clone())];
    let broken = |sentence: &str| {
        Item::wrong(Group::Signing, Mark::Broken, about.clone(), context, sentence)
            .following(installed())
    };
    let cacerts = match &look.cacerts {
        Ok(cacerts) => cacerts,
        // Who may not read it, as most may not, cannot judge it.
        Err(why) if why.contains("forbidden") || why.contains("403") => {
            items.push(unread(Group::Signing, context, "Secret cacerts", "you may not"));
            return;
        }
        Err(why) => return items.push(broken(why)),
    };
    let issuer = Issuer::from_cacerts(
        &cacerts.ca_cert,
        &cacerts.cert_chain,
        &cacerts.ca_key,
        &cacerts.root_cert,
    );
    let issuer = match issuer {
        Ok(issuer) => issuer,
        Err(why) => return items.push(broken(&format!("{why}."))),
    };
    let Ok((Some(mesh), _)) = &look.mesh else { return };
    let domain = issuer.trust_domain();
    if *domain != mesh.trust_domain {
        items.push(broken(&format!(
            "ISM2609 Secret cacerts is for trust domain {domain}, ConfigMap isthmus-mesh says {}; the \
             control plane signs nothing. Fix: correct data.trustDomain, or run `isthmus trust issue \
             {} --apply --context {context}`.",
            mesh.trust_domain, mesh.cluster
        )));
    }
    let roots = Bundle::from_pem(&mesh.root_certificates).map(|bundle| bundle.fingerprint());
    if roots.is_ok_and(|roots| roots != issuer.bundle().fingerprint()) {
        let item = broken(&format!(
            "ISM2609 Secret cacerts leads to another root than ConfigMap {}/isthmus-mesh says, so what is \
             signed is refused everywhere. Fix: where the Secret is wrong, {}; where the ConfigMap is, \
             `isthmus install --context {context} --trust-dir DIR` with the folder of the Secret's root.",
            seen.root_namespace,
            remedy::another_root(context, mesh.cluster.as_str())
        ));
        items.push(item.following([About::Roots]));
    }
    let end = issuer.expires().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let days = (i64::try_from(end.as_secs()).unwrap_or(i64::MAX) - seen.now).div_euclid(DAY);
    match ending(context, "the intermediate in Secret cacerts", days, INTERMEDIATE_DAYS) {
        Some(item) => items.push(item),
        None => {
            let said = format!("intermediate of {domain} good for {days} days");
            items.push(Item::good(Group::Signing, About::Other, context, said));
        }
    }
}

/// Findings that say why a gateway is not announced or opens nothing.
fn of_gateway(code: u16) -> bool {
    (3030..=3039).contains(&code) || (3050..=3059).contains(&code)
}

fn gateways(cluster: &Cluster, look: &Look, items: &mut Vec<Item>) {
    let Ok(inventory) = &look.inventory else { return };
    let context = &cluster.context;
    let about = About::DoorService(context.clone());
    // Without a way in, it hurts whoever exports something; one who only calls needs none.
    let exports = !inventory.service_exports.is_empty();
    let mut told = false;
    for found in inventory.findings.iter().filter(|found| of_gateway(found.code)) {
        if let Some(mut item) = finding(Group::Gateways, about.clone(), context, found) {
            let closed = [3032, 3033].contains(&found.code);
            if closed && exports && inventory.gateway_addresses.is_empty() {
                item.mark = Mark::Broken;
                told = true;
            }
            items.push(item);
        }
    }
    let mark = if exports { Mark::Broken } else { Mark::Warning };
    if inventory.gateway_addresses.is_empty() && !told {
        let sentence = "ISM2615 no Service with label istio=eastwestgateway announces a gateway, so no \
            other cluster can call this one. Fix: label the gateway's Service so, with an address and \
            port 15443 named tls.";
        items.push(Item::wrong(Group::Gateways, mark, about, context, sentence));
    } else if inventory.passthrough_hosts.is_empty() && exports {
        let sentence = "ISM2615 no Gateway (networking.istio.io) opens the east-west gateway, so nothing \
            can be called through it. Fix: apply one with tls.mode AUTO_PASSTHROUGH and hosts *.global \
            and *.local.";
        items.push(Item::wrong(Group::Gateways, mark, about, context, sentence));
    }
}

fn doors(seen: &Seen, items: &mut Vec<Item>) {
    let clusters: BTreeSet<&str> = seen.doors.iter().map(|door| door.cluster.as_str()).collect();
    for cluster in clusters {
        let about = || About::Door(cluster.to_owned());
        let of = || seen.doors.iter().filter(|door| door.cluster == cluster);
        let mut good = vec![];
        for door in of() {
            let (sentence, started) = match &door.probed {
                Probed::Alive(took) => {
                    good.push(format!("{} in {} ms", door.address, took.as_millis()));
                    continue;
                }
                Probed::Missed(why) => {
                    let sentence = format!(
                        "ISM2616 its gateway {} does not answer ({why}); calls into the cluster go by \
                         other gateways or fail. Fix: start that gateway, or open the way to it.",
                        door.address
                    );
                    let of = seen.peer(cluster, "").map(|it| it.context.clone());
                    (sentence, of.map(|of| About::Pods(of, seen.root_namespace.clone())))
                }
                Probed::Foreign(why) => {
                    let sentence = format!(
                        "ISM2617 at {} its gateway should answer and something else does: {why}. Fix: see \
                         who holds that address, and that the gateway runs as \
                         isthmus-system/isthmus-gateway.",
                        door.address
                    );
                    (sentence, None)
                }
            };
            let item = Item::wrong(Group::Gateways, Mark::Broken, about(), cluster, &sentence);
            items.push(item.following(started.into_iter().chain([About::Roots, About::Ids])));
        }
        if !good.is_empty() {
            let said = format!("answers by its probe name: {}", good.join(", "));
            items.push(Item::good(Group::Gateways, About::Other, cluster, said));
        }
    }
}

#[cfg(test)]
mod tests;
