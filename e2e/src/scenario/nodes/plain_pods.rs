//! What anybody's cluster does without a mesh, on each of the three: the ground the others stand on.

use super::{Stage, gone, until};
use anyhow::{Context, Result};
use fleet::hello::Answer;
use fleet::nodes::{HELLO, TOOLS};
use fleet::pods::PodCluster;
use fleet::{load, objects};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(90);

/// What one cluster showed.
struct Seen {
    by_name: Answer,
    resolved: String,
    logs: String,
    address: Ipv4Addr,
    from_wan: Answer,
    token: Value,
    pods: BTreeMap<String, Ipv4Addr>,
}

pub(super) async fn plain_pods(stage: &Stage<'_>) -> Result<()> {
    let all = stage.pods.clusters.values().map(async |cluster| {
        let name = cluster.name;
        let seen = look(stage, cluster).await.with_context(|| format!("cluster {name}"))?;
        anyhow::Ok((name, seen))
    });
    let seen: BTreeMap<_, _> = futures::future::try_join_all(all).await?.into_iter().collect();
    for (name, seen) in &seen {
        judge(stage, stage.pods.cluster(name), seen);
    }
    let ranges: Vec<_> =
        seen.iter().map(|(name, seen)| format!("{name}: {:?}", seen.pods)).collect();
    // Each cluster has one node, which has a part of the range of all pods: the same one in each.
    let part = |address: &Ipv4Addr| address.octets()[..3].to_vec();
    let parts: BTreeSet<_> = seen.values().flat_map(|seen| seen.pods.values().map(part)).collect();
    stage.judge(
        "pods of all clusters have addresses of one range",
        &ranges.join("; "),
        seen.values().all(|seen| !seen.pods.is_empty())
            && parts.len() == 1
            && parts.iter().all(|part| part[..2] == [10, 244]),
    );
    let gone = stage.pods.clusters.values().map(|cluster| gone(cluster, "shop"));
    futures::future::try_join_all(gone).await.map(|_| ())
}

fn judge(stage: &Stage<'_>, whose: &PodCluster, seen: &Seen) {
    let (name, (first, last)) = (whose.name, whose.balanced);
    let Answer { cluster, pod, peer, .. } = &seen.by_name;
    stage.judge(
        &format!(
            "{name}: kubectl exec, and curl http://hello.shop/ answers through the cluster's DNS"
        ),
        &format!("{cluster}/{pod} saw {peer}"),
        cluster == name && pod.starts_with("hello-"),
    );
    stage.judge(
        &format!("{name}: the name is the Service's virtual address"),
        &seen.resolved,
        seen.resolved.contains("Address: 10.96."),
    );
    stage.judge(
        &format!("{name}: kubectl logs says what the container said"),
        seen.logs.trim(),
        seen.logs.trim() == format!("tools of {name}"),
    );
    let Answer { cluster, pod, .. } = &seen.from_wan;
    stage.judge(
        &format!("{name}: a Service of type LoadBalancer answers from the WAN"),
        &format!("{} is {cluster}/{pod}", seen.address),
        cluster == name && (first..=last).contains(&seen.address),
    );
    let (status, user) = (&seen.token["status"], &seen.token["status"]["user"]);
    let pod = &user["extra"]["authentication.kubernetes.io/pod-name"][0];
    stage.judge(
        &format!("{name}: a projected token for the audience istio-ca proves the pod's account"),
        &format!("{} of pod {pod}, audiences {}", user["username"], status["audiences"]),
        status["authenticated"] == true
            && user["username"] == "system:serviceaccount:shop:tools"
            && status["audiences"] == json!(["istio-ca"])
            && pod == "tools",
    );
}

async fn look(stage: &Stage<'_>, cluster: &PodCluster) -> Result<Seen> {
    let (name, client) = (cluster.name, &cluster.client);
    objects::apply_yaml(client, &manifests(name)).await?;
    cluster.deployment_ready("shop", "hello", LIMIT).await?;
    let wait = ["-n", "shop", "wait", "pod/tools", "--for=condition=Ready", "--timeout=60s"];
    stage.kubectl(name, &wait).await?;
    let exec = async |command: &[&str]| {
        let args = [&["-n", "shop", "exec", "tools", "--"], command].concat();
        stage.kubectl(name, &args).await
    };
    let by_name = until(LIMIT, "calling hello by its name", async || {
        let said = exec(&["curl", "-sS", "-m", "5", "http://hello.shop/"]).await?;
        serde_json::from_str(&said).context("an answer that is not hello's")
    })
    .await?;
    let resolved = exec(&["nslookup", "hello.shop.svc.cluster.local"]).await?;
    let logs = stage.kubectl(name, &["-n", "shop", "logs", "tools"]).await?;
    let services = objects::api(client, "v1", "Service", "shop");
    let address = until(LIMIT, "the address of the load balancer", async || {
        let service = services.get("hello-wan").await?;
        let ingress = &service.data["status"]["loadBalancer"]["ingress"][0]["ip"];
        Ok(ingress.as_str().context("it has no address")?.parse()?)
    })
    .await?;
    // This program runs where the WAN is.
    let from_wan = until(LIMIT, "calling the load balancer", async || {
        let body = load::get(&format!("http://{address}/"), None, Duration::from_secs(5)).await?;
        serde_json::from_str(&body).context("an answer that is not hello's")
    })
    .await?;
    let token = exec(&["cat", "/var/run/secrets/tokens/istio-token"]).await?;
    let token = review(client, token.trim()).await?;
    let pods = objects::api(client, "v1", "Pod", "shop").list(&Default::default()).await?;
    let addresses = pods.items.into_iter().map(|pod| {
        let address = pod.data["status"]["podIP"].as_str().context("a pod without address")?;
        anyhow::Ok((pod.metadata.name.context("a pod without name")?, address.parse()?))
    });
    let pods = addresses.collect::<Result<_>>()?;
    let resolved = resolved.lines().filter(|line| !line.is_empty()).collect::<Vec<_>>().join(" ");
    Ok(Seen { by_name, resolved, logs, address, from_wan, token, pods })
}

/// What the API server says of a token, as the certificate service would ask.
async fn review(client: &kube::Client, token: &str) -> Result<Value> {
    let body = json!({
        "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview",
        "spec": {"token": token, "audiences": ["istio-ca"]},
    });
    let request = http::Request::post("/apis/authentication.k8s.io/v1/tokenreviews")
        .header("content-type", "application/json")
        .body(serde_json::to_vec(&body)?)?;
    Ok(client.request(request).await?)
}

fn manifests(cluster: &str) -> String {
    format!(
        r#"
apiVersion: v1
kind: Namespace
metadata: {{name: shop}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {{name: hello, namespace: shop}}
spec:
  replicas: 2
  selector: {{matchLabels: {{app: hello}}}}
  template:
    metadata: {{labels: {{app: hello}}}}
    spec:
      containers:
      - name: hello
        image: {HELLO}
        args: [--cluster, {cluster}, --pod, $(POD)]
        env:
        - name: POD
          valueFrom: {{fieldRef: {{fieldPath: metadata.name}}}}
        ports:
        - {{name: http, containerPort: 8080}}
        readinessProbe:
          httpGet: {{path: /, port: http}}
          periodSeconds: 1
---
apiVersion: v1
kind: Service
metadata: {{name: hello, namespace: shop}}
spec:
  selector: {{app: hello}}
  ports:
  - {{name: http, port: 80, targetPort: http}}
---
apiVersion: v1
kind: Service
metadata: {{name: hello-wan, namespace: shop}}
spec:
  type: LoadBalancer
  selector: {{app: hello}}
  ports:
  - {{name: http, port: 80, targetPort: http}}
---
apiVersion: v1
kind: ServiceAccount
metadata: {{name: tools, namespace: shop}}
---
apiVersion: v1
kind: Pod
metadata: {{name: tools, namespace: shop}}
spec:
  serviceAccountName: tools
  terminationGracePeriodSeconds: 0
  containers:
  - name: tools
    image: {TOOLS}
    command: [sh, -c, echo tools of {cluster}; exec sleep infinity]
    volumeMounts:
    - {{name: token, mountPath: /var/run/secrets/tokens, readOnly: true}}
  volumes:
  - name: token
    projected:
      sources:
      - serviceAccountToken: {{path: istio-token, audience: istio-ca, expirationSeconds: 43200}}
"#
    )
}
