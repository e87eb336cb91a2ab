//! What one cluster puts into one service: from its exports, or, unheard, as it was published before.

use super::{cluster_of, finding, policy, size};
use crate::export::{ExportedPort, ExportedService, Exports, exports};
use crate::finding::{Finding, Severity};
use crate::inventory::{EntryEndpoint, Inventory, ServiceEntry, labels};
use crate::name::{
    ClusterId, Hostname, Identity, Locality, Network, Protocol, ServiceName, TrustDomain,
};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Ports, localities and accounts one export may have; more is refused aloud.
const PARTS_MAX: usize = 256;

/// Ready copies one export may claim per locality; more is taken as this.
const READY_MAX: u32 = 100_000;

/// One cluster's copies of one service.
#[derive(Debug)]
pub(super) struct Share {
    pub(super) service: ServiceName,
    pub(super) cluster: ClusterId,
    /// UID of that cluster's `kube-system`; `None` while it was never heard.
    pub(super) source_uid: Option<String>,
    pub(super) created: i64,
    /// Sorted by number.
    pub(super) ports: Vec<ExportedPort>,
    pub(super) endpoints: Vec<EntryEndpoint>,
    pub(super) identities: BTreeSet<Identity>,
    /// Taken over from what stands published, since its link is not synced.
    pub(super) kept: bool,
}

/// The cluster as its link says, or, where the link was never heard, as we wrote it before.
pub(super) fn source_uid(link: &str, before: Option<&String>) -> Option<String> {
    if link.is_empty() { before.cloned() } else { Some(link.to_owned()) }
}

/// What we published before, by first host.
pub(super) struct Existing<'a> {
    by_host: BTreeMap<&'a Hostname, &'a ServiceEntry>,
    resting: BTreeMap<&'a Hostname, &'a [IpAddr]>,
}

impl<'a> Existing<'a> {
    pub(super) fn of(own: &'a Inventory) -> Self {
        let published = own.entries.values().filter(|entry| entry.published);
        let by_host = published.filter_map(|entry| Some((entry.hosts.first()?, entry))).collect();
        let resting = own.resting.values();
        let resting = resting.map(|rest| (&rest.host, rest.addresses.as_slice())).collect();
        Self { by_host, resting }
    }

    /// Virtual addresses a host has, or had and that still rest.
    pub(super) fn addresses(&self, host: &Hostname) -> Vec<IpAddr> {
        let standing = self.entry(host).map(|entry| entry.addresses.as_slice());
        standing.or_else(|| self.resting.get(host).copied()).unwrap_or_default().to_vec()
    }

    pub(super) fn entry(&self, host: &Hostname) -> Option<&'a ServiceEntry> {
        self.by_host.get(host).copied()
    }

    /// Who may answer for a cluster's copies, as its own entry says.
    fn identities(&self, service: &ServiceName, cluster: &ClusterId) -> BTreeSet<Identity> {
        let entry = self.entry(&service.cluster_host(cluster));
        entry.into_iter().flat_map(|entry| &entry.subject_alt_names).cloned().collect()
    }
}

/// The own cluster's shares: no endpoints, since the local Services supply these.
pub(super) fn own(own: &Inventory, existing: &Existing<'_>) -> Vec<Share> {
    let mesh = &own.mesh;
    let share = |service: ExportedService| Share {
        identities: identities(&service, &mesh.trust_domain, &mesh.cluster, existing),
        cluster: mesh.cluster.clone(),
        source_uid: source_uid(&own.uid, None),
        created: service.created,
        ports: service.ports,
        endpoints: Vec::new(),
        service: service.name,
        kept: false,
    };
    // A reserved name is no service of the mesh at all.
    let exported = exports(own).into_values();
    exported.filter(|service| !crate::export::is_reserved(&service.name)).map(share).collect()
}

/// One link's shares, and how many services its policy refused.
pub(super) fn of_link(
    link: &Exports,
    existing: &Existing<'_>,
    findings: &mut Vec<Finding>,
) -> (Vec<Share>, u32) {
    let mut shares = if link.synced {
        let heard = link.services.iter().take(policy::SERVICES_MAX);
        heard
            .filter_map(|(name, service)| heard_share(link, name, service, existing, findings))
            .collect()
    } else {
        kept_shares(link, existing)
    };
    let before = shares.len();
    let mut refused = Vec::new();
    shares.retain(|share: &Share| {
        let admitted = policy::admits(&link.import, &share.service);
        if !admitted && refused.len() < 5 {
            refused.push(share.service.to_string());
        }
        admitted
    });
    let count = before - shares.len();
    if count > 0 {
        findings.push(finding(
            Severity::Refused,
            3102,
            policy::link_object(link),
            "spec.import.namespaces",
            format!(
                "cluster {} exports {count} service{} that this link does not import, such as {}.",
                link.cluster,
                if count == 1 { "" } else { "s" },
                refused.join(", ")
            ),
            "add their namespaces to spec.import.namespaces, if they are wanted here; \
             kubernetes.default and isthmus-system are never imported.",
        ));
    }
    if link.synced && link.services.len() > policy::SERVICES_MAX {
        findings.push(finding(
            Severity::Refused,
            3113,
            policy::link_object(link),
            "",
            format!(
                "cluster {} exports {} services; the first {} are imported.",
                link.cluster,
                link.services.len(),
                policy::SERVICES_MAX
            ),
            "export less, or split the cluster.",
        ));
    }
    (shares, size(count))
}

fn heard_share(
    link: &Exports,
    name: &ServiceName,
    service: &ExportedService,
    existing: &Existing<'_>,
    findings: &mut Vec<Finding>,
) -> Option<Share> {
    let mut refuse = |problem: String| {
        findings.push(finding(
            Severity::Refused,
            3112,
            policy::link_object(link),
            "",
            format!("cluster {} exports {name:?} in a form we refuse: {problem}.", link.cluster),
            "bring that cluster's Isthmus to this version, and see who else writes its \
             ExportedService objects.",
        ));
    };
    if ServiceName::new(&name.namespace, &name.name).is_err() || service.name != *name {
        refuse("its name is no service's".into());
        return None;
    }
    let parts = service.ports.len().max(service.localities.len()).max(service.accounts.len());
    if parts.max(service.subsets.len()) > PARTS_MAX {
        refuse(format!("more than {PARTS_MAX} ports, localities, accounts or subsets"));
        return None;
    }
    let mut ports = BTreeMap::new();
    for port in &service.ports {
        if port.number == 0 || port.protocol == Protocol::Udp || ports.contains_key(&port.number) {
            refuse(format!("port {} is zero, UDP or there twice; it is left out", port.number));
        } else {
            ports.insert(port.number, port.clone());
        }
    }
    let account = service.accounts.first().map_or("", String::as_str);
    let place = |count: &crate::export::LocalityCount| {
        let subsets = count.subsets.iter().map(|(name, ready)| (name.clone(), *ready));
        remote(
            (&link.cluster, &link.network, &link.trust_domain),
            &count.locality,
            count.ready.min(READY_MAX),
            account,
            subsets.collect(),
        )
    };
    let ready = service.localities.iter().filter(|count| count.ready > 0);
    let mut endpoints: Vec<EntryEndpoint> = ready.map(place).collect();
    endpoints.sort();
    Some(Share {
        service: name.clone(),
        cluster: link.cluster.clone(),
        source_uid: source_uid(&link.uid, None),
        created: service.created,
        ports: ports.into_values().collect(),
        endpoints,
        identities: identities(service, &link.trust_domain, &link.cluster, existing),
        kept: false,
    })
}

fn remote(
    (cluster, network, domain): (&ClusterId, &Network, &TrustDomain),
    locality: &Locality,
    weight: u32,
    account: &str,
    subsets: BTreeMap<String, u32>,
) -> EntryEndpoint {
    let mut written = BTreeMap::from([
        (labels::CLUSTER.to_owned(), cluster.to_string()),
        (labels::TLS_MODE.to_owned(), "istio".to_owned()),
        (labels::TRUST_DOMAIN.to_owned(), domain.to_string()),
    ]);
    let count = |(name, ready): (String, u32)| {
        (format!("{}{name}", labels::SUBSET_PREFIX), ready.min(weight).to_string())
    };
    written.extend(subsets.into_iter().map(count));
    EntryEndpoint {
        cluster: cluster.clone(),
        network: network.clone(),
        locality: locality.clone(),
        weight,
        account: account.to_owned(),
        labels: written,
        ports: BTreeSet::new(),
        address: None,
    }
}

/// Who may answer for an export. While it has no copy it names nobody; then those it named last
/// stay, so that its first new copy is trusted at once.
fn identities(
    service: &ExportedService,
    domain: &TrustDomain,
    cluster: &ClusterId,
    existing: &Existing<'_>,
) -> BTreeSet<Identity> {
    if service.accounts.is_empty() {
        let mut kept = existing.identities(&service.name, cluster);
        kept.retain(|identity| identity.domain == *domain);
        return kept;
    }
    let namespace = &service.name.namespace;
    // Through text, so that an account that is no name becomes no identity.
    let identity =
        |account: &String| format!("spiffe://{domain}/ns/{namespace}/sa/{account}").parse();
    service.accounts.iter().filter_map(|account| identity(account).ok()).collect()
}

/// What an unsynced link fed before: each service has an entry of that cluster alone; where somebody
/// deleted that, its copies in the joint entry.
fn kept_shares(link: &Exports, existing: &Existing<'_>) -> Vec<Share> {
    let mut shares = Vec::new();
    for (host, entry) in &existing.by_host {
        let Some(service) = &entry.service else { continue };
        let cluster = cluster_of(service, host);
        let single = cluster.as_ref() == Some(&link.cluster);
        let joint = cluster.is_none()
            && entry.endpoints.iter().any(|copy| copy.cluster == link.cluster)
            && existing.entry(&service.cluster_host(&link.cluster)).is_none();
        if single || joint {
            shares.push(kept_share(link, service, entry));
        }
    }
    shares
}

fn kept_share(link: &Exports, service: &ServiceName, entry: &ServiceEntry) -> Share {
    let theirs = || entry.endpoints.iter().filter(|copy| copy.cluster == link.cluster);
    let single = entry.hosts.first() == Some(&service.cluster_host(&link.cluster));
    let serves = |number| single || theirs().any(|copy| copy.serves(number));
    let domains: BTreeSet<TrustDomain> = theirs().filter_map(EntryEndpoint::trust_domain).collect();
    let ports = entry.ports.iter().filter(|port| serves(port.number)).map(|port| ExportedPort {
        number: port.number,
        name: port.name.clone(),
        protocol: port.protocol,
    });
    let unrestricted = |copy: &EntryEndpoint| {
        let mut copy = EntryEndpoint { ports: BTreeSet::new(), ..copy.clone() };
        copy.labels.remove(labels::PORTS);
        copy
    };
    let named = entry.subject_alt_names.iter();
    Share {
        service: service.clone(),
        cluster: link.cluster.clone(),
        source_uid: source_uid(&link.uid, entry.source_uid.as_ref()),
        created: entry.created,
        ports: ports.collect(),
        endpoints: theirs().map(unrestricted).collect(),
        identities: named.filter(|it| single || domains.contains(&it.domain)).cloned().collect(),
        kept: true,
    }
}
