//! What a load leaves of the machine: a promise about a mesh is none about a machine that is full.

use super::{HOST, Load, Rates, Stage, THOUSAND};
use crate::machine::Ticks;
use anyhow::Result;
use std::time::Duration;

/// Least share of all processors that is idle under the load alone. With less, an open-loop load on a
/// machine that holds three clusters, both ends and the load itself only measures the queue that a
/// fault's few handshakes leave behind.
pub(super) const IN_TIME: f64 = 0.2;

/// The same where nothing is promised but that all is answered: a queue may form, and must go.
pub(super) const AT_ALL: f64 = 0.05;

/// Requests a second that are played on any machine.
const LEAST_RATE: f64 = 250.0;

/// Until the load's programs have started.
const STARTING: Duration = Duration::from_secs(1);

/// Starts the 1,000 a second of the promises, as [`carried_of`].
pub(super) async fn carried(stage: &Stage<'_>, before: Duration) -> Result<(Load, Rates)> {
    carried_of(stage, THOUSAND, before, IN_TIME).await
}

/// Starts a load and lets it run for `before`; where it leaves less than `least_idle` of all processors,
/// it is halved, and halved again. What was played is part of the verdict.
pub(super) async fn carried_of(
    stage: &Stage<'_>,
    mut rates: Rates,
    before: Duration,
    least_idle: f64,
) -> Result<(Load, Rates)> {
    loop {
        let load = Load::start(stage.fleet, stage.client()?, HOST, rates)?;
        tokio::time::sleep(STARTING).await;
        let ticks = Ticks::now()?;
        tokio::time::sleep(before).await;
        let idle = ticks.idle_since()?;
        let (rate, percent) = (rates.sum(), (idle * 100.0).round());
        stage.note(&format!("{rate}/s leave {percent} % of the machine idle"));
        if idle >= least_idle || rate <= LEAST_RATE {
            return Ok((load, rates));
        }
        load.end().await?;
        rates = rates.halved();
        stage.note(&format!("THIS MACHINE IS FULL AT {rate}/s: played at {}/s", rates.sum()));
    }
}
