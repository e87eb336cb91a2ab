//! Services: what is filled in, and what is refused. Addresses are handed out in `allocate`.

use super::Policy;
use crate::names;
use crate::object::{Object, items, text};
use crate::refusal::Cause;
use serde_json::{Value, json};
use std::net::IpAddr;

const TYPES: [&str; 4] = ["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
const PROTOCOLS: [&str; 3] = ["SCTP", "TCP", "UDP"];

fn default(value: &mut Value, field: &str, standard: Value) {
    if value[field].is_null() || value[field] == "" {
        value[field] = standard;
    }
}

pub(super) fn defaults(object: &mut Object) {
    let spec = &mut object["spec"];
    if !spec.is_object() {
        *spec = json!({});
    }
    default(spec, "sessionAffinity", json!("None"));
    default(spec, "type", json!("ClusterIP"));
    let kind = spec["type"].as_str().unwrap_or_default().to_owned();
    if kind != "ExternalName" {
        default(spec, "internalTrafficPolicy", json!("Cluster"));
    }
    if ["NodePort", "LoadBalancer"].contains(&&*kind) {
        default(spec, "externalTrafficPolicy", json!("Cluster"));
    }
    if kind == "LoadBalancer" {
        default(spec, "allocateLoadBalancerNodePorts", json!(true));
    }
    for port in spec["ports"].as_array_mut().into_iter().flatten() {
        default(port, "protocol", json!("TCP"));
        let target = &port["targetPort"];
        if target.is_null() || *target == 0 || *target == "" {
            port["targetPort"] = port["port"].clone();
        }
    }
    default(&mut object["status"], "loadBalancer", json!({}));
    let many = items(object, &["status", "loadBalancer", "ingress"]).len();
    for index in 0..many {
        let ingress = &mut object["status"]["loadBalancer"]["ingress"][index];
        if !text(ingress, &["ip"]).is_empty() {
            default(ingress, "ipMode", json!("VIP"));
        }
    }
}

pub(super) fn validate(new: &Object, old: Option<&Object>, _: Policy) -> Vec<Cause> {
    let mut causes = vec![];
    let spec = &new["spec"];
    let kind = text(spec, &["type"]);
    if !TYPES.contains(&kind) {
        causes.push(Cause::unsupported("spec.type", &spec["type"], &TYPES));
    }
    let ports = items(spec, &["ports"]);
    let address = text(spec, &["clusterIP"]);
    if ports.is_empty() && kind != "ExternalName" && address != "None" {
        causes.push(Cause::required("spec.ports", ""));
    }
    if kind == "ExternalName" {
        judge_external(spec, &mut causes);
    }
    if kind == "LoadBalancer" && address == "None" {
        let why = "may not be set to 'None' for LoadBalancer services";
        causes.push(Cause::invalid("spec.clusterIPs[0]", &json!(address), why));
    }
    judge_ports(ports, &mut causes);
    causes.extend(names::labels("spec.selector", spec.get("selector")));
    let affinities = ["ClientIP", "None"];
    if !affinities.contains(&text(spec, &["sessionAffinity"])) {
        let value = &spec["sessionAffinity"];
        causes.push(Cause::unsupported("spec.sessionAffinity", value, &affinities));
    }
    if !address.is_empty() && address != "None" && address.parse::<IpAddr>().is_err() {
        let why = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
        causes.push(Cause::invalid("spec.clusterIPs[0]", &json!(address), why));
    }
    for (index, address) in items(spec, &["externalIPs"]).iter().enumerate() {
        let parsed = address.as_str().unwrap_or_default().parse::<IpAddr>();
        let place = format!("spec.externalIPs[{index}]");
        match parsed {
            Err(_) => {
                let why = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
                causes.push(Cause::invalid(place, address, why));
            }
            Ok(ip) if ip.is_loopback() => {
                let why = "may not be in the loopback range (127.0.0.0/8, ::1/128)";
                causes.push(Cause::invalid(place, address, why));
            }
            Ok(_) => {}
        }
    }
    for (index, ingress) in items(new, &["status", "loadBalancer", "ingress"]).iter().enumerate() {
        let ip = text(ingress, &["ip"]);
        if !ip.is_empty() && ip.parse::<IpAddr>().is_err() {
            let place = format!("status.loadBalancer.ingress[{index}].ip");
            let why = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
            causes.push(Cause::invalid(place, &json!(ip), why));
        }
    }
    if let Some(old) = old {
        let before = text(old, &["spec", "clusterIP"]);
        let was = text(old, &["spec", "type"]);
        if !before.is_empty()
            && before != address
            && kind != "ExternalName"
            && was != "ExternalName"
        {
            let why = if address.is_empty() {
                "primary clusterIP can not be unset"
            } else {
                "may not change once set"
            };
            causes.push(Cause::invalid("spec.clusterIPs[0]", &json!([address]), why));
        }
    }
    causes
}

fn judge_external(spec: &Value, causes: &mut Vec<Cause>) {
    let name = text(spec, &["externalName"]).trim_end_matches('.').to_owned();
    if name.is_empty() {
        causes.push(Cause::required("spec.externalName", ""));
    } else {
        let wrong = names::subdomain(&name).into_iter();
        causes.extend(wrong.map(|why| Cause::invalid("spec.externalName", &json!(name), why)));
    }
    if !text(spec, &["clusterIP"]).is_empty() {
        let why = "may not be set when `type` is 'ExternalName'";
        causes.push(Cause::forbidden("spec.clusterIPs[0]", why));
    }
}

fn judge_ports(ports: &[Value], causes: &mut Vec<Cause>) {
    let (mut names_seen, mut seen) = (vec![], vec![]);
    for (index, port) in ports.iter().enumerate() {
        let place = |field: &str| format!("spec.ports[{index}].{field}");
        let name = text(port, &["name"]);
        if name.is_empty() {
            if ports.len() > 1 {
                causes.push(Cause::required(place("name"), ""));
            }
        } else {
            let wrong = names::label(name).into_iter();
            causes.extend(wrong.map(|why| Cause::invalid(place("name"), &json!(name), why)));
            if names_seen.contains(&name) {
                causes.push(Cause::duplicate(place("name"), &json!(name)));
            }
            names_seen.push(name);
        }
        let number = port["port"].as_i64().unwrap_or(0);
        range(place("port"), number, causes);
        let protocol = &port["protocol"];
        if !PROTOCOLS.contains(&protocol.as_str().unwrap_or_default()) {
            causes.push(Cause::unsupported(place("protocol"), protocol, &PROTOCOLS));
        }
        match &port["targetPort"] {
            Value::Number(target) => {
                range(place("targetPort"), target.as_i64().unwrap_or(0), causes);
            }
            Value::String(target) => {
                let good = target.len() <= 15
                    && names::label(target).is_empty()
                    && target.bytes().any(|b| b.is_ascii_lowercase())
                    && !target.contains("--");
                if !good {
                    let why = if target.len() > 15 {
                        "must be no more than 15 characters"
                    } else {
                        "must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)"
                    };
                    causes.push(Cause::invalid(place("targetPort"), &json!(target), why));
                }
            }
            _ => {}
        }
        let key = (number, protocol.clone());
        if seen.contains(&key) {
            let value = json!({"port": number, "protocol": protocol});
            causes.push(Cause::duplicate(format!("spec.ports[{index}]"), &value));
        }
        seen.push(key);
    }
}

fn range(place: String, number: i64, causes: &mut Vec<Cause>) {
    if !(1..=65535).contains(&number) {
        let why = "must be between 1 and 65535, inclusive";
        causes.push(Cause::invalid(place, &json!(number), why));
    }
}
