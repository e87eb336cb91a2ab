//! How the control plane is dialled: TLS 1.3 to exactly its identity, at an address or at whatever
//! its name leads to now.

use mesh::name::{Identity, TrustDomain};
use rand::seq::SliceRandom as _;
use rustls_pki_types::ServerName;
use serde::Deserialize;
use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use trust::bundle::Bundle;
use trust::svid::Svid;
use trust::tls::Expected;
use xds::subscribe::Connector;

/// Longest resolving, connect and handshake, over all addresses.
const DIAL_MAX: Duration = Duration::from_secs(5);
/// Longest of that for one address where there are several: a replica that hangs must leave time
/// for the next.
const TRY_MAX: Duration = Duration::from_secs(2);
/// Longest name in DNS, characters (RFC 1035, 2.3.4).
const NAME_MAX: usize = 253;

/// `HOST:PORT`, the host an IP address (IPv6 in brackets) or a name of DNS, which is resolved anew
/// at every connect: its addresses are replicas, tried in random order.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct HostPort {
    host: String,
    port: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not HOST:PORT, a name or an IP address (IPv6 in brackets) and a port")]
pub struct NotHostPort(String);

impl FromStr for HostPort {
    type Err = NotHostPort;

    fn from_str(text: &str) -> Result<Self, NotHostPort> {
        let refuse = || NotHostPort(text.chars().take(NAME_MAX).collect());
        if let Ok(address) = text.parse::<SocketAddr>() {
            return Ok(address.into());
        }
        let (host, port) = text.rsplit_once(':').ok_or_else(refuse)?;
        let port = port.parse().map_err(|_| refuse())?;
        let fits = |label: &str| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        };
        let name = host.strip_suffix('.').unwrap_or(host);
        // A name of digits alone is a mistyped address: no top-level domain is a number (RFC 3696).
        let number = name.rsplit('.').next().is_some_and(|l| l.bytes().all(|b| b.is_ascii_digit()));
        if host.len() > NAME_MAX || number || !name.split('.').all(fits) {
            return Err(refuse());
        }
        Ok(Self { host: host.to_owned(), port })
    }
}

impl TryFrom<String> for HostPort {
    type Error = NotHostPort;

    fn try_from(text: String) -> Result<Self, NotHostPort> {
        text.parse()
    }
}

impl From<SocketAddr> for HostPort {
    fn from(address: SocketAddr) -> Self {
        Self { host: address.ip().to_string(), port: address.port() }
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.parse::<IpAddr>() {
            Ok(ip) => SocketAddr::new(ip, self.port).fmt(f),
            Err(_) => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

impl HostPort {
    /// All addresses it has now, in random order.
    async fn resolve(&self) -> io::Result<Vec<SocketAddr>> {
        let resolved = tokio::net::lookup_host((self.host.as_str(), self.port)).await;
        let resolved = resolved.map_err(|error| {
            io::Error::new(error.kind(), format!("{} has no address in DNS: {error}", self.host))
        })?;
        let mut addresses: Vec<SocketAddr> = resolved.collect();
        addresses.shuffle(&mut rand::rng());
        Ok(addresses)
    }
}

/// Who a control plane of that trust domain is.
pub(crate) fn control_plane(domain: &TrustDomain) -> Identity {
    Identity {
        domain: domain.clone(),
        namespace: "isthmus-system".into(),
        account: "isthmus-control-plane".into(),
    }
}

/// Without `svid`, only the server shows a certificate: for the first CSR.
pub(crate) fn connector(
    place: HostPort,
    svid: Option<watch::Receiver<Arc<Svid>>>,
    bundle: watch::Receiver<Arc<Bundle>>,
    server: &Identity,
) -> Connector {
    let expected = Expected::AnyOf(Arc::new(BTreeSet::from([server.clone()])));
    let config = trust::tls::client_config(svid, bundle, expected, &[b"h2"]);
    Connector::new(move || {
        let (connector, place) = (TlsConnector::from(config.clone()), place.clone());
        async move {
            tokio::time::timeout(DIAL_MAX, any_of(&place, &connector)).await.unwrap_or_else(|_| {
                Err(late(format!("the control plane at {place} did not answer within 5 s")))
            })
        }
    })
}

/// The first address that shakes hands.
async fn any_of(place: &HostPort, tls: &TlsConnector) -> io::Result<TlsStream<TcpStream>> {
    let addresses = place.resolve().await?;
    let limit = if addresses.len() > 1 { TRY_MAX } else { DIAL_MAX };
    let mut last = io::Error::other(format!("{place} has no address"));
    for address in addresses {
        match tokio::time::timeout(limit, shake(address, tls)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => last = error,
            Err(_) => last = late(format!("{address} did not answer within 2 s")),
        }
    }
    Err(last)
}

async fn shake(address: SocketAddr, tls: &TlsConnector) -> io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let name = ServerName::try_from("control-plane.isthmus.internal")
        .expect("a literal host is a server name");
    tls.connect(name, stream).await
}

fn late(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, text)
}

#[cfg(test)]
mod tests {
    use super::HostPort;

    #[test]
    fn addresses_and_names_are_places() {
        for text in [
            "10.96.0.7:15012",
            "[fd00::7]:15012",
            "isthmus-control-plane.isthmus-system.svc:15012",
            "cp.example.com.:443",
        ] {
            assert_eq!(text.parse::<HostPort>().unwrap().to_string(), text);
        }
        for text in [
            "",
            "15012",
            "host",
            ":1",
            "fd00::7:15012",
            "a b:1",
            "10.96.0.700:1",
            "h:70000",
            "a..b:1",
        ] {
            let problem = text.parse::<HostPort>().unwrap_err().to_string();
            assert!(problem.contains("HOST:PORT"), "{text}: {problem}");
        }
    }

    #[tokio::test]
    async fn a_name_is_resolved_to_all_its_addresses() {
        let place: HostPort = "localhost:15012".parse().unwrap();
        let addresses = place.resolve().await.unwrap();
        assert!(!addresses.is_empty() && addresses.iter().all(|a| a.ip().is_loopback()));
        // No server of DNS is asked for a label this long, so none can be slow (RFC 1035, 2.3.4).
        let host = "x".repeat(64);
        let nobody = HostPort { host: host.clone(), port: 1 };
        let problem = nobody.resolve().await.unwrap_err().to_string();
        assert!(problem.contains(&format!("{host} has no address in DNS: ")), "{problem}");
    }
}
