//! `isthmus agent` as a program: whom its socket refuses, and what follows a renewal. One test, for
//! it changes the user of the whole process for a moment.

#[path = "../../runtime/tests/support/port.rs"]
mod port;
mod support;

use agent::{Beside, Config, run};
use nix::unistd::Uid;
use port::Port;
use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;
use support::{Machine, until};
use tokio_util::sync::CancellationToken;

/// `nobody`.
const STRANGER: u32 = 65_534;

fn mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

/// Whether the other end closes without a word within `limit`.
fn is_closed(mut stream: UnixStream, limit: Duration) -> bool {
    stream.set_read_timeout(Some(limit)).unwrap();
    let mut all = Vec::new();
    // Who is let in hears SETTINGS, or nothing until the limit; both are no end.
    stream.read_to_end(&mut all).is_ok() && all.is_empty()
}

/// A number of the program's, as somebody who scrapes it reads it.
async fn number(metrics: SocketAddr, name: &str) -> u64 {
    let read = move || {
        let mut stream = std::net::TcpStream::connect(metrics).unwrap();
        write!(stream, "GET /metrics HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").unwrap();
        let mut shown = String::new();
        stream.read_to_string(&mut shown).unwrap();
        shown
    };
    let shown = tokio::task::spawn_blocking(read).await.unwrap();
    let number = shown.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    number.unwrap_or_else(|| panic!("{name} is not in\n{shown}")).parse().unwrap()
}

#[tokio::test]
async fn strangers_are_refused_by_their_user_and_files_follow_renewals() {
    let machine = Machine::new();
    // Past its half at once: renewed every second.
    *machine.authority.lifetime.lock().unwrap() = Duration::from_secs(60);
    let end = CancellationToken::new();
    let address = machine.serve("isthmus-control-plane", end.clone()).await;
    let metrics = Port::held();
    let config = Config { metrics: metrics.address, ..machine.beside(address) };
    let (socket, folder) = (config.socket.clone(), machine.file("uds"));
    let bootstrap = machine.file("grpc.json");
    let beside = Beside { grpc_bootstrap: Some(bootstrap.clone()), ..Beside::default() };
    let running = tokio::spawn(run(config, beside, end.clone()));
    until("the bootstrap is written", || bootstrap.exists() || running.is_finished()).await;

    let chain = || std::fs::read_to_string(folder.join("cert-chain.pem")).unwrap();
    let first = chain();
    assert!(first.starts_with("-----BEGIN CERTIFICATE-----"), "{first}");
    until("the files are renewed", || chain() != first).await;
    let key = std::fs::metadata(folder.join("key.pem")).unwrap().permissions().mode();
    assert_eq!(key & 0o777, 0o600);

    let own = UnixStream::connect(&socket).unwrap();
    let closed = tokio::task::spawn_blocking(|| is_closed(own, Duration::from_secs(1)));
    assert!(!closed.await.unwrap(), "our own user is let in");
    let refused = "isthmus_agent_peers_refused_total";
    assert_eq!(number(metrics.address, refused).await, 0);
    for limit in ["connections", "secrets", "request_bytes", "response_bytes"] {
        let name = format!("isthmus_agent_limited_total{{limit=\"{limit}\"}}");
        assert_eq!(number(metrics.address, &name).await, 0);
    }
    // Only root can be somebody else for a moment.
    let root = nix::unistd::geteuid().is_root();
    assert!(root || std::env::var_os("CI").is_none(), "in CI this test is root's");
    if !root {
        eprintln!("\n*** NOT RUN, a stranger at the socket: this needs root.\n");
    } else {
        // As if its mode had been changed: what the kernel says of the peer is what counts.
        mode(machine.file("").as_path(), 0o755);
        mode(&folder, 0o755);
        mode(&socket, 0o666);
        // Nothing else runs meanwhile: this runtime has one thread.
        nix::unistd::seteuid(Uid::from_raw(STRANGER)).unwrap();
        let stranger = UnixStream::connect(&socket);
        nix::unistd::seteuid(Uid::from_raw(0)).unwrap();
        let stranger = stranger.expect("files let anybody connect now");
        let closed = tokio::task::spawn_blocking(|| is_closed(stranger, Duration::from_secs(5)));
        assert!(closed.await.unwrap(), "a stranger is let in");
        assert_eq!(number(metrics.address, refused).await, 1);
    }
    end.cancel();
    running.await.unwrap().unwrap();
}
