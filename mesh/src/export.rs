//! What a cluster tells the others: per exported service its ports, accounts and ready counts.

use crate::inventory::{Endpoint, GatewayAddress, Inventory, Service, ServiceKind};
use crate::name::{
    ClusterId, Hostname, Locality, Network, Protocol, ServiceName, TrustDomain, namespace,
};
use crate::sni::Sni;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// One exported service as other clusters see it: the spec of an `ExportedService` object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExportedService {
    pub name: ServiceName,
    /// Sorted by number; never UDP.
    pub ports: Vec<ExportedPort>,
    /// Service accounts of its ready meshed endpoints. Empty while there is none: whoever imports it
    /// keeps the last ones it was told (see `federate::plan`).
    pub accounts: BTreeSet<String>,
    /// Subset name to its labels.
    pub subsets: BTreeMap<String, BTreeMap<String, String>>,
    /// Ready meshed endpoints per locality; localities without one are absent.
    pub localities: Vec<LocalityCount>,
    /// Seconds since the epoch of the Service's creation; the older wins a conflict.
    pub created: i64,
    /// Why it cannot be called from other clusters, in full sentences; empty when it can.
    pub problems: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExportedPort {
    pub number: u16,
    pub name: String,
    pub protocol: Protocol,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LocalityCount {
    pub locality: Locality,
    pub ready: u32,
    /// Ready endpoints per subset name.
    pub subsets: BTreeMap<String, u32>,
}

/// All that one linked cluster tells us, and what its link allows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exports {
    /// Name of the ClusterLink, and label `isthmus.dev/link` of what it publishes.
    pub link: String,
    pub cluster: ClusterId,
    /// UID of the remote's Namespace `kube-system`.
    pub uid: String,
    pub network: Network,
    pub trust_domain: TrustDomain,
    pub services: BTreeMap<ServiceName, ExportedService>,
    pub gateways: Vec<GatewayAddress>,
    pub import: ImportPolicy,
    /// False until one whole list has been seen: then nothing of this cluster may be deleted, and
    /// what it published before stays as it is (decision 13: never publish less because we know less).
    pub synced: bool,
}

/// What a link may announce here: `spec.import` of its ClusterLink.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImportPolicy {
    /// Namespaces it may announce services of; `*` for all; empty for none.
    pub namespaces: BTreeSet<String>,
    /// CIDRs its gateways' addresses must lie in; empty for any address that is not loopback,
    /// link-local, multicast, unspecified or within this cluster's VIP range.
    pub gateway_ranges: Vec<ipnet::IpNet>,
}

/// A range that gateways' addresses may lie in.
///
/// # Errors
/// What is wrong with it, and the fix.
pub fn range(text: &str) -> Result<ipnet::IpNet, String> {
    text.parse().map_err(|_| format!("{text:?} is no CIDR. Fix: write it like 203.0.113.0/24"))
}

/// A namespace that may be imported, or `*` for all.
///
/// # Errors
/// What is wrong with it, and the fix.
pub fn importable(text: &str) -> Result<(), String> {
    if text == "*" {
        return Ok(());
    }
    namespace(text).map_err(|why| format!("{why}. Fix: write a namespace's name, or * for all"))
}

/// What `own` exports: every Service with a ServiceExport of its name.
pub fn exports(own: &Inventory) -> BTreeMap<ServiceName, ExportedService> {
    let one = |name: &ServiceName| Some((name.clone(), export(own, name)?));
    own.service_exports.iter().filter_map(one).collect()
}

/// One exported service; `None` where it is not exported, or there is no such Service.
pub fn export(own: &Inventory, name: &ServiceName) -> Option<ExportedService> {
    if !own.service_exports.contains(name) {
        return None;
    }
    let service = own.services.get(name)?;
    let mut exported = ExportedService {
        name: name.clone(),
        ports: Vec::new(),
        accounts: BTreeSet::new(),
        subsets: BTreeMap::new(),
        localities: Vec::new(),
        created: service.created,
        problems: Vec::new(),
    };
    match offer(service, Some(&own.mesh.cluster)) {
        Ok(offer) => (exported.ports, exported.problems) = (offer.ports, offer.left_out),
        Err(problem) => {
            exported.problems.push(problem);
            return Some(exported);
        }
    }
    exported.subsets = subsets(own, service, &exported.ports, &mut exported.problems);
    let copies = own.endpoints.get(name).map(Vec::as_slice).unwrap_or_default();
    let meshed = || copies.iter().filter(|copy| copy.meshed);
    exported.accounts =
        meshed().map(|copy| copy.account.clone()).filter(|account| !account.is_empty()).collect();
    exported.localities = count(meshed(), &exported.subsets);
    if exported.localities.is_empty() && !exported.ports.is_empty() {
        exported.problems.push(if copies.is_empty() {
            "ISM3205 it has no ready endpoint. Fix: start or mend its pods; others see it at once"
                .into()
        } else {
            format!(
                "ISM3206 none of its {} ready endpoints is in the mesh, and other clusters call over \
                 mTLS only. Fix: run its pods with a sidecar",
                copies.len()
            )
        });
    }
    if service.client_ip_affinity {
        exported.problems.push(
            "ISM3207 sessionAffinity ClientIP is not kept across clusters. Fix: keep sessions in \
             the application"
                .into(),
        );
    }
    Some(exported)
}

/// What a Service offers to other clusters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    pub ports: Vec<ExportedPort>,
    /// Why other ports are left out, in full sentences.
    pub left_out: Vec<String>,
}

/// What a Service would offer, exported by `cluster`; of one without an id yet, names with it are not
/// judged.
///
/// # Errors
/// Why it is not exported whatever its ports.
pub fn offer(service: &Service, cluster: Option<&ClusterId>) -> Result<Offer, String> {
    if let Some(problem) = cannot_export(service) {
        return Err(problem);
    }
    let mut left_out = Vec::new();
    let ports = callable_ports(cluster, service, &mut left_out);
    Ok(Offer { ports, left_out })
}

/// Names that are never another cluster's to announce: `kubernetes.default`, our own namespace.
pub fn is_reserved(name: &ServiceName) -> bool {
    name.namespace == ROOT_NAMESPACE || (name.namespace == "default" && name.name == "kubernetes")
}

/// Where Isthmus itself lives in every cluster.
pub const ROOT_NAMESPACE: &str = "isthmus-system";

fn cannot_export(service: &Service) -> Option<String> {
    if is_reserved(&service.name) {
        return Some(
            "ISM3201 this name is every cluster's own and is never exported. Fix: export a Service of \
             another name; delete the ServiceExport of this one"
                .into(),
        );
    }
    match service.kind {
        ServiceKind::ClusterIp => None,
        ServiceKind::Headless => Some(
            "ISM3202 a headless Service has no one address to call from other clusters. Fix: add a \
             Service with a ClusterIP for them and export that"
                .into(),
        ),
        ServiceKind::ExternalName => Some(
            "ISM3203 an ExternalName Service has no endpoints of this cluster. Fix: export a Service \
             that selects pods, or let each cluster name the external host itself"
                .into(),
        ),
    }
}

fn callable_ports(
    cluster: Option<&ClusterId>,
    service: &Service,
    problems: &mut Vec<String>,
) -> Vec<ExportedPort> {
    let mut ports = BTreeMap::new();
    for port in &service.ports {
        if port.protocol == Protocol::Udp {
            problems.push(format!(
                "ISM3204 port {} is UDP, which gateways do not carry; it is left out. Fix: offer it \
                 over TCP too",
                port.number
            ));
        } else if let Some(form) = too_long(cluster, &service.name, port.number, "") {
            problems.push(format!(
                "ISM3208 port {} is left out, its name in TLS would be too long: {form}. Fix: \
                 shorten the names of Service and Namespace",
                port.number
            ));
        } else {
            ports.entry(port.number).or_insert_with(|| ExportedPort {
                number: port.number,
                name: port.name.clone(),
                protocol: port.protocol,
            });
        }
    }
    ports.into_values().collect()
}

fn subsets(
    own: &Inventory,
    service: &Service,
    ports: &[ExportedPort],
    problems: &mut Vec<String>,
) -> BTreeMap<String, BTreeMap<String, String>> {
    let host = service.name.local_host();
    // The rule of the service's own namespace; else the mesh's.
    let of = |namespace: &str| {
        let mut rules = own.destination_rules.values();
        rules.find(|rule| rule.host == host && rule.object.namespace == namespace)
    };
    let Some(rule) = of(&service.name.namespace).or_else(|| of(ROOT_NAMESPACE)) else {
        return BTreeMap::new();
    };
    let mut subsets = BTreeMap::new();
    for (name, subset) in &rule.subsets {
        let cluster = Some(&own.mesh.cluster);
        let long =
            ports.iter().find_map(|port| too_long(cluster, &service.name, port.number, name));
        if let Some(form) = long {
            problems.push(format!(
                "ISM3209 subset {name:?} of {} is left out, it makes no name in TLS: {form}. Fix: \
                 rename it to at most 62 of a-z, 0-9 and '-', or shorten the Service's name",
                rule.object
            ));
        } else {
            subsets.insert(name.clone(), subset.labels.clone());
        }
    }
    subsets
}

/// The first of the four forms that is no DNS name (labels up to 63, all up to 253 octets), or
/// would be read as another.
fn too_long(
    cluster: Option<&ClusterId>,
    name: &ServiceName,
    port: u16,
    subset: &str,
) -> Option<String> {
    let own = cluster.map(|cluster| name.cluster_host(cluster));
    let forms = [name.local_host(), name.clusterset_host(), name.global_host()];
    forms.into_iter().chain(own).find_map(|host| {
        let sni = Sni { port, subset: subset.into(), host };
        let text = sni.to_string();
        let fine = text.parse::<Hostname>().is_ok() && text.parse::<Sni>().as_ref() == Ok(&sni);
        (!fine).then_some(text)
    })
}

/// The four names other clusters may call a service of `cluster` by.
pub fn host_forms(name: &ServiceName, cluster: &ClusterId) -> [Hostname; 4] {
    [name.local_host(), name.clusterset_host(), name.global_host(), name.cluster_host(cluster)]
}

fn count<'a>(
    copies: impl Iterator<Item = &'a Endpoint>,
    subsets: &BTreeMap<String, BTreeMap<String, String>>,
) -> Vec<LocalityCount> {
    let mut counts: BTreeMap<&Locality, (u32, BTreeMap<String, u32>)> = BTreeMap::new();
    for copy in copies {
        let (ready, by_subset) = counts.entry(&copy.locality).or_default();
        *ready += 1;
        for (name, labels) in subsets {
            if selects(labels, &copy.labels) {
                *by_subset.entry(name.clone()).or_default() += 1;
            }
        }
    }
    let count = |(locality, (ready, subsets)): (&Locality, _)| LocalityCount {
        locality: locality.clone(),
        ready,
        subsets,
    };
    counts.into_iter().map(count).collect()
}

/// Kubernetes' matchLabels: every wanted label is there with this value.
pub(crate) fn selects(
    wanted: &BTreeMap<String, String>,
    labels: &BTreeMap<String, String>,
) -> bool {
    wanted.iter().all(|(key, value)| labels.get(key) == Some(value))
}

#[cfg(test)]
mod tests;
