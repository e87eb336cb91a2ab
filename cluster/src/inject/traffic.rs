//! Which traffic a pod's annotations keep out of its sidecar, as arguments of `sidecar-redirect`.

use k8s_openapi::api::core::v1::Pod;
use std::net::IpAddr;

const PREFIX: &str = "traffic.sidecar.istio.io/";
/// Annotations of these prefixes are Istio's instructions to its own injector.
const INSTRUCTIONS: [&str; 3] = [PREFIX, "sidecar.istio.io/", "proxy.istio.io/"];
/// Instructions that are followed elsewhere, or mean nothing for us to follow.
const KNOWN: [&str; 3] =
    ["sidecar.istio.io/inject", super::probes::REWRITE, "sidecar.istio.io/status"];
/// Most members of one list: a rule is made of each.
const MEMBERS_MAX: usize = 256;

/// Arguments after the verb, and what of the annotations is not followed.
pub(super) fn arguments(pod: &Pod) -> (Vec<String>, Vec<String>) {
    let (mut arguments, mut warnings) = (vec!["sidecar-redirect".to_owned()], Vec::new());
    let annotations = pod.metadata.annotations.iter().flatten();
    for (name, value) in annotations {
        if KNOWN.contains(&name.as_str()) || super::proxy::follows(name) {
            continue;
        }
        let list = match name.strip_prefix(PREFIX) {
            Some("excludeOutboundPorts") => list("--exclude-outbound-ports", value, port),
            Some("excludeInboundPorts") => list("--exclude-inbound-ports", value, port),
            Some("excludeOutboundIPRanges") => list("--exclude-outbound-cidrs", value, range),
            // Everything is captured; these say so.
            Some("includeOutboundIPRanges" | "includeInboundPorts" | "includeOutboundPorts")
                if matches!(value.trim(), "*" | "") =>
            {
                continue;
            }
            Some(_) | None => {
                if INSTRUCTIONS.iter().any(|prefix| name.starts_with(prefix)) {
                    warnings.push(format!(
                        "ISM2731 annotation {name} is not supported and has no effect. Fix: remove \
                         it; excludeOutboundPorts, excludeInboundPorts and excludeOutboundIPRanges are"
                    ));
                }
                continue;
            }
        };
        match list {
            Ok(Some(argument)) => arguments.push(argument),
            Ok(None) => {}
            Err(member) => warnings.push(wrong(name, member)),
        }
    }
    (arguments, warnings)
}

/// What is said of an annotation that is not as it should be.
pub(super) fn wrong(name: &str, what: &str) -> String {
    let what: String = what.chars().take(64).collect();
    format!(
        "ISM2730 annotation {name}: {what:?} is not what it should be, and the whole annotation has no \
         effect. Fix: correct it"
    )
}

/// One flag with all members, nothing for an empty list, or the member that is wrong.
fn list<'a>(
    flag: &str,
    value: &'a str,
    member: fn(&str) -> Option<String>,
) -> Result<Option<String>, &'a str> {
    let parts = value.split(',').map(str::trim).filter(|part| !part.is_empty());
    let mut members = Vec::new();
    for part in parts {
        members.push(member(part).ok_or(part)?);
        if members.len() > MEMBERS_MAX {
            return Err(part);
        }
    }
    Ok((!members.is_empty()).then(|| format!("{flag}={}", members.join(","))))
}

fn port(text: &str) -> Option<String> {
    text.parse::<u16>().ok().filter(|port| *port > 0).map(|port| port.to_string())
}

/// `IP/BITS`, or an address alone as one of all bits.
fn range(text: &str) -> Option<String> {
    let (ip, bits) = text.split_once('/').map_or((text, None), |(ip, bits)| (ip, Some(bits)));
    let ip: IpAddr = ip.parse().ok()?;
    let longest = if ip.is_ipv4() { 32 } else { 128 };
    let bits: u8 = bits.map_or(Some(longest), |bits| bits.parse().ok())?;
    (bits <= longest).then(|| format!("{ip}/{bits}"))
}

#[cfg(test)]
mod tests {
    use crate::parse::check::object;

    #[track_caller]
    fn check(annotations: &str, arguments: &[&str], warned: &[&str]) {
        let pod = object(&format!(
            "{{metadata: {{annotations: {{{annotations}}}}}, spec: {{containers: []}}}}"
        ));
        let (found, warnings) = super::arguments(&pod);
        assert_eq!(found[1..], *arguments);
        assert_eq!(warnings.len(), warned.len(), "{warnings:?}");
        for (warning, part) in warnings.iter().zip(warned) {
            assert!(warning.contains(part), "{warning}");
        }
    }

    #[test]
    fn annotations_become_flags() {
        check(
            "traffic.sidecar.istio.io/excludeOutboundPorts: '3306, 6379', \
             traffic.sidecar.istio.io/excludeInboundPorts: '9000', \
             traffic.sidecar.istio.io/excludeOutboundIPRanges: '10.9.0.0/16,fd00::/8,192.0.2.7', \
             traffic.sidecar.istio.io/includeOutboundIPRanges: '*', other: x",
            &[
                "--exclude-inbound-ports=9000",
                "--exclude-outbound-cidrs=10.9.0.0/16,fd00::/8,192.0.2.7/32",
                "--exclude-outbound-ports=3306,6379",
            ],
            &[],
        );
    }

    #[test]
    fn what_is_not_followed_is_said() {
        check(
            "traffic.sidecar.istio.io/excludeOutboundPorts: '80;443', \
             traffic.sidecar.istio.io/excludeInboundPorts: '', \
             traffic.sidecar.istio.io/excludeOutboundIPRanges: 10.0.0.0/33, \
             traffic.sidecar.istio.io/includeOutboundIPRanges: 10.0.0.0/8, \
             sidecar.istio.io/proxyImage: x, sidecar.istio.io/inject: 'true'",
            &[],
            &[
                "proxyImage is not supported",
                "ISM2730 annotation traffic.sidecar.istio.io/excludeOutboundIPRanges: \"10.0.0.0/33\"",
                "\"80;443\" is not what",
                "includeOutboundIPRanges is not supported",
            ],
        );
    }
}
