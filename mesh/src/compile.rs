//! What one client runs: `resource(&World, &View, &Name)`, and its closure over names.

use crate::program::{Program, Resource, ResourceKind, ResourceName};
use crate::world::{View, World};
use std::sync::Arc;

/// One resource as this client is to see it; `None` where it does not exist for it.
pub fn resource(world: &World, view: &View, name: &ResourceName) -> Option<Arc<Resource>> {
    let _ = (world, view, name);
    todo!("mesh")
}

/// All names of a kind this client may ask for, for wildcard subscriptions (Envoy's dialect, and
/// the gateway's clusters).
pub fn names(world: &World, view: &View, kind: ResourceKind) -> Vec<ResourceName> {
    let _ = (world, view, kind);
    todo!("mesh")
}

/// The closure of [`resource`] over [`names`].
pub fn compile(world: &World, view: &View) -> Program {
    let _ = (world, view);
    todo!("mesh")
}

/// The part of a View that a resource of this kind reads, as a cache key: two views with equal
/// parts get equal resources.
pub fn view_part(view: &View, name: &ResourceName) -> View {
    let _ = name;
    view.clone()
}
