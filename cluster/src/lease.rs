//! Who may write: one leader, by a Lease and a monotonic clock.
//!
//! A leader's writes end before its lease can end: a request starts only if it must be over before
//! the deadline, which counts from before the renewal was asked for. Whoever takes the lease next
//! has a higher term, and re-stamps what stands (decision 4).

mod election;

use election::{Election, Record, Wish};
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::{Api, Client};
use rand::Rng as _;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// A lease not renewed for so long is free.
pub const LEASE: Duration = Duration::from_secs(10);
/// The leader renews, and the others look, so often.
pub const RENEW: Duration = Duration::from_secs(2);
/// No request under a lease takes longer; less than a third of it.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(3);

/// The term in which this process leads, and until when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leading {
    /// The lease's transitions.
    pub term: u64,
    pub until: Instant,
}

/// Permission to write, asked for before each request. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Fence {
    leading: watch::Receiver<Option<Leading>>,
}

impl Fence {
    /// The term to write in, if a request started now is over before the lease can end.
    pub fn permit(&self, now: Instant) -> Option<u64> {
        let leading = (*self.leading.borrow())?;
        (now + REQUEST_TIMEOUT <= leading.until).then_some(leading.term)
    }

    /// Returns when leadership was won, renewed or lost.
    pub async fn changed(&mut self) {
        if self.leading.changed().await.is_err() {
            // The election has ended: no change will come.
            std::future::pending::<()>().await;
        }
    }

    /// Returns when the election has ended and the lease is handed over.
    pub async fn ended(mut self) {
        while self.leading.changed().await.is_ok() {}
    }

    /// A fence that always permits `term`; for tools that write once, as their user.
    pub fn open(term: u64) -> Self {
        let until = Instant::now() + Duration::from_secs(365 * 24 * 3600);
        let (_, leading) = watch::channel(Some(Leading { term, until }));
        Self { leading }
    }
}

/// Runs for the lease `namespace/name` until `end`, then hands it over.
///
/// `holder` is this replica's own name: a restarted replica takes over from its former self at once.
pub fn elect(
    client: Client,
    namespace: &str,
    name: &str,
    holder: &str,
    end: CancellationToken,
) -> Fence {
    let (send, leading) = watch::channel(None);
    let api: Api<Lease> = Api::namespaced(client, namespace);
    let process: u64 = rand::rng().random();
    let election = Election::new(holder, &format!("{process:016x}"), LEASE);
    tokio::spawn(run(api, name.to_owned(), election, send, end));
    Fence { leading }
}

async fn run(
    api: Api<Lease>,
    name: String,
    mut election: Election,
    send: watch::Sender<Option<Leading>>,
    end: CancellationToken,
) {
    loop {
        let ended = end.is_cancelled();
        let round = round(&api, &name, &mut election, ended).await;
        let leading = election.leading(Instant::now()).filter(|_| !ended);
        send.send_if_modified(|before| {
            let news = *before != leading;
            if news && before.map(|l| l.term) != leading.map(|l| l.term) {
                match leading {
                    Some(leading) => {
                        tracing::info!(term = leading.term, "leading: this replica writes")
                    }
                    None => tracing::info!("not leading"),
                }
            }
            *before = leading;
            news
        });
        if let Err(error) = &round {
            tracing::debug!(error, "the lease could not be read or written");
        }
        if ended {
            return;
        }
        let rest = if round.is_ok() { RENEW } else { RENEW / 2 };
        let rest = rest.mul_f64(rand::rng().random_range(0.9..1.1));
        // Without an answer the deadline passes by itself; whoever waits must hear of it.
        let lost = election.leading(Instant::now()).map(|leading| leading.until);
        tokio::select! {
            () = end.cancelled() => {}
            () = tokio::time::sleep(rest) => {}
            () = async { match lost {
                Some(until) => tokio::time::sleep_until(until.into()).await,
                None => std::future::pending().await,
            }} => {}
        }
    }
}

/// Reads the lease, and writes it where the election wants to.
async fn round(
    api: &Api<Lease>,
    name: &str,
    election: &mut Election,
    release: bool,
) -> Result<(), String> {
    let found = tokio::time::timeout(REQUEST_TIMEOUT, api.get_opt(name)).await;
    let found = found.map_err(|_| "no answer")?.map_err(|error| error.to_string())?;
    let now = Instant::now();
    election.observe(now, found.as_ref().map(record));
    let wish = if release { election.release(now) } else { election.wish(now) };
    let Some(wish) = wish else { return Ok(()) };
    let body = lease(name, &wish, found.as_ref());
    let post = PostParams {
        field_manager: Some(crate::api::label::MANAGER.into()),
        ..PostParams::default()
    };
    // The deadline counts from here: the server may start its clock any time after.
    let asked = Instant::now();
    let write = async {
        match &found {
            None => api.create(&post, &body).await,
            Some(_) => api.replace(name, &post, &body).await,
        }
    };
    match tokio::time::timeout(REQUEST_TIMEOUT, write).await.map_err(|_| "no answer")? {
        Ok(lease) => election.won(asked, Instant::now(), record(&lease), &wish),
        // Somebody else was faster; the next round sees who.
        Err(kube::Error::Api(status)) if status.code == 409 => {}
        Err(error) => return Err(error.to_string()),
    }
    Ok(())
}

fn record(lease: &Lease) -> Record {
    let spec = lease.spec.clone().unwrap_or_default();
    let transitions = spec.lease_transitions.and_then(|n| u64::try_from(n).ok()).unwrap_or(0);
    let seconds = spec.lease_duration_seconds.and_then(|n| u64::try_from(n).ok());
    Record {
        holder: spec.holder_identity.unwrap_or_default(),
        term: transitions,
        // A hostile or mistaken hour would lock all replicas out.
        duration: Duration::from_secs(seconds.unwrap_or(LEASE.as_secs()).clamp(1, 60)),
        version: lease.metadata.resource_version.clone().unwrap_or_default(),
    }
}

fn lease(name: &str, wish: &Wish, found: Option<&Lease>) -> Lease {
    let now = MicroTime(Timestamp::now());
    let old = found.and_then(|lease| lease.spec.clone()).unwrap_or_default();
    let acquired = if wish.takes { Some(now.clone()) } else { old.acquire_time.clone() };
    Lease {
        metadata: ObjectMeta {
            name: Some(name.into()),
            // With it, the write fails where somebody else wrote first.
            resource_version: found.and_then(|lease| lease.metadata.resource_version.clone()),
            ..ObjectMeta::default()
        },
        spec: Some(LeaseSpec {
            holder_identity: Some(wish.holder.clone()),
            lease_duration_seconds: i32::try_from(LEASE.as_secs()).ok(),
            acquire_time: acquired,
            renew_time: Some(now),
            lease_transitions: i32::try_from(wish.term).ok(),
            ..old
        }),
    }
}
