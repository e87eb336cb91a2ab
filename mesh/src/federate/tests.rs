//! Plans seen as text.

mod laws;

pub(crate) use laws::mesh_text;

use super::{Plan, REST};
use crate::export::{Exports, ImportPolicy};
use crate::fixture::{NOW, apply, clusters, linked, others, plan, told};
use crate::inventory::{GatewayAddress, Inventory};
use crate::name::{Hostname, ServiceName};
use expect_test::{Expect, expect};
use std::collections::BTreeSet;
use std::fmt::Write;

const PAIR: &str = "
    east cluster net-east
    east namespace shop
    west cluster net-west gateway=203.0.113.2:15443
    west service shop/hello 10.96.0.1 80/http/web created=5
    west pod shop/hello a 10.244.0.1 us/a
    west pod shop/hello b 10.244.0.2 us/a account=other
    west pod shop/hello c 10.244.0.3 us/b
    west export shop/hello";

fn show(plan: &Plan) -> String {
    let mut seen = String::new();
    for entry in plan.entries.values() {
        let hosts: Vec<&str> = entry.hosts.iter().map(Hostname::as_str).collect();
        write!(seen, "{} {hosts:?} {:?}", entry.object, entry.addresses).unwrap();
        for port in &entry.ports {
            write!(seen, " {}/{}/{}", port.number, port.protocol, port.name).unwrap();
        }
        writeln!(seen).unwrap();
        for copy in &entry.endpoints {
            write!(seen, "  {} {} {} x{}", copy.cluster, copy.network, copy.locality, copy.weight)
                .unwrap();
            writeln!(seen, " {:?}", copy.ports).unwrap();
        }
        for identity in &entry.subject_alt_names {
            writeln!(seen, "  {identity}").unwrap();
        }
    }
    for door in plan.gateways.values() {
        let addresses: Vec<String> = door.addresses.iter().map(ToString::to_string).collect();
        let domain = door.trust_domain.as_ref().unwrap();
        writeln!(seen, "{} {} {domain} {addresses:?}", door.object, door.network).unwrap();
    }
    for (object, rest) in &plan.resting {
        writeln!(seen, "rest {object} {:?} for {} s", rest.addresses, rest.until - NOW).unwrap();
    }
    for object in &plan.deletions {
        writeln!(seen, "delete {object}").unwrap();
    }
    seen + &findings(plan)
}

fn findings(plan: &Plan) -> String {
    plan.findings.iter().map(|finding| format!("{:?} {finding}\n", finding.severity)).collect()
}

#[track_caller]
fn check(text: &str, expected: Expect) {
    let all = clusters(text);
    expected.assert_eq(&show(&plan(&all["east"], &others(&all, "east"))));
}

#[track_caller]
fn check_findings(own: &Inventory, links: &[Exports], expected: Expect) {
    expected.assert_eq(&findings(&plan(own, links)));
}

#[test]
fn an_export_becomes_two_entries_and_a_gateway() {
    check(
        PAIR,
        expect![[r#"
        ServiceEntry shop/hello.shop.global ["hello.shop.global", "hello.shop.svc.clusterset.local"] [240.240.246.140, 2001:2:0:83ac:d8c1:f745:d257:8ab] 80/http/web
          west net-west us/a x2 {}
          west net-west us/b x1 {}
          spiffe://west.mesh/ns/shop/sa/hello
          spiffe://west.mesh/ns/shop/sa/other
        ServiceEntry shop/hello.shop.west.global ["hello.shop.west.global"] [240.240.142.229, 2001:2:0:333e:5611:5683:c29f:6d1b] 80/http/web
          west net-west us/a x2 {}
          west net-west us/b x1 {}
          spiffe://west.mesh/ns/shop/sa/hello
          spiffe://west.mesh/ns/shop/sa/other
        Gateway isthmus-system/isthmus-west net-west west.mesh ["203.0.113.2:15443"]
    "#]],
    );
}

#[test]
fn own_exports_have_entries_without_endpoints() {
    check(
        "east cluster net-east
         east service shop/hello 10.96.0.1 80/http/web
         east pod shop/hello a 10.244.0.1 eu/a
         east export shop/hello",
        expect![[r#"
            ServiceEntry shop/hello.shop.east.global ["hello.shop.east.global"] [240.240.33.97, 2001:2:0:7ed3:dc0b:9aa2:157f:610f] 80/http/web
              spiffe://east.mesh/ns/shop/sa/hello
            ServiceEntry shop/hello.shop.global ["hello.shop.global", "hello.shop.svc.clusterset.local"] [240.240.246.140, 2001:2:0:83ac:d8c1:f745:d257:8ab] 80/http/web
              spiffe://east.mesh/ns/shop/sa/hello
        "#]],
    );
}

#[test]
fn a_service_without_namespace_here_stands_in_the_root_namespace() {
    let all = clusters(&PAIR.replace("east namespace shop", ""));
    let plan = plan(&all["east"], &others(&all, "east"));
    let namespaces: BTreeSet<&str> =
        plan.entries.keys().map(|object| object.namespace.as_str()).collect();
    assert_eq!(namespaces, BTreeSet::from(["isthmus-system"]));
}

#[test]
fn ports_join_by_number_and_protocol() {
    check(
        "east namespace shop
         west service shop/hello 10.96.0.1 80/http/web 81/tcp/raw created=1
         north service shop/hello 10.96.0.1 80/http/www 81/http/raw 82/tcp/raw created=2
         west pod shop/hello a 10.244.0.1 us/a
         north pod shop/hello a 10.244.0.1 eu/a
         west export shop/hello
         north export shop/hello",
        expect![[r#"
            ServiceEntry shop/hello.shop.global ["hello.shop.global", "hello.shop.svc.clusterset.local"] [240.240.246.140, 2001:2:0:83ac:d8c1:f745:d257:8ab] 80/http/web 81/tcp/raw 82/tcp/tcp-82
              north net-north eu/a x1 {80, 82}
              west net-west us/a x1 {80, 81}
              spiffe://north.mesh/ns/shop/sa/hello
              spiffe://west.mesh/ns/shop/sa/hello
            ServiceEntry shop/hello.shop.north.global ["hello.shop.north.global"] [240.240.91.139, 2001:2:0:b274:ca26:c0eb:1f27:b6b5] 80/http/www 81/http/raw 82/tcp/tcp-82
              north net-north eu/a x1 {}
              spiffe://north.mesh/ns/shop/sa/hello
            ServiceEntry shop/hello.shop.west.global ["hello.shop.west.global"] [240.240.142.229, 2001:2:0:333e:5611:5683:c29f:6d1b] 80/http/web 81/tcp/raw
              west net-west us/a x1 {}
              spiffe://west.mesh/ns/shop/sa/hello
            Gateway isthmus-system/isthmus-north net-north north.mesh []
            Gateway isthmus-system/isthmus-west net-west west.mesh []
            Refused ISM3106 ServiceEntry shop/hello.shop.global spec.ports[number=81]: west says tcp and north says http; north, whose export is newer, is left out of this port. Fix: give the port one appProtocol (or name prefix) in all clusters.
            Warning ISM3105 ServiceEntry shop/hello.shop.global spec.ports[number=80]: it is called "web" in west and "www" in north; they join, and "web" is used. Fix: give the port one name in all clusters.
            Warning ISM3108 ServiceEntry shop/hello.shop.global spec.ports[number=82]: west lacks this port; only north serves it, and calls to it go there alone. Fix: give the Service the same ports in all clusters.
            Warning ISM3115 ClusterLink isthmus-system/north: cluster north has no gateway to dial, so its copies cannot be reached. Fix: give its east-west gateway's Service an external address.
            Warning ISM3115 ClusterLink isthmus-system/west: cluster west has no gateway to dial, so its copies cannot be reached. Fix: give its east-west gateway's Service an external address.
        "#]],
    );
}

#[test]
fn an_unheard_link_keeps_what_it_published() {
    let all = clusters(PAIR);
    let own = linked(&all, "east");
    let unheard = Exports {
        synced: false,
        services: Default::default(),
        gateways: Vec::new(),
        uid: String::new(),
        ..told(&all["west"])
    };
    let kept = plan(&own, std::slice::from_ref(&unheard));
    assert_eq!(kept.entries, own.entries);
    assert_eq!(kept.gateways, own.remote_gateways);
    assert_eq!(kept.deletions, BTreeSet::new());
    // Consent is ours to take back, heard or not.
    let refused = Exports { import: ImportPolicy::default(), ..unheard };
    assert_eq!(plan(&own, std::slice::from_ref(&refused)).resting.len(), 2);
    let known = Exports { uid: "uid-west".into(), ..refused };
    assert_eq!(plan(&own, &[known]).resting.len(), 2);
}

#[test]
fn an_unheard_link_keeps_what_only_the_joint_entry_has() {
    let all = clusters(PAIR);
    let mut own = linked(&all, "east");
    let whole = own.entries.clone();
    own.entries.retain(|object, _| object.name == "hello.shop.global");
    let unheard = Exports { synced: false, services: Default::default(), ..told(&all["west"]) };
    assert_eq!(plan(&own, &[unheard]).entries, whole);
}

#[test]
fn a_heard_link_that_exports_nothing_loses_its_entries() {
    let all = clusters(PAIR);
    let own = linked(&all, "east");
    let silent = Exports { services: Default::default(), ..told(&all["west"]) };
    let plan = plan(&own, &[silent]);
    assert_eq!((plan.entries.len(), plan.gateways.len()), (0, 1));
    assert!(plan.deletions.is_empty(), "their addresses rest first");
    assert_eq!(plan.resting.keys().collect::<Vec<_>>(), own.entries.keys().collect::<Vec<_>>());
}

#[test]
fn a_freed_address_rests_ten_minutes_and_a_restart_forgets_nothing() {
    // Five usable addresses: hello has two, and the two exports of each newcomer want two more.
    let mut all = clusters(&format!(
        "{PAIR}
         west service shop/late 10.96.0.2 80/http/web created=7
         west service shop/later 10.96.0.3 80/http/web created=8"
    ));
    all.get_mut("east").unwrap().mesh.vip_range = "240.240.0.0/29".parse().unwrap();
    let own = linked(&all, "east");
    let of = |own: &Inventory, host: &str| {
        let entries = own.entries.values().filter(|entry| entry.hosts[0].as_str() == host);
        entries.flat_map(|entry| entry.addresses.clone()).collect::<Vec<_>>()
    };
    let had = of(&own, "hello.shop.global");
    let held: BTreeSet<_> = own.entries.values().flat_map(|it| it.addresses.clone()).collect();

    let west = all.get_mut("west").unwrap();
    west.service_exports =
        ["late", "later"].map(|name| ServiceName::new("shop", name).unwrap()).into();
    let links = others(&all, "east");
    // Everything that is known afterwards is in the API server, so this is also a restart.
    let own = apply(&own, &super::plan(&own, &links, NOW));
    assert_eq!((own.entries.len(), own.resting.len()), (4, 2));
    let mut all_v4 = own.entries.values().flat_map(|it| &it.addresses).filter(|ip| ip.is_ipv4());
    assert!(all_v4.all(|ip| !held.contains(ip)), "{own:?}");
    let full = |plan: &Plan| plan.findings.iter().any(|finding| finding.code == 3110);
    let almost = super::plan(&own, &links, NOW + REST - 1);
    assert!(full(&almost) && almost.resting == own.resting, "one v4 address too few for four");
    let rested = super::plan(&own, &links, NOW + REST);
    assert!(!full(&rested) && rested.resting.is_empty());
    assert_eq!(rested.deletions, own.resting.keys().cloned().collect());

    // Whoever comes back in time has what it had.
    let west = all.get_mut("west").unwrap();
    west.service_exports = [ServiceName::new("shop", "hello").unwrap()].into();
    let again = super::plan(&own, &others(&all, "east"), NOW + 9);
    assert_eq!(of(&apply(&own, &again), "hello.shop.global"), had);
    assert_eq!(again.resting.len(), 4, "late and later rest in their turn");

    // A clock that was a year ahead holds nothing for a year.
    let mut ahead = own.clone();
    ahead.resting.values_mut().for_each(|rest| rest.until = NOW + 365 * 86_400);
    let seen = super::plan(&ahead, &links, NOW);
    assert!(seen.resting.values().all(|rest| rest.until == NOW + REST));
}

#[test]
fn an_entry_of_an_unheard_cluster_stays_under_its_links_new_name() {
    let all = clusters(PAIR);
    let own = linked(&all, "east");
    let single = &own.entries.values().find(|it| it.hosts[0].as_str() == "hello.shop.west.global");
    assert_eq!(single.unwrap().source_uid.as_deref(), Some("uid-west"));
    assert!(own.remote_gateways.values().all(|it| it.source_uid.as_deref() == Some("uid-west")));
    // The same cluster, called otherwise now, and not heard since.
    let renamed = Exports {
        link: "occident".into(),
        cluster: "occident".parse().unwrap(),
        synced: false,
        services: Default::default(),
        ..told(&all["west"])
    };
    let seen = plan(&own, std::slice::from_ref(&renamed));
    let kept = |object: &crate::finding::ObjectRef| {
        !seen.deletions.contains(object) && !seen.resting.contains_key(object)
    };
    assert!(own.entries.keys().all(kept) && own.remote_gateways.keys().all(kept), "{seen:?}");
    // Heard, it is known to export nothing under that name.
    let heard = plan(&own, &[Exports { synced: true, ..renamed }]);
    assert!(heard.resting.contains_key(&single.unwrap().object));
    assert!(own.remote_gateways.keys().all(|door| heard.deletions.contains(door)));
}

#[test]
fn a_removed_link_loses_all_even_while_another_is_unheard() {
    let all = clusters(&format!(
        "{PAIR}
         north cluster net-north gateway=203.0.113.3:15443
         north service shop/hello 10.96.0.1 80/http/web created=7
         north pod shop/hello a 10.244.0.1 eu/a
         north export shop/hello"
    ));
    let own = linked(&all, "east");
    let north = Exports { synced: false, services: Default::default(), ..told(&all["north"]) };
    expect![[r#"
        ServiceEntry shop/hello.shop.global ["hello.shop.global", "hello.shop.svc.clusterset.local"] [240.240.246.140, 2001:2:0:83ac:d8c1:f745:d257:8ab] 80/http/web
          north net-north eu/a x1 {}
          spiffe://north.mesh/ns/shop/sa/hello
        ServiceEntry shop/hello.shop.north.global ["hello.shop.north.global"] [240.240.91.139, 2001:2:0:b274:ca26:c0eb:1f27:b6b5] 80/http/web
          north net-north eu/a x1 {}
          spiffe://north.mesh/ns/shop/sa/hello
        Gateway isthmus-system/isthmus-north net-north north.mesh ["203.0.113.3:15443"]
        rest ServiceEntry shop/hello.shop.west.global [240.240.142.229, 2001:2:0:333e:5611:5683:c29f:6d1b] for 600 s
        delete Gateway isthmus-system/isthmus-west
    "#]].assert_eq(&show(&plan(&own, &[north])));
}

#[test]
fn accounts_stay_while_a_service_has_no_copy() {
    let all = clusters(PAIR);
    let own = linked(&all, "east");
    let mut empty = told(&all["west"]);
    for service in empty.services.values_mut() {
        service.accounts.clear();
        service.localities.clear();
    }
    let plan = plan(&own, &[empty]);
    for entry in plan.entries.values() {
        assert_eq!(entry.subject_alt_names, own.entries[&entry.object].subject_alt_names);
        assert!(entry.endpoints.is_empty());
    }
}

#[test]
fn a_link_imports_what_its_policy_names() {
    let all = clusters(&format!(
        "{PAIR}
         west service pay/card 10.96.0.2 80/http
         west export pay/card"
    ));
    let mut west = told(&all["west"]);
    west.import.namespaces = BTreeSet::from(["pay".into()]);
    let stranger = ServiceName::new("isthmus-system", "steal").unwrap();
    let mut stolen = west.services[&ServiceName::new("pay", "card").unwrap()].clone();
    stolen.name = stranger.clone();
    west.services.insert(stranger, stolen);
    let plan = plan(&all["east"], &[west]);
    let hosts: Vec<&str> = plan.entries.keys().map(|object| object.name.as_str()).collect();
    assert_eq!(hosts, ["card.pay.global", "card.pay.west.global"]);
    assert_eq!(plan.links["west"].refused, 2);
    expect![[r#"
        Refused ISM3102 ClusterLink isthmus-system/west spec.import.namespaces: cluster west exports 2 services that this link does not import, such as isthmus-system/steal, shop/hello. Fix: add their namespaces to spec.import.namespaces, if they are wanted here; kubernetes.default and isthmus-system are never imported.
    "#]].assert_eq(&findings(&plan));
}

#[test]
fn hostile_gateway_addresses_are_refused() {
    let all = clusters(PAIR);
    let mut west = told(&all["west"]);
    let hosts = [
        "127.0.0.1",
        "169.254.169.254",
        "224.0.0.1",
        "0.0.0.0",
        "240.240.0.9",
        "255.255.255.255",
        "::1",
        "fe80::1",
        "::ffff:127.0.0.1",
        "2001:2::9",
        "lb.example.com",
        "not a name",
        "203.0.113.9",
    ];
    west.gateways = hosts
        .into_iter()
        .map(|host| GatewayAddress { host: host.into(), port: 15443 })
        .chain([GatewayAddress { host: "203.0.113.8".into(), port: 0 }])
        .collect();
    let seen = plan(&all["east"], &[west.clone()]);
    let kept: Vec<String> =
        seen.gateways.values().flat_map(|it| &it.addresses).map(ToString::to_string).collect();
    assert_eq!(kept, ["203.0.113.9:15443", "lb.example.com:15443"]);
    check_findings(
        &all["east"],
        &[west.clone()],
        expect![[r#"
            Refused ISM3101 ClusterLink isthmus-system/west: gateway address "not a name:15443" of cluster west is neither an IP address nor a DNS name; it is not used. Fix: let the gateway's Service have an address that this cluster can reach, or name its range in spec.import.gatewayRanges.
            Refused ISM3101 ClusterLink isthmus-system/west: gateway address 0.0.0.0:15443 of cluster west is not the address of one machine; it is not used. Fix: let the gateway's Service have an address that this cluster can reach, or name its range in spec.import.gatewayRanges.
            Refused ISM3101 ClusterLink isthmus-system/west: gateway address 127.0.0.1:15443 of cluster west is a loopback address, so it would lead back here; it is not used. Fix: let the gateway's Service have an address that this cluster can reach, or name its range in spec.import.gatewayRanges.
            Refused ISM3101 ClusterLink isthmus-system/west: gateway address 169.254.169.254:15443 of cluster west is link-local, where cloud metadata services live; it is not used. Fix: let the gateway's Service have an address that this cluster can reach, or name its range in spec.import.gatewayRanges.
            Refused ISM3101 ClusterLink isthmus-system/west: gateway address 203.0.113.8:0 of cluster west has port 0; it is not used. Fix: let the gateway's Service have an address that this cluster can reach, or name its range in spec.import.gatewayRanges.
            Refused ISM3101 ClusterLink isthmus-system/west: gateway address 224.0.0.1:15443 of cluster west is not the address of one machine; it is not used. Fix: let the gateway's Service have an address that this cluster can reach, or name its range in spec.import.gatewayRanges.
            Refused ISM3101 ClusterLink isthmus-system/west: gateway address 240.240.0.9:15443 of cluster west lies in this cluster's range of virtual addresses; it is not used. Fix: let the gateway's Service have an address that this cluster can reach, or name its range in spec.import.gatewayRanges.
            Refused ISM3101 ClusterLink isthmus-system/west: gateway address 255.255.255.255:15443 of cluster west is not the address of one machine; it is not used. Fix: let the gateway's Service have an address that this cluster can reach, or name its range in spec.import.gatewayRanges.
            Refused ISM3101 ClusterLink isthmus-system/west: gateway address [2001:2::9]:15443 of cluster west lies in this cluster's range of virtual addresses; it is not used. Fix: let the gateway's Service have an address that this cluster can reach, or name its range in spec.import.gatewayRanges.
            Refused ISM3101 ClusterLink isthmus-system/west: gateway address [::1]:15443 of cluster west is a loopback address, so it would lead back here; it is not used. Fix: let the gateway's Service have an address that this cluster can reach, or name its range in spec.import.gatewayRanges.
            Refused ISM3101 ClusterLink isthmus-system/west: gateway address [fe80::1]:15443 of cluster west is link-local, where cloud metadata services live; it is not used. Fix: let the gateway's Service have an address that this cluster can reach, or name its range in spec.import.gatewayRanges.
            Warning ISM3111 ClusterLink isthmus-system/west: gateway address lb.example.com:15443 of cluster west is a DNS name that is not resolved just now; addresses it had before are kept. Fix: see that this cluster's resolvers answer for it; it is asked again by itself.
        "#]],
    );
    // The demo runs on loopback, and says so.
    west.import.gateway_ranges = vec!["127.0.0.0/8".parse().unwrap()];
    let seen = plan(&all["east"], &[west]);
    let kept: Vec<String> =
        seen.gateways.values().flat_map(|it| &it.addresses).map(ToString::to_string).collect();
    assert_eq!(kept, ["127.0.0.1:15443"]);
}

#[test]
fn a_gateway_whose_name_is_not_resolved_keeps_what_it_had() {
    let all = clusters(PAIR);
    let own = linked(&all, "east");
    let at = |host: &str| GatewayAddress { host: host.into(), port: 15443 };
    let doors = |own: &Inventory, gateways: Vec<GatewayAddress>| {
        let west = Exports { gateways, ..told(&all["west"]) };
        let plan = plan(own, &[west]);
        let doors = plan.gateways.values().flat_map(|door| door.addresses.clone());
        (doors.map(|door| door.host).collect::<Vec<_>>(), apply(own, &plan))
    };
    let (seen, own) = doors(&own, vec![at("lb.example.com")]);
    assert_eq!(seen, ["203.0.113.2", "lb.example.com"], "PAIR's address led there");
    let (seen, own) = doors(&own, vec![at("lb.example.com")]);
    assert_eq!(seen, ["203.0.113.2", "lb.example.com"]);
    let (seen, _) = doors(&own, vec![at("198.51.100.7")]);
    assert_eq!(seen, ["198.51.100.7"], "resolved, the former address and the name are gone");
    // What a name leads to is judged as any address is: DNS is a stranger's word.
    let (seen, _) = doors(&own, vec![at("127.0.0.1"), at("169.254.169.254"), at("240.240.0.9")]);
    assert_eq!(seen, [""; 0]);
}

#[test]
fn one_cluster_is_linked_once() {
    let all = clusters(PAIR);
    let west = told(&all["west"]);
    let twin = Exports { link: "a-twin".into(), uid: "other".into(), ..west.clone() };
    let renamed =
        Exports { link: "b-name".into(), cluster: "b-name".parse().unwrap(), ..west.clone() };
    let own_id = Exports {
        link: "c".into(),
        cluster: "east".parse().unwrap(),
        uid: "x".into(),
        ..west.clone()
    };
    let itself = Exports { link: "d".into(), uid: "uid-east".into(), ..west.clone() };
    let links = [twin, renamed, own_id, itself, west];
    let own = linked(&all, "east");
    let seen = plan(&own, &links);
    assert_eq!(seen.entries, own.entries);
    assert_eq!(seen.gateways, own.remote_gateways);
    check_findings(
        &own,
        &links,
        expect![[r#"
        Refused ISM3103 ClusterLink isthmus-system/c: link c leads to cluster east with uid x, which is this cluster east (uid-east) itself or bears its id; nothing is imported over it. Fix: give each cluster its own id in ConfigMap isthmus-mesh, and a kubeconfig that leads to the other cluster.
        Refused ISM3103 ClusterLink isthmus-system/d: link d leads to cluster west with uid uid-east, which is this cluster east (uid-east) itself or bears its id; nothing is imported over it. Fix: give each cluster its own id in ConfigMap isthmus-mesh, and a kubeconfig that leads to the other cluster.
        Refused ISM3104 ClusterLink isthmus-system/a-twin: links west and a-twin both lead to a cluster called west (uids uid-west and other); only west is used. Fix: rename one of the clusters in its ConfigMap isthmus-mesh, or delete one link.
        Refused ISM3104 ClusterLink isthmus-system/b-name: links west and b-name lead to one and the same cluster (uid uid-west) under the names west and b-name; only west is used. Fix: delete the link that is not wanted.
    "#]],
    );
}

#[test]
fn a_collision_is_probed_past_and_said() {
    let all = clusters(PAIR);
    let first = plan(&all["east"], &others(&all, "east"));
    let holder = first.entries.values().next().unwrap().addresses[0];
    let mut own = all["east"].clone();
    own.services =
        clusters(&format!("east service shop/thief {holder} 80/http"))["east"].services.clone();
    let plan = plan(&own, &others(&all, "east"));
    assert!(plan.entries.values().all(|entry| !entry.addresses.contains(&holder)));
    assert!(plan.findings.iter().any(|finding| finding.code == 3109));
}

#[test]
fn the_older_export_keeps_a_contested_address() {
    let all = clusters(
        "west service shop/old 10.96.0.1 80/http created=1
         west service shop/young 10.96.0.2 80/http created=2
         west export shop/old
         west export shop/young
         east namespace shop",
    );
    let mut own = linked(&all, "east");
    let address = own.entries.values().find(|it| it.hosts[0].as_str() == "young.shop.global");
    let address = address.unwrap().addresses.clone();
    for entry in own.entries.values_mut() {
        entry.addresses = address.clone();
    }
    let plan = plan(&own, &others(&all, "east"));
    let holder = plan.entries.values().find(|it| it.addresses == address).unwrap();
    assert_eq!(holder.hosts[0].as_str(), "old.shop.global");
    let distinct: BTreeSet<_> = plan.entries.values().map(|it| &it.addresses).collect();
    assert_eq!(distinct.len(), plan.entries.len());
}

#[test]
fn a_full_range_is_said() {
    let mut all = clusters(PAIR);
    // Eight addresses less network, first and broadcast; one of four would still fit two entries.
    all.get_mut("east").unwrap().mesh.vip_range = "240.0.0.0/30".parse().unwrap();
    let plan = plan(&all["east"], &others(&all, "east"));
    let v4 = plan.entries.values().flat_map(|it| &it.addresses).filter(|ip| ip.is_ipv4()).count();
    assert_eq!(v4, 1);
    assert!(plan.findings.iter().any(|finding| finding.code == 3110));
}
