//! Asks a gateway who it is: a handshake for the one name that it answers itself (decision 14).
//!
//! Whoever asks shows no certificate, so the gateway closes after its own part of the handshake: what
//! is proven is the path, the process and the gateway's identity, not that it would take a client.

use crate::bundle::Bundle;
use crate::tls::{self, Expected};
use mesh::name::{ClusterId, Identity, TrustDomain};
use mesh::sni::probe_host;
use rustls_pki_types::ServerName;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsConnector;

/// What one probe found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Probed {
    /// The gateway of that cluster, after this time.
    Alive(Duration),
    /// Nothing answers there: refused, or silence.
    Missed(String),
    /// Something answers that is not that cluster's gateway.
    Foreign(String),
}

/// Probes the gateway of `cluster` at `address`; `domain` is the cluster's trust domain. One lost packet
/// is no dead gateway: what is not alive is asked once more, each time for half of `limit`.
pub async fn gateway(
    address: SocketAddr,
    cluster: &ClusterId,
    domain: &TrustDomain,
    bundle: &Bundle,
    limit: Duration,
) -> Probed {
    match once(address, cluster, domain, bundle, limit / 2).await {
        Probed::Alive(took) => Probed::Alive(took),
        Probed::Missed(_) | Probed::Foreign(_) => {
            once(address, cluster, domain, bundle, limit / 2).await
        }
    }
}

async fn once(
    address: SocketAddr,
    cluster: &ClusterId,
    domain: &TrustDomain,
    bundle: &Bundle,
    limit: Duration,
) -> Probed {
    let expected = Identity {
        domain: domain.clone(),
        namespace: "isthmus-system".into(),
        account: "isthmus-gateway".into(),
    };
    let (_hold, bundle) = watch::channel(Arc::new(bundle.clone()));
    let expected = Expected::AnyOf(Arc::new(BTreeSet::from([expected])));
    let config = tls::client_config(None, bundle, expected, &[b"istio"]);
    let name = ServerName::try_from(probe_host(cluster).as_str().to_owned())
        .expect("a host is a server name");
    let begun = Instant::now();
    let deadline = begun + limit;
    let stream = match timeout_at(deadline, TcpStream::connect(address)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Probed::Missed(error.to_string()),
        Err(_) => return Probed::Missed(format!("no connection within {} ms", limit.as_millis())),
    };
    let connector = TlsConnector::from(config);
    match timeout_at(deadline, connector.connect(name, stream)).await {
        Ok(Ok(_)) => Probed::Alive(begun.elapsed()),
        Ok(Err(error)) => Probed::Foreign(match tls::refused_io(&error) {
            Some(refused) => refused.to_string(),
            None if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                "it closes the connection without a word".into()
            }
            None => error.to_string(),
        }),
        Err(_) => Probed::Missed(format!("no handshake within {} ms", limit.as_millis())),
    }
}
