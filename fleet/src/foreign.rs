//! A pod whose sidecar is a real Envoy, which knows only what `isthmus agent` beside it says.
//!
//! Capture is our own sidecar's, by the proxy's user; names are resolved by the cluster's DNS, as
//! in any pod, for Envoy answers none.

use crate::cluster::trust_domain;
use crate::launcher::{PROXY_USER, Pod};
use crate::objects::apply;
use crate::{Cluster, Fleet};
use anyhow::{Context, Result, ensure};
use serde_json::json;
use std::net::SocketAddr;
use std::os::unix::fs::chown;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Its service account, in namespace `shop`.
pub const ACCOUNT: &str = "envoy";

impl Fleet {
    /// Starts pod `envoy-1` in a cluster and waits until its Envoy has taken its listeners.
    pub async fn start_envoy(&self, cluster: &Cluster, envoy: &Path) -> Result<Arc<Pod>> {
        let home = &self.home;
        // The pod's user must be able to run it, wherever the cache is.
        let program = home.run.join("bin/envoy");
        if !program.exists() {
            std::fs::copy(envoy, &program)
                .with_context(|| format!("copying {}", envoy.display()))?;
        }
        let account = json!({
            "apiVersion": "v1", "kind": "ServiceAccount",
            "metadata": {"name": ACCOUNT, "namespace": "shop"},
        });
        apply(cluster.client(), &account).await?;
        let pod = cluster.make_pod(home, ACCOUNT, 1)?;
        std::fs::write(pod.dir.join("root.pem"), &self.trust.root_certificate)?;
        cluster.launcher.admit(&pod).await?;
        let own = pod.dir.join("agent");
        std::fs::create_dir_all(&own)?;
        chown(&own, Some(PROXY_USER), Some(PROXY_USER))?;
        let config = json!({
            "cluster": cluster.plan.name, "network": cluster.plan.name,
            "namespace": pod.namespace, "pod": pod.name, "account": pod.account,
            "trustDomain": trust_domain(cluster.plan.name),
            "rootCertificates": pod.dir.join("root.pem"),
            "podAddresses": [pod.address],
            "controlPlane": SocketAddr::from((cluster.place.node(cluster.plan.number), 15012)),
            "token": pod.dir.join("token"), "state": pod.dir.join("state"),
            "socket": own.join("socket"),
        });
        let file = pod.dir.join("agent.yaml");
        std::fs::write(&file, serde_saphyr::to_string(&config)?)?;
        let netns = pod.spot.netns()?;
        let out = netns
            .command(&home.parts.isthmus.display().to_string())
            .args(["sidecar-redirect", "--no-dns", "--uid", &PROXY_USER.to_string()])
            .output()?;
        let said = String::from_utf8_lossy(&out.stderr);
        ensure!(out.status.success(), "isthmus sidecar-redirect in {}: {said}", netns.name());
        let bootstrap = own.join("envoy.json").display().to_string();
        let job = pod
            .job("agent", &home.parts.isthmus, &home.logs)
            .user(PROXY_USER)
            .args(["agent", "--config", &file.display().to_string(), "--bootstrap", &bootstrap])
            // The agent may be killed; its Envoy is not to outlive it.
            .args(["--proxy", "setpriv", "--pdeathsig", "KILL", &program.display().to_string()])
            .args(["-c", &bootstrap, "--disable-hot-restart", "--concurrency", "2"])
            .args(["--log-level", "info"])
            .env("RUST_LOG", "info");
        pod.proxy.set(job.start()?).ok();
        cluster.launcher.ready(&pod, Duration::from_secs(60)).await?;
        Ok(pod)
    }
}
