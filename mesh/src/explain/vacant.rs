//! Addresses in the range of virtual ones that no name has now: only a client that kept an answer of
//! DNS for too long, or that was told an address by hand, calls one.

use super::Hint;
use crate::federate::is_home;
use crate::name::{ClusterId, Hostname, ServiceName};
use crate::world::World;
use ipnet::IpNet;
use std::collections::BTreeSet;
use std::net::IpAddr;

/// What is known of such an address; `None` for others.
pub(super) fn hint(world: &World, address: IpAddr) -> Option<Hint> {
    let mesh = &world.own.mesh;
    let ranges = [IpNet::from(mesh.vip_range), IpNet::from(mesh.vip_range_v6)];
    let range = ranges.into_iter().find(|range| range.contains(&address))?;
    let mut resting = world.own.resting.values();
    let had = resting.find(|rest| rest.addresses.contains(&address)).map(|rest| rest.host.clone());
    let homes = if had.is_none() { homes(world, address) } else { vec![] };
    Some(Hint::Vacant { range, had, homes })
}

/// Names that are given this address once they are published: it follows from the name alone.
fn homes(world: &World, address: IpAddr) -> Vec<Hostname> {
    let own = &world.own;
    let doors = own.remote_gateways.values().filter_map(|door| door.cluster.as_ref());
    let clusters: BTreeSet<&ClusterId> = doors.chain([&own.mesh.cluster]).collect();
    let entries = own.entries.values().filter_map(|entry| entry.service.as_ref());
    let services: BTreeSet<&ServiceName> =
        own.services.keys().chain(&own.service_exports).chain(entries).collect();
    let hosts = services.into_iter().flat_map(|service| {
        let single = clusters.iter().map(|cluster| service.cluster_host(cluster));
        [service.global_host()].into_iter().chain(single)
    });
    hosts.filter(|host| world.target(host).is_none() && is_home(&own.mesh, host, address)).collect()
}

#[cfg(test)]
mod tests {
    use crate::explain::{Verdict, why};
    use crate::fixture::{Clusters, apply, clusters, linked, others, plan, view, world};
    use crate::inventory::Inventory;
    use expect_test::{Expect, expect};

    const WORLD: &str = "
        east cluster net-east
        east service shop/cart 10.96.0.1 80/http
        west cluster net-west gateway=203.0.113.2:15443
        west service shop/hello 10.96.0.7 80/http
        west pod shop/hello w1 10.244.0.1 us/a
        west export shop/hello";

    fn all() -> Clusters {
        clusters(WORLD)
    }

    #[track_caller]
    fn check(own: Inventory, address: &str, expected: Expect) {
        let client = view(&own, "sidecar shop/web eu/a");
        let found = why(&world(own), &client, address, 80, &[]);
        assert_eq!(found.verdict, Verdict::Unreachable);
        expected.assert_eq(&format!("{found}\n"));
    }

    #[test]
    fn an_address_that_a_name_had_names_it() {
        let mut all = all();
        let before = linked(&all, "east");
        all.get_mut("west").unwrap().service_exports.clear();
        let after = apply(&before, &plan(&before, &others(&all, "east")));
        for address in ["240.240.246.140", "2001:2:0:83ac:d8c1:f745:d257:8ab"] {
            let client = view(&before, "sidecar shop/web eu/a");
            let found = why(&world(before.clone()), &client, address, 80, &[]);
            assert_eq!(found.verdict, Verdict::Reachable, "{found}");
        }
        check(
            after.clone(),
            "240.240.246.140",
            expect![[r#"
            240.240.246.140:80
              240.240.246.140 is not known here: it lies in 240.240.0.0/16, whose addresses are names' alone, and no name has it now, so sidecars refuse it; hello.shop.global had it last, and no cluster exports that any more. Fix: export it again; if it is not to come back, start the client anew, which still holds the address
            It cannot be called; the last steps say why.
        "#]],
        );
        check(
            after,
            "2001:2:0:83ac:d8c1:f745:d257:8ab",
            expect![[r#"
            2001:2:0:83ac:d8c1:f745:d257:8ab:80
              2001:2:0:83ac:d8c1:f745:d257:8ab is not known here: it lies in 2001:2::/48, whose addresses are names' alone, and no name has it now, so sidecars refuse it; hello.shop.global had it last, and no cluster exports that any more. Fix: export it again; if it is not to come back, start the client anew, which still holds the address
            It cannot be called; the last steps say why.
        "#]],
        );
    }

    #[test]
    fn an_address_that_a_name_would_have_names_it() {
        let exported = clusters(&format!("{WORLD}\neast export shop/cart"));
        let address = |host: &str| {
            let own = linked(&exported, "east");
            let entries = own.entries.values();
            let mut entries = entries.filter(|entry| entry.hosts[0].as_str() == host);
            entries.next().unwrap().addresses[0].to_string()
        };
        let own = || linked(&all(), "east");
        check(
            own(),
            &address("cart.shop.global"),
            expect![[r#"
            240.240.16.77:80
              240.240.16.77 is not known here: it lies in 240.240.0.0/16, whose addresses are names' alone, and no name has it now, so sidecars refuse it; it would be the address of cart.shop.global, which no cluster exports to here. Fix: ask for that name instead, which says what is missing
            It cannot be called; the last steps say why.
        "#]],
        );
        check(
            own(),
            &address("cart.shop.east.global"),
            expect![[r#"
            240.240.188.222:80
              240.240.188.222 is not known here: it lies in 240.240.0.0/16, whose addresses are names' alone, and no name has it now, so sidecars refuse it; it would be the address of cart.shop.east.global, which no cluster exports to here. Fix: ask for that name instead, which says what is missing
            It cannot be called; the last steps say why.
        "#]],
        );
    }

    #[test]
    fn an_address_of_nobody_says_how_to_find_its_name() {
        check(
            linked(&all(), "east"),
            "240.240.1.2",
            expect![[r#"
            240.240.1.2:80
              240.240.1.2 is not known here: it lies in 240.240.0.0/16, whose addresses are names' alone, and no name has it now, so sidecars refuse it; no service that is known here would get it. Fix: see by which name the client found it, and ask for that; a linked cluster may still know the address (the same question with its --context), since it is a name's in all of them
            It cannot be called; the last steps say why.
        "#]],
        );
    }
}
