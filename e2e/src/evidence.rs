//! What a play with a red verdict leaves, kept where neither a second play nor the next run takes it away.

use anyhow::{Context, Result};
use fleet::verdict::Verdict;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// Red plays that are kept; with the next one the oldest goes. Each holds some hundred megabytes.
const KEPT_MAX: usize = 4;

/// Copies a run's logs and the records of the last loads where one of a play's verdicts is red, and says
/// where they are. That they cannot be copied is told, and changes no verdict.
pub(crate) fn keep_red(logs: &Path, scenario: &str, verdicts: &[Verdict]) {
    if verdicts.iter().all(|verdict| verdict.kept) {
        return;
    }
    match keep(logs, scenario) {
        Ok(kept) => println!("  logs and loads of this play: {}", kept.display()),
        Err(problem) => println!("  logs of this play are not kept: {problem:#}"),
    }
}

fn keep(logs: &Path, scenario: &str) -> Result<PathBuf> {
    let all = logs.parent().context("the folder of logs lies in one")?.join("red");
    std::fs::create_dir_all(&all).with_context(|| format!("making {}", all.display()))?;
    let mut plays = entries(&all)?;
    plays.sort();
    // First, since the disk may be full of them.
    for oldest in &plays[..plays.len().saturating_sub(KEPT_MAX - 1)] {
        std::fs::remove_dir_all(oldest)
            .with_context(|| format!("removing {}", oldest.display()))?;
    }
    let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    // Names in the order of time, for as long as seconds have ten digits.
    let kept = all.join(format!("{at}-{scenario}"));
    copy(logs, &kept).inspect_err(|_| {
        // Half of it would take the place of a whole one.
        let _ = std::fs::remove_dir_all(&kept);
    })?;
    Ok(kept)
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to).with_context(|| format!("making {}", to.display()))?;
    for entry in entries(from)? {
        let twin = to.join(entry.file_name().context("an entry has a name")?);
        if entry.is_dir() {
            copy(&entry, &twin)?;
        } else {
            std::fs::copy(&entry, &twin).with_context(|| format!("copying {}", entry.display()))?;
        }
    }
    Ok(())
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let read =
        std::fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))?;
    read.map(|entry| Ok(entry?.path())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(kept: bool) -> Verdict {
        Verdict {
            scenario: "swaps".into(),
            promise: "none fails".into(),
            figure: String::new(),
            kept,
            rests_on: vec![],
        }
    }

    #[test]
    fn only_red_plays_are_kept_and_the_oldest_go() {
        let folder = tempfile::tempdir().unwrap();
        let (logs, red) = (folder.path().join("isth"), folder.path().join("red"));
        std::fs::create_dir_all(logs.join("loads")).unwrap();
        std::fs::write(logs.join("east_gateway.log"), "one").unwrap();
        std::fs::write(logs.join("loads/1.jsonl"), "{}").unwrap();
        keep_red(&logs, "swaps", &[verdict(true)]);
        assert!(!red.exists(), "nothing was red");
        for older in 1..=KEPT_MAX {
            std::fs::create_dir_all(red.join(format!("100000000{older}-rush"))).unwrap();
        }
        keep_red(&logs, "swaps", &[verdict(true), verdict(false)]);
        // The next play writes on.
        std::fs::write(logs.join("east_gateway.log"), "two").unwrap();
        let mut plays = entries(&red).unwrap();
        plays.sort();
        assert_eq!(plays.len(), KEPT_MAX);
        assert!(plays[0].ends_with("1000000002-rush"), "{plays:?}");
        let kept = plays.last().unwrap();
        assert_eq!(std::fs::read_to_string(kept.join("east_gateway.log")).unwrap(), "one");
        assert_eq!(std::fs::read_to_string(kept.join("loads/1.jsonl")).unwrap(), "{}");
    }
}
