//! Services of the own cluster.

use super::{Notes, Parsed, created};
use k8s_openapi::api::core::v1::Service as KubeService;
use mesh::inventory::{Service, ServiceKind, ServicePort, TrafficDistribution};
use mesh::name::{Protocol, ServiceName};

/// A Service with its addresses and ports; which of them other clusters can call is decided by
/// `mesh::export`.
pub fn parse(object: &KubeService) -> Parsed<Service> {
    let mut notes = Notes::of("Service", &object.metadata);
    let spec = object.spec.clone().unwrap_or_default();
    let name = match ServiceName::new(&notes.object.namespace, &notes.object.name) {
        Ok(name) => name,
        Err(error) => {
            notes.refuse(
                3010,
                "metadata.name",
                format!("it cannot be part of a host name, and the Service is not used: {error}."),
                "rename the Service.",
            );
            return notes.done(None);
        }
    };
    let external = spec.type_.as_deref() == Some("ExternalName");
    let written = spec.cluster_ip.clone().into_iter().chain(spec.cluster_ips.unwrap_or_default());
    let mut addresses = Vec::new();
    for text in written {
        if let Ok(address) = text.parse()
            && !external
            && !addresses.contains(&address)
        {
            addresses.push(address);
        }
    }
    let kind = if external {
        ServiceKind::ExternalName
    } else if spec.cluster_ip.as_deref() == Some("None") {
        ServiceKind::Headless
    } else {
        ServiceKind::ClusterIp
    };
    let mut ports = Vec::new();
    for (index, port) in spec.ports.iter().flatten().enumerate() {
        let field = format!("spec.ports[{index}]");
        let transport = port.protocol.as_deref().unwrap_or("TCP");
        if !["TCP", "UDP"].contains(&transport) {
            notes.refuse(
                3011,
                &format!("{field}.protocol"),
                format!("{transport} is not carried by the mesh; this port is left out."),
                "offer it over TCP too, if the mesh is to carry it.",
            );
            continue;
        }
        let Some(number) = u16::try_from(port.port).ok().filter(|number| *number != 0) else {
            notes.refuse(
                3011,
                &format!("{field}.port"),
                format!("{} is no port number; this port is left out.", port.port),
                "write a number from 1 to 65535.",
            );
            continue;
        };
        let name = port.name.clone().unwrap_or_default();
        let protocol = Protocol::of_port(transport, port.app_protocol.as_deref(), &name, number);
        ports.push(ServicePort { number, protocol, name });
    }
    ports.sort();
    let annotation = object.metadata.annotations.as_ref().and_then(|all| all.get(DISTRIBUTION));
    let traffic_distribution = match annotation {
        Some(text) => {
            distribution(text, &format!("metadata.annotations.{DISTRIBUTION}"), &mut notes)
        }
        None => spec
            .traffic_distribution
            .as_ref()
            .and_then(|text| distribution(text, "spec.trafficDistribution", &mut notes)),
    };
    let service = Service {
        name,
        kind,
        selector: spec.selector.unwrap_or_default(),
        addresses,
        ports,
        client_ip_affinity: spec.session_affinity.as_deref() == Some("ClientIP"),
        traffic_distribution,
        created: created(&object.metadata),
    };
    notes.done(Some(service))
}

/// Istio's annotation, which wins over the field.
const DISTRIBUTION: &str = "networking.istio.io/traffic-distribution";

fn distribution(text: &str, field: &str, notes: &mut Notes) -> Option<TrafficDistribution> {
    match text {
        "PreferClose" => Some(TrafficDistribution::PreferClose),
        "PreferSameZone" => Some(TrafficDistribution::PreferSameZone),
        "PreferSameNode" => Some(TrafficDistribution::PreferSameNode),
        other => {
            notes.warn(
                3012,
                field,
                format!("{other:?} is unknown; calls go nearest first, as without it."),
                "write PreferClose, PreferSameZone or PreferSameNode, or remove it.",
            );
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parse::check::{object, show};
    use expect_test::{Expect, expect};

    #[track_caller]
    fn check(meta: &str, spec: &str, expected: Expect) {
        let service = format!(
            "{{metadata: {{namespace: shop, {meta}, creationTimestamp: '2026-01-02T03:04:05Z'}}, \
             spec: {{{spec}}}}}"
        );
        expected.assert_eq(&show(&parse(&object(&service))));
    }

    #[test]
    fn a_dual_stack_service_with_ports_of_all_sorts() {
        check(
            "name: hello",
            "selector: {app: hello}, clusterIP: 10.96.0.7, clusterIPs: [10.96.0.7, 'fd00::7'], \
             ports: [{name: web, port: 80, appProtocol: http}, {name: grpc-api, port: 81}, {name: dns, port: 53, protocol: UDP}, \
             {port: 9000}], trafficDistribution: PreferClose, sessionAffinity: ClientIP",
            expect![[r#"
                name: shop/hello
                kind: clusterip
                selector:
                  app: hello
                addresses:
                - "10.96.0.7"
                - fd00::7
                ports:
                - number: 53
                  protocol: udp
                  name: dns
                - number: 80
                  protocol: http
                  name: web
                - number: 81
                  protocol: grpc
                  name: grpc-api
                - number: 9000
                  protocol: auto
                  name: ""
                client_ip_affinity: true
                traffic_distribution: PreferClose
                created: 1767323045
            "#]],
        );
    }

    #[test]
    fn headless_and_external_name_have_no_address() {
        check(
            "name: db",
            "clusterIP: None, clusterIPs: [None], ports: [{port: 5432}]",
            expect![[r#"
                name: shop/db
                kind: headless
                selector: {}
                addresses: []
                ports:
                - number: 5432
                  protocol: auto
                  name: ""
                client_ip_affinity: false
                traffic_distribution: null
                created: 1767323045
            "#]],
        );
        check(
            "name: out",
            "type: ExternalName, externalName: example.com",
            expect![[r#"
            name: shop/out
            kind: externalname
            selector: {}
            addresses: []
            ports: []
            client_ip_affinity: false
            traffic_distribution: null
            created: 1767323045
        "#]],
        );
    }

    #[test]
    fn unknown_distribution_and_sctp_cost_themselves_only() {
        check(
            "name: odd",
            "clusterIP: 10.96.0.8, ports: [{name: s, port: 7, protocol: SCTP}, {name: http, port: 80}], \
             trafficDistribution: PreferMoon",
            expect![[r#"
                name: shop/odd
                kind: clusterip
                selector: {}
                addresses:
                - "10.96.0.8"
                ports:
                - number: 80
                  protocol: http
                  name: http
                client_ip_affinity: false
                traffic_distribution: null
                created: 1767323045
                Refused ISM3011 Service shop/odd spec.ports[0].protocol: SCTP is not carried by the mesh; this port is left out. Fix: offer it over TCP too, if the mesh is to carry it.
                Warning ISM3012 Service shop/odd spec.trafficDistribution: "PreferMoon" is unknown; calls go nearest first, as without it. Fix: write PreferClose, PreferSameZone or PreferSameNode, or remove it.
            "#]],
        );
    }

    #[test]
    fn the_annotation_wins_over_the_field() {
        check(
            "name: near, annotations: {networking.istio.io/traffic-distribution: PreferSameZone}",
            "clusterIP: 10.96.0.9, trafficDistribution: PreferClose",
            expect![[r#"
                name: shop/near
                kind: clusterip
                selector: {}
                addresses:
                - "10.96.0.9"
                ports: []
                client_ip_affinity: false
                traffic_distribution: PreferSameZone
                created: 1767323045
            "#]],
        );
    }
}
