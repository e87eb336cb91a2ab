//! What a host means here, and what would make one known that is not.

use super::{Hint, NEAR_MAX};
use crate::name::{ClusterId, Hostname, ServiceName};
use crate::world::{View, World, is_published_form};
use std::collections::BTreeSet;
use std::net::IpAddr;

/// A known host: as asked, by its virtual address, or completed by a pod's search list.
pub(super) fn complete(world: &World, view: &View, asked: &str) -> Option<Hostname> {
    if let Ok(address) = asked.parse::<IpAddr>() {
        return world.target_at(address).map(|target| target.host.clone());
    }
    candidates(view, asked).find(|host| world.target(host).is_some())
}

/// What a pod's resolver takes a name for: as it is, and by its search list.
pub(super) fn candidates(view: &View, asked: &str) -> impl Iterator<Item = Hostname> {
    let own = format!(".{}.svc.cluster.local", view.namespace);
    let suffixes = [String::new(), own, ".svc.cluster.local".into(), ".cluster.local".into()];
    suffixes.into_iter().filter_map(move |suffix| format!("{asked}{suffix}").parse().ok())
}

/// Why it is none, as far as near misses tell.
pub(super) fn hints(world: &World, view: &View, asked: &str) -> Vec<Hint> {
    let mut hints = Vec::new();
    if asked.parse::<Hostname>().is_err() {
        return vec![Hint::NoName];
    }
    let own = &world.own;
    let mut labels = asked.split('.');
    let name = labels.next().unwrap_or_default();
    let namespace = labels.next().unwrap_or(&view.namespace);
    let Ok(service) = ServiceName::new(namespace, name) else { return vec![Hint::Outside] };
    let host: Option<Hostname> = asked.parse().ok();
    let federated = host.as_ref().is_some_and(is_published_form);
    if own.service_exports.contains(&service) && federated {
        hints.push(Hint::NotPublishedYet(service.clone()));
    } else if own.services.contains_key(&service) && federated {
        hints.push(Hint::NotExported(service.clone()));
    }
    let exporters: Vec<ClusterId> =
        world.singles(&service).map(|(cluster, _)| cluster.clone()).collect();
    if !exporters.is_empty() {
        hints.push(Hint::ExportedBy(service, exporters.clone()));
    }
    let entries = own.entries.values().filter_map(|entry| entry.service.as_ref());
    let elsewhere: BTreeSet<&ServiceName> = own
        .services
        .keys()
        .chain(entries)
        .filter(|other| other.name == name && other.namespace != namespace)
        .collect();
    if !elsewhere.is_empty() {
        let near = elsewhere.into_iter().take(NEAR_MAX).cloned();
        hints.push(Hint::OtherNamespaces(near.collect()));
    }
    if federated && exporters.is_empty() {
        let doors = own.remote_gateways.values().filter(|door| door.published);
        let linked: Vec<ClusterId> = doors.filter_map(|door| door.cluster.clone()).collect();
        hints.push(if linked.is_empty() { Hint::NoLinks } else { Hint::Silent(linked) });
    }
    if hints.is_empty() {
        hints.push(Hint::Outside);
    }
    hints
}
