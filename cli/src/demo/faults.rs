//! Four faults under load and the way back, shown as one strip and judged by one table.

use super::contrast::Contrast;
use super::screen::{Paint, Screen};
use super::traffic::{RATE, Traffic, Way};
use anyhow::{Context as _, Result};
use fleet::load::micros_now;
use fleet::verdict::{Kind, figures};
use fleet::{Cluster, Fleet};
use serde::Serialize;
use std::time::{Duration, Instant};

/// Longest time without an answer that a fault may cost.
const GAP_MAX_MS: u64 = 1_000;
/// How long each fault lasts.
const FAULT: Duration = Duration::from_secs(8);
/// How long answers may take to come home.
const HOME_MAX: Duration = Duration::from_secs(35);

/// A fault as it was seen by the client.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    pub(super) name: &'static str,
    pub(super) requests: usize,
    pub(super) failed: usize,
    pub(super) cut: usize,
    pub(super) longest_gap_ms: u64,
    /// First words of the errors, for people.
    #[serde(skip)]
    errors: Vec<String>,
}

impl Row {
    pub(super) fn kept(&self) -> bool {
        self.requests > 0 && self.failed == 0 && self.longest_gap_ms <= GAP_MAX_MS
    }
}

/// What happens, one after the other; each begins when the one before is mended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Event {
    Copy,
    Gateway,
    Control,
    West,
    Back,
}

impl Event {
    const ALL: [Self; 5] = [Self::Copy, Self::Gateway, Self::Control, Self::West, Self::Back];

    fn name(self) -> &'static str {
        match self {
            Self::Copy => "copy-killed",
            Self::Gateway => "gateway-stopped",
            Self::Control => "control-killed",
            Self::West => "west-gone",
            Self::Back => "west-back",
        }
    }

    fn sentence(self) -> &'static str {
        match self {
            Self::Copy => "a copy of hello in west and its sidecar: SIGKILL",
            Self::Gateway => "one of west's two gateways: SIGSTOP",
            Self::Control => "west's API server and control plane: SIGKILL, nothing moves",
            Self::West => "all of west: SIGKILL, north answers",
            Self::Back => "west is back: answers come home",
        }
    }

    fn hurt(self, west: &Cluster) -> Result<()> {
        match self {
            Self::Copy => {
                let pod = west.pod("hello-1")?;
                for process in [pod.app.get(), pod.proxy.get()] {
                    process.context("hello-1 runs")?.kill();
                }
            }
            Self::Gateway => west.pod("gateway-1")?.proxy.get().context("gateway-1 runs")?.stop(),
            Self::Control => {
                west.api.server.kill();
                west.control_plane.get().context("west's control plane runs")?.kill();
            }
            Self::West => west.kill(),
            Self::Back => {}
        }
        Ok(())
    }
}

/// What the client saw, and what a plain Envoy's client did.
pub(super) struct Seen {
    pub(super) rows: Vec<Row>,
    /// Without `--contrast` none.
    pub(super) contrast: Vec<Row>,
}

/// All of it: the strip as it goes, then the rows. With a contrast its strip stands below each part.
pub(super) async fn show(
    fleet: &Fleet,
    mut contrast: Option<Contrast>,
    screen: &mut Screen,
) -> Result<Seen> {
    let west = fleet.cluster("west");
    let mut traffic = Traffic::start(fleet, "load", &Way::Mesh)?;
    screen.event("before: west is nearer than north and answers");
    watch(&mut traffic, screen, Duration::from_secs(5)).await?;
    beside(contrast.as_mut(), screen)?;
    // From a request that is under way when a fault begins on, everything is that fault's.
    let mut begins = vec![];
    for event in Event::ALL {
        begins.push(micros_now().saturating_sub(50_000));
        screen.event(event.sentence());
        event.hurt(west)?;
        match event {
            Event::Copy | Event::Gateway | Event::Control => {
                watch(&mut traffic, screen, FAULT).await?;
                mend(west, &mut traffic, screen).await?;
            }
            // It stays away until the next event.
            Event::West => watch(&mut traffic, screen, FAULT + Duration::from_secs(2)).await?,
            Event::Back => back(west, &mut traffic, screen).await?,
        }
        beside(contrast.as_mut(), screen)?;
    }
    traffic.end().await?;
    let contrast = match contrast {
        None => vec![],
        Some(mut contrast) => {
            contrast.traffic.end().await?;
            rows(&contrast.traffic, &begins)
        }
    };
    let mut rows = rows(&traffic, &begins);
    let before = row(&traffic, "before", 0, begins[0]);
    if !before.kept() {
        // Nothing was hurt yet: whatever failed makes the rest worthless.
        rows.insert(0, before);
    }
    Ok(Seen { rows, contrast })
}

/// One row per event; each lasts until the next one begins.
fn rows(traffic: &Traffic, begins: &[u64]) -> Vec<Row> {
    let ends = begins.iter().skip(1).copied().chain([u64::MAX]);
    let events = Event::ALL.into_iter().zip(begins.iter().copied().zip(ends));
    events.map(|(event, (from, until))| row(traffic, event.name(), from, until)).collect()
}

/// The contrast's part of the strip, below ours.
fn beside(contrast: Option<&mut Contrast>, screen: &mut Screen) -> Result<()> {
    let Some(contrast) = contrast else { return Ok(()) };
    let letters = contrast.traffic.look()?;
    screen.end_strip();
    screen.aside("plain Envoy:");
    for letter in letters {
        screen.letter(letter);
    }
    screen.end_strip();
    Ok(())
}

fn row(traffic: &Traffic, name: &'static str, from: u64, until: u64) -> Row {
    let seen = figures(&traffic.records, Kind::Get, from, until);
    Row {
        name,
        requests: seen.requests,
        failed: seen.failed,
        cut: seen.cut,
        longest_gap_ms: seen.longest_gap_ms,
        errors: seen.errors.keys().take(3).cloned().collect(),
    }
}

async fn watch(traffic: &mut Traffic, screen: &mut Screen, time: Duration) -> Result<()> {
    let end = Instant::now() + time;
    while Instant::now() < end {
        step(traffic, screen).await?;
    }
    Ok(())
}

async fn step(traffic: &mut Traffic, screen: &mut Screen) -> Result<()> {
    tokio::time::sleep(Duration::from_millis(50)).await;
    for letter in traffic.look()? {
        screen.letter(letter);
    }
    Ok(())
}

/// Restarts and resumes what was hurt, while the strip goes on.
async fn mend(west: &Cluster, traffic: &mut Traffic, screen: &mut Screen) -> Result<()> {
    let mending = west.mend();
    tokio::pin!(mending);
    loop {
        tokio::select! {
            done = &mut mending => return done.context("mending west"),
            going = step(traffic, screen) => going?,
        }
    }
}

/// West again: until most answers are its own, and stay so.
async fn back(west: &Cluster, traffic: &mut Traffic, screen: &mut Screen) -> Result<()> {
    let begun = Instant::now();
    mend(west, traffic, screen).await?;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a small constant")]
    let second = RATE as usize;
    while begun.elapsed() < HOME_MAX && traffic.share("west", second) < 95 {
        step(traffic, screen).await?;
    }
    let home = begun.elapsed();
    watch(traffic, screen, Duration::from_secs(2)).await?;
    let share = traffic.share("west", second);
    let text = format!(
        "{share} % of answers are west's again {:.0} s after its start",
        home.as_secs_f64()
    );
    screen.fact("home", &text, if share >= 95 { Paint::Good } else { Paint::Bad });
    Ok(())
}

/// The table, and why a row is red.
pub(super) fn table(rows: &[Row], screen: &mut Screen) {
    let head = ["fault", "requests", "failed", "cut", "longest gap", ""];
    let mut cells = vec![head.map(str::to_owned).to_vec()];
    for row in rows {
        cells.push(vec![
            row.name.to_owned(),
            row.requests.to_string(),
            row.failed.to_string(),
            row.cut.to_string(),
            format!("{} ms", row.longest_gap_ms),
            if row.kept() { "kept" } else { "BROKEN" }.to_owned(),
        ]);
    }
    screen.table(&cells);
    for row in rows.iter().filter(|row| !row.kept()) {
        for error in &row.errors {
            screen.fact(row.name, error, Paint::Bad);
        }
    }
}
