//! Connecting to an API server, with a limit on everything we would otherwise wait for.

use anyhow::Result;
use kube::Client;
use std::path::{Path, PathBuf};

/// The client of a process for its own API server: from `kubeconfig`, or where that file does not
/// exist, from the pod's service account.
pub async fn connect(kubeconfig: &Path) -> Result<Client> {
    let _ = kubeconfig;
    todo!()
}

/// A client from any configuration, with our limits instead of kube's.
pub fn build(config: kube::Config) -> Result<Client> {
    let _ = config;
    todo!()
}

/// What the operator said on the command line about which cluster is meant.
#[derive(Debug, Clone, Default)]
pub struct Choice {
    /// `--kubeconfig`; else `KUBECONFIG`, else `~/.kube/config`.
    pub kubeconfig: Option<PathBuf>,
    /// `--context`; else the current one.
    pub context: Option<String>,
}

/// The operator's door to one cluster.
pub struct Operator {
    pub client: Client,
    pub config: kube::Config,
    /// Name of the context that was used; empty in a pod.
    pub context: String,
    pub namespace: String,
}

/// Loads the operator's own kubeconfig as kubectl does, exec plug-ins included.
pub async fn operator(choice: &Choice) -> Result<Operator> {
    let _ = choice;
    todo!()
}
