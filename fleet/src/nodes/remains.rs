//! What a fleet of nodes has on this machine: found, measured, and removed without its help.

use super::SITES;
use crate::process::pss;
use anyhow::{Context, Result};
use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// A file among a fleet's that says: it is meant to stay when the program that made it ends.
pub(crate) const MARK: &str = "stays";
/// So long killed processes and their control groups may take to be gone.
const GONE_MAX: Duration = Duration::from_secs(20);
const CGROUPS: &str = "/sys/fs/cgroup";

/// Where the nodes' file systems are: not in memory, and of a kind that overlays may lie on.
pub(super) fn disk(prefix: &str) -> PathBuf {
    Path::new("/var/tmp").join(format!("isthmus-{prefix}"))
}

/// The control group of a node's containers, from the root of each hierarchy.
pub(super) fn cgroup(prefix: &str, node: &str) -> String {
    format!("/isthmus-{prefix}-{node}")
}

/// What there is of a fleet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Remains {
    Nothing,
    /// It was brought up to stay; so many processes of it run.
    Stays {
        processes: usize,
    },
    /// A crash left it.
    Crashed,
}

/// Looks for what there is of the fleet `prefix`.
pub fn remains(prefix: &str) -> Result<Remains> {
    if crate::home::run_dir(prefix).join(MARK).exists() {
        return Ok(Remains::Stays { processes: members(prefix)?.len() });
    }
    let crashed = disk(prefix).exists()
        || crate::home::run_dir(prefix).exists()
        || !namespaces(prefix)?.is_empty();
    Ok(if crashed { Remains::Crashed } else { Remains::Nothing })
}

/// A command in the fleet's network, with its kubeconfig and its programs; the caller adds which.
pub fn shell(prefix: &str) -> Command {
    let run = crate::home::run_dir(prefix);
    let mut paths = vec![run.join("bin")];
    let path = std::env::var_os("PATH").unwrap_or_default();
    paths.extend(std::env::split_paths(&path));
    let mut command = Command::new("nsenter");
    command
        .arg(format!("--net=/run/netns/{prefix}-wan"))
        .arg("--")
        .env("KUBECONFIG", crate::home::operator(&run))
        // kubectl's cache would be left in the home folder.
        .env("KUBECACHEDIR", crate::pods::cache(&run))
        .env("PATH", std::env::join_paths(paths).unwrap_or(path));
    command
}

/// Removes what only nodes leave: control groups and their disks. Namespaces and processes are
/// gone before.
pub(crate) fn clean(prefix: &str) -> Result<()> {
    let deadline = Instant::now() + GONE_MAX;
    for hierarchy in hierarchies()? {
        for group in groups(&hierarchy, prefix)? {
            remove_group(&group, deadline)?;
        }
    }
    let disk = disk(prefix);
    while disk.exists() {
        // The last process of a node may still write, and its mounts end with it.
        if let Err(error) = std::fs::remove_dir_all(&disk)
            && Instant::now() > deadline
        {
            return Err(error).with_context(|| format!("removing {}", disk.display()));
        }
    }
    Ok(())
}

/// Roots of control groups: one with version 2; with version 1 one for each controller.
fn hierarchies() -> Result<Vec<PathBuf>> {
    let root = Path::new(CGROUPS);
    let mut all = vec![root.to_owned()];
    if root.join("cgroup.controllers").exists() || !root.exists() {
        return Ok(all);
    }
    for entry in std::fs::read_dir(root).with_context(|| format!("reading {CGROUPS}"))? {
        let entry = entry?;
        // A link (`cpu -> cpu,cpuacct`) is a second name.
        if entry.file_type()?.is_dir() {
            all.push(entry.path());
        }
    }
    Ok(all)
}

/// Control groups of a fleet's nodes below a root.
fn groups(hierarchy: &Path, prefix: &str) -> Result<Vec<PathBuf>> {
    let names: BTreeSet<String> = SITES
        .iter()
        .flat_map(|site| (1..=site.nodes.max(9)).map(|number| site.node_name(number)))
        .map(|node| cgroup(prefix, &node).trim_start_matches('/').to_owned())
        .collect();
    let Ok(entries) = std::fs::read_dir(hierarchy) else { return Ok(vec![]) };
    let found = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let ours = |path: &PathBuf| {
        path.file_name().is_some_and(|name| names.contains(name.to_string_lossy().as_ref()))
    };
    Ok(found.filter(ours).collect())
}

/// Removes a control group with those in it, once their processes are gone.
fn remove_group(group: &Path, deadline: Instant) -> Result<()> {
    if let Ok(entries) = std::fs::read_dir(group) {
        for entry in entries.filter_map(Result::ok) {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                remove_group(&entry.path(), deadline)?;
            }
        }
    }
    loop {
        match std::fs::remove_dir(group) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) if Instant::now() > deadline => {
                return Err(error)
                    .with_context(|| format!("removing the control group {}", group.display()));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

/// Memory of all processes of the fleet `prefix`, in bytes (Pss).
pub fn memory(prefix: &str) -> Result<u64> {
    Ok(members(prefix)?.into_iter().map(pss).sum())
}

/// Network namespaces of a fleet, by their inodes.
fn namespaces(prefix: &str) -> Result<BTreeSet<u64>> {
    let Ok(entries) = std::fs::read_dir("/run/netns") else { return Ok(BTreeSet::new()) };
    let start = format!("{prefix}-");
    let ours = entries
        .filter_map(Result::ok)
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(&start))
        .filter_map(|entry| Some(std::fs::metadata(entry.path()).ok()?.ino()));
    Ok(ours.collect())
}

/// Processes of a fleet: those in its network namespaces, and those that share a node's own table
/// of processes with one of them (its pods have networks without names). Not this program.
fn members(prefix: &str) -> Result<Vec<u32>> {
    let networks = namespaces(prefix)?;
    let inode = |pid: u32, what: &str| {
        std::fs::metadata(format!("/proc/{pid}/ns/{what}")).map(|found| found.ino()).ok()
    };
    let me = std::process::id();
    let (machine, mut tables) = (inode(me, "pid"), BTreeSet::new());
    let entries = std::fs::read_dir("/proc").context("reading /proc")?;
    let pids: Vec<u32> = entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid| *pid != me)
        .collect();
    let networked = |pid: &u32| inode(*pid, "net").is_some_and(|net| networks.contains(&net));
    for pid in pids.iter().filter(|pid| networked(pid)) {
        tables.extend(inode(*pid, "pid").filter(|table| Some(*table) != machine));
    }
    let shares = |pid: &u32| inode(*pid, "pid").is_some_and(|table| tables.contains(&table));
    Ok(pids.iter().filter(|pid| networked(pid) || shares(pid)).copied().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_groups_of_the_fleet_s_nodes_are_removed_with_what_is_in_them() {
        let root = tempfile::tempdir().unwrap();
        let make = |name: &str| std::fs::create_dir_all(root.path().join(name)).unwrap();
        for name in ["isthmus-a-east-1/pod/container", "isthmus-a-other", "isthmus-ab-east-1"] {
            make(name);
        }
        let found = groups(root.path(), "a").unwrap();
        assert_eq!(found, [root.path().join("isthmus-a-east-1")]);
        remove_group(&found[0], Instant::now()).unwrap();
        assert!(!found[0].exists() && root.path().join("isthmus-ab-east-1").exists());
    }

    #[test]
    fn a_fleet_that_is_not_there_has_no_members() {
        assert!(members("no-such-fleet").unwrap().is_empty());
        assert_eq!(remains("no-such-fleet").unwrap(), Remains::Nothing);
    }
}
