//! The workload's certificate as files, for clients that read no SDS: gRPC's `file_watcher`.

use crate::state::write_private;
use anyhow::Context as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use xds::bootstrap::{CHAIN_FILE, KEY_FILE, ROOTS_FILE};
use xds::relay::KeyPair;

/// Between two attempts to write what was renewed.
const PAUSE: Duration = Duration::from_secs(5);

/// Key, chain and roots into `folder`, each 0600 and whole. A client that reads between key and chain
/// finds them of two renewals, keeps what it has, and reads again.
pub(crate) fn write(folder: &Path, pair: &KeyPair) -> anyhow::Result<()> {
    for (name, text) in
        [(KEY_FILE, &pair.key), (CHAIN_FILE, &pair.chain), (ROOTS_FILE, &pair.roots)]
    {
        write_private(folder, name, text).with_context(|| {
            format!(
                "ISM1047 cannot write the certificate's files to {}. Fix: set `socket` to a path \
                 in a folder this user may write",
                folder.display()
            )
        })?;
    }
    Ok(())
}

/// Writes anew whatever is renewed, until `end`.
pub(crate) async fn keep(
    folder: PathBuf,
    mut pairs: watch::Receiver<Arc<KeyPair>>,
    end: CancellationToken,
) {
    loop {
        tokio::select! {
            () = end.cancelled() => return,
            changed = pairs.changed() => if changed.is_err() { return },
        }
        loop {
            let (folder, pair) = (folder.clone(), pairs.borrow_and_update().clone());
            match tokio::task::spawn_blocking(move || write(&folder, &pair)).await {
                Ok(Ok(())) => break,
                Ok(Err(error)) => {
                    let error = format!("{error:#}");
                    tracing::warn!(error, "the renewed certificate is not in its files yet");
                }
                Err(_) => return,
            }
            tokio::select! {
                () = end.cancelled() => return,
                () = tokio::time::sleep(PAUSE) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn pair(of: &str) -> Arc<KeyPair> {
        let text = |what: &str| format!("{what} {of}");
        Arc::new(KeyPair { chain: text("chain"), key: text("key"), roots: text("roots") })
    }

    #[tokio::test]
    async fn files_are_private_and_follow_renewals() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), &pair("one")).unwrap();
        let read = |name| std::fs::read_to_string(folder.path().join(name)).unwrap();
        for (name, text) in [(KEY_FILE, "key one"), (CHAIN_FILE, "chain one")] {
            assert_eq!(read(name), text);
            let mode = std::fs::metadata(folder.path().join(name)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
        let pairs = watch::Sender::new(pair("one"));
        let end = CancellationToken::new();
        let kept = tokio::spawn(keep(folder.path().to_owned(), pairs.subscribe(), end.clone()));
        pairs.send_replace(pair("two"));
        let limit = tokio::time::Instant::now() + Duration::from_secs(10);
        while read(ROOTS_FILE) != "roots two" {
            assert!(tokio::time::Instant::now() < limit, "the renewal was not written");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!((read(KEY_FILE), read(CHAIN_FILE)), ("key two".into(), "chain two".into()));
        end.cancel();
        kept.await.unwrap();
    }
}
