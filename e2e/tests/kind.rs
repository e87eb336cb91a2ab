//! The files of `e2e/kind` as kind itself reads them: valid, and alike where the clusters have to be.

use fleet::lint::{KindConfig, kind_config};
use fleet::nodes::{PODS, SERVICES, SITES};
use std::path::{Path, PathBuf};

/// Whether kind's reader can be built here; in CI it must.
fn go() -> bool {
    let found = std::process::Command::new("go").arg("version").output().is_ok();
    let ci = std::env::var_os("CI").is_some_and(|value| !value.is_empty() && value != "false");
    assert!(found || !ci, "go is missing: install it");
    if !found {
        eprintln!("\n*** NOT RUN: go is missing, and kind's reader is built with it.\n");
    }
    found
}

fn file(cluster: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("kind/{cluster}.yaml"))
}

/// What two configurations differ in that all clusters share.
fn differ(one: &KindConfig, other: &KindConfig) -> Option<String> {
    let pair = |it: &KindConfig| (it.pods.clone(), it.services.clone());
    (pair(one) != pair(other)).then(|| format!("{:?} and {:?}", pair(one), pair(other)))
}

#[test]
fn all_three_are_valid_and_have_the_same_pods_and_services() {
    if !go() {
        return;
    }
    let ours: Vec<_> = SITES.iter().map(|site| kind_config(&file(site.name)).unwrap()).collect();
    for (site, config) in SITES.iter().zip(&ours) {
        assert_eq!(differ(config, &ours[0]), None, "{} and east", site.name);
        // As on nodes of our own making.
        assert_eq!((config.pods.as_str(), config.services.as_str()), (PODS, SERVICES));
        let [node] = &config.nodes[..] else { panic!("{} has {:?}", site.name, config.nodes) };
        assert_eq!(node.role, "control-plane");
        assert_eq!(node.labels["topology.kubernetes.io/region"], site.region, "{}", site.name);
        assert_eq!(node.labels["topology.kubernetes.io/zone"], site.zone, "{}", site.name);
    }
    let count = std::fs::read_dir(file("east").parent().unwrap()).unwrap().count();
    assert_eq!(count, SITES.len(), "files that no cluster is made from");
}

#[test]
fn a_misspelt_field_a_range_that_is_none_and_another_range_are_noticed() {
    if !go() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let text = std::fs::read_to_string(file("west")).unwrap();
    let changed = |from: &str, to: &str| {
        assert!(text.contains(from), "{from}");
        let path = dir.path().join("west.yaml");
        std::fs::write(&path, text.replace(from, to)).unwrap();
        kind_config(&path)
    };
    let error = changed("podSubnet", "podSubnets").unwrap_err().to_string();
    assert!(error.contains("field podSubnets not found"), "{error}");
    let error = changed(SERVICES, "10.96.0.0/160").unwrap_err().to_string();
    assert!(error.contains("invalid service subnet"), "{error}");
    let error = changed("v1alpha4", "v1alpha9").unwrap_err().to_string();
    assert!(error.contains("unknown apiVersion"), "{error}");
    let error = changed("control-plane", "worker").unwrap_err().to_string();
    assert!(error.contains("control-plane"), "{error}");
    let other = changed(PODS, "10.245.0.0/16").unwrap();
    assert!(differ(&other, &kind_config(&file("east")).unwrap()).is_some());
}
