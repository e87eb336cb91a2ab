//! Endpoints: slices of them, and their older form.

use super::Policy;
use crate::names;
use crate::object::{Object, items, text};
use crate::refusal::Cause;
use serde_json::{Value, json};
use std::net::IpAddr;

const TYPES: [&str; 3] = ["FQDN", "IPv4", "IPv6"];
const PROTOCOLS: [&str; 3] = ["SCTP", "TCP", "UDP"];
const ENDPOINTS_MAX: usize = 1000;
const ADDRESSES_MAX: usize = 100;
const PORTS_MAX: usize = 100;

pub(super) fn defaults(object: &mut Object) {
    for endpoint in object["endpoints"].as_array_mut().into_iter().flatten() {
        if endpoint["conditions"].is_null() {
            endpoint["conditions"] = json!({});
        }
    }
    for port in object["ports"].as_array_mut().into_iter().flatten() {
        if port["name"].is_null() {
            port["name"] = json!("");
        }
        if port["protocol"].is_null() {
            port["protocol"] = json!("TCP");
        }
    }
}

pub(super) fn endpoints_defaults(object: &mut Object) {
    for subset in object["subsets"].as_array_mut().into_iter().flatten() {
        for port in subset["ports"].as_array_mut().into_iter().flatten() {
            if port["protocol"].is_null() {
                port["protocol"] = json!("TCP");
            }
        }
    }
}

pub(super) fn validate(new: &Object, old: Option<&Object>, policy: Policy) -> Vec<Cause> {
    let mut causes = vec![];
    let kind = text(new, &["addressType"]);
    if kind.is_empty() {
        causes.push(Cause::required("addressType", ""));
    } else if !TYPES.contains(&kind) {
        causes.push(Cause::unsupported("addressType", &new["addressType"], &TYPES));
    }
    if old.is_some_and(|old| old["addressType"] != new["addressType"]) {
        causes.push(Cause::invalid("addressType", &new["addressType"], "field is immutable"));
    }
    let endpoints = items(new, &["endpoints"]);
    if endpoints.len() > ENDPOINTS_MAX {
        causes.push(Cause::too_many("endpoints", endpoints.len(), ENDPOINTS_MAX));
        return causes;
    }
    for (index, endpoint) in endpoints.iter().enumerate() {
        let place = format!("endpoints[{index}].addresses");
        let addresses = items(endpoint, &["addresses"]);
        if addresses.is_empty() {
            causes.push(Cause::required(&place, "must contain at least 1 address"));
        } else if addresses.len() > ADDRESSES_MAX {
            causes.push(Cause::too_many(&place, addresses.len(), ADDRESSES_MAX));
        }
        for (number, address) in addresses.iter().enumerate() {
            judge(&format!("{place}[{number}]"), kind, address, policy, &mut causes);
        }
        let host = text(endpoint, &["hostname"]);
        if !host.is_empty() {
            let wrong = names::label(host).into_iter();
            let place = format!("endpoints[{index}].hostname");
            causes.extend(wrong.map(|why| Cause::invalid(&place, &json!(host), why)));
        }
        let node = text(endpoint, &["nodeName"]);
        if !node.is_empty() {
            let wrong = names::subdomain(node).into_iter();
            let place = format!("endpoints[{index}].nodeName");
            causes.extend(wrong.map(|why| Cause::invalid(&place, &json!(node), why)));
        }
    }
    judge_ports("", items(new, &["ports"]), false, &mut causes);
    causes
}

fn judge(place: &str, kind: &str, address: &Value, policy: Policy, causes: &mut Vec<Cause>) {
    let text = address.as_str().unwrap_or_default();
    if kind == "FQDN" {
        let wrong = names::subdomain(text).into_iter();
        causes.extend(wrong.map(|why| Cause::invalid(place, address, why)));
        return;
    }
    let parsed = text.parse::<IpAddr>();
    match (kind, parsed) {
        ("IPv4", Ok(ip)) if ip.is_ipv4() => special(place, ip, address, policy, causes),
        ("IPv6", Ok(ip)) if ip.is_ipv6() => special(place, ip, address, policy, causes),
        ("IPv4" | "IPv6", Ok(_)) => {
            let list = place.rsplit_once('[').map_or(place, |(list, _)| list);
            causes.push(Cause::invalid(list, address, format!("must be an {kind} address")));
        }
        ("IPv4", _) => {
            causes.push(Cause::invalid(place, address, "must be a valid IPv4 address"));
        }
        ("IPv6", _) => {
            causes.push(Cause::invalid(place, address, "must be a valid IPv6 address"));
        }
        _ => {}
    }
}

/// Addresses that are nobody's on a network.
fn special(place: &str, ip: IpAddr, value: &Value, policy: Policy, causes: &mut Vec<Cause>) {
    let (link_local, multicast) = match ip {
        IpAddr::V4(ip) => (ip.is_link_local(), ip.octets()[..3] == [224, 0, 0]),
        IpAddr::V6(ip) => (ip.is_unicast_link_local(), ip.segments()[0] & 0xff0f == 0xff02),
    };
    if ip.is_unspecified() {
        causes.push(Cause::invalid(place, value, format!("may not be unspecified ({ip})")));
    }
    if ip.is_loopback() && !policy.loopback_endpoints {
        let why = "may not be in the loopback range (127.0.0.0/8, ::1/128)";
        causes.push(Cause::invalid(place, value, why));
    }
    if link_local {
        let why = "may not be in the link-local range (169.254.0.0/16, fe80::/10)";
        causes.push(Cause::invalid(place, value, why));
    }
    if multicast {
        let why = "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)";
        causes.push(Cause::invalid(place, value, why));
    }
}

fn judge_ports(prefix: &str, ports: &[Value], numbered: bool, causes: &mut Vec<Cause>) {
    if ports.len() > PORTS_MAX {
        causes.push(Cause::too_many(format!("{prefix}ports"), ports.len(), PORTS_MAX));
        return;
    }
    let mut seen = vec![];
    for (index, port) in ports.iter().enumerate() {
        let place = |field: &str| format!("{prefix}ports[{index}].{field}");
        let name = text(port, &["name"]);
        if !name.is_empty() {
            let wrong = names::label(name).into_iter();
            causes.extend(wrong.map(|why| Cause::invalid(place("name"), &json!(name), why)));
        }
        if seen.contains(&name) {
            causes.push(Cause::duplicate(place("name"), &json!(name)));
        }
        seen.push(name);
        let number = port["port"].as_i64();
        if numbered && !number.is_some_and(|number| (1..=65535).contains(&number)) {
            let why = "must be between 1 and 65535, inclusive";
            causes.push(Cause::invalid(place("port"), &json!(number.unwrap_or(0)), why));
        }
        let protocol = &port["protocol"];
        if protocol.as_str().is_some_and(|word| !PROTOCOLS.contains(&word)) {
            causes.push(Cause::unsupported(place("protocol"), protocol, &PROTOCOLS));
        }
    }
}

pub(super) fn endpoints(new: &Object, _: Option<&Object>, policy: Policy) -> Vec<Cause> {
    let mut causes = vec![];
    for (index, subset) in items(new, &["subsets"]).iter().enumerate() {
        let place = format!("subsets[{index}]");
        let lists = ["addresses", "notReadyAddresses"];
        if lists.iter().all(|list| items(subset, &[list]).is_empty()) {
            let why = "must specify `addresses` or `notReadyAddresses`";
            causes.push(Cause::required(&place, why));
        }
        for list in lists {
            for (number, address) in items(subset, &[list]).iter().enumerate() {
                let place = format!("{place}.{list}[{number}].ip");
                let ip = &address["ip"];
                match ip.as_str().unwrap_or_default().parse::<IpAddr>() {
                    Ok(parsed) => special(&place, parsed, ip, policy, &mut causes),
                    Err(_) => {
                        let why = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
                        causes.push(Cause::invalid(&place, ip, why));
                    }
                }
            }
        }
        judge_ports(&format!("{place}."), items(subset, &["ports"]), true, &mut causes);
    }
    causes
}
