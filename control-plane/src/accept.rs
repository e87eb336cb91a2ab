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
