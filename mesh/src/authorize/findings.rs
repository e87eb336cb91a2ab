//! What is wrong with policies only beside the rest of the cluster: trust domains, addresses, links.

use super::{OWN_DOMAIN, Pattern, Source, meant};
use crate::finding::{Finding, Severity};
use crate::inventory::Inventory;
use crate::name::TrustDomain;
use crate::world::trust_domains;
use std::collections::BTreeSet;

/// Findings about the policies of `own`: principals of trust domains that no accepted link has,
/// addresses that gateways stand for, a name that means two trust domains, and gateways themselves.
pub fn findings(own: &Inventory) -> Vec<Finding> {
    if own.authorization_policies.is_empty() {
        return Vec::new();
    }
    let accepted = trust_domains(own);
    let mut all = BTreeSet::new();
    for policy in own.authorization_policies.values() {
        if policy.selector.get("istio").is_some_and(|it| it == "eastwestgateway") {
            all.insert(Finding {
                severity: Severity::Warning,
                code: 3424,
                object: policy.object.clone(),
                field: "spec.selector.matchLabels".into(),
                problem:
                    "an east-west gateway passes connections on unread, and decides on nobody."
                        .into(),
                fix: "select the workloads behind it, which know their callers.".into(),
            });
        }
        for (number, rule) in policy.rules.iter().enumerate() {
            for source in rule.sources() {
                if let Some((code, problem, fix)) = about(own, &accepted, source) {
                    all.insert(Finding {
                        severity: Severity::Warning,
                        code,
                        object: policy.object.clone(),
                        field: format!("spec.rules[{number}]"),
                        problem,
                        fix,
                    });
                }
            }
        }
    }
    all.into_iter().collect()
}

/// Code, problem and fix.
fn about(
    own: &Inventory,
    accepted: &BTreeSet<TrustDomain>,
    source: &Source,
) -> Option<(u16, String, String)> {
    let (what, domain) = match source {
        Source::Principal(pattern) => (pattern.to_string(), pattern.domain()?),
        Source::TrustDomain(pattern) => (pattern.to_string(), pattern.clone()),
        Source::Ip(block) => {
            let behind = !own.gateway_addresses.is_empty() || !own.remote_gateways.is_empty();
            return behind.then(|| {
                let problem = format!(
                    "{block} is compared with the address that connects, and callers of other \
                     networks come from the gateway's."
                );
                (3422, problem, "name callers of other clusters by principals.".to_owned())
            });
        }
        Source::Namespace(_) | Source::ServiceAccount(_) => return None,
    };
    if domain == Pattern::Exact(OWN_DOMAIN.to_owned()) {
        let twice = accepted.iter().any(|it| it.as_str() == OWN_DOMAIN)
            && own.mesh.trust_domain.as_str() != OWN_DOMAIN;
        return twice.then(|| {
            let problem = format!(
                "{what:?} means {}, as {OWN_DOMAIN} always means the own trust domain, and a linked \
                 cluster's is called {OWN_DOMAIN} too.",
                own.mesh.trust_domain
            );
            let fix = "write the own trust domain by its name; reach the other's by */ns/… .";
            (3423, problem, fix.to_owned())
        });
    }
    let known = |it: &&TrustDomain| match &domain {
        Pattern::Exact(word) => meant(word, &own.mesh.trust_domain) == it.as_str(),
        Pattern::Any | Pattern::Prefix(_) | Pattern::Suffix(_) => domain.fits(it.as_str()),
    };
    if accepted.iter().any(|it| known(&it)) {
        return None;
    }
    let there: Vec<&str> = accepted.iter().map(TrustDomain::as_str).collect();
    let problem = format!(
        "{what:?} is of trust domain {domain}, which is neither this cluster's nor an accepted \
         link's; it matches nobody. There are: {}.",
        there.join(", ")
    );
    Some((3421, problem, "correct the trust domain, or link that cluster.".to_owned()))
}
