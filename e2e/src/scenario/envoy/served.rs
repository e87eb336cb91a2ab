//! Envoy in front of a workload: how it is called, near and from another cluster, and policies on who
//! may.

use super::super::{HOST, Stage, call, call_until};
use super::raw::strangers;
use anyhow::{Result, bail};
use fleet::launcher::{Pod, Service};
use fleet::objects::{apply, delete};
use fleet::trust_domain;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// The application behind Envoy, in east only.
const NAME: &str = "enveloped";
const URL: &str = "http://enveloped.shop.global/";
/// The same by a port that says it speaks HTTP/2, so that the caller's sidecar does.
const HTTP2_URL: &str = "http://enveloped.shop.global:82/";
const LIMIT: Duration = Duration::from_secs(30);
/// Until a policy holds, counted from its writing. Envoy gives up on a cluster that waits for its
/// endpoints after 15 s, and takes no listener meanwhile.
const HOLDS_MAX: Duration = Duration::from_secs(5);
/// Calls of one who is denied, after the first denial.
const DENIED: usize = 50;

fn export() -> Value {
    json!({
        "apiVersion": "multicluster.x-k8s.io/v1beta1", "kind": "ServiceExport",
        "metadata": {"name": NAME, "namespace": "shop"},
    })
}

fn policy(name: &str, action: &str, principal: &str) -> Value {
    json!({
        "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
        "metadata": {"name": name, "namespace": "shop"},
        "spec": {
            "action": action, "selector": {"matchLabels": {"app": fleet::ENVOY_ACCOUNT}},
            "rules": [{"from": [{"source": {"principals": [principal]}}]}],
        },
    })
}

/// Changes a cluster of Envoy's, with each `timeout_ms` anew.
fn rule(timeout_ms: usize) -> Value {
    json!({
        "apiVersion": "networking.istio.io/v1", "kind": "DestinationRule",
        "metadata": {"name": "warms", "namespace": "shop"},
        "spec": {
            "host": HOST,
            "trafficPolicy": {"connectionPool": {"tcp": {"connectTimeout": format!("{timeout_ms}ms")}}},
        },
    })
}

/// A pod that calls, and as whom.
struct Caller<'a> {
    pod: &'a Pod,
    principal: String,
    from: &'static str,
}

pub(super) async fn served(stage: &Stage<'_>, envoy: &Pod) -> Result<()> {
    let (east, west) = (stage.cluster("east"), stage.cluster("west"));
    let service = Service {
        namespace: "shop".into(),
        name: NAME.into(),
        selector: BTreeMap::from([("app".into(), fleet::ENVOY_ACCOUNT.into())]),
        ports: vec![("http".into(), 80, 8080), ("http2".into(), 82, 8080)],
    };
    east.launcher.serve(service).await?;
    apply(east.client(), &export()).await?;
    let caller = |pod, cluster: &str, account: &str, from| Caller {
        pod,
        principal: format!("{}/ns/shop/sa/{account}", trust_domain(cluster)),
        from,
    };
    let near = caller(stage.client()?, "east", "client", "its own cluster");
    let far = caller(west.pod("hello-1")?, "west", "hello", "another cluster, through the gateway");
    let judged = async {
        called(stage, &near, &far).await?;
        strangers(stage, envoy).await?;
        policies(stage, &near, &far).await
    };
    let judged = judged.await;
    for name in ["denied", "allowed"] {
        delete(east.client(), &policy(name, "DENY", "")).await?;
    }
    delete(east.client(), &rule(0)).await?;
    delete(east.client(), &export()).await?;
    judged
}

async fn called(stage: &Stage<'_>, near: &Caller<'_>, far: &Caller<'_>) -> Result<()> {
    for caller in [near, far] {
        let answered = answered(stage, caller).await?;
        let promise = format!("Envoy as a server lets a caller of {} in", caller.from);
        stage.judge(&promise, &answered, true, &[]);
    }
    let (_, answer) =
        call_until(stage.fleet, far.pod, HTTP2_URL, LIMIT, |answer| answer.cluster == "east")
            .await?;
    let xfcc = answer.headers.get("x-forwarded-client-cert").cloned().unwrap_or_default();
    stage.judge(
        "Envoy as a server is called in HTTP/2 over mTLS, and tells its application who calls",
        &format!("{}/{}, x-forwarded-client-cert: {xfcc}", answer.cluster, answer.pod),
        xfcc.contains(&format!("spiffe://{}", far.principal)),
        &[],
    );
    Ok(())
}

async fn policies(stage: &Stage<'_>, near: &Caller<'_>, far: &Caller<'_>) -> Result<()> {
    let east = stage.cluster("east");
    let mut slowest = Duration::ZERO;
    for (turn, (denied, other)) in [(near, far), (far, near)].into_iter().enumerate() {
        for (name, action, principal) in
            [("denied", "DENY", &denied.principal), ("allowed", "ALLOW", &other.principal)]
        {
            let object = policy(name, action, principal);
            apply(east.client(), &rule(9_000 + 2 * turn + usize::from(name == "denied"))).await?;
            apply(east.client(), &object).await?;
            let (took, through, said) = refused(stage, denied).await?;
            slowest = slowest.max(took);
            let passed = answered(stage, other).await?;
            stage.judge(
                &format!(
                    "{action} of {principal} in front of Envoy: of {DENIED} calls from {} 0 pass, \
                     and the other caller does",
                    denied.from
                ),
                &format!("{through} passed, the others: {said}; the other caller: {passed}"),
                through == 0 && said.contains("RBAC: access denied"),
                &[],
            );
            delete(east.client(), &object).await?;
            answered(stage, denied).await?;
        }
    }
    stage.judge(
        &format!("each of those policies holds within {HOLDS_MAX:?}, though a cluster changes too"),
        &format!("the slowest after {:.2} s", slowest.as_secs_f64()),
        slowest < HOLDS_MAX,
        &[],
    );
    Ok(())
}

/// Until the caller is answered; by whom, and after how long.
async fn answered(stage: &Stage<'_>, caller: &Caller<'_>) -> Result<String> {
    let (took, answer) =
        call_until(stage.fleet, caller.pod, URL, LIMIT, |answer| answer.cluster == "east").await?;
    Ok(format!("{}/{} after {:.2} s", answer.cluster, answer.pod, took.as_secs_f64()))
}

/// Until the caller is denied; after how long, how many of its next calls pass all the same, and
/// what the last of the others was told.
async fn refused(stage: &Stage<'_>, caller: &Caller<'_>) -> Result<(Duration, usize, String)> {
    let start = Instant::now();
    while call(stage.fleet, caller.pod, URL, 2.0).await.is_ok() {
        if start.elapsed() > LIMIT {
            bail!("a caller of {} still passes after {LIMIT:?}", caller.from);
        }
    }
    let took = start.elapsed();
    let (mut through, mut said) = (0, String::new());
    for _ in 0..DENIED {
        match call(stage.fleet, caller.pod, URL, 2.0).await {
            Ok(_) => through += 1,
            Err(error) => said = format!("{error:#}"),
        }
    }
    Ok((took, through, said))
}
