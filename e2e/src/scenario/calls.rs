//! The first promise: a name of another cluster is resolved and called.

use super::{HOST, Stage, call, call_until, resolve};
use anyhow::Result;
use fleet::trust_domain;
use std::net::Ipv4Addr;
use std::time::Duration;

pub(super) async fn first_call(stage: &Stage<'_>) -> Result<()> {
    let (fleet, client) = (stage.fleet, stage.client()?);
    let limit = Duration::from_secs(30);
    call_until(fleet, client, &format!("http://{HOST}/"), limit, |_| true).await?;
    let resolved = resolve(fleet, client, HOST).await?;
    let vip = |a: &Ipv4Addr| a.octets()[..2] == [240, 240];
    stage.judge(
        &format!("{HOST} resolves in east to a virtual address through captured DNS"),
        &format!("{resolved:?}"),
        !resolved.is_empty() && resolved.iter().all(vip),
        &[],
    );
    let url = format!("http://{HOST}/");
    let (took, answer) = call_until(fleet, client, &url, Duration::from_secs(30), |_| true).await?;
    stage.judge(
        "a call from east is answered in west, the nearer of two, end to end",
        &format!("{}/{} after {:.2} s", answer.cluster, answer.pod, took.as_secs_f64()),
        answer.cluster == "west",
        &[],
    );
    let identity = format!("spiffe://{}/ns/shop/sa/client", trust_domain("east"));
    let xfcc = answer.headers.get("x-forwarded-client-cert").cloned().unwrap_or_default();
    stage.judge(
        "the server is told the caller's SPIFFE identity, proven by mutual TLS",
        &format!("x-forwarded-client-cert: {xfcc}"),
        xfcc.contains(&identity),
        &[],
    );
    for (host, cluster) in [
        ("hello.shop.west.global", "west"),
        ("hello.shop.north.global", "north"),
        ("hello.shop.svc.clusterset.local", "west"),
    ] {
        let answer = call(fleet, client, &format!("http://{host}/"), 5.0).await;
        let figure = match &answer {
            Ok(answer) => format!("{}/{}", answer.cluster, answer.pod),
            Err(error) => format!("{error:#}"),
        };
        let kept = answer.is_ok_and(|answer| answer.cluster == cluster);
        stage.judge(&format!("{host} is answered by {cluster}"), &figure, kept, &[]);
    }
    Ok(())
}
