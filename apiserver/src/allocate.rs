//! Addresses and node ports of Services.

use crate::object::{Object, items, text};
use crate::refusal::Cause;
use ipnet::Ipv4Net;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::net::Ipv4Addr;

const NODE_PORTS: std::ops::RangeInclusive<i64> = 30_000..=32_767;

/// Fills in what a Service lacks; `others` are all but this one.
pub(crate) fn service(
    new: &mut Object,
    old: Option<&Object>,
    others: &[&Object],
    range: Ipv4Net,
) -> Result<(), Cause> {
    keep(new, old);
    address(new, others, range)?;
    node_ports(new, others)
}

fn has_address(service: &Object) -> bool {
    text(service, &["spec", "type"]) != "ExternalName"
}

/// What was handed out before stays, where a client does not name it.
fn keep(new: &mut Object, old: Option<&Object>) {
    let Some(old) = old else { return };
    if has_address(old) && has_address(new) {
        for field in ["clusterIP", "clusterIPs"] {
            let absent = new["spec"][field].is_null() || new["spec"][field] == "";
            if absent && !old["spec"][field].is_null() {
                new["spec"][field] = old["spec"][field].clone();
            }
        }
    }
    if ported(new) && ported(old) {
        let before = items(old, &["spec", "ports"]).to_vec();
        for port in new["spec"]["ports"].as_array_mut().into_iter().flatten() {
            let same = |b: &&Value| b["port"] == port["port"] && b["protocol"] == port["protocol"];
            if port["nodePort"].is_null() {
                if let Some(standing) = before.iter().find(same).map(|b| b["nodePort"].clone()) {
                    port["nodePort"] = standing;
                }
            }
        }
    }
}

fn ported(service: &Object) -> bool {
    let spec = &service["spec"];
    spec["type"] == "NodePort"
        || spec["type"] == "LoadBalancer" && spec["allocateLoadBalancerNodePorts"] != false
}

fn address(new: &mut Object, others: &[&Object], range: Ipv4Net) -> Result<(), Cause> {
    let outside = !has_address(new);
    let (namespace, name) =
        (text(new, &["metadata", "namespace"]), text(new, &["metadata", "name"]));
    let first = hash(&format!("{namespace}/{name}"));
    let spec = &mut new["spec"];
    if outside {
        return Ok(());
    }
    let given = text(spec, &["clusterIP"]).to_owned();
    let given = if given.is_empty() {
        spec["clusterIPs"][0].as_str().unwrap_or_default().to_owned()
    } else {
        given
    };
    let taken: BTreeSet<&str> =
        others.iter().map(|other| text(other, &["spec", "clusterIP"])).collect();
    let address = match &*given {
        "None" => given,
        "" => free(&taken, range, first).ok_or_else(|| {
            let why = "failed to allocate IP: range is full";
            Cause::invalid("spec.clusterIPs", &json!([]), why)
        })?,
        given => {
            let list = json!([given]);
            let refuse = |why: &str| {
                let why = format!("failed to allocate IP {given}: {why}");
                Cause::invalid("spec.clusterIPs", &list, why)
            };
            if let Ok(ip) = given.parse::<Ipv4Addr>() {
                let edge = ip == range.network() || ip == range.broadcast();
                if !range.contains(&ip) || edge {
                    return Err(refuse(&format!(
                        "the provided IP ({ip}) is not in the valid range. The range of valid IPs is {range}"
                    )));
                }
                if taken.contains(given) {
                    return Err(refuse("provided IP is already allocated"));
                }
            }
            given.to_owned()
        }
    };
    spec["clusterIPs"] = json!([address]);
    spec["clusterIP"] = json!(address);
    // Without selector nobody knows the families of a headless Service's endpoints.
    let any = address == "None" && spec["selector"].as_object().is_none_or(|map| map.is_empty());
    let (families, policy) = if any {
        (json!(["IPv4", "IPv6"]), "RequireDualStack")
    } else {
        (json!(["IPv4"]), "SingleStack")
    };
    for (field, standard) in [("ipFamilies", families), ("ipFamilyPolicy", json!(policy))] {
        if spec[field].is_null() {
            spec[field] = standard;
        }
    }
    Ok(())
}

/// The same name finds the same address where it is free: a cluster made anew looks as before.
fn free(taken: &BTreeSet<&str>, range: Ipv4Net, first: u64) -> Option<String> {
    let count = (1_u64 << (32 - range.prefix_len())).checked_sub(2)?;
    let base = u64::from(u32::from(range.network())) + 1;
    // The first few are for the cluster itself.
    let low = 16.min(count / 2);
    let span = count.checked_sub(low).filter(|span| *span > 0)?;
    (0..span)
        .map(|step| Ipv4Addr::from(u32::try_from(base + low + (first + step) % span).unwrap_or(0)))
        .map(|ip| ip.to_string())
        .find(|ip| !taken.contains(&**ip))
}

/// FNV-1a.
fn hash(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    }) >> 20
}

fn node_ports(new: &mut Object, others: &[&Object]) -> Result<(), Cause> {
    if !ported(new) {
        return Ok(());
    }
    let used = others.iter().flat_map(|other| items(other, &["spec", "ports"]));
    let mut used: BTreeSet<i64> = used.filter_map(|port| port["nodePort"].as_i64()).collect();
    let first = i64::try_from(hash(text(new, &["metadata", "name"])) % 2768).unwrap_or(0);
    for (index, port) in new["spec"]["ports"].as_array_mut().into_iter().flatten().enumerate() {
        let place = format!("spec.ports[{index}].nodePort");
        if let Some(given) = port["nodePort"].as_i64().filter(|given| *given != 0) {
            if !NODE_PORTS.contains(&given) {
                let why = "provided port is not in the valid range. The range of valid ports is 30000-32767";
                return Err(Cause::invalid(place, &json!(given), why));
            }
            if !used.insert(given) {
                let why = "provided port is already allocated";
                return Err(Cause::invalid(place, &json!(given), why));
            }
            continue;
        }
        let mut all = (0..2768).map(|step| NODE_PORTS.start() + (first + step) % 2768);
        let Some(free) = all.find(|port| !used.contains(port)) else {
            return Err(Cause::invalid(
                place,
                &Value::Null,
                "failed to allocate a nodePort: range is full",
            ));
        };
        used.insert(free);
        port["nodePort"] = json!(free);
    }
    Ok(())
}
