//! Whether a caller is let in: asked of the policies in force, for as long as its connection lives.

use mesh::authorize::{Caller, Verdict, admit};
use mesh::program::{Listener, Resource, ResourceName, Snapshot};
use std::sync::Arc;
use tokio::sync::watch;

/// The workload's inbound listener as it is now; `None` before there was one. A listener that is
/// withdrawn stays in force.
pub type Rules = watch::Receiver<Option<Arc<Resource>>>;

/// Follows the inbound listener out of all that a proxy is told, so that open connections wake when
/// it changes, and not with every endpoint. Ends with the last receiver.
pub fn follow(mut snapshots: watch::Receiver<Arc<Snapshot>>) -> Rules {
    let find = |snapshot: &Snapshot| snapshot.program.get(&ResourceName::inbound()).cloned();
    let first = find(&snapshots.borrow_and_update());
    let (rules, receiver) = watch::channel(first);
    tokio::spawn(async move {
        loop {
            tokio::select! {
                changed = snapshots.changed() => if changed.is_err() { return },
                () = rules.closed() => return,
            }
            let Some(found) = find(&snapshots.borrow_and_update()) else { continue };
            rules.send_if_modified(|rules| {
                let known =
                    rules.as_ref().is_some_and(|it| Arc::ptr_eq(it, &found) || *it == found);
                if !known {
                    *rules = Some(found);
                }
                !known
            });
        }
    });
    receiver
}

/// One caller in front of the policies. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Admission {
    caller: Arc<Caller>,
    /// The listener under which it came.
    first: Arc<Resource>,
    rules: Rules,
}

impl Admission {
    /// `first`: the listener under which the caller came, which `rules` may not have told yet.
    pub fn new(caller: Caller, first: Arc<Resource>, rules: Rules) -> Self {
        Self { caller: Arc::new(caller), first, rules }
    }

    /// What is decided on this caller now.
    pub fn verdict(&self) -> Verdict {
        self.judge(self.rules.borrow().as_deref())
    }

    /// Returns once the caller is no longer let in, with the reason.
    pub async fn revoked(&self) -> Verdict {
        let mut rules = self.rules.clone();
        loop {
            let verdict = self.judge(rules.borrow_and_update().as_deref());
            if !verdict.allows() {
                return verdict;
            }
            if rules.changed().await.is_err() {
                // Nobody tells of changes any more: the proxy is about to end.
                std::future::pending::<()>().await;
            }
        }
    }

    fn judge(&self, rules: Option<&Resource>) -> Verdict {
        match rules.unwrap_or(&self.first) {
            Resource::Listener(Listener::Inbound(listener)) => admit(listener, &self.caller),
            // No listener of a workload has that name with another kind: nobody is let in.
            Resource::Listener(Listener::Outbound(_) | Listener::Gateway(_))
            | Resource::Route(_)
            | Resource::Cluster(_)
            | Resource::Endpoints(_)
            | Resource::Secret(_)
            | Resource::Zone(_) => Verdict::NoneAllows { policies: Vec::new() },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mesh::authorize::Authorization;
    use mesh::inventory::MtlsMode;
    use mesh::program::{InboundListener, Program};
    use std::time::Duration;

    fn snapshot(deny: &str) -> Arc<Snapshot> {
        of_mode(MtlsMode::Permissive, deny)
    }

    fn of_mode(mtls: MtlsMode, deny: &str) -> Arc<Snapshot> {
        let authorization: Authorization = serde_json::from_str(deny).unwrap();
        let listener = InboundListener {
            mtls,
            ports: Default::default(),
            trust_domains: Default::default(),
            authorization,
            ipv6: false,
        };
        let listener = Resource::Listener(Listener::Inbound(listener));
        let program = Program::from([(ResourceName::inbound(), Arc::new(listener))]);
        Arc::new(Snapshot { program, ..Snapshot::default() })
    }

    const OPEN: &str = "{}";
    const CLOSED: &str = r#"{"deny": [{"object": "AuthorizationPolicy shop/no", "rules": [{}]}]}"#;

    #[tokio::test(start_paused = true)]
    async fn a_change_of_policy_reaches_who_is_in_already() {
        let (send, receive) = watch::channel(Arc::new(Snapshot::default()));
        let rules = follow(receive);
        let caller = Caller {
            identity: None,
            source: [10, 0, 0, 1].into(),
            destination: ([10, 0, 0, 2], 80).into(),
            server_name: None,
        };
        let closed = snapshot(CLOSED).program[&ResourceName::inbound()].clone();
        let admission = Admission::new(caller, closed, rules.clone());
        assert!(!admission.verdict().allows(), "it came under a listener that denies it");

        let mut seen = rules.clone();
        send.send(snapshot(OPEN)).unwrap();
        seen.changed().await.unwrap();
        assert_eq!(admission.verdict(), Verdict::NoAllowPolicy);

        // Equal news wakes nobody, and neither does a listener that is withdrawn.
        let waiting = admission.clone();
        let revoked = tokio::spawn(async move { waiting.revoked().await });
        send.send(snapshot(OPEN)).unwrap();
        send.send(Arc::new(Snapshot::default())).unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(!seen.has_changed().unwrap() && !revoked.is_finished());
        assert!(admission.verdict().allows());

        send.send(snapshot(CLOSED)).unwrap();
        let verdict = revoked.await.unwrap();
        let denial = "rbac_access_denied_matched_policy[ns[shop]-policy[no]-rule[0]]";
        assert_eq!(verdict.denial().as_deref(), Some(denial));
        assert_eq!(admission.verdict(), verdict);

        // So does a mode that takes no plaintext any more.
        seen.mark_unchanged();
        send.send(snapshot(OPEN)).unwrap();
        seen.changed().await.unwrap();
        assert!(admission.verdict().allows());
        send.send(of_mode(MtlsMode::Strict, OPEN)).unwrap();
        assert_eq!(admission.revoked().await, Verdict::Plaintext);
    }
}
