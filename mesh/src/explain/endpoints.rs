//! Why a Service of this cluster has no endpoints, which is where a name of it ends.

use super::{NEAR_MAX, NoEndpoints, Step};
use crate::inventory::Service;
use crate::name::ServiceName;
use crate::world::World;
use std::collections::BTreeMap;

/// `None` where it has some, or is none of this cluster's.
pub(super) fn missing(world: &World, name: &ServiceName) -> Option<Step> {
    let service = world.own.services.get(name)?;
    let some = world.own.endpoints.get(name).is_some_and(|copies| !copies.is_empty());
    let step = || Step::NoEndpoints { service: name.clone(), reason: reason(world, service) };
    (!some).then(step)
}

fn reason(world: &World, service: &Service) -> NoEndpoints {
    let selector = service.selector.clone();
    if selector.is_empty() {
        return NoEndpoints::NoSelector;
    }
    let there = world.own.workloads.values();
    let there = there.filter(|workload| workload.name.namespace == service.name.namespace);
    let selected = there.filter(|workload| selects(service, &workload.labels));
    let pods: Vec<String> = selected.map(|it| it.name.name.clone()).take(NEAR_MAX).collect();
    match pods.is_empty() {
        true => NoEndpoints::NoPods { selector },
        false => NoEndpoints::NoneReady { selector, pods },
    }
}

/// Whether a Service stands for pods with these labels.
pub(super) fn selects(service: &Service, labels: &BTreeMap<String, String>) -> bool {
    let has = |(key, value): (&String, &String)| labels.get(key) == Some(value);
    !service.selector.is_empty() && service.selector.iter().all(has)
}

#[cfg(test)]
mod tests {
    use crate::explain::{Verdict, why};
    use crate::fixture::{clusters, view, world};
    use expect_test::{Expect, expect};

    #[track_caller]
    fn check(facts: &str, expected: Expect) {
        let text =
            format!("east cluster net-east\neast pod shop/clients web 10.244.2.1 eu/a\n{facts}");
        let own = clusters(&text).remove("east").unwrap();
        let client = view(&own, "sidecar shop/web eu/a");
        let found = why(&world(own), &client, "db", 5432, &[]);
        assert_eq!(found.verdict, Verdict::Unreachable);
        expected.assert_eq(&format!("{found}\n"));
    }

    #[test]
    fn a_headless_service_without_pods_says_what_it_selects() {
        check(
            "east service shop/db none 5432/tcp app=db",
            expect![[r#"
            db:5432
              the search list completes it to db.shop.svc.cluster.local
              db.shop.svc.cluster.local is a Service of this cluster; its addresses: none
              db.shop.svc.cluster.local has no virtual address: it is headless, its pods are dialled by their own addresses, in plaintext
              Service shop/db has no endpoints: no pod in namespace shop has the labels that it selects, app=db. Fix: start pods with them there, or correct spec.selector
            It cannot be called; the last steps say why.
        "#]],
        );
        let labels = "app=db unready";
        check(
            &format!(
                "east service shop/db none 5432/tcp app=db
                 east pod shop/db db-0 10.244.1.1 eu/a {labels}
                 east pod shop/db db-1 10.244.1.2 eu/a {labels}
                 east pod pay/db db-2 10.244.1.3 eu/a {labels}"
            ),
            expect![[r#"
                db:5432
                  the search list completes it to db.shop.svc.cluster.local
                  db.shop.svc.cluster.local is a Service of this cluster; its addresses: none
                  db.shop.svc.cluster.local has no virtual address: it is headless, its pods are dialled by their own addresses, in plaintext
                  Service shop/db has no endpoints: in namespace shop it selects app=db, and those with these labels are not ready: db-0, db-1. Fix: see what they wait for (kubectl describe pod db-0 -n shop)
                It cannot be called; the last steps say why.
            "#]],
        );
        check(
            "east service shop/db none 5432/tcp",
            expect![[r#"
            db:5432
              the search list completes it to db.shop.svc.cluster.local
              db.shop.svc.cluster.local is a Service of this cluster; its addresses: none
              db.shop.svc.cluster.local has no virtual address: it is headless, its pods are dialled by their own addresses, in plaintext
              Service shop/db has no endpoints: it has no selector, and nobody has written any. Fix: give it the labels of its pods as spec.selector, or write an EndpointSlice
            It cannot be called; the last steps say why.
        "#]],
        );
    }

    #[test]
    fn so_does_one_with_an_address() {
        check(
            "east service shop/db 10.96.0.1 5432/tcp app=db",
            expect![[r#"
            db:5432
              the search list completes it to db.shop.svc.cluster.local
              db.shop.svc.cluster.local is a Service of this cluster; its addresses: 10.96.0.1
              listener 10.96.0.1_5432 takes it as tcp
              cluster outbound|5432||db.shop.svc.cluster.local, balanced by LEAST_REQUEST (no DestinationRule)
              db.shop.svc.cluster.local has no ready copy in any cluster that serves this port
              Service shop/db has no endpoints: no pod in namespace shop has the labels that it selects, app=db. Fix: start pods with them there, or correct spec.selector
            It cannot be called; the last steps say why.
        "#]],
        );
        let tools = "east pod shop/clients web 10.244.2.1 eu/a unmeshed";
        check(
            &format!("{tools}\neast service shop/db 10.96.0.1 5432/tcp app=db"),
            expect![[r#"
            db:5432
              the search list completes it to db.shop.svc.cluster.local
              db.shop.svc.cluster.local is a Service of this cluster; its addresses: 10.96.0.1
              pod web has no sidecar: kube-proxy picks a copy of this cluster, and the call goes there in plaintext
              db.shop.svc.cluster.local has no ready copy in any cluster that serves this port
              Service shop/db has no endpoints: no pod in namespace shop has the labels that it selects, app=db. Fix: start pods with them there, or correct spec.selector
            It cannot be called; the last steps say why.
        "#]],
        );
    }
}
