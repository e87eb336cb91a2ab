//! `isthmus check` on a fleet that is well, and on one with a fault: the first red line names it.

mod faults;

use super::cli::isthmus;
use super::links::{linked, only_linked};
use super::{Stage, cli::Said};
use anyhow::{Result, bail};
use faults::{FAULTS, Fault};
use fleet::spot::Door;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// Checks of a fleet without a fault.
const HEALTHY: usize = 100;
/// A fault shows in the check within this: a lease ends, a condition turns.
const SHOWS: Duration = Duration::from_secs(45);
/// And the fleet is well again within this.
const WELL: Duration = Duration::from_secs(90);
/// Limit of one check of three clusters.
const CHECK_MAX: Duration = Duration::from_secs(5);

/// A port of this machine that leads to a page inside a spot, as `kubectl port-forward` does.
struct Forward {
    address: SocketAddr,
    /// Ends with it.
    _task: JoinSet<()>,
}

async fn forward(door: Door, page: SocketAddr) -> Result<Forward> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let mut task = JoinSet::new();
    task.spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            let door = door.clone();
            tokio::spawn(async move {
                let limit = Duration::from_secs(2);
                let far = tokio::task::spawn_blocking(move || door.connect(page, limit)).await;
                // Whoever cannot be reached is shown by a connection that closes.
                let Ok(Ok(far)) = far else { return };
                if far.set_nonblocking(true).is_ok()
                    && let Ok(mut far) = TcpStream::from_std(far)
                {
                    let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
                }
            });
        }
    });
    Ok(Forward { address, _task: task })
}

/// A way to call check on all clusters, with their pages.
struct Checker<'a> {
    stage: &'a Stage<'a>,
    args: Vec<String>,
    _forwards: Vec<Forward>,
}

impl<'a> Checker<'a> {
    async fn new(stage: &'a Stage<'a>) -> Result<Self> {
        let (mut args, mut forwards) = (vec!["check".to_owned()], vec![]);
        for cluster in stage.fleet.clusters.values() {
            args.extend(["--context".into(), cluster.name().into()]);
            for (flag, port) in [("--control-plane", 15014), ("--controller", 15024)] {
                let way = forward(cluster.spot.door(), cluster.pages(port)).await?;
                args.extend([flag.into(), format!("{}={}", cluster.name(), way.address)]);
                forwards.push(way);
            }
        }
        Ok(Self { stage, args, _forwards: forwards })
    }

    /// One check, and how long it took.
    async fn check(&self) -> Result<(Said, Duration)> {
        let args: Vec<&str> = self.args.iter().map(String::as_str).collect();
        let begun = Instant::now();
        let said = isthmus(self.stage, None, &args).await?;
        Ok((said, begun.elapsed()))
    }

    /// Waits until nothing is broken.
    async fn well(&self) -> Result<()> {
        let begun = Instant::now();
        loop {
            let (said, _) = self.check().await?;
            if said.code == Some(0) {
                return Ok(());
            }
            if begun.elapsed() > WELL {
                bail!("it is not well after {WELL:?}: {}", first_red(&said.out));
            }
        }
    }
}

/// The first red line, whole: a line goes on where its text is indented by four.
fn first_red(out: &str) -> String {
    let mut lines = out.lines().skip_while(|line| !line.contains('×'));
    let first = lines.next().unwrap_or_default().trim_start().to_owned();
    let more = lines.take_while(|line| {
        line.starts_with("    ") && !line.starts_with("     ") && !line.contains(['×', '‼', '√'])
    });
    more.fold(first, |whole, line| format!("{whole} {}", line.trim_start()))
}

pub(super) async fn check(stage: &Stage<'_>) -> Result<()> {
    only_linked(stage.fleet).await?;
    linked(stage.fleet).await?;
    let checker = Checker::new(stage).await?;
    checker.well().await?;
    let mut slowest = healthy(stage, &checker).await?;
    pre(stage).await?;
    let mut right = 0;
    for fault in FAULTS {
        let (named, took) = play(stage, &checker, fault).await?;
        right += usize::from(named);
        slowest = slowest.max(took);
    }
    let count = FAULTS.len();
    stage.judge(
        "9 of 10 faults are named right in the first red line",
        &format!("named right {right} of {count}"),
        right * 10 >= count * 9 && count >= 20,
        &[],
    );
    stage.judge(
        "a check of three clusters takes 5 s at most, also while one of them hangs",
        &format!("slowest of all {:.2} s", slowest.as_secs_f64()),
        slowest <= CHECK_MAX,
        &[],
    );
    Ok(())
}

/// Nothing is wrong, and nothing is said to be.
async fn healthy(stage: &Stage<'_>, checker: &Checker<'_>) -> Result<Duration> {
    let (mut alarms, mut slowest, mut total) = (vec![], Duration::ZERO, Duration::ZERO);
    for _ in 0..HEALTHY {
        let (said, took) = checker.check().await?;
        (slowest, total) = (slowest.max(took), total + took);
        if said.code != Some(0) || said.out.contains(['×', '‼']) {
            alarms.push(said.figure());
        }
    }
    let figure = format!(
        "false alarms {} of {HEALTHY}; mean {:.2} s, slowest {:.2} s; {:?}",
        alarms.len(),
        total.as_secs_f64() / HEALTHY as f64,
        slowest.as_secs_f64(),
        alarms.first()
    );
    stage.judge(
        "100 checks of a fleet that is well: no line is red",
        &figure,
        alarms.is_empty(),
        &[],
    );
    Ok(slowest)
}

/// What is installed passes before it is linked, too.
async fn pre(stage: &Stage<'_>) -> Result<()> {
    let said = isthmus(stage, None, &["check", "--pre", "--context", "west"]).await?;
    let words = ["API servers", "signing keys", "intermediate of west.mesh"];
    let kept = said.code == Some(0) && said.says(&words) && !said.out.contains("links\n");
    stage.judge("check --pre of a cluster that is installed is green", &said.figure(), kept, &[]);
    let wide = said.out.lines().map(|line| line.chars().count()).max().unwrap_or_default();
    stage.judge("and fits 80 columns", &format!("{wide} columns"), wide <= 80, &[]);
    let json = isthmus(stage, None, &["check", "--context", "west", "-o", "json"]).await?;
    let value: serde_json::Value = serde_json::from_str(&json.out).unwrap_or_default();
    let kept = json.code == Some(0) && value["ok"] == true;
    stage.judge("check -o json says the same", &json.figure(), kept, &[]);
    Ok(())
}

/// Makes one fault, reads the first check that is red, and mends it.
async fn play(stage: &Stage<'_>, checker: &Checker<'_>, fault: &Fault) -> Result<(bool, Duration)> {
    let undo = fault.make(stage).await?;
    let begun = Instant::now();
    let mut slowest = Duration::ZERO;
    let red = loop {
        let (said, took) = checker.check().await?;
        slowest = slowest.max(took);
        if said.code != Some(0) {
            break first_red(&said.out);
        }
        if begun.elapsed() > SHOWS {
            break String::new();
        }
    };
    let named = fault.words.iter().all(|word| red.contains(word)) && red.contains("Fix:");
    let figure = format!("{red} (after {:.1} s)", begun.elapsed().as_secs_f64());
    println!("  {}  {}\n         {figure}", if named { "right" } else { "WRONG" }, fault.what);
    undo.done(stage).await?;
    checker.well().await?;
    Ok((named, slowest))
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_first_red_line_is_read_whole() {
        let out = "API servers\n  √ east: v1\n  × west: it does not\n    answer. Fix: start\n      so \
                   east->west: is silent\n  × north: too\n";
        assert_eq!(super::first_red(out), "× west: it does not answer. Fix: start");
        assert_eq!(super::first_red("all is well"), "");
    }
}
