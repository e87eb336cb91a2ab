//! Routes: one virtual host, one cluster; one rule in our dialect, two in Envoy's.

use super::wire::{self, Wrong, duration, read_cluster_name, read_duration, required, uint, wrong};
use super::{grpc, own};
use envoy_types::pb::envoy::config::route::v3::{
    HeaderMatcher, RetryPolicy, Route as Rule, RouteAction, RouteMatch, VirtualHost,
    header_matcher::HeaderMatchSpecifier,
    retry_policy::{RetryHostPredicate, retry_host_predicate::ConfigType},
    route::Action,
    route_action::ClusterSpecifier,
    route_match::PathSpecifier,
};
use envoy_types::pb::envoy::extensions::retry::host::previous_hosts::v3::PreviousHostsPredicate;
use envoy_types::pb::envoy::r#type::matcher::v3::{
    RegexMatcher, StringMatcher, string_matcher::MatchPattern,
};
use mesh::program::{Retry, Route};
use mesh::world::Dialect;
use serde::{Deserialize, Serialize};

/// What Envoy retries for any method: failures before the request was sent.
const RETRY_ON: &str = "connect-failure,refused-stream,reset-before-request,retriable-headers";
/// And for methods that may be repeated: connections that broke before a response, too.
const RETRY_REPEATABLE_ON: &str =
    "connect-failure,refused-stream,reset-before-request,reset,retriable-headers";
/// Where a sidecar of ours says that its application did not serve a request ...
const UNSERVED: &str = "x-isthmus-unserved";
/// ... and never saw it.
const UNSENT: &str = "unsent";
/// Decision 14's methods.
const REPEATABLE: &str = "GET|HEAD|OPTIONS|PUT|DELETE";
/// How often Envoy chooses again, where it chose a host that has failed this request (Istio's).
const HOST_CHOICES: i64 = 5;

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
    if dialect == Dialect::Grpc {
        return grpc::route(route);
    }
    let Route { name, cluster, timeout_ms, retry } = route;
    let Retry { attempts, hedge_ms, body_max, budget_percent, budget_per_second } = *retry;
    let action = RouteAction {
        cluster_specifier: Some(ClusterSpecifier::Cluster(cluster.to_string())),
        timeout: duration(*timeout_ms),
        ..Default::default()
    };
    let policy = RetryPolicy { num_retries: uint(attempts), ..Default::default() };
    let rules = match dialect {
        Dialect::Isthmus | Dialect::Grpc => {
            vec![rule(None, RouteAction { retry_policy: Some(policy), ..action })]
        }
        Dialect::Envoy => {
            let elsewhere = RetryPolicy {
                retry_on: RETRY_ON.to_owned(),
                retry_host_predicate: vec![RetryHostPredicate {
                    name: "envoy.retry_host_predicates.previous_hosts".to_owned(),
                    config_type: Some(ConfigType::TypedConfig(wire::pack(
                        &PreviousHostsPredicate {},
                    ))),
                }],
                host_selection_retry_max_attempts: HOST_CHOICES,
                retriable_headers: vec![header(
                    UNSERVED,
                    HeaderMatchSpecifier::StringMatch(StringMatcher {
                        match_pattern: Some(MatchPattern::Exact(UNSENT.to_owned())),
                        ..Default::default()
                    }),
                )],
                ..policy
            };
            let repeated = RetryPolicy {
                retry_on: RETRY_REPEATABLE_ON.to_owned(),
                retriable_headers: vec![header(UNSERVED, HeaderMatchSpecifier::PresentMatch(true))],
                ..elsewhere.clone()
            };
            // No hedge: Envoy counts each attempt that it hedges as a failure of its endpoint, and
            // would eject who is only slow (`Filter::onSoftPerTryTimeout`; docs/adr/0018).
            vec![
                rule(
                    Some(repeatable()),
                    RouteAction { retry_policy: Some(repeated), ..action.clone() },
                ),
                rule(None, RouteAction { retry_policy: Some(elsewhere), ..action }),
            ]
        }
    };
    wire::RouteConfiguration {
        name: name.clone(),
        virtual_hosts: vec![VirtualHost {
            name: name.clone(),
            domains: vec!["*".to_owned()],
            routes: rules,
            ..Default::default()
        }],
        metadata: match dialect {
            Dialect::Isthmus => {
                own::write(&Own { hedge_ms, body_max, budget_percent, budget_per_second })
            }
            Dialect::Envoy | Dialect::Grpc => None,
        },
        ..Default::default()
    }
}

fn rule(methods: Option<HeaderMatcher>, action: RouteAction) -> Rule {
    Rule {
        r#match: Some(RouteMatch {
            path_specifier: Some(PathSpecifier::Prefix("/".to_owned())),
            headers: methods.into_iter().collect(),
            ..Default::default()
        }),
        action: Some(Action::Route(action)),
        ..Default::default()
    }
}

/// Methods a request of which may be sent twice.
fn repeatable() -> HeaderMatcher {
    let regex = RegexMatcher { regex: REPEATABLE.to_owned(), ..Default::default() };
    let pattern = Some(MatchPattern::SafeRegex(regex));
    header(
        ":method",
        HeaderMatchSpecifier::StringMatch(StringMatcher {
            match_pattern: pattern,
            ..Default::default()
        }),
    )
}

fn header(name: &str, wanted: HeaderMatchSpecifier) -> HeaderMatcher {
    HeaderMatcher {
        name: name.to_owned(),
        header_match_specifier: Some(wanted),
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
