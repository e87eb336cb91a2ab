//! The task around a [`ClientSession`]: dials, exchanges, publishes, and dials again.

use super::warming::{Warming, Wishes};
use super::{Connector, WATCHDOG, channel};
use crate::codec;
use crate::length::RESPONSE_MAX;
use crate::node::Node;
use crate::session::client::{ClientSession, Received};
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse,
    aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
};
use mesh::program::{Program, ResourceName, Snapshot, Want};
use mesh::world::Dialect;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

/// First pause before dialling again, doubled each time …
const BACKOFF_MIN: Duration = Duration::from_millis(200);
/// … up to this; each pause is cut by up to a half at random.
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// A stream that lasted so long was a good one: the next pause is short again.
const GOOD_STREAM: Duration = Duration::from_secs(10);
/// How long dialling and the first answer may take.
const CONNECT: Duration = Duration::from_secs(10);

type Refusals = BTreeMap<ResourceName, String>;

pub(super) struct Driver {
    session: ClientSession,
    warming: Warming,
    connected: bool,
    refused: Refusals,
    snapshot: watch::Sender<Arc<Snapshot>>,
    refusals: watch::Sender<Arc<Refusals>>,
}

/// Why a stream is over.
enum Over {
    /// `end`, or nobody listens any more.
    End,
    Broken(String),
}

impl Driver {
    pub(super) fn new(
        node: &Node,
        known: Program,
    ) -> (Self, watch::Receiver<Arc<Snapshot>>, watch::Receiver<Arc<Refusals>>) {
        let mut session = ClientSession::new(node.to_proto());
        for (name, resource) in &known {
            session.subscribe(name);
            session.held(name, codec::version(resource, Dialect::Isthmus));
        }
        let warming = Warming::from_known(known);
        let program = warming.shown().clone();
        let (snapshot, shown) =
            watch::channel(Arc::new(Snapshot { program, ..Snapshot::default() }));
        let (refusals, refused) = watch::channel(Arc::default());
        let connected = false;
        let driver =
            Self { session, warming, connected, refused: Refusals::new(), snapshot, refusals };
        (driver, shown, refused)
    }

    pub(super) async fn run(
        mut self,
        connector: Connector,
        mut wants: mpsc::Receiver<Want>,
        end: CancellationToken,
    ) {
        let mut backoff = BACKOFF_MIN;
        loop {
            let begun = Instant::now();
            let over = self.stream(&connector, &mut wants, &end).await;
            self.connected = false;
            self.publish();
            match over {
                Over::End => return,
                Over::Broken(cause) => tracing::info!(cause, "no xDS stream, dialling again"),
            }
            if begun.elapsed() >= GOOD_STREAM {
                backoff = BACKOFF_MIN;
            }
            let pause = Instant::now() + backoff.mul_f64(rand::random_range(0.5..1.0));
            backoff = (backoff * 2).min(BACKOFF_MAX);
            while Instant::now() < pause {
                tokio::select! {
                    () = tokio::time::sleep_until(pause) => (),
                    Some(want) = wants.recv() => self.wanted(want, &mut wants),
                    () = end.cancelled() => return,
                }
            }
        }
    }

    /// One stream from dialling to its end.
    async fn stream(
        &mut self,
        connector: &Connector,
        wants: &mut mpsc::Receiver<Want>,
        end: &CancellationToken,
    ) -> Over {
        let (requests, outgoing) = mpsc::channel(16);
        self.session.reconnected();
        let first = self.session.next().unwrap_or_else(|| self.session.hello());
        requests.try_send(first).expect("the channel is new");
        let opening = tokio::time::timeout(CONNECT, open(connector, outgoing));
        tokio::pin!(opening);
        let mut incoming = loop {
            tokio::select! {
                opened = &mut opening => match opened {
                    Ok(Ok(incoming)) => break incoming,
                    Ok(Err(cause)) => return Over::Broken(cause),
                    Err(_) => return Over::Broken("no answer within 10 s".to_owned()),
                },
                Some(want) = wants.recv() => self.wanted(want, wants),
                () = end.cancelled() => return Over::End,
            }
        };
        self.connected = true;
        self.publish();
        let mut deadline = None;
        loop {
            match (self.session.awaits(), deadline) {
                (false, _) => deadline = None,
                (true, None) => deadline = Some(Instant::now() + WATCHDOG),
                (true, Some(_)) => (),
            }
            let watchdog = async {
                match deadline {
                    Some(deadline) => tokio::time::sleep_until(deadline).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                // Never instead of reading: a server that waits for us to read reads nothing.
                permit = requests.reserve(), if self.session.speaks() => match permit {
                    Ok(permit) => permit.send(self.session.next().expect("it speaks")),
                    Err(_) => return Over::Broken("the stream closed".to_owned()),
                },
                response = incoming.message() => match response {
                    Ok(Some(response)) => {
                        // Long answers come in parts. But who goes on about what it told us
                        // before, and never comes to what we ask, is stuck too.
                        if self.received(response) {
                            deadline = None;
                        }
                    }
                    Ok(None) => return Over::Broken("the control plane closed the stream".to_owned()),
                    Err(status) => return Over::Broken(describe(&status)),
                },
                Some(want) = wants.recv() => self.wanted(want, wants),
                () = watchdog => {
                    return Over::Broken("the control plane owes an answer for 45 s".to_owned());
                }
                () = end.cancelled() => return Over::End,
            }
        }
    }

    /// Takes a wish, and all that wait behind it: settling costs the same for one and for many.
    fn wanted(&mut self, want: Want, wants: &mut mpsc::Receiver<Want>) {
        for want in std::iter::once(want).chain(std::iter::from_fn(|| wants.try_recv().ok())) {
            match want {
                Want::Subscribe(name) => self.warming.want(name),
                Want::Unsubscribe(name) => self.warming.unwant(&name),
            }
        }
        self.settle();
    }

    /// True where it answers something that was owed.
    fn received(&mut self, response: DeltaDiscoveryResponse) -> bool {
        let owed = self.session.owed();
        let Received { taken, removed, refused } = self.session.response(response);
        let answers = self.session.owed() < owed;
        for (name, resource) in taken {
            self.refused.remove(&name);
            self.warming.take(name, resource);
        }
        for name in removed {
            self.refused.remove(&name);
            self.warming.remove(name);
        }
        for (name, reason) in refused {
            tracing::warn!(%name, reason, "a resource is refused; the last good one stays");
            self.refused.insert(name, reason);
        }
        self.settle();
        answers
    }

    fn settle(&mut self) {
        let Wishes { subscribe, unsubscribe } = self.warming.settle();
        for name in &unsubscribe {
            self.refused.remove(name);
            self.session.unsubscribe(name);
        }
        for name in &subscribe {
            self.session.subscribe(name);
        }
        self.publish();
    }

    /// Silence where nothing changed.
    fn publish(&self) {
        let now = Snapshot {
            program: self.warming.shown().clone(),
            absent: self.warming.absent().clone(),
            connected: self.connected,
        };
        self.snapshot.send_if_modified(|shown| {
            let news = **shown != now;
            if news {
                *shown = Arc::new(now);
            }
            news
        });
        self.refusals.send_if_modified(|shown| {
            let news = **shown != self.refused;
            if news {
                *shown = Arc::new(self.refused.clone());
            }
            news
        });
    }
}

async fn open(
    connector: &Connector,
    outgoing: mpsc::Receiver<DeltaDiscoveryRequest>,
) -> Result<Streaming<DeltaDiscoveryResponse>, String> {
    let channel = channel(connector).await.map_err(|error| crate::issue::wire::chain(&error))?;
    let mut client =
        AggregatedDiscoveryServiceClient::new(channel).max_decoding_message_size(RESPONSE_MAX);
    let response = client.delta_aggregated_resources(ReceiverStream::new(outgoing)).await;
    Ok(response.map_err(|status| describe(&status))?.into_inner())
}

fn describe(status: &Status) -> String {
    format!("{:?}: {}", status.code(), crate::issue::wire::chain(status))
}
