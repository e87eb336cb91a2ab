//! Istio's DestinationRule: subsets, load balancing, outlier detection and connection pools.

use super::{Notes, Parsed, Rest, spec};
use kube::api::DynamicObject;
use mesh::inventory::{DestinationRule, Subset, TrafficPolicy};
use mesh::name::Hostname;
use mesh::program::{LoadBalancing, OutlierDetection};
use serde::Deserialize;
use std::collections::BTreeMap;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    #[serde(default)]
    host: String,
    traffic_policy: Option<Policy>,
    #[serde(default)]
    subsets: Vec<NamedSubset>,
    #[serde(flatten)]
    rest: Rest,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct NamedSubset {
    #[serde(default)]
    name: String,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    traffic_policy: Option<Policy>,
    #[serde(flatten)]
    rest: Rest,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Policy {
    load_balancer: Option<Balancer>,
    connection_pool: Option<Pool>,
    outlier_detection: Option<Outlier>,
    tls: Option<Tls>,
    #[serde(flatten)]
    rest: Rest,
}

#[derive(Deserialize)]
struct Balancer {
    simple: Option<String>,
    #[serde(flatten)]
    rest: Rest,
}

#[derive(Deserialize)]
struct Pool {
    tcp: Option<Tcp>,
    http: Option<Http>,
    #[serde(flatten)]
    rest: Rest,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Tcp {
    max_connections: Option<i64>,
    connect_timeout: Option<String>,
    idle_timeout: Option<String>,
    #[serde(flatten)]
    rest: Rest,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Http {
    http1_max_pending_requests: Option<i64>,
    max_requests_per_connection: Option<i64>,
    idle_timeout: Option<String>,
    #[serde(flatten)]
    rest: Rest,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Outlier {
    consecutive_local_origin_failures: Option<i64>,
    #[serde(rename = "consecutive5xxErrors")]
    consecutive_5xx_errors: Option<i64>,
    interval: Option<String>,
    base_ejection_time: Option<String>,
    max_ejection_percent: Option<i64>,
    #[serde(flatten)]
    rest: Rest,
}

#[derive(Deserialize)]
struct Tls {
    #[serde(default)]
    mode: String,
    #[serde(flatten)]
    rest: Rest,
}

/// What of it we can do; each field that we cannot is a finding, and the rest is used.
pub fn parse(object: &DynamicObject) -> Parsed<DestinationRule> {
    let mut notes = Notes::of("DestinationRule", &object.metadata);
    let Some(spec) = spec::<Spec>(object, &mut notes) else { return notes.done(None) };
    let Some(host) = host(&spec.host, &mut notes) else { return notes.done(None) };
    notes.unsupported("spec", &spec.rest);
    let policy = match spec.traffic_policy {
        Some(policy) => self::policy(policy, "spec.trafficPolicy", &mut notes),
        None => TrafficPolicy::default(),
    };
    let mut subsets = BTreeMap::new();
    for (index, subset) in spec.subsets.into_iter().enumerate() {
        let field = format!("spec.subsets[{index}]");
        // It becomes a label of a DNS name in SNI (`outbound_.80_.SUBSET_.HOST`).
        let fine = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if subset.name.is_empty()
            || subset.name.len() > SUBSET_MAX
            || !subset.name.bytes().all(fine)
        {
            notes.refuse(
                3082,
                &format!("{field}.name"),
                format!("{:?} cannot stand in a host name; this subset is left out.", subset.name),
                "use 1 to 61 of a-z, 0-9 and '-'.",
            );
            continue;
        }
        if subsets.contains_key(&subset.name) {
            notes.refuse(
                3082,
                &format!("{field}.name"),
                format!("{:?} is there twice; the first is used.", subset.name),
                "give each subset a name of its own.",
            );
            continue;
        }
        notes.unsupported(&field, &subset.rest);
        let own = match subset.traffic_policy {
            Some(policy) => self::policy(policy, &format!("{field}.trafficPolicy"), &mut notes),
            None => TrafficPolicy::default(),
        };
        let policy = over(own, &policy);
        subsets.insert(subset.name, Subset { labels: subset.labels, policy });
    }
    let object = notes.object.clone();
    notes.done(Some(DestinationRule { object, host, policy, subsets }))
}

/// With the `_` on both sides a label of at most 63.
const SUBSET_MAX: usize = 61;

/// What `own` says, else what `rule` says.
fn over(own: TrafficPolicy, rule: &TrafficPolicy) -> TrafficPolicy {
    TrafficPolicy {
        load_balancing: own.load_balancing.or(rule.load_balancing),
        connect_timeout_ms: own.connect_timeout_ms.or(rule.connect_timeout_ms),
        max_connections: own.max_connections.or(rule.max_connections),
        max_pending_requests: own.max_pending_requests.or(rule.max_pending_requests),
        max_requests_per_connection: own
            .max_requests_per_connection
            .or(rule.max_requests_per_connection),
        idle_timeout_ms: own.idle_timeout_ms.or(rule.idle_timeout_ms),
        outlier: own.outlier.or_else(|| rule.outlier.clone()),
    }
}

/// A name without a dot is one of the object's own namespace (Istio's rule).
fn host(text: &str, notes: &mut Notes) -> Option<Hostname> {
    let lower = text.trim_end_matches('.').to_ascii_lowercase();
    let full = if lower.contains('.') || lower.is_empty() {
        lower
    } else {
        format!("{lower}.{}.svc.cluster.local", notes.object.namespace)
    };
    match full.parse() {
        Ok(host) => Some(host),
        Err(error) => {
            notes.refuse(
                3080,
                "spec.host",
                format!("it names no host, and the rule is not used: {error}."),
                "write one host in full; wildcards are not supported.",
            );
            None
        }
    }
}

fn policy(policy: Policy, path: &str, notes: &mut Notes) -> TrafficPolicy {
    notes.unsupported(path, &policy.rest);
    let mut result = TrafficPolicy::default();
    if let Some(balancer) = policy.load_balancer {
        notes.unsupported(&format!("{path}.loadBalancer"), &balancer.rest);
        result.load_balancing = balancer.simple.and_then(|simple| {
            self::balancer(&simple, &format!("{path}.loadBalancer.simple"), notes)
        });
    }
    if let Some(pool) = policy.connection_pool {
        self::pool(pool, &format!("{path}.connectionPool"), &mut result, notes);
    }
    if let Some(outlier) = policy.outlier_detection {
        result.outlier = Some(self::outlier(outlier, &format!("{path}.outlierDetection"), notes));
    }
    if let Some(tls) = policy.tls {
        notes.unsupported(&format!("{path}.tls"), &tls.rest);
        if tls.mode != "ISTIO_MUTUAL" {
            notes.warn(
                3083,
                &format!("{path}.tls.mode"),
                format!(
                    "{:?} is not supported: meshed endpoints are called over mutual TLS, others in plaintext.",
                    tls.mode
                ),
                "write ISTIO_MUTUAL, or remove tls.",
            );
        }
    }
    result
}

fn balancer(text: &str, field: &str, notes: &mut Notes) -> Option<LoadBalancing> {
    match text {
        "LEAST_REQUEST" | "LEAST_CONN" => Some(LoadBalancing::LeastRequest),
        "ROUND_ROBIN" => Some(LoadBalancing::RoundRobin),
        "RANDOM" => Some(LoadBalancing::Random),
        "" | "UNSPECIFIED" => None,
        other => {
            notes.warn(
                3084,
                field,
                format!(
                    "{other:?} is not supported; calls go to the copy with the least requests."
                ),
                "write LEAST_REQUEST, ROUND_ROBIN or RANDOM.",
            );
            None
        }
    }
}

fn pool(pool: Pool, path: &str, result: &mut TrafficPolicy, notes: &mut Notes) {
    notes.unsupported(path, &pool.rest);
    if let Some(tcp) = pool.tcp {
        notes.unsupported(&format!("{path}.tcp"), &tcp.rest);
        let field = |name: &str| format!("{path}.tcp.{name}");
        result.max_connections = number(tcp.max_connections, 1, &field("maxConnections"), notes);
        result.connect_timeout_ms = time(tcp.connect_timeout, &field("connectTimeout"), notes);
        result.idle_timeout_ms = time(tcp.idle_timeout, &field("idleTimeout"), notes);
    }
    if let Some(http) = pool.http {
        notes.unsupported(&format!("{path}.http"), &http.rest);
        let field = |name: &str| format!("{path}.http.{name}");
        result.max_pending_requests =
            number(http.http1_max_pending_requests, 1, &field("http1MaxPendingRequests"), notes);
        result.max_requests_per_connection =
            number(http.max_requests_per_connection, 0, &field("maxRequestsPerConnection"), notes);
        let idle = time(http.idle_timeout, &field("idleTimeout"), notes);
        result.idle_timeout_ms = idle.or(result.idle_timeout_ms);
    }
}

fn outlier(outlier: Outlier, path: &str, notes: &mut Notes) -> OutlierDetection {
    notes.unsupported(path, &outlier.rest);
    let default = OutlierDetection::default();
    let field = |name: &str| format!("{path}.{name}");
    let percent = number(outlier.max_ejection_percent, 0, &field("maxEjectionPercent"), notes);
    OutlierDetection {
        consecutive_5xx: number(
            outlier.consecutive_5xx_errors,
            0,
            &field("consecutive5xxErrors"),
            notes,
        )
        .unwrap_or(default.consecutive_5xx),
        consecutive_local: number(
            outlier.consecutive_local_origin_failures,
            1,
            &field("consecutiveLocalOriginFailures"),
            notes,
        )
        .unwrap_or(default.consecutive_local),
        interval_ms: time(outlier.interval, &field("interval"), notes)
            .unwrap_or(default.interval_ms),
        base_ejection_ms: time(outlier.base_ejection_time, &field("baseEjectionTime"), notes)
            .unwrap_or(default.base_ejection_ms),
        max_ejection_percent: percent
            .map_or(default.max_ejection_percent, |percent| percent.min(100)),
    }
}

fn number(said: Option<i64>, least: u32, field: &str, notes: &mut Notes) -> Option<u32> {
    let said = said?;
    let number = u32::try_from(said).ok().filter(|number| *number >= least);
    if number.is_none() {
        notes.refuse(
            3085,
            field,
            format!("{said} is out of bounds; it counts as not said."),
            &format!("write a number from {least} on."),
        );
    }
    number
}

fn time(said: Option<String>, field: &str, notes: &mut Notes) -> Option<u64> {
    let said = said?;
    let time = milliseconds(&said);
    if time.is_none() {
        notes.refuse(
            3086,
            field,
            format!("{said:?} is no time of at least 1ms; it counts as not said."),
            "write a number with a unit, such as 500ms, 1.5s, 10m or 1h.",
        );
    }
    time
}

/// Go's durations: `1h30m`, `1.5s`, `500ms`. `None` for what is not one, is under 1 ms, or is over
/// a year.
pub(super) fn milliseconds(text: &str) -> Option<u64> {
    const YEAR: f64 = 365.0 * 86_400_000.0;
    let mut total = 0.0;
    let mut rest = text;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, after) = rest.split_at(end);
        let end = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
        let (unit, after) = after.split_at(end);
        let factor = match unit {
            "h" => 3_600_000.0,
            "m" => 60_000.0,
            "s" => 1_000.0,
            "ms" => 1.0,
            "us" | "µs" => 0.001,
            "ns" => 0.000_001,
            _ => return None,
        };
        total += number.parse::<f64>().ok()? * factor;
        rest = after;
    }
    (1.0..=YEAR).contains(&total).then_some(total.round() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parse::check::{object, show};
    use expect_test::{Expect, expect};

    #[track_caller]
    fn check(spec: &str, expected: Expect) {
        let rule = format!(
            "{{apiVersion: networking.istio.io/v1, kind: DestinationRule, metadata: {{namespace: shop, \
             name: hello}}, spec: {spec}}}"
        );
        expected.assert_eq(&show(&parse(&object(&rule))));
    }

    #[test]
    fn subsets_stand_over_the_rule() {
        check(
            "{host: hello, trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}, connectionPool: {tcp: \
             {maxConnections: 100, connectTimeout: 1.5s}, http: {http1MaxPendingRequests: 7, \
             maxRequestsPerConnection: 0, idleTimeout: 1m30s}}, outlierDetection: \
             {consecutive5xxErrors: 7, interval: 10s, maxEjectionPercent: 150}, tls: {mode: \
             ISTIO_MUTUAL}}, subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: \
             v2}, trafficPolicy: {loadBalancer: {simple: RANDOM}}}]}",
            expect![[r#"
                object: DestinationRule shop/hello
                host: hello.shop.svc.cluster.local
                policy:
                  load_balancing: ROUND_ROBIN
                  connect_timeout_ms: 1500
                  max_connections: 100
                  max_pending_requests: 7
                  max_requests_per_connection: 0
                  idle_timeout_ms: 90000
                  outlier:
                    consecutive_5xx: 7
                    consecutive_local: 3
                    interval_ms: 10000
                    base_ejection_ms: 5000
                    max_ejection_percent: 100
                subsets:
                  v1:
                    labels:
                      version: v1
                    policy:
                      load_balancing: ROUND_ROBIN
                      connect_timeout_ms: 1500
                      max_connections: 100
                      max_pending_requests: 7
                      max_requests_per_connection: 0
                      idle_timeout_ms: 90000
                      outlier:
                        consecutive_5xx: 7
                        consecutive_local: 3
                        interval_ms: 10000
                        base_ejection_ms: 5000
                        max_ejection_percent: 100
                  v2:
                    labels:
                      version: v2
                    policy:
                      load_balancing: RANDOM
                      connect_timeout_ms: 1500
                      max_connections: 100
                      max_pending_requests: 7
                      max_requests_per_connection: 0
                      idle_timeout_ms: 90000
                      outlier:
                        consecutive_5xx: 7
                        consecutive_local: 3
                        interval_ms: 10000
                        base_ejection_ms: 5000
                        max_ejection_percent: 100
            "#]],
        );
    }

    #[test]
    fn what_we_cannot_do_is_said_and_the_rest_used() {
        check(
            "{host: hello.shop.global, exportTo: ['.'], trafficPolicy: {portLevelSettings: [], \
             loadBalancer: {consistentHash: {useSourceIp: true}, simple: PASSTHROUGH}, connectionPool: \
             {tcp: {maxConnections: -1, connectTimeout: soon, tcpKeepalive: {}}, http: {idleTimeout: \
             5s}}, outlierDetection: {minHealthPercent: 50}, tls: {mode: SIMPLE, sni: a}}, subsets: \
             [{name: Big_One}, {name: v1}, {name: v1}]}",
            expect![[r#"
                object: DestinationRule shop/hello
                host: hello.shop.global
                policy:
                  load_balancing: null
                  connect_timeout_ms: null
                  max_connections: null
                  max_pending_requests: null
                  max_requests_per_connection: null
                  idle_timeout_ms: 5000
                  outlier:
                    consecutive_5xx: 5
                    consecutive_local: 3
                    interval_ms: 1000
                    base_ejection_ms: 5000
                    max_ejection_percent: 100
                subsets:
                  v1:
                    labels: {}
                    policy:
                      load_balancing: null
                      connect_timeout_ms: null
                      max_connections: null
                      max_pending_requests: null
                      max_requests_per_connection: null
                      idle_timeout_ms: 5000
                      outlier:
                        consecutive_5xx: 5
                        consecutive_local: 3
                        interval_ms: 1000
                        base_ejection_ms: 5000
                        max_ejection_percent: 100
                Warning ISM3002 DestinationRule shop/hello spec.exportTo: this field is not supported; the rest of the object is used without it. Fix: remove it, or do not rely on it.
                Warning ISM3002 DestinationRule shop/hello spec.trafficPolicy.portLevelSettings: this field is not supported; the rest of the object is used without it. Fix: remove it, or do not rely on it.
                Warning ISM3002 DestinationRule shop/hello spec.trafficPolicy.loadBalancer.consistentHash: this field is not supported; the rest of the object is used without it. Fix: remove it, or do not rely on it.
                Warning ISM3084 DestinationRule shop/hello spec.trafficPolicy.loadBalancer.simple: "PASSTHROUGH" is not supported; calls go to the copy with the least requests. Fix: write LEAST_REQUEST, ROUND_ROBIN or RANDOM.
                Warning ISM3002 DestinationRule shop/hello spec.trafficPolicy.connectionPool.tcp.tcpKeepalive: this field is not supported; the rest of the object is used without it. Fix: remove it, or do not rely on it.
                Refused ISM3085 DestinationRule shop/hello spec.trafficPolicy.connectionPool.tcp.maxConnections: -1 is out of bounds; it counts as not said. Fix: write a number from 1 on.
                Refused ISM3086 DestinationRule shop/hello spec.trafficPolicy.connectionPool.tcp.connectTimeout: "soon" is no time of at least 1ms; it counts as not said. Fix: write a number with a unit, such as 500ms, 1.5s, 10m or 1h.
                Warning ISM3002 DestinationRule shop/hello spec.trafficPolicy.outlierDetection.minHealthPercent: this field is not supported; the rest of the object is used without it. Fix: remove it, or do not rely on it.
                Warning ISM3002 DestinationRule shop/hello spec.trafficPolicy.tls.sni: this field is not supported; the rest of the object is used without it. Fix: remove it, or do not rely on it.
                Warning ISM3083 DestinationRule shop/hello spec.trafficPolicy.tls.mode: "SIMPLE" is not supported: meshed endpoints are called over mutual TLS, others in plaintext. Fix: write ISTIO_MUTUAL, or remove tls.
                Refused ISM3082 DestinationRule shop/hello spec.subsets[0].name: "Big_One" cannot stand in a host name; this subset is left out. Fix: use 1 to 61 of a-z, 0-9 and '-'.
                Refused ISM3082 DestinationRule shop/hello spec.subsets[2].name: "v1" is there twice; the first is used. Fix: give each subset a name of its own.
            "#]],
        );
    }

    #[test]
    fn hosts_that_are_none() {
        check(
            "{host: '*.local'}",
            expect![[r#"
            nothing
            Refused ISM3080 DestinationRule shop/hello spec.host: it names no host, and the rule is not used: a host is lower-case DNS labels joined by '.'; "*.local" is not: a label has another character. Fix: write one host in full; wildcards are not supported.
        "#]],
        );
        check(
            "{subsets: []}",
            expect![[r#"
            nothing
            Refused ISM3080 DestinationRule shop/hello spec.host: it names no host, and the rule is not used: a host is lower-case DNS labels joined by '.'; "" is not: its length is not 1 to 253. Fix: write one host in full; wildcards are not supported.
        "#]],
        );
        check(
            "{host: [a]}",
            expect![[r#"
            nothing
            Refused ISM3001 DestinationRule shop/hello spec: it cannot be read and is not used: invalid type: sequence, expected a string. Fix: write it as its CRD says; kubectl explain shows the fields.
        "#]],
        );
    }

    #[test]
    fn times() {
        let all = ["1h30m", "1.5s", "500ms", "1s", "0s", "", "10", "s", "1d", "1..s", "9999999h"];
        let read: Vec<_> = all.iter().map(|text| milliseconds(text)).collect();
        let wanted = [Some(5_400_000), Some(1_500), Some(500), Some(1_000)];
        assert_eq!(read[..4], wanted);
        assert!(read[4..].iter().all(Option::is_none), "{read:?}");
    }
}
