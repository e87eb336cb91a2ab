//! Pods with a foreign proxy, which knows only what `isthmus agent` beside it says: a real Envoy as
//! a sidecar, or a gRPC client that is its own.
//!
//! Envoy's capture is our own sidecar's, by the proxy's user; names are resolved by the cluster's DNS, as
//! in any pod, for Envoy answers none.

use crate::cluster::trust_domain;
use crate::launcher::{PROXY_USER, Pod};
use crate::objects::apply;
use crate::peers;
use crate::{Cluster, Fleet};
use anyhow::{Context, Result, ensure};
use serde_json::json;
use std::net::SocketAddr;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// The agent as a program of its own, beside this one where the workspace is built.
const AGENT: &str = "isthmus-agent";
/// Envoy's service account, in namespace `shop`.
pub const ACCOUNT: &str = "envoy";
/// The gRPC client's.
const GRPC_ACCOUNT: &str = "grpc";

/// A pod before its agent starts.
struct Berth {
    pod: Arc<Pod>,
    /// A folder of the proxy's user.
    own: PathBuf,
    /// The agent's configuration.
    config: PathBuf,
    /// The proxy, where the pod's user can run it.
    program: PathBuf,
}

impl Fleet {
    /// Starts pod `envoy-1` in a cluster, an application behind it, and waits until its Envoy has
    /// taken its listeners.
    pub async fn start_envoy(&self, cluster: &Cluster, envoy: &Path) -> Result<Arc<Pod>> {
        let home = &self.home;
        let Berth { pod, own, config, program } = self.berth(cluster, ACCOUNT, envoy).await?;
        let netns = pod.spot.netns()?;
        let out = netns
            .command(&home.parts.isthmus.display().to_string())
            .args(["sidecar-redirect", "--no-dns", "--uid", &PROXY_USER.to_string()])
            .output()?;
        let said = String::from_utf8_lossy(&out.stderr);
        ensure!(out.status.success(), "isthmus sidecar-redirect in {}: {said}", netns.name());
        let bootstrap = own.join("envoy.json").display().to_string();
        // The thin program; the gRPC client's agent is the verb.
        let beside = std::env::current_exe()?.with_file_name(AGENT);
        let agent = self.in_reach(&beside, AGENT)?;
        let job = pod
            .job("agent", &agent, &home.logs)
            .user(PROXY_USER)
            .args(["--config", &config.display().to_string(), "--bootstrap", &bootstrap])
            // The agent may be killed; its Envoy is not to outlive it.
            .args(["--proxy", "setpriv", "--pdeathsig", "KILL", &program.display().to_string()])
            .args(["-c", &bootstrap, "--disable-hot-restart", "--concurrency", "2"])
            // A policy that changes is to reach open connections (README).
            .args(["--drain-time-s", "5", "--drain-strategy", "immediate"])
            .args(["--log-level", "info"])
            .env("RUST_LOG", "info");
        pod.proxy.set(job.start()?).ok();
        pod.app.set(cluster.hello(home, &pod).start()?).ok();
        cluster.launcher.ready(&pod, Duration::from_secs(60)).await?;
        Ok(pod)
    }

    /// Starts pod `grpc-1` in a cluster: a grpc-go client, its agent's child, which calls
    /// `xds:///TARGET` so often a second and writes who answered into the pod's log. Waits until it
    /// has taken its listener.
    pub async fn start_grpc_client(
        &self,
        cluster: &Cluster,
        target: &str,
        per_second: u32,
    ) -> Result<Arc<Pod>> {
        let home = &self.home;
        let client = peers::xds_client()?;
        let Berth { pod, own, config, program } =
            self.berth(cluster, GRPC_ACCOUNT, &client).await?;
        let bootstrap = own.join("grpc.json").display().to_string();
        let job = pod
            .job("agent", &home.parts.isthmus, &home.logs)
            .user(PROXY_USER)
            .args(["agent", "--config", &config.display().to_string()])
            .args(["--grpc-bootstrap", &bootstrap])
            .args(["--proxy", "setpriv", "--pdeathsig", "KILL", &program.display().to_string()])
            .args([format!("-target=xds:///{target}"), format!("-rate={per_second}")])
            .env("RUST_LOG", "info");
        pod.proxy.set(job.start()?).ok();
        cluster.launcher.ready(&pod, Duration::from_secs(60)).await?;
        Ok(pod)
    }

    /// A program where every pod's user can run it, wherever it was built or kept.
    fn in_reach(&self, program: &Path, name: &str) -> Result<PathBuf> {
        let copy = self.home.run.join("bin").join(name);
        if !copy.exists() {
            std::fs::copy(program, &copy)
                .with_context(|| format!("copying {}", program.display()))?;
        }
        Ok(copy)
    }

    async fn berth(&self, cluster: &Cluster, account: &str, proxy: &Path) -> Result<Berth> {
        let home = &self.home;
        let program = self.in_reach(proxy, account)?;
        let object = json!({
            "apiVersion": "v1", "kind": "ServiceAccount",
            "metadata": {"name": account, "namespace": "shop"},
        });
        apply(cluster.client(), &object).await?;
        let pod = cluster.make_pod(home, account, 1)?;
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
        Ok(Berth { pod, own, config: file, program })
    }
}
