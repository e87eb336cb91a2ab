//! The credentials of one linked cluster, without IO: a new one takes over once it is synced.

use super::drive::Report;
use super::problem::{Problem, Verdict};
use super::{Remote, RemoteState, Told};
use crate::heard::Moment;
use crate::kubeconfig;
use mesh::finding::ObjectRef;
use std::sync::Arc;
use std::time::Duration;

/// What a deleted secret's cluster told is kept so long: tools replace by delete and create.
pub(super) const GRACE: Duration = Duration::from_secs(3);

/// What happened.
#[derive(Debug)]
pub(super) enum Input {
    /// The secret says this now.
    Secret(ObjectRef, Result<kubeconfig::Remote, Problem>),
    /// No secret speaks for this cluster any more.
    SecretGone,
    /// A credential at work reports.
    Report {
        generation: u64,
        report: Report,
    },
    Tick,
}

/// What to do about it.
#[derive(Debug)]
pub(super) enum Action {
    Start {
        generation: u64,
        kubeconfig: Box<kubeconfig::Remote>,
    },
    Stop {
        generation: u64,
    },
    /// The link is over: nothing of it may be published any more.
    Forget,
}

impl PartialEq for Action {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Start { generation: a, .. }, Self::Start { generation: b, .. })
            | (Self::Stop { generation: a }, Self::Stop { generation: b }) => a == b,
            (Self::Forget, Self::Forget) => true,
            (Self::Start { .. } | Self::Stop { .. } | Self::Forget, _) => false,
        }
    }
}

/// Whether a linked API server answers us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reachable {
    /// It answered the last probe.
    True,
    /// It answers, and refuses us until somebody changes something.
    False,
    /// It does not answer; it may be well.
    Unknown,
}

impl Reachable {
    /// As a condition's status.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::True => "True",
            Self::False => "False",
            Self::Unknown => "Unknown",
        }
    }
}

/// A [`Reachable`], and since when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reachability {
    pub is: Reachable,
    pub since: Moment,
}

pub(super) struct Link {
    secret: ObjectRef,
    generation: u64,
    current: Option<Run>,
    /// A replacement that is not synced yet.
    next: Option<Run>,
    /// Why the secret's present content is not in use.
    refused: Option<Problem>,
    gone: Option<Moment>,
    reachable: Reachability,
}

/// One credential at work.
struct Run {
    generation: u64,
    fingerprint: String,
    short: String,
    server: String,
    report: Report,
}

impl Link {
    pub(super) fn new(secret: ObjectRef, now: Moment) -> Self {
        Self {
            secret,
            generation: 0,
            current: None,
            next: None,
            refused: None,
            gone: None,
            reachable: Reachability { is: Reachable::Unknown, since: now },
        }
    }

    pub(super) fn secret(&self) -> &ObjectRef {
        &self.secret
    }

    pub(super) fn step(&mut self, now: Moment, input: Input) -> Vec<Action> {
        let mut actions = Vec::new();
        match input {
            Input::Secret(secret, Ok(kubeconfig)) => {
                self.secret = secret;
                self.gone = None;
                self.refused = None;
                self.use_credential(kubeconfig, &mut actions);
            }
            Input::Secret(secret, Err(problem)) => {
                self.secret = secret;
                self.gone = None;
                self.refused = Some(problem);
                if let Some(next) = self.next.take() {
                    actions.push(Action::Stop { generation: next.generation });
                }
            }
            Input::SecretGone => {
                self.gone.get_or_insert(now);
            }
            Input::Report { generation, report } => {
                self.report(generation, report, &mut actions);
                self.judge(now);
            }
            Input::Tick => {
                let over = self
                    .gone
                    .is_some_and(|gone| now.at.saturating_duration_since(gone.at) >= GRACE);
                if over {
                    actions.push(Action::Forget);
                }
            }
        }
        actions
    }

    fn use_credential(&mut self, kubeconfig: kubeconfig::Remote, actions: &mut Vec<Action>) {
        let same = |run: &Option<Run>| {
            run.as_ref().is_some_and(|run| run.fingerprint == kubeconfig.fingerprint())
        };
        if same(&self.next) {
            return;
        }
        // Back to what works already, or another replacement: the one under way is not wanted.
        if let Some(next) = self.next.take() {
            actions.push(Action::Stop { generation: next.generation });
        }
        if same(&self.current) {
            return;
        }
        self.generation += 1;
        let run = Run {
            generation: self.generation,
            fingerprint: kubeconfig.fingerprint().to_owned(),
            short: kubeconfig.short_fingerprint().to_owned(),
            server: kubeconfig.server(),
            report: Report::default(),
        };
        let generation = run.generation;
        match self.current {
            None => self.current = Some(run),
            Some(_) => self.next = Some(run),
        }
        actions.push(Action::Start { generation, kubeconfig: Box::new(kubeconfig) });
    }

    fn report(&mut self, generation: u64, report: Report, actions: &mut Vec<Action>) {
        if let Some(current) = self.current.as_mut().filter(|run| run.generation == generation) {
            current.report = report;
            return;
        }
        let Some(next) = self.next.as_mut().filter(|run| run.generation == generation) else {
            return; // Of a run that was stopped.
        };
        next.report = report;
        // Make before break: only a synced successor replaces what works.
        if next.report.told.is_some() {
            if let Some(old) = self.current.take() {
                actions.push(Action::Stop { generation: old.generation });
            }
            self.current = self.next.take();
        }
    }

    fn judge(&mut self, now: Moment) {
        let Some(current) = &self.current else { return };
        let is = match &current.report.verdict {
            Some(Verdict::Silent(_)) => Reachable::Unknown,
            Some(Verdict::Refused(_)) => Reachable::False,
            None if current.report.heard.is_some() => Reachable::True,
            None => Reachable::Unknown,
        };
        if is != self.reachable.is {
            self.reachable = Reachability { is, since: now };
        }
    }

    /// What to publish.
    pub(super) fn remote(&self) -> Remote {
        let current = self.current.as_ref();
        let told: Option<Arc<Told>> = current.and_then(|run| run.report.told.clone());
        let error = current.and_then(|run| match &run.report.verdict {
            Some(Verdict::Silent(problem) | Verdict::Refused(problem)) => Some(problem.clone()),
            None => run.report.waiting.clone(),
        });
        let problem = self.refused.clone().or_else(|| {
            let next = self.next.as_ref()?;
            let (reason, why) = match &next.report.verdict {
                Some(Verdict::Silent(problem)) => ("Replacing", problem.message.clone()),
                // It will not take over by itself: somebody must change something.
                Some(Verdict::Refused(problem)) => (&*problem.reason, problem.message.clone()),
                None => ("Replacing", "it is being read".into()),
            };
            Some(Problem::new(
                reason,
                format!("the new credential is not in use yet, the old one still is: {why}"),
            ))
        });
        Remote {
            secret: self.secret.clone(),
            server: current.map(|run| run.server.clone()).unwrap_or_default(),
            credential: current.map(|run| run.short.clone()).unwrap_or_default(),
            problem,
            leaving: self.gone.is_some(),
            state: RemoteState {
                exports: told,
                reachable: self.reachable,
                last_heard: current.and_then(|run| run.report.heard),
                error,
            },
        }
    }
}

#[cfg(test)]
#[path = "link_tests.rs"]
mod tests;
