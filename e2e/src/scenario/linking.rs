//! `isthmus link --fleet`: a plan first, links each with each, the next cluster by one command; and a bad
//! object in one cluster, which changes nothing in the others.

use super::cli::{Said, isthmus, versions};
use super::links::{linked, only_linked};
use super::mistakes::findings;
use super::{HOST, Stage, call_until};
use anyhow::{Context, Result, bail};
use fleet::launcher::Pod;
use fleet::objects::{apply, delete};
use serde_json::{Value, json};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(30);
/// Bytes that must not change are looked at for so long: a change takes well under a second.
const WATCHED: Duration = Duration::from_secs(4);
const CLUSTERS: [&str; 3] = ["east", "north", "west"];

/// Versions of what linking writes, in every cluster.
async fn stands(stage: &Stage<'_>) -> Result<Vec<Vec<String>>> {
    let mut all = vec![];
    for name in CLUSTERS {
        all.push(versions(stage.cluster(name)).await?);
    }
    Ok(all)
}

async fn link(stage: &Stage<'_>, file: &str, more: &[&str]) -> Result<Said> {
    isthmus(stage, None, &[&["link", "--fleet", file, "--wait", "40"], more].concat()).await
}

fn judge(stage: &Stage<'_>, promise: &str, said: &Said, code: i32, words: &[&str], also: bool) {
    let kept = said.code == Some(code) && said.says(words) && also;
    stage.judge(promise, &said.figure(), kept, &[]);
}

pub(super) async fn linking(stage: &Stage<'_>) -> Result<()> {
    only_linked(stage.fleet).await?;
    let file = stage.fleet.home.run.join("fleet.yaml");
    let list =
        "clusters:\n- name: east\n- {name: west, context: west}\n- name: north\nimport: [shop]\n";
    std::fs::write(&file, list)?;
    let path = file.display().to_string();

    let before = stands(stage).await?;
    let said = link(stage, &path, &["--dry-run"]).await?;
    let same = before == stands(stage).await?;
    let words = [
        "plan: 3 links of 3 clusters",
        "east reads west: credential kept, it works; consent stands",
        "north reads west: credential new; consent is written",
        "nothing was changed",
    ];
    let promise =
        "link --fleet --dry-run shows what exists and what is to come, and changes nothing";
    judge(stage, promise, &said, 0, &words, same);

    let said = link(stage, &path, &[]).await?;
    let words = ["north - west: linked", "1 linked, 2 left as they were, 0 failed"];
    judge(stage, "link --fleet links what is not linked", &said, 0, &words, true);
    let before = stands(stage).await?;
    let said = link(stage, &path, &[]).await?;
    let same = before == stands(stage).await?;
    let words = ["0 linked, 3 left as they were, 0 failed"];
    judge(stage, "done again it changes nothing", &said, 0, &words, same);

    let done = dead(stage, &path).await;
    stage.fleet.mend().await?;
    done?;
    linked(stage.fleet).await?;

    next(stage, &path).await?;
    mistakes(stage, &file).await?;
    bad_objects(stage).await?;
    let said = isthmus(stage, None, &["unlink", "west", "north"]).await?;
    anyhow::ensure!(said.code == Some(0), "unlink west north: {}", said.figure());
    only_linked(stage.fleet).await
}

/// One cluster does not answer.
async fn dead(stage: &Stage<'_>, file: &str) -> Result<()> {
    stage.cluster("north").api.server.kill();
    let said = link(stage, file, &[]).await?;
    let words = [
        "north cannot be linked",
        "east - west: unchanged",
        "0 linked, 1 left as they were, 2 failed",
    ];
    judge(stage, "a dead cluster costs its own links, and exit 1 says so", &said, 1, &words, true);
    Ok(())
}

/// The next cluster costs one command.
async fn next(stage: &Stage<'_>, file: &str) -> Result<()> {
    let said = isthmus(stage, None, &["unlink", "west", "north"]).await?;
    anyhow::ensure!(said.code == Some(0), "unlink west north: {}", said.figure());
    let said = link(stage, file, &["--only", "north"]).await?;
    let words =
        ["plan: 2 links", "north - west: linked", "1 linked, 1 left as they were, 0 failed"];
    let alone = !said.out.contains("east - west");
    judge(stage, "link --fleet --only NEXT links the next one with all", &said, 0, &words, alone);
    Ok(())
}

async fn mistakes(stage: &Stage<'_>, file: &std::path::Path) -> Result<()> {
    let path = file.display().to_string();
    let before = stands(stage).await?;
    for (what, text, words) in [
        (
            "a cluster named twice",
            "clusters:\n- name: east\n- name: west\n- name: east\n",
            ["ISM2061", "clusters[2].name", "east is named twice"],
        ),
        (
            "a context named twice",
            "clusters:\n- name: east\n- {name: west, context: east}\n",
            ["ISM2061", "clusters[1].context", "for east and west"],
        ),
        (
            "an unknown field",
            "clusters:\n- name: east\n- name: west\n  sever: https://10.0.0.1\n",
            ["ISM1003", "sever", "line 4"],
        ),
    ] {
        std::fs::write(file, text)?;
        let said = link(stage, &path, &[]).await?;
        let same = before == stands(stage).await?;
        judge(stage, &format!("{what} is refused by its place"), &said, 1, &words, same);
    }
    // Who a cluster is, only it can tell: then its own links are left out.
    for (what, text, words) in [
        (
            "a context that leads elsewhere",
            "clusters:\n- name: east\n- name: west\n- {name: south, context: north}\n",
            ["ISM2063", "it calls itself north", "south cannot be linked"],
        ),
        (
            "a context that is not there",
            "clusters:\n- name: east\n- name: west\n- name: moon\n",
            ["ISM2002", "moon", "moon cannot be linked"],
        ),
    ] {
        std::fs::write(file, text)?;
        let said = link(stage, &path, &[]).await?;
        let rest = said.out.contains("east - west: unchanged");
        judge(stage, &format!("{what} costs its own links"), &said, 1, &words, rest);
    }
    Ok(())
}

/// What proxies of other clusters run, to the byte.
async fn running(stage: &Stage<'_>, pods: &[&Pod]) -> Result<Vec<String>> {
    let mut all = vec![];
    for pod in pods {
        let said = isthmus(stage, Some(&pod.spot), &["proxy-config", "-o", "json"]).await?;
        anyhow::ensure!(said.code == Some(0), "proxy-config in {}: {}", pod.name, said.figure());
        all.push(said.out);
    }
    Ok(all)
}

fn bad() -> Vec<Value> {
    let of = |version: &str, kind: &str, spec: Value| {
        json!({
            "apiVersion": version, "kind": kind, "spec": spec,
            "metadata": {"name": "bad", "namespace": "shop"},
        })
    };
    vec![
        of(
            "networking.istio.io/v1",
            "ServiceEntry",
            json!({
                "hosts": [HOST, "*.example.com", "kubernetes.default.svc.cluster.local"],
                "resolution": "STATIC", "location": "MESH_INTERNAL",
                "ports": [{"number": 80, "name": "http", "protocol": "CARRIER"}],
                "endpoints": [{"address": "nowhere"}],
            }),
        ),
        of("networking.istio.io/v1", "DestinationRule", json!({"host": "*"})),
        // Only the mesh's own namespaces may open the gateway.
        of(
            "networking.istio.io/v1",
            "Gateway",
            json!({
                "selector": {"istio": "eastwestgateway"},
                "servers": [{
                    "port": {"number": 15443, "name": "tls", "protocol": "TLS"},
                    "tls": {"mode": "AUTO_PASSTHROUGH"}, "hosts": ["*.global"],
                }],
            }),
        ),
        json!({
            "apiVersion": "multicluster.x-k8s.io/v1beta1", "kind": "ServiceExport",
            "metadata": {"name": "bad", "namespace": "shop"},
        }),
    ]
}

async fn bad_objects(stage: &Stage<'_>) -> Result<()> {
    let (east, west, north) =
        (stage.cluster("east"), stage.cluster("west"), stage.cluster("north"));
    let url = format!("http://{HOST}/");
    call_until(stage.fleet, stage.client()?, &url, LIMIT, |_| true).await?;
    let pods: [&Pod; 4] = [
        east.pod("client-1")?,
        east.pod("gateway-1")?,
        north.pod("gateway-1")?,
        north.pod("hello-1")?,
    ];
    let before = running(stage, &pods).await?;
    for object in bad() {
        apply(west.client(), &object).await?;
    }
    let told = async {
        let start = tokio::time::Instant::now();
        loop {
            let all = findings(&west.spot, 15024).await?;
            let kinds = ["ServiceEntry shop/bad", "DestinationRule shop/bad", "io shop/bad"];
            if kinds.iter().all(|kind| all.iter().any(|text| text.contains(kind))) {
                return Ok(all.len());
            }
            if start.elapsed() > LIMIT {
                bail!("west says only {}", all.join(" | "));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let told = told.await.context("west has read its bad objects")?;
    let (start, mut looks, mut same) = (tokio::time::Instant::now(), 0, true);
    while same && start.elapsed() < WATCHED {
        same = running(stage, &pods).await? == before;
        looks += 1;
    }
    for object in bad() {
        delete(west.client(), &object).await?;
    }
    let bytes: usize = before.iter().map(String::len).sum();
    let figure = format!("{bytes} bytes of 4 proxies in {looks} looks, {told} findings in west");
    let promise = "bad objects in west change no byte of what proxies in east and north run";
    stage.judge(promise, &figure, same && bytes > 0, &[]);

    // The control: what does concern them changes those bytes.
    west.launcher.pause(true).await;
    west.launcher.write_ready("hello", &["hello-1"]).await?;
    let start = tokio::time::Instant::now();
    let mut changed = false;
    while !changed && start.elapsed() < LIMIT {
        changed = running(stage, &pods[..1]).await? != before[..1];
    }
    west.launcher.pause(false).await;
    west.launcher.round().await?;
    let figure = format!("after {:.2} s", start.elapsed().as_secs_f64());
    stage.judge("control: a copy of west that is not ready does", &figure, changed, &[]);
    Ok(())
}
