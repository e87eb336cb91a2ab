//! What an agent asks the admin pages of the Envoy it wrote a bootstrap for: whether it serves, and
//! to drain before it ends.

use anyhow::{Context as _, Result, ensure};
use mesh::program::ResourceName;
use runtime::page::{self, Answer, Place};
use std::net::SocketAddr;
use std::time::Duration;
use tokio::time::Instant;

/// How long one of its pages may take.
const ANSWER_MAX: Duration = Duration::from_secs(1);
/// Between two looks at its pages.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// New connections are taken until none came for so long, as by a gateway of ours: others need a
/// moment to withdraw this pod.
const WITHDRAWN_AFTER: Duration = Duration::from_secs(1);
/// Closes each connection with its next answer, and takes new ones meanwhile.
const DRAIN: &str = "/drain_listeners?graceful&skip_exit";
/// Closes the listeners at once, and leaves their connections alone.
const CLOSE: &str = "/drain_listeners";
/// Connections on which nobody asked anything for so long are left to their clients: it is more than a
/// request is on its way, and whoever asks sooner is told that his connection ends.
const QUIET: Duration = Duration::from_secs(3);
/// Connections of each listener, now and ever; and of all that carry HTTP, how many there are and their
/// requests. `server.total_connections` is no measure: Envoy counts it anew every 5 s only
/// (`stats_flush_interval`).
const COUNTS: &str = "/stats?filter=^(listener|http)[.].*[.]downstream_(cx|rq)_(active|total)$";
/// Of these, those of the admin pages themselves.
const ADMIN: &str = "admin.";
/// Envoy counts each connection of a listener by its worker once more.
const WORKER: &str = ".worker_";

/// Returns once Envoy serves the workload's connections; `waits` is told meanwhile why it does not.
pub(crate) async fn serves(admin: SocketAddr, mut waits: impl FnMut(&str)) {
    let place = Place::Tcp(admin.to_string());
    while let Err(why) = is_serving(&place).await {
        waits(&format!("{why:#}"));
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Both must hold: before it is live its workers accept nothing, and afterwards a listener that waits
/// for routes or secrets is not among those it shows.
async fn is_serving(admin: &Place) -> Result<()> {
    let ready = page::get(admin, "/ready", ANSWER_MAX).await?;
    ensure!(ready.is_ok(), "Envoy is not live yet: it says {}", ready.said());
    let listeners = asked(admin, "/listeners").await?;
    let inbound = ResourceName::inbound().name;
    let shown = |line: &str| line.split("::").next() == Some(inbound.as_str());
    ensure!(
        listeners.text.lines().any(shown),
        "Envoy has not started its listener {inbound} yet: that waits for routes or secrets"
    );
    Ok(())
}

/// Has Envoy take no more and answer what it took, within `limit`, because SIGTERM ends it at once,
/// whatever is in flight (Envoy 1.40, `source/server/server.cc`). What is left then is its end's.
pub(crate) async fn drain(admin: SocketAddr, limit: Duration) {
    if limit.is_zero() {
        return;
    }
    match tokio::time::timeout(limit, drained(&Place::Tcp(admin.to_string()))).await {
        Ok(Ok(())) => tracing::info!("the proxy has drained"),
        Ok(Err(error)) => tracing::warn!(
            "ISM1049 the proxy does not drain, and what it carries is cut: {error:#}. Fix: run Envoy \
             with the bootstrap the agent writes, and leave its admin port {admin} to it"
        ),
        Err(_) => tracing::info!("the proxy still has connections, and its time to drain is over"),
    }
}

/// An error is that Envoy was not asked; what comes later its end or `limit` ends.
async fn drained(admin: &Place) -> Result<()> {
    ordered(admin, DRAIN).await?;
    let mut moves = Moves::default();
    while !moves.are_over(looked(admin).await, Instant::now()) {
        tokio::time::sleep(LOOK_EVERY).await;
    }
    // Who comes after the last look is refused and may go elsewhere; who came before is answered.
    if let Err(error) = ordered(admin, CLOSE).await {
        tracing::info!(error = format!("{error:#}"), "the proxy does not close its listeners");
    }
    while !moves.are_over(looked(admin).await, Instant::now()) {
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Ok(())
}

/// What was counted last, and when something moved.
#[derive(Debug, Default)]
struct Moves {
    /// Connections ever.
    connection: Option<(u64, Instant)>,
    request: Option<(Count, Instant)>,
}

impl Moves {
    /// Nobody comes any more, and nothing is left but HTTP connections on which nobody asks: one that is
    /// new has as long to ask.
    fn are_over(&mut self, counts: Counts, now: Instant) -> bool {
        let Counts { connections, http, requests } = counts;
        let no_connection = since(&mut self.connection, connections.ever, now);
        let no_request = since(&mut self.request, requests, now);
        let idle = connections.active <= http.active && requests.active == 0;
        let quiet = no_connection.min(no_request) >= QUIET;
        no_connection >= WITHDRAWN_AFTER && (connections.active == 0 || idle && quiet)
    }
}

/// How long it has been so.
fn since<T: Copy + PartialEq>(last: &mut Option<(T, Instant)>, is: T, now: Instant) -> Duration {
    last.take_if(|(was, _)| *was != is);
    now.duration_since(last.get_or_insert((is, now)).1)
}

/// Looks until there is an answer: Envoy gives it from the thread that takes new configuration.
async fn looked(admin: &Place) -> Counts {
    loop {
        match counts(admin).await {
            Ok(counts) => return counts,
            Err(error) => tracing::debug!(error = format!("{error:#}"), "no counts"),
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// All listeners' together.
#[derive(Debug, Default, PartialEq, Eq)]
struct Counts {
    connections: Count,
    /// Of these, those that carry HTTP.
    http: Count,
    requests: Count,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Count {
    active: u64,
    ever: u64,
}

async fn counts(admin: &Place) -> Result<Counts> {
    counted(&asked(admin, COUNTS).await?.text)
}

fn counted(stats: &str) -> Result<Counts> {
    let mut all = Counts::default();
    for line in stats.lines() {
        let Some((room, of)) = line.split_once('.').filter(|(_, of)| !of.starts_with(ADMIN)) else {
            continue;
        };
        let Some((name, count)) = of.rsplit_once(": ") else { continue };
        let count: u64 = count.parse().with_context(|| format!("{line:?} is no count"))?;
        let counted = match (room, name.rsplit('.').next().unwrap_or_default()) {
            ("listener", _) if name.contains(WORKER) => continue,
            ("listener", "downstream_cx_active") => &mut all.connections.active,
            ("listener", "downstream_cx_total") => &mut all.connections.ever,
            ("http", "downstream_cx_active") => &mut all.http.active,
            ("http", "downstream_cx_total") => &mut all.http.ever,
            ("http", "downstream_rq_active") => &mut all.requests.active,
            ("http", "downstream_rq_total") => &mut all.requests.ever,
            _ => continue,
        };
        *counted += count;
    }
    Ok(all)
}

async fn asked(admin: &Place, path: &str) -> Result<Answer> {
    good(page::get(admin, path, ANSWER_MAX).await?, path)
}

async fn ordered(admin: &Place, path: &str) -> Result<Answer> {
    good(page::post(admin, path, ANSWER_MAX).await?, path)
}

fn good(answer: Answer, path: &str) -> Result<Answer> {
    ensure!(answer.is_ok(), "the admin page {path} answered {}: {}", answer.status, answer.said());
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::{Count, Counts, Duration, Moves, QUIET, WITHDRAWN_AFTER, counted};
    use tokio::time::Instant;

    #[test]
    fn only_http_on_which_nobody_asks_is_left_alone() {
        let count = |active, ever| Count { active, ever };
        let (mut moves, mut now) = (Moves::default(), Instant::now());
        // So long after the last line: connections, those of HTTP, requests; and whether that was all.
        for (after, connections, http, requests, over) in [
            (Duration::ZERO, count(2, 9), 2, count(0, 5), false),
            (QUIET, count(2, 9), 2, count(0, 5), true),
            // One more connection, which has not asked yet.
            (QUIET, count(3, 10), 3, count(0, 5), false),
            (WITHDRAWN_AFTER, count(3, 10), 3, count(0, 5), false),
            (QUIET, count(3, 10), 3, count(1, 5), false),
            // The same sum, and other requests.
            (QUIET, count(3, 10), 3, count(0, 6), false),
            (QUIET, count(3, 10), 3, count(0, 6), true),
            // One of them carries bytes.
            (QUIET, count(3, 10), 2, count(0, 6), false),
            (QUIET, count(0, 10), 0, count(0, 6), true),
        ] {
            now += after;
            let counts = Counts { connections, http: count(http, 0), requests };
            assert_eq!(moves.are_over(counts, now), over, "{connections:?}, {requests:?}");
        }
    }

    #[test]
    fn connections_of_the_admin_pages_do_not_count() {
        let stats = "listener.127.0.0.1_8080.downstream_cx_active: 2\n\
                     listener.127.0.0.1_8080.downstream_cx_total: 7\n\
                     listener.[__1]_8080.downstream_cx_active: 1\n\
                     listener.[__1]_8080.worker_0.downstream_cx_active: 1\n\
                     listener.admin.downstream_cx_active: 1\n\
                     listener.admin.main_thread.downstream_cx_active: 1\n\
                     http.in.downstream_cx_active: 2\n\
                     http.in.downstream_rq_active: 1\n\
                     http.in.downstream_rq_total: 9\n\
                     http.admin.downstream_rq_active: 1\n";
        let counts = Counts {
            connections: Count { active: 3, ever: 7 },
            http: Count { active: 2, ever: 0 },
            requests: Count { active: 1, ever: 9 },
        };
        assert_eq!(counted(stats).unwrap(), counts);
        assert_eq!(counted("").unwrap(), Counts::default());
        assert!(counted("listener.a.downstream_cx_active: many\n").is_err());
    }
}
