//! Everything of the mesh out of three clusters by one command, while users' own objects stay.

use super::shop::manifests;
use super::{ALL_CLUSTERS, Stage, gone, until};
use anyhow::{Result, ensure};
use fleet::objects;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// The federation wrote what uninstall has to find.
const LINKED: Duration = Duration::from_secs(60);
/// All of it is gone.
const WHOLE: Duration = Duration::from_secs(60);
const ENTRIES: [&str; 5] = ["get", "serviceentries.networking.istio.io", "-A", "-o", "name"];
/// Kinds outside of namespaces of which we bring objects.
const KINDS: &str =
    "namespaces,crds,clusterroles,clusterrolebindings,mutatingwebhookconfigurations";

pub(super) async fn uninstall(stage: &Stage<'_>) -> Result<()> {
    stage.install().await?;
    for cluster in stage.pods.clusters.values() {
        let copies = u32::from(cluster.name == "west");
        objects::apply_yaml(&cluster.client, &manifests(cluster.name, copies)).await?;
    }
    stage.link().await?;
    stage.isthmus(&["export", "svc/hello", "-n", "shop", "--context", "west"]).await?;
    until(LINKED, "a ServiceEntry in east", async || {
        let said = stage.kubectl("east", &ENTRIES).await?;
        ensure!(!said.trim().is_empty(), "there is none");
        Ok(())
    })
    .await?;

    let begun = Instant::now();
    let said = stage.isthmus(&[&["uninstall", "--yes"][..], &ALL_CLUSTERS].concat()).await;
    let took = begun.elapsed();
    for line in said.iter().flat_map(|said| said.lines()).filter(|it| !it.contains(" delete ")) {
        println!("         {line}");
    }
    said?;
    let mut left = BTreeSet::new();
    for cluster in stage.pods.clusters.keys() {
        let said = stage.kubectl(cluster, &["get", KINDS, "-o", "name"]).await?;
        left.extend(said.lines().filter(|line| line.contains("isthmus")).map(str::to_owned));
        // Where nobody else has one, the kind went as well.
        let said = stage.kubectl(cluster, &ENTRIES).await.unwrap_or_default();
        left.extend(said.lines().map(str::to_owned));
    }
    let kept = ["-n", "shop", "get", "serviceexports.multicluster.x-k8s.io", "-o", "name"];
    let kept = stage.kubectl("west", &kept).await?;
    stage.judge(
        "uninstall leaves nothing of ours within a minute, and what users wrote",
        &format!("after {:.1} s; of ours: {left:?}; of users: {}", took.as_secs_f64(), kept.trim()),
        left.is_empty() && kept.contains("/hello") && took < WHOLE,
    );
    let gone = stage.pods.clusters.values().map(|cluster| gone(cluster, "shop"));
    futures::future::try_join_all(gone).await.map(|_| ())
}
