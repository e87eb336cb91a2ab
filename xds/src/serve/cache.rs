//! Encoded resources, shared by all sessions: equal `Arc`s are encoded once per dialect.

use crate::codec;
use crate::session::server::Encoded;
use mesh::program::{Resource, ResourceName};
use mesh::world::Dialect;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, Weak};

/// Bounded by what the source holds: an entry is dropped with the resource it was made from.
#[derive(Debug, Default)]
pub(super) struct Cache(Mutex<Entries>);

#[derive(Debug, Default)]
struct Entries {
    by_origin: HashMap<(ResourceName, usize, Dialect), (Weak<Resource>, Encoded)>,
    sweep_at: usize,
}

/// Below so many entries nothing is swept.
const SWEEP_MIN: usize = 1024;

impl Cache {
    pub(super) fn encode(
        &self,
        name: &ResourceName,
        resource: &Arc<Resource>,
        dialect: Dialect,
    ) -> Encoded {
        let key = (name.clone(), Arc::as_ptr(resource).addr(), dialect);
        if let Some((origin, encoded)) = self.entries().by_origin.get(&key)
            // An address may be used again; a weak pointer keeps its own from being so.
            && origin.ptr_eq(&Arc::downgrade(resource))
        {
            return encoded.clone();
        }
        let encoded = Encoded {
            version: codec::version(resource, dialect),
            any: codec::encode(name, resource, dialect),
        };
        let mut entries = self.entries();
        if entries.by_origin.len() >= entries.sweep_at.max(SWEEP_MIN) {
            entries.by_origin.retain(|_, (origin, _)| origin.strong_count() > 0);
            entries.sweep_at = 2 * entries.by_origin.len();
        }
        entries.by_origin.insert(key, (Arc::downgrade(resource), encoded.clone()));
        encoded
    }

    fn entries(&self) -> std::sync::MutexGuard<'_, Entries> {
        self.0.lock().expect("no holder panics")
    }
}
