//! Mistakes that people make with certificates and roots: `isthmus check`, `status` and `why` name each with
//! what mends it, and nobody is believed by mistake meanwhile.

use super::pod_mistakes::{HOOK, LIMIT, named, patch_hooks, silent, spotless, status};
use super::{HOST, Stage, until};
use anyhow::{Context, Result, bail, ensure};
use fleet::authority::Authority;
use fleet::hello::Answer;
use fleet::nodes::HELLO;
use fleet::objects;
use fleet::verdict::{Kind, figures};
use serde_json::{Value, json};
use std::time::Duration;

const SYSTEM: &str = "isthmus-system";
/// West's copies alone, of the name that scenarios call.
const WEST: &str = "hello.shop.west.global";
/// Where the webhook of yesterday is: its namespace, and its Service.
const YESTERDAY: &str = "yesterday";
const INJECTOR: &str = "injector";
const PLACE: &str = "yesterday/injector";

/// What the lines say that mends it.
const INSTALL: &str = "isthmus install --context west";
const ISSUE: &str = "isthmus trust issue west --dir DIR --apply --context west";

pub(super) async fn trust_mistakes(stage: &Stage<'_>) -> Result<()> {
    stage.in_use([1, 2, 1]).await?;
    // Old enough to be judged.
    tokio::time::sleep(Duration::from_secs(35)).await;
    healthy(stage, "three healthy clusters").await;
    expired(stage).await?;
    another_root(stage).await?;
    healthy(stage, "all of it undone").await;
    stage.shop_gone().await
}

async fn healthy(stage: &Stage<'_>, what: &str) {
    let said = until(LIMIT, "a fleet without complaint", async || spotless(stage).await).await;
    stage.judge(
        &format!("{what}: check has no red line and no warning"),
        &said.as_ref().map_or_else(|error| format!("{error:#}"), Clone::clone),
        said.is_ok(),
    );
}

/// What `isthmus` is told of a root in the run's folder.
struct Root {
    dir: String,
    passphrase: String,
}

impl Root {
    /// One that [`Stage::install`] made, or that `isthmus trust init` is to make.
    fn at(stage: &Stage<'_>, name: &str) -> Self {
        let path = |name: &str| stage.pods.run.join(name).display().to_string();
        Self { dir: path(name), passphrase: path("passphrase") }
    }

    /// A verb with the key of this root.
    async fn key(&self, stage: &Stage<'_>, verb: &[&str], more: &[&str]) -> Result<String> {
        let key = ["--dir", &self.dir, "--passphrase-file", &self.passphrase];
        stage.isthmus(&[verb, &key, more].concat()).await
    }
}

/// West's webhook leads to a server of the mesh's own authority whose certificate's time is over.
async fn expired(stage: &Stage<'_>) -> Result<()> {
    let root = Root::at(stage, "trust");
    let issued = root.key(stage, &["trust", "issue", "west"], &["-o", "json"]).await?;
    let issued: Value = serde_json::from_str(&issued)?;
    let file = |name: &str| issued["stringData"][name].as_str().context("trust issue has no key");
    let (authority, key) = (file("ca-cert.pem")?, file("ca-key.pem")?);
    let name = format!("{INJECTOR}.{YESTERDAY}.svc");
    let pair = Authority::from_pem(authority, key)?.expired(&name)?;
    let west = stage.pods.cluster("west");
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "pki", "namespace": YESTERDAY},
        "stringData": {"chain.pem": pair.certificate + authority, "key.pem": pair.key},
    });
    let yaml = format!(
        r#"
apiVersion: v1
kind: Namespace
metadata: {{name: {YESTERDAY}}}
---
apiVersion: v1
kind: ServiceAccount
metadata: {{name: default, namespace: {YESTERDAY}}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {{name: {INJECTOR}, namespace: {YESTERDAY}}}
spec:
  selector: {{matchLabels: {{app: {INJECTOR}}}}}
  template:
    metadata: {{labels: {{app: {INJECTOR}}}}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - name: {INJECTOR}
        image: {HELLO}
        command: [/usr/bin/isthmus-e2e, forger, --listen, "0.0.0.0:8443"]
        args: [--chain, /pki/chain.pem, --key, /pki/key.pem]
        volumeMounts: [{{name: pki, mountPath: /pki}}]
        readinessProbe: {{tcpSocket: {{port: 8443}}, periodSeconds: 1}}
      volumes: [{{name: pki, secret: {{secretName: pki}}}}]
---
apiVersion: v1
kind: Service
metadata: {{name: {INJECTOR}, namespace: {YESTERDAY}}}
spec:
  selector: {{app: {INJECTOR}}}
  ports: [{{port: 443, targetPort: 8443}}]
"#
    );
    objects::apply_yaml(&west.client, &yaml).await?;
    objects::apply(&west.client, &secret).await?;
    west.deployment_ready(YESTERDAY, INJECTOR, LIMIT).await?;
    let service = json!({"name": INJECTOR, "namespace": YESTERDAY, "path": "/inject", "port": 443});
    patch_hooks(stage, "service", &service).await?;

    let dry = ["-n", "shop", "run", "new", "--image", HELLO, "--dry-run=server"];
    let refused =
        until(LIMIT, "a pod that is refused", async || match stage.kubectl("west", &dry).await {
            Err(said) if format!("{said:#}").contains("expired") => Ok(format!("{said:#}")),
            other => bail!("{other:?}"),
        })
        .await;
    stage.judge(
        "a webhook whose certificate expired: the API server refuses pods for that, none is made without a sidecar",
        refused.as_deref().unwrap_or("none was refused for that"),
        refused.is_ok(),
    );
    let words: &[&str] =
        &["west", HOOK, PLACE, "certificate has expired", "is after 2024", INSTALL];
    named(stage, &[("a webhook whose certificate expired", "ISM2635", words)]).await?;
    // By the fix that the line names.
    stage.isthmus(&["install", "--context", "west"]).await?;
    silent(stage, "silence after its fix", &["ISM2629", "ISM2630", "ISM2635"]).await?;
    super::gone(west, YESTERDAY).await
}

/// West gets its signing key from the folder of another mesh's root, and then everything else, too.
async fn another_root(stage: &Stage<'_>) -> Result<()> {
    let (own, other) = (Root::at(stage, "trust"), Root::at(stage, "another-mesh"));
    other.key(stage, &["trust", "init", "another-mesh"], &[]).await?;
    let (records, moved) =
        tokio::join!(stage.load(HOST, 100, 150), moved_and_judged(stage, &other));
    moved?;
    let all = figures(&records?, Kind::Get, 0, u64::MAX);
    stage.judge(
        "100 GETs a second from east while west moves to another root: none fails",
        &all.to_string(),
        all.requests > 0 && all.failed + all.cut == 0,
    );
    // By the fix that the lines name.
    let apply = ["--apply", "--context", "west"];
    own.key(stage, &["trust", "issue", "west"], &apply).await?;
    let key = ["--trust-dir", &own.dir, "--passphrase-file", &own.passphrase];
    stage.isthmus(&[&["install", "--context", "west"][..], &key].concat()).await?;
    programs_anew(stage).await?;
    anew(stage).await?;
    let back = until(LIMIT, "west's answer", async || {
        let answer: Answer = serde_json::from_str(&stage.curl(&format!("http://{WEST}/")).await?)?;
        ensure!(answer.cluster == "west", "{} answers", answer.cluster);
        Ok(answer.pod)
    })
    .await;
    stage.judge(
        "west has the mesh's root again: east reaches its copies",
        &back.as_ref().map_or_else(|error| format!("{error:#}"), Clone::clone),
        back.is_ok(),
    );
    Ok(())
}

async fn moved_and_judged(stage: &Stage<'_>, other: &Root) -> Result<()> {
    other.key(stage, &["trust", "issue", "west"], &["--apply", "--context", "west"]).await?;
    restart(stage, "west", SYSTEM, "deployment/isthmus-control-plane").await?;
    let words: &[&str] = &["west", "Secret cacerts", "another root", ISSUE];
    named(stage, &[("a signing key of another root", "ISM2609", words)]).await?;

    // East's controller looks away: its proxies go on with what it wrote of west, and are on their own.
    let get = ["-n", SYSTEM, "get", "deployment/isthmus-federation-controller"];
    let get = [&get[..], &["-o", "jsonpath={.spec.replicas}"]].concat();
    let replicas = stage.kubectl("east", &get).await?;
    let scale = async |replicas: &str| {
        let scale = ["-n", SYSTEM, "scale", "deployment/isthmus-federation-controller"];
        let replicas = format!("--replicas={replicas}");
        stage.kubectl("east", &[&scale[..], &[&replicas]].concat()).await
    };
    scale("0").await?;
    let said = stage.isthmus(&["install", "--context", "west"]).await;
    let said =
        said.map_or_else(|error| format!("{error:#}"), |said| format!("it installed: {said}"));
    stage.judge(
        "install does not choose between that key's root and the one that west's workloads trust",
        &said,
        said.contains("ISM2089") && said.contains(ISSUE),
    );
    stage.isthmus(&["install", "--context", "west", "--trust-dir", &other.dir]).await?;
    programs_anew(stage).await?;
    anew(stage).await?;
    let words: &[&str] = &["west", "different root certificates", ISSUE, "--trust-dir DIR"];
    named(stage, &[("a cluster whose root differs", "ISM2608", words)]).await?;
    refused(stage).await?;

    scale(&replicas).await?;
    let words: &[&str] = &["RootsDiffer", "cluster west has other root certificates"];
    let told = until(LIMIT, "status naming the link", async || {
        let said = status(stage).await?;
        let line = said.lines().find(|it| it.contains("east->west") && contains(it, words));
        line.map(str::to_owned).with_context(|| said.clone())
    })
    .await;
    stage.judge(
        "status says that east's link to west is not trusted, and the fix",
        &told.as_ref().map_or_else(|error| format!("{error:#}"), Clone::clone),
        told.is_ok_and(|line| line.contains("isthmus trust issue")),
    );
    let pod =
        stage.kubectl("east", &["-n", "shop", "get", "pods", "-l", "app=tools", "-o", "name"]);
    let pod = pod.await?.trim().to_owned();
    let call = ["why", &pod, &format!("{WEST}:80"), "-n", "shop", "--context", "east"];
    let said = stage.isthmus(&call).await.unwrap_or_else(|error| error.to_string());
    let line = said.lines().find(|line| line.contains("link west: ISM2618"));
    stage.judge(
        "why says so of a call to west, and the fix",
        line.unwrap_or(&said),
        line.is_some_and(|it| contains(it, words) && it.contains("Fix: ")),
    );
    Ok(())
}

/// East's proxies dial west's gateway as ever, and believe nobody behind it.
async fn refused(stage: &Stage<'_>) -> Result<()> {
    let exec = ["-n", "shop", "exec", "deployment/tools", "-c", "tools", "--"];
    let url = format!("http://{WEST}/");
    let curl = ["curl", "-sS", "-m", "5", "-w", "\n%{http_code}", &url];
    let mut said = vec![];
    for _ in 0..10 {
        let one = stage.kubectl("east", &[&exec[..], &curl].concat()).await;
        said.push(one.unwrap_or_else(|error| format!("{error:#}")).replace('\n', " "));
    }
    let answered = said.iter().find(|it| !it.ends_with("503") || it.contains("\"cluster\""));
    // No root certificate of ours leads to the peer's certificate.
    let logs = ["-n", "shop", "logs", "deployment/tools", "-c", "isthmus-proxy", "--since=60s"];
    let logs = stage.kubectl("east", &logs).await?;
    let lines = logs.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let whys = lines.filter(|line| line["authority"] == WEST);
    let whys = whys.filter_map(|line| line["response_code_details"].as_str().map(str::to_owned));
    let whys: Vec<String> = whys.filter(|why| why.contains("ISM5204")).collect();
    let why = whys.first().map_or("the sidecar names no root", String::as_str);
    stage.judge(
        "10 calls to west's copies, while east's controller looks away: refused for their root, none answered",
        &answered.map_or_else(|| format!("{} times {why}", whys.len()), Clone::clone),
        answered.is_none() && !whys.is_empty(),
    );
    Ok(())
}

fn contains(text: &str, words: &[&str]) -> bool {
    words.iter().all(|word| text.contains(word))
}

/// West's copies are made anew, and those before them are gone: they were the mesh's until their end.
async fn anew(stage: &Stage<'_>) -> Result<()> {
    let pods = async || {
        let get = ["-n", "shop", "get", "pods", "-l", "app=hello", "-o", "name"];
        stage.kubectl("west", &get).await
    };
    let before = pods().await?;
    restart(stage, "west", "shop", "deployment/hello").await?;
    until(LIMIT, "the end of copies before", async || {
        let now = pods().await?;
        let left = before.lines().find(|pod| now.contains(pod));
        ensure!(left.is_none(), "{left:?} is still there");
        Ok(())
    })
    .await
}

/// West's programs, the control plane first: each begins with the root that it finds.
async fn programs_anew(stage: &Stage<'_>) -> Result<()> {
    for program in ["control-plane", "federation-controller", "eastwestgateway"] {
        restart(stage, "west", SYSTEM, &format!("deployment/isthmus-{program}")).await?;
    }
    Ok(())
}

async fn restart(stage: &Stage<'_>, cluster: &str, namespace: &str, what: &str) -> Result<()> {
    stage.kubectl(cluster, &["-n", namespace, "rollout", "restart", what]).await?;
    let wait = ["-n", namespace, "rollout", "status", "--timeout=120s", what];
    stage.kubectl(cluster, &wait).await.map(|_| ())
}
