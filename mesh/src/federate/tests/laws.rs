//! What holds for every mesh.

use crate::fixture::{apply, clusters, linked, others, plan};
use proptest::prelude::*;
use std::collections::BTreeSet;

/// A line about one of three clusters and four services.
fn line() -> impl Strategy<Value = String> {
    let cluster = prop::sample::select(vec!["east", "west", "north"]);
    let name = prop::sample::select(vec!["shop/a", "shop/b", "pay/a", "pay/c"]);
    let port = prop::sample::select(vec!["80/http/web", "80/tcp", "81/tcp/x", "53/udp", "82/grpc"]);
    let place = prop::sample::select(vec!["eu/a", "eu/b", "us/a"]);
    let prefer = prop::sample::select(vec!["", "prefer=PreferSameNode", "prefer=PreferClose"]);
    let traits = prop::sample::select(vec!["", "unmeshed", "version=v1", "node=n1", "node=n2"]);
    let policy = prop::sample::select(vec![
        "rule shop/r a.shop.svc.cluster.local lb=RANDOM subset=v1:version=v1",
        "rule pay/r a.shop.svc.cluster.local timeout=70 subset=v1:version=v1",
        "rule pay/s a.pay.global lb=ROUND_ROBIN",
        "rule isthmus-system/r b.shop.svc.cluster.local timeout=9",
        "peerauth shop/p STRICT",
        "peerauth shop/q DISABLE version=v1 port=8080:STRICT",
        "peerauth isthmus-system/p STRICT",
        "policy shop/p DENY rule principal=cluster.local/ns/shop/sa/s1 port=8080",
        "policy pay/p ALLOW version=v1 rule namespace=shop rule partial",
        "policy isthmus-system/p ALLOW",
        "passthrough *.global",
        "passthrough a.shop.svc.cluster.local",
        "namespace pay",
        "link west accepted",
        "link west accepted complete",
        "cluster net-east merge",
        "cluster net-north gateway=203.0.113.44:15443",
    ]);
    prop_oneof![
        1 => (cluster.clone(), policy).prop_map(|(cluster, policy)| {
            let cluster = if policy.contains("net-north") { "north" } else { cluster };
            let cluster = if policy.contains("net-east") { "east" } else { cluster };
            format!("{cluster} {policy}")
        }),
        2 => (cluster.clone(), name.clone(), port.clone(), port, prefer, 0..4).prop_map(
            |(cluster, name, p, q, prefer, created)| {
                let q = if p.split('/').next() == q.split('/').next() { "" } else { q };
                let low = name.bytes().map(u32::from).sum::<u32>() % 200;
                format!("{cluster} service {name} 10.96.0.{low} {p} {q} {prefer} created={created}")
            }
        ),
        3 => (cluster.clone(), name.clone(), 1..9u8, place, traits).prop_map(
            |(cluster, name, n, place, traits)| {
                format!("{cluster} pod {name} p{n} 10.244.0.{n} {place} account=s{} {traits}", n % 3)
            }
        ),
        2 => (cluster, name).prop_map(|(cluster, name)| format!("{cluster} export {name}")),
    ]
}

pub(crate) fn mesh_text() -> impl Strategy<Value = String> {
    prop::collection::vec(line(), 0..40).prop_map(|lines| {
        let base = "east cluster net-east gateway=203.0.113.1:15443
            west cluster net-west gateway=203.0.113.2:15443 gateway=203.0.113.22:15443
            north cluster net-north domain=west.mesh gateway=203.0.113.3:15443";
        format!("{base}\n{}", lines.join("\n"))
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn planning_over_an_applied_plan_changes_nothing(text in mesh_text(), deaf in 0u8..4) {
        let all = clusters(&text);
        let mut links = others(&all, "east");
        let mut own = all["east"].clone();
        for round in 0..2 {
            let first = plan(&own, &links);
            own = apply(&own, &first);
            let second = plan(&own, &links);
            prop_assert_eq!(&second.entries, &first.entries);
            prop_assert_eq!(&second.gateways, &first.gateways);
            prop_assert!(second.deletions.is_empty());
            prop_assert_eq!(&second.resting, &first.resting);
            if round == 0 {
                for (bit, link) in links.iter_mut().enumerate() {
                    link.synced = deaf & (1 << bit) == 0;
                }
            }
        }
    }

    #[test]
    fn a_deaf_controller_publishes_what_stands(text in mesh_text()) {
        let all = clusters(&text);
        let own = linked(&all, "east");
        let mut links = others(&all, "east");
        for link in &mut links {
            link.synced = false;
            link.services.clear();
            link.gateways.clear();
        }
        let kept = plan(&own, &links);
        prop_assert_eq!(&kept.entries, &own.entries);
        prop_assert_eq!(&kept.gateways, &own.remote_gateways);
        prop_assert!(kept.deletions.is_empty());
    }

    #[test]
    fn the_order_of_links_does_not_matter(text in mesh_text()) {
        let all = clusters(&text);
        let mut links = others(&all, "east");
        let one = plan(&all["east"], &links);
        links.reverse();
        prop_assert_eq!(plan(&all["east"], &links), one);
    }

    #[test]
    fn virtual_addresses_are_distinct_and_equal_everywhere(text in mesh_text()) {
        let all = clusters(&text);
        let (east, west) = (linked(&all, "east"), linked(&all, "west"));
        let hosts: BTreeSet<_> = east.entries.values().flat_map(|it| &it.addresses).collect();
        let count: usize = east.entries.values().map(|it| it.addresses.len()).sum();
        prop_assert_eq!(hosts.len(), count);
        for entry in east.entries.values() {
            let there = west.entries.values().find(|it| it.hosts == entry.hosts).unwrap();
            prop_assert_eq!(&there.addresses, &entry.addresses);
        }
    }
}
