//! Chains that were verified before: the same bytes under the same roots need no signature checked
//! twice. A peer still proves in every handshake that it holds the leaf's key.
//!
//! Two of the three signatures a handshake checks are those of the chain, and a mesh sees few chains
//! and many handshakes. The memory is part of a bundle: other roots begin with none of it.

use crate::verify::Usage;
use mesh::name::Identity;
use rustls_pki_types::{CertificateDer, UnixTime};
use sha2::{Digest as _, Sha256};
use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::sync::Mutex;

/// Most chains remembered; about 200 bytes each. Past it all are forgotten, which costs one
/// verification each. Only a chain that leads to our roots is remembered, so strangers fill nothing.
const CHAINS_MAX: usize = 4_096;

/// The verified chains of one bundle.
#[derive(Debug, Default)]
pub(crate) struct Verified(Mutex<HashMap<Key, Valid>>);

/// SHA-256 over the use and every certificate with its length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Key([u8; 32]);

#[derive(Debug)]
struct Valid {
    identity: Identity,
    /// Seconds since the epoch in which every certificate of the path is valid.
    during: RangeInclusive<u64>,
}

impl Key {
    pub(crate) fn of(chain: &[CertificateDer<'_>], usage: Usage) -> Self {
        let mut hash = Sha256::new();
        hash.update([match usage {
            Usage::Client => 0,
            Usage::Server => 1,
        }]);
        for certificate in chain {
            hash.update(certificate.len().to_be_bytes());
            hash.update(certificate);
        }
        Self(hash.finalize().into())
    }
}

impl Verified {
    /// Who the chain is, where it was verified before and all of it is valid at `now`.
    pub(crate) fn recall(&self, key: Key, now: UnixTime) -> Option<Identity> {
        let chains = self.0.lock().expect("no holder panics");
        let valid = chains.get(&key)?;
        valid.during.contains(&now.as_secs()).then(|| valid.identity.clone())
    }

    pub(crate) fn remember(&self, key: Key, identity: Identity, during: RangeInclusive<u64>) {
        let mut chains = self.0.lock().expect("no holder panics");
        if chains.len() >= CHAINS_MAX {
            chains.clear();
        }
        chains.insert(key, Valid { identity, during });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn at(seconds: u64) -> UnixTime {
        UnixTime::since_unix_epoch(Duration::from_secs(seconds))
    }

    fn key(certificates: &[&str], usage: Usage) -> Key {
        let chain: Vec<_> =
            certificates.iter().map(|c| CertificateDer::from(c.as_bytes().to_vec())).collect();
        Key::of(&chain, usage)
    }

    #[test]
    fn only_the_same_bytes_for_the_same_use_in_their_time() {
        let verified = Verified::default();
        let identity: Identity = "spiffe://west.mesh/ns/shop/sa/hello".parse().unwrap();
        let known = key(&["leaf", "issuer"], Usage::Server);
        verified.remember(known, identity.clone(), 100..=200);
        assert_eq!(verified.recall(known, at(100)), Some(identity.clone()));
        assert_eq!(verified.recall(known, at(200)), Some(identity));
        for late in [99, 201] {
            assert_eq!(verified.recall(known, at(late)), None);
        }
        for other in [
            key(&["leaf", "issuer"], Usage::Client),
            key(&["issuer", "leaf"], Usage::Server),
            key(&["leaf"], Usage::Server),
            key(&["leafissuer"], Usage::Server),
            key(&["leafi", "ssuer"], Usage::Server),
        ] {
            assert_eq!(verified.recall(other, at(150)), None, "{other:?}");
        }
    }

    #[test]
    fn it_stays_small() {
        let verified = Verified::default();
        let identity: Identity = "spiffe://west.mesh/ns/shop/sa/hello".parse().unwrap();
        for n in 0..=CHAINS_MAX {
            let key = key(&[&n.to_string()], Usage::Client);
            verified.remember(key, identity.clone(), 0..=1);
        }
        assert_eq!(verified.0.lock().unwrap().len(), 1);
    }
}
