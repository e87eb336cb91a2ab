//! What is served: groups, versions and resources, in both forms clients ask for.

use crate::kind::{Kind, Registry};
use crate::refusal::Refusal;
use serde_json::{Value, json};
use std::sync::Arc;

/// Answers a path below `/api` or `/apis`.
pub(crate) fn answer(registry: &Registry, path: &str, aggregated: bool) -> Result<Value, Refusal> {
    let parts: Vec<&str> = path.split('/').skip(1).collect();
    match parts[..] {
        ["api"] if aggregated => Ok(aggregate(registry, true)),
        ["apis"] if aggregated => Ok(aggregate(registry, false)),
        ["api"] => Ok(json!({
            "kind": "APIVersions", "versions": ["v1"],
            "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": ""}],
        })),
        ["apis"] => {
            let groups = registry.groups().into_iter().filter(|(name, _)| !name.is_empty());
            let groups: Vec<Value> =
                groups.map(|(name, versions)| group(&name, &versions)).collect();
            Ok(json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}))
        }
        ["apis", name] => {
            let versions = registry.groups().remove(name).ok_or_else(absent)?;
            let mut group = group(name, &versions);
            group["kind"] = json!("APIGroup");
            group["apiVersion"] = json!("v1");
            Ok(group)
        }
        ["api", version] => resources(registry, "", version),
        ["apis", group, version] => resources(registry, group, version),
        _ => Err(absent()),
    }
}

fn absent() -> Refusal {
    Refusal::new(404, "NotFound", "404 page not found")
}

fn group(name: &str, versions: &[String]) -> Value {
    let versions: Vec<Value> = versions
        .iter()
        .map(|version| json!({"groupVersion": format!("{name}/{version}"), "version": version}))
        .collect();
    json!({"name": name, "versions": versions, "preferredVersion": versions[0]})
}

/// `status` and `token`, with the kind they carry.
fn subresources(kind: &Kind) -> Vec<(&'static str, String, Vec<&'static str>)> {
    let mut all = vec![];
    if kind.status {
        all.push(("status", kind.kind.clone(), vec!["get", "patch", "update"]));
    }
    if kind.is("", "serviceaccounts") {
        all.push(("token", "TokenRequest".to_owned(), vec!["create"]));
    }
    all
}

fn resources(registry: &Registry, group: &str, version: &str) -> Result<Value, Refusal> {
    let kinds = registry.in_version(group, version);
    let Some(first) = kinds.first() else { return Err(absent()) };
    let api_version = first.api_version();
    let mut all = vec![];
    for kind in kinds {
        let mut one = json!({
            "name": kind.plural, "singularName": kind.singular, "namespaced": kind.namespaced,
            "kind": kind.kind, "verbs": kind.verbs(),
        });
        if !kind.short.is_empty() {
            one["shortNames"] = json!(kind.short);
        }
        if !kind.categories.is_empty() {
            one["categories"] = json!(kind.categories);
        }
        all.push(one);
        for (name, carried, verbs) in subresources(kind) {
            all.push(json!({
                "name": format!("{}/{name}", kind.plural), "singularName": "",
                "namespaced": kind.namespaced, "kind": carried, "verbs": verbs,
            }));
        }
    }
    Ok(json!({
        "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": api_version, "resources": all,
    }))
}

/// Everything in one answer, `apidiscovery.k8s.io/v2`.
fn aggregate(registry: &Registry, core: bool) -> Value {
    let groups = registry.groups().into_iter().filter(|(name, _)| name.is_empty() == core);
    let items: Vec<Value> = groups
        .map(|(name, versions)| {
            let versions: Vec<Value> = versions
                .iter()
                .map(|version| {
                    let kinds = registry.in_version(&name, version);
                    let resources: Vec<Value> = kinds.into_iter().map(aggregated).collect();
                    json!({"version": version, "freshness": "Current", "resources": resources})
                })
                .collect();
            json!({"metadata": {"name": name, "creationTimestamp": null}, "versions": versions})
        })
        .collect();
    json!({
        "kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {},
        "items": items,
    })
}

fn aggregated(kind: &Arc<Kind>) -> Value {
    let carried = |name: &str| json!({"group": kind.group, "version": kind.version, "kind": name});
    let mut one = json!({
        "resource": kind.plural, "responseKind": carried(&kind.kind),
        "scope": if kind.namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": kind.singular, "verbs": kind.verbs(),
    });
    if !kind.short.is_empty() {
        one["shortNames"] = json!(kind.short);
    }
    if !kind.categories.is_empty() {
        one["categories"] = json!(kind.categories);
    }
    let below: Vec<Value> = subresources(kind)
        .into_iter()
        .map(|(name, kind, verbs)| {
            json!({"subresource": name, "responseKind": carried(&kind), "verbs": verbs})
        })
        .collect();
    if !below.is_empty() {
        one["subresources"] = below.into();
    }
    one
}
