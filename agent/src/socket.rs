//! The Unix socket on which a foreign proxy finds its key: nobody else's, and nobody else on it.

use anyhow::{Context as _, bail, ensure};
use futures::Stream;
use prometheus_client::metrics::counter::Counter;
use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Connections at once; more wait. A proxy needs two, and room to connect again.
pub(crate) const CONNECTIONS_MAX: usize = 32;
/// Between two attempts to accept, where accepting fails.
const PAUSE: Duration = Duration::from_millis(50);

/// Binds `path` with mode 0600. The folder is made (0700) where it is missing; one that others may
/// write to, or that belongs to neither this user nor root, is refused, and so is a file in the
/// socket's place that is not a dead socket of this user.
pub(crate) fn bind(path: &Path) -> anyhow::Result<UnixListener> {
    let me = nix::unistd::geteuid().as_raw();
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or_else(|| Path::new("."));
    check_folder(folder, me)?;
    clear(path, me)?;
    // Nobody sees the socket before it is protected: it gets its name with its mode.
    let name = path.file_name().context("a socket has a name")?;
    let fresh = folder.join(format!(".{}.{}", name.to_string_lossy(), std::process::id()));
    let _ = std::fs::remove_file(&fresh);
    let failed = || {
        format!(
            "ISM1018 cannot listen on the socket {}. Fix: set `socket` to a path this user may \
             write, of at most 90 bytes",
            path.display()
        )
    };
    let listener = UnixListener::bind(&fresh).with_context(failed)?;
    std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(0o600))
        .and_then(|()| std::fs::rename(&fresh, path))
        .with_context(failed)?;
    Ok(listener)
}

fn check_folder(folder: &Path, me: u32) -> anyhow::Result<()> {
    if !folder.exists() {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).with_context(
            || {
                format!(
                    "ISM1019 cannot make the folder {} of the agent's socket. Fix: mount a volume \
                     there that this user may write, or set `socket` to another path",
                    folder.display()
                )
            },
        )?;
    }
    let found = std::fs::metadata(folder)
        .with_context(|| format!("reading the folder {}", folder.display()))?;
    ensure!(
        found.uid() == me || found.uid() == 0,
        "ISM1022 the folder {} of the agent's socket belongs to user {}, this is user {me}: its \
         owner could put another socket there and be taken for the agent. Fix: chown it to {me}, \
         or set `socket` to a folder of this user",
        folder.display(),
        found.uid()
    );
    let mode = found.mode() & 0o7777;
    let others = mode & 0o022 != 0;
    ensure!(
        !others || mode & 0o1000 != 0,
        "ISM1023 others may write to the folder {} of the agent's socket (mode {mode:04o}), so \
         they could put another socket there. Fix: chmod go-w it, or set `socket` to a folder \
         below it that the agent makes itself",
        folder.display()
    );
    Ok(())
}

/// Removes the socket of an agent that is gone; anything else in its place is refused.
fn clear(path: &Path, me: u32) -> anyhow::Result<()> {
    let Ok(found) = std::fs::symlink_metadata(path) else { return Ok(()) };
    ensure!(
        found.uid() == me,
        "ISM1024 {} exists and belongs to user {}, this is user {me}. Fix: find out who made it, \
         remove it, and start the agent again",
        path.display(),
        found.uid()
    );
    ensure!(
        found.file_type().is_socket(),
        "ISM1025 {} exists and is not a socket. Fix: remove it, or set `socket` to another path",
        path.display()
    );
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        bail!(
            "ISM1026 another agent already serves {}. Fix: stop it, or set `socket` to another path",
            path.display()
        );
    }
    std::fs::remove_file(path).with_context(|| format!("removing {}", path.display()))
}

/// One of the few connections there may be.
#[derive(Debug)]
pub(crate) struct Admitted {
    pub(crate) stream: UnixStream,
    _place: OwnedSemaphorePermit,
}

/// What is counted at the socket. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Numbers {
    /// Connections of users who may not use it.
    pub(crate) refused: Counter,
    /// How often all of [`CONNECTIONS_MAX`] were in use.
    pub(crate) full: Counter,
}

/// Connections of this user and of `peers`, by what the kernel says of them (SO_PEERCRED); those
/// of others are closed and counted.
pub(crate) fn accept(
    listener: UnixListener,
    peers: &[u32],
    numbers: Numbers,
) -> impl Stream<Item = Admitted> + Send + 'static {
    let me = nix::unistd::geteuid().as_raw();
    let allowed: BTreeSet<u32> = peers.iter().copied().chain([me]).collect();
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    futures::stream::unfold((listener, allowed, places, numbers), |state| async move {
        let (listener, allowed, places, numbers) = state;
        loop {
            // Whether somebody waits meanwhile is not to be seen before it is accepted: so it is
            // counted that all places are taken.
            if places.available_permits() == 0 {
                numbers.full.inc();
            }
            let place =
                places.clone().acquire_owned().await.expect("the semaphore is never closed");
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "accepting on the agent's socket failed");
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            };
            match stream.peer_cred() {
                Ok(peer) if allowed.contains(&peer.uid()) => {
                    let admitted = Admitted { stream, _place: place };
                    return Some((admitted, (listener, allowed, places, numbers)));
                }
                Ok(peer) => {
                    numbers.refused.inc();
                    tracing::warn!(
                        uid = peer.uid(),
                        "ISM1027 a process of another user asked the agent for its key and was \
                         refused. Fix: if it is the proxy, list its user id in `peers`"
                    );
                }
                Err(error) => {
                    numbers.refused.inc();
                    tracing::warn!(%error, "a peer without credentials was refused");
                }
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::StreamExt as _;

    fn refusal(path: &Path) -> String {
        let error = format!("{:#}", bind(path).unwrap_err());
        assert!(error.contains("Fix: "), "{error}");
        error
    }

    #[tokio::test]
    async fn a_socket_is_its_users_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/socket");
        let listener = bind(&path).unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().mode() & 0o777;
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
        assert!(refusal(&path).contains("ISM1026"), "a live one is left alone");
        drop(listener);
        bind(&path).expect("a dead one is replaced");
    }

    #[tokio::test]
    async fn what_others_could_swap_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        std::fs::write(&path, "").unwrap();
        assert!(refusal(&path).contains("ISM1025"));
        std::fs::remove_file(&path).unwrap();
        let open = |mode| std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(folder.path(), open(0o777)).unwrap();
        assert!(refusal(&path).contains("ISM1023"));
        // Only root can give files away; elsewhere these two cases cannot be made.
        if !nix::unistd::geteuid().is_root() {
            assert!(std::env::var_os("CI").is_none(), "in CI this test is root's");
            eprintln!("\n*** NOT RUN, folders and sockets of others: this needs root.\n");
        } else {
            std::fs::set_permissions(folder.path(), open(0o700)).unwrap();
            std::os::unix::fs::chown(folder.path(), Some(65_534), None).unwrap();
            assert!(refusal(&path).contains("ISM1022"));
            std::os::unix::fs::chown(folder.path(), Some(0), None).unwrap();
            drop(bind(&path).unwrap());
            std::os::unix::fs::chown(&path, Some(65_534), None).unwrap();
            assert!(refusal(&path).contains("ISM1024"));
        }
    }

    #[tokio::test]
    async fn the_kernel_says_who_connects() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let numbers = Numbers::default();
        let mut accepted = Box::pin(accept(bind(&path).unwrap(), &[], numbers.clone()));
        let _client = UnixStream::connect(&path).await.unwrap();
        accepted.next().await.expect("our own user is let in");
        assert_eq!((numbers.refused.get(), numbers.full.get()), (0, 0));
    }

    #[tokio::test]
    async fn there_are_so_many_connections_and_the_next_one_waits() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let numbers = Numbers::default();
        let mut accepted = Box::pin(accept(bind(&path).unwrap(), &[], numbers.clone()));
        let (mut clients, mut served) = (Vec::new(), Vec::new());
        for _ in 0..CONNECTIONS_MAX {
            clients.push(UnixStream::connect(&path).await.unwrap());
            served.push(accepted.next().await.unwrap());
        }
        assert_eq!(numbers.full.get(), 0, "they all had room");
        let _one_more = UnixStream::connect(&path).await.unwrap();
        let waits = tokio::time::timeout(Duration::from_millis(100), accepted.next()).await;
        assert!(waits.is_err(), "one more is served");
        assert_eq!(numbers.full.get(), 1);
        served.pop();
        let next = tokio::time::timeout(Duration::from_secs(10), accepted.next()).await;
        assert!(next.expect("a place is free").is_some());
        assert_eq!((numbers.refused.get(), numbers.full.get()), (0, 1));
    }
}
