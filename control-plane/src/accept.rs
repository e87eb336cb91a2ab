//! Connections in: TLS under a deadline, strangers and members counted apart, and nothing that one
//! of them does ends the loop.

use crate::numbers::Numbers;
use mesh::name::Identity;
use rustls::ServerConfig;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::Sleep;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use trust::tls;

/// What connections may cost.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Connections with a certificate, at once.
    pub(crate) members: usize,
    /// Connections without one, or in their handshake, at once; more wait to be accepted.
    pub(crate) strangers: usize,
    /// From TCP's accept to the end of TLS's handshake.
    pub(crate) handshake: Duration,
    /// How long a connection without a certificate may last: it can do no more than ask for one.
    pub(crate) visit: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            members: 10_000,
            strangers: 1_000,
            handshake: Duration::from_secs(5),
            visit: Duration::from_secs(30),
        }
    }
}

/// An accepted connection; its place is free again when it is dropped.
#[derive(Debug)]
pub(crate) struct Accepted {
    stream: TlsStream<TcpStream>,
    /// Ends the visit of a stranger.
    leave: Option<Pin<Box<Sleep>>>,
    _place: OwnedSemaphorePermit,
}

/// Accepts until `end`, and hands on who has finished the handshake.
pub(crate) async fn accept(
    listener: TcpListener,
    config: Arc<ServerConfig>,
    limits: Limits,
    numbers: Numbers,
    into: mpsc::Sender<(Accepted, Option<Identity>)>,
    end: CancellationToken,
) {
    let acceptor = TlsAcceptor::from(config);
    let strangers = Arc::new(Semaphore::new(limits.strangers));
    let members = Arc::new(Semaphore::new(limits.members));
    loop {
        let place = strangers.clone().acquire_owned();
        let (place, accepted) = tokio::select! {
            () = end.cancelled() => return,
            both = async { (place.await, listener.accept().await) } => both,
        };
        let place = place.expect("the semaphore is never closed");
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors, or a client that left already: neither may end the loop.
                tracing::warn!(%error, "accepting a connection failed");
                numbers.connection_refused("accept");
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            }
        };
        let (acceptor, members, numbers) = (acceptor.clone(), members.clone(), numbers.clone());
        let (into, end) = (into.clone(), end.clone());
        tokio::spawn(async move {
            let admitted = tokio::select! {
                () = end.cancelled() => return,
                admitted = admit(stream, &acceptor, place, &members, limits) => admitted,
            };
            match admitted {
                // A receiver that is gone means that serving has ended: so does this connection.
                Ok(pair) => drop(into.send(pair).await),
                Err((reason, error)) => {
                    tracing::debug!(reason, error, "connection refused");
                    numbers.connection_refused(reason);
                }
            }
        });
    }
}

async fn admit(
    stream: TcpStream,
    acceptor: &TlsAcceptor,
    place: OwnedSemaphorePermit,
    members: &Arc<Semaphore>,
    limits: Limits,
) -> Result<(Accepted, Option<Identity>), (&'static str, String)> {
    // Small messages both ways: waiting for more to send only adds delay.
    stream.set_nodelay(true).map_err(|e| ("accept", e.to_string()))?;
    let stream = match tokio::time::timeout(limits.handshake, acceptor.accept(stream)).await {
        Err(_) => return Err(("late", "the handshake took too long".into())),
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            return Err(match tls::refused_io(&error) {
                Some(refused) => ("certificate", refused.to_string()),
                None => ("handshake", error.to_string()),
            });
        }
    };
    let identity = stream.get_ref().1.peer_certificates().and_then(tls::peer_identity);
    if identity.is_none() {
        let leave = Some(Box::pin(tokio::time::sleep(limits.visit)));
        return Ok((Accepted { stream, leave, _place: place }, None));
    }
    let place = members.clone().try_acquire_owned();
    let place = place.map_err(|_| ("full", "there are too many connections".to_owned()))?;
    Ok((Accepted { stream, leave: None, _place: place }, identity))
}

impl AsyncRead for Accepted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Some(leave) = &mut self.leave
            && leave.as_mut().poll(context).is_ready()
        {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Accepted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authority::{self, tests::cacerts};
    use runtime::metrics::Metrics;
    use rustls::ClientConfig;
    use std::net::SocketAddr;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::sync::watch;
    use tokio_rustls::TlsConnector;
    use trust::tls::{Clients, Expected};

    struct Place {
        address: SocketAddr,
        member: Arc<ClientConfig>,
        stranger: Arc<ClientConfig>,
        metrics: Metrics,
        accepted: mpsc::Receiver<(Accepted, Option<Identity>)>,
        end: CancellationToken,
    }

    const LIMITS: Limits = Limits {
        members: 1,
        strangers: 2,
        handshake: Duration::from_secs(5),
        visit: Duration::from_secs(60),
    };

    async fn listening(limits: Limits) -> Place {
        let issuer = authority::issuer(&cacerts("east.mesh")).unwrap();
        let svid = Arc::new(authority::own_svid(&issuer, "isthmus-system", &[]).unwrap());
        let expected = Expected::AnyOf(Arc::new([svid.identity.clone()].into()));
        let (_, bundle) = watch::channel(Arc::new(issuer.bundle().clone()));
        let (_, svid) = watch::channel(svid);
        let client = |svid| tls::client_config(svid, bundle.clone(), expected.clone(), &[b"h2"]);
        let (member, stranger) = (client(Some(svid.clone())), client(None));
        let config = tls::server_config(svid, bundle.clone(), Clients::Optional, &[b"h2"]);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (metrics, numbers) = (Metrics::new(), Numbers::default());
        metrics.register(|registry| numbers.register(registry));
        let (into, accepted) = mpsc::channel(8);
        let end = CancellationToken::new();
        tokio::spawn(accept(listener, config, limits, numbers, into, end.clone()));
        Place { address, member, stranger, metrics, accepted, end }
    }

    type Client = tokio_rustls::client::TlsStream<TcpStream>;

    impl Place {
        async fn dial(&self, config: &Arc<ClientConfig>) -> Client {
            let stream = TcpStream::connect(self.address).await.unwrap();
            let name = "istiod.istio-system.svc".try_into().unwrap();
            TlsConnector::from(config.clone()).connect(name, stream).await.unwrap()
        }

        fn refused(&self, reason: &str) -> bool {
            let line = format!("connections_refused_total{{reason=\"{reason}\"}} 1");
            self.metrics.encode().contains(&line)
        }
    }

    /// Ends when the other side has ended the connection.
    async fn closed(stream: &mut (impl AsyncRead + Unpin)) {
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest).await;
    }

    #[tokio::test]
    async fn members_are_known_and_strangers_are_let_in_without_a_name() {
        let mut place = listening(LIMITS).await;
        let _stranger = place.dial(&place.stranger).await;
        assert_eq!(place.accepted.recv().await.unwrap().1, None);
        let mut client = place.dial(&place.member).await;
        let (mut member, identity) = place.accepted.recv().await.unwrap();
        let identity = identity.unwrap().to_string();
        assert_eq!(identity, "spiffe://east.mesh/ns/isthmus-system/sa/isthmus-control-plane");
        client.write_all(b"ping").await.unwrap();
        let mut read = [0; 4];
        member.read_exact(&mut read).await.unwrap();
        assert_eq!(&read, b"ping");

        // One member is all there may be: the next is closed, and counted.
        let mut second = place.dial(&place.member).await;
        closed(&mut second).await;
        assert!(place.refused("full"));
        drop(member);
        let _third = place.dial(&place.member).await;
        assert!(place.accepted.recv().await.unwrap().1.is_some(), "its place is free again");
    }

    #[tokio::test]
    async fn whoever_is_silent_or_talks_garbage_keeps_nobody_out() {
        // As long as the silent one is waited for.
        let handshake = Duration::from_secs(2);
        let mut place = listening(Limits { handshake, ..LIMITS }).await;
        let mut silent = TcpStream::connect(place.address).await.unwrap();
        let mut garbage = TcpStream::connect(place.address).await.unwrap();
        garbage.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        closed(&mut garbage).await;
        // Both places may be taken now: this one is accepted once the silent one has been closed.
        let _client = place.dial(&place.member).await;
        assert!(place.accepted.recv().await.unwrap().1.is_some());
        closed(&mut silent).await;
        assert!(place.refused("handshake") && place.refused("late"), "{}", place.metrics.encode());
    }

    #[tokio::test]
    async fn a_visit_ends() {
        let visit = Duration::from_millis(50);
        let mut place = listening(Limits { visit, ..LIMITS }).await;
        let _client = place.dial(&place.stranger).await;
        let (mut stranger, _) = place.accepted.recv().await.unwrap();
        let error = stranger.read_u8().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn the_end_ends_it() {
        let mut place = listening(LIMITS).await;
        place.end.cancel();
        assert!(place.accepted.recv().await.is_none(), "the accept loop is gone");
        assert!(TcpStream::connect(place.address).await.is_err());
    }
}
