//! A node's first process: makes its file system, starts its services, starts again what ends.

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// What it is told, as JSON.
#[derive(Debug, Serialize, Deserialize)]
pub struct Init {
    pub hostname: String,
    /// Made in this order.
    pub mounts: Vec<Mount>,
    pub services: Vec<Service>,
}

/// Something of the node's own in place of the machine's.
#[derive(Debug, Serialize, Deserialize)]
pub struct Mount {
    /// `None`: an empty file system in memory.
    pub from: Option<PathBuf>,
    pub at: PathBuf,
}

impl Mount {
    pub(super) fn fresh(at: impl Into<PathBuf>) -> Self {
        Self { from: None, at: at.into() }
    }

    pub(super) fn bound(from: impl Into<PathBuf>, at: impl Into<PathBuf>) -> Self {
        Self { from: Some(from.into()), at: at.into() }
    }
}

/// A program that always runs.
#[derive(Debug, Serialize, Deserialize)]
pub struct Service {
    pub name: String,
    pub program: PathBuf,
    pub args: Vec<String>,
    pub env: Vec<(String, String)>,
    /// Started once all of these files exist.
    pub after: Vec<PathBuf>,
    pub log: PathBuf,
}

/// A service that has ended starts again after this, as systemd units of kubelets say.
const AGAIN_AFTER: Duration = Duration::from_secs(1);
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Runs a node until it is killed. The caller is the first process of fresh mount, process and
/// host name namespaces.
pub fn run(config: &Path) -> Result<()> {
    let text = std::fs::read(config).with_context(|| format!("reading {}", config.display()))?;
    let init: Init = serde_json::from_slice(&text).context("what a node is told")?;
    ensure!(std::process::id() == 1, "a node is the first process of a namespace of processes");
    std::fs::write("/proc/sys/kernel/hostname", &init.hostname).context("naming the node")?;
    // What pods mount is seen in other pods of the node, and nowhere else.
    mount(&["--make-rshared", "/"])?;
    for Mount { from, at } in &init.mounts {
        let at = at.display().to_string();
        match from {
            Some(from) => mount(&["--bind", &from.display().to_string(), &at])?,
            None => mount(&["-t", "tmpfs", "-o", "mode=755", "node", &at])?,
        }
    }
    let mut running: BTreeMap<i32, usize> = BTreeMap::new();
    let mut due: BTreeMap<usize, Instant> =
        (0..init.services.len()).map(|which| (which, Instant::now())).collect();
    loop {
        // What ended: a service, or an orphan that came to us.
        loop {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => break,
                Ok(end) => {
                    let ended = end.pid().and_then(|pid| running.remove(&pid.as_raw()));
                    if let Some(which) = ended {
                        println!("{} ended: {end:?}", init.services[which].name);
                        due.insert(which, Instant::now() + AGAIN_AFTER);
                    }
                }
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error).context("waiting for processes"),
            }
        }
        let now = Instant::now();
        let ready = |(which, at): (&usize, &Instant)| {
            let service = &init.services[*which];
            (*at <= now && service.after.iter().all(|file| file.exists())).then_some(*which)
        };
        for which in due.iter().filter_map(ready).collect::<Vec<_>>() {
            let pid = start(&init.services[which])?;
            running.insert(pid, which);
            due.remove(&which);
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

fn start(service: &Service) -> Result<i32> {
    let Service { name, program, args, env, log, .. } = service;
    let log = OpenOptions::new()
        .create(true)
        .append(true)
        .open(log)
        .with_context(|| format!("opening {}", log.display()))?;
    let child = Command::new(program)
        .args(args)
        .envs(env.iter().map(|(key, value)| (key, value)))
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .with_context(|| format!("starting {name}"))?;
    println!("{name} started");
    // Waited for with all others.
    Ok(child.id().cast_signed())
}

/// `mount(8)`.
fn mount(args: &[&str]) -> Result<()> {
    let out = Command::new("mount").args(args).output().context("starting mount")?;
    let said = String::from_utf8_lossy(&out.stderr);
    ensure!(out.status.success(), "mount {}: {}", args.join(" "), said.trim());
    Ok(())
}
