//! EndpointSlices: the ready addresses of a Service, with the names of the pods behind them.

use super::{Notes, Parsed};
use k8s_openapi::api::discovery::v1::{EndpointPort, EndpointSlice};
use mesh::name::ServiceName;
use serde::Serialize;
use std::net::IpAddr;

/// One slice, trimmed to what can be called.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Slice {
    pub service: ServiceName,
    pub ports: Vec<SlicePort>,
    pub endpoints: Vec<SliceEndpoint>,
}

/// A TCP port of all endpoints of a slice.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SlicePort {
    /// The Service port's name.
    pub name: String,
    /// `None` for all ports: as the Service's own number.
    pub number: Option<u16>,
}

/// A ready address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SliceEndpoint {
    pub address: IpAddr,
    pub pod: Option<TargetPod>,
    pub node: Option<String>,
    /// Empty where its pod's subdomain is not this Service.
    pub hostname: String,
}

/// The pod behind an address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TargetPod {
    pub name: String,
    /// Empty where the slice does not say.
    pub uid: String,
}

/// The label by which a slice belongs to a Service. MCS slices carry another one.
pub const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// `None` for slices that belong to no Service.
pub fn parse(slice: &EndpointSlice) -> Parsed<Slice> {
    let mut notes = Notes::of("EndpointSlice", &slice.metadata);
    let labels = slice.metadata.labels.as_ref();
    let Some(service) = labels.and_then(|labels| labels.get(SERVICE_NAME)) else {
        return Parsed::nothing();
    };
    let Ok(service) = ServiceName::new(&notes.object.namespace, service) else {
        notes.refuse(
            3040,
            &format!("metadata.labels.{SERVICE_NAME}"),
            format!("{service:?} is no Service's name; the slice is not used."),
            "correct the label.",
        );
        return notes.done(None);
    };
    if slice.address_type == "FQDN" {
        notes.refuse(
            3041,
            "addressType",
            "FQDN endpoints are not called by the mesh; the slice is not used.",
            "list addresses, or write a ServiceEntry.",
        );
        return notes.done(None);
    }
    let ports = slice.ports.iter().flatten().filter_map(port).collect();
    let mut endpoints = Vec::new();
    for (index, endpoint) in slice.endpoints.iter().flatten().enumerate() {
        let conditions = endpoint.conditions.as_ref();
        // Unknown is ready (the API's own rule). What is going away is not called, also where its
        // Service publishes addresses that are not ready.
        let ready = conditions.and_then(|conditions| conditions.ready).unwrap_or(true);
        let terminating = conditions.and_then(|conditions| conditions.terminating).unwrap_or(false);
        if !ready || terminating {
            continue;
        }
        // "Only the first is used" (EndpointSlice's own documentation of kube-proxy).
        let text = endpoint.addresses.first().map(String::as_str).unwrap_or_default();
        let Ok(address) = text.parse::<IpAddr>() else {
            notes.refuse(
                3042,
                &format!("endpoints[{index}].addresses[0]"),
                format!("{text:?} is no address; this endpoint is left out."),
                "correct it.",
            );
            continue;
        };
        let target = endpoint.target_ref.as_ref();
        let pod =
            target.filter(|target| target.kind.as_deref() == Some("Pod")).map(|target| TargetPod {
                name: target.name.clone().unwrap_or_default(),
                uid: target.uid.clone().unwrap_or_default(),
            });
        let (node, hostname) = (endpoint.node_name.clone(), endpoint.hostname.clone());
        let hostname = hostname.unwrap_or_default();
        endpoints.push(SliceEndpoint { address, pod, node, hostname });
    }
    notes.done(Some(Slice { service, ports, endpoints }))
}

fn port(port: &EndpointPort) -> Option<SlicePort> {
    if port.protocol.as_deref().unwrap_or("TCP") != "TCP" {
        return None;
    }
    let number = match port.port {
        None => None,
        Some(number) => Some(u16::try_from(number).ok().filter(|number| *number != 0)?),
    };
    Some(SlicePort { name: port.name.clone().unwrap_or_default(), number })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parse::check::{object, show};
    use expect_test::{Expect, expect};

    #[track_caller]
    fn check(labels: &str, rest: &str, expected: Expect) {
        let slice = format!(
            "{{metadata: {{namespace: shop, name: hello-x, labels: {{{labels}}}}}, {rest}}}"
        );
        expected.assert_eq(&show(&parse(&object(&slice))));
    }

    #[test]
    fn ready_endpoints_with_their_pods() {
        check(
            "kubernetes.io/service-name: hello",
            "addressType: IPv4, ports: [{name: http, port: 8080}, {name: dns, port: 53, protocol: \
             UDP}], endpoints: [{addresses: [10.0.0.1], conditions: {ready: true}, targetRef: {kind: \
             Pod, name: hello-1, uid: u1}, nodeName: n1, hostname: hello-1}, {addresses: \
             [10.0.0.2], conditions: {ready: false}}, {addresses: [10.0.0.3], \
             conditions: {ready: true, terminating: true}}, {addresses: [10.0.0.4]}]",
            expect![[r#"
                service: shop/hello
                ports:
                - name: http
                  number: 8080
                endpoints:
                - address: "10.0.0.1"
                  pod:
                    name: hello-1
                    uid: u1
                  node: n1
                  hostname: hello-1
                - address: "10.0.0.4"
                  pod: null
                  node: null
                  hostname: ""
            "#]],
        );
    }

    #[test]
    fn ipv6_all_ports() {
        check(
            "kubernetes.io/service-name: hello",
            "addressType: IPv6, ports: [{name: ''}], endpoints: [{addresses: ['fd00::1']}]",
            expect![[r#"
                service: shop/hello
                ports:
                - name: ""
                  number: null
                endpoints:
                - address: fd00::1
                  pod: null
                  node: null
                  hostname: ""
            "#]],
        );
    }

    #[test]
    fn bad_ones_cost_themselves_only() {
        check(
            "kubernetes.io/service-name: hello",
            "addressType: IPv4, endpoints: [{addresses: [nonsense]}, {addresses: [10.0.0.9]}]",
            expect![[r#"
                service: shop/hello
                ports: []
                endpoints:
                - address: "10.0.0.9"
                  pod: null
                  node: null
                  hostname: ""
                Refused ISM3042 EndpointSlice shop/hello-x endpoints[0].addresses[0]: "nonsense" is no address; this endpoint is left out. Fix: correct it.
            "#]],
        );
        check(
            "kubernetes.io/service-name: hello",
            "addressType: FQDN, endpoints: []",
            expect![[r#"
                nothing
                Refused ISM3041 EndpointSlice shop/hello-x addressType: FQDN endpoints are not called by the mesh; the slice is not used. Fix: list addresses, or write a ServiceEntry.
            "#]],
        );
        check(
            "multicluster.kubernetes.io/service-name: hello",
            "addressType: IPv4, endpoints: []",
            expect![[r#"
                nothing
            "#]],
        );
    }
}
