//! The words of the mesh, each parsed once: cluster, network, locality, service, host, identity.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Why a text is not the name it should be: what was expected, and the culprit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{expected}; {found:?} is not: {why}")]
pub struct NotAName {
    pub expected: &'static str,
    pub found: String,
    pub why: &'static str,
}

/// Longest text we echo back in an error; a stranger's megabyte stays out of the log.
const ECHO_MAX: usize = 128;

fn not_a_name(expected: &'static str, found: &str, why: &'static str) -> NotAName {
    NotAName { expected, found: found.chars().take(ECHO_MAX).collect(), why }
}

/// RFC 1123 label: 1 to 63 of `a-z 0-9 -`, no hyphen at either end.
fn label(expected: &'static str, text: &str) -> Result<(), NotAName> {
    let bad = |why| Err(not_a_name(expected, text, why));
    if text.is_empty() {
        return bad("it is empty");
    }
    if text.len() > 63 {
        return bad("it is longer than 63 characters");
    }
    if !text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-') {
        return bad("only a-z, 0-9 and '-' are allowed");
    }
    if text.starts_with('-') || text.ends_with('-') {
        return bad("it starts or ends with '-'");
    }
    Ok(())
}

macro_rules! text_type {
    ($(#[$doc:meta])* $name:ident, $expected:literal, $check:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(std::sync::Arc<str>);

        impl $name {
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl FromStr for $name {
            type Err = NotAName;
            fn from_str(text: &str) -> Result<Self, NotAName> {
                let check: fn(&'static str, &str) -> Result<(), NotAName> = $check;
                check($expected, text)?;
                Ok(Self(text.into()))
            }
        }
        impl TryFrom<String> for $name {
            type Error = NotAName;
            fn try_from(text: String) -> Result<Self, NotAName> {
                text.parse()
            }
        }
        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0.to_string()
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

text_type!(
    /// A cluster's id in the mesh, from ConfigMap `isthmus-mesh`; an RFC 1123 label, since it is
    /// part of DNS names (`hello.shop.west.global`).
    ClusterId,
    "a cluster id is an RFC 1123 label",
    label
);
text_type!(
    /// A network: what can reach each other without a gateway (label `topology.istio.io/network`).
    Network,
    "a network is an RFC 1123 label",
    label
);
text_type!(
    /// The authority of an identity, as in `spiffe://west.mesh/…` (SPIFFE-ID section 2.1).
    TrustDomain,
    "a trust domain is 1 to 255 of a-z, 0-9, '.', '-', '_'",
    |expected, text| {
        if text.is_empty() || text.len() > 255 {
            return Err(not_a_name(expected, text, "its length is out of bounds"));
        }
        let fine = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b".-_".contains(&b);
        if !text.bytes().all(fine) {
            return Err(not_a_name(expected, text, "it has another character"));
        }
        Ok(())
    }
);
text_type!(
    /// A fully qualified lower-case DNS name without trailing dot, at most 253 octets (RFC 1035);
    /// `_` is allowed, as in SNI names of the `outbound_.80_._.HOST` form.
    Hostname,
    "a host is lower-case DNS labels joined by '.'",
    |expected, text| {
        if text.is_empty() || text.len() > 253 {
            return Err(not_a_name(expected, text, "its length is not 1 to 253"));
        }
        for part in text.split('.') {
            if part.is_empty() || part.len() > 63 {
                return Err(not_a_name(expected, text, "a label's length is not 1 to 63"));
            }
            let fine = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_".contains(&b);
            if !part.bytes().all(fine) {
                return Err(not_a_name(expected, text, "a label has another character"));
            }
        }
        Ok(())
    }
);

/// A service's name in Kubernetes: the same (namespace, name) is the same service everywhere.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ServiceName {
    pub namespace: String,
    pub name: String,
}

/// A name that a namespace can have.
///
/// # Errors
/// What is wrong with it.
pub fn namespace(text: &str) -> Result<(), NotAName> {
    label("a namespace is an RFC 1123 label", text)
}

impl ServiceName {
    /// Checks both parts as RFC 1123 labels.
    pub fn new(namespace: &str, name: &str) -> Result<Self, NotAName> {
        self::namespace(namespace)?;
        label("a service name is an RFC 1123 label", name)?;
        Ok(Self { namespace: namespace.into(), name: name.into() })
    }

    /// `hello.shop.svc.cluster.local`: the service of this cluster.
    pub fn local_host(&self) -> Hostname {
        self.host("svc.cluster.local")
    }

    /// `hello.shop.svc.clusterset.local`: all exporters (MCS API, KEP-1645).
    pub fn clusterset_host(&self) -> Hostname {
        self.host("svc.clusterset.local")
    }

    /// `hello.shop.global`: all exporters, own included, nearest first.
    pub fn global_host(&self) -> Hostname {
        self.host("global")
    }

    /// `hello.shop.west.global`: that cluster's.
    pub fn cluster_host(&self, cluster: &ClusterId) -> Hostname {
        self.host(&format!("{cluster}.global"))
    }

    fn host(&self, suffix: &str) -> Hostname {
        // Labels of at most 63 octets each and a suffix of at most 70 stay under 253.
        format!("{}.{}.{suffix}", self.name, self.namespace)
            .parse()
            .expect("two checked labels and a checked suffix make a host")
    }
}

impl FromStr for ServiceName {
    type Err = NotAName;
    /// `shop/hello`.
    fn from_str(text: &str) -> Result<Self, NotAName> {
        let expected = "a service reads NAMESPACE/NAME";
        let parts = text.split_once('/').ok_or_else(|| not_a_name(expected, text, "no '/'"))?;
        Self::new(parts.0, parts.1)
    }
}

impl TryFrom<String> for ServiceName {
    type Error = NotAName;
    fn try_from(text: String) -> Result<Self, NotAName> {
        text.parse()
    }
}

impl From<ServiceName> for String {
    fn from(name: ServiceName) -> Self {
        name.to_string()
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Region, zone and subzone, each possibly unknown (empty); written `region/zone/subzone`.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub struct Locality {
    pub region: String,
    pub zone: String,
    pub subzone: String,
}

impl From<String> for Locality {
    fn from(text: String) -> Self {
        let mut parts = text.splitn(3, '/').map(str::to_owned);
        let mut next = || parts.next().unwrap_or_default();
        Self { region: next(), zone: next(), subzone: next() }
    }
}

impl From<Locality> for String {
    fn from(locality: Locality) -> Self {
        locality.to_string()
    }
}

impl fmt::Display for Locality {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = format!("{}/{}/{}", self.region, self.zone, self.subzone);
        f.write_str(text.trim_end_matches('/'))
    }
}

/// A SPIFFE identity of a workload, `spiffe://DOMAIN/ns/NAMESPACE/sa/ACCOUNT`, exactly so.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Identity {
    pub domain: TrustDomain,
    pub namespace: String,
    pub account: String,
}

/// Why a text is no [`Identity`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("an identity reads spiffe://DOMAIN/ns/NAMESPACE/sa/ACCOUNT, {0:?} does not")]
pub struct NotAnIdentity(pub String);

impl FromStr for Identity {
    type Err = NotAnIdentity;
    fn from_str(text: &str) -> Result<Self, NotAnIdentity> {
        let not = || NotAnIdentity(text.chars().take(ECHO_MAX).collect());
        let rest = text.strip_prefix("spiffe://").ok_or_else(not)?;
        let parts: Vec<&str> = rest.split('/').collect();
        let [domain, "ns", namespace, "sa", account] = parts[..] else { return Err(not()) };
        // A service account's name is a DNS subdomain, so dots are fine; NUL, '%' and '@' are not.
        let fine = |part: &str| {
            !part.is_empty()
                && part.len() <= 253
                && part
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-.".contains(&b))
        };
        if !fine(namespace) || !fine(account) {
            return Err(not());
        }
        let domain = domain.parse().map_err(|_| not())?;
        Ok(Self { domain, namespace: namespace.into(), account: account.into() })
    }
}

impl TryFrom<String> for Identity {
    type Error = NotAnIdentity;
    fn try_from(text: String) -> Result<Self, NotAnIdentity> {
        text.parse()
    }
}

impl From<Identity> for String {
    fn from(identity: Identity) -> Self {
        identity.to_string()
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spiffe://{}/ns/{}/sa/{}", self.domain, self.namespace, self.account)
    }
}

/// What a port speaks, from `appProtocol`, else the port's name (Istio: "Protocol Selection").
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    Http,
    Http2,
    Grpc,
    Tcp,
    Udp,
    /// Nobody said: what the first bytes of a connection look like decides.
    Auto,
}

impl Protocol {
    /// `app_protocol` wins over the prefix of `name` (`http-web`, `grpc`), and that over the
    /// well-known `number` of a protocol whose server speaks first; `transport` is the Service
    /// port's `protocol` (`TCP` when empty).
    pub fn of_port(transport: &str, app_protocol: Option<&str>, name: &str, number: u16) -> Self {
        if transport.eq_ignore_ascii_case("UDP") {
            return Self::Udp;
        }
        let word = app_protocol.unwrap_or_else(|| name.split('-').next().unwrap_or_default());
        match (word.to_ascii_lowercase().as_str(), number) {
            ("http" | "kubernetes.io/ws", _) => Self::Http,
            ("http2" | "kubernetes.io/h2c", _) => Self::Http2,
            ("grpc" | "grpc-web", _) => Self::Grpc,
            ("tcp" | "tls" | "https" | "kubernetes.io/wss" | "mongo" | "mysql" | "redis", _) => {
                Self::Tcp
            }
            // SMTP, DNS, MySQL, MongoDB: Istio's own exceptions (`kube.ConvertProtocol`).
            (_, 25 | 53 | 3306 | 27_017) => Self::Tcp,
            _ => Self::Auto,
        }
    }

    /// Every connection is read as requests.
    pub fn is_http(self) -> bool {
        matches!(self, Self::Http | Self::Http2 | Self::Grpc)
    }

    /// A connection may turn out to be requests.
    pub fn may_be_http(self) -> bool {
        self.is_http() || self == Self::Auto
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Http => "http",
            Self::Http2 => "http2",
            Self::Grpc => "grpc",
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Auto => "auto",
        })
    }
}
