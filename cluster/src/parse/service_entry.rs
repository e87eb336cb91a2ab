//! Istio's ServiceEntry: our own publications, read back whole, and the users' own.

mod owner;
#[cfg(test)]
mod tests;

use super::{Notes, Parsed, Rest, created, is_published, labels, spec};
use crate::api::label;
use k8s_openapi::jiff::Timestamp;
use kube::api::DynamicObject;
use mesh::inventory::labels as key;
use mesh::inventory::{EntryEndpoint, Resting, ServiceEntry, ServicePort};
use mesh::name::{ClusterId, Hostname, Identity, Locality, Network, Protocol, ServiceName};
use owner::Owner;
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// What an entry is read beside: the cluster it stands in.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    pub root_namespace: &'a str,
    /// Of endpoints that do not name theirs.
    pub cluster: &'a ClusterId,
    pub network: &'a Network,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    #[serde(default)]
    hosts: Vec<String>,
    #[serde(default)]
    addresses: Vec<String>,
    #[serde(default)]
    ports: Vec<Port>,
    /// MESH_INTERNAL or MESH_EXTERNAL: what matters here, mutual TLS, is each endpoint's own label.
    #[serde(rename = "location")]
    _location: Option<String>,
    resolution: Option<String>,
    #[serde(default)]
    endpoints: Vec<Endpoint>,
    #[serde(default)]
    subject_alt_names: Vec<String>,
    #[serde(flatten)]
    rest: Rest,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Port {
    #[serde(default)]
    number: u32,
    #[serde(default)]
    protocol: String,
    #[serde(default)]
    name: String,
    target_port: Option<u32>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Endpoint {
    #[serde(default)]
    address: String,
    #[serde(default)]
    network: String,
    #[serde(default)]
    locality: String,
    weight: Option<u32>,
    #[serde(default)]
    service_account: String,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[serde(default)]
    ports: BTreeMap<String, u32>,
}

/// Of an entry of ours that rests: its host and addresses. `None` for all others, and for one of whose
/// date nobody can make sense, which is read like any other.
pub fn resting(object: &DynamicObject) -> Option<Resting> {
    let annotations = object.metadata.annotations.as_ref()?;
    let until: Timestamp = annotations.get(label::RESTS_UNTIL)?.parse().ok()?;
    if !is_published(&object.metadata) {
        return None;
    }
    let mut notes = Notes::of("ServiceEntry", &object.metadata);
    let spec = spec::<Spec>(object, &mut notes)?;
    let host = spec.hosts.first()?.parse().ok()?;
    let addresses = addresses(&spec.addresses, &mut notes);
    Some(Resting { host, addresses, until: until.as_second() })
}

/// An entry that is ours (by label and field manager, and saying what we would say) is read without
/// loss; a user's is checked first for hosts that are not its to name.
pub fn parse(object: &DynamicObject, place: Place<'_>) -> Parsed<ServiceEntry> {
    let mut notes = Notes::of("ServiceEntry", &object.metadata);
    let Some(spec) = spec::<Spec>(object, &mut notes) else { return notes.done(None) };
    let owner = Owner::of(&object.metadata, place.root_namespace, &mut notes);
    notes.unsupported("spec", &spec.rest);
    let resolution = spec.resolution.as_deref().unwrap_or("NONE");
    if resolution != "STATIC" {
        notes.refuse(
            3305,
            "spec.resolution",
            format!("{resolution} is not supported, so calls to its hosts stay outside the mesh."),
            "write STATIC, with the addresses as endpoints.",
        );
        return notes.done(None);
    }
    let hosts = hosts(&spec.hosts, &owner, &mut notes);
    let ports = ports(&spec.ports, &mut notes);
    if hosts.is_empty() || (ports.is_empty() && owner == Owner::User) {
        let (field, what) =
            if hosts.is_empty() { ("spec.hosts", "host") } else { ("spec.ports", "port") };
        notes.refuse(
            3304,
            field,
            format!("it has no usable {what}, and is not used."),
            &format!("name at least one {what}."),
        );
        return notes.done(None);
    }
    let entry = ServiceEntry {
        object: notes.object.clone(),
        hosts,
        addresses: addresses(&spec.addresses, &mut notes),
        ports,
        endpoints: endpoints(&spec.endpoints, place, &mut notes),
        subject_alt_names: identities(&spec.subject_alt_names, &mut notes),
        published: owner != Owner::User,
        source_uid: labels(&object.metadata)
            .remove(label::SOURCE_UID)
            .filter(|_| owner != Owner::User),
        service: owner.service().cloned(),
        created: created(&object.metadata),
    };
    notes.done(Some(entry))
}

fn hosts(texts: &[String], owner: &Owner, notes: &mut Notes) -> Vec<Hostname> {
    let mut hosts = Vec::new();
    for (index, text) in texts.iter().enumerate() {
        let field = format!("spec.hosts[{index}]");
        let host: Hostname = match text.trim_end_matches('.').to_ascii_lowercase().parse() {
            Ok(host) => host,
            Err(error) => {
                notes.refuse(
                    3300,
                    &field,
                    format!("it is left out: {error}."),
                    "write one host in full; wildcards are not supported.",
                );
                continue;
            }
        };
        match owner.refuses(&host, &notes.object.namespace) {
            None if hosts.contains(&host) => (),
            None => hosts.push(host),
            Some((code, problem, fix)) => notes.refuse(code, &field, problem, fix),
        }
    }
    hosts
}

fn addresses(texts: &[String], notes: &mut Notes) -> Vec<IpAddr> {
    let mut addresses = Vec::new();
    for (index, text) in texts.iter().enumerate() {
        let single = text.strip_suffix("/32").or_else(|| text.strip_suffix("/128")).unwrap_or(text);
        match single.parse::<IpAddr>() {
            Ok(address) if !address.is_unspecified() && !address.is_multicast() => {
                if !addresses.contains(&address) {
                    addresses.push(address);
                }
            }
            Ok(_) | Err(_) => notes.refuse(
                3306,
                &format!("spec.addresses[{index}]"),
                format!("{text:?} is not one address of a host; it is left out."),
                "write single addresses; ranges are not supported.",
            ),
        }
    }
    addresses
}

fn ports(ports: &[Port], notes: &mut Notes) -> Vec<ServicePort> {
    let mut read: Vec<ServicePort> = Vec::new();
    for (index, port) in ports.iter().enumerate() {
        let field = format!("spec.ports[{index}]");
        let Some(number) = u16::try_from(port.number).ok().filter(|number| *number != 0) else {
            notes.refuse(
                3307,
                &format!("{field}.number"),
                format!("{} is no port number; this port is left out.", port.number),
                "write a number from 1 to 65535.",
            );
            continue;
        };
        if read.iter().any(|other| other.number == number) {
            notes.refuse(
                3307,
                &format!("{field}.number"),
                format!("{number} is there twice; the first is used."),
                "list each port once.",
            );
            continue;
        }
        if port.target_port.is_some_and(|target| target != port.number) {
            notes.warn(
                3308,
                &format!("{field}.targetPort"),
                "another target port is not supported; endpoints are called at the port's own number.",
                "let the endpoints listen there too.",
            );
        }
        let protocol = match port.protocol.to_ascii_uppercase().as_str() {
            "UDP" => Protocol::Udp,
            "HTTP" => Protocol::Http,
            "HTTP2" => Protocol::Http2,
            "GRPC" | "GRPC-WEB" => Protocol::Grpc,
            "TCP" | "TLS" | "HTTPS" | "MONGO" | "MYSQL" | "REDIS" => Protocol::Tcp,
            "" => Protocol::Auto,
            other => {
                notes.warn(
                    3309,
                    &format!("{field}.protocol"),
                    format!("{other:?} is unknown; it is carried as TCP."),
                    "write HTTP, HTTP2, GRPC, TLS, HTTPS, TCP or UDP.",
                );
                Protocol::Tcp
            }
        };
        read.push(ServicePort { number, protocol, name: port.name.clone() });
    }
    read.sort();
    read
}

fn endpoints(endpoints: &[Endpoint], place: Place<'_>, notes: &mut Notes) -> Vec<EntryEndpoint> {
    let mut read = Vec::new();
    for (index, endpoint) in endpoints.iter().enumerate() {
        let field = format!("spec.endpoints[{index}]");
        let address = match endpoint.address.as_str() {
            "" => None,
            text => match text.parse::<IpAddr>() {
                Ok(address) => Some(address),
                Err(_) => {
                    notes.refuse(
                        3310,
                        &format!("{field}.address"),
                        format!("{text:?} is no address; this endpoint is left out."),
                        "write an address; names and Unix sockets are not supported.",
                    );
                    continue;
                }
            },
        };
        let network = part(&endpoint.network, place.network, &format!("{field}.network"), notes);
        let label = endpoint.labels.get(key::CLUSTER).map(String::as_str).unwrap_or_default();
        let cluster =
            part(label, place.cluster, &format!("{field}.labels.{}", key::CLUSTER), notes);
        let served = served(endpoint, &field, notes);
        let (Some(network), Some(cluster), Some(served)) = (network, cluster, served) else {
            continue;
        };
        if !endpoint.ports.is_empty() {
            notes.warn(
                3312,
                &format!("{field}.ports"),
                "ports of single endpoints are not supported; it is called at the port's own number.",
                "let it listen there too.",
            );
        }
        read.push(EntryEndpoint {
            cluster,
            network,
            locality: Locality::from(endpoint.locality.clone()),
            weight: endpoint.weight.unwrap_or(1),
            account: endpoint.service_account.clone(),
            labels: endpoint.labels.clone(),
            ports: served,
            address,
        });
    }
    read.sort();
    read
}

/// A name that may be left out; `None` where it is written, and none.
fn part<T: Clone + std::str::FromStr<Err = mesh::name::NotAName>>(
    text: &str,
    default: &T,
    field: &str,
    notes: &mut Notes,
) -> Option<T> {
    if text.is_empty() {
        return Some(default.clone());
    }
    match text.parse() {
        Ok(name) => Some(name),
        Err(error) => {
            notes.refuse(
                3311,
                field,
                format!("this endpoint is left out: {error}."),
                "correct it.",
            );
            None
        }
    }
}

/// Label `isthmus.dev/ports`: `80-443`; empty for all. `None` where the label cannot be read: such an
/// endpoint must not count for all ports.
fn served(endpoint: &Endpoint, field: &str, notes: &mut Notes) -> Option<BTreeSet<u16>> {
    let Some(text) = endpoint.labels.get(key::PORTS) else { return Some(BTreeSet::new()) };
    let number = |text: &str| text.parse::<u16>().ok().filter(|port| *port != 0);
    let ports: Option<BTreeSet<u16>> = text.split('-').map(number).collect();
    if ports.is_none() {
        notes.refuse(
            3313,
            &format!("{field}.labels.{}", key::PORTS),
            format!("{text:?} is no list of ports; this endpoint is left out."),
            "write port numbers joined by '-'.",
        );
    }
    ports
}

fn identities(texts: &[String], notes: &mut Notes) -> Vec<Identity> {
    let mut identities = Vec::new();
    for (index, text) in texts.iter().enumerate() {
        match text.parse() {
            Ok(identity) => identities.push(identity),
            Err(error) => notes.refuse(
                3314,
                &format!("spec.subjectAltNames[{index}]"),
                format!("nobody is let in by it: {error}."),
                "write SPIFFE identities of workloads.",
            ),
        }
    }
    identities
}

/// Ours by its labels, with the service it stands for.
fn labelled_service(meta: &kube::api::ObjectMeta) -> Option<ServiceName> {
    let labels = labels(meta);
    ServiceName::new(labels.get(label::SERVICE_NAMESPACE)?, labels.get(label::SERVICE)?).ok()
}
