//! One rule of an AuthorizationPolicy: any of its sources, any of its operations, all conditions.

use super::meant;
use crate::name::{Identity, TrustDomain};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

/// It matches where one of `from`, one of `to` and all conditions hold; an empty list is no
/// constraint (Istio's `Rule`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Rule {
    /// `from[].source`: each holds where all its clauses do.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub from: Vec<Vec<Clause<Source>>>,
    /// `to[].operation`: each holds where all its clauses do.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub to: Vec<Vec<Clause<Operation>>>,
    /// `when[]` about the caller.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub when_from: Vec<Clause<Source>>,
    /// `when[]` about what is called.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub when_to: Vec<Clause<Operation>>,
    /// Its author wrote more than is judged here (fields of requests, or what cannot be read). An
    /// ALLOW rule then never matches; a DENY rule matches by the rest.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub partial: bool,
}

/// A field and its `not` twin: one of the first list and none of the second. An empty first list is
/// no constraint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Clause<T> {
    #[serde(default = "Vec::new", skip_serializing_if = "Vec::is_empty")]
    pub any_of: Vec<T>,
    #[serde(default = "Vec::new", skip_serializing_if = "Vec::is_empty")]
    pub none_of: Vec<T>,
}

/// One value about the caller. All but the address are of its certificate: a caller without one
/// matches none of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Source {
    /// `DOMAIN/ns/NAMESPACE/sa/ACCOUNT`, without `spiffe://`; an end may reach into that
    /// (`*/a.b/ns/…`), as it does in Istio and Envoy.
    Principal(Pattern),
    /// Of any trust domain (Istio: `*/ns/NAMESPACE/*`).
    Namespace(Pattern),
    /// Of any trust domain.
    ServiceAccount(AccountName),
    TrustDomain(Pattern),
    /// Who is at the other end of the TCP connection: behind a gateway, the gateway.
    Ip(IpNet),
}

/// One value about what is called.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Operation {
    /// The workload's port, which may differ from its Service's.
    Port(u16),
    Ip(IpNet),
    /// The server name of the caller's TLS (`connection.sni`).
    ServerName(Pattern),
}

/// A text, or its beginning, or its end: `x`, `x*`, `*x`; `*` is any but the empty one (Istio's
/// "exact, prefix, suffix and presence match").
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Pattern {
    Any,
    Exact(String),
    Prefix(String),
    Suffix(String),
}

/// Why a text is no [`Pattern`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotAPattern {
    #[error("it is empty")]
    Empty,
    #[error("{0:?} has a character that no name of the mesh has")]
    Character(String),
    #[error("{0:?} has a '*' that neither begins nor ends it, or two of them")]
    Star(String),
}

/// A service account as policies write it: `NAMESPACE/NAME`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AccountName {
    pub namespace: String,
    pub name: String,
}

/// Who calls, and what: all that policies can ask of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// Proven by mutual TLS; `None` for plaintext.
    pub identity: Option<Identity>,
    /// The peer's address.
    pub source: IpAddr,
    /// The workload's own address and port.
    pub destination: SocketAddr,
    /// The server name of its TLS, if any.
    pub server_name: Option<String>,
}

/// A caller and what is asked of it more than once.
pub(super) struct Facts<'a> {
    caller: &'a Caller,
    /// `DOMAIN/ns/NAMESPACE/sa/ACCOUNT`.
    principal: Option<String>,
    /// An IPv4 caller of a dual-stack socket is an IPv4 caller.
    source: IpAddr,
    destination: IpAddr,
}

impl<'a> Facts<'a> {
    pub(super) fn of(caller: &'a Caller) -> Self {
        Self {
            caller,
            principal: caller.identity.as_ref().map(principal),
            source: caller.source.to_canonical(),
            destination: caller.destination.ip().to_canonical(),
        }
    }
}

/// An identity as principals write it.
pub(super) fn principal(identity: &Identity) -> String {
    format!("{}/ns/{}/sa/{}", identity.domain, identity.namespace, identity.account)
}

/// What can be asked of a caller.
trait Holds {
    fn holds(&self, facts: &Facts<'_>) -> bool;
}

impl Rule {
    /// Whether the part of it that is judged holds for this caller.
    pub(super) fn matches(&self, facts: &Facts<'_>) -> bool {
        fn one_of<T: Holds>(alternatives: &[Vec<Clause<T>>], facts: &Facts<'_>) -> bool {
            let all = |clauses: &Vec<Clause<T>>| clauses.iter().all(|clause| holds(clause, facts));
            alternatives.is_empty() || alternatives.iter().any(all)
        }
        one_of(&self.from, facts)
            && one_of(&self.to, facts)
            && self.when_from.iter().all(|clause| holds(clause, facts))
            && self.when_to.iter().all(|clause| holds(clause, facts))
    }

    /// All values about callers, negated ones too.
    pub fn sources(&self) -> impl Iterator<Item = &Source> {
        let clauses = self.from.iter().flatten().chain(&self.when_from);
        clauses.flat_map(|clause| clause.any_of.iter().chain(&clause.none_of))
    }

    /// The rule as it reads where `own` is the own trust domain: `cluster.local` means that one.
    pub(super) fn seen_from(&self, own: &TrustDomain) -> Self {
        let clause = |clause: &Clause<Source>| {
            let all = |list: &[Source]| list.iter().map(|it| it.seen_from(own)).collect();
            Clause { any_of: all(&clause.any_of), none_of: all(&clause.none_of) }
        };
        Self {
            from: self.from.iter().map(|all| all.iter().map(clause).collect()).collect(),
            when_from: self.when_from.iter().map(clause).collect(),
            ..self.clone()
        }
    }
}

fn holds<T: Holds>(clause: &Clause<T>, facts: &Facts<'_>) -> bool {
    let found = |list: &[T]| list.iter().any(|it| it.holds(facts));
    (clause.any_of.is_empty() || found(&clause.any_of)) && !found(&clause.none_of)
}

impl Holds for Source {
    fn holds(&self, facts: &Facts<'_>) -> bool {
        let identity = facts.caller.identity.as_ref();
        match self {
            Self::Principal(pattern) => facts.principal.as_ref().is_some_and(|it| match pattern {
                Pattern::Suffix(end) => format!("spiffe://{it}").ends_with(end),
                Pattern::Any | Pattern::Exact(_) | Pattern::Prefix(_) => pattern.fits(it),
            }),
            Self::Namespace(pattern) => identity.is_some_and(|it| pattern.fits(&it.namespace)),
            Self::ServiceAccount(wanted) => identity
                .is_some_and(|it| it.namespace == wanted.namespace && it.account == wanted.name),
            Self::TrustDomain(pattern) => {
                identity.is_some_and(|it| pattern.fits(it.domain.as_str()))
            }
            Self::Ip(block) => block.contains(&facts.source),
        }
    }
}

impl Source {
    fn seen_from(&self, own: &TrustDomain) -> Self {
        match self {
            Self::Principal(pattern) => Self::Principal(pattern.with_domain(own)),
            Self::TrustDomain(Pattern::Exact(word)) => {
                Self::TrustDomain(Pattern::Exact(meant(word, own).to_owned()))
            }
            Self::TrustDomain(_) | Self::Namespace(_) | Self::ServiceAccount(_) | Self::Ip(_) => {
                self.clone()
            }
        }
    }
}

impl Holds for Operation {
    fn holds(&self, facts: &Facts<'_>) -> bool {
        match self {
            Self::Port(port) => facts.caller.destination.port() == *port,
            Self::Ip(block) => block.contains(&facts.destination),
            Self::ServerName(pattern) => {
                facts.caller.server_name.as_ref().is_some_and(|it| pattern.fits(it))
            }
        }
    }
}

impl Pattern {
    /// Whether it stands for this text.
    pub fn fits(&self, text: &str) -> bool {
        match self {
            Self::Any => !text.is_empty(),
            Self::Exact(wanted) => text == wanted,
            Self::Prefix(wanted) => text.starts_with(wanted),
            Self::Suffix(wanted) => text.ends_with(wanted),
        }
    }

    /// A principal's trust domain as it is written; `None` where the pattern leaves it open. A
    /// beginning without `/` is part of one: `west.me*`.
    pub(super) fn domain(&self) -> Option<Self> {
        match self {
            Self::Any | Self::Suffix(_) => None,
            Self::Exact(text) | Self::Prefix(text) => match (text.split_once('/'), self) {
                (Some((domain, _)), _) => Some(Self::Exact(domain.to_owned())),
                (None, Self::Prefix(_)) => Some(self.clone()),
                (None, Self::Exact(_) | Self::Any | Self::Suffix(_)) => None,
            },
        }
    }

    fn with_domain(&self, own: &TrustDomain) -> Self {
        let replaced = |text: &String| match text.split_once('/') {
            Some((domain, rest)) => format!("{}/{rest}", meant(domain, own)),
            None => text.clone(),
        };
        match self {
            Self::Exact(text) => Self::Exact(replaced(text)),
            Self::Prefix(text) => Self::Prefix(replaced(text)),
            Self::Any | Self::Suffix(_) => self.clone(),
        }
    }
}

impl FromStr for Pattern {
    type Err = NotAPattern;
    fn from_str(text: &str) -> Result<Self, NotAPattern> {
        let (pattern, rest): (fn(String) -> Self, &str) = match text {
            "" => return Err(NotAPattern::Empty),
            "*" => return Ok(Self::Any),
            _ => match (text.strip_prefix('*'), text.strip_suffix('*')) {
                (Some(rest), _) => (Self::Suffix, rest),
                (None, Some(rest)) => (Self::Prefix, rest),
                (None, None) => (Self::Exact, text),
            },
        };
        let short = || text.chars().take(128).collect();
        if !rest.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(NotAPattern::Character(short()));
        }
        if rest.contains('*') {
            return Err(NotAPattern::Star(short()));
        }
        Ok(pattern(rest.to_owned()))
    }
}

impl TryFrom<String> for Pattern {
    type Error = NotAPattern;
    fn try_from(text: String) -> Result<Self, NotAPattern> {
        text.parse()
    }
}

impl From<Pattern> for String {
    fn from(pattern: Pattern) -> Self {
        pattern.to_string()
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("*"),
            Self::Exact(text) => f.write_str(text),
            Self::Prefix(text) => write!(f, "{text}*"),
            Self::Suffix(text) => write!(f, "*{text}"),
        }
    }
}

/// A CIDR, or one address as the block of itself (Istio: "single IP and CIDR are supported").
pub fn block(text: &str) -> Option<IpNet> {
    text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
}

impl TryFrom<String> for AccountName {
    type Error = &'static str;
    fn try_from(text: String) -> Result<Self, &'static str> {
        match text.split_once('/') {
            Some((namespace, name))
                if !namespace.is_empty() && !name.is_empty() && !name.contains('/') =>
            {
                Ok(Self { namespace: namespace.into(), name: name.into() })
            }
            Some(_) | None => Err("a service account reads NAMESPACE/NAME"),
        }
    }
}

impl From<AccountName> for String {
    fn from(account: AccountName) -> Self {
        account.to_string()
    }
}

impl fmt::Display for AccountName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}
