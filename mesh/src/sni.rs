//! The name a gateway routes by: `outbound_.PORT_.SUBSET_.HOST` (Istio's `BuildDNSSrvSubsetKey`).

use crate::name::{ClusterId, Hostname};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// What a client of a gateway asks for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Sni {
    /// The service port, not the target port.
    pub port: u16,
    /// Empty for the whole service.
    pub subset: String,
    pub host: Hostname,
}

/// Why a server name is not one a gateway can route.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a routed server name reads outbound_.PORT_.SUBSET_.HOST; {0:?} does not")]
pub struct NotAnSni(pub String);

impl FromStr for Sni {
    type Err = NotAnSni;
    /// Any case, as DNS names are; no trailing dot.
    fn from_str(text: &str) -> Result<Self, NotAnSni> {
        let not = || NotAnSni(text.chars().take(128).collect());
        if text.len() > 253 {
            return Err(not());
        }
        let lower = text.to_ascii_lowercase();
        let rest = lower.strip_prefix("outbound_.").ok_or_else(not)?;
        let (port, rest) = rest.split_once("_.").ok_or_else(not)?;
        let (subset, host) = rest.split_once("_.").ok_or_else(not)?;
        if port.starts_with(['0', '+']) {
            return Err(not());
        }
        Ok(Self {
            port: port.parse().map_err(|_| not())?,
            subset: subset.to_owned(),
            host: host.parse().map_err(|_| not())?,
        })
    }
}

impl TryFrom<String> for Sni {
    type Error = NotAnSni;
    fn try_from(text: String) -> Result<Self, NotAnSni> {
        text.parse()
    }
}

impl From<Sni> for String {
    fn from(sni: Sni) -> Self {
        sni.to_string()
    }
}

impl fmt::Display for Sni {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "outbound_.{}_.{}_.{}", self.port, self.subset, self.host)
    }
}

/// `probe.CLUSTER.isthmus.internal`: the one name a gateway terminates itself (decision 14).
pub fn probe_host(cluster: &ClusterId) -> Hostname {
    format!("probe.{cluster}.isthmus.internal").parse().expect("a label between labels is a host")
}
