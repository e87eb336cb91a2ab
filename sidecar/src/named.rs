//! The addresses that names of the mesh have: by them a destination is known to be the mesh's while
//! nobody says how to reach it.

use crate::names::served;
use mesh::program::{Resource, ResourceName, Snapshot};
use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};

/// The addresses of the zone that was asked about last. One zone serves many questions.
#[derive(Debug, Default)]
pub(crate) struct Named(Mutex<Option<Addresses>>);

#[derive(Debug)]
struct Addresses {
    /// Whose they are.
    zone: Arc<Resource>,
    all: HashSet<IpAddr>,
}

impl Named {
    /// Whether a name of the mesh has this address, or may have it since no zone has come yet.
    pub(crate) fn may_have(&self, snapshot: &Snapshot, address: IpAddr) -> bool {
        let Some(resource) = snapshot.program.get(&ResourceName::zone()) else {
            // One that the control plane says is not there names nothing.
            return !snapshot.absent.contains(&ResourceName::zone());
        };
        let mut known = self.0.lock().expect("no holder panics");
        match &*known {
            Some(addresses) if Arc::ptr_eq(&addresses.zone, resource) => {
                addresses.all.contains(&address)
            }
            _ => {
                let names = served(snapshot).into_iter().flat_map(|zone| zone.names.values());
                let addresses =
                    Addresses { zone: resource.clone(), all: names.flatten().copied().collect() };
                known.insert(addresses).all.contains(&address)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mesh::zone::Zone;

    fn snapshot(addresses: &[&str]) -> Snapshot {
        let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
        let names = [("hello.shop.svc.cluster.local".parse().unwrap(), addresses)].into();
        let zone = Resource::Zone(Zone { names, ..Zone::default() });
        let program = [(ResourceName::zone(), Arc::new(zone))].into_iter().collect();
        Snapshot { program, ..Snapshot::default() }
    }

    #[test]
    fn addresses_are_those_of_the_zone_of_now() {
        let (named, address) = (Named::default(), "10.96.0.7".parse().unwrap());
        assert!(named.may_have(&Snapshot::default(), address), "nobody has said what is named");
        let absent = [ResourceName::zone()].into_iter().collect();
        let without = Snapshot { absent, ..Snapshot::default() };
        assert!(!named.may_have(&without, address));
        let (here, there) = (snapshot(&["10.96.0.7", "fd00::7"]), snapshot(&["10.96.0.8"]));
        for _ in 0..2 {
            assert!(named.may_have(&here, address));
            assert!(named.may_have(&here, "fd00::7".parse().unwrap()));
            assert!(!named.may_have(&here, "192.0.2.1".parse().unwrap()), "the world's");
            assert!(!named.may_have(&there, address), "a zone is not remembered past its end");
        }
    }
}
