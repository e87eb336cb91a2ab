//! Linking two clusters, as an operator does with the program `isthmus`.

use crate::objects::{api, apply, apply_yaml};
use crate::trust::output;
use crate::{Cluster, Home, SYSTEM};
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use std::process::Command;
use std::time::Duration;

/// Name of the secret that links `remote`, as `istioctl` names it.
pub fn secret_name(remote: &str) -> String {
    format!("istio-remote-secret-{remote}")
}

/// `isthmus create-remote-secret --name REMOTE`: the manifest for another cluster.
pub fn remote_secret(home: &Home, remote: &Cluster) -> Result<String> {
    let mut command = Command::new(&home.parts.isthmus);
    command
        .args(["create-remote-secret", "--name", remote.name(), "--context", remote.name()])
        .args(["--server", &remote.api.url, "--kubeconfig"])
        .arg(home.operator());
    output(&mut command)
}

/// A remote secret by hand, in Istio's shape, with a credential that may do what decision 3 lists:
/// for scenarios that must not depend on the program `isthmus`, and for secrets it refuses to make.
pub async fn remote_secret_by_hand(remote: &Cluster) -> Result<Value> {
    apply_yaml(remote.client(), READER).await?;
    let token = remote.launcher.token(SYSTEM, "isthmus-reader", &[], 86_400, None).await?;
    let kubeconfig = remote.api.kubeconfig_for(remote.name(), &remote.api.url, &token);
    Ok(secret_of(remote.name(), &kubeconfig))
}

/// A remote secret around any kubeconfig.
pub fn secret_of(remote: &str, kubeconfig: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Secret",
        "metadata": {
            "name": secret_name(remote), "namespace": SYSTEM,
            "labels": {"istio/multiCluster": "true"},
            "annotations": {"networking.istio.io/cluster": remote},
        },
        "stringData": {remote: kubeconfig},
    })
}

const READER: &str = "
apiVersion: v1
kind: ServiceAccount
metadata: {name: isthmus-reader, namespace: isthmus-system}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: isthmus-link-reader}
rules:
- {apiGroups: [isthmus.dev], resources: [exportedservices, clusterlinks], verbs: [get, list, watch]}
- {apiGroups: [''], resources: [namespaces], resourceNames: [kube-system], verbs: [get]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: isthmus-link-reader}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: isthmus-link-reader}
subjects: [{kind: ServiceAccount, name: isthmus-reader, namespace: isthmus-system}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: isthmus-link-reader, namespace: isthmus-system}
rules:
- {apiGroups: [''], resources: [services], verbs: [get, list, watch]}
- {apiGroups: [''], resources: [configmaps], resourceNames: [isthmus-mesh], verbs: [get, list, watch]}
- {apiGroups: [''], resources: [serviceaccounts/token], resourceNames: [isthmus-reader], verbs: [create]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: isthmus-link-reader, namespace: isthmus-system}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: isthmus-link-reader}
subjects: [{kind: ServiceAccount, name: isthmus-reader, namespace: isthmus-system}]
";

/// Consent: `spec.accepted` and the namespaces it may announce.
pub async fn accept(here: &Cluster, remote: &str, namespaces: &[&str]) -> Result<()> {
    let link = json!({
        "apiVersion": "isthmus.dev/v1alpha1", "kind": "ClusterLink",
        "metadata": {"name": remote, "namespace": SYSTEM},
        "spec": {
            "accepted": true, "import": {"namespaces": namespaces},
            "secret": {"namespace": SYSTEM, "name": secret_name(remote)},
        },
    });
    apply(here.client(), &link).await.map(|_| ())
}

/// Links two clusters both ways: `isthmus link A B`.
pub async fn both_ways(home: &Home, a: &Cluster, b: &Cluster) -> Result<String> {
    let mut command = Command::new(&home.parts.isthmus);
    command.args(["link", a.name(), b.name(), "--import", "shop", "--kubeconfig"]);
    command.arg(home.operator());
    let ranges = [a, b].map(|cluster| home.place.gateway_range(cluster.plan.number));
    let ranges: Vec<String> = ranges.into_iter().flatten().collect();
    if !ranges.is_empty() {
        // Nobody means loopback by accident: both the API servers and the gateways are named.
        command.args(["--allow-loopback", "--gateway-ranges", &ranges.join(",")]);
    }
    // Who is interrupted here must not leave it waiting for clusters that are gone.
    let mut command = tokio::process::Command::from(command);
    let out = command.kill_on_drop(true).output().await.context("starting isthmus link")?;
    let said = String::from_utf8_lossy(&out.stderr);
    let pair = format!("{} {}", a.name(), b.name());
    ensure!(out.status.success(), "isthmus link {pair} ended with {}: {said}", out.status);
    Ok(String::from_utf8(out.stdout)?)
}

/// What the federation controller of `here` says of its link to `remote` on its admin page, which
/// answers also while its own API server is down.
pub async fn on_page(here: &Cluster, remote: &str) -> Result<Value> {
    let links = all_on_page(here).await?;
    let found = links.iter().find(|link| link["name"] == remote);
    Ok(found.with_context(|| format!("/links has no {remote}: {links:?}"))?.clone())
}

/// All links on that page.
pub async fn all_on_page(here: &Cluster) -> Result<Vec<Value>> {
    let address = here.pages(15024);
    let limit = Duration::from_secs(2);
    let node = here.spot.door();
    let (_, body) = tokio::task::spawn_blocking(move || {
        crate::spot::http_get_at(&node, address, "/links", limit)
    })
    .await??;
    let page: Value = serde_json::from_str(&body).context("/links is not JSON")?;
    Ok(page["links"].as_array().context("/links lists no links")?.clone())
}

/// The ClusterLink of `remote` in `here`; `None` where there is none.
pub async fn read(here: &Cluster, remote: &str) -> Result<Option<Value>> {
    let links = api(here.client(), "isthmus.dev/v1alpha1", "ClusterLink", SYSTEM);
    let link = links.get_opt(remote).await?;
    Ok(link.map(|link| serde_json::to_value(link).expect("objects are JSON")))
}

/// A condition of a link: status, reason and message.
pub fn condition(link: &Value, kind: &str) -> Option<(String, String, String)> {
    // A page has them at its root, an object in its status.
    let all = link["conditions"].as_array().or_else(|| link["status"]["conditions"].as_array())?;
    let found = all.iter().find(|condition| condition["type"] == kind)?;
    let text = |field: &str| found[field].as_str().unwrap_or_default().to_owned();
    Some((text("status"), text("reason"), text("message")))
}

/// Waits until a link satisfies `wanted`; says how long it took.
pub async fn until(
    here: &Cluster,
    remote: &str,
    what: &str,
    limit: Duration,
    wanted: impl Fn(Option<&Value>) -> bool,
) -> Result<Duration> {
    let start = tokio::time::Instant::now();
    loop {
        let link = read(here, remote).await?;
        if wanted(link.as_ref()) {
            return Ok(start.elapsed());
        }
        if start.elapsed() > limit {
            let link = link.map_or_else(|| "no object".into(), |link| link["status"].to_string());
            bail!("link {remote} in {}: not {what} after {limit:?}: {link}", here.name());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Waits until a link's condition has a status.
pub async fn until_condition(
    here: &Cluster,
    remote: &str,
    kind: &str,
    status: &str,
    limit: Duration,
) -> Result<Duration> {
    let what = format!("{kind}={status}");
    until(here, remote, &what, limit, |link| {
        link.and_then(|link| condition(link, kind)).is_some_and(|found| found.0 == status)
    })
    .await
    .with_context(|| format!("waiting for {what}"))
}
