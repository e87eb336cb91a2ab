//! Where a fleet lives in the file system, and that nothing of it is left behind.

use crate::netns::{Netns, sweep};
use crate::nodes::{self, Remains};
use crate::parts::Parts;
use crate::place::Place;
use crate::verdict::Pillar;
use anyhow::{Context, Result, bail};
use nix::fcntl::{Flock, FlockArg};
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// How to bring a fleet up.
#[derive(Debug, Clone)]
pub struct Options {
    /// First word of every namespace of the network: two fleets differ in it.
    pub prefix: String,
    pub sabotage: Option<Pillar>,
}

/// A fleet's folders, and who removes them.
pub struct Home {
    pub place: Place,
    pub prefix: String,
    /// Holds the API servers' data, keys, tokens and copies of programs. Removed at the end.
    pub run: PathBuf,
    /// Logs of every program.
    pub logs: PathBuf,
    pub parts: Parts,
    pub sabotage: Option<Pillar>,
    janitor: Janitor,
}

impl Home {
    /// Takes the lock, removes what a crash left, and moves this thread into a fresh WAN. Call it
    /// before any thread is started: threads inherit the namespace.
    pub fn claim(options: &Options, mut parts: Parts) -> Result<(Self, Netns)> {
        let prefix = options.prefix.clone();
        let lock = std::fs::File::create(format!("/run/{prefix}.lock"))
            .context("the harness needs root: it makes network namespaces")?;
        let Ok(lock) = Flock::lock(lock, FlockArg::LockExclusiveNonblock) else {
            bail!("another fleet `{prefix}` is running. Wait for it, or choose another --prefix");
        };
        unclaimed(&prefix)?;
        clean(&prefix)?;
        // The janitor keeps the lock (its stdout is the lock's file) until it is done.
        let keeps = Stdio::from(lock.try_clone()?);
        let janitor = Janitor::hire(parts.own.command(), "--prefix", prefix.as_ref(), keeps)?;
        let run = run_dir(&prefix);
        let programs = run.join("bin");
        std::fs::create_dir_all(&programs)?;
        std::fs::set_permissions(&run, PermissionsExt::from_mode(0o755))?;
        let beside = parts.own.program.parent().context("a program lies in a folder")?;
        let logs = beside.join("e2e-logs").join(&prefix);
        if logs.exists() {
            std::fs::remove_dir_all(&logs)?;
        }
        std::fs::create_dir_all(&logs)?;
        // Pods' users must be able to run them, wherever the build folder is.
        for program in [&mut parts.isthmus, &mut parts.own.program] {
            let name = program.file_name().context("a program has a name")?;
            let copy = programs.join(name);
            std::fs::copy(&program, &copy)?;
            *program = copy;
        }
        let wan = Netns::create(&format!("{prefix}-wan"))?;
        wan.bridge("wan", "198.18.0.1/16")?;
        crate::netns::enter(&wan.path())?;
        let (place, sabotage) = (Place::Namespaces, options.sabotage);
        Ok((Self { place, prefix, run, logs, parts, sabotage, janitor }, wan))
    }

    /// A fresh folder below `within`, for a fleet on loopback; logs go to `logs`, else into it.
    pub fn on_loopback(within: &Path, logs: Option<&Path>, parts: Parts) -> Result<Self> {
        let prefix = format!("isthmus-{}", std::process::id());
        let run = within.join(&prefix);
        let fix = "Fix: name a folder you may write to, by the variable TMPDIR";
        if run.exists() {
            // Its process has our id and is not us: it is gone.
            std::fs::remove_dir_all(&run).with_context(|| {
                format!("cannot remove what is left in {}. {fix}", run.display())
            })?;
        }
        std::fs::DirBuilder::new()
            .recursive(false)
            .create(&run)
            .with_context(|| format!("ISM2901 cannot make the folder {}. {fix}", run.display()))?;
        let janitor =
            Janitor::hire(parts.own.command(), "--folder", run.as_os_str(), Stdio::null())?;
        std::fs::set_permissions(&run, PermissionsExt::from_mode(0o700))?;
        let logs = logs.map_or_else(|| run.join("logs"), Path::to_owned);
        make_logs(&logs)?;
        let place = Place::Loopback;
        Ok(Self { place, prefix, run, logs, parts, sabotage: None, janitor })
    }

    /// Lets everything stay when this process ends: the janitor goes without cleaning up.
    pub(crate) fn leave(&mut self) -> Result<()> {
        std::fs::write(self.run.join(nodes::MARK), "")
            .with_context(|| format!("writing to {}", self.run.display()))?;
        self.janitor.dismiss()
    }

    /// The operator's kubeconfig: one context for each cluster, named as it is.
    pub fn operator(&self) -> PathBuf {
        operator(&self.run)
    }
}

/// The operator's kubeconfig in a fleet's folder.
pub(crate) fn operator(run: &Path) -> PathBuf {
    run.join("operator.kubeconfig")
}

/// The folder of a fleet in namespaces.
pub(crate) fn run_dir(prefix: &str) -> PathBuf {
    Path::new("/dev/shm").join(prefix)
}

/// Refuses a prefix whose fleet is up and was to stay.
pub fn unclaimed(prefix: &str) -> Result<()> {
    if let Remains::Stays { processes } = nodes::remains(prefix)? {
        bail!(
            "a fleet `{prefix}` of {processes} processes is up, and was to stay. Take it down \
             (cargo xtask fleet down --prefix {prefix}), or choose another --prefix"
        );
    }
    Ok(())
}

/// Removes everything a fleet `prefix` may have left: processes, namespaces, control groups, files.
pub fn clean(prefix: &str) -> Result<()> {
    sweep(prefix)?;
    nodes::clean(prefix)?;
    let run = run_dir(prefix);
    if run.exists() {
        std::fs::remove_dir_all(run)?;
    }
    Ok(())
}

/// Removes a fleet's folder on loopback, whose processes die with ours: until they are all gone
/// one may still write into it.
pub fn clean_folder(run: &Path) -> Result<()> {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while run.exists() {
        if let Err(error) = std::fs::remove_dir_all(run)
            && std::time::Instant::now() > deadline
        {
            return Err(error).with_context(|| format!("removing {}", run.display()));
        }
    }
    Ok(())
}

/// A process that outlives a SIGKILLed fleet by as long as cleaning up takes.
pub(crate) struct Janitor {
    child: std::process::Child,
}

impl Janitor {
    /// The janitor sleeps on its stdin, whose other end only we hold.
    pub(crate) fn hire(
        mut own: Command,
        what: &str,
        value: &std::ffi::OsStr,
        keeps: Stdio,
    ) -> Result<Self> {
        let child = own
            .args(["janitor", what])
            .arg(value)
            .stdin(Stdio::piped())
            .stdout(keeps)
            // Ctrl-C at the terminal is not for it.
            .process_group(0)
            .spawn()
            .context("starting the janitor")?;
        Ok(Self { child })
    }

    /// Ends it before its work.
    pub(crate) fn dismiss(&mut self) -> Result<()> {
        let mut stdin = self.child.stdin.take().context("the janitor has gone already")?;
        stdin.write_all(DISMISSED.as_bytes()).context("telling the janitor to go")?;
        drop(stdin);
        self.child.wait().context("waiting for the janitor")?;
        Ok(())
    }
}

const DISMISSED: &str = "dismissed";

/// The work of a janitor: sleeps until its stdin ends, then cleans up, unless it was dismissed.
pub fn janitor(clean: impl FnOnce() -> Result<()>) -> Result<()> {
    let mut said = String::new();
    std::io::stdin().read_to_string(&mut said)?;
    if said == DISMISSED { Ok(()) } else { clean() }
}

impl Drop for Janitor {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

fn make_logs(logs: &Path) -> Result<()> {
    std::fs::create_dir_all(logs).with_context(|| {
        format!(
            "ISM2901 cannot make the folder {} for logs. Fix: name by --logs a folder you may write to",
            logs.display()
        )
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_folder_for_logs_that_cannot_be_made_is_named_with_its_option() {
        let said = super::make_logs("/proc/foo".as_ref()).unwrap_err().to_string();
        assert!(said.contains("/proc/foo") && said.contains("--logs"), "{said}");
    }
}
