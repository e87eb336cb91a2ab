//! One resource type of one stream: asked for, told, due, leaving.

use super::{Encoded, Limits, Lookup, TypeStatus};
use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, Resource};
use mesh::program::{ResourceKind, ResourceName};
use prost::Message;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

const WILDCARD: &str = "*";
/// Longest reason of a refusal that is kept, characters.
const REASON_MAX: usize = 1024;

#[derive(Debug, Default)]
pub(super) struct Kind {
    /// Asked for by name.
    pub(super) explicit: BTreeSet<String>,
    wildcard: bool,
    /// A wildcard is owed an answer even if nothing is there: Envoy waits for it.
    wildcard_owed: bool,
    /// What the client holds or is on its way to: a version, or `None` for "there is none".
    told: BTreeMap<String, Option<String>>,
    due: Due,
    /// No longer asked for, but perhaps in the response without an answer: that may reach a
    /// client that has meanwhile asked for all again.
    doubtful: BTreeSet<String>,
    /// Told, and no longer there: to be taken back when nobody refers to it.
    pub(super) leaving: BTreeSet<String>,
    /// The one response without an answer.
    outstanding: Option<Outstanding>,
    begun: bool,
    sent: String,
    acked: String,
    nack: Option<String>,
    nacks: u64,
    nacks_in_a_row: u32,
    rests_until: Option<Instant>,
}

#[derive(Debug)]
struct Outstanding {
    nonce: String,
    since: Instant,
}

/// Names to be looked at again.
#[derive(Debug)]
enum Due {
    All,
    Names(BTreeSet<String>),
}

impl Default for Due {
    fn default() -> Self {
        Self::Names(BTreeSet::new())
    }
}

/// One response's worth of news.
pub(super) struct News {
    pub(super) resources: Vec<Resource>,
    pub(super) absent: Vec<String>,
    /// Of `resources`, those of which the client had another content.
    pub(super) replaced: Vec<String>,
}

impl Kind {
    /// An answer to the outstanding response; any other nonce is stale and says nothing.
    pub(super) fn answered(
        &mut self,
        now: Instant,
        nonce: &str,
        refusal: Option<&str>,
        limits: &Limits,
    ) {
        if self.outstanding.as_ref().is_none_or(|outstanding| outstanding.nonce != nonce) {
            return;
        }
        self.outstanding = None;
        let Some(reason) = refusal else {
            self.acked.clone_from(&self.sent);
            self.nack = None;
            self.nacks_in_a_row = 0;
            self.rests_until = None;
            return;
        };
        // What was refused is not sent again as it is: `told` keeps its version.
        self.nack = Some(reason.chars().take(REASON_MAX).collect());
        self.nacks += 1;
        let rest = limits.nack_rest.saturating_mul(1 << self.nacks_in_a_row.min(16));
        self.nacks_in_a_row = self.nacks_in_a_row.saturating_add(1);
        self.rests_until = Some(now + rest.min(limits.nack_rest_max));
    }

    /// Applies what a request says about names; the versions in it only where `trusted`.
    pub(super) fn subscriptions(
        &mut self,
        of: ResourceKind,
        request: &DeltaDiscoveryRequest,
        trusted: bool,
    ) {
        let first = !std::mem::replace(&mut self.begun, true);
        if first {
            let held = request.initial_resource_versions.iter().filter(|_| trusted);
            self.told = held.map(|(name, version)| (name.clone(), Some(version.clone()))).collect();
            // Before "*" was a name, an empty first request of these two types meant it.
            let legacy = matches!(of, ResourceKind::Listener | ResourceKind::Cluster);
            if legacy && request.resource_names_subscribe.is_empty() {
                self.take_wildcard();
            }
        }
        for name in &request.resource_names_unsubscribe {
            if name == WILDCARD {
                self.wildcard = false;
                self.wildcard_owed = false;
                self.forget_unasked();
            } else if self.explicit.remove(name) {
                self.leaving.remove(name);
                if self.wildcard {
                    // It may still be covered: then it is sent anew, else taken back, as the
                    // protocol wants.
                    self.doubt(name);
                    self.due(name);
                } else {
                    self.forget(name);
                    self.not_due(name);
                }
            }
        }
        for name in &request.resource_names_subscribe {
            if name == WILDCARD {
                if !first {
                    self.doubt_covered();
                }
                self.take_wildcard();
                continue;
            }
            self.explicit.insert(name.clone());
            // Asking again for what one has means to have lost it; asking on a new stream while
            // listing its version does not.
            if !first || !request.initial_resource_versions.contains_key(name) {
                self.doubt(name);
            }
            self.leaving.remove(name);
            self.due(name);
        }
        if first {
            self.forget_unasked();
        }
        if self.outstanding.is_none() {
            // Its client heard all that was sent before it said what it just said.
            self.doubtful.clear();
        }
    }

    fn take_wildcard(&mut self) {
        for name in std::mem::take(&mut self.doubtful) {
            self.told.entry(name).or_insert_with(|| Some(String::new()));
        }
        self.wildcard = true;
        self.wildcard_owed = true;
        self.due = Due::All;
    }

    /// The client may or may not hold it: it will be sent anew or taken back, for no resource has
    /// an empty version. An absence is answered anew.
    fn doubt(&mut self, name: &str) {
        match self.told.get_mut(name) {
            Some(Some(version)) => version.clear(),
            Some(None) => _ = self.told.remove(name),
            None => (),
        }
    }

    /// The client has use for it though it may not have changed.
    pub(super) fn again(&mut self, name: &str) {
        if self.explicit.contains(name) {
            self.doubt(name);
            self.due(name);
        }
    }

    /// Asking for all again means to have lost what only the wildcard brought.
    fn doubt_covered(&mut self) {
        let Self { told, explicit, .. } = self;
        let covered = told.iter_mut().filter(|(name, _)| !explicit.contains(*name));
        covered.filter_map(|(_, version)| version.as_mut()).for_each(String::clear);
    }

    fn forget_unasked(&mut self) {
        if self.wildcard {
            return;
        }
        let unasked = self.told.keys().filter(|name| !self.explicit.contains(*name));
        for name in unasked.cloned().collect::<Vec<_>>() {
            self.forget(&name);
        }
        let Self { leaving, explicit, .. } = self;
        leaving.retain(|name| explicit.contains(name));
    }

    fn forget(&mut self, name: &str) {
        if let Some(Some(_)) = self.told.remove(name)
            && self.outstanding.is_some()
        {
            self.doubtful.insert(name.to_owned());
        }
    }

    pub(super) fn all_due(&mut self) {
        if self.wildcard || !self.explicit.is_empty() {
            self.due = Due::All;
        }
    }

    /// `name` may have changed.
    pub(super) fn due(&mut self, name: &str) {
        if let Due::Names(names) = &mut self.due
            && (self.wildcard || self.explicit.contains(name))
        {
            names.insert(name.to_owned());
        }
    }

    fn not_due(&mut self, name: &str) {
        if let Due::Names(names) = &mut self.due {
            names.remove(name);
        }
    }

    pub(super) fn is_due(&self) -> bool {
        match &self.due {
            Due::All => true,
            Due::Names(names) => !names.is_empty(),
        }
    }

    pub(super) fn waits_for_answer(&self) -> bool {
        self.outstanding.is_some()
    }

    /// Until when, after a refusal.
    pub(super) fn resting(&self, now: Instant) -> Option<Instant> {
        self.rests_until.filter(|until| *until > now)
    }

    /// Looks at what is due. `None` where it turns out that nothing need be said; what is gone
    /// is noted in `leaving`.
    pub(super) fn news(
        &mut self,
        of: ResourceKind,
        lookup: &dyn Lookup,
        bytes_max: usize,
    ) -> Option<News> {
        let mut covered: Option<BTreeSet<String>> = None;
        let mut due = match std::mem::take(&mut self.due) {
            Due::Names(names) => names,
            Due::All => {
                let mut all = self.explicit.clone();
                all.extend(self.told.keys().cloned());
                if self.wildcard {
                    all.extend(covered.insert(names(of, lookup)).iter().cloned());
                }
                all
            }
        };
        let mut news = News { resources: Vec::new(), absent: Vec::new(), replaced: Vec::new() };
        let mut bytes = 0;
        while bytes < bytes_max
            && let Some(name) = due.pop_first()
        {
            let asked = self.explicit.contains(&name)
                || (self.wildcard
                    && covered.get_or_insert_with(|| names(of, lookup)).contains(&name));
            let found = asked.then(|| lookup.resource(&ResourceName::new(of, name.clone())));
            let Some(Encoded { version, any }) = found.flatten() else {
                self.missing(name, &mut news.absent);
                continue;
            };
            self.leaving.remove(&name);
            if self.told.get(&name).is_some_and(|told| told.as_ref() == Some(&version)) {
                continue;
            }
            bytes += any.encoded_len() + name.len();
            if let Some(Some(_)) = self.told.insert(name.clone(), Some(version.clone())) {
                news.replaced.push(name.clone());
            }
            news.resources.push(Resource {
                name,
                version,
                resource: Some(any),
                ..Default::default()
            });
        }
        self.due = Due::Names(due);
        let owed = self.wildcard_owed && !self.is_due();
        if news.resources.is_empty() && news.absent.is_empty() && !owed {
            return None;
        }
        if !self.is_due() {
            self.wildcard_owed = false;
        }
        Some(news)
    }

    fn missing(&mut self, name: String, absent: &mut Vec<String>) {
        let asked = self.explicit.contains(&name);
        match self.told.get(&name) {
            Some(Some(version)) if !(asked && version.is_empty()) => {
                self.leaving.insert(name);
            }
            Some(None) => (),
            // Who asked anew waits for an answer, also where there is nothing.
            Some(Some(_)) | None if asked => {
                self.leaving.remove(&name);
                self.told.insert(name.clone(), None);
                absent.push(name);
            }
            Some(Some(_)) | None => (),
        }
    }

    /// Everything that is leaving, for one response.
    pub(super) fn farewell(&mut self) -> Vec<String> {
        let gone: Vec<String> = std::mem::take(&mut self.leaving).into_iter().collect();
        for name in &gone {
            if self.explicit.contains(name) {
                self.told.insert(name.clone(), None);
            } else {
                self.told.remove(name);
            }
        }
        gone
    }

    pub(super) fn sent(&mut self, now: Instant, nonce: &str, version: &str) {
        self.outstanding = Some(Outstanding { nonce: nonce.to_owned(), since: now });
        version.clone_into(&mut self.sent);
    }

    pub(super) fn status(&self, kind: ResourceKind, now: Instant) -> TypeStatus {
        let lag = self.outstanding.as_ref().map(|it| now.saturating_duration_since(it.since));
        TypeStatus {
            kind,
            subscribed: self.explicit.len(),
            wildcard: self.wildcard,
            resources: self.told.values().filter(|version| version.is_some()).count(),
            sent: self.sent.clone(),
            acked: self.acked.clone(),
            nack: self.nack.clone(),
            nacks: self.nacks,
            lag_ms: lag.map_or(0, |lag| u64::try_from(lag.as_millis()).unwrap_or(u64::MAX)),
        }
    }
}

fn names(of: ResourceKind, lookup: &dyn Lookup) -> BTreeSet<String> {
    lookup.names(of).into_iter().map(|name| name.name).collect()
}
