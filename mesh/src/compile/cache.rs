//! Computed resources by name and part of View: cost grows with distinct keys, not with proxies.

use super::{Affected, ViewPart, affected, resource, view_part};
use crate::program::{Resource, ResourceName};
use crate::world::{View, World};
use std::collections::HashMap;
use std::sync::Arc;

/// A world and what was computed from it. A control plane has one.
#[derive(Debug)]
pub struct Cache {
    world: World,
    made: HashMap<ResourceName, HashMap<ViewPart, Slot>>,
    computed: u64,
}

#[derive(Debug)]
struct Slot {
    resource: Arc<Resource>,
    /// The world has changed under it.
    stale: bool,
}

impl Cache {
    pub fn new(world: World) -> Self {
        Self { world, made: HashMap::new(), computed: 0 }
    }

    pub fn world(&self) -> &World {
        &self.world
    }

    /// How often [`resource`] ran, ever.
    pub fn computed(&self) -> u64 {
        self.computed
    }

    /// Takes a new world, and tells what may differ in it.
    pub fn update(&mut self, world: World) -> Affected {
        let affected = affected(&self.world, &world);
        self.world = world;
        if !affected.is_empty() {
            for (name, parts) in &mut self.made {
                for (part, slot) in parts {
                    slot.stale |= affected.touches(name, part);
                }
            }
        }
        affected
    }

    /// As [`resource`], computed once per part of View. Equal to what it was before, it is the same
    /// `Arc`: compare by pointer to see whether there is news.
    pub fn resource(&mut self, view: &View, name: &ResourceName) -> Option<Arc<Resource>> {
        let part = view_part(&self.world, view, name);
        let slot = self.made.get(name).and_then(|parts| parts.get(&part));
        if let Some(slot) = slot.filter(|slot| !slot.stale) {
            return Some(Arc::clone(&slot.resource));
        }
        self.computed += 1;
        let Some(fresh) = resource(&self.world, view, name) else {
            // Absent names are not kept: a stranger may ask for any number of them.
            if let Some(parts) = self.made.get_mut(name) {
                parts.remove(&part);
                if parts.is_empty() {
                    self.made.remove(name);
                }
            }
            return None;
        };
        let fresh = match slot {
            Some(slot) if slot.resource == fresh => Arc::clone(&slot.resource),
            Some(_) | None => fresh,
        };
        let slot = Slot { resource: Arc::clone(&fresh), stale: false };
        self.made.entry(name.clone()).or_default().insert(part, slot);
        Some(fresh)
    }

    /// Forgets what nobody subscribes to any more.
    pub fn retain(&mut self, wanted: impl Fn(&ResourceName) -> bool) {
        self.made.retain(|name, _| wanted(name));
    }
}
