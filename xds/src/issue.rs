//! Asking for a certificate, and answering: `istio.v1.auth.IstioCertificateService` (Istio's
//! `security/v1alpha1/ca.proto`).

use crate::subscribe::Connector;
use futures::future::BoxFuture;
use mesh::name::Identity;
use std::time::Duration;

pub(crate) mod wire;

/// Whoever signs: the control plane, behind a token review and its intermediate.
pub trait Issue: Send + Sync {
    /// A chain for the *caller* (by its token or certificate), never for what the CSR claims.
    /// PEM each, leaf first, root last.
    fn issue(&self, request: Request) -> BoxFuture<'_, Result<Vec<String>, Refused>>;

    /// Notes a request that was refused before it was one.
    fn turned_away(&self, why: TurnedAway);
}

/// Why a request is refused unread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TurnedAway {
    /// Neither a token nor a certificate comes with it.
    Anonymous,
    /// Its validity is no length of time.
    Validity,
    /// Its token is longer than [`TOKEN_MAX`].
    TokenBytes,
    /// Its CSR is longer than [`CSR_MAX`].
    CsrBytes,
    /// The whole of it is longer than a CSR with what belongs to it.
    MessageBytes,
}

/// One certificate asked for. Everything in it was said by a stranger, except `peer`.
#[derive(Clone)]
pub struct Request {
    /// PKCS#10, PEM, at most [`CSR_MAX`] bytes.
    pub csr_pem: String,
    /// How long it should live; [`Duration::ZERO`] leaves it to the issuer.
    pub ttl: Duration,
    /// The JWT of `authorization: Bearer …`, at most [`TOKEN_MAX`] bytes.
    pub token: Option<String>,
    /// gRPC metadata `clusterid`, which selects whose TokenReview is asked.
    pub cluster: Option<String>,
    /// The identity in a verified client certificate, where one was shown.
    pub peer: Option<Identity>,
}

/// The token stays out of logs.
impl std::fmt::Debug for Request {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Request")
            .field("ttl", &self.ttl)
            .field("token", &self.token.as_ref().map(|_| "…"))
            .field("cluster", &self.cluster)
            .field("peer", &self.peer)
            .finish_non_exhaustive()
    }
}

/// Longest CSR read, bytes.
pub const CSR_MAX: usize = 16 * 1024;
/// Longest token read, bytes.
pub const TOKEN_MAX: usize = 16 * 1024;

/// Why there is no certificate, each a full sentence.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Nobody vouches for the caller: no token, an expired one, one for another audience.
    #[error("{0}")]
    Unauthenticated(String),
    /// Known, and may not.
    #[error("{0}")]
    Denied(String),
    /// The request makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// Too often; later again.
    #[error("{0}")]
    Busy(String),
    /// Nobody can say now (API server down); later again.
    #[error("{0}")]
    Unavailable(String),
}

/// Why no certificate came back.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RequestFailed {
    #[error("ISM6010 the control plane could not be reached to ask for a certificate: {0}")]
    Unreachable(String),
    #[error("ISM6011 the control plane did not answer a certificate request within {} s", TIMEOUT.as_secs())]
    Late,
    #[error("ISM6012 the control plane refused a certificate: {0}")]
    Refused(Refused),
}

/// How long one request may take, dialling included.
pub const TIMEOUT: Duration = Duration::from_secs(10);

/// Asks once. `connector` dials the control plane (server-authenticated TLS).
pub async fn request(
    connector: &Connector,
    token: &str,
    csr_pem: &str,
    ttl: Duration,
) -> Result<Vec<String>, RequestFailed> {
    tokio::time::timeout(TIMEOUT, wire::request(connector, token, csr_pem, ttl))
        .await
        .unwrap_or(Err(RequestFailed::Late))
}
