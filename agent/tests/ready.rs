//! When an agent calls the proxy beside it ready: an Envoy serves by what it has taken, too.

#[path = "support/admin.rs"]
mod admin;
#[path = "../../runtime/tests/support/port.rs"]
mod port;
mod support;

use admin::{Admin, SERVING, Said};
use agent::{Beside, Config, run};
use mesh::program::{ResourceName, Want};
use mesh::world::{Dialect, Role};
use port::Port;
use runtime::page::{self, Place};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;
use support::{Machine, PATIENCE, until};
use tokio::net::UnixStream;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use xds::node::Node;
use xds::subscribe::{self, Connector, Subscription};

async fn readyz(health: SocketAddr) -> page::Answer {
    let place = Place::Tcp(health.to_string());
    page::get(&place, "/readyz", Duration::from_secs(5)).await.unwrap()
}

/// Until the agent says that it is ready, or why it is not.
async fn says(health: SocketAddr, said: &str) {
    let waiting = async {
        while !readyz(health).await.text.contains(said) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    if tokio::time::timeout(PATIENCE, waiting).await.is_err() {
        panic!("never {said:?}: {:?}", readyz(health).await);
    }
}

/// A proxy that takes the listener it names, over the agent's socket.
async fn takes(config: &Config, end: CancellationToken) -> Subscription {
    let socket = config.socket.clone();
    let connector = Connector::new(move || UnixStream::connect(socket.clone()));
    let node = Node {
        role: Role::Agent,
        address: config.pod_addresses[0],
        pod: config.pod.clone(),
        namespace: config.namespace.clone(),
        cluster: config.cluster.to_string(),
        network: String::new(),
        account: config.account.clone(),
        locality: Default::default(),
        dialect: Dialect::Isthmus,
    };
    let subscription = subscribe::start_from(node, connector, Default::default(), end);
    subscription.want.send(Want::Subscribe(ResourceName::gateway())).await.unwrap();
    subscription
}

/// An agent that wrote a bootstrap for an Envoy with its admin pages there.
struct Running {
    _machine: Machine,
    config: Config,
    end: CancellationToken,
    agent: JoinHandle<anyhow::Result<()>>,
    _health: Port,
}

impl Running {
    async fn start(proxy_admin: SocketAddr) -> Self {
        let machine = Machine::new();
        let end = CancellationToken::new();
        let address = machine.serve("isthmus-control-plane", end.clone()).await;
        let health = Port::held();
        let config = Config { proxy_admin, health: health.address, ..machine.beside(address) };
        let beside =
            Beside { bootstrap: Some(machine.file("bootstrap.json")), ..Beside::default() };
        let agent = tokio::spawn(run(config.clone(), beside, end.clone()));
        // Its pages answer from then on.
        let socket = config.socket.clone();
        until("it listens", || TcpStream::connect(health.address).is_ok() || agent.is_finished())
            .await;
        until("its socket is there", || socket.exists() || agent.is_finished()).await;
        Self { _machine: machine, config, end, agent, _health: health }
    }

    async fn end(self) {
        self.end.cancel();
        self.agent.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn an_envoy_is_ready_once_its_admin_pages_say_that_it_serves() {
    let admin = Admin::start(Said { ready: (503, "INITIALIZING\n"), ..SERVING }).await;
    let running = Running::start(admin.address).await;
    let health = running.config.health;
    says(health, "no proxy has taken its listeners yet").await;
    assert_eq!(admin.asked(), [""; 0]);
    let _taking = takes(&running.config, running.end.clone()).await;
    says(health, "Envoy is not live yet: it says INITIALIZING").await;
    *admin.said.lock().unwrap() = Said { listeners: "capture::0.0.0.0:15001\n", ..SERVING };
    says(health, "Envoy has not started its listener inbound yet").await;
    assert!(!readyz(health).await.is_ok());
    *admin.said.lock().unwrap() = SERVING;
    says(health, "ok\n").await;
    assert!(readyz(health).await.is_ok());
    running.end().await;
}

#[tokio::test]
async fn an_envoy_whose_admin_port_does_not_answer_is_not_ready_and_it_is_said_why() {
    // Nobody listens there.
    let admin = Port::held();
    let running = Running::start(admin.address).await;
    let health = running.config.health;
    let _taking = takes(&running.config, running.end.clone()).await;
    says(health, &format!("ISM1006 nothing answers at {}", admin.address)).await;
    assert!(!readyz(health).await.is_ok());
    running.end().await;
}
