//! Who may call a workload: the AuthorizationPolicies that select it, and the decision on one caller.
//!
//! Istio's precedence (its "Authorization Policy" reference): a DENY rule that matches denies; else
//! a workload that no ALLOW policy selects takes everybody; else one ALLOW rule must match. CUSTOM
//! policies stand among the DENY ones: nobody asks their provider here, and a provider that cannot be
//! asked denies what the policy's rules match, as Istio has it. What is judged is what a connection
//! shows (layer 4); docs/adr/0010 says what becomes of the rest.

mod audience;
mod findings;
mod rule;

pub use audience::{Audience, Callers, Count, Elsewhere, Judged, audience, through_gateway};
pub use findings::findings;
pub use rule::{AccountName, Caller, Clause, NotAPattern, Operation, Pattern, Rule, Source, block};

use crate::export::{ROOT_NAMESPACE, selects};
use crate::finding::ObjectRef;
use crate::inventory::{AuthorizationPolicy, Inventory, MtlsMode, PolicyAction, Workload};
use crate::name::TrustDomain;
use crate::program::InboundListener;
use rule::Facts;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::Arc;

/// The kind's name, as objects carry it.
pub const KIND: &str = "AuthorizationPolicy";

/// All that policies say about callers of one workload; the default lets everybody in.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Authorization {
    /// DENY and CUSTOM policies, asked first: those of the root namespace, then by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub deny: Vec<Policy>,
    /// ALLOW policies. Where there is one, one of their rules must match.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allow: Vec<Policy>,
}

/// One policy that selects the workload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Policy {
    pub object: Arc<ObjectRef>,
    /// A rule's number is its place, from 0. A policy without rules matches nobody.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<Rule>,
}

/// What was decided on a caller, and by what.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "verdict", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Verdict {
    /// No ALLOW policy selects the workload, and no DENY rule matches.
    NoAllowPolicy,
    Allowed {
        policy: Arc<ObjectRef>,
        rule: usize,
    },
    /// A rule of a DENY or CUSTOM policy matches.
    Denied {
        policy: Arc<ObjectRef>,
        rule: usize,
    },
    /// ALLOW policies select the workload, these, and no rule of theirs matches.
    NoneAllows {
        policies: Vec<Arc<ObjectRef>>,
    },
    /// It came in plaintext, and the port takes mutual TLS only.
    Plaintext,
    /// Its certificate is of a trust domain that is not accepted, as of a cluster that is no longer
    /// linked.
    Foreign {
        domain: TrustDomain,
    },
}

impl Verdict {
    /// Whether the caller is let in.
    pub fn allows(&self) -> bool {
        match self {
            Self::NoAllowPolicy | Self::Allowed { .. } => true,
            Self::Denied { .. }
            | Self::NoneAllows { .. }
            | Self::Plaintext
            | Self::Foreign { .. } => false,
        }
    }

    /// What Envoy logs for a caller that is not let in (`RESPONSE_CODE_DETAILS`): the rule by the
    /// name that Istio gives it, or `none` where no ALLOW rule matched; words of our own for what
    /// Envoy refuses at the handshake.
    pub fn denial(&self) -> Option<String> {
        match self {
            Self::NoAllowPolicy | Self::Allowed { .. } => None,
            Self::Denied { policy, rule } => {
                Some(format!("rbac_access_denied_matched_policy[{}]", rule_name(policy, *rule)))
            }
            Self::NoneAllows { .. } => Some("rbac_access_denied_matched_policy[none]".to_owned()),
            Self::Plaintext => Some("mutual_tls_required".to_owned()),
            Self::Foreign { domain } => Some(format!("trust_domain_not_accepted[{domain}]")),
        }
    }
}

/// `ns[shop]-policy[allow-web]-rule[0]`: a rule as Istio names it towards Envoy.
pub fn rule_name(policy: &ObjectRef, rule: usize) -> String {
    format!("ns[{}]-policy[{}]-rule[{rule}]", policy.namespace, policy.name)
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoAllowPolicy => f.write_str("lets everybody in (no ALLOW policy selects it)"),
            Self::Allowed { policy, rule } => {
                write!(f, "lets the caller in by rules[{rule}] of {policy}")
            }
            Self::Denied { policy, rule } => {
                write!(f, "denies the caller by rules[{rule}] of {policy}")
            }
            Self::NoneAllows { policies } => {
                f.write_str("denies the caller: no rule matches of ")?;
                for (at, policy) in policies.iter().enumerate() {
                    write!(f, "{}{policy}", if at == 0 { "" } else { ", " })?;
                }
                Ok(())
            }
            Self::Plaintext => {
                f.write_str("denies the caller: it comes in plaintext, and mutual TLS is wanted")
            }
            Self::Foreign { domain } => {
                write!(f, "denies the caller: trust domain {domain} is not accepted")
            }
        }
    }
}

impl Authorization {
    /// Everybody is let in.
    pub fn is_open(&self) -> bool {
        self.deny.is_empty() && self.allow.is_empty()
    }

    /// What `own`'s policies say about callers of this workload.
    pub fn of(own: &Inventory, workload: &Workload) -> Self {
        let mut all = Self::default();
        for policy in selecting(own, workload) {
            let domain = &own.mesh.trust_domain;
            let compiled = Policy {
                object: Arc::new(policy.object.clone()),
                rules: policy.rules.iter().map(|rule| rule.seen_from(domain)).collect(),
            };
            match policy.action {
                PolicyAction::Allow => all.allow.push(compiled),
                PolicyAction::Deny | PolicyAction::Custom => all.deny.push(compiled),
            }
        }
        all
    }
}

/// Policies that select a workload: of the root namespace, then of its own, each by name.
pub fn selecting<'a>(
    own: &'a Inventory,
    workload: &'a Workload,
) -> impl Iterator<Item = &'a AuthorizationPolicy> {
    let namespace = workload.name.namespace.as_str();
    let own_namespace = (namespace != ROOT_NAMESPACE).then_some(namespace);
    let namespaces = [Some(ROOT_NAMESPACE), own_namespace].into_iter().flatten();
    namespaces
        .flat_map(|namespace| {
            let first = ObjectRef::new(KIND, namespace, "");
            let all = own.authorization_policies.range(first..).map(|(_, policy)| policy);
            all.take_while(move |policy| policy.object.namespace == namespace)
        })
        .filter(|policy| selects(&policy.selector, &workload.labels))
}

/// Whether a caller that is connected may stay under this listener: by what its handshake would find
/// now, then by the policies.
pub fn admit(listener: &InboundListener, caller: &Caller) -> Verdict {
    match &caller.identity {
        None => {
            let port = listener.ports.get(&caller.destination.port());
            if port.map_or(listener.mtls, |port| port.mtls) == MtlsMode::Strict {
                return Verdict::Plaintext;
            }
        }
        Some(identity) if !listener.trust_domains.contains(&identity.domain) => {
            return Verdict::Foreign { domain: identity.domain.clone() };
        }
        Some(_) => {}
    }
    decide(&listener.authorization, caller)
}

/// Whether this caller is let in, and which rule decides.
pub fn decide(authorization: &Authorization, caller: &Caller) -> Verdict {
    if authorization.is_open() {
        return Verdict::NoAllowPolicy;
    }
    let facts = Facts::of(caller);
    let matching = |policies: &[Policy], wanted: fn(&Rule) -> bool| {
        policies.iter().find_map(|policy| {
            let mut rules = policy.rules.iter().enumerate();
            let (rule, _) = rules.find(|(_, rule)| wanted(rule) && rule.matches(&facts))?;
            Some((Arc::clone(&policy.object), rule))
        })
    };
    if let Some((policy, rule)) = matching(&authorization.deny, |_| true) {
        return Verdict::Denied { policy, rule };
    }
    if authorization.allow.is_empty() {
        return Verdict::NoAllowPolicy;
    }
    // What is not judged whole must not let anybody in.
    match matching(&authorization.allow, |rule| !rule.partial) {
        Some((policy, rule)) => Verdict::Allowed { policy, rule },
        None => {
            let policies = authorization.allow.iter();
            Verdict::NoneAllows { policies: policies.map(|it| Arc::clone(&it.object)).collect() }
        }
    }
}

/// What Istio's policies call the own trust domain, whatever its name is.
pub(crate) const OWN_DOMAIN: &str = "cluster.local";

/// The trust domain that a policy's word for one means here.
pub(crate) fn meant<'a>(word: &'a str, own: &'a TrustDomain) -> &'a str {
    if word == OWN_DOMAIN { own.as_str() } else { word }
}

#[cfg(test)]
mod tests;
