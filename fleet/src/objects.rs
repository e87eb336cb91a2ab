//! Kubernetes objects as text: parsed, and applied to an API server as kubectl would.

use anyhow::{Context, Result};
use kube::api::{Api, ApiResource, DynamicObject, Patch, PatchParams};
use kube::core::GroupVersionKind;
use serde_json::Value;

/// Field manager of everything the harness writes.
pub const MANAGER: &str = "isthmus-e2e";

/// The documents of a YAML text.
pub fn parse(text: &str) -> Result<Vec<Value>> {
    let whole = format!("\n{text}");
    whole
        .split("\n---")
        .filter(|doc| doc.lines().any(|line| !line.trim().is_empty() && !line.starts_with('#')))
        .map(|doc| {
            serde_saphyr::from_str(doc)
                .with_context(|| format!("not YAML: {}", doc.chars().take(200).collect::<String>()))
        })
        .collect()
}

/// So long an apply without an answer is sent again.
const UNANSWERED_MAX: std::time::Duration = std::time::Duration::from_secs(20);
const AGAIN_AFTER: std::time::Duration = std::time::Duration::from_millis(200);

/// Applies every document of a YAML text, in order.
pub async fn apply_yaml(client: &kube::Client, text: &str) -> Result<()> {
    for object in parse(text)? {
        apply(client, &object).await?;
    }
    Ok(())
}

/// Server-side apply of one object. An API server that has just started may lose a connection: what
/// got no answer is sent again, which changes nothing where it had arrived.
pub async fn apply(client: &kube::Client, object: &Value) -> Result<DynamicObject> {
    let name = name_of(object)?;
    let api = api_of(client, object)?;
    let params = PatchParams::apply(MANAGER).force();
    let until = tokio::time::Instant::now() + UNANSWERED_MAX;
    loop {
        let answer = api.patch(&name, &params, &Patch::Apply(object)).await;
        match answer {
            Err(error)
                if !matches!(error, kube::Error::Api(_)) && tokio::time::Instant::now() < until =>
            {
                tokio::time::sleep(AGAIN_AFTER).await;
            }
            answer => {
                let kind = object["kind"].as_str().unwrap_or_default();
                return answer.with_context(|| format!("applying {kind} {name}"));
            }
        }
    }
}

/// Server-side apply of an object's status.
pub async fn apply_status(client: &kube::Client, object: &Value) -> Result<()> {
    let name = name_of(object)?;
    let params = PatchParams::apply(MANAGER).force();
    let api = api_of(client, object)?;
    api.patch_status(&name, &params, &Patch::Apply(object)).await.with_context(|| {
        format!("applying status of {} {name}", object["kind"].as_str().unwrap_or_default())
    })?;
    Ok(())
}

/// Deletes an object; nothing when it is gone already.
pub async fn delete(client: &kube::Client, object: &Value) -> Result<()> {
    let name = name_of(object)?;
    match api_of(client, object)?.delete(&name, &Default::default()).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(error) => Err(error).with_context(|| format!("deleting {name}")),
    }
}

/// An API for a kind, in a namespace (empty: cluster scope).
pub fn api(
    client: &kube::Client,
    version: &str,
    kind: &str,
    namespace: &str,
) -> Api<DynamicObject> {
    let (group, version) = version.split_once('/').unwrap_or(("", version));
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
    if namespace.is_empty() {
        Api::all_with(client.clone(), &resource)
    } else {
        Api::namespaced_with(client.clone(), namespace, &resource)
    }
}

fn api_of(client: &kube::Client, object: &Value) -> Result<Api<DynamicObject>> {
    let field = |name: &str| object[name].as_str().with_context(|| format!("no {name}: {object}"));
    let namespace = object["metadata"]["namespace"].as_str().unwrap_or_default();
    Ok(api(client, field("apiVersion")?, field("kind")?, namespace))
}

fn name_of(object: &Value) -> Result<String> {
    let name = object["metadata"]["name"].as_str();
    Ok(name.with_context(|| format!("no metadata.name: {object}"))?.to_owned())
}

#[cfg(test)]
mod tests {
    #[test]
    fn documents_are_split_and_comments_skipped() {
        let docs = super::parse("# hello\n---\na: 1\n---\n\nb: [2, 3]\n---\n").unwrap();
        assert_eq!(docs, [serde_json::json!({"a": 1}), serde_json::json!({"b": [2, 3]})]);
        assert!(super::parse("a: [").is_err());
    }
}
