//! Links between small clusters, judged.

use super::*;
use cluster::api::cluster_link::{ClusterLinkSpec, ClusterLinkStatus, Import};
use cluster::heard::Moment;
use cluster::remote::{Reachability, Reachable, RemoteState};
use mesh::finding::ObjectRef;

/// A root certificate of its own for each name.
pub(crate) fn root(name: &str) -> String {
    let mut parameters = rcgen::CertificateParams::new(vec![]).unwrap();
    parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    parameters.distinguished_name.push(rcgen::DnType::CommonName, name);
    parameters.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().pem()
}

pub(crate) fn own(root: &str) -> Inventory {
    let mesh = mesh::inventory::MeshConfig {
        cluster: "east".parse().unwrap(),
        network: "net-east".parse().unwrap(),
        trust_domain: "east.mesh".parse().unwrap(),
        vip_range: "240.240.0.0/16".parse().unwrap(),
        vip_range_v6: "2001:2::/48".parse().unwrap(),
        root_certificates: root.into(),
        merge_cluster_local: false,
    };
    Inventory {
        uid: "uid-east".into(),
        namespaces: BTreeSet::from(["isthmus-system".into(), "shop".into()]),
        ..Inventory::empty(mesh)
    }
}

pub(crate) fn told(cluster: &str, uid: &str, root: &str) -> Arc<Told> {
    Arc::new(Told {
        cluster: cluster.parse().unwrap(),
        uid: uid.into(),
        network: format!("net-{cluster}").parse().unwrap(),
        trust_domain: format!("{cluster}.mesh").parse().unwrap(),
        root_certificates: root.into(),
        gateways: vec![],
        services: BTreeMap::new(),
        findings: vec![],
    })
}

pub(crate) fn remote(told: Option<Arc<Told>>) -> Remote {
    let now = Moment::now();
    Remote {
        secret: ObjectRef::new("Secret", "isthmus-system", "s"),
        server: "https://10.0.0.2:6443".into(),
        credential: "0123456789abcdef".into(),
        problem: None,
        leaving: false,
        state: RemoteState {
            reachable: Reachability {
                is: if told.is_some() { Reachable::True } else { Reachable::Unknown },
                since: now,
            },
            last_heard: told.as_ref().map(|_| now),
            exports: told,
            error: None,
        },
    }
}

pub(crate) fn remotes(links: &[(&str, Option<Arc<Told>>)]) -> Remotes {
    let links =
        links.iter().map(|(name, told)| ((*name).to_owned(), remote(told.clone()))).collect();
    Remotes { synced: true, links, ..Remotes::default() }
}

pub(crate) fn object(name: &str, accepted: bool) -> (String, ClusterLink) {
    let import = Import { namespaces: vec!["*".into()], gateway_ranges: vec![] };
    let spec = ClusterLinkSpec { accepted, import, ..ClusterLinkSpec::default() };
    (name.to_owned(), ClusterLink::new(name, spec))
}

/// What west exports, behind one gateway at port 15444.
pub(crate) fn exports_at(host: &str) -> Exports {
    let root = root("mesh");
    let (own, mut told) = (own(&root), told("west", "u-w", &root));
    let gateway = mesh::inventory::GatewayAddress { host: host.into(), port: 15444 };
    Arc::make_mut(&mut told).gateways = vec![gateway];
    let (objects, remotes) =
        (BTreeMap::from([object("west", true)]), remotes(&[("west", Some(told))]));
    exports(&own, &objects, &judge(&own, &objects, &remotes)).remove(0)
}

fn reason(judged: &Judged) -> &str {
    judged.wrong.as_ref().map_or("", |wrong| wrong.reason.as_str())
}

#[test]
fn nothing_is_imported_without_consent() {
    let root = root("mesh");
    let (own, remotes) = (own(&root), remotes(&[("west", Some(told("west", "u-w", &root)))]));
    let objects = BTreeMap::from([object("west", false)]);
    let judged = judge(&own, &objects, &remotes);
    assert!(exports(&own, &objects, &judged).is_empty());
    let objects = BTreeMap::from([object("west", true)]);
    let judged = judge(&own, &objects, &remotes);
    let all = exports(&own, &objects, &judged);
    assert!(all.len() == 1 && all[0].synced && all[0].cluster.as_str() == "west");
    // Without an object at all, there is no consent either.
    let judged = judge(&own, &BTreeMap::new(), &remotes);
    assert!(exports(&own, &BTreeMap::new(), &judged).is_empty());
}

#[test]
fn other_roots_import_nothing_and_are_named() {
    let (ours, theirs) = (root("mesh"), root("other"));
    let own = own(&ours);
    let objects = BTreeMap::from([object("west", true)]);
    for (root, expected) in
        [(theirs.as_str(), "RootsDiffer"), ("", "RootMissing"), ("garbage", "RootMissing")]
    {
        let remotes = remotes(&[("west", Some(told("west", "u-w", root)))]);
        let judged = judge(&own, &objects, &remotes);
        let Trust::Refused(problem) = &judged["west"].trust else { panic!("{root}") };
        assert_eq!(problem.reason, expected);
        assert!(exports(&own, &objects, &judged).is_empty());
    }
}

#[test]
fn the_same_root_in_another_order_is_the_same() {
    let (a, b) = (root("a"), root("b"));
    let own = own(&format!("{a}{b}"));
    let remotes = remotes(&[("west", Some(told("west", "u-w", &format!("# ours\n{b}{a}"))))]);
    let judged = judge(&own, &BTreeMap::from([object("west", true)]), &remotes);
    assert_eq!(judged["west"].trust, Trust::Established);
}

#[test]
fn a_link_to_ourselves_or_with_our_id_is_refused() {
    let root = root("mesh");
    let own = own(&root);
    let objects = BTreeMap::from([object("west", true), object("east", true)]);
    let remotes = remotes(&[
        ("west", Some(told("east", "uid-east", &root))),
        ("east", Some(told("east", "u-other", &root))),
    ]);
    let judged = judge(&own, &objects, &remotes);
    assert_eq!(reason(&judged["west"]), "SelfLink");
    assert_eq!(reason(&judged["east"]), "DuplicateClusterId");
    assert!(judged["east"].wrong.as_ref().unwrap().message.contains("u-other"));
    assert!(exports(&own, &objects, &judged).is_empty());
}

#[test]
fn one_cluster_under_two_names_is_named_with_both() {
    let root = root("mesh");
    let own = own(&root);
    let objects = BTreeMap::from([object("west", true), object("west-2", true)]);
    let remotes = remotes(&[
        ("west", Some(told("west", "u-w", &root))),
        ("west-2", Some(told("west", "u-w", &root))),
    ]);
    let judged = judge(&own, &objects, &remotes);
    assert_eq!(reason(&judged["west"]), "");
    assert_eq!(reason(&judged["west-2"]), "DuplicateCluster");
    let message = &judged["west-2"].wrong.as_ref().unwrap().message;
    assert!(message.contains("west-2 and west") && message.contains("u-w"), "{message}");
    assert_eq!(exports(&own, &objects, &judged).len(), 1);
}

#[test]
fn two_clusters_with_one_id_are_named_with_both() {
    let root = root("mesh");
    let objects =
        BTreeMap::from([object("west", true), object("west-2", true), object("north", true)]);
    let remotes = remotes(&[
        ("west", Some(told("west", "u-w", &root))),
        ("west-2", Some(told("west", "u-x", &root))),
        ("north", Some(told("south", "u-s", &root))),
    ]);
    let judged = judge(&own(&root), &objects, &remotes);
    assert_eq!(reason(&judged["west-2"]), "DuplicateClusterId");
    let message = &judged["west-2"].wrong.as_ref().unwrap().message;
    assert!(message.contains("u-w") && message.contains("u-x"), "{message}");
    assert_eq!(reason(&judged["north"]), "ClusterIdDiffers");
}

#[test]
fn a_link_not_heard_since_the_start_is_kept_by_what_is_remembered() {
    let root = root("mesh");
    let own = own(&root);
    let (name, mut link) = object("west", true);
    link.status = Some(ClusterLinkStatus {
        uid: "u-w".into(),
        network: "net-w".into(),
        trust_domain: "w.mesh".into(),
        ..ClusterLinkStatus::default()
    });
    let objects = BTreeMap::from([(name, link)]);
    let unheard = remotes(&[("west", None)]);
    let judged = judge(&own, &objects, &unheard);
    let all = exports(&own, &objects, &judged);
    assert!(!all[0].synced);
    assert_eq!(
        (all[0].network.as_str(), all[0].trust_domain.as_str(), all[0].uid.as_str()),
        ("net-w", "w.mesh", "u-w")
    );
    assert!(!complete(&judged, &unheard));

    // The secrets are not listed yet: still kept.
    let unlisted = Remotes::default();
    let judged = judge(&own, &objects, &unlisted);
    assert_eq!(exports(&own, &objects, &judged).len(), 1);
    assert!(!complete(&judged, &unlisted));

    // They are, and none leads there: withdrawn.
    let gone = remotes(&[]);
    let judged = judge(&own, &objects, &gone);
    assert!(exports(&own, &objects, &judged).is_empty());
    assert!(complete(&judged, &gone));
}

#[test]
fn a_link_that_fell_silent_publishes_on_and_denies_nothing() {
    let root = root("mesh");
    let own = own(&root);
    let objects = BTreeMap::from([object("west", true)]);
    let mut remotes = remotes(&[("west", Some(told("west", "u-w", &root)))]);
    let judged = judge(&own, &objects, &remotes);
    assert!(complete(&judged, &remotes));
    remotes.links.get_mut("west").unwrap().state.reachable.is = Reachable::Unknown;
    let judged = judge(&own, &objects, &remotes);
    assert!(exports(&own, &objects, &judged)[0].synced, "what it told stands");
    assert!(!complete(&judged, &remotes), "what it exports since nobody knows");
    // Nothing is expected of a link that nobody accepted.
    let objects = BTreeMap::from([object("west", false)]);
    assert!(complete(&judge(&own, &objects, &remotes), &remotes));
}

#[test]
fn a_policy_that_cannot_be_read_keeps_what_stands() {
    let root = root("mesh");
    let own = own(&root);
    let (name, mut link) = object("west", true);
    link.spec.import.gateway_ranges = vec!["everywhere".into()];
    let objects = BTreeMap::from([(name, link)]);
    let remotes = remotes(&[("west", Some(told("west", "u-w", &root)))]);
    let judged = judge(&own, &objects, &remotes);
    assert!(
        matches!(&judged["west"].consent, Consent::Unreadable { why, .. } if why.contains("everywhere"))
    );
    let kept = &exports(&own, &objects, &judged)[0];
    assert!(!kept.synced && kept.services.is_empty(), "nothing new comes in");
    assert_eq!(kept.import.namespaces, ["*".to_owned()].into(), "consent stands for what is here");
}

#[test]
fn objects_come_and_go_with_their_secrets_and_never_without_consent_withdrawn() {
    let remotes_with = remotes(&[("west", None)]);
    let (create, delete) = objects_wanted(&BTreeMap::new(), &remotes_with);
    assert_eq!(
        (create.keys().map(String::as_str).collect::<Vec<_>>(), delete.len()),
        (vec!["west"], 0)
    );
    let made_by_us = |accepted| {
        let (name, mut link) = object("west", accepted);
        let label =
            (cluster::api::label::MANAGED_BY.to_owned(), cluster::api::label::MANAGER.to_owned());
        link.metadata.labels = Some([label].into());
        BTreeMap::from([(name, link)])
    };
    assert!(objects_wanted(&made_by_us(false), &remotes_with).0.is_empty());
    assert_eq!(objects_wanted(&made_by_us(false), &remotes(&[])).1, ["west"]);
    assert!(objects_wanted(&made_by_us(true), &remotes(&[])).1.is_empty(), "consent is a person's");
    assert!(
        objects_wanted(&BTreeMap::from([object("west", false)]), &remotes(&[])).1.is_empty(),
        "so is the object"
    );
    assert!(objects_wanted(&made_by_us(false), &Remotes::default()).1.is_empty(), "not listed yet");
}
