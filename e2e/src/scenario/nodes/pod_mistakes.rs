//! Mistakes that people make with pods, their namespaces, the webhook and the load balancer: `isthmus check`
//! and `isthmus why` name each, and say nothing once it is undone.

use super::{ALL_CLUSTERS, HOST, Stage, until};
use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use fleet::hello::Answer;
use fleet::nodes::TOOLS;
use fleet::objects;
use fleet::verdict::{Kind, figures};
use serde_json::{Value, json};
use std::time::Duration;

/// A pod is judged when it is 30 s old; an image that is nowhere needs its time, too.
const NAMED: Duration = Duration::from_secs(120);
pub(super) const LIMIT: Duration = Duration::from_secs(120);
pub(super) const HOOK: &str = "sidecar-injector.isthmus.dev";
const GATEWAY: &str = "isthmus-eastwestgateway";

const EARLY: &str = "a pod made before its namespace's label";
/// What the lines say that mends it.
const RESTART: &str = "-n early rollout restart deployment/early";
const LABEL: &str = "label namespace shop istio-injection=enabled";

/// A mistake, its code, and the words that its line has.
pub(super) type Named = (&'static str, &'static str, &'static [&'static str]);

pub(super) async fn pod_mistakes(stage: &Stage<'_>) -> Result<()> {
    stage.in_use([1, 2, 1]).await?;
    // Old enough to be judged.
    tokio::time::sleep(Duration::from_secs(35)).await;
    let first = until(LIMIT, "a fleet without complaint", async || spotless(stage).await).await;
    stage.judge(
        "three healthy clusters: check has no red line and no warning",
        &first.as_ref().map_or_else(|error| format!("{error:#}"), Clone::clone),
        first.is_ok(),
    );
    pods(stage).await?;
    no_label(stage).await?;
    webhook(stage).await?;
    lease(stage).await?;
    load_balancer(stage).await?;
    let last = until(LIMIT, "a fleet without complaint", async || spotless(stage).await).await;
    stage.judge(
        "all of it undone: check has no red line and no warning again",
        &last.as_ref().map_or_else(|error| format!("{error:#}"), Clone::clone),
        last.is_ok(),
    );
    stage.shop_gone().await
}

/// What `isthmus check` says, good or bad: its lines and their consequences.
pub(super) async fn check(stage: &Stage<'_>) -> Result<(f64, Vec<Value>)> {
    let out = tokio::process::Command::new(&stage.pods.isthmus)
        .args(["check", "-o", "json"])
        .args(ALL_CLUSTERS)
        .env("KUBECONFIG", &stage.pods.operator)
        .kill_on_drop(true)
        .output()
        .await?;
    let said: Value = serde_json::from_slice(&out.stdout)
        .with_context(|| format!("check: {}", String::from_utf8_lossy(&out.stderr)))?;
    let lines = said["lines"].as_array().context("check has no lines")?;
    let all = lines.iter().flat_map(|line| {
        let more = line["consequences"].as_array().into_iter().flatten();
        std::iter::once(line).chain(more)
    });
    let wrong = all.filter(|line| line["mark"] != "good").cloned().collect();
    Ok((said["seconds"].as_f64().unwrap_or_default(), wrong))
}

/// What `isthmus status` prints, whatever it thinks of it.
pub(super) async fn status(stage: &Stage<'_>) -> Result<String> {
    let call = [&["status"][..], &ALL_CLUSTERS].concat();
    // Its complaint carries what it printed.
    Ok(stage.isthmus(&call).await.unwrap_or_else(|error| error.to_string()))
}

pub(super) async fn spotless(stage: &Stage<'_>) -> Result<String> {
    let (seconds, wrong) = check(stage).await?;
    let said: Vec<String> = wrong.iter().map(sentence).collect();
    ensure!(said.is_empty(), "{}", said.join("; "));
    Ok(format!("nothing, in {seconds:.1} s"))
}

pub(super) fn sentence(line: &Value) -> String {
    let field = |name: &str| line[name].as_str().unwrap_or_default();
    let (mark, cluster, says) = (field("mark"), field("cluster"), field("says"));
    format!("{mark} {} {cluster}: {says} Fix: {}", field("code"), field("fix"))
}

/// The line of a mistake, if it is there.
pub(super) fn find(wrong: &[Value], (_, code, words): &Named) -> Option<String> {
    let lines = wrong.iter().filter(|line| line["code"] == *code).map(sentence);
    lines.into_iter().find(|text| words.iter().all(|word| text.contains(word)))
}

/// Waits until check names all of them, then judges each.
pub(super) async fn named(stage: &Stage<'_>, mistakes: &[Named]) -> Result<()> {
    let mut last = vec![];
    _ = until(NAMED, "check naming all of them", async || {
        last = check(stage).await?.1;
        let lacks = mistakes.iter().find(|it| find(&last, it).is_none());
        ensure!(lacks.is_none(), "{:?} is not named", lacks.map(|it| it.0));
        Ok(())
    })
    .await;
    for mistake in mistakes {
        let found = find(&last, mistake);
        let other = || format!("of {:?}", last.iter().map(sentence).collect::<Vec<_>>());
        stage.judge(
            &format!("{}: check names it by {} with its fix", mistake.0, mistake.1),
            &found.clone().unwrap_or_else(other),
            found.is_some_and(|said| !said.ends_with("Fix: ")),
        );
    }
    let said = status(stage).await?;
    let missing: Vec<&str> = mistakes
        .iter()
        .filter(|(_, code, words)| {
            !said
                .lines()
                .any(|line| line.contains(code) && words.iter().all(|word| line.contains(word)))
        })
        .map(|mistake| mistake.1)
        .collect();
    let codes: Vec<&str> = mistakes.iter().map(|mistake| mistake.1).collect();
    stage.judge(
        &format!("isthmus status says so too: {}", codes.join(", ")),
        if missing.is_empty() { "a line each" } else { &said },
        missing.is_empty(),
    );
    Ok(())
}

/// Waits until check says nothing of these codes any more.
pub(super) async fn silent(stage: &Stage<'_>, what: &str, codes: &[&str]) -> Result<()> {
    until(LIMIT, what, async || {
        let wrong = check(stage).await?.1;
        let left = wrong.iter().find(|line| codes.iter().any(|code| line["code"] == *code));
        ensure!(left.is_none(), "{}", left.map(sentence).unwrap_or_default());
        Ok(())
    })
    .await
}

/// A pod of its own; `spec` beside its container, `container` beside its command.
fn pod(name: &str, spec: &str, container: &str, more: &str) -> String {
    format!(
        r#"
---
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: shop}}
spec:
  terminationGracePeriodSeconds: 0
  {spec}
  containers:
  - {{name: app, command: [sh, -c, exec sleep infinity], {container}}}
{more}
"#
    )
}

async fn pods(stage: &Stage<'_>) -> Result<()> {
    let west = &stage.pods.cluster("west").client;
    let tools = format!("image: '{TOOLS}'");
    let second =
        format!("  - {{name: istio-proxy, command: [sh, -c, exec sleep infinity], {tools}}}");
    let yaml = pod("on-host", "hostNetwork: true", &tools, "")
        + &pod("own-1337", "securityContext: {runAsUser: 1337}", &tools, "")
        + &pod("no-image", "", "image: '127.0.0.1:1/nowhere:1'", "")
        + &pod("with-istio", "", &tools, &second)
        + "
---
apiVersion: v1
kind: Namespace
metadata: {name: early}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: default, namespace: early}
" + &super::shop::shell("early", "").replace("namespace: shop", "namespace: early");
    objects::apply_yaml(west, &yaml).await?;
    stage.pods.cluster("west").deployment_ready("early", "early", LIMIT).await?;
    let early = ["-n", "early", "get", "pods", "-o", "name"];
    let early = stage.kubectl("west", &early).await?;
    let early = early.lines().next().context("west has no pod early")?;
    let label = "label namespace early istio-injection=enabled";
    why(stage, "early", early, "a namespace without label", &[label]).await?;
    stage.kubectl("west", &["label", "namespace", "early", "istio-injection=enabled"]).await?;
    why(stage, "early", early, EARLY, &["ISM2626", RESTART]).await?;
    why(stage, "shop", "pod/on-host", "a pod on its host's network", &["ISM2710"]).await?;
    why(stage, "shop", "pod/own-1337", "a pod with uid 1337", &["ISM2712", "runAsUser"]).await?;

    named(
        stage,
        &[
            ("a pod on its host's network", "ISM2710", &["west", "on-host"]),
            ("a pod that runs as uid 1337", "ISM2712", &["west", "own-1337"]),
            ("an image that is nowhere", "ISM2628", &["west", "no-image", "127.0.0.1:1/nowhere:1"]),
            ("a pod with Istio's sidecar", "ISM2711", &["west", "with-istio", "istio-proxy"]),
            (EARLY, "ISM2626", &["west", "early-", RESTART]),
        ],
    )
    .await?;
    // By the fix that the line names.
    stage.kubectl("west", &["-n", "early", "rollout", "restart", "deployment/early"]).await?;
    silent(stage, "silence after its fix", &["ISM2626"]).await?;
    let delete = ["-n", "shop", "delete", "pod", "on-host", "own-1337", "no-image", "with-istio"];
    stage.kubectl("west", &[&delete[..], &["--grace-period=0", "--force"]].concat()).await?;
    super::gone(stage.pods.cluster("west"), "early").await
}

/// Judges what why says first of a pod in west.
async fn why(
    stage: &Stage<'_>,
    namespace: &str,
    pod: &str,
    what: &str,
    words: &[&str],
) -> Result<()> {
    let call = ["why", pod, &format!("{HOST}:80"), "-n", namespace, "--context", "west"];
    // It exits with 1 where nothing is reached.
    let said = stage.isthmus(&call).await.unwrap_or_else(|error| error.to_string());
    let line = said.lines().find(|line| line.contains("is not in the mesh"));
    stage.judge(
        &format!("{what}: why says that the pod has no sidecar, and how to get one"),
        line.unwrap_or(&said),
        line.is_some_and(|line| words.iter().all(|word| line.contains(word))),
    );
    Ok(())
}

/// West's shop loses its label, and its copies their sidecars.
async fn no_label(stage: &Stage<'_>) -> Result<()> {
    let restart = async || -> Result<()> {
        stage.kubectl("west", &["-n", "shop", "rollout", "restart", "deployment/hello"]).await?;
        let status = ["-n", "shop", "rollout", "status", "--timeout=120s", "deployment/hello"];
        stage.kubectl("west", &status).await.map(|_| ())
    };
    stage.kubectl("west", &["label", "namespace", "shop", "istio-injection-"]).await?;
    restart().await?;
    named(
        stage,
        &[("an exporting namespace without label", "ISM2627", &["west", "exports hello", LABEL])],
    )
    .await?;
    stage.kubectl("west", &["label", "namespace", "shop", "istio-injection=enabled"]).await?;
    restart().await?;
    silent(stage, "silence after its fix", &["ISM2627"]).await
}

async fn webhook(stage: &Stage<'_>) -> Result<()> {
    // Another injector for the same label. It is nowhere, and may be passed over.
    let rival = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration",
        "metadata": {"name": "istio-sidecar-injector"},
        "webhooks": [{
            "name": "namespace.sidecar-injector.istio.io",
            "clientConfig": {"service": {"name": "istiod", "namespace": "istio-system"}},
            "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"],
                "resources": ["pods"]}],
            "namespaceSelector": {"matchLabels": {"istio-injection": "enabled"}},
            "failurePolicy": "Ignore", "sideEffects": "None", "admissionReviewVersions": ["v1"],
        }],
    });
    let west = &stage.pods.cluster("west").client;
    objects::apply(west, &rival).await?;
    named(
        stage,
        &[("a second injector", "ISM2632", &["west", "istio-sidecar-injector", "namespace shop"])],
    )
    .await?;
    objects::delete(west, &rival).await?;

    // An authority that is not the mesh's: the cluster's own.
    let get =
        ["-n", "shop", "get", "configmap", "kube-root-ca.crt", "-o", "jsonpath={.data.ca\\.crt}"];
    let bundle = stage.kubectl("west", &get).await?;
    let bundle = base64::engine::general_purpose::STANDARD.encode(bundle);
    patch_hooks(stage, "caBundle", &json!(bundle)).await?;
    let words: &[&str] = &["west", "caBundle", "x509", "isthmus install --context west"];
    named(stage, &[("a caBundle of another authority", "ISM2629", words)]).await?;
    stage.install().await?;
    silent(stage, "silence after its fix", &["ISM2629", "ISM2630"]).await?;

    // Nobody answers it.
    let scale = async |replicas: &str| {
        let scale = ["-n", "isthmus-system", "scale", "deployment/isthmus-control-plane"];
        stage.kubectl("west", &[&scale[..], &[replicas]].concat()).await
    };
    scale("--replicas=0").await?;
    named(stage, &[("a webhook that nobody answers", "ISM2630", &["west", HOOK])]).await?;
    scale("--replicas=2").await?;
    let control = "isthmus-control-plane";
    stage.pods.cluster("west").deployment_ready("isthmus-system", control, LIMIT).await?;
    silent(stage, "silence after its fix", &["ISM2630"]).await
}

/// Writes one field of the client configuration of all of west's webhooks.
pub(super) async fn patch_hooks(stage: &Stage<'_>, field: &str, value: &Value) -> Result<()> {
    let hooks = ["get", "mutatingwebhookconfiguration", HOOK, "-o", "jsonpath={.webhooks[*].name}"];
    let count = stage.kubectl("west", &hooks).await?.split_whitespace().count();
    let one = |hook| {
        let path = format!("/webhooks/{hook}/clientConfig/{field}");
        json!({"op": "replace", "path": path, "value": value})
    };
    let patch = Value::from((0..count).map(one).collect::<Vec<_>>()).to_string();
    let call = ["patch", "mutatingwebhookconfiguration", HOOK, "--type=json", "-p", &patch];
    stage.kubectl("west", &call).await.map(|_| ())
}

/// The clock of a node cannot be set apart from its machine's: its Lease is written as such a node's
/// kubelet would, until the true one renews it 10 s later.
async fn lease(stage: &Stage<'_>) -> Result<()> {
    let node = stage.kubectl("west", &["get", "nodes", "-o", "name"]).await?;
    let node = node.lines().next().context("west has no node")?.replace("node/", "");
    let mistake: Named =
        ("a node's Lease renewed 5 minutes ago by its clock", "ISM2631", &["west", "s behind"]);
    let old = async || {
        let past = jiff::Timestamp::now() - jiff::SignedDuration::from_mins(5);
        let patch = json!({"spec": {"renewTime": format!("{past:.6}")}}).to_string();
        let call = ["-n", "kube-node-lease", "patch", "lease", &node, "--type=merge", "-p", &patch];
        stage.kubectl("west", &call).await
    };
    let found = until(NAMED, "check and status naming the clock", async || {
        old().await?;
        let said = find(&check(stage).await?.1, &mistake).context("check does not name it")?;
        old().await?;
        let line = status(stage).await?;
        let line = line.lines().any(|it| it.contains("ISM2631") && it.contains(&node));
        ensure!(line, "status does not name it");
        Ok(said)
    })
    .await;
    stage.judge(
        &format!("{}: check and status name the node by {}", mistake.0, mistake.1),
        &found.as_ref().map_or_else(|error| format!("{error:#}"), Clone::clone),
        found.is_ok_and(|said| said.contains(&node)),
    );
    silent(stage, "silence after the true renewal", &["ISM2631"]).await
}

/// West's gateway loses its address, and gets another.
async fn load_balancer(stage: &Stage<'_>) -> Result<()> {
    let ask = async |address: Option<&str>| {
        let patch = json!({"spec": {"loadBalancerIP": address}}).to_string();
        let call =
            ["-n", "isthmus-system", "patch", "service", GATEWAY, "--type=merge", "-p", &patch];
        stage.kubectl("west", &call).await
    };
    let address = async || {
        let path = "jsonpath={.status.loadBalancer.ingress[0].ip}";
        let get = ["-n", "isthmus-system", "get", "service", GATEWAY, "-o", path];
        stage.kubectl("west", &get).await
    };
    let before = address().await?;
    // None that the load balancer could give.
    ask(Some("203.0.113.1")).await?;
    let words: &[&str] = &["west", GATEWAY, "no address"];
    named(stage, &[("a load balancer that gives no address", "ISM3032", words)]).await?;
    let (others, _) = before.rsplit_once('.').context("west's gateway had no address")?;
    let other = format!("{others}.177");
    ask(Some(&other)).await?;
    until(LIMIT, "the other address", async || {
        let now = address().await?;
        ensure!(now == other, "it is {now}");
        Ok(())
    })
    .await?;
    let begun = std::time::Instant::now();
    let through = until(LIMIT, "calls by the other address", async || {
        let said = stage.curl("http://hello.shop.west.global/").await?;
        let answer: Answer = serde_json::from_str(&said)?;
        ensure!(answer.cluster == "west", "{} answers", answer.cluster);
        Ok(answer)
    })
    .await;
    stage.judge(
        "the gateway's address is another after a time without: calls go through it",
        &format!("{before} -> {other}, {:.1} s after it is told", begun.elapsed().as_secs_f64()),
        through.is_ok(),
    );
    let change = async {
        tokio::time::sleep(Duration::from_secs(6)).await;
        ask(Some(&before)).await
    };
    let (records, changed) = tokio::join!(stage.load(HOST, 100, 20), change);
    changed?;
    let all = figures(&records?, Kind::Get, 0, u64::MAX);
    stage.judge(
        "the address changes under 100 GETs a second: none fails",
        &all.to_string(),
        all.requests > 0 && all.failed + all.cut == 0,
    );
    ask(None).await?;
    silent(stage, "silence after an address", &["ISM3032", "ISM2616"]).await
}
