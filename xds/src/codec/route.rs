//! Routes: one virtual host, one rule, one cluster.

use super::own;
use super::wire::{self, Wrong, duration, read_cluster_name, read_duration, required, uint, wrong};
use envoy_types::pb::envoy::config::route::v3::{
    RetryPolicy, Route as Rule, RouteAction, RouteMatch, VirtualHost, route::Action,
    route_action::ClusterSpecifier, route_match::PathSpecifier,
};
use mesh::program::{Retry, Route};
use mesh::world::Dialect;
use serde::{Deserialize, Serialize};

/// What Envoy retries for any method: failures before the request was sent.
const RETRY_ON: &str = "connect-failure,refused-stream,reset-before-request";

/// Decision 14's words that Envoy does not have.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Own {
    #[serde(with = "own::wide")]
    hedge_ms: u64,
    #[serde(with = "own::wide")]
    body_max: u64,
    budget_percent: u32,
    budget_per_second: u32,
}

pub(super) fn encode(route: &Route, dialect: Dialect) -> wire::RouteConfiguration {
    let Route { name, cluster, timeout_ms, retry } = route;
    let Retry { attempts, hedge_ms, body_max, budget_percent, budget_per_second } = *retry;
    let action = RouteAction {
        cluster_specifier: Some(ClusterSpecifier::Cluster(cluster.to_string())),
        timeout: duration(*timeout_ms),
        retry_policy: Some(RetryPolicy {
            retry_on: match dialect {
                Dialect::Isthmus => String::new(),
                Dialect::Envoy => RETRY_ON.to_owned(),
            },
            num_retries: uint(attempts),
            ..Default::default()
        }),
        ..Default::default()
    };
    let rule = Rule {
        r#match: Some(RouteMatch {
            path_specifier: Some(PathSpecifier::Prefix("/".to_owned())),
            ..Default::default()
        }),
        action: Some(Action::Route(action)),
        ..Default::default()
    };
    wire::RouteConfiguration {
        name: name.clone(),
        virtual_hosts: vec![VirtualHost {
            name: name.clone(),
            domains: vec!["*".to_owned()],
            routes: vec![rule],
            ..Default::default()
        }],
        metadata: match dialect {
            Dialect::Isthmus => {
                own::write(&Own { hedge_ms, body_max, budget_percent, budget_per_second })
            }
            Dialect::Envoy => None,
        },
        ..Default::default()
    }
}

pub(super) fn decode(route: &wire::RouteConfiguration) -> Result<Route, Wrong> {
    let [host] = &route.virtual_hosts[..] else {
        return Err(wrong("virtual_hosts", "must be exactly one"));
    };
    let [rule] = &host.routes[..] else {
        return Err(wrong("virtual_hosts[0].routes", "must be exactly one"));
    };
    let at = "virtual_hosts[0].routes[0].route";
    let Some(Action::Route(action)) = &rule.action else {
        return Err(wrong(at, "is missing"));
    };
    let Some(ClusterSpecifier::Cluster(cluster)) = &action.cluster_specifier else {
        return Err(wrong("cluster", "is missing").within(at));
    };
    let own: Own = own::read(route.metadata.as_ref())?;
    let retry = required("retry_policy", action.retry_policy.as_ref()).map_err(|w| w.within(at))?;
    let attempts = wire::read_uint("retry_policy.num_retries", retry.num_retries.as_ref());
    Ok(Route {
        name: route.name.clone(),
        cluster: read_cluster_name("cluster", cluster).map_err(|w| w.within(at))?,
        timeout_ms: read_duration("timeout", action.timeout.as_ref()).map_err(|w| w.within(at))?,
        retry: Retry {
            attempts: attempts.map_err(|w| w.within(at))?,
            hedge_ms: own.hedge_ms,
            body_max: own.body_max,
            budget_percent: own.budget_percent,
            budget_per_second: own.budget_per_second,
        },
    })
}
