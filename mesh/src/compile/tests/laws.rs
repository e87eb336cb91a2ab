//! What a change may cost, and the laws that hold for every world.

use super::{THREE, ZONE_A, cluster, endpoints};
use crate::compile::{Cache, affected, compile, names, resource, view_part};
use crate::federate::mesh_text;
use crate::fixture::{clusters, linked, view, world};
use crate::inventory::Inventory;
use crate::program::{ClusterName, Resource, ResourceKind, ResourceName};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::sync::Arc;

#[test]
fn every_name_that_is_listed_can_be_had() {
    let text = format!(
        "{THREE}\n east export shop/hello\n east service shop/cdn external 443/tcp
        east service shop/db none 5432/tcp 53/udp
        east rule shop/hello hello.shop.svc.cluster.local subset=v1:version=v1"
    );
    let own = linked(&clusters(&text), "east");
    for who in [ZONE_A, "sidecar shop/e1 eu/a", "gateway isthmus-system/gw eu/a"] {
        let (world, view) = (world(own.clone()), view(&own, who));
        let kinds = [
            ResourceKind::Secret,
            ResourceKind::Cluster,
            ResourceKind::Endpoints,
            ResourceKind::Listener,
            ResourceKind::Route,
            ResourceKind::Zone,
        ];
        for name in kinds.into_iter().flat_map(|kind| names(&world, &view, kind)) {
            let made = resource(&world, &view, &name);
            assert!(made.is_some(), "{name}");
            if let Resource::Route(route) = &*made.unwrap() {
                assert_eq!(route.name.parse::<ClusterName>().as_ref(), Ok(&route.cluster));
            }
        }
    }
}

/// The promise of decision 5: cost grows with distinct keys, not with services or proxies.
#[test]
fn one_endpoint_change_computes_at_most_three_resources_per_key() {
    let mut text = String::from("east cluster net-east\n");
    for n in 0..5_000 {
        let (high, low) = (n / 250, n % 250);
        writeln!(text, "east service ns{}/s{n} 10.{high}.{low}.1 80/http", n % 50).unwrap();
        writeln!(text, "east pod ns{}/s{n} p{n} 10.244.{high}.{low} eu/a", n % 50).unwrap();
    }
    let own = clusters(&text).remove("east").unwrap();
    // 200 proxies in 4 zones, each with 5 services in use.
    let views: Vec<_> = (0..200)
        .map(|n| {
            view(&own, &format!("sidecar ns{}/p{n} eu/{}", n % 50, ["a", "b", "c", "d"][n % 4]))
        })
        .collect();
    let wanted = |n: usize| {
        let hosts = [7, n, n + 1, n + 2, n + 3];
        hosts.map(|n| format!("outbound|80||s{n}.ns{}.svc.cluster.local", n % 50)).map(|name| {
            [ResourceKind::Cluster, ResourceKind::Endpoints, ResourceKind::Route]
                .map(|kind| ResourceName::new(kind, name.clone()))
        })
    };
    let ask = |cache: &mut Cache| {
        for (n, view) in views.iter().enumerate() {
            for name in wanted(n).into_iter().flatten() {
                assert!(cache.resource(view, &name).is_some());
            }
            cache.resource(view, &ResourceName::inbound());
        }
    };
    let mut cache = Cache::new(world(own.clone()));
    ask(&mut cache);
    let before = cache.computed();
    ask(&mut cache);
    assert_eq!(cache.computed(), before, "asking again computes nothing");

    let mut next = own;
    let name = crate::fixture::service("ns7/s7");
    next.endpoints.get_mut(&name).unwrap()[0].address = "10.244.99.99".parse().unwrap();
    cache.update(world(next));
    ask(&mut cache);
    let computed = cache.computed() - before;
    // Keys of that service's copies: four zones on one network; and the pod's own inbound.
    assert!(computed <= 3 * 4, "{computed} resources were computed for four distinct keys");
    assert!(computed >= 4, "{computed}: the change must be seen from each zone");
}

#[test]
fn equal_news_keeps_the_pointer() {
    let own = linked(&clusters(THREE), "east");
    let view = view(&own, ZONE_A);
    let mut cache = Cache::new(world(own.clone()));
    let name = endpoints("hello.shop.svc.cluster.local");
    let first = cache.resource(&view, &name).unwrap();
    let mut next = own;
    // A remote copy more changes the family, but not what this name means here.
    next.entries.values_mut().for_each(|entry| entry.endpoints.clear());
    assert!(!cache.update(world(next)).is_empty());
    assert!(Arc::ptr_eq(&first, &cache.resource(&view, &name).unwrap()));
}

#[test]
fn a_rule_for_a_service_that_is_only_elsewhere_is_news() {
    let text = THREE.replace("east service", "west service").replace("east pod", "west pod");
    let ruled =
        format!("{text}\n east rule isthmus-system/r hello.shop.svc.cluster.local timeout=9");
    let own = linked(&clusters(&text), "east");
    let view = view(&own, ZONE_A);
    let mut cache = Cache::new(world(own));
    let timeout =
        |cache: &mut Cache| match &*cache.resource(&view, &cluster("hello.shop.global")).unwrap() {
            Resource::Cluster(cluster) => cluster.connect_timeout_ms,
            other => panic!("{other:?}"),
        };
    assert_eq!(timeout(&mut cache), 1_000);
    cache.update(world(linked(&clusters(&ruled), "east")));
    assert_eq!(timeout(&mut cache), 9);
}

fn again<T: serde::Serialize + serde::de::DeserializeOwned>(value: &T) -> T {
    serde_json::from_str(&serde_json::to_string(value).unwrap()).unwrap()
}

fn views(own: &Inventory) -> Vec<crate::world::View> {
    let pods = own.workloads.keys().take(3);
    let mut who: Vec<String> =
        pods.map(|pod| format!("sidecar {}/{} eu/a", pod.namespace, pod.name)).collect();
    who.extend(["sidecar shop/x us/a", "gateway isthmus-system/g eu/a"].map(Into::into));
    who.iter().map(|who| view(own, who)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn what_is_not_affected_is_equal(a in mesh_text(), b in mesh_text(), mix in 0..11) {
        let (a, b) = (linked(&clusters(&a), "east"), linked(&clusters(&b), "east"));
        // Single differences, too: all of `a` but one part.
        let b = match mix {
            0 => b,
            1 => Inventory { endpoints: b.endpoints, ..a.clone() },
            2 => Inventory { entries: b.entries, ..a.clone() },
            3 => Inventory { remote_gateways: b.remote_gateways, ..a.clone() },
            4 => Inventory { destination_rules: b.destination_rules, ..a.clone() },
            5 => Inventory { service_exports: b.service_exports, ..a.clone() },
            6 => Inventory { workloads: b.workloads, ..a.clone() },
            7 => Inventory { services: b.services, ..a.clone() },
            8 => Inventory { links: b.links, ..a.clone() },
            9 => Inventory { authorization_policies: b.authorization_policies, ..a.clone() },
            _ => Inventory {
                peer_authentications: b.peer_authentications,
                passthrough_hosts: b.passthrough_hosts,
                ..a.clone()
            },
        };
        let (old, new) = (world(a.clone()), world(b));
        let affected = affected(&old, &new);
        for view in views(&a) {
            let mut all = compile(&old, &view);
            all.extend(compile(&new, &view));
            for name in all.keys() {
                let parts = [view_part(&old, &view, name), view_part(&new, &view, name)];
                let touched = parts.iter().any(|part| affected.touches(name, part));
                if !touched && parts[0] == parts[1] {
                    prop_assert_eq!(
                        resource(&old, &view, name),
                        resource(&new, &view, name),
                        "{}",
                        name
                    );
                }
            }
        }
    }

    /// Each cluster gets the share of its ready copies, however many gateways it has.
    #[test]
    fn weights_conserve_capacity(text in mesh_text()) {
        let own = linked(&clusters(&text), "east");
        let world = world(own.clone());
        let view = view(&own, ZONE_A);
        for entry in own.entries.values() {
            for port in &entry.ports {
                let name = ClusterName::outbound(port.number, "", &entry.hosts[0]).to_string();
                let name = ResourceName::new(ResourceKind::Endpoints, name);
                let made = resource(&world, &view, &name).unwrap();
                let Resource::Endpoints(made) = &*made else { unreachable!() };
                let mut ready: BTreeMap<&str, u64> = BTreeMap::new();
                for copy in entry.endpoints.iter().filter(|copy| copy.serves(port.number)) {
                    *ready.entry(copy.cluster.as_str()).or_default() += u64::from(copy.weight);
                }
                let mut got: BTreeMap<&str, u64> = BTreeMap::new();
                for copy in made.groups.iter().flat_map(|group| &group.endpoints) {
                    if copy.gateway {
                        *got.entry(copy.cluster.as_str()).or_default() += u64::from(copy.weight);
                    }
                }
                prop_assert_eq!(got.keys().collect::<Vec<_>>(), ready.keys().collect::<Vec<_>>());
                let units: BTreeSet<u64> = got.iter().map(|(id, sum)| sum / ready[id]).collect();
                prop_assert!(units.len() <= 1, "{:?} of {:?}", got, ready);
                prop_assert!(got.iter().all(|(id, sum)| sum % ready[id] == 0));
                let mut priorities: Vec<u32> = made.groups.iter().map(|it| it.priority).collect();
                priorities.dedup();
                prop_assert_eq!(&priorities, &(0..priorities.len() as u32).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn all_values_survive_json(text in mesh_text()) {
        let all = clusters(&text);
        let plan = crate::fixture::plan(&all["east"], &crate::fixture::others(&all, "east"));
        let own = linked(&all, "east");
        let program = compile(&world(own.clone()), &view(&own, ZONE_A));
        prop_assert_eq!(again(&plan), plan);
        prop_assert_eq!(again(&own), own);
        prop_assert_eq!(again(&program), program);
    }

    #[test]
    fn equal_parts_of_views_get_equal_resources(text in mesh_text()) {
        let own = linked(&clusters(&text), "east");
        let world = world(own.clone());
        let views = views(&own);
        for one in &views {
            for name in compile(&world, one).keys() {
                for other in &views {
                    if view_part(&world, one, name) == view_part(&world, other, name) {
                        prop_assert_eq!(resource(&world, one, name), resource(&world, other, name));
                    }
                }
            }
        }
    }
}
