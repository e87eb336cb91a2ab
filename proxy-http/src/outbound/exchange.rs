//! One request's attempts: whom to ask, when to ask somebody else, and when to give up (decision 14).

use super::{Context, Destination, Key, Peer, Waiting};
use crate::budget::Away;
use crate::connection::Connection;
use crate::grpc;
use crate::headers::{self, SOURCE, UNSENT, UNSERVED};
use crate::payload::Payload;
use crate::received::Refusal;
use crate::version::Wire;
use futures::StreamExt as _;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use http::request::Parts;
use http::{Response, StatusCode};
use hyper::body::Incoming;
use mesh::program::Retry;
use proxy::upstream::STAGGER;
use proxy::{ConnectFailed, InFlight, Outcome, Picked, Upstream};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

/// Kept connections that prove dead before one is made anew.
const STALE_MAX: u32 = 2;
/// Rest before everybody is dialled again, times the attempts so far, ± half.
const BACKOFF: Duration = Duration::from_millis(25);

/// All that an attempt needs to know.
pub(super) struct Exchange<'a> {
    pub(super) context: &'a Context,
    pub(super) upstream: &'a Upstream,
    pub(super) destination: &'a Arc<Destination>,
    pub(super) retry: &'a Retry,
    /// Its method may be sent twice.
    pub(super) repeatable: bool,
    pub(super) parts: &'a Parts,
    /// How the next hop is spoken to.
    pub(super) wire: Wire,
    /// The client takes trailers.
    pub(super) trailers: bool,
    pub(super) payload: Payload,
    /// Bytes of the body that were sent.
    pub(super) requested: Arc<AtomicU64>,
}

/// The first response.
pub(super) struct Answer {
    pub(super) response: Response<Incoming>,
    pub(super) connection: Connection<Peer>,
    pub(super) in_flight: Arc<InFlight>,
    pub(super) attempts: u32,
}

/// Why there is none.
pub(super) struct Failure {
    pub(super) status: StatusCode,
    /// Envoy's response flags.
    pub(super) flags: &'static str,
    pub(super) reason: String,
    pub(super) peer: Option<Arc<Peer>>,
    pub(super) attempts: u32,
}

/// What happened to one attempt.
pub(super) enum Step {
    Connected {
        connection: Connection<Peer>,
        in_flight: InFlight,
        reused: bool,
    },
    NotConnected(ConnectFailed),
    NotHttp {
        key: Key,
        problem: hyper::Error,
    },
    Answered {
        response: Response<Incoming>,
        connection: Connection<Peer>,
        use_: Use,
    },
    /// The connection was dead before a byte of this request was written, or its server said that
    /// it did nothing with it.
    Unsent {
        /// The server said so.
        refused: bool,
        use_: Use,
    },
    Broken {
        problem: hyper::Error,
        use_: Use,
    },
}

/// One endpoint's use by one attempt.
#[derive(Clone)]
pub(super) struct Use {
    in_flight: Arc<InFlight>,
    peer: Arc<Peer>,
    reused: bool,
    sent_at: Instant,
}

impl Use {
    fn key(&self) -> Key {
        (self.peer.endpoint.address, self.peer.endpoint.cluster.clone())
    }
}

/// What an exchange knows so far.
struct Progress<'a> {
    steps: FuturesUnordered<BoxFuture<'a, Step>>,
    /// Attempts that were begun; those on stale connections do not count.
    attempts: u32,
    stale: u32,
    /// Endpoints this request has tried.
    tried: Vec<Key>,
    away: Vec<Away<'a>>,
    /// Attempts that look for a connection.
    connecting: u32,
    /// This request's place among those without a connection, until it has one.
    waiting: Option<Waiting<'a>>,
    /// The latest use, and when it will have been waited for long enough; `None` once it was.
    watched: Option<(Use, tokio::time::Instant)>,
    last: Option<Failure>,
}

impl Progress<'_> {
    /// This use is over: nothing to wait for any more.
    fn over(&mut self, use_: &Use) {
        let same = |(watched, _): &mut (Use, _)| Arc::ptr_eq(&watched.in_flight, &use_.in_flight);
        self.watched.take_if(same);
    }

    /// An attempt is under way that has not been waited for long enough.
    fn is_hopeful(&self) -> bool {
        self.connecting > 0 || self.watched.is_some()
    }
}

impl<'a> Exchange<'a> {
    pub(super) async fn run(&'a self) -> Result<Answer, Failure> {
        let mut progress = Progress {
            steps: FuturesUnordered::new(),
            attempts: 0,
            stale: 0,
            tried: Vec::new(),
            away: Vec::new(),
            connecting: 0,
            waiting: None,
            watched: None,
            last: None,
        };
        let limit = self.upstream.cluster().pool.max_pending_requests;
        let waiting = self.destination.wait(limit);
        if waiting.is_none() {
            let reason = format!("{limit} requests wait for a connection, the most that may");
            return Err(self.failure(&progress, "UO", reason, None));
        }
        progress.waiting = waiting;
        match self.upstream.pick(&[]) {
            Ok(picked) => self.begin(&mut progress, picked, Duration::ZERO),
            Err(failed) => return Err(self.not_connected(&progress, &failed)),
        }
        loop {
            let wait_until = progress.watched.as_ref().map(|(_, at)| *at);
            let step = tokio::select! {
                biased;
                Some(step) = progress.steps.next() => step,
                () = until(wait_until), if wait_until.is_some() => {
                    if let Some((late, _)) = progress.watched.take() {
                        self.hedge(&mut progress, &late);
                    }
                    continue;
                }
                // No step is under way: the last failure stands.
                else => {
                    return Err(progress.last.take().unwrap_or_else(|| {
                        self.failure(&progress, "UF", "no attempt could be made".into(), None)
                    }));
                }
            };
            match step {
                Step::Connected { connection, in_flight, reused } => {
                    progress.waiting = None;
                    progress.connecting -= 1;
                    let use_ = Use {
                        in_flight: Arc::new(in_flight),
                        peer: connection.about.clone(),
                        reused,
                        sent_at: Instant::now(),
                    };
                    let delay = self.destination.hedge_delay(self.retry);
                    let until = tokio::time::Instant::from(use_.sent_at) + delay;
                    progress.watched = Some((use_.clone(), until));
                    self.send(&mut progress, connection, use_);
                }
                Step::NotConnected(failed) => {
                    progress.connecting -= 1;
                    let failure = self.not_connected(&progress, &failed);
                    if let ConnectFailed::AllFailed { attempts, .. } = &failed {
                        let keys = attempts.iter().map(|a| (a.endpoint, a.cluster.clone()));
                        progress.tried.extend(keys);
                        // Nothing was sent, so any method may try again: at once where it was
                        // refused, within the budget where nobody answered in time. Whoever has
                        // too much to do must not be given three times as much.
                        let silent = attempts.iter().any(|a| a.after >= STAGGER);
                        if silent && !self.withdraw() {
                            self.context.shared.counters.denied("budget");
                        } else {
                            self.again(&mut progress, "connect", None);
                        }
                    }
                    progress.last = Some(failure);
                }
                Step::NotHttp { key, problem } => {
                    progress.connecting -= 1;
                    let reason = format!("{} does not begin to speak HTTP: {problem}", key.0);
                    progress.last = Some(self.failure(&progress, "UPE", reason, None));
                    progress.tried.push(key);
                    self.again(&mut progress, "connect", None);
                }
                Step::Unsent { refused, use_ } => {
                    progress.over(&use_);
                    if refused {
                        progress.tried.push(use_.key());
                    }
                    progress.stale += 1;
                    progress.attempts = progress.attempts.saturating_sub(1);
                    let reason = "connections ended before the request was sent".to_owned();
                    progress.last = Some(self.failure(&progress, "UF", reason, Some(&use_)));
                    let may = self.payload.is_complete();
                    if may && progress.stale <= STALE_MAX + self.retry.attempts {
                        self.again(&mut progress, "stale", None);
                    }
                }
                Step::Broken { problem, use_ } => self.broken(&mut progress, problem, &use_),
                Step::Answered { response, connection, use_ } => {
                    let key = use_.key();
                    progress.over(&use_);
                    let marker = self.unserved(&response, &use_);
                    let outcome = match response.status().is_server_error() || marker.is_some() {
                        true => Outcome::ServerError,
                        false => Outcome::Success,
                    };
                    use_.in_flight.report(outcome);
                    self.destination.trust(&key);
                    let Some(marker) = marker else {
                        self.destination.latency.record(use_.sent_at.elapsed());
                        let Use { in_flight, .. } = use_;
                        let attempts = progress.attempts;
                        return Ok(Answer { response, connection, in_flight, attempts });
                    };
                    // The sidecar there says that its application did not serve this, so the
                    // connection leads nowhere good: it is dropped, and another workload is asked.
                    progress.tried.push(key.clone());
                    let may = match marker {
                        Unserved::Unsent => self.payload.is_complete(),
                        Unserved::Reset => {
                            self.is_replayable() && self.permit(&key, None).is_some()
                        }
                    };
                    if !(may && self.again(&mut progress, "unserved", None))
                        && progress.steps.is_empty()
                    {
                        let Use { in_flight, .. } = use_;
                        let attempts = progress.attempts;
                        return Ok(Answer { response, connection, in_flight, attempts });
                    }
                }
            }
        }
    }

    /// The connection ended after the request went out and before its response began.
    fn broken(&'a self, progress: &mut Progress<'a>, problem: hyper::Error, use_: &Use) {
        let key = use_.key();
        progress.over(use_);
        if let Some(Refusal { status, flags, reason }) = self.payload.broken() {
            // Nobody else is sent a body that broke, and nobody but its sender is to blame.
            let failure = self.failure(progress, flags, reason, Some(use_));
            progress.last = Some(Failure { status, ..failure });
            return;
        }
        use_.in_flight.report(Outcome::Reset);
        self.destination.suspect(&key);
        let place = use_.peer.endpoint.address;
        let (flags, reason) = if problem.is_parse() {
            ("UPE", format!("{place} answered with what is no HTTP: {problem}"))
        } else {
            ("UC", format!("{place} ended the connection before a response: {problem}"))
        };
        progress.last = Some(self.failure(progress, flags, reason, Some(use_)));
        progress.tried.push(key.clone());
        if problem.is_parse() || !self.is_replayable() {
            return;
        }
        // A kept connection that its server closed while we began to use it says nothing about load.
        if use_.reused && progress.stale < STALE_MAX {
            progress.stale += 1;
            self.again(progress, "stale", None);
            return;
        }
        self.again(progress, "reset", Some(&key));
    }

    /// No response within the hedge delay: another path is asked too, and the first answer wins.
    fn hedge(&'a self, progress: &mut Progress<'a>, late: &Use) {
        let key = late.key();
        late.in_flight.report(Outcome::Slow);
        self.destination.suspect(&key);
        progress.tried.push(key.clone());
        // The first attempt is alive: two of what changes something would see each other's work.
        let twice = self.repeatable && self.payload.is_whole();
        if twice && self.parts.method.is_safe() {
            self.another(progress, "hedge", Some(&key), true);
        }
    }

    /// Begins another attempt after a failed one; false where there may be none.
    fn again(
        &'a self,
        progress: &mut Progress<'a>,
        reason: &'static str,
        from: Option<&Key>,
    ) -> bool {
        if progress.is_hopeful() {
            return true;
        }
        self.another(progress, reason, from, false)
    }

    /// `from`: bytes were sent to this endpoint, so budgets apply. `elsewhere`: only another path.
    fn another(
        &'a self,
        progress: &mut Progress<'a>,
        reason: &'static str,
        from: Option<&Key>,
        elsewhere: bool,
    ) -> bool {
        let counters = &self.context.shared.counters;
        if progress.attempts > self.retry.attempts {
            counters.denied("attempts");
            return false;
        }
        let Ok(picked) = self.upstream.pick(&progress.tried) else { return false };
        let known = progress.tried.contains(&picked.key());
        if elsewhere && known {
            return false;
        }
        if let Some(from) = from {
            let Some(away) = self.permit(from, Some(&picked.key())) else {
                counters.denied("budget");
                return false;
            };
            progress.away.extend(away);
        }
        counters.again(reason);
        let rest = match known && reason != "stale" {
            true => BACKOFF.mul_f64(f64::from(progress.attempts) * rand::random_range(0.5..1.5)),
            false => Duration::ZERO,
        };
        self.begin(progress, picked, rest);
        true
    }

    /// Permission for an attempt after bytes went to `from`: leaving a suspected endpoint for one
    /// that is not has a bound of its own, all else has the budget.
    fn permit(&'a self, from: &Key, to: Option<&Key>) -> Option<Option<Away<'a>>> {
        let destination = self.destination;
        let good = to.is_some_and(|to| to != from && !destination.is_suspect(to));
        if destination.is_suspect(from) && good {
            return destination.budget.away().map(Some);
        }
        self.withdraw().then_some(None)
    }

    fn withdraw(&self) -> bool {
        self.destination.budget.withdraw(self.retry, Instant::now())
    }

    fn is_replayable(&self) -> bool {
        self.repeatable && self.payload.is_ended()
    }

    /// Finds a connection to `picked`, kept or new.
    fn begin(&'a self, progress: &mut Progress<'a>, picked: Picked, rest: Duration) {
        progress.attempts += 1;
        progress.connecting += 1;
        let avoid = progress.tried.clone();
        let fresh = progress.stale >= STALE_MAX;
        progress.steps.push(Box::pin(async move {
            if !rest.is_zero() {
                tokio::time::sleep(rest).await;
            }
            self.connect(picked, avoid, fresh).await
        }));
    }

    fn send(&'a self, progress: &mut Progress<'a>, mut connection: Connection<Peer>, use_: Use) {
        let body = self.payload.body(&self.requested);
        let host = &self.destination.name.host;
        let mut request = headers::frame(self.parts, connection.wire(), self.trailers, host, body);
        if connection.about.endpoint.tls
            && let Some(source) = self.context.source()
        {
            request.headers_mut().insert(SOURCE, source);
        }
        progress.steps.push(Box::pin(async move {
            match connection.try_send(request).await {
                Ok(response) => Step::Answered { response, connection, use_ },
                Err(mut failed) => {
                    let unsent = failed.take_message().is_some();
                    let problem = failed.into_error();
                    let refused = grpc::is_refused(&problem);
                    match unsent || refused {
                        true => Step::Unsent { refused, use_ },
                        false => Step::Broken { problem, use_ },
                    }
                }
            }
        }));
    }

    /// Only a verified peer is believed.
    fn unserved(&self, response: &Response<Incoming>, use_: &Use) -> Option<Unserved> {
        use_.peer.identity.as_ref()?;
        let marker = response.headers().get(&UNSERVED)?;
        let ours = match response.status() {
            StatusCode::SERVICE_UNAVAILABLE => true,
            // gRPC is told in its own words.
            StatusCode::OK if grpc::is_call(&self.parts.headers) => {
                grpc::status_in(response.headers()) == Some(grpc::Status::Unavailable as u16)
            }
            _ => false,
        };
        ours.then_some(if marker == UNSENT { Unserved::Unsent } else { Unserved::Reset })
    }

    fn not_connected(&self, progress: &Progress<'_>, failed: &ConnectFailed) -> Failure {
        self.failure(progress, failed.flag(), failed.to_string(), None)
    }

    fn failure(
        &self,
        progress: &Progress<'_>,
        flags: &'static str,
        reason: String,
        use_: Option<&Use>,
    ) -> Failure {
        let status = match flags {
            "UPE" => StatusCode::BAD_GATEWAY,
            _ => StatusCode::SERVICE_UNAVAILABLE,
        };
        let peer = use_.map(|use_| use_.peer.clone());
        Failure { status, flags, reason, peer, attempts: progress.attempts }
    }
}

/// What a sidecar said about a request its application did not serve.
enum Unserved {
    Unsent,
    Reset,
}

async fn until(at: Option<tokio::time::Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
