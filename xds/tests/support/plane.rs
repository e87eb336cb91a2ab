//! A control plane in memory that serves one program, and ways to dial it.

pub(crate) use super::world::World;
use futures::future::BoxFuture;
use mesh::name::Identity;
use mesh::world::{Dialect, Role};
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::DuplexStream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tokio_util::sync::CancellationToken;
use xds::issue::{self, Issue, Refused, TurnedAway};
use xds::node::Node;
use xds::serve::{self, Sessions, Shares, Source};
use xds::subscribe::Connector;

#[derive(Default)]
pub(crate) struct Issuer {
    pub(crate) turned_away: Mutex<Vec<TurnedAway>>,
}

impl Issue for Issuer {
    fn issue(&self, request: issue::Request) -> BoxFuture<'_, Result<Vec<String>, Refused>> {
        Box::pin(async move {
            match request.token.as_deref() {
                Some("good") => Ok(vec![format!("leaf of {}", request.csr_pem), "root".into()]),
                Some("slow") => std::future::pending().await,
                _ => Err(Refused::Unauthenticated("ISM3999 that token is not good".into())),
            }
        })
    }

    fn turned_away(&self, why: TurnedAway) {
        self.turned_away.lock().unwrap().push(why);
    }
}

pub(crate) fn hello() -> Identity {
    "spiffe://east.mesh/ns/shop/sa/hello".parse().unwrap()
}

pub(crate) fn node() -> Node {
    Node {
        role: Role::Sidecar,
        address: "10.244.0.7".parse().unwrap(),
        pod: "hello-0".into(),
        namespace: "shop".into(),
        cluster: "east".into(),
        network: "net-east".into(),
        account: "hello".into(),
        locality: Default::default(),
        dialect: Dialect::Isthmus,
    }
}

type Accepted = (DuplexStream, Option<Identity>);

/// A control plane that can be replaced and cut off, and a way to dial it.
pub(crate) struct Plane {
    door: Arc<Mutex<Option<mpsc::UnboundedSender<Accepted>>>>,
    end: CancellationToken,
    pub(crate) sessions: Sessions,
    pub(crate) issuer: Arc<Issuer>,
}

impl Plane {
    pub(crate) fn start(world: &Arc<World>) -> Self {
        Self::with(world, Shares::default())
    }

    /// With limits of a test's own.
    pub(crate) fn with(world: &Arc<World>, shares: Shares) -> Self {
        let door = Arc::new(Mutex::new(None));
        let sessions = Sessions::new(shares);
        let (end, issuer) = (CancellationToken::new(), Arc::default());
        let mut plane = Self { door, end, sessions, issuer };
        plane.again(world);
        plane
    }

    pub(crate) fn again(&mut self, world: &Arc<World>) {
        let (sender, incoming) = mpsc::unbounded_channel();
        *self.door.lock().unwrap() = Some(sender);
        self.end = CancellationToken::new();
        tokio::spawn(serve::serve(
            UnboundedReceiverStream::new(incoming),
            Arc::clone(world) as Arc<dyn Source>,
            Some(self.issuer.clone()),
            self.sessions.clone(),
            self.end.clone(),
        ));
    }

    pub(crate) fn stop(&self) {
        self.door.lock().unwrap().take();
        self.end.cancel();
    }

    pub(crate) fn connector(&self, peer: Option<Identity>) -> Connector {
        let door = Arc::clone(&self.door);
        Connector::new(move || {
            let (near, far) = tokio::io::duplex(64 * 1024);
            let sent = door.lock().unwrap().as_ref().map(|door| door.send((far, peer.clone())));
            async move {
                match sent {
                    Some(Ok(())) => Ok(near),
                    _ => Err(io::Error::from(io::ErrorKind::ConnectionRefused)),
                }
            }
        })
    }
}

#[track_caller]
pub(crate) fn within<T>(waited: impl Future<Output = T>) -> impl Future<Output = T> {
    let at = std::panic::Location::caller();
    async move {
        let limit = Duration::from_secs(20);
        tokio::time::timeout(limit, waited).await.unwrap_or_else(|_| panic!("waited in vain, {at}"))
    }
}
