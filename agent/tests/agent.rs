//! The agent against a control plane on real sockets: identity, configuration, restarts without it.

mod support;

use agent::{Agent, start};
use mesh::program::*;
use runtime::metrics::Metrics;
use runtime::readiness::Readiness;
use std::path::Path;
use support::{Machine, PATIENCE, TOKEN, gateway, until};
use tokio_util::sync::CancellationToken;

fn knows(agent: &Agent, name: &ResourceName) -> bool {
    agent.snapshot.borrow().program.contains_key(name)
}

#[tokio::test]
async fn gets_an_identity_follows_its_names_and_what_is_wanted() {
    let machine = Machine::new();
    let end = CancellationToken::new();
    let address = machine.serve("isthmus-control-plane", end.clone()).await;
    let (readiness, metrics) = (Readiness::new(), Metrics::new());
    let agent =
        start(machine.config(address, false), &readiness, &metrics, end.clone()).await.unwrap();
    assert_eq!(agent.svid.borrow().identity, gateway());
    tokio::time::timeout(PATIENCE, readiness.ready()).await.unwrap();
    assert!(knows(&agent, &ResourceName::gateway()));

    let shown = metrics.encode();
    let left = shown.lines().find_map(|line| line.strip_prefix("istio_agent_cert_expiry_seconds "));
    let left: i64 = left.expect(&shown).parse().unwrap();
    assert!((86_000..=86_400).contains(&left), "{left}");
    assert!(shown.contains("isthmus_certificate_renewal_failures_total 0"), "{shown}");

    // What is not followed comes only once it is wanted, and absent names are answered.
    let wanted = ResourceName::outbound("240.240.7.2".parse().unwrap(), 80);
    agent.want.as_ref().unwrap().send(Want::Subscribe(wanted.clone())).await.unwrap();
    until("absent", || agent.snapshot.borrow().absent.contains(&wanted)).await;
    end.cancel();
}

#[tokio::test]
async fn a_restart_without_a_control_plane_runs_on_the_last_good_state() {
    let machine = Machine::new();
    let first = CancellationToken::new();
    let address = machine.serve("isthmus-control-plane", first.clone()).await;
    let agent =
        start(machine.config(address, true), &Readiness::new(), &Metrics::new(), first.clone())
            .await;
    let svid = agent.unwrap().svid.borrow().chain.clone();
    let program = machine.file("state/program.json");
    let kept = |path: &Path| {
        std::fs::read_to_string(path).is_ok_and(|text| text.contains("probe.west.isthmus.internal"))
    };
    until("the program is on disk", || kept(&program)).await;
    first.cancel();

    let (readiness, second) = (Readiness::new(), CancellationToken::new());
    let metrics = Metrics::new();
    let again = start(machine.config(address, true), &readiness, &metrics, second.clone());
    let again = tokio::time::timeout(PATIENCE, again).await.unwrap().unwrap();
    assert_eq!(again.svid.borrow().chain, svid, "the kept identity");
    assert!(readiness.is_ready(), "{:?}", readiness.awaited());
    assert!(knows(&again, &ResourceName::gateway()));
    assert!(!again.snapshot.borrow().connected);
    second.cancel();
}

#[tokio::test]
async fn an_impostor_gets_neither_token_nor_say() {
    let machine = Machine::new();
    let end = CancellationToken::new();
    // Same root, same domain, another account.
    let address = machine.serve("intruder", end.clone()).await;
    let readiness = Readiness::new();
    let config = machine.config(address, false);
    let starting = tokio::spawn({
        let (readiness, end) = (readiness.clone(), end.clone());
        async move { start(config, &readiness, &Metrics::new(), end).await }
    });
    until("the reason is told", || {
        readiness.awaited().get("identity").is_some_and(|why| why.contains("ISM6010"))
    })
    .await;
    end.cancel();
    assert!(starting.await.unwrap().is_err());
}

#[tokio::test]
async fn a_bad_token_is_said_and_a_new_one_is_read() {
    let machine = Machine::new();
    let end = CancellationToken::new();
    std::fs::write(machine.file("token"), "expired").unwrap();
    let address = machine.serve("isthmus-control-plane", end.clone()).await;
    let readiness = Readiness::new();
    let config = machine.config(address, false);
    let starting = tokio::spawn({
        let (readiness, end) = (readiness.clone(), end.clone());
        async move { start(config, &readiness, &Metrics::new(), end).await }
    });
    until("the refusal is told", || {
        let awaited = readiness.awaited();
        awaited.get("identity").is_some_and(|why| why.contains("the token is not good"))
    })
    .await;
    std::fs::write(machine.file("token"), TOKEN).unwrap();
    let agent = tokio::time::timeout(PATIENCE, starting).await.unwrap();
    assert_eq!(agent.unwrap().unwrap().svid.borrow().identity, gateway());
    end.cancel();
}
