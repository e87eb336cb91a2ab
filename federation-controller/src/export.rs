//! Loop 1: what this cluster has becomes what it exports.

use mesh::export::ExportedService;
use mesh::inventory::Inventory;
use mesh::name::ServiceName;
use std::collections::BTreeMap;
use std::sync::Arc;

/// The exports of the newest inventory, computed once for each.
#[derive(Debug, Default)]
pub(crate) struct Exported {
    of: Option<Arc<Inventory>>,
    services: Arc<BTreeMap<ServiceName, ExportedService>>,
}

impl Exported {
    pub(crate) fn services(
        &mut self,
        own: &Arc<Inventory>,
    ) -> Arc<BTreeMap<ServiceName, ExportedService>> {
        let known = self.of.as_ref().is_some_and(|known| Arc::ptr_eq(known, own));
        if !known {
            self.services = Arc::new(mesh::export::exports(own));
            self.of = Some(own.clone());
        }
        self.services.clone()
    }
}
