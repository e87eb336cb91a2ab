//! Pods: what is filled in, and what is refused.

use super::Policy;
use crate::names;
use crate::object::{Object, at, items, text};
use crate::refusal::Cause;
use serde_json::{Value, json};

pub(super) const SHAPE: &str = "\
    spec.containers[name] spec.containers.ports[containerPort,protocol=TCP] \
    spec.containers.env[name] spec.containers.volumeMounts[mountPath] \
    spec.initContainers[name] spec.initContainers.ports[containerPort,protocol=TCP] \
    spec.initContainers.env[name] spec.initContainers.volumeMounts[mountPath] \
    spec.ephemeralContainers[name] spec.volumes[name] spec.imagePullSecrets[name] \
    spec.hostAliases[ip] spec.readinessGates spec.nodeSelector! spec.schedulingGates[name] \
    spec.topologySpreadConstraints[topologyKey,whenUnsatisfiable] \
    status.conditions[type] status.podIPs[ip]";

fn default(value: &mut Value, field: &str, standard: Value) {
    if value[field].is_null() {
        value[field] = standard;
    }
}

pub(super) fn defaults(object: &mut Object) {
    let spec = &mut object["spec"];
    if !spec.is_object() {
        *spec = json!({});
    }
    default(spec, "restartPolicy", json!("Always"));
    default(spec, "dnsPolicy", json!("ClusterFirst"));
    default(spec, "schedulerName", json!("default-scheduler"));
    default(spec, "terminationGracePeriodSeconds", json!(30));
    default(spec, "securityContext", json!({}));
    default(spec, "enableServiceLinks", json!(true));
    default(spec, "preemptionPolicy", json!("PreemptLowerPriority"));
    default(spec, "priority", json!(0));
    if text(spec, &["serviceAccountName"]).is_empty() {
        spec["serviceAccountName"] = json!("default");
    }
    spec["serviceAccount"] = spec["serviceAccountName"].clone();
    for list in ["containers", "initContainers"] {
        for container in spec[list].as_array_mut().into_iter().flatten() {
            container_defaults(container);
        }
    }
    let reasons = ["not-ready", "unreachable"];
    let tolerations = reasons.map(|reason| {
        json!({
            "key": format!("node.kubernetes.io/{reason}"), "operator": "Exists",
            "effect": "NoExecute", "tolerationSeconds": 300,
        })
    });
    default(spec, "tolerations", json!(tolerations));
    let status = &mut object["status"];
    default(status, "phase", json!("Pending"));
    default(status, "qosClass", json!("BestEffort"));
}

fn container_defaults(container: &mut Value) {
    default(container, "terminationMessagePath", json!("/dev/termination-log"));
    default(container, "terminationMessagePolicy", json!("File"));
    default(container, "resources", json!({}));
    let image = text(container, &["image"]).to_owned();
    if !image.is_empty() {
        let tag = image.rsplit('/').next().and_then(|last| last.split_once(':'));
        let latest = !image.contains('@') && tag.is_none_or(|(_, tag)| tag == "latest");
        default(
            container,
            "imagePullPolicy",
            json!(if latest { "Always" } else { "IfNotPresent" }),
        );
    }
    for port in container["ports"].as_array_mut().into_iter().flatten() {
        default(port, "protocol", json!("TCP"));
    }
}

pub(super) fn validate(new: &Object, old: Option<&Object>, _: Policy) -> Vec<Cause> {
    let mut causes = vec![];
    let spec = &new["spec"];
    let containers = items(spec, &["containers"]);
    if containers.is_empty() {
        causes.push(Cause::required("spec.containers", ""));
    }
    let mut seen = vec![];
    for (index, container) in containers.iter().enumerate() {
        judge_container(&format!("spec.containers[{index}]"), container, &mut causes);
        let name = text(container, &["name"]);
        if seen.contains(&name) {
            causes.push(Cause::duplicate(format!("spec.containers[{index}].name"), &json!(name)));
        }
        seen.push(name);
    }
    for (index, container) in items(spec, &["initContainers"]).iter().enumerate() {
        judge_container(&format!("spec.initContainers[{index}]"), container, &mut causes);
    }
    one_of(spec, "restartPolicy", &["Always", "OnFailure", "Never"], &mut causes);
    let policies = ["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"];
    one_of(spec, "dnsPolicy", &policies, &mut causes);
    for (field, rule) in [
        ("nodeName", names::subdomain as fn(&str) -> Vec<String>),
        ("serviceAccountName", names::subdomain),
        ("hostname", names::label),
    ] {
        let name = text(spec, &[field]);
        if !name.is_empty() {
            let wrong = rule(name).into_iter();
            causes.extend(
                wrong.map(|why| Cause::invalid(format!("spec.{field}"), &json!(name), why)),
            );
        }
    }
    if let Some(seconds) = spec["terminationGracePeriodSeconds"].as_i64().filter(|s| *s < 0) {
        let why = "must be greater than or equal to 0";
        causes.push(Cause::invalid("spec.terminationGracePeriodSeconds", &json!(seconds), why));
    }
    for (index, ip) in items(new, &["status", "podIPs"]).iter().enumerate() {
        let ip = text(ip, &["ip"]);
        if ip.parse::<std::net::IpAddr>().is_err() {
            let why = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
            causes.push(Cause::invalid(format!("status.podIPs[{index}]"), &json!(ip), why));
        }
    }
    if let Some(old) = old {
        if frozen(old) != frozen(new) {
            let why = "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";
            causes.push(Cause::forbidden("spec", why));
        }
    }
    causes
}

/// What may not change in a pod's life.
fn frozen(pod: &Object) -> Value {
    let mut spec = pod["spec"].clone();
    let Some(fields) = spec.as_object_mut() else { return spec };
    for field in ["activeDeadlineSeconds", "tolerations", "terminationGracePeriodSeconds"] {
        fields.remove(field);
    }
    for list in ["containers", "initContainers"] {
        for container in fields.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            if let Some(container) = container.as_object_mut() {
                container.remove("image");
            }
        }
    }
    spec
}

fn one_of(spec: &Value, field: &str, allowed: &[&str], causes: &mut Vec<Cause>) {
    let value = &spec[field];
    if value.as_str().is_some_and(|word| !allowed.contains(&word)) {
        causes.push(Cause::unsupported(format!("spec.{field}"), value, allowed));
    }
}

fn judge_container(place: &str, container: &Value, causes: &mut Vec<Cause>) {
    let name = text(container, &["name"]);
    if name.is_empty() {
        causes.push(Cause::required(format!("{place}.name"), ""));
    } else {
        let wrong = names::label(name).into_iter();
        causes.extend(wrong.map(|why| Cause::invalid(format!("{place}.name"), &json!(name), why)));
    }
    let image = text(container, &["image"]);
    if image.is_empty() {
        causes.push(Cause::required(format!("{place}.image"), ""));
    } else if image.trim() != image {
        let why = "must not have leading or trailing whitespace";
        causes.push(Cause::invalid(format!("{place}.image"), &json!(image), why));
    }
    let pull = &container["imagePullPolicy"];
    let policies = ["Always", "IfNotPresent", "Never"];
    if pull.as_str().is_some_and(|word| !policies.contains(&word)) {
        causes.push(Cause::unsupported(format!("{place}.imagePullPolicy"), pull, &policies));
    }
    for (index, port) in items(container, &["ports"]).iter().enumerate() {
        let place = format!("{place}.ports[{index}]");
        match at(port, &["containerPort"]).and_then(Value::as_i64) {
            None | Some(0) => causes.push(Cause::required(format!("{place}.containerPort"), "")),
            Some(1..=65535) => {}
            Some(number) => {
                let why = "must be between 1 and 65535, inclusive";
                causes.push(Cause::invalid(format!("{place}.containerPort"), &json!(number), why));
            }
        }
        let protocols = ["SCTP", "TCP", "UDP"];
        let protocol = &port["protocol"];
        if protocol.as_str().is_some_and(|word| !protocols.contains(&word)) {
            causes.push(Cause::unsupported(format!("{place}.protocol"), protocol, &protocols));
        }
    }
    for (index, variable) in items(container, &["env"]).iter().enumerate() {
        if text(variable, &["name"]).is_empty() {
            causes.push(Cause::required(format!("{place}.env[{index}].name"), ""));
        }
    }
}
