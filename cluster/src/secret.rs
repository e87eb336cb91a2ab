//! Secret `cacerts`: the intermediate a control plane signs with.

use anyhow::Result;
use kube::Client;
use std::fmt;

/// The four files of Secret `cacerts`, PEM (Istio's plug-in CA names).
#[derive(Clone, PartialEq, Eq)]
pub struct Cacerts {
    pub ca_cert: String,
    pub ca_key: String,
    pub root_cert: String,
    pub cert_chain: String,
}

impl fmt::Debug for Cacerts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cacerts").field("ca_key", &"redacted").finish_non_exhaustive()
    }
}

/// Reads Secret `cacerts` of a namespace.
pub async fn read_cacerts(client: &Client, namespace: &str) -> Result<Cacerts> {
    let _ = (client, namespace);
    todo!()
}
