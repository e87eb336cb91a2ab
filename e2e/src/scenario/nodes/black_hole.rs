//! A node in a black hole, under calls from another cluster: they are answered elsewhere at once, kubectl
//! tells so, and they come home.

use super::{HOST, Stage, until};
use anyhow::{Context, Result, ensure};
use fleet::load::micros_now;
use fleet::nodes::Nodes;
use fleet::verdict::{Kind, figures, slowest_new_ms};
use std::collections::BTreeMap;
use std::time::Duration;

/// Until the fault, from the load's start on.
const BEFORE: Duration = Duration::from_secs(6);
/// Longer than its cluster takes to call a node unready: 50 s, and a look every 5 s.
const HELD: Duration = Duration::from_secs(75);
/// A kubelet posts its status every 10 s.
const HOME: Duration = Duration::from_secs(60);
/// GETs a second.
const GETS: u32 = 100;
/// A round of knocking every 10 s, its patience, and what reads it.
const NAMED: Duration = Duration::from_secs(45);

pub(super) async fn black_hole(stage: &Stage<'_>, nodes: &Nodes) -> Result<()> {
    stage.in_use([1, 2, 1]).await?;
    until(HOME, "an answer by west", async || by_west(stage).await).await?;
    until(HOME, "a quiet link", async || {
        let row = row(stage).await?;
        ensure!(row.get("GATEWAYS").is_some_and(|it| it == "True"), "{row:?}");
        Ok(())
    })
    .await?;
    let before = events(stage).await?;
    let machine = nodes.cluster("west").machines.first().context("west has no node")?;
    let hurt = async {
        tokio::time::sleep(BEFORE).await;
        let fault_us = micros_now();
        machine.black_hole()?;
        let held = tokio::time::sleep(HELD);
        let told = until(NAMED, "kubectl showing it", async || {
            let row = row(stage).await?;
            ensure!(row.get("GATEWAYS").is_some_and(|it| it == "False"), "{row:?}");
            Ok((row, micros_now() - fault_us))
        })
        .await;
        held.await;
        machine.heal()?;
        let healed_us = micros_now();
        let home = until(HOME, "an answer by west", async || by_west(stage).await).await;
        anyhow::Ok((fault_us, told, healed_us, home.map(|()| micros_now() - healed_us)))
    };
    let seconds = (BEFORE + HELD + HOME).as_secs();
    let (records, hurt) = tokio::join!(stage.load(HOST, GETS, seconds), hurt);
    let (fault_us, told, healed_us, home) = hurt?;
    let records = records?;

    let under_way: Vec<_> = records.iter().filter(|it| it.start_us < fault_us).cloned().collect();
    let lost = figures(&under_way, Kind::Get, 0, fault_us);
    let slowest = slowest_new_ms(&records, Kind::Get, fault_us, healed_us);
    let during = figures(&records, Kind::Get, fault_us, healed_us);
    stage.judge(
        "west's node in a black hole: every new GET from east is answered within 1 s, none under way is lost",
        &format!("slowest {} ms; before: {lost}; then: {during}", slowest.unwrap_or(u64::MAX)),
        slowest.is_some_and(|ms| ms <= 1_000) && lost.requests > 0 && lost.failed == 0,
    );
    stage.judge(
        "kubectl get clusterlinks shows it in a column of its own",
        &told.as_ref().map_or_else(
            |error| format!("{error:#}"),
            |(row, us)| format!("{row:?} after {:.0} s", *us as f64 / 1e6),
        ),
        told.is_ok(),
    );
    let after = figures(&records, Kind::Get, healed_us, u64::MAX);
    stage.judge(
        "out of it again: answers come home, and none fails",
        &home.as_ref().map_or_else(
            |error| format!("{error:#}"),
            |us| format!("west answers after {:.1} s; {after}", *us as f64 / 1e6),
        ),
        home.is_ok() && after.requests > 0 && after.failed + after.cut == 0,
    );
    let said = until(HOME, "the event of its end", async || {
        let new = since(&before, events(stage).await?);
        ensure!(new.contains_key("GatewaysAnswer"), "events since: {new:?}");
        Ok(new)
    })
    .await;
    stage.judge(
        "kubectl get events: one as its gateways fell silent, one as they answered, and no other",
        &said.as_ref().map_or_else(|error| format!("{error:#}"), |said| format!("{said:?}")),
        said.is_ok_and(|said| said.into_values().collect::<Vec<_>>() == [1, 1]),
    );
    stage.shop_gone().await
}

async fn by_west(stage: &Stage<'_>) -> Result<()> {
    let said = stage.curl(&format!("http://{HOST}/")).await?;
    ensure!(said.contains(r#""cluster":"west""#), "{said}");
    Ok(())
}

/// East's link to west as kubectl prints it, by the names of its columns.
async fn row(stage: &Stage<'_>) -> Result<BTreeMap<String, String>> {
    let get = ["-n", "isthmus-system", "get", "clusterlinks.isthmus.dev", "west"];
    let said = stage.kubectl("east", &get).await?;
    let mut lines = said.lines().map(|line| line.split_whitespace().map(str::to_owned));
    let (names, values) = lines.next().zip(lines.next()).context("kubectl prints no table")?;
    Ok(names.zip(values).collect())
}

/// How often each event of that link was said, by its reason.
async fn events(stage: &Stage<'_>) -> Result<BTreeMap<String, u64>> {
    let of = "involvedObject.kind=ClusterLink,involvedObject.name=west";
    let get = ["-n", "isthmus-system", "get", "events", "--field-selector", of, "-o", "json"];
    let said: serde_json::Value = serde_json::from_str(&stage.kubectl("east", &get).await?)?;
    let mut all = BTreeMap::new();
    for event in said["items"].as_array().context("kubectl lists no events")? {
        let count = event["series"]["count"].as_u64().or_else(|| event["count"].as_u64());
        let reason = event["reason"].as_str().context("an event has no reason")?;
        *all.entry(reason.to_owned()).or_default() += count.unwrap_or(1).max(1);
    }
    Ok(all)
}

/// What was said since.
fn since(before: &BTreeMap<String, u64>, mut now: BTreeMap<String, u64>) -> BTreeMap<String, u64> {
    now.retain(|reason, count| {
        *count -= before.get(reason).copied().unwrap_or_default();
        *count > 0
    });
    now
}
