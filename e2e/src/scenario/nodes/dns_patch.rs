//! Pods without a sidecar ask the cluster's DNS, and `isthmus dns patch` lets that know the mesh's names.

use super::shop::{manifests, shell};
use super::{ALL_CLUSTERS, Stage, until};
use anyhow::{Result, ensure};
use fleet::hello::Answer;
use fleet::objects;
use std::time::{Duration, Instant};

/// The kubelet brings a changed ConfigMap into a pod within about a minute, and CoreDNS then reads it:
/// what `patch` says.
const READ: Duration = Duration::from_secs(120);
const NAME: &str = "hello.shop.global";
const COREFILE: [&str; 7] =
    ["-n", "kube-system", "get", "configmap", "coredns", "-o", "jsonpath={.data.Corefile}"];

pub(super) async fn dns_patch(stage: &Stage<'_>) -> Result<()> {
    stage.install().await?;
    for cluster in stage.pods.clusters.values() {
        let copies = u32::from(cluster.name == "west");
        // The webhook passes over this one.
        let plain = shell("plain", ", sidecar.istio.io/inject: \"false\"");
        let text = manifests(cluster.name, copies) + &plain;
        objects::apply_yaml(&cluster.client, &text).await?;
    }
    stage.link().await?;
    stage.isthmus(&["export", "svc/hello", "-n", "shop", "--context", "west"]).await?;
    stage.isthmus(&["export", "svc/exact", "-n", "shop", "--context", "east"]).await?;
    for cluster in ["east", "west"] {
        stage.pods.cluster(cluster).deployment_ready("shop", "plain", READ).await?;
    }
    // What CoreDNS was told before a run that was broken off.
    stage.isthmus(&[&["dns", "unpatch"][..], &ALL_CLUSTERS].concat()).await?;
    let before = stage.kubectl("west", &COREFILE).await?;

    let dry = [&["dns", "patch", "--dry-run"][..], &ALL_CLUSTERS].concat();
    let said = stage.isthmus(&dry).await?;
    let added = said.lines().filter(|line| line.trim_start().starts_with("+ ")).count();
    stage.judge(
        "dns patch --dry-run prints the difference and changes nothing",
        &format!("{added} lines added in 3 clusters"),
        added > 0 && stage.kubectl("west", &COREFILE).await? == before,
    );

    let patch = [&["dns", "patch"][..], &ALL_CLUSTERS].concat();
    stage.isthmus(&patch).await?;
    let begun = Instant::now();
    let again = stage.isthmus(&patch).await?;
    let unchanged = again.lines().filter(|line| line.contains("nothing was changed")).count();
    stage.judge(
        "done again, it changes nothing",
        &format!("{unchanged} of 3 clusters unchanged"),
        unchanged == 3,
    );

    let answer = until(READ, "a pod without a sidecar calling", async || {
        let said = curl(stage, "west", &format!("http://{NAME}/")).await?;
        let answer: Answer = serde_json::from_str(&said)?;
        Ok(answer)
    })
    .await;
    let took = begun.elapsed();
    stage.judge(
        "a pod without a sidecar in west calls the name that west exports within 2 minutes",
        &match &answer {
            Ok(answer) => {
                format!("{}/{} after {:.0} s", answer.cluster, answer.pod, took.as_secs_f64())
            }
            Err(error) => format!("{error:#}"),
        },
        answer.is_ok_and(|answer| answer.cluster == "west") && took < READ,
    );
    let inside = curl(stage, "west", "http://hello.shop.svc.cluster.local/").await;
    stage.judge(
        "names of the cluster itself go on as before",
        &format!("{:?}", inside.as_ref().map(|said| said.len())),
        inside.is_ok(),
    );
    // East exports a service of its own, which shows that its CoreDNS asks us by now.
    let service = ["-n", "shop", "get", "service", "exact", "-o", "jsonpath={.spec.clusterIP}"];
    let address = stage.kubectl("east", &service).await?;
    until(READ, "east's CoreDNS asking us", async || {
        let said = nslookup(stage, "east", "exact.shop.global").await?;
        ensure!(said.lines().any(|line| line.ends_with(&format!(" {address}"))), "{said}");
        Ok(())
    })
    .await?;
    // Nothing carries such a pod to west. It is told so at once.
    let said = nslookup(stage, "east", NAME).await?;
    stage.judge(
        "a pod without a sidecar in east, which has no copies, is told NXDOMAIN, not an address",
        said.lines().find(|line| line.contains("NXDOMAIN")).unwrap_or(&said).trim(),
        said.contains("NXDOMAIN"),
    );
    let pod = stage
        .kubectl("east", &["-n", "shop", "get", "pod", "-l", "app=plain", "-o", "name"])
        .await?;
    let pod = pod.trim();
    let why = ["why", pod, &format!("{NAME}:80"), "-n", "shop", "--context", "east"];
    // It exits with 1, since nothing is reached.
    let why = stage.isthmus(&why).await.unwrap_or_else(|error| error.to_string());
    stage.judge(
        "why says that only a sidecar reaches it, and how to get one",
        why.lines().find(|line| line.contains("sidecar")).unwrap_or(&why).trim(),
        why.contains("has no sidecar") && why.contains("istio-injection=enabled"),
    );

    stage.isthmus(&[&["dns", "unpatch"][..], &ALL_CLUSTERS].concat()).await?;
    let after = stage.kubectl("west", &COREFILE).await?;
    stage.judge(
        "dns unpatch gives the octets that were there before",
        &format!("{} octets before, {} after", before.len(), after.len()),
        before == after,
    );
    stage.shop_gone().await
}

async fn curl(stage: &Stage<'_>, cluster: &str, url: &str) -> Result<String> {
    let exec = ["-n", "shop", "exec", "deployment/plain", "--", "curl", "-sSf", "-m", "5", url];
    stage.kubectl(cluster, &exec).await
}

/// What a name is to the pod; nslookup fails where there is none, and says so.
async fn nslookup(stage: &Stage<'_>, cluster: &str, name: &str) -> Result<String> {
    let script = format!("nslookup {name} 2>&1; true");
    let exec = ["-n", "shop", "exec", "deployment/plain", "--", "sh", "-c", &script];
    stage.kubectl(cluster, &exec).await
}
