//! Small clusters, and what is said of their pods.

use super::super::tests::{installed, judged, seen};
use super::*;
use crate::check::report::{Line, fold};
use crate::check::seen::{ControlPlane, Door};
use cluster::operator::look::nodes::Clocks;
use cluster::operator::look::{Held, Look};
use mesh::inventory::{Endpoint, Service, ServiceKind, ServicePort};
use mesh::name::{Locality, Protocol, ServiceName};
use std::sync::Arc;
use trust::probe::Probed;

fn pod(name: &str, sidecar: Sidecar) -> PodState {
    PodState {
        namespace: "shop".into(),
        name: name.into(),
        owner: Some("deployment/hello".into()),
        age: 60,
        sidecar,
        blocked: None,
    }
}

fn hook(tried: Tried) -> Webhook {
    let mesh = installed().mesh.unwrap().0.unwrap();
    let bundles = [mesh.root_certificates].into();
    let places = ["isthmus-system/isthmus-control-plane".to_owned()].into();
    Webhook { bundles, places, tried, rivals: BTreeMap::new(), cut: false }
}

fn world(all: Vec<PodState>, webhook: Option<Webhook>) -> Look {
    let pods = Pods { all, asking: ["shop".to_owned()].into(), cut: false };
    Look { pods: Ok(pods), webhook: Ok(webhook), ..installed() }
}

/// Lines of these rooms of codes that are not good.
fn said(look: Look) -> Vec<Item> {
    let ours = |it: &Item| {
        let number: u16 = it.code.trim_start_matches("ISM").parse().unwrap_or(0);
        (2626..=2639).contains(&number) || (2710..=2719).contains(&number)
    };
    judged(look).into_iter().filter(ours).collect()
}

#[track_caller]
fn check(look: Look, mark: Mark, words: &[&str]) {
    let lines = said(look);
    let [line] = &lines[..] else { panic!("one line is expected: {lines:?}") };
    let text = line.to_string();
    assert!(words.iter().all(|word| text.contains(word)), "{text}");
    assert!(line.mark == mark && !line.fix.is_empty(), "{line:?}");
}

#[test]
fn each_sort_of_pod_without_a_sidecar_is_one_line() {
    let hooked = || Some(hook(Tried::Injected));
    let before = ["a", "b", "c", "d"].map(|name| pod(name, Sidecar::Missed)).to_vec();
    let words = ["ISM2626", "pods a, b, c and 1 more", "-n shop rollout restart deployment/hello"];
    check(world(before.clone(), hooked()), Mark::Warning, &words);
    let bare = PodState { owner: None, ..pod("a", Sidecar::Missed) };
    check(world(vec![bare], hooked()), Mark::Warning, &["ISM2626", "delete pod a in shop"]);
    let host = vec![pod("a", Sidecar::Without(Why::HostNetwork))];
    check(world(host, hooked()), Mark::Warning, &["ISM2710", "pod a in namespace shop"]);
    let user = vec![pod("a", Sidecar::Without(Why::SidecarUser("container app".into())))];
    check(
        world(user, hooked()),
        Mark::Warning,
        &["ISM2712", "pod a", "container app", "runAsUser"],
    );
    let istio = Why::AnotherInjector("container istio-proxy".into());
    let istio = vec![pod("a", Sidecar::Without(istio))];
    check(world(istio, hooked()), Mark::Warning, &["ISM2711", "pod a", "istio-proxy"]);
    let both = vec![pod("a", Sidecar::Both("container istio-proxy".into()))];
    check(world(both, hooked()), Mark::Warning, &["ISM2633", "pod a", "two sidecars"]);
    // Nothing injects there: pods have what somebody gave them.
    assert_eq!(said(world(before, None)), []);
}

#[test]
fn what_is_as_it_was_meant_is_no_mistake() {
    let refused = Why::Refused {
        on: cluster::inject::Labelled::Pod,
        label: "sidecar.istio.io/inject=false".into(),
    };
    let waits = Blocked {
        container: "app".into(),
        image: "x".into(),
        reason: "ErrImagePull".into(),
        message: String::new(),
    };
    let young = PodState { age: 20, blocked: Some(waits.clone()), ..pod("y", Sidecar::Missed) };
    let elsewhere = PodState {
        namespace: "other".into(),
        blocked: Some(waits),
        ..pod("e", Sidecar::Without(Why::NotAsked))
    };
    let all = vec![
        pod("a", Sidecar::There),
        pod("b", Sidecar::Without(refused)),
        pod("c", Sidecar::Without(Why::NotAsked)),
        young,
        elsewhere,
    ];
    let look = world(all, Some(hook(Tried::Injected)));
    assert_eq!(said(look.clone()), []);
    let good = judged(look).into_iter().find(|it| it.group == Group::Pods).unwrap();
    assert!(good.mark == Mark::Good && good.says.contains("pods with sidecars: 1"), "{good}");
}

#[test]
fn a_container_that_does_not_start_names_its_image() {
    let stuck = |namespace: &str, container: &str, reason: &str| {
        let blocked = Blocked {
            container: container.into(),
            image: "nowhere/x:1".into(),
            reason: reason.into(),
            message: "not found".into(),
        };
        let pod = pod("a", Sidecar::There);
        world(vec![PodState { namespace: namespace.into(), blocked: Some(blocked), ..pod }], None)
    };
    let words =
        ["ISM2628", "pod a", "(\"nowhere/x:1\": ", "ImagePullBackOff", "not found", "push it"];
    check(stuck("shop", "app", "ImagePullBackOff"), Mark::Warning, &words);
    check(stuck("shop", "app", "RunContainerError"), Mark::Warning, &["command"]);
    check(stuck("shop", "app", "CrashLoopBackOff"), Mark::Warning, &["logs --previous"]);
    check(stuck("shop", SIDECAR_CONTAINER, "ErrImagePull"), Mark::Broken, &["isthmus-proxy"]);
    check(stuck("isthmus-system", "gateway", "ErrImagePull"), Mark::Broken, &["isthmus-system"]);
}

#[test]
fn a_webhooks_certificate_that_ended_is_told_from_one_that_is_not_answered() {
    let said = |end: &str| {
        let text = "tls: failed to verify certificate: x509: certificate has expired or is not yet \
                    valid: current time 2026-11-29T07:00:00Z is";
        Tried::Failed(format!("{text} {end} 2026-11-28T07:00:00Z"))
    };
    let restart = "-n isthmus-system rollout restart deployment/isthmus-control-plane";
    let own = ["ISM2635", "isthmus-system/isthmus-control-plane", "is after 2026-11-28", restart];
    check(world(vec![], Some(hook(said("after")))), Mark::Broken, &own);
    check(world(vec![], Some(hook(said("before")))), Mark::Broken, &["ISM2635", "chrony"]);
    // Another's certificate is not mended by ours.
    let mut elsewhere = hook(said("after"));
    elsewhere.places = ["old/injector".to_owned()].into();
    let words = ["ISM2635", "that old/injector shows", "isthmus install --context west"];
    check(world(vec![], Some(elsewhere)), Mark::Broken, &words);
}

#[test]
fn a_webhook_is_believed_by_the_meshs_root_and_answers() {
    let said = |tried| world(vec![], Some(hook(tried)));
    check(said(Tried::Failed("refused".into())), Mark::Broken, &["ISM2630", "refused"]);
    check(said(Tried::PassedOver("shop".into())), Mark::Broken, &["ISM2630", "namespace shop"]);
    check(said(Tried::Late), Mark::Warning, &["ISM2630", "15017"]);
    let mut elsewhere = hook(Tried::Failed("no such host".into()));
    elsewhere.places.insert("old/injector".into());
    let words = ["ISM2630", "at old/injector", "isthmus install --context west"];
    check(world(vec![], Some(elsewhere)), Mark::Broken, &words);
    let other = trust::root::create("other", "a long passphrase").unwrap().certificate_pem;
    let text = "x509: certificate signed by unknown authority";
    let mut foreign = hook(Tried::Failed(text.into()));
    foreign.bundles = [other.clone()].into();
    let words = ["ISM2629", "caBundle", text, "isthmus install --context west"];
    check(world(vec![], Some(foreign.clone())), Mark::Broken, &words);
    foreign.bundles = [String::new()].into();
    check(world(vec![], Some(foreign)), Mark::Broken, &["ISM2629"]);
    // While roots overlap, the mesh's is among them.
    let mut rotating = hook(Tried::Injected);
    let own = rotating.bundles.first().unwrap().clone();
    rotating.bundles = [format!("{own}{other}")].into();
    assert_eq!(self::said(world(vec![], Some(rotating))), []);
    let mut rival = hook(Tried::Injected);
    rival.rivals = [("istio-sidecar-injector".to_owned(), ["shop".to_owned()].into())].into();
    let words = ["ISM2632", "istio-sidecar-injector", "label namespace shop istio-injection-"];
    check(world(vec![], Some(rival.clone())), Mark::Warning, &words);
    let many = ["a", "b", "c", "d"].map(str::to_owned).into();
    rival.rivals = [("istio-sidecar-injector".to_owned(), many)].into();
    let words = [
        "of namespace a, b, c and 1 more",
        "label namespace a b c istio-injection- isthmus.dev/inject=enabled`, and likewise for 1 more",
    ];
    check(world(vec![], Some(rival)), Mark::Warning, &words);
}

#[test]
fn a_clock_is_off_when_its_lease_is_of_another_time() {
    let nodes = |ages: &[i64]| {
        let clock =
            |(place, age): (usize, &i64)| NodeClock { node: format!("n{place}"), age: *age };
        let all = ages.iter().enumerate().map(clock).collect();
        Look { nodes: Ok(Clocks { all, cut: false }), ..installed() }
    };
    assert_eq!(said(nodes(&[0, 12, 49, -2])), []);
    check(nodes(&[3, 305]), Mark::Broken, &["ISM2631", "n1 is 305 s behind"]);
    check(nodes(&[-297, 3]), Mark::Broken, &["ISM2631", "n0 is 297 s ahead"]);
    check(nodes(&[100]), Mark::Warning, &["ISM2631", "n0 is 100 s behind"]);
}

#[test]
fn who_may_not_look_is_told_what_was_not_looked_at() {
    let no = || Err("nodes is forbidden".to_owned());
    let look = Look {
        pods: Err("pods is forbidden".into()),
        nodes: no(),
        webhook: Err("forbidden".into()),
        ..installed()
    };
    let lines = judged(look);
    let unread = lines.iter().filter(|it| it.code == "ISM2622" && it.says.contains("forbidden"));
    let unread: Vec<String> = unread.map(|it| it.says.clone()).collect();
    for what in ["its pods", "its nodes' clocks", "its injecting webhook"] {
        assert!(unread.iter().any(|said| said.starts_with(what)), "{what}: {unread:?}");
    }
}

/// A Service of this name that is exported, and its copies: a pod each, and whether it is meshed.
fn export(own: &mut Inventory, namespace: &str, name: &str, copies: &[(&str, bool)]) {
    let name = ServiceName::new(namespace, name).unwrap();
    let port = ServicePort { number: 80, protocol: Protocol::Http, name: "http".into() };
    let service = Service {
        name: name.clone(),
        kind: ServiceKind::ClusterIp,
        selector: BTreeMap::new(),
        addresses: vec!["10.96.0.9".parse().unwrap()],
        ports: vec![port],
        client_ip_affinity: false,
        traffic_distribution: None,
        created: 0,
    };
    let copy = |(place, (pod, meshed)): (usize, &(&str, bool))| Endpoint {
        address: format!("10.244.0.{}", place + 1).parse().unwrap(),
        ports: [(80, 80)].into(),
        locality: Locality::default(),
        account: String::new(),
        labels: BTreeMap::new(),
        meshed: *meshed,
        pod: (*pod).to_owned(),
        hostname: String::new(),
    };
    own.services.insert(name.clone(), service);
    own.endpoints.insert(name.clone(), copies.iter().enumerate().map(copy).collect());
    own.service_exports.insert(name);
}

fn inventory() -> Inventory {
    let mesh = installed().mesh.unwrap().0.unwrap();
    Inventory { uid: "u-1".into(), ..Inventory::empty(mesh) }
}

#[test]
fn an_exporting_namespace_without_label_names_it_and_what_owns_its_copies() {
    let bare = |name: &str, owner: Option<&str>| PodState {
        owner: owner.map(str::to_owned),
        ..pod(name, Sidecar::Without(Why::NotAsked))
    };
    let all = vec![
        bare("db-0", Some("statefulset/db")),
        bare("web-1", Some("deployment/web")),
        bare("lone", None),
        bare("other", Some("deployment/other")),
    ];
    let look = |copies: &[(&str, bool)]| {
        let mut own = inventory();
        export(&mut own, "shop", "hello", copies);
        Look { inventory: Ok(Arc::new(own)), ..world(all.clone(), Some(hook(Tried::Injected))) }
    };
    let words = [
        "ISM2627 ",
        "namespace shop exports hello",
        "label namespace shop istio-injection=enabled`, then `kubectl --context west -n shop rollout \
         restart deployment/web statefulset/db`; delete pod lone in shop",
    ];
    let copies = [("db-0", false), ("web-1", false), ("lone", false)];
    let lines = said(look(&copies));
    let [line] = &lines[..] else { panic!("{lines:?}") };
    let text = format!("{} {line}", line.code);
    assert!(words.iter().all(|word| text.contains(word)), "{text}");
    assert!(line.mark == Mark::Broken && !text.contains("deployment/other"), "{text}");
    // Others of its copies are reached.
    check(look(&[("db-0", false), ("far", true)]), Mark::Warning, &["ISM2627", "statefulset/db"]);
    assert_eq!(said(look(&[("far", true)])), []);
}

fn blocked(namespace: &str, container: &str) -> PodState {
    let blocked = Blocked {
        container: container.into(),
        image: "nowhere/x:1".into(),
        reason: "ImagePullBackOff".into(),
        message: String::new(),
    };
    let pod = pod("a", Sidecar::There);
    PodState { namespace: namespace.into(), blocked: Some(blocked), ..pod }
}

/// A cause, and what lies beneath it.
fn codes(line: &Line) -> (&str, Vec<&str>) {
    let mut followers: Vec<&str> = line.followers.iter().map(|it| it.code.as_str()).collect();
    followers.sort_unstable();
    (&line.item.code, followers)
}

fn red(seen: &Seen) -> Vec<Line> {
    let lines = fold(super::super::judge(seen));
    lines.into_iter().filter(|line| line.item.mark == Mark::Broken).collect()
}

#[test]
fn programs_that_do_not_start_are_the_cause_of_what_they_do_not_do() {
    let held = Held { holder: "west-1".into(), age: 600, seconds: 10 };
    let look = |blocked: Vec<PodState>| Look {
        lease: Ok(Some(held.clone())),
        ..world(blocked, Some(hook(Tried::Failed("connection refused".into()))))
    };
    let door = Door {
        cluster: "west".into(),
        address: "203.0.113.7:15443".into(),
        probed: Probed::Missed("refused".into()),
    };
    let world = |blocked, waits: Result<&str, &str>| {
        let mut seen = seen(Ok(look(blocked)));
        seen.clusters[0].control_plane = Some(ControlPlane {
            place: "127.0.0.1:15014".into(),
            waits: waits.map(str::to_owned).map_err(str::to_owned),
            sessions: Ok(serde_json::json!([{"proxy": "p", "types": [{"nack": "no"}]}])),
        });
        let root_namespace = "isthmus-system".into();
        Seen { root_namespace, doors: vec![door.clone()], ..seen }
    };
    let programs = || vec![blocked("isthmus-system", "control-plane")];
    for waits in [Err("nothing answers"), Ok("waiting for a certificate")] {
        let lines = red(&world(programs(), waits));
        let lines: Vec<_> = lines.iter().map(codes).collect();
        assert_eq!(lines, [("ISM2628", vec!["ISM2610", "ISM2611", "ISM2616", "ISM2630"])]);
    }
    // One that runs is none of those that do not start.
    let lines = red(&world(programs(), Ok("")));
    let lines: Vec<_> = lines.iter().map(codes).collect();
    let below = vec!["ISM2610", "ISM2616", "ISM2630"];
    assert_eq!(lines, [("ISM2628", below), ("ISM2612", vec![])]);
    // A sidecar elsewhere is the cause of none of them.
    let lines = red(&world(vec![blocked("shop", SIDECAR_CONTAINER)], Err("nothing answers")));
    let mut lines: Vec<_> = lines.iter().map(codes).collect();
    lines.sort_unstable();
    let codes = ["ISM2610", "ISM2611", "ISM2616", "ISM2628", "ISM2630"];
    let alone = codes.map(|code| (code, vec![]));
    assert_eq!(lines, alone);
}

#[test]
fn pods_of_one_namespace_are_no_cause_in_another() {
    let mut own = inventory();
    export(&mut own, "shop", "hello", &[]);
    export(&mut own, "bank", "money", &[]);
    let look = Look {
        inventory: Ok(Arc::new(own)),
        ..world(vec![blocked("shop", SIDECAR_CONTAINER)], None)
    };
    let world = Seen { root_namespace: "isthmus-system".into(), ..seen(Ok(look)) };
    let lines = red(&world);
    let pods = lines.iter().find(|line| line.item.code == "ISM2628").unwrap();
    let [follower] = &pods.followers[..] else { panic!("{pods:?}") };
    assert!(follower.code == "ISM3205" && follower.says.contains("shop/hello"), "{follower}");
    let export = lines.iter().find(|line| line.item.code == "ISM3205").unwrap();
    assert!(export.item.says.contains("bank/money") && !export.item.fix.is_empty(), "{export:?}");
}

#[test]
fn what_was_not_read_whole_says_so_beside_any_mistake() {
    let mut look = world(vec![pod("a", Sidecar::Missed)], Some(hook(Tried::Injected)));
    look.pods.as_mut().unwrap().cut = true;
    look.nodes = Ok(Clocks { all: vec![], cut: true });
    look.webhook.as_mut().unwrap().as_mut().unwrap().cut = true;
    let lines = said(look);
    let half: Vec<String> =
        lines.iter().filter(|it| it.code == "ISM2634").map(ToString::to_string).collect();
    for what in ["2000 pods or namespaces", "5000 nodes", "2000 MutatingWebhookConfigurations"] {
        assert!(half.iter().any(|it| it.contains(what) && it.contains("Fix: ")), "{half:?}");
    }
    assert!(half.len() == 3 && lines.iter().any(|it| it.code == "ISM2626"), "{lines:?}");
}

#[test]
fn a_command_names_the_namespace_that_isthmus_is_in() {
    let mut hook = hook(Tried::Failed("connection refused".into()));
    hook.places = ["mesh-system/isthmus-control-plane".to_owned()].into();
    let look = world(vec![], Some(hook));
    let world = Seen { root_namespace: "mesh-system".into(), ..seen(Ok(look)) };
    let lines = red(&world);
    let hook = lines.iter().find(|line| line.item.code == "ISM2630").unwrap();
    assert!(hook.item.fix.contains("-n mesh-system get pods"), "{hook:?}");
}
