//! A program that a server's session serves from, in one dialect.

use mesh::program::{Program, ResourceKind, ResourceName};
use mesh::world::Dialect;
use xds::codec;
use xds::session::server::{Encoded, Lookup};

pub(crate) struct World(pub(crate) Program, pub(crate) Dialect);

impl Lookup for World {
    fn resource(&self, name: &ResourceName) -> Option<Encoded> {
        let resource = self.0.get(name)?;
        let any = codec::encode(name, resource, self.1);
        Some(Encoded { version: codec::version(resource, self.1), any })
    }

    fn names(&self, kind: ResourceKind) -> Vec<ResourceName> {
        self.0.keys().filter(|name| name.kind == kind).cloned().collect()
    }

    fn generation(&self) -> u64 {
        1
    }
}
