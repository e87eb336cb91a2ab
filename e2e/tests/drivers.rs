//! Which scenarios on nodes a driver plays, and what is said of the others.

use anyhow::Result;
use e2e::scenario::nodes::{ALL, choose};
use e2e::scenario::{self, Driver};
use std::collections::BTreeSet;

fn chosen(name: &str, driver: Driver) -> Result<Vec<&'static str>> {
    Ok(choose(&[name.to_owned()], driver)?.iter().map(|scenario| scenario.name).collect())
}

#[test]
fn what_stops_machines_is_refused_on_kind_by_its_name_and_not_among_all() {
    for name in ["node-faults", "pod-api-hangs"] {
        let error = chosen(name, Driver::Kind).unwrap_err().to_string();
        assert!(error.starts_with(&format!("{name} stops machines")), "{error}");
        assert!(error.ends_with("--driver nodes"), "{error}");
        assert_eq!(chosen(name, Driver::Nodes).unwrap(), [name]);
    }
    let (kind, nodes) = (chosen("all", Driver::Kind), chosen("all", Driver::Nodes));
    let (kind, nodes) = (kind.unwrap(), nodes.unwrap());
    for name in ["real-pods", "pod-traffic", "pod-mistakes", "rollouts", "uninstall", "dns-patch"] {
        assert!(kind.contains(&name), "{name} needs pods alone");
    }
    assert!(!kind.contains(&"pod-api-hangs") && !kind.contains(&"node-faults"), "{kind:?}");
    assert_eq!(nodes.len(), ALL.len());
}

#[test]
fn no_two_scenarios_have_one_name() {
    let all = scenario::ALL.iter().map(|it| it.name).chain(ALL.iter().map(|it| it.name));
    let mut seen = BTreeSet::new();
    let twice: Vec<_> = all.filter(|name| !seen.insert(*name)).collect();
    assert!(twice.is_empty(), "{twice:?}");
}

#[test]
fn what_has_no_pods_or_is_unknown_is_refused() {
    let error = chosen("first-call", Driver::Kind).unwrap_err().to_string();
    assert!(error.contains("workloads as processes"), "{error}");
    let error = chosen("no-such", Driver::Nodes).unwrap_err().to_string();
    assert!(error.contains("no scenario `no-such`"), "{error}");
}
