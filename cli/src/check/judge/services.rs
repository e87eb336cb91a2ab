//! What is exported and imported, by the functions that the controllers use themselves, and every
//! object that is not read as its author may think.

use super::super::item::{About, Group, Item, Mark};
use super::super::seen::{Cluster, Seen};
use super::{finding, of_gateway, unread};
use crate::output;
use mesh::export::{ExportedService, Exports, exports};
use mesh::federate::plan;
use mesh::finding::Finding;
use mesh::name::ServiceName;
use std::collections::{BTreeMap, BTreeSet};

/// What each cluster exports, by its context.
type Offers<'a> = BTreeMap<&'a str, BTreeMap<ServiceName, ExportedService>>;

pub(super) fn services(seen: &Seen, items: &mut Vec<Item>) {
    let mut offers = Offers::new();
    for cluster in &seen.clusters {
        let Some(look) = cluster.look() else { continue };
        match &look.inventory {
            Ok(own) => _ = offers.insert(&cluster.context, exports(own)),
            Err(why) => {
                items.push(unread(Group::Services, &cluster.context, "its services", why));
            }
        }
    }
    for cluster in &seen.clusters {
        if let Some(offered) = offers.get(cluster.context.as_str()) {
            offered_by(cluster, offered, &offers, items);
        }
    }
    imports(seen, &offers, items);
}

fn ready(service: &ExportedService) -> bool {
    !service.localities.is_empty()
}

fn offered_by(
    cluster: &Cluster,
    offered: &BTreeMap<ServiceName, ExportedService>,
    offers: &Offers<'_>,
    items: &mut Vec<Item>,
) {
    let context = &cluster.context;
    let Some(look) = cluster.look() else { return };
    let Ok(own) = &look.inventory else { return };
    let before = items.len();
    let wrong =
        |mark, sentence: &str| Item::wrong(Group::Services, mark, About::Other, context, sentence);
    for name in own.service_exports.iter().filter(|name| !own.services.contains_key(name)) {
        items.push(wrong(
            Mark::Broken,
            &format!(
                "ISM2620 ServiceExport {name} has no Service of its name, so nothing is exported. Fix: \
                 create the Service, or `isthmus unexport svc/{} -n {} --context {context}`.",
                name.name, name.namespace
            ),
        ));
    }
    for (name, service) in offered {
        for problem in &service.problems {
            let elsewhere = offers
                .iter()
                .any(|(other, theirs)| *other != context && theirs.get(name).is_some_and(ready));
            let (code, rest) = problem.split_once(' ').unwrap_or(("", problem));
            let mark = match code {
                // Others serve it, and sessions are kept by the application.
                "ISM3205" | "ISM3206" if elsewhere => Mark::Warning,
                "ISM3207" => Mark::Warning,
                _ => Mark::Broken,
            };
            let copies = || About::Pods(context.clone(), name.namespace.clone());
            let causes = ["ISM3205", "ISM3206"].contains(&code).then(copies);
            let item = wrong(mark, &format!("{code} export {name}: {rest}."));
            items.push(item.following(causes));
        }
    }
    let silent = |name: &&ServiceName| {
        look.published.as_ref().is_ok_and(|published| !published.contains(name))
    };
    let silent: Vec<String> = offered.keys().filter(silent).map(ToString::to_string).collect();
    if !silent.is_empty() {
        let sentence = format!(
            "ISM2623 {} exported and not published as ExportedService, so no other cluster knows. Fix: \
             see that the federation controller runs and may write.",
            are(&silent)
        );
        items.push(wrong(Mark::Broken, &sentence).following([About::Controller(context.clone())]));
    }
    if items.len() == before && !offered.is_empty() {
        let copies = offered.values().flat_map(|service| &service.localities);
        let copies: u32 = copies.map(|count| count.ready).sum();
        let services = output::count(offered.len().try_into().unwrap_or(u32::MAX), "service");
        let said = format!("exports {services}, {}", output::count(copies, "ready endpoint"));
        items.push(Item::good(Group::Services, About::Other, context, said));
    }
}

/// The first few of a list, how many more, and `is` or `are`.
fn are(names: &[String]) -> String {
    format!("{} {}", output::some(names), if names.len() == 1 { "is" } else { "are" })
}

/// What each cluster should publish of the others, and what of it does not stand.
fn imports(seen: &Seen, offers: &Offers<'_>, items: &mut Vec<Item>) {
    // One sentence, said by several clusters, is one line.
    let mut said: BTreeMap<Finding, Vec<&str>> = BTreeMap::new();
    for cluster in &seen.clusters {
        let Some(look) = cluster.look() else { continue };
        let Ok(own) = &look.inventory else { continue };
        let context = cluster.context.as_str();
        let told: Vec<Exports> = heard(seen, cluster, offers);
        let plan = plan(own, &told, seen.now);
        for finding in plan.findings {
            said.entry(finding).or_default().push(context);
        }
        let lacks: Vec<String> = plan
            .entries
            .iter()
            .filter(|(object, _)| !own.entries.contains_key(object))
            .filter_map(|(_, entry)| entry.hosts.first().map(ToString::to_string))
            .collect();
        if !lacks.is_empty() {
            let sentence = format!(
                "ISM2624 {} exported to it and missing there. Fix: see that its federation controller \
                 runs and may write ServiceEntries.",
                are(&lacks)
            );
            let links = told.iter().map(|it| About::Link(context.to_owned(), it.link.clone()));
            let causes = std::iter::once(About::Controller(context.to_owned())).chain(links);
            let about = About::Other;
            let item = Item::wrong(Group::Services, Mark::Broken, about, context, &sentence);
            items.push(item.following(causes));
        }
    }
    for (found, contexts) in said {
        let causes: Vec<About> = match found.code {
            3103 | 3104 => vec![About::Ids],
            // Named after the link, which bears the cluster's id.
            3101 | 3111 | 3115 => {
                let peer = seen.peer(&found.object.name, "");
                peer.map(|peer| About::DoorService(peer.context.clone())).into_iter().collect()
            }
            _ => vec![],
        };
        let clusters = contexts.join(", ");
        let line = finding(Group::Services, About::Other, &clusters, &found);
        items.extend(line.map(|item| item.following(causes)));
    }
}

/// What a cluster hears over its accepted links from clusters that were looked at; others count as
/// not heard, so that nothing is claimed of them.
fn heard(seen: &Seen, cluster: &Cluster, offers: &Offers<'_>) -> Vec<Exports> {
    let links = cluster.look().and_then(|look| look.links.as_ref().ok());
    let one = |link: &cluster::api::cluster_link::ClusterLink| {
        let name = link.metadata.name.clone()?;
        let status = link.status.clone().unwrap_or_default();
        let peer = seen.peer(&name, &status.uid)?;
        let own = peer.look()?.inventory.as_ref().ok()?;
        let ready = status.condition("Ready").is_some_and(|it| it.status == "True");
        if !link.spec.accepted || !ready {
            return None;
        }
        Some(Exports {
            link: name,
            cluster: own.mesh.cluster.clone(),
            uid: own.uid.clone(),
            network: own.mesh.network.clone(),
            trust_domain: own.mesh.trust_domain.clone(),
            services: offers.get(peer.context.as_str())?.clone(),
            gateways: own.gateway_addresses.clone(),
            import: link.spec.import.policy().ok()?,
            synced: true,
        })
    };
    links.into_iter().flatten().filter_map(one).collect()
}

/// Findings that no other section has said.
pub(super) fn objects(seen: &Seen, items: &mut Vec<Item>) {
    for cluster in &seen.clusters {
        let Some(look) = cluster.look() else { continue };
        let Ok(own) = &look.inventory else { continue };
        let told: BTreeSet<&Finding> =
            look.mesh.iter().flat_map(|(_, findings)| findings).collect();
        let rest = own.findings.iter().filter(|it| !told.contains(it) && !of_gateway(it.code));
        let before = items.len();
        let line = |it| finding(Group::Objects, About::Other, &cluster.context, it);
        items.extend(rest.filter_map(line));
        if items.len() == before {
            let said = "every object is read as it is written".to_owned();
            items.push(Item::good(Group::Objects, About::Other, &cluster.context, said));
        }
    }
}
