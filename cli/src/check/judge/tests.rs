//! Small worlds, and the first red line of each.

use super::*;
use crate::check::report::{Line, fold};
use crate::check::seen::{Controller, Door};
use cluster::operator::look::{Held, KINDS, RIGHTS};
use serde_json::Value;
use std::time::Duration;

/// A cluster that answers, of which nothing else was read.
fn look() -> Look {
    let unread = || "it was not asked".to_owned();
    Look {
        version: "v1.36.0".into(),
        took: Duration::from_millis(7),
        ahead: Some(0),
        uid: Ok("u-1".into()),
        namespace: Ok(true),
        mesh: Err("ISM2006 west has no ConfigMap. Fix: create it".into()),
        missing: Ok(vec![]),
        cacerts: Err("ISM2302 there is none. Fix: issue it".into()),
        lease: Ok(Some(Held { holder: "west-1".into(), age: 1, seconds: 10 })),
        links: Ok(vec![]),
        secrets: Ok(BTreeSet::new()),
        published: Ok(BTreeSet::new()),
        inventory: Err(unread()),
        denied: Ok(None),
        pods: Ok(Default::default()),
        nodes: Ok(Default::default()),
        webhook: Ok(None),
    }
}

pub(super) fn seen(look: Result<Look, Silent>) -> Seen {
    let west = Cluster {
        context: "west".into(),
        server: "https://10.0.0.2:6443".into(),
        look: look.map(Box::new),
        control_plane: None,
        controller: None,
    };
    Seen { clusters: vec![west], now: 1_800_000_000, ..Seen::default() }
}

/// All that is said of one cluster, west.
pub(super) fn judged(look: Look) -> Vec<Item> {
    judge(&Seen { root_namespace: "isthmus-system".into(), ..seen(Ok(look)) })
}

pub(super) fn first(seen: &Seen) -> String {
    let lines: Vec<Line> = fold(judge(seen));
    let red = lines.iter().find(|line| line.item.mark == Mark::Broken);
    red.map_or_else(String::new, |line| line.item.to_string())
}

#[track_caller]
fn check(seen: &Seen, words: &[&str]) {
    let said = first(seen);
    assert!(words.iter().all(|word| said.contains(word)), "{said}");
    assert!(said.contains("Fix: "), "{said}");
}

#[test]
fn an_api_server_is_the_cause_of_all_that_is_not_known() {
    let silent = |refused, reason: &str| Silent {
        refused,
        reason: reason.into(),
        said: "client error (Connect): tcp connect error: Connection refused".into(),
    };
    check(&seen(Err(silent(false, "ConnectionRefused"))), &["ISM2601", "refuses", "10.0.0.2"]);
    check(&seen(Err(silent(true, "Unauthorized"))), &["ISM2602", "credential", "kubectl"]);
    check(&seen(Err(silent(false, "Whatever"))), &["ISM2601", "does not answer"]);
    assert!(!first(&seen(Err(silent(false, "ConnectionRefused")))).contains("tcp connect error"));
}

#[test]
fn what_cannot_be_installed_comes_before_what_is_not() {
    check(&seen(Ok(look())), &["ISM2006", "west"]);
    let late = Look { ahead: Some(-300), ..look() };
    check(&seen(Ok(late)), &["ISM2603", "-300 s"]);
    let bare = Look { missing: Ok(KINDS.iter().collect()), ..look() };
    check(&seen(Ok(bare)), &["ISM2604", "ClusterLink.isthmus.dev/v1alpha1", "isthmus crds"]);
    let guest = Look { denied: Ok(Some(RIGHTS.iter().take(2).collect())), ..look() };
    check(&seen(Ok(guest)), &["ISM2621", "create namespaces, create configmaps"]);
    let mut near = seen(Ok(Look { denied: Ok(Some(vec![])), ..look() }));
    near.clusters[0].server = "https://127.0.0.1:6443".into();
    let warned = judge(&near).into_iter().find(|it| it.code == "ISM2004").unwrap();
    assert!(warned.mark == Mark::Warning && warned.fix.contains("--server west="), "{warned}");
    assert!(warned.fix.contains("--allow-loopback"), "{warned}");
    let empty = Look { namespace: Ok(false), ..look() };
    check(&seen(Ok(empty)), &["ISM2605", "kubectl"]);
}

/// Made once: its key is locked with a function that is slow on purpose.
fn root_certificate() -> &'static str {
    static ROOT: std::sync::LazyLock<String> = std::sync::LazyLock::new(|| {
        trust::root::create("m", "a long passphrase").unwrap().certificate_pem
    });
    &ROOT
}

/// Everything of a cluster that is well, as far as it can be without an inventory.
pub(super) fn installed() -> Look {
    let mesh = serde_json::json!({
        "cluster": "west", "network": "west", "trust_domain": "west.mesh",
        "vip_range": "240.240.0.0/16", "vip_range_v6": "2001:2::/48",
        "root_certificates": root_certificate(),
        "merge_cluster_local": false,
    });
    let cacerts = Err("secrets \"cacerts\" is forbidden".into());
    Look { mesh: Ok((Some(serde_json::from_value(mesh).unwrap()), vec![])), cacerts, ..look() }
}

#[test]
fn a_lease_tells_whether_somebody_leads() {
    assert_eq!(first(&seen(Ok(installed()))), "");
    let held = |holder: &str, age| Some(Held { holder: holder.into(), age, seconds: 10 });
    for (lease, words) in [
        (held("west-1", 60), ["ISM2610", "not renewed", "60 s"]),
        (held("", 1), ["ISM2610", "was stopped", "Fix"]),
        (None, ["ISM2610", "ever ran", "Fix"]),
    ] {
        check(&seen(Ok(Look { lease: Ok(lease), ..installed() })), &words);
    }
}

#[test]
fn what_a_page_says_is_the_cause_beneath_a_lease() {
    let mut seen = seen(Ok(installed()));
    let page = |waits: Result<&str, &str>, dns: Value| {
        Some(Controller {
            place: "127.0.0.1:15024".into(),
            waits: waits.map(str::to_owned).map_err(str::to_owned),
            links: Ok(serde_json::json!({"writing": {"refused": []}})),
            dns: Ok(dns),
        })
    };
    let mute =
        serde_json::json!({"names": 3, "asked": [{"server": "10.0.0.1:53", "problem": "late"}]});
    seen.clusters[0].controller = page(Ok(""), mute);
    check(&seen, &["ISM2614", "10.0.0.1:53", "late"]);
    let well = serde_json::json!({"names": 3, "asked": [{"server": "a", "problem": null}]});
    seen.clusters[0].controller = page(Ok(""), well.clone());
    assert_eq!(first(&seen), "");
    seen.clusters[0].controller = page(Ok("waiting for inventory: it was not read"), well.clone());
    check(&seen, &["ISM2610", "not ready", "inventory"]);
    seen.clusters[0].controller = page(Err("nothing answers"), well);
    check(&seen, &["ISM2610", "127.0.0.1:15024"]);
}

#[test]
fn a_door_is_dead_or_somebody_elses() {
    let mut seen = seen(Ok(installed()));
    let door =
        |probed| vec![Door { cluster: "west".into(), address: "203.0.113.7:15443".into(), probed }];
    seen.doors = door(Probed::Alive(Duration::from_millis(3)));
    assert_eq!(first(&seen), "");
    seen.doors = door(Probed::Missed("refused".into()));
    check(&seen, &["ISM2616", "203.0.113.7:15443"]);
    seen.doors = door(Probed::Foreign("another identity".into()));
    check(&seen, &["ISM2617", "another identity"]);
}

#[test]
fn another_root_is_named_with_the_way_back_to_the_meshs() {
    let phrase = "a long passphrase";
    let root = trust::root::create("other", phrase).unwrap();
    let back = ["isthmus trust issue west --dir DIR --apply --context west", "--trust-dir DIR"];
    let (certificate, key) = (&root.certificate_pem, &root.encrypted_key_pem);
    let domain = "west.mesh".parse().unwrap();
    let day = Duration::from_secs(86_400);
    let made = trust::root::issue_intermediate(certificate, key, phrase, &domain, day).unwrap();
    let cacerts = cluster::secret::Cacerts {
        ca_cert: made.ca_cert,
        ca_key: made.ca_key.reveal().into(),
        root_cert: made.root_cert,
        cert_chain: made.cert_chain,
    };
    let words = ["ISM2609", "another root", back[0], back[1], "folder of the Secret's root"];
    check(&seen(Ok(Look { cacerts: Ok(cacerts), ..installed() })), &words);

    // Of three, the one that is alone.
    let named = |name: &str, root: &str| {
        let mut look = installed();
        if let Ok((Some(mesh), _)) = &mut look.mesh {
            mesh.cluster = name.parse().unwrap();
            mesh.root_certificates = root.into();
        }
        look.uid = Ok(name.into());
        let link = |name| {
            let link = serde_json::json!({"metadata": {"name": name}, "spec": {}});
            serde_json::from_value(link).unwrap()
        };
        let others = ["east", "north", "west"].into_iter().filter(|it| *it != name);
        look.links = Ok(others.map(link).collect());
        Cluster { context: name.into(), ..seen(Ok(look)).clusters.remove(0) }
    };
    let own = root_certificate();
    let clusters = vec![named("east", own), named("north", own), named("west", certificate)];
    let mut all = Seen { clusters, now: 1_800_000_000, ..Seen::default() };
    let roots = |all: &Seen| judge(all).into_iter().find(|it| it.code == "ISM2608");
    let said = roots(&all).unwrap();
    assert_eq!(said.cluster, "west");
    assert!(back.iter().all(|words| said.fix.contains(words)), "{said}");
    // Who is not linked may have another, unless somebody means to link it.
    for cluster in &mut all.clusters {
        cluster.look.as_mut().unwrap().links = Ok(vec![]);
    }
    assert_eq!(roots(&all), None);
    all.pre = true;
    assert_eq!(roots(&all).unwrap().cluster, "west");
}
