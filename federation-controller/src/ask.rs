//! Asks our own DNS every few seconds, as a client would: who checks the cluster sees the effect, not
//! that a task runs.

use serde::Serialize;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Between two questions to one server.
const EVERY: Duration = Duration::from_secs(2);

/// What one address of our DNS answered last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Asked {
    pub server: SocketAddr,
    /// Why nothing came back; `null` where it answered.
    pub problem: Option<String>,
}

/// Where a server that listens on `address` is reached from this process.
fn here(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => IpAddr::V6(Ipv6Addr::LOCALHOST),
        given => given,
    };
    SocketAddr::new(ip, address.port())
}

/// Asks every address until `end`.
pub(crate) async fn keep(
    listen: Vec<SocketAddr>,
    told: watch::Sender<Vec<Asked>>,
    end: CancellationToken,
) {
    let mut tick = tokio::time::interval(EVERY);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = end.cancelled() => return,
            _ = tick.tick() => {}
        }
        let mut all = Vec::with_capacity(listen.len());
        for address in &listen {
            let server = here(*address);
            let answer = dns::answers(server).await;
            all.push(Asked { server, problem: answer.err().map(|error| format!("{error:#}")) });
        }
        told.send_if_modified(|before| {
            let news = *before != all;
            *before = all;
            news
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_for_all_is_asked_on_loopback() {
        let asked = |text: &str| here(text.parse().unwrap()).to_string();
        assert_eq!(asked("0.0.0.0:53"), "127.0.0.1:53");
        assert_eq!(asked("[::]:53"), "[::1]:53");
        assert_eq!(asked("10.244.0.1:53"), "10.244.0.1:53");
    }

    #[tokio::test]
    async fn silence_is_told_and_an_answer_too() {
        // A socket that nobody reads: every question is lost.
        let mute = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let (metrics, end) = (runtime::metrics::Metrics::new(), CancellationToken::new());
        let (_zone, zone) = watch::channel(std::sync::Arc::new(mesh::zone::Zone::default()));
        let options = dns::Options {
            listen: vec!["127.0.0.1:0".parse().unwrap()],
            upstreams: vec![],
            allow: vec![],
            zone,
            metrics,
        };
        let server = dns::Server::bind(options).unwrap();
        let listen = vec![mute.local_addr().unwrap(), server.addresses()[0]];
        tokio::spawn(server.run(end.clone()));
        let (send, mut told) = watch::channel(vec![]);
        tokio::spawn(keep(listen, send, end.clone()));
        let all = told.wait_for(|all| all.len() == 2).await.unwrap().clone();
        assert!(all[0].problem.is_some() && all[1].problem.is_none(), "{all:?}");
        end.cancel();
    }
}
