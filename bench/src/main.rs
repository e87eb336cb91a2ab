//! A tripwire: what the gateway costs beside HAProxy, as ratios measured in one interleaved run.
//!
//! CPU of the proxy process per GiB carried and per new connection, in blocks A B B A; the median of
//! the per-pair ratios and its 95 % bootstrap interval are printed, and how much the machine drifted.

mod block;
mod rivals;
mod stats;

use anyhow::{Result, ensure};
use block::Work;
use clap::Parser;
use rivals::Rival;
use std::process::ExitCode;

/// Compares the gateway with HAProxy on this machine.
#[derive(Debug, Parser)]
#[command(name = "isthmus-bench", max_term_width = 100)]
struct Call {
    /// The gateway to measure: `isthmus-gateway` built as it ships (--profile dist).
    #[arg(long)]
    gateway: std::path::PathBuf,
    /// HAProxy to measure against.
    #[arg(long, default_value = "haproxy")]
    haproxy: String,
    /// Pairs of blocks per row; at least 12 for a figure worth quoting.
    #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(u32).range(2..=200))]
    pairs: u32,
    /// Bytes carried per bulk block, MiB.
    #[arg(long, default_value_t = 1024)]
    mebibytes: u64,
    /// Connections per connection block.
    #[arg(long, default_value_t = 4000)]
    connections: u32,
    /// SNI routes loaded in both.
    #[arg(long, default_value_t = 1000)]
    routes: u32,
    /// Exit 1 if a median ratio is above this.
    #[arg(long)]
    limit: Option<f64>,
    /// End with one JSON object.
    #[arg(long)]
    json: bool,
}

fn main() -> Result<ExitCode> {
    let call = Call::parse();
    let backend = block::Backend::start()?;
    let folder = tempfile::tempdir()?;
    let ours = Rival::gateway(&call.gateway, folder.path(), backend.address(), call.routes)?;
    let theirs = Rival::haproxy(&call.haproxy, folder.path(), backend.address(), call.routes)?;
    println!("ours    {}", ours.version);
    println!("theirs  {}", theirs.version);
    println!(
        "routes {}, pairs {}, both pinned to one CPU with one worker, generator on the other",
        call.routes, call.pairs
    );
    block::pin_generator()?;
    let rows = [
        ("bulk, 1 connection", "CPU s/GiB", Work::Bulk { bytes: call.mebibytes << 20, streams: 1 }),
        (
            "bulk, 16 connections",
            "CPU s/GiB",
            Work::Bulk { bytes: call.mebibytes << 20, streams: 16 },
        ),
        ("new connections", "CPU us/connection", Work::Connections { count: call.connections }),
    ];
    let mut over = false;
    let mut results = Vec::new();
    for (name, unit, work) in rows {
        let measured = stats::compare(call.pairs, &ours, &theirs, &work)?;
        ensure!(
            !measured.ratios.is_empty(),
            "{name}: the machine drifted in every pair; run again"
        );
        println!(
            "{name:<22} {unit:<18} ours {:.3}  HAProxy {:.3}  ratio {:.2}  95% {:.2}..{:.2}  pairs {} of {}  drift {:.0} %",
            measured.ours,
            measured.theirs,
            measured.median,
            measured.low,
            measured.high,
            measured.ratios.len(),
            call.pairs,
            measured.drift * 100.0
        );
        over |= call.limit.is_some_and(|limit| measured.median > limit);
        results.push(serde_json::json!({
            "name": name, "unit": unit, "ours": measured.ours, "haproxy": measured.theirs,
            "ratio": measured.median, "low": measured.low, "high": measured.high, "pairs": measured.ratios.len(),
        }));
    }
    if call.json {
        println!("{}", serde_json::json!({"schema": 1, "rows": results}));
    }
    Ok(if over { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
