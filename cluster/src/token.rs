//! Service account tokens: who stands behind one (TokenReview), and asking for one (TokenRequest).

use anyhow::Result;
use kube::Client;
use std::time::Duration;

/// Whom the API server says a token belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reviewed {
    pub namespace: String,
    pub account: String,
    /// The pod it is bound to.
    pub pod: Option<String>,
}

/// Asks the API server whose token this is, for one audience.
pub async fn review(client: &Client, token: &str, audience: &str) -> Result<Reviewed> {
    let _ = (client, token, audience);
    todo!()
}

/// Asks for a token of a service account, bound to a pod where one is named.
pub async fn request(
    client: &Client,
    namespace: &str,
    account: &str,
    audience: &str,
    pod: Option<&str>,
    ttl: Duration,
) -> Result<String> {
    let _ = (client, namespace, account, audience, pod, ttl);
    todo!()
}
