//! The Gateway API's Gateway of class `istio-remote`: the doors of another network.

use super::{Notes, Parsed, gateway_service, is_published, labels, speaks_for_cluster, spec};
use crate::api::label;
use kube::api::DynamicObject;
use mesh::inventory::labels::TRUST_DOMAIN;
use mesh::inventory::{GatewayAddress, RemoteGateway};
use mesh::name::Hostname;
use serde::Deserialize;
use std::net::IpAddr;

/// The class of gateways that run elsewhere (Istio's name).
pub const CLASS: &str = "istio-remote";

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    #[serde(default)]
    gateway_class_name: String,
    #[serde(default)]
    addresses: Vec<Address>,
    #[serde(default)]
    listeners: Vec<Listener>,
}

#[derive(Deserialize)]
struct Address {
    #[serde(default)]
    value: String,
}

#[derive(Deserialize)]
struct Listener {
    #[serde(default)]
    port: u32,
    #[serde(default)]
    protocol: String,
}

/// `None` for other classes.
pub fn parse(object: &DynamicObject, root_namespace: &str) -> Parsed<RemoteGateway> {
    let mut notes = Notes::of("Gateway", &object.metadata);
    let Some(spec) = spec::<Spec>(object, &mut notes) else { return notes.done(None) };
    if spec.gateway_class_name != CLASS {
        return Parsed::nothing();
    }
    // Else anyone with a namespace could draw all traffic to another network to themselves.
    if !speaks_for_cluster(&notes.object.namespace, root_namespace) {
        notes.refuse(
            3060,
            "metadata.namespace",
            format!("only Gateways in {root_namespace} and istio-system say how another network is reached."),
            "ask the mesh's operator to write it there.",
        );
        return notes.done(None);
    }
    let labels = labels(&object.metadata);
    let network = match labels.get(label::NETWORK).map(|text| text.parse()) {
        Some(Ok(network)) => network,
        said => {
            let why = match said {
                Some(Err(error)) => format!("{error}"),
                Some(Ok(_)) | None => "the label is missing".into(),
            };
            notes.refuse(
                3061,
                &format!("metadata.labels.{}", label::NETWORK),
                format!("it does not say which network it leads to, and is not used: {why}."),
                "label it with the network's name.",
            );
            return notes.done(None);
        }
    };
    let cluster = labels.get(label::CLUSTER).and_then(|text| match text.parse() {
        Ok(cluster) => Some(cluster),
        Err(error) => {
            notes.warn(
                3062,
                &format!("metadata.labels.{}", label::CLUSTER),
                format!("it is taken for a door of all clusters of its network: {error}."),
                "correct the label.",
            );
            None
        }
    });
    let Some(port) = port(&spec.listeners, &mut notes) else { return notes.done(None) };
    let mut addresses = Vec::new();
    for (index, address) in spec.addresses.iter().enumerate() {
        let host = address.value.trim_end_matches('.').to_ascii_lowercase();
        if host.parse::<IpAddr>().is_ok() || host.parse::<Hostname>().is_ok() {
            addresses.push(GatewayAddress { host, port });
        } else {
            notes.refuse(
                3063,
                &format!("spec.addresses[{index}].value"),
                format!("{:?} is neither an address nor a name; it is left out.", address.value),
                "correct it.",
            );
        }
    }
    addresses.sort();
    addresses.dedup();
    if addresses.is_empty() {
        notes.warn(
            3064,
            "spec.addresses",
            "it has no address, so its network cannot be reached through it.",
            "add the addresses of that network's gateway.",
        );
    }
    let annotations = object.metadata.annotations.as_ref();
    let trust_domain = annotations.and_then(|all| all.get(TRUST_DOMAIN)).and_then(|text| {
        let parsed = text.parse();
        if let Err(error) = &parsed {
            notes.warn(
                3065,
                &format!("metadata.annotations.{TRUST_DOMAIN}"),
                format!(
                    "its clients are let in only where a service names their trust domain: {error}."
                ),
                "correct the annotation.",
            );
        }
        parsed.ok()
    });
    let published = is_published(&object.metadata) && notes.object.namespace == root_namespace;
    let source_uid = labels.get(label::SOURCE_UID).filter(|_| published).cloned();
    let object = notes.object.clone();
    notes.done(Some(RemoteGateway {
        object,
        network,
        cluster,
        addresses,
        trust_domain,
        source_uid,
        published,
    }))
}

/// The port of the first TLS listener; 15443 where there is no listener at all.
fn port(listeners: &[Listener], notes: &mut Notes) -> Option<u16> {
    if listeners.is_empty() {
        return Some(gateway_service::PORT);
    }
    let tls = listeners.iter().find(|listener| listener.protocol == "TLS");
    let port = tls.and_then(|listener| u16::try_from(listener.port).ok()).filter(|port| *port != 0);
    if port.is_none() {
        notes.refuse(
            3066,
            "spec.listeners",
            "none is of protocol TLS with a port, so there is no way in; the Gateway is not used.",
            "add a listener with port 15443, protocol TLS and tls.mode Passthrough.",
        );
    }
    port
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parse::check::{object, show};
    use expect_test::{Expect, expect};

    #[track_caller]
    fn check(namespace: &str, meta: &str, spec: &str, expected: Expect) {
        let gateway = format!(
            "{{apiVersion: gateway.networking.k8s.io/v1, kind: Gateway, metadata: {{namespace: \
             {namespace}, name: isthmus-west, {meta}}}, spec: {{{spec}}}}}"
        );
        expected.assert_eq(&show(&parse(&object(&gateway), "isthmus-system")));
    }

    const OURS: &str = "labels: {topology.istio.io/network: net-west, topology.istio.io/cluster: west, \
        isthmus.dev/source-uid: u-w, app.kubernetes.io/managed-by: isthmus-federation}, annotations: {isthmus.dev/trust-domain: \
        west.mesh}, managedFields: [{manager: isthmus-federation, operation: Apply}]";

    #[test]
    fn a_published_gateway() {
        check(
            "isthmus-system",
            OURS,
            "gatewayClassName: istio-remote, addresses: [{type: IPAddress, value: 203.0.113.8}, {type: \
             IPAddress, value: 203.0.113.7}, {type: Hostname, value: lb.example.com}], listeners: \
             [{name: tls, port: 15444, protocol: TLS}]",
            expect![[r#"
                object: Gateway isthmus-system/isthmus-west
                network: net-west
                cluster: west
                addresses:
                - host: "203.0.113.7"
                  port: 15444
                - host: "203.0.113.8"
                  port: 15444
                - host: lb.example.com
                  port: 15444
                trust_domain: west.mesh
                source_uid: u-w
                published: true
            "#]],
        );
    }

    #[test]
    fn a_users_gateway_with_mistakes() {
        check(
            "istio-system",
            "labels: {topology.istio.io/network: net-x, topology.istio.io/cluster: No_Name}",
            "gatewayClassName: istio-remote, addresses: [{value: 'not a host'}]",
            expect![[r#"
                object: Gateway istio-system/isthmus-west
                network: net-x
                cluster: null
                addresses: []
                trust_domain: null
                source_uid: null
                published: false
                Warning ISM3062 Gateway istio-system/isthmus-west metadata.labels.topology.istio.io/cluster: it is taken for a door of all clusters of its network: a cluster id is an RFC 1123 label; "No_Name" is not: only a-z, 0-9 and '-' are allowed. Fix: correct the label.
                Refused ISM3063 Gateway istio-system/isthmus-west spec.addresses[0].value: "not a host" is neither an address nor a name; it is left out. Fix: correct it.
                Warning ISM3064 Gateway istio-system/isthmus-west spec.addresses: it has no address, so its network cannot be reached through it. Fix: add the addresses of that network's gateway.
            "#]],
        );
        check(
            "istio-system",
            "labels: {}",
            "gatewayClassName: istio-remote",
            expect![[r#"
            nothing
            Refused ISM3061 Gateway istio-system/isthmus-west metadata.labels.topology.istio.io/network: it does not say which network it leads to, and is not used: the label is missing. Fix: label it with the network's name.
        "#]],
        );
        check(
            "istio-system",
            "labels: {topology.istio.io/network: net-x}",
            "gatewayClassName: istio-remote, listeners: [{port: 80, protocol: HTTP}]",
            expect![[r#"
                nothing
                Refused ISM3066 Gateway istio-system/isthmus-west spec.listeners: none is of protocol TLS with a port, so there is no way in; the Gateway is not used. Fix: add a listener with port 15443, protocol TLS and tls.mode Passthrough.
            "#]],
        );
    }

    #[test]
    fn strangers_and_other_classes() {
        check(
            "shop",
            OURS,
            "gatewayClassName: istio-remote",
            expect![[r#"
            nothing
            Refused ISM3060 Gateway shop/isthmus-west metadata.namespace: only Gateways in isthmus-system and istio-system say how another network is reached. Fix: ask the mesh's operator to write it there.
        "#]],
        );
        check(
            "shop",
            OURS,
            "gatewayClassName: nginx",
            expect![[r#"
            nothing
        "#]],
        );
    }
}
