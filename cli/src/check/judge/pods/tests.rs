//! Small clusters, and what is said of their pods.

use super::super::tests::{installed, judged};
use super::*;
use cluster::operator::look::Look;

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
    Webhook { bundles: [mesh.root_certificates].into(), tried, rivals: BTreeMap::new() }
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
    check(world(vec![bare], hooked()), Mark::Warning, &["ISM2626", "delete a in shop"]);
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
    let words = ["ISM2628", "pod a", "nowhere/x:1", "ImagePullBackOff", "not found", "push it"];
    check(stuck("shop", "app", "ImagePullBackOff"), Mark::Warning, &words);
    check(stuck("shop", "app", "RunContainerError"), Mark::Warning, &["command"]);
    check(stuck("shop", "app", "CrashLoopBackOff"), Mark::Warning, &["logs --previous"]);
    check(stuck("shop", SIDECAR_CONTAINER, "ErrImagePull"), Mark::Broken, &["isthmus-proxy"]);
    check(stuck("isthmus-system", "gateway", "ErrImagePull"), Mark::Broken, &["isthmus-system"]);
}

#[test]
fn a_webhook_is_believed_by_the_meshs_root_and_answers() {
    let said = |tried| world(vec![], Some(hook(tried)));
    check(said(Tried::Failed("refused".into())), Mark::Broken, &["ISM2630", "refused"]);
    check(said(Tried::PassedOver("shop".into())), Mark::Broken, &["ISM2630", "namespace shop"]);
    check(said(Tried::Late), Mark::Warning, &["ISM2630", "15017"]);
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
    let words = ["ISM2632", "istio-sidecar-injector", "namespace shop istio-injection-"];
    check(world(vec![], Some(rival)), Mark::Warning, &words);
}

#[test]
fn a_clock_is_off_when_its_lease_is_of_another_time() {
    let nodes = |ages: &[i64]| {
        let clock =
            |(place, age): (usize, &i64)| NodeClock { node: format!("n{place}"), age: *age };
        Look { nodes: Ok(ages.iter().enumerate().map(clock).collect()), ..installed() }
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
