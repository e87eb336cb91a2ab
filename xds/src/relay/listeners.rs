//! Whether a stream's proxy has taken the listeners it serves by, as far as a relay can know.
//!
//! Who asks for all of them (an Envoy) serves by the inbound one, or a gateway by its one, so an answer
//! counts once it was one to a response with that. Others say nothing: a control plane that does not
//! know the pod yet sends none, and in the delta variant a response holds at most a piece of what is
//! due (`session::server`). What a stream begins with, held from the one before, was taken on that.
//!
//! Who asks by name (a gRPC client) serves once it was answered: which names there are is nothing its
//! pod can be blamed for.

use mesh::program::ResourceName;
use std::collections::BTreeSet;

/// All listeners, as a name.
const WILDCARD: &str = "*";

/// One stream's.
#[derive(Debug, Default)]
pub(super) struct Listeners {
    by_name: bool,
    /// Nonces of responses with what all serve by that were not answered yet. The control plane
    /// waits for an answer before it sends more of a type, so they are few.
    offered: BTreeSet<String>,
}

impl Listeners {
    /// A request's names, and the names of what it says it holds. True where that is enough.
    pub(super) fn asks<'a>(
        &mut self,
        names: &[String],
        mut held: impl Iterator<Item = &'a String>,
    ) -> bool {
        self.by_name |= names.iter().any(|name| name != WILDCARD);
        !self.by_name && held.any(|name| served_by(name))
    }

    /// A response's nonce, and the names of what it holds.
    pub(super) fn tells<'a>(&mut self, nonce: &str, mut names: impl Iterator<Item = &'a str>) {
        if names.any(served_by) {
            self.offered.insert(nonce.to_owned());
        }
    }

    /// True where the proxy took what it serves by.
    pub(super) fn answers(&mut self, nonce: &str, taken: bool) -> bool {
        let offered = self.offered.remove(nonce);
        taken && (offered || self.by_name)
    }
}

/// By a workload, or by a gateway, which has no other.
fn served_by(name: &str) -> bool {
    [ResourceName::inbound(), ResourceName::gateway()].iter().any(|own| own.name == name)
}

#[cfg(test)]
mod tests {
    use super::Listeners;

    fn tells(listeners: &mut Listeners, nonce: &str, names: &[&str]) {
        listeners.tells(nonce, names.iter().copied());
    }

    fn nothing() -> impl Iterator<Item = &'static String> {
        std::iter::empty()
    }

    #[test]
    fn who_asks_for_all_serves_by_the_inbound_listener() {
        for wildcard in [&[][..], &["*".to_owned()]] {
            let mut listeners = Listeners::default();
            assert!(!listeners.asks(wildcard, nothing()));
            tells(&mut listeners, "1", &[]);
            assert!(!listeners.answers("1", true), "an empty response is no listener");
            tells(&mut listeners, "2", &["240.240.0.1_80"]);
            tells(&mut listeners, "3", &["240.240.0.2_80", "inbound"]);
            tells(&mut listeners, "4", &["inbound"]);
            assert!(!listeners.answers("2", true), "the first piece lacks it");
            assert!(!listeners.answers("3", false), "it was refused");
            assert!(!listeners.answers("3", true), "an answer is one");
            assert!(listeners.answers("4", true));
        }
    }

    #[test]
    fn a_gateway_serves_by_its_own() {
        let mut listeners = Listeners::default();
        listeners.asks(&["*".to_owned()], nothing());
        tells(&mut listeners, "1", &["gateway"]);
        assert!(listeners.answers("1", true));
    }

    #[test]
    fn what_was_held_from_the_stream_before_was_taken() {
        let held = ["240.240.0.1_80".to_owned(), "inbound".to_owned()];
        assert!(Listeners::default().asks(&["*".to_owned()], held.iter()));
        assert!(!Listeners::default().asks(&["*".to_owned()], held[..1].iter()));
    }

    #[test]
    fn who_asks_by_name_serves_once_it_was_answered() {
        let mut listeners = Listeners::default();
        assert!(!listeners.asks(&["hello.shop.svc:80".to_owned()], nothing()));
        tells(&mut listeners, "1", &[]);
        assert!(!listeners.answers("1", false));
        assert!(listeners.answers("1", true));
    }
}
