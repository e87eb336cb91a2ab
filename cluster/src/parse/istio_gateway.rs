//! Istio's Gateway: which hosts the east-west gateway opens (`AUTO_PASSTHROUGH` servers).

use super::{Notes, Parsed, gateway_service, speaks_for_cluster, spec};
use kube::api::DynamicObject;
use mesh::inventory::PassthroughServer;
use serde::Deserialize;
use std::collections::BTreeMap;

#[derive(Deserialize)]
struct Spec {
    #[serde(default)]
    selector: BTreeMap<String, String>,
    #[serde(default)]
    servers: Vec<Server>,
}

#[derive(Deserialize)]
struct Server {
    port: Option<Port>,
    #[serde(default)]
    hosts: Vec<String>,
    tls: Option<Tls>,
}

#[derive(Deserialize)]
struct Port {
    #[serde(default)]
    number: u32,
}

#[derive(Deserialize)]
struct Tls {
    #[serde(default)]
    mode: String,
}

/// `None` for Gateways that select another gateway than the east-west one.
pub fn parse(object: &DynamicObject, root_namespace: &str) -> Parsed<Vec<PassthroughServer>> {
    let mut notes = Notes::of("Gateway.networking.istio.io", &object.metadata);
    let Some(spec) = spec::<Spec>(object, &mut notes) else { return notes.done(None) };
    if spec.selector.get(gateway_service::LABEL.0).is_none_or(|app| app != gateway_service::LABEL.1)
    {
        return Parsed::nothing();
    }
    // Else anyone with a namespace could open everybody's services to the other clusters.
    if !speaks_for_cluster(&notes.object.namespace, root_namespace) {
        notes.refuse(
            3050,
            "metadata.namespace",
            format!(
                "only Gateways in {root_namespace} and istio-system open the east-west gateway."
            ),
            "ask the mesh's operator to write it there.",
        );
        return notes.done(None);
    }
    let mut servers = Vec::new();
    for (index, server) in spec.servers.into_iter().enumerate() {
        let field = format!("spec.servers[{index}]");
        let mode = server.tls.map(|tls| tls.mode).unwrap_or_default();
        if mode != "AUTO_PASSTHROUGH" {
            notes.refuse(
                3051,
                &format!("{field}.tls.mode"),
                format!("{mode:?} is not what an east-west gateway does; this server is not used."),
                "write AUTO_PASSTHROUGH, or select another gateway.",
            );
            continue;
        }
        let number = server.port.map_or(0, |port| port.number);
        let Some(port) = u16::try_from(number).ok().filter(|port| *port != 0) else {
            notes.refuse(
                3052,
                &format!("{field}.port.number"),
                format!("{number} is no port number; this server is not used."),
                "write 15443.",
            );
            continue;
        };
        if server.hosts.is_empty() {
            notes.refuse(
                3053,
                &format!("{field}.hosts"),
                "it names no host, so it opens none.",
                "name the hosts to open, such as *.global and *.local.",
            );
            continue;
        }
        servers.push(PassthroughServer { object: notes.object.clone(), port, hosts: server.hosts });
    }
    notes.done(Some(servers))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parse::check::{object, show};
    use expect_test::{Expect, expect};

    #[track_caller]
    fn check(namespace: &str, spec: &str, expected: Expect) {
        let gateway = format!(
            "{{apiVersion: networking.istio.io/v1, kind: Gateway, metadata: {{namespace: {namespace}, \
             name: cross-network}}, spec: {spec}}}"
        );
        expected.assert_eq(&show(&parse(&object(&gateway), "isthmus-system")));
    }

    #[test]
    fn istios_cross_network_gateway() {
        check(
            "istio-system",
            "{selector: {istio: eastwestgateway}, servers: [{port: {number: 15443, name: tls, protocol: \
             TLS}, tls: {mode: AUTO_PASSTHROUGH}, hosts: ['*.local', '*.global']}]}",
            expect![[r#"
                - object: Gateway.networking.istio.io istio-system/cross-network
                  port: 15443
                  hosts:
                  - "*.local"
                  - "*.global"
            "#]],
        );
    }

    #[test]
    fn bad_servers_cost_themselves_only() {
        check(
            "isthmus-system",
            "{selector: {istio: eastwestgateway}, servers: [{port: {number: 443}, tls: {mode: SIMPLE}, \
             hosts: ['*']}, {port: {number: 70000}, tls: {mode: AUTO_PASSTHROUGH}, hosts: ['*']}, {port: \
             {number: 15443}, tls: {mode: AUTO_PASSTHROUGH}}, {port: {number: 15443}, tls: {mode: \
             AUTO_PASSTHROUGH}, hosts: ['*.global']}]}",
            expect![[r#"
                - object: Gateway.networking.istio.io isthmus-system/cross-network
                  port: 15443
                  hosts:
                  - "*.global"
                Refused ISM3051 Gateway.networking.istio.io isthmus-system/cross-network spec.servers[0].tls.mode: "SIMPLE" is not what an east-west gateway does; this server is not used. Fix: write AUTO_PASSTHROUGH, or select another gateway.
                Refused ISM3052 Gateway.networking.istio.io isthmus-system/cross-network spec.servers[1].port.number: 70000 is no port number; this server is not used. Fix: write 15443.
                Refused ISM3053 Gateway.networking.istio.io isthmus-system/cross-network spec.servers[2].hosts: it names no host, so it opens none. Fix: name the hosts to open, such as *.global and *.local.
            "#]],
        );
    }

    #[test]
    fn strangers_and_nonsense() {
        check(
            "shop",
            "{selector: {istio: eastwestgateway}, servers: []}",
            expect![[r#"
            nothing
            Refused ISM3050 Gateway.networking.istio.io shop/cross-network metadata.namespace: only Gateways in isthmus-system and istio-system open the east-west gateway. Fix: ask the mesh's operator to write it there.
        "#]],
        );
        check(
            "shop",
            "{selector: {istio: ingressgateway}, servers: []}",
            expect![[r#"
            nothing
        "#]],
        );
        check(
            "isthmus-system",
            "{servers: seven}",
            expect![[r#"
            nothing
            Refused ISM3001 Gateway.networking.istio.io isthmus-system/cross-network spec: it cannot be read and is not used: invalid type: string "seven", expected a sequence. Fix: write it as its CRD says; kubectl explain shows the fields.
        "#]],
        );
    }
}
