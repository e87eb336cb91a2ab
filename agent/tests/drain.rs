//! How an agent ends the proxy it runs: an Envoy drains first, and nothing holds the end up.

#[path = "support/admin.rs"]
mod admin;
mod support;

use admin::{Admin, SERVING, Said};
use agent::{Beside, Config, run};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;
use support::{Machine, PATIENCE, until};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// A proxy's stand-in says when it is ready for signals, and when SIGTERM came. $0 is a folder.
const PROXY: &str =
    "trap 'touch $0/ended; exit 0' TERM; touch $0/began; while :; do sleep 0.02; done";

/// An agent whose proxy runs.
struct Running {
    machine: Machine,
    end: CancellationToken,
    agent: JoinHandle<anyhow::Result<()>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wrote {
    Envoys,
    Grpcs,
}

impl Running {
    /// With Envoy's admin pages at `admin`.
    async fn start(admin: SocketAddr, drain_seconds: u64, wrote: Wrote, script: &str) -> Self {
        let machine = Machine::new();
        let end = CancellationToken::new();
        // It outlives the agent.
        let address = machine.serve("isthmus-control-plane", CancellationToken::new()).await;
        let config = Config { proxy_admin: admin, drain_seconds, ..machine.beside(address) };
        let folder = machine.file("").into_os_string();
        let proxy = ["sh", "-c", script].map(Into::into).into_iter().chain([folder]).collect();
        let bootstrap = |of| (wrote == of).then(|| machine.file("bootstrap.json"));
        let beside = Beside {
            bootstrap: bootstrap(Wrote::Envoys),
            grpc_bootstrap: bootstrap(Wrote::Grpcs),
            proxy,
        };
        let agent = tokio::spawn(run(config, beside, end.clone()));
        let this = Self { machine, end, agent };
        until("the proxy runs", || this.machine.file("began").exists() || this.agent.is_finished())
            .await;
        this
    }

    fn ended(&self) -> PathBuf {
        self.machine.file("ended")
    }

    /// How long the agent takes for its end from now on, and whether its proxy heard SIGTERM.
    async fn end(self) -> (Duration, bool) {
        let (began, ended) = (Instant::now(), self.ended());
        self.end.cancel();
        tokio::time::timeout(PATIENCE, self.agent).await.unwrap().unwrap().unwrap();
        (began.elapsed(), ended.exists())
    }
}

#[tokio::test]
async fn an_envoy_drains_and_is_ended_once_it_has_no_connection() {
    let admin = Admin::start(Said { active: 1, ..SERVING }).await;
    let running = Running::start(admin.address, 60, Wrote::Envoys, PROXY).await;
    let ended = running.ended();
    let ending = tokio::spawn(running.end());
    until("it is asked to drain", || !admin.orders().is_empty()).await;
    // Longer than new connections are waited for.
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(admin.orders(), ["POST /drain_listeners?graceful&skip_exit"]);
    assert!(!ended.exists() && !ending.is_finished(), "SIGTERM while a connection is open");
    admin.said.lock().unwrap().active = 0;
    let (_, termed) = ending.await.unwrap();
    assert!(termed);
    let orders = ["POST /drain_listeners?graceful&skip_exit", "POST /drain_listeners"];
    assert_eq!(admin.orders(), orders);
}

#[tokio::test]
async fn connections_that_stay_leave_time_for_sigterm() {
    let admin = Admin::start(Said { active: 1, ..SERVING }).await;
    let running = Running::start(admin.address, 3, Wrote::Envoys, PROXY).await;
    let (took, termed) = running.end().await;
    assert!(termed, "SIGKILL, without SIGTERM before");
    assert!((Duration::from_secs(2)..Duration::from_secs(10)).contains(&took), "{took:?}");
}

#[tokio::test]
async fn an_admin_port_that_does_not_answer_costs_a_second() {
    // It takes connections, and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = silent.local_addr().unwrap();
    let running = Running::start(address, 60, Wrote::Envoys, PROXY).await;
    let (took, termed) = running.end().await;
    assert!(termed);
    assert!((Duration::from_secs(1)..Duration::from_secs(10)).contains(&took), "{took:?}");
    drop(silent);
    let running = Running::start(address, 60, Wrote::Envoys, PROXY).await;
    let (took, termed) = running.end().await;
    assert!(termed && took < Duration::from_secs(10), "{took:?}");
}

#[tokio::test]
async fn who_is_no_envoy_is_ended_without_a_question() {
    let admin = Admin::start(Said { active: 1, ..SERVING }).await;
    let running = Running::start(admin.address, 60, Wrote::Grpcs, PROXY).await;
    let (took, termed) = running.end().await;
    assert!(termed && took < Duration::from_secs(10), "{took:?}");
    assert_eq!(admin.asked(), [""; 0]);
}

#[tokio::test]
async fn an_envoy_that_ends_while_it_drains_is_not_waited_for() {
    let admin = Admin::start(Said { active: 1, ..SERVING }).await;
    let script = "touch $0/began; while ! [ -e $0/leave ]; do sleep 0.02; done";
    let running = Running::start(admin.address, 60, Wrote::Envoys, script).await;
    let leave = running.machine.file("leave");
    let ending = tokio::spawn(running.end());
    until("it is asked to drain", || !admin.orders().is_empty()).await;
    std::fs::write(leave, "").unwrap();
    let (took, _) = ending.await.unwrap();
    assert!(took < Duration::from_secs(10), "{took:?}");
}

#[tokio::test]
async fn who_ignores_sigterm_is_killed_in_time() {
    let admin = Admin::start(Said { active: 1, ..SERVING }).await;
    let script = "trap '' TERM; touch $0/began; while :; do sleep 0.02; done";
    let running = Running::start(admin.address, 2, Wrote::Envoys, script).await;
    let (took, _) = running.end().await;
    assert!((Duration::from_secs(2)..Duration::from_secs(10)).contains(&took), "{took:?}");
}
