//! How the control plane is dialled: TLS 1.3 to exactly its identity.

use mesh::name::{Identity, TrustDomain};
use rustls_pki_types::ServerName;
use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::TlsConnector;
use trust::bundle::Bundle;
use trust::svid::Svid;
use trust::tls::Expected;
use xds::subscribe::Connector;

/// Longest connect and handshake.
const DIAL_MAX: Duration = Duration::from_secs(5);

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
    address: SocketAddr,
    svid: Option<watch::Receiver<Arc<Svid>>>,
    bundle: watch::Receiver<Arc<Bundle>>,
    server: &Identity,
) -> Connector {
    let expected = Expected::AnyOf(Arc::new(BTreeSet::from([server.clone()])));
    let config = trust::tls::client_config(svid, bundle, expected, &[b"h2"]);
    Connector::new(move || {
        let connector = TlsConnector::from(config.clone());
        async move {
            let dial = async {
                let stream = TcpStream::connect(address).await?;
                stream.set_nodelay(true)?;
                let name = ServerName::try_from("control-plane.isthmus.internal")
                    .expect("a literal host is a server name");
                connector.connect(name, stream).await
            };
            tokio::time::timeout(DIAL_MAX, dial).await.unwrap_or_else(|_| {
                Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!("the control plane at {address} did not answer within 5 s"),
                ))
            })
        }
    })
}
