//! The programs `docker` and `kind`: found, asked with a limit, and quoted where they complain.

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::process::Command;

/// Both, and how long they may take.
#[derive(Debug, Clone)]
pub struct Tools {
    pub docker: PathBuf,
    pub kind: PathBuf,
    pub limits: Limits,
}

/// How long a command may take before it is ended.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// What only tells something.
    pub answer: Duration,
    /// A cluster; the first time its node's image is pulled.
    pub create: Duration,
    /// An image into the nodes of a cluster.
    pub load: Duration,
    /// All clusters.
    pub delete: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        let minutes = |count: u64| Duration::from_secs(60 * count);
        Self {
            answer: Duration::from_secs(20),
            create: minutes(15),
            load: minutes(3),
            delete: minutes(3),
        }
    }
}

/// What somebody without Docker can do.
const ELSE: &str = "or use --driver nodes, which needs neither Docker nor kind";

impl Tools {
    /// Looks for both in `path`, as the variable PATH says it.
    pub fn find(path: &OsStr, limits: Limits) -> Result<Self> {
        let find = |name: &str| {
            let places = std::env::split_paths(path).map(|folder| folder.join(name));
            places.into_iter().find(|place| place.is_file()).with_context(|| {
                format!(
                    "`{name}` is not on PATH, and --driver kind makes its clusters with it. Fix: \
                     install {name}, {ELSE}"
                )
            })
        };
        Ok(Self { docker: find("docker")?, kind: find("kind")?, limits })
    }

    /// Whether Docker's daemon answers.
    pub async fn answering(&self) -> Result<()> {
        let ask = ["version", "--format", "{{.Server.Version}}"];
        let said = run(&self.docker, &ask, self.limits.answer).await.with_context(|| {
            format!(
                "--driver kind needs a Docker that answers. Fix: start its daemon, or become one \
                 who may use it, until `docker version` names a server; {ELSE}"
            )
        })?;
        ensure!(!said.trim().is_empty(), "`docker version` names no server");
        Ok(())
    }

    pub(super) async fn docker(&self, args: &[&str]) -> Result<String> {
        run(&self.docker, args, self.limits.answer).await
    }

    pub(super) async fn kind(&self, args: &[&str], limit: Duration) -> Result<String> {
        run(&self.kind, args, limit).await
    }
}

/// Lines of a complaint that are quoted: the last ones say what it was.
const QUOTED: usize = 20;

/// What a command prints. Its own words where it fails; it and what it started are ended when its time
/// is up, or when nobody waits for it any more.
async fn run(program: &Path, args: &[&str], limit: Duration) -> Result<String> {
    let name = program.file_name().unwrap_or_default().display();
    let line = format!("{name} {}", args.join(" "));
    let child = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // Ctrl-C at the terminal is for us: what has to be deleted is.
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("starting `{line}`"))?;
    let group = child.id();
    let end = child.wait_with_output();
    let mut group = Group(group);
    let Ok(out) = tokio::time::timeout(limit, end).await else {
        bail!("`{line}` did not end in {limit:?}, and was ended");
    };
    let out = out.with_context(|| format!("waiting for `{line}`"))?;
    group.0 = None;
    if !out.status.success() {
        let said = String::from_utf8_lossy(&out.stderr);
        let lines: Vec<&str> = said.trim().lines().collect();
        let last = lines[lines.len().saturating_sub(QUOTED)..].join("\n");
        bail!("`{line}` ended with {}: {last}", out.status);
    }
    String::from_utf8(out.stdout).with_context(|| format!("what `{line}` prints"))
}

/// A command with all that it started: killed when dropped, unless it has ended.
struct Group(Option<u32>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(leader) = self.0 {
            let _ = killpg(Pid::from_raw(leader.cast_signed()), Signal::SIGKILL);
        }
    }
}
