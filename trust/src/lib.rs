//! Keys and certificates: one root, an intermediate per cluster, short-lived workload certificates,
//! and the verifier that ties every certificate to the trust domain of the cluster that issued it.

pub mod bundle;
pub mod issue;
pub mod probe;
pub mod root;
pub mod rotation;
pub mod svid;
pub mod tls;
pub mod verify;

mod pem;
mod verified;
