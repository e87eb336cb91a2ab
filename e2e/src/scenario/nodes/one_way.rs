//! A gateway's port that is closed for one cluster's nodes alone: seen from inside that cluster, and from
//! nowhere else.

use super::pod_mistakes::{check, find, sentence, silent, status};
use super::{HOST, Stage, until};
use anyhow::Context;
use fleet::nodes::Nodes;
use fleet::verdict::{Kind, figures};
use std::net::SocketAddr;
use std::time::Duration;

/// A round of knocking every 10 s, and what reads it.
const NAMED: Duration = Duration::from_secs(60);

pub(super) async fn one_way(stage: &Stage<'_>, nodes: &Nodes) -> anyhow::Result<()> {
    stage.in_use([1, 1, 1]).await?;
    let path = "jsonpath={.status.loadBalancer.ingress[0].ip}";
    let get = ["-n", "isthmus-system", "get", "service", "isthmus-eastwestgateway", "-o", path];
    let shut = format!("{}:15443", stage.kubectl("west", &get).await?);
    let to: SocketAddr = shut.parse().with_context(|| format!("west's gateway is at {shut:?}"))?;
    let machine = nodes.cluster("east").machines.first().context("east has no node")?;
    machine.shut_to(to)?;
    let words = ["east->west", "GatewaysReachable=False", "ISM2407", &shut, "Fix: open the way"];
    let said = until(NAMED, "status naming the way", async || {
        let said = status(stage).await?;
        let line = said.lines().find(|line| words.iter().all(|word| line.contains(word)));
        line.map(str::to_owned).with_context(|| said.clone())
    })
    .await;
    stage.judge(
        "the port of west's gateway is closed for east alone: status names the way by ISM2407",
        &said.as_ref().map_or_else(|error| format!("{error:#}"), Clone::clone),
        said.is_ok(),
    );
    let wrong = check(stage).await?.1;
    let link = find(&wrong, &("", "ISM2618", &["east->west", "ISM2407"]));
    let others: Vec<String> =
        wrong.iter().filter(|line| line["code"] != "ISM2618").map(sentence).collect();
    stage.judge(
        "check, which reaches that gateway, names the link and nothing else",
        &format!("{}; others {others:?}", link.as_deref().unwrap_or("no line of the link")),
        link.is_some() && others.is_empty(),
    );
    let records = stage.load(HOST, 100, 10).await?;
    let all = figures(&records, Kind::Get, 0, u64::MAX);
    let elsewhere = records
        .iter()
        .filter(|it| it.by.as_deref().is_some_and(|by| by.starts_with("west/")))
        .count();
    stage.judge(
        "meanwhile 100 GETs a second from east are answered without west, and none fails",
        &format!("{elsewhere} by west; {all}"),
        all.requests > 0 && all.failed + all.cut + elsewhere == 0,
    );
    machine.heal()?;
    silent(stage, "silence once the way is open", &["ISM2618"]).await?;
    stage.shop_gone().await
}
