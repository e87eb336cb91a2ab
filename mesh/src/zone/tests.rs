//! One zone, many questions.

use super::{Answer, RecordType, answer, searched, zone, zone_without_sidecar};
use crate::fixture::{clusters, linked, view, world};
use crate::program::{Resource, ResourceName};
use expect_test::{Expect, expect};
use std::fmt::Write;

const WORLD: &str = "
    east cluster net-east gateway=203.0.113.1:15443
    west cluster net-west gateway=203.0.113.2:15443
    east service shop/web 10.96.0.9 80/http
    east service shop/db none 5432/tcp
    east service shop/cdn external 443/tcp
    east pod shop/db db-0 10.244.0.7 eu/a
    west service shop/hello 10.96.0.1 80/http
    west service far/away 10.96.0.2 80/http
    west service shop/list none 80/http
    west pod shop/list l 10.244.0.8 eu/a
    west export shop/hello
    west export shop/list
    west export far/away";

#[track_caller]
fn check(complete: bool, questions: &[&str], expected: Expect) {
    let all = clusters(WORLD);
    let zone = zone(&linked(&all, "east"), complete);
    let mut seen = String::new();
    for question in questions {
        let a = answer(&zone, question, RecordType::A);
        let aaaa = answer(&zone, question, RecordType::Aaaa);
        writeln!(seen, "{question}: {a:?}, {aaaa:?}").unwrap();
    }
    expected.assert_eq(&seen);
}

#[test]
fn own_and_imported_names_have_addresses() {
    check(
        true,
        &[
            "web.shop.svc.cluster.local",
            "db.shop.svc.cluster.local",
            "cdn.shop.svc.cluster.local",
            "hello.shop.svc.cluster.local",
            "hello.shop.global",
            "hello.shop.svc.clusterset.local",
            "hello.shop.west.global",
            "away.far.global",
            "list.shop.global",
        ],
        expect![[r#"
            web.shop.svc.cluster.local: V4([10.96.0.9]), NoData
            db.shop.svc.cluster.local: V4([10.244.0.7]), NoData
            cdn.shop.svc.cluster.local: Forward, Forward
            hello.shop.svc.cluster.local: Forward, Forward
            hello.shop.global: V4([240.240.246.140]), V6([2001:2:0:83ac:d8c1:f745:d257:8ab])
            hello.shop.svc.clusterset.local: V4([240.240.246.140]), V6([2001:2:0:83ac:d8c1:f745:d257:8ab])
            hello.shop.west.global: V4([240.240.142.229]), V6([2001:2:0:333e:5611:5683:c29f:6d1b])
            away.far.global: V4([240.240.140.151]), V6([2001:2:0:6740:4a33:b05d:64e7:10d4])
            list.shop.global: NoData, NoData
        "#]],
    );
}

#[test]
fn absent_names_are_ours_or_not() {
    let questions = [
        "nobody.shop.global",
        "nobody.shop.west.global",
        "hello.shop.north.global",
        "nobody.svc.clusterset.local",
        "nobody.nowhere.svc.clusterset.local",
        "clusterset.local",
        "svc.clusterset.local",
        "shop.svc.clusterset.local",
        "shop.global",
        "www.example.global",
        "global",
        "example.com",
        "web.shop.svc.cluster.local.",
        "_dns.shop.svc.cluster.local",
    ];
    check(
        true,
        &questions,
        expect![[r#"
        nobody.shop.global: NxDomain, NxDomain
        nobody.shop.west.global: NxDomain, NxDomain
        hello.shop.north.global: NxDomain, NxDomain
        nobody.svc.clusterset.local: NxDomain, NxDomain
        nobody.nowhere.svc.clusterset.local: NxDomain, NxDomain
        clusterset.local: NoData, NoData
        svc.clusterset.local: NoData, NoData
        shop.svc.clusterset.local: NoData, NoData
        shop.global: Forward, Forward
        www.example.global: Forward, Forward
        global: Forward, Forward
        example.com: Forward, Forward
        web.shop.svc.cluster.local.: Forward, Forward
        _dns.shop.svc.cluster.local: Forward, Forward
    "#]],
    );
    check(
        false,
        &questions,
        expect![[r#"
        nobody.shop.global: ServFail, ServFail
        nobody.shop.west.global: ServFail, ServFail
        hello.shop.north.global: ServFail, ServFail
        nobody.svc.clusterset.local: ServFail, ServFail
        nobody.nowhere.svc.clusterset.local: ServFail, ServFail
        clusterset.local: NoData, NoData
        svc.clusterset.local: NoData, NoData
        shop.svc.clusterset.local: NoData, NoData
        shop.global: Forward, Forward
        www.example.global: Forward, Forward
        global: Forward, Forward
        example.com: Forward, Forward
        web.shop.svc.cluster.local.: Forward, Forward
        _dns.shop.svc.cluster.local: Forward, Forward
    "#]],
    );
}

#[test]
fn other_types_of_a_known_name_have_no_data() {
    let zone = zone(&linked(&clusters(WORLD), "east"), true);
    assert_eq!(answer(&zone, "hello.shop.global", RecordType::Other), super::Answer::NoData);
}

/// What the zone of a sidecar in east says of a name nobody exports.
#[track_caller]
fn absent(facts: &str, expected: Answer) {
    let all = clusters(&format!("{WORLD}\n{facts}"));
    let own = linked(&all, "east");
    let view = view(&own, "sidecar shop/x eu/a");
    let made = crate::compile::resource(&world(own), &view, &ResourceName::zone()).unwrap();
    let Resource::Zone(zone) = &*made else { panic!("{made:?}") };
    assert_eq!(answer(zone, "nobody.shop.global", RecordType::A), expected, "{facts}");
}

#[test]
fn absent_names_wait_for_every_accepted_link() {
    absent("", Answer::NxDomain);
    absent("east link west accepted complete", Answer::NxDomain);
    absent("east link west", Answer::NxDomain);
    absent("east link west accepted", Answer::ServFail);
    let one_of_two = "east link west accepted complete\n east link north accepted";
    absent(one_of_two, Answer::ServFail);
}

#[test]
fn an_own_export_that_is_not_published_yet_is_not_denied() {
    let all = clusters(&format!("{WORLD}\n east export shop/web\n east export shop/nothing"));
    let of = |own| answer(&zone(own, true), "web.shop.global", RecordType::A);
    assert_eq!(of(&all["east"]), Answer::ServFail);
    assert!(matches!(of(&linked(&all, "east")), Answer::V4(_)));
}

#[test]
fn without_a_sidecar_names_lead_to_own_copies_or_nowhere() {
    let all = clusters(&format!("{WORLD}\n east service shop/hello 10.96.0.3 80/http"));
    let ask = |all: &crate::fixture::Clusters, name: &str| {
        let zone = zone_without_sidecar(&linked(all, "east"), true);
        answer(&zone, name, RecordType::A)
    };
    let own = Answer::V4(vec!["10.96.0.3".parse().unwrap()]);
    let names = ["hello.shop.global", "hello.shop.svc.clusterset.local", "hello.shop.west.global"];
    // West alone exports it, so a copy here does not answer to these names.
    for name in names {
        assert_eq!(ask(&all, name), Answer::NxDomain, "{name}");
    }
    assert_eq!(ask(&all, "hello.shop.svc.cluster.local"), own);
    assert_eq!(ask(&all, "away.far.global"), Answer::NxDomain);
    let all = clusters(&format!(
        "{WORLD}\n east service shop/hello 10.96.0.3 80/http\n east export shop/hello"
    ));
    for (name, expected) in names.into_iter().zip([own.clone(), own.clone(), Answer::NxDomain]) {
        assert_eq!(ask(&all, name), expected, "{name}");
    }
    assert_eq!(ask(&all, "hello.shop.east.global"), own);
    let early = zone_without_sidecar(&linked(&all, "east"), false);
    assert_eq!(answer(&early, "away.far.global", RecordType::A), Answer::ServFail);
}

#[test]
fn a_search_domain_behind_a_name_of_the_mesh_is_seen_through() {
    let zone = zone(&linked(&clusters(WORLD), "east"), true);
    for (name, expected) in [
        ("hello.shop.global.web.svc.cluster.local", Some("hello.shop.global")),
        ("hello.shop.west.global.shop.svc.cluster.local", Some("hello.shop.west.global")),
        ("gone.shop.global.shop.svc.cluster.local", Some("gone.shop.global")),
        (
            "hello.shop.svc.clusterset.local.shop.svc.cluster.local",
            Some("hello.shop.svc.clusterset.local"),
        ),
        // A pod `hello` of the headless Service `shop` in a namespace `global`.
        ("hello.shop.global.svc.cluster.local", None),
        // Of others, or as they are.
        ("hello.shop.global.cluster.local", None),
        ("hello.shop.global", None),
        ("www.example.global.shop.svc.cluster.local", None),
        ("hello.shop.svc.cluster.local", None),
        ("hello.global.shop.svc.cluster.local", None),
        ("global.shop.svc.cluster.local", None),
        ("_http._tcp.global.shop.svc.cluster.local", None),
        ("hello.shop.global.shop.svc.cluster.example", None),
        ("hello.shop.globalcluster.local", None),
        ("cluster.local", None),
        ("svc.cluster.local", None),
    ] {
        assert_eq!(searched(&zone, name), expected, "{name}");
    }
}
