//! A connection for one attempt: one that is kept, one that another request is done with, or a new one.

use super::exchange::{Exchange, Step};
use super::{Key, Peer};
use crate::connection::Connection;
use crate::dials::Turn;
use proxy::upstream::STAGGER;
use proxy::{Ask, Picked};
use std::time::{Duration, Instant};
use tokio::time::sleep;

/// A request whose connection takes so long also takes one that leads elsewhere: just before another
/// endpoint would be dialled, since a connection that is there already needs no handshake.
const ELSEWHERE_AFTER: Duration =
    proxy::upstream::STAGGER.saturating_sub(Duration::from_millis(10));

/// Connections to one gateway that take turns, where so many copies are behind it: each leads to one of
/// them.
const SPREAD_MAX: usize = 8;

/// How far the request that waits has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wait {
    ForItsTurn,
    /// It dials by itself too.
    Dialling,
}

impl Exchange<'_> {
    /// Whichever comes first: a connection of its own, or one that another request is done with. In
    /// a crowd (a gateway hung, and all turn to another at once) the first few connections serve
    /// everybody, instead of one handshake for each. `fresh` wants a new one.
    pub(super) async fn connect(&self, mut picked: Picked, avoid: Vec<Key>, fresh: bool) -> Step {
        if !fresh && let Some(connection) = self.kept(&picked) {
            return reused((connection, picked));
        }
        let turn = tokio::select! {
            biased;
            Some(kept) = self.handed(&picked, &avoid, Wait::ForItsTurn), if !fresh => {
                return reused(kept);
            }
            turn = self.turn(&picked, fresh) => turn,
        };
        if turn.waited {
            // Meanwhile the endpoint may have come under suspicion, or a connection may have got room.
            if !picked.is_sound()
                && let Ok(other) = self.upstream.pick(&avoid)
            {
                picked = other;
            }
            if !fresh && let Some(connection) = self.kept(&picked) {
                return reused((connection, picked));
            }
        }
        let first = Some(picked.clone());
        let ask =
            Ask { alpn: self.wire.alpn().to_vec(), first, avoid: avoid.clone(), ..Ask::default() };
        let established = tokio::select! {
            biased;
            Some(kept) = self.handed(&picked, &avoid, Wait::Dialling), if !fresh => {
                return reused(kept);
            }
            established = self.upstream.connect(&ask) => established,
            never = turn.pass_on() => match never {},
        };
        let established = match established {
            Ok(established) => established,
            Err(failed) => return Step::NotConnected(failed),
        };
        let (endpoint, identity) = (established.endpoint, established.identity);
        let key = (endpoint.address, endpoint.cluster.clone());
        let party = Some((&endpoint, identity.as_ref()));
        let metrics = self.context.metrics(&self.destination.name, party);
        let meshed = endpoint.tls;
        let peer = Peer { endpoint, identity, metrics, _slot: established.slot };
        match Connection::open(established.stream, self.wire, meshed, peer).await {
            Ok(connection) => {
                let idle = Duration::from_millis(self.upstream.cluster().pool.idle_timeout_ms);
                self.destination.pool.share((key, self.wire), &connection, idle);
                Step::Connected { connection, in_flight: established.in_flight, reused: false }
            }
            Err(problem) => Step::NotHttp { key, problem },
        }
    }

    /// The right to dial, once it cannot be expected that a new connection takes one more stream soon:
    /// its peer says within a round trip how many it takes, and another connection takes two.
    async fn turn(&self, picked: &Picked, fresh: bool) -> Turn<'_> {
        let mut turn = self.destination.dials.turn().await;
        if !fresh {
            let place = (picked.key(), self.wire);
            turn.waited |= self.destination.pool.promised(&place, STAGGER).await;
        }
        turn
    }

    /// A connection to `picked` that nobody uses now.
    fn kept(&self, picked: &Picked) -> Option<Connection<Peer>> {
        if !picked.is_usable() {
            return None;
        }
        let spread = picked.behind().clamp(1, SPREAD_MAX);
        let place = (picked.key(), self.wire);
        self.destination.pool.take(&place, Instant::now(), spread, |peer| self.fits(peer))
    }

    /// The next connection to `picked` that another request is done with; `None` where it does not
    /// serve after all.
    async fn returned(&self, picked: &Picked, wait: Wait) -> Option<(Connection<Peer>, Picked)> {
        let dialling = wait == Wait::Dialling;
        let mut connection =
            self.destination.pool.wait((picked.key(), self.wire), dialling).await.ok()?;
        let usable = self.fits(&connection.about) && connection.ready().await.is_ok();
        usable.then(|| (connection, picked.clone()))
    }

    /// [`Exchange::returned`], and after a while also one that leads elsewhere.
    async fn handed(
        &self,
        picked: &Picked,
        avoid: &[Key],
        wait: Wait,
    ) -> Option<(Connection<Peer>, Picked)> {
        let elsewhere = async {
            sleep(ELSEWHERE_AFTER).await;
            let other = self.upstream.pick_elsewhere(picked, avoid)?;
            match self.kept(&other) {
                Some(connection) => Some((connection, other)),
                None => self.returned(&other, wait).await,
            }
        };
        tokio::select! {
            Some(kept) = self.returned(picked, wait) => Some(kept),
            Some(kept) = elsewhere => Some(kept),
            else => None,
        }
    }

    /// Who may answer can have changed since a connection was verified.
    fn fits(&self, peer: &Peer) -> bool {
        match &peer.identity {
            None => !peer.endpoint.tls,
            Some(identity) => self
                .upstream
                .cluster()
                .server_identities
                .get(&peer.endpoint.cluster)
                .is_some_and(|identities| identities.contains(identity)),
        }
    }
}

fn reused((connection, picked): (Connection<Peer>, Picked)) -> Step {
    Step::Connected { connection, in_flight: picked.begin(), reused: true }
}
