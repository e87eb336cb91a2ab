//! OpenAPI v3: an index, and a document for each version of a group. Of version 2 an empty document:
//! kubectl asks for it about a kind that no document names, and says then that there is no such kind.

use crate::kind::{Kind, Registry, Rules};
use crate::refusal::Refusal;
use http::HeaderMap;
use http::header::ACCEPT;
use serde_json::{Map, Value, json};

/// Where version 2 is.
pub(crate) const V2: &str = "/openapi/v2";
/// What kubectl is given; it asks for it with an `@`, which is no media type (kube-openapi has both).
pub(crate) const V2_PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

/// Whether version 2 is asked for as a message.
pub(crate) fn wants_protobuf(headers: &HeaderMap) -> bool {
    let accepts = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let mut media = accepts.flat_map(|value| value.split([',', ';']));
    media.any(|media| media.trim().replace('@', ".") == V2_PROTOBUF)
}

/// Answers a path below `/openapi`.
pub(crate) fn answer(registry: &Registry, path: &str) -> Result<Value, Refusal> {
    if path == V2 {
        let info = json!({"title": "Isthmus", "version": crate::VERSION});
        return Ok(json!({"swagger": "2.0", "info": info, "paths": {}}));
    }
    let Some(rest) = path.strip_prefix("/openapi/v3") else {
        let hint = "ask /openapi/v3; kubectl does by itself";
        return Err(Refusal::new(404, "NotFound", format!("404 page not found: {hint}")));
    };
    let rest = rest.trim_start_matches('/');
    if rest.is_empty() {
        let mut paths = Map::new();
        for (group, versions) in registry.groups() {
            for version in versions {
                let place = place(&group, &version);
                let url = json!({"serverRelativeURL": format!("/openapi/v3/{place}")});
                paths.insert(place, url);
            }
        }
        return Ok(json!({"paths": paths}));
    }
    let groups = registry.groups();
    let all = groups.iter().flat_map(|(group, versions)| versions.iter().map(move |v| (group, v)));
    let found = all.into_iter().find(|(group, version)| place(group, version) == rest);
    let Some((group, version)) = found else {
        return Err(Refusal::new(404, "NotFound", "404 page not found"));
    };
    Ok(document(registry, group, version))
}

fn place(group: &str, version: &str) -> String {
    if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") }
}

fn document(registry: &Registry, group: &str, version: &str) -> Value {
    let (mut schemas, mut paths) = (Map::new(), Map::new());
    let root = place(group, version);
    for kind in registry.in_version(group, version) {
        let name = schema_name(kind);
        let gvk = json!({"group": kind.group, "version": kind.version, "kind": kind.kind});
        let mut schema = match &kind.rules {
            Rules::Custom(custom) => custom.schema.clone(),
            // Their fields are described in Kubernetes' own documentation.
            Rules::Builtin(_) | Rules::Review => {
                json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true})
            }
        };
        schema["x-kubernetes-group-version-kind"] = json!([gvk]);
        schema["properties"]["apiVersion"] = json!({"type": "string"});
        schema["properties"]["kind"] = json!({"type": "string"});
        schema["properties"]["metadata"] =
            json!({"type": "object", "description": "Standard object's metadata."});
        schemas.insert(name.clone(), schema);
        let scope = if kind.namespaced { "/namespaces/{namespace}" } else { "" };
        let all = format!("/{root}{scope}/{}", kind.plural);
        let reference = json!({"$ref": format!("#/components/schemas/{name}")});
        let answer = json!({"200": {"description": "OK", "content": {"application/json": {"schema": reference}}}});
        let operation = |verb: &str| {
            // kubectl looks here whether the server checks unknown fields.
            let parameters = ["dryRun", "fieldManager", "fieldValidation"]
                .map(|name| json!({"name": name, "in": "query", "schema": {"type": "string"}}));
            json!({
                "responses": answer, "parameters": parameters, "x-kubernetes-action": verb,
                "x-kubernetes-group-version-kind": gvk,
            })
        };
        paths.insert(all.clone(), json!({"get": operation("list"), "post": operation("post")}));
        if !kind.is_review() {
            let one = json!({
                "get": operation("get"), "put": operation("put"), "patch": operation("patch"),
                "delete": operation("delete"),
            });
            paths.insert(format!("{all}/{{name}}"), one);
        }
    }
    json!({
        "openapi": "3.0.0", "info": {"title": "Isthmus", "version": crate::VERSION},
        "paths": paths, "components": {"schemas": schemas},
    })
}

/// `io.k8s.api.core.v1.Pod`, `dev.isthmus.v1alpha1.ClusterLink`.
fn schema_name(kind: &Kind) -> String {
    let Kind { group, version, kind: name, .. } = kind;
    if kind.is_custom() {
        let reversed: Vec<&str> = group.split('.').rev().collect();
        return format!("{}.{version}.{name}", reversed.join("."));
    }
    let short = group.split('.').next().unwrap_or_default();
    let short = if short.is_empty() { "core" } else { short };
    format!("io.k8s.api.{short}.{version}.{name}")
}
