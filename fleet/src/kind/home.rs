//! Where a fleet of kind has its files on this machine, and who deletes it when we cannot.

use crate::home::Janitor;
use crate::parts::{Own, cache};
use anyhow::{Context, Result, bail};
use nix::fcntl::{Flock, FlockArg};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;

/// A file among a fleet's that says: its clusters are meant to stay.
const MARK: &str = "stays";

/// A fleet's folder: kubeconfigs, images, and what scenarios write.
pub struct Home {
    /// First word of its clusters' names.
    pub prefix: String,
    pub run: PathBuf,
    janitor: std::sync::Mutex<Option<Janitor>>,
}

impl std::fmt::Debug for Home {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Home").field("prefix", &self.prefix).field("run", &self.run).finish()
    }
}

impl Home {
    /// Takes the lock of this user's fleets on kind: two at a time would give the same addresses away.
    /// What ends this process without its word is cleaned up by a janitor.
    pub fn claim(prefix: &str, own: &Own) -> Result<Self> {
        let all = cache()?.join("kind");
        make(&all)?;
        let lock = all.join("lock");
        let lock =
            std::fs::File::create(&lock).with_context(|| format!("making {}", lock.display()))?;
        let Ok(lock) = Flock::lock(lock, FlockArg::LockExclusiveNonblock) else {
            bail!("another fleet on kind is running. Wait for it");
        };
        for entry in
            std::fs::read_dir(&all).with_context(|| format!("reading {}", all.display()))?
        {
            let entry = entry?;
            let other = entry.file_name().display().to_string();
            if other != prefix && entry.path().join(MARK).exists() {
                bail!(
                    "a fleet `{other}` on kind was to stay, and has the addresses that this one would \
                     give away. Fix: kind delete clusters {other}-east {other}-west {other}-north, \
                     then remove {}",
                    entry.path().display()
                );
            }
        }
        let home = Self::at(prefix, &all.join(prefix))?;
        // The janitor keeps the lock (its stdout is the lock's file) until it is done.
        let keeps = Stdio::from(lock.try_clone()?);
        let janitor = Janitor::hire(own.command(), "--kind", prefix.as_ref(), keeps)?;
        *home.janitor.lock().expect("no holder panics") = Some(janitor);
        Ok(home)
    }

    /// A fleet's files in this folder, without a janitor.
    pub(super) fn at(prefix: &str, run: &Path) -> Result<Self> {
        let name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        let named = !prefix.is_empty() && prefix.chars().all(name);
        anyhow::ensure!(named, "the prefix `{prefix}` is no word of a-z, 0-9 and `-`");
        make(run)?;
        Ok(Self { prefix: prefix.to_owned(), run: run.to_owned(), janitor: Default::default() })
    }

    /// Those of a fleet whose maker is gone.
    pub(super) fn left(prefix: &str) -> Result<Self> {
        Self::at(prefix, &cache()?.join("kind").join(prefix))
    }

    fn mark(&self) -> PathBuf {
        self.run.join(MARK)
    }

    /// Whether an earlier run's clusters were to stay.
    pub(super) fn kept(&self) -> bool {
        self.mark().exists()
    }

    /// Lets the clusters stay when this process ends.
    pub(super) fn keep(&self) -> Result<()> {
        let mark = self.mark();
        std::fs::write(&mark, "").with_context(|| format!("writing {}", mark.display()))?;
        self.dismiss()
    }

    /// What was to stay is gone.
    pub(super) fn unkeep(&self) -> Result<()> {
        if self.kept() {
            std::fs::remove_file(self.mark())
                .context("removing the mark of a fleet that is gone")?;
        }
        Ok(())
    }

    /// Lets the janitor go, whose work is done or not wanted.
    fn dismiss(&self) -> Result<()> {
        match self.janitor.lock().expect("no holder panics").take() {
            Some(mut janitor) => janitor.dismiss(),
            None => Ok(()),
        }
    }

    /// Removes the folder, once its clusters are gone.
    pub fn remove(&self) -> Result<()> {
        std::fs::remove_dir_all(&self.run)
            .with_context(|| format!("removing {}", self.run.display()))?;
        self.dismiss()
    }
}

/// A folder for this user alone: there are keys in it.
fn make(folder: &Path) -> Result<()> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .and_then(|()| std::fs::set_permissions(folder, PermissionsExt::from_mode(0o700)))
        .with_context(|| format!("making {}", folder.display()))
}
