//! Scenarios on clusters that kind makes in Docker.

use crate::nodes::{plain, play_all};
use crate::plays::Plays;
use crate::{Run, conclude, interrupted, runtime};
use anyhow::{Result, anyhow};
use e2e::scenario::Driver;
use e2e::scenario::nodes::{On, choose};
use fleet::kind::{Fleet, Home, Limits, Plan, Tools};
use fleet::nodes::SITES;
use fleet::parts::PodParts;
use std::time::Instant;

/// First word of the clusters' names.
const KIND: &str = "isthk";

/// The clusters of every fleet, and kind's configuration of each.
const PLANS: [Plan; 3] = {
    let [east, west, north] = SITES;
    [
        Plan { site: east, config: include_str!("../kind/east.yaml") },
        Plan { site: west, config: include_str!("../kind/west.yaml") },
        Plan { site: north, config: include_str!("../kind/north.yaml") },
    ]
};

/// Plays scenarios on clusters of its own and judges them.
pub(crate) fn play(options: Run) -> Result<()> {
    plain(&options)?;
    let chosen = choose(&options.scenarios, Driver::Kind)?;
    let path = std::env::var_os("PATH").unwrap_or_default();
    let tools = Tools::find(&path, Limits::default())?;
    let runtime = runtime()?;
    runtime.block_on(tools.answering())?;
    let parts = PodParts::ready(options.isthmus)?;
    let prefix = options.prefix.unwrap_or_else(|| KIND.into());
    let home = Home::claim(&prefix, &parts.own)?;
    let fleet = Fleet { tools: &tools, home: &home, plans: &PLANS, keep: options.keep };
    let started = Instant::now();
    let tell = |what: &str| println!("{:6.1} s  {what}", started.elapsed().as_secs_f64());
    let end = async {
        match interrupted().await {
            Ok(()) => anyhow!("interrupted"),
            Err(error) => error,
        }
    };
    let plays = Plays { logs: None, again: options.again };
    let work = async |pods: &_| play_all(On::Pods(pods), &chosen, plays).await;
    let verdicts = runtime.block_on(fleet::kind::on_clusters(&fleet, &parts, end, tell, work));
    if options.keep {
        println!(
            "\nkubeconfig  {} (contexts east, west, north)\n\
             take down   {}\n\
             Services of type LoadBalancer keep their addresses; new ones get none.",
            fleet.operator().display(),
            fleet.deletion(),
        );
    }
    let verdicts = verdicts?;
    if let Some(path) = &options.json {
        std::fs::write(path, serde_json::to_string_pretty(&verdicts)?)?;
    }
    conclude(&verdicts, None)
}

/// Deletes what a run left that was ended without a word.
pub(crate) fn clean(prefix: &str) -> Result<()> {
    runtime()?.block_on(fleet::kind::clean(prefix, &PLANS))
}
