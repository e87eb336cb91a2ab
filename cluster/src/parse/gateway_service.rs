//! The Service in front of an east-west gateway: where other clusters find it.

use super::{Notes, Parsed, speaks_for_cluster};
use crate::api::label;
use k8s_openapi::api::core::v1::Service;
use mesh::inventory::GatewayAddress;
use mesh::name::Network;
use serde::Serialize;

/// A gateway's Service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Door {
    /// The network it leads into, where it says so.
    pub network: Option<Network>,
    /// Sorted. Empty while no address has been given to it.
    pub addresses: Vec<GatewayAddress>,
}

/// Label and value that tell a gateway's Service (Istio's own).
pub const LABEL: (&str, &str) = ("istio", "eastwestgateway");

/// Port of a gateway where nothing else is said.
pub const PORT: u16 = 15443;

/// `None` for Services that are no east-west gateway's.
pub fn parse(object: &Service, root_namespace: &str) -> Parsed<Door> {
    let mut notes = Notes::of("Service", &object.metadata);
    let labels = object.metadata.labels.clone().unwrap_or_default();
    if labels.get(LABEL.0).is_none_or(|value| value != LABEL.1) {
        return Parsed::nothing();
    }
    if !speaks_for_cluster(&notes.object.namespace, root_namespace) {
        notes.refuse(
            3030,
            "metadata.labels.istio",
            format!("only Services in {root_namespace} and istio-system are announced as this cluster's gateway."),
            "remove the label, or move the gateway there.",
        );
        return notes.done(None);
    }
    let network = labels.get(label::NETWORK).and_then(|text| match text.parse() {
        Ok(network) => Some(network),
        Err(error) => {
            notes.warn(
                3031,
                &format!("metadata.labels.{}", label::NETWORK),
                format!("it is taken for this cluster's own network: {error}."),
                "correct the label.",
            );
            None
        }
    });
    let Some(port) = port(object, &labels, &mut notes) else { return notes.done(None) };
    let spec = object.spec.clone().unwrap_or_default();
    let ingress = object.status.clone().and_then(|status| status.load_balancer?.ingress);
    // An address wins over the name of the same ingress: nobody has to resolve it.
    let given = ingress.into_iter().flatten().filter_map(|point| point.ip.or(point.hostname));
    let mut addresses: Vec<GatewayAddress> = given
        .chain(spec.external_ips.into_iter().flatten())
        .filter(|host| !host.is_empty())
        .map(|host| GatewayAddress { host: host.trim_end_matches('.').to_ascii_lowercase(), port })
        .collect();
    addresses.sort();
    addresses.dedup();
    if addresses.is_empty() {
        notes.warn(
            3032,
            "status.loadBalancer.ingress",
            "it has no address, so other clusters cannot reach this one.",
            "wait for the load balancer, see why it gives none, or set spec.externalIPs.",
        );
    }
    notes.done(Some(Door { network, addresses }))
}

type Labels = std::collections::BTreeMap<String, String>;

/// The port of label `networking.istio.io/gatewayPort`, else the one named `tls`, else 15443.
fn port(object: &Service, labels: &Labels, notes: &mut Notes) -> Option<u16> {
    const GATEWAY_PORT: &str = "networking.istio.io/gatewayPort";
    let ports = object.spec.as_ref().and_then(|spec| spec.ports.clone()).unwrap_or_default();
    let number = |port: i32| u16::try_from(port).ok().filter(|port| *port != 0);
    let found = if let Some(text) = labels.get(GATEWAY_PORT) {
        let wanted = text.parse::<i32>().ok();
        ports.iter().find(|port| Some(port.port) == wanted)
    } else {
        let named = ports.iter().find(|port| port.name.as_deref() == Some("tls"));
        named.or_else(|| ports.iter().find(|port| port.port == i32::from(PORT)))
    };
    let port = found.and_then(|port| number(port.port));
    if port.is_none() {
        notes.refuse(
            3033,
            "spec.ports",
            format!("no port is named tls, is {PORT}, or is the one of label {GATEWAY_PORT}; this gateway is not announced."),
            "add port 15443 named tls.",
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
    fn check(namespace: &str, labels: &str, rest: &str, expected: Expect) {
        let service = format!(
            "{{metadata: {{namespace: {namespace}, name: gw, labels: {{istio: eastwestgateway{labels}}}}}, {rest}}}"
        );
        expected.assert_eq(&show(&parse(&object(&service), "isthmus-system")));
    }

    #[test]
    fn addresses_of_the_load_balancer_and_external_ones() {
        check(
            "isthmus-system",
            ", topology.istio.io/network: net-east",
            "spec: {ports: [{name: status, port: 15021}, {name: tls, port: 15443}], externalIPs: \
             [198.51.100.1]}, status: {loadBalancer: {ingress: [{ip: 203.0.113.8}, {ip: 203.0.113.7, \
             hostname: x.example}, {hostname: LB.example.com.}]}}",
            expect![[r#"
                network: net-east
                addresses:
                - host: "198.51.100.1"
                  port: 15443
                - host: "203.0.113.7"
                  port: 15443
                - host: "203.0.113.8"
                  port: 15443
                - host: lb.example.com
                  port: 15443
            "#]],
        );
    }

    #[test]
    fn the_label_says_which_port() {
        check(
            "istio-system",
            ", networking.istio.io/gatewayPort: '443'",
            "spec: {ports: [{name: tls, port: 15443}, {name: other, port: 443}], externalIPs: [192.0.2.1]}",
            expect![[r#"
                network: null
                addresses:
                - host: "192.0.2.1"
                  port: 443
            "#]],
        );
    }

    #[test]
    fn no_port_no_address_and_a_stranger() {
        check(
            "isthmus-system",
            "",
            "spec: {ports: [{name: web, port: 80}]}",
            expect![[r#"
            nothing
            Refused ISM3033 Service isthmus-system/gw spec.ports: no port is named tls, is 15443, or is the one of label networking.istio.io/gatewayPort; this gateway is not announced. Fix: add port 15443 named tls.
        "#]],
        );
        check(
            "isthmus-system",
            "",
            "spec: {ports: [{port: 15443}]}",
            expect![[r#"
            network: null
            addresses: []
            Warning ISM3032 Service isthmus-system/gw status.loadBalancer.ingress: it has no address, so other clusters cannot reach this one. Fix: wait for the load balancer, see why it gives none, or set spec.externalIPs.
        "#]],
        );
        check(
            "shop",
            "",
            "spec: {ports: [{port: 15443}]}",
            expect![[r#"
            nothing
            Refused ISM3030 Service shop/gw metadata.labels.istio: only Services in isthmus-system and istio-system are announced as this cluster's gateway. Fix: remove the label, or move the gateway there.
        "#]],
        );
    }

    #[test]
    fn other_services_are_none_of_it() {
        let service: Service = object("{metadata: {namespace: shop, name: hello}, spec: {}}");
        assert_eq!(parse(&service, "isthmus-system"), Parsed::nothing());
    }
}
