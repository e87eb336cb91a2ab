//! Authorization as Envoy's RBAC filters: DENY first, then ALLOW, as Istio writes them
//! (`pilot/pkg/security/authz/builder`).
//!
//! Envoy judges a TCP connection by its first byte: where the server speaks first, what it says
//! before that reaches a caller that is then cut.

use super::filter;
use crate::codec::wire;
use envoy_types::pb::envoy::config::core::v3::CidrRange;
use envoy_types::pb::envoy::config::listener::v3::Filter;
use envoy_types::pb::envoy::config::rbac::v3::principal::Authenticated;
use envoy_types::pb::envoy::config::rbac::v3::{
    Permission, Policy, Principal, Rbac, permission, principal, rbac::Action,
};
use envoy_types::pb::envoy::extensions::filters::http::rbac::v3::Rbac as HttpRbac;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpFilter, http_filter::ConfigType,
};
use envoy_types::pb::envoy::extensions::filters::network::rbac::v3::Rbac as NetworkRbac;
use envoy_types::pb::envoy::r#type::matcher::v3::{
    RegexMatcher, StringMatcher, string_matcher::MatchPattern,
};
use mesh::authorize::{self, Authorization, Clause, Operation, Pattern, Rule, Source, rule_name};
use std::net::IpAddr;

const NETWORK: &str = "envoy.filters.network.rbac";
const HTTP: &str = "envoy.filters.http.rbac";
/// Istio's prefix of these filters' numbers.
const STAT_PREFIX: &str = "tcp.";

/// In front of `tcp_proxy`.
pub(super) fn network(authorization: &Authorization) -> impl Iterator<Item = Filter> {
    rules(authorization).map(|rules| {
        let stat_prefix = STAT_PREFIX.to_owned();
        filter(NETWORK, &NetworkRbac { rules: Some(rules), stat_prefix, ..Default::default() })
    })
}

/// In front of the router.
pub(super) fn http(authorization: &Authorization) -> impl Iterator<Item = HttpFilter> {
    rules(authorization).map(|rules| {
        let rbac = HttpRbac { rules: Some(rules), ..Default::default() };
        HttpFilter {
            name: HTTP.to_owned(),
            config_type: Some(ConfigType::TypedConfig(wire::pack(&rbac))),
            ..Default::default()
        }
    })
}

/// DENY's and ALLOW's, where there are such policies. No ALLOW policy is no filter: everybody is
/// let in; one without rules is a filter that lets in nobody.
fn rules(authorization: &Authorization) -> impl Iterator<Item = Rbac> {
    let made = |action: Action, policies: &[authorize::Policy]| {
        let rules = policies.iter().flat_map(|policy| {
            let rules = policy.rules.iter().enumerate();
            // An ALLOW rule that is not judged whole lets nobody in.
            let judged = rules.filter(|(_, rule)| action == Action::Deny || !rule.partial);
            judged.map(|(number, rule)| (rule_name(&policy.object, number), self::policy(rule)))
        });
        (!policies.is_empty()).then(|| Rbac {
            action: action as i32,
            policies: rules.collect(),
            ..Default::default()
        })
    };
    let all = [made(Action::Deny, &authorization.deny), made(Action::Allow, &authorization.allow)];
    all.into_iter().flatten()
}

/// A rule: any of its permissions and any of its principals.
fn policy(rule: &Rule) -> Policy {
    let to = alternatives(&rule.to, &rule.when_to);
    let from = alternatives(&rule.from, &rule.when_from);
    Policy { permissions: vec![to], principals: vec![from], ..Default::default() }
}

/// What RBAC's permissions and principals have in common.
trait Term: Sized {
    type Value;
    fn of(value: &Self::Value) -> Self;
    fn any() -> Self;
    fn all_of(terms: Vec<Self>) -> Self;
    fn one_of(terms: Vec<Self>) -> Self;
    fn not(term: Self) -> Self;
}

fn alternatives<T: Term>(some: &[Vec<Clause<T::Value>>], when: &[Clause<T::Value>]) -> T {
    let mut terms: Vec<T> = when.iter().flat_map(clause).collect();
    if !some.is_empty() {
        let all = some.iter().map(|clauses| every(clauses.iter().flat_map(clause).collect()));
        terms.push(set(T::one_of, all.collect()));
    }
    every(terms)
}

fn every<T: Term>(terms: Vec<T>) -> T {
    // Envoy refuses an empty set.
    if terms.is_empty() { T::any() } else { set(T::all_of, terms) }
}

/// A set of one is that one.
fn set<T: Term>(of: fn(Vec<T>) -> T, mut terms: Vec<T>) -> T {
    match (terms.pop(), terms.is_empty()) {
        (Some(sole), true) => sole,
        (last, _) => {
            terms.extend(last);
            of(terms)
        }
    }
}

fn clause<T: Term>(clause: &Clause<T::Value>) -> impl Iterator<Item = T> {
    let one_of = |values: &[T::Value]| {
        (!values.is_empty()).then(|| set(T::one_of, values.iter().map(T::of).collect()))
    };
    [one_of(&clause.any_of), one_of(&clause.none_of).map(T::not)].into_iter().flatten()
}

impl Term for Permission {
    type Value = Operation;
    fn of(value: &Operation) -> Self {
        permitting(match value {
            Operation::Port(port) => permission::Rule::DestinationPort((*port).into()),
            Operation::Ip(block) => {
                permission::Rule::DestinationIp(range(block.network(), block.prefix_len()))
            }
            Operation::ServerName(pattern) => {
                permission::Rule::RequestedServerName(text(pattern, ""))
            }
        })
    }
    fn any() -> Self {
        permitting(permission::Rule::Any(true))
    }
    fn all_of(rules: Vec<Self>) -> Self {
        permitting(permission::Rule::AndRules(permission::Set { rules }))
    }
    fn one_of(rules: Vec<Self>) -> Self {
        permitting(permission::Rule::OrRules(permission::Set { rules }))
    }
    fn not(rule: Self) -> Self {
        permitting(permission::Rule::NotRule(Box::new(rule)))
    }
}

fn permitting(rule: permission::Rule) -> Permission {
    Permission { rule: Some(rule) }
}

impl Term for Principal {
    type Value = Source;
    fn of(value: &Source) -> Self {
        let name = match value {
            Source::Ip(block) => {
                return identified(principal::Identifier::DirectRemoteIp(range(
                    block.network(),
                    block.prefix_len(),
                )));
            }
            Source::Principal(pattern) => text(pattern, "spiffe://"),
            Source::Namespace(pattern) => regex(format!("spiffe://[^/]+/ns/{}/.*", part(pattern))),
            Source::TrustDomain(pattern) => regex(format!("spiffe://{}/.*", part(pattern))),
            Source::ServiceAccount(account) => {
                let (namespace, name) = (quoted(&account.namespace), quoted(&account.name));
                regex(format!("spiffe://[^/]+/ns/{namespace}/sa/{name}"))
            }
        };
        let proven = Authenticated { principal_name: Some(name) };
        identified(principal::Identifier::Authenticated(proven))
    }
    fn any() -> Self {
        identified(principal::Identifier::Any(true))
    }
    fn all_of(ids: Vec<Self>) -> Self {
        identified(principal::Identifier::AndIds(principal::Set { ids }))
    }
    fn one_of(ids: Vec<Self>) -> Self {
        identified(principal::Identifier::OrIds(principal::Set { ids }))
    }
    fn not(id: Self) -> Self {
        identified(principal::Identifier::NotId(Box::new(id)))
    }
}

fn identified(identifier: principal::Identifier) -> Principal {
    Principal { identifier: Some(identifier) }
}

fn range(network: IpAddr, length: u8) -> CidrRange {
    CidrRange { address_prefix: network.to_string(), prefix_len: wire::uint(length.into()) }
}

fn string(pattern: MatchPattern) -> StringMatcher {
    StringMatcher { match_pattern: Some(pattern), ..Default::default() }
}

fn regex(regex: String) -> StringMatcher {
    string(MatchPattern::SafeRegex(RegexMatcher { regex, ..Default::default() }))
}

/// A whole text that begins with `scheme`.
fn text(pattern: &Pattern, scheme: &str) -> StringMatcher {
    match pattern {
        Pattern::Any => regex(".+".to_owned()),
        Pattern::Exact(text) => string(MatchPattern::Exact(format!("{scheme}{text}"))),
        Pattern::Prefix(text) => string(MatchPattern::Prefix(format!("{scheme}{text}"))),
        Pattern::Suffix(text) => string(MatchPattern::Suffix(text.clone())),
    }
}

/// One segment of an identity.
fn part(pattern: &Pattern) -> String {
    match pattern {
        Pattern::Any => "[^/]+".to_owned(),
        Pattern::Exact(text) => quoted(text),
        Pattern::Prefix(text) => format!("{}[^/]*", quoted(text)),
        Pattern::Suffix(text) => format!("[^/]*{}", quoted(text)),
    }
}

/// The text itself in a regular expression (RE2 takes any escaped punctuation for itself).
fn quoted(text: &str) -> String {
    let mut quoted = String::new();
    for letter in text.chars() {
        if letter.is_ascii_punctuation() {
            quoted.push('\\');
        }
        quoted.push(letter);
    }
    quoted
}
