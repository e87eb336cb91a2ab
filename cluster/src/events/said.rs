//! What became of a ClusterLink or an ExportedService, from the state before and the state now: pure.

use crate::api::cluster_link::{ClusterLinkStatus, Condition};
use serde_json::Value;

/// Whether somebody should look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weight {
    Normal,
    Warning,
}

/// A transition, as people read it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    pub weight: Weight,
    /// One word in UpperCamelCase.
    pub reason: &'static str,
    pub message: String,
}

/// What a link's new status says that the standing one does not.
pub fn of_link(old: Option<&ClusterLinkStatus>, new: &ClusterLinkStatus) -> Vec<Said> {
    let mut all = vec![];
    let was = |kind: &str| old.and_then(|old| old.condition(kind));
    let say = |weight, reason, condition: &Condition| Said {
        weight,
        reason,
        message: condition.message.clone(),
    };
    let is = |condition: Option<&Condition>, status: &str| {
        condition.is_some_and(|condition| condition.status == status)
    };
    if let Some(ready) = new.condition("Ready") {
        let before = was("Ready");
        let other = before.is_none_or(|it| it.status != ready.status || it.reason != ready.reason);
        // What everybody's link goes through before it is one; no longer once it was.
        let early = ["AwaitingConsent", "Reading", "Connecting", "SecretMissing"];
        // Unknown for want of an answer alone: it was linked all the while, and `Heard` says the rest.
        let silent = is(before, "Unknown") && is(was("TrustEstablished"), "True");
        if ready.status == "True" && !is(before, "True") && !silent {
            let cluster = if new.cluster.is_empty() { "the peer" } else { &new.cluster };
            all.push(Said {
                weight: Weight::Normal,
                reason: "Linked",
                message: format!("{cluster} is linked: {} services are read.", new.services),
            });
        } else if ready.status == "False"
            && other
            && (is(before, "True") || !early.contains(&ready.reason.as_str()))
        {
            all.push(say(Weight::Warning, "Refused", ready));
        }
    }
    if let Some(reachable) = new.condition("Reachable") {
        let heard_before = old.is_some_and(|old| old.last_heard.is_some());
        let silent = |it: Option<&Condition>| it.is_some_and(|it| it.status != "True");
        if is(was("Reachable"), "True") && reachable.status != "True" {
            all.push(say(Weight::Warning, "Silent", reachable));
        } else if heard_before && silent(was("Reachable")) && reachable.status == "True" {
            all.push(say(Weight::Normal, "Heard", reachable));
        }
    }
    if let Some(gateways) = new.condition("GatewaysReachable") {
        let before = was("GatewaysReachable");
        if is(before, "True") && gateways.status == "False" {
            all.push(say(Weight::Warning, "GatewaysSilent", gateways));
        } else if is(before, "False") && gateways.status == "True" {
            all.push(say(Weight::Normal, "GatewaysAnswer", gateways));
        }
    }
    if let Some(old) = old.filter(|old| old.generation > 0 && new.generation > old.generation) {
        all.push(Said {
            weight: Weight::Normal,
            reason: "CredentialRenewed",
            message: format!("Credential {} replaces {}.", new.credential, old.credential),
        });
    }
    if let Some(credential) = new.condition("CredentialRenewed")
        && credential.status == "False"
        && !is(was("CredentialRenewed"), "False")
    {
        all.push(say(Weight::Warning, "RenewalFailed", credential));
    }
    all
}

/// What an ExportedService's new spec says that the standing one does not; `None` where none stood.
pub fn of_export(old: Option<&Value>, new: &Value) -> Option<Said> {
    let problems = |spec: &Value| -> Vec<String> {
        let all = spec["problems"].as_array().into_iter().flatten();
        all.filter_map(|it| it.as_str().map(str::to_owned)).collect()
    };
    let (before, after) = (old.map(problems), problems(new));
    if before.as_ref() == Some(&after) {
        return None;
    }
    Some(if after.is_empty() {
        Said {
            weight: Weight::Normal,
            reason: "Exported",
            message: "Linked clusters that accept this one may call it.".into(),
        }
    } else {
        Said { weight: Weight::Warning, reason: "Refused", message: after.join(" ") }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api;
    use serde_json::json;

    fn condition(kind: &str, status: &str, reason: &str) -> Condition {
        Condition {
            kind: kind.into(),
            status: status.into(),
            reason: reason.into(),
            message: format!("{kind} {reason}."),
            last_transition_time: api::time(0),
            observed_generation: None,
        }
    }

    fn status(conditions: &[(&str, &str, &str)]) -> ClusterLinkStatus {
        let all = conditions.iter().map(|(kind, status, reason)| condition(kind, status, reason));
        ClusterLinkStatus {
            cluster: "west".into(),
            last_heard: Some(api::time(1)),
            conditions: all.collect(),
            ..ClusterLinkStatus::default()
        }
    }

    fn reasons(old: &ClusterLinkStatus, new: &ClusterLinkStatus) -> Vec<&'static str> {
        of_link(Some(old), new).into_iter().map(|said| said.reason).collect()
    }

    const READY: (&str, &str, &str) = ("Ready", "True", "Ready");
    const HEARD: (&str, &str, &str) = ("Reachable", "True", "Answers");
    const SILENT: (&str, &str, &str) = ("Reachable", "Unknown", "TimedOut");

    #[test]
    fn a_link_says_its_transitions_and_nothing_else() {
        let fresh = status(&[("Ready", "False", "AwaitingConsent"), HEARD]);
        assert_eq!(of_link(None, &fresh), [], "what every link goes through");
        let linked = status(&[READY, HEARD]);
        assert_eq!(reasons(&fresh, &linked), ["Linked"]);
        assert_eq!(of_link(None, &linked)[0].message, "west is linked: 0 services are read.");
        let later =
            ClusterLinkStatus { last_heard: Some(api::time(600)), services: 7, ..linked.clone() };
        assert_eq!(reasons(&linked, &later), [""; 0]);
        let silent = status(&[READY, SILENT]);
        assert_eq!(reasons(&linked, &silent), ["Silent"]);
        let unsure = status(&[
            ("Ready", "Unknown", "TimedOut"),
            SILENT,
            ("TrustEstablished", "True", "Same"),
        ]);
        assert_eq!(reasons(&unsure, &linked), ["Heard"], "it was linked all the while");
        let unread = status(&[("Ready", "Unknown", "NotRead"), HEARD]);
        assert_eq!(reasons(&unread, &linked), ["Linked"]);
        let sooner = status(&[READY, ("Reachable", "False", "Refused")]);
        assert_eq!(reasons(&silent, &sooner), [""; 0], "silent is silent");
        assert_eq!(reasons(&silent, &linked), ["Heard"]);
        let refused = status(&[("Ready", "False", "RootsDiffer"), HEARD]);
        assert_eq!(reasons(&linked, &refused), ["Refused"]);
        for lost in ["AwaitingConsent", "SecretMissing"] {
            let lost = status(&[("Ready", "False", lost), HEARD]);
            assert_eq!(reasons(&linked, &lost), ["Refused"], "it was one");
            assert_eq!(reasons(&fresh, &lost), [""; 0]);
        }
        assert_eq!(reasons(&refused, &refused), [""; 0]);
        let otherwise = status(&[("Ready", "False", "SameUid"), HEARD]);
        assert_eq!(reasons(&refused, &otherwise), ["Refused"]);
        assert_eq!(reasons(&refused, &linked), ["Linked"]);
    }

    #[test]
    fn gateways_are_told_when_they_fall_silent_and_when_all_answer_again() {
        let open = status(&[READY, HEARD, ("GatewaysReachable", "True", "Answer")]);
        let some = status(&[READY, HEARD, ("GatewaysReachable", "False", "SomeSilent")]);
        let none = status(&[READY, HEARD, ("GatewaysReachable", "False", "NoneAnswers")]);
        assert_eq!(reasons(&status(&[READY, HEARD]), &open), [""; 0], "the first is no news");
        assert_eq!(reasons(&open, &some), ["GatewaysSilent"]);
        assert_eq!(reasons(&some, &none), [""; 0]);
        assert_eq!(reasons(&none, &open), ["GatewaysAnswer"]);
    }

    #[test]
    fn credentials_are_told_when_they_change_or_cannot() {
        let of = |generation, credential: &str| ClusterLinkStatus {
            generation,
            credential: credential.into(),
            ..status(&[READY, HEARD])
        };
        assert_eq!(reasons(&of(0, ""), &of(1, "a")), [""; 0], "the first is no news");
        assert_eq!(reasons(&of(1, "a"), &of(2, "b")), ["CredentialRenewed"]);
        let failed = status(&[READY, HEARD, ("CredentialRenewed", "False", "RenewalFailed")]);
        assert_eq!(reasons(&of(0, ""), &failed), ["RenewalFailed"]);
        assert_eq!(reasons(&failed, &failed), [""; 0]);
    }

    #[test]
    fn an_export_says_when_it_is_one_and_when_it_cannot_be() {
        let spec = |problems: &[&str], ready: u32| json!({"problems": problems, "ready": ready});
        let reason = |old: Option<&Value>, new: &Value| of_export(old, new).map(|said| said.reason);
        assert_eq!(reason(None, &spec(&[], 1)), Some("Exported"));
        assert_eq!(reason(Some(&spec(&[], 1)), &spec(&[], 2)), None);
        assert_eq!(reason(Some(&spec(&[], 1)), &spec(&["headless"], 1)), Some("Refused"));
        assert_eq!(reason(Some(&spec(&["headless"], 1)), &spec(&["headless"], 9)), None);
        assert_eq!(reason(Some(&spec(&["headless"], 1)), &spec(&[], 1)), Some("Exported"));
        assert_eq!(of_export(None, &spec(&["a.", "b."], 0)).unwrap().message, "a. b.");
    }
}
