//! Renews the credentials of links: each at half of its token's life, by the replica that writes.

use anyhow::Context as _;
use cluster::kubeconfig::Rules;
use cluster::lease::Fence;
use cluster::remote::Remotes;
use cluster::renewal::{Credential, Life, Shelf};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use trust::rotation::{Action, Input, Rotation};

/// Dates, and whether this replica leads, are looked at so often.
const LOOK: Duration = Duration::from_secs(1);
/// After a Secret of ours that is void could not be removed.
const REMOVE_AGAIN: Duration = Duration::from_secs(10);

/// What renewing needs.
pub(crate) struct Renewing {
    pub shelf: Shelf,
    pub remotes: watch::Receiver<Arc<Remotes>>,
    pub fence: Fence,
    pub rules: Rules,
    /// Share of a token's life after which the next is asked for.
    pub at: f64,
    /// Where failures are told.
    pub failures: watch::Sender<Failures>,
}

/// Links whose credential could not be renewed at the last attempt, by name.
pub(crate) type Failures = Arc<BTreeMap<String, Failure>>;

/// Why, and how often in a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    pub why: String,
    pub attempts: u32,
}

/// The last attempt's outcome, told where it is news.
fn tell(failures: &watch::Sender<Failures>, name: &str, why: Option<String>) {
    failures.send_if_modified(|known| {
        let before = known.get(name);
        let after =
            why.map(|why| Failure { why, attempts: before.map_or(1, |it| it.attempts + 1) });
        if before == after.as_ref() {
            return false;
        }
        let all = Arc::make_mut(known);
        match after {
            Some(failure) => drop(all.insert(name.to_owned(), failure)),
            None => drop(all.remove(name)),
        }
        true
    });
}

/// Keeps every credential fresh until `end`. A failure leaves the old one in use until its end.
pub(crate) async fn keep(renewing: Renewing, end: CancellationToken) {
    let mut dates = Dates { at: renewing.at, links: BTreeMap::new() };
    let mut asking: JoinSet<(String, anyhow::Result<Life>)> = JoinSet::new();
    let mut removed: BTreeMap<String, Instant> = BTreeMap::new();
    let mut look = tokio::time::interval(LOOK);
    loop {
        tokio::select! {
            () = end.cancelled() => return,
            _ = look.tick() => {}
            Some(done) = asking.join_next() => {
                let (name, result) = done.expect("asking does not panic");
                tell(&renewing.failures, &name, result.as_ref().err().map(|error| format!("{error:#}")));
                if let Err(error) = &result {
                    tracing::warn!(link = name, error = format!("{error:#}"), "a link's credential was not renewed");
                }
                dates.done(&name, result.ok(), SystemTime::now(), rand::random());
            }
        }
        let Some(term) = renewing.fence.permit(Instant::now()) else { continue };
        let remotes = renewing.remotes.borrow().clone();
        // What is no credential of ours any more has no failures.
        renewing.failures.send_if_modified(|known| {
            let gone = known.keys().any(|name| !remotes.credentials.contains_key(name));
            if gone {
                Arc::make_mut(known).retain(|name, _| remotes.credentials.contains_key(name));
            }
            gone
        });
        let all = remotes.credentials.iter();
        let all = all.map(|(name, one)| (name.as_str(), one.fingerprint(), one.life()));
        for name in dates.due(all, SystemTime::now(), rand::random) {
            let (name, credential) = (name.to_owned(), remotes.credentials[name].clone());
            let (shelf, fence, rules) =
                (renewing.shelf.clone(), renewing.fence.clone(), renewing.rules);
            asking.spawn(async move {
                let result = renew(&name, &credential, &shelf, &fence, rules).await;
                (name, result)
            });
        }
        removed.retain(|_, at| at.elapsed() < REMOVE_AGAIN);
        for name in &remotes.void {
            if removed.contains_key(name) {
                continue;
            }
            removed.insert(name.clone(), Instant::now());
            match renewing.shelf.remove(name).await {
                Ok(()) => tracing::info!(
                    link = name,
                    term,
                    "a renewed credential that renews nothing is removed"
                ),
                Err(error) => tracing::warn!(
                    link = name,
                    error = format!("{error:#}"),
                    "a void credential stays"
                ),
            }
        }
    }
}

async fn renew(
    name: &str,
    credential: &Credential,
    shelf: &Shelf,
    fence: &Fence,
    rules: Rules,
) -> anyhow::Result<Life> {
    let fresh = credential.ask(rules).await?;
    let term =
        fence.permit(Instant::now()).context("ISM2403 this replica does not write any more")?;
    shelf.store(name, &fresh, term).await?;
    tracing::info!(link = name, "a link's credential was renewed");
    Ok(fresh.life())
}

/// When each credential is due, without IO.
struct Dates {
    at: f64,
    /// With the fingerprint of the credential that the dates are of.
    links: BTreeMap<String, (String, Rotation)>,
}

impl Dates {
    /// Takes name, fingerprint and life of every credential there is; gives the names of those to
    /// renew now. Each comes back with [`Self::done`].
    fn due<'a>(
        &mut self,
        credentials: impl Iterator<Item = (&'a str, &'a str, Life)>,
        now: SystemTime,
        mut chance: impl FnMut() -> f64,
    ) -> Vec<&'a str> {
        let mut before = std::mem::take(&mut self.links);
        let mut due = Vec::new();
        for (name, fingerprint, life) in credentials {
            let (known, mut rotation) = before.remove(name).unwrap_or_default();
            let input =
                if known == fingerprint { Input::Tick } else { of(life, self.at, chance()) };
            if rotation.step(now, input) == Action::Renew {
                due.push(name);
            }
            self.links.insert(name.into(), (fingerprint.into(), rotation));
        }
        due
    }

    /// The new credential's life, or `None` after a failure.
    fn done(&mut self, name: &str, life: Option<Life>, now: SystemTime, chance: f64) {
        let Some((_, rotation)) = self.links.get_mut(name) else { return };
        let input = life.map_or(Input::Failed { chance }, |life| of(life, self.at, chance));
        // It is due again at the next look at the earliest.
        rotation.step(now, input);
    }
}

/// A rotation renews at half: a life that is cut or stretched moves that half to `at`.
fn of(life: Life, at: f64, chance: f64) -> Input {
    let whole = life.expires.duration_since(life.issued).unwrap_or_default();
    let not_after = life.issued + whole.mul_f64(2.0 * at);
    Input::Renewed { not_before: life.issued, not_after, chance }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::UNIX_EPOCH;

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn life(issued: u64, expires: u64) -> Life {
        Life { issued: at(issued), expires: at(expires) }
    }

    struct Links {
        dates: Dates,
        standing: BTreeMap<&'static str, (&'static str, Life)>,
    }

    impl Links {
        fn new(share: f64) -> Self {
            let standing = BTreeMap::from([("west", ("one", life(1_000, 2_000)))]);
            Self { dates: Dates { at: share, links: BTreeMap::new() }, standing }
        }

        fn due(&mut self, now: u64) -> Vec<&'static str> {
            let all = self.standing.iter();
            let all = all.map(|(name, (fingerprint, life))| (*name, *fingerprint, *life));
            self.dates.due(all, at(now), || 0.5)
        }
    }

    #[test]
    fn failures_are_told_counted_and_forgiven() {
        let (failures, mut told) = watch::channel(Failures::default());
        tell(&failures, "west", None);
        assert!(!told.has_changed().unwrap(), "nothing was wrong, and nothing is");
        tell(&failures, "west", Some("ISM2502 no".into()));
        tell(&failures, "west", Some("ISM2502 no".into()));
        let expected = Failure { why: "ISM2502 no".into(), attempts: 2 };
        assert_eq!(told.borrow_and_update()["west"], expected);
        tell(&failures, "west", None);
        assert!(told.borrow_and_update().is_empty());
    }

    #[test]
    fn at_half_of_its_life_and_once() {
        let mut links = Links::new(0.5);
        assert_eq!(links.due(1_000), [""; 0]);
        assert_eq!(links.due(1_499), [""; 0]);
        assert_eq!(links.due(1_501), ["west"]);
        assert_eq!(links.due(1_502), [""; 0], "it is being asked for");
        links.dates.done("west", Some(life(1_501, 2_501)), at(1_503), 0.5);
        links.standing.insert("west", ("two", life(1_501, 2_501)));
        assert_eq!(links.due(1_504), [""; 0]);
        assert_eq!(links.due(2_002), ["west"]);
    }

    #[test]
    fn at_another_share() {
        let mut links = Links::new(0.1);
        assert_eq!(links.due(1_099), [""; 0]);
        assert_eq!(links.due(1_101), ["west"]);
    }

    #[test]
    fn a_failure_is_tried_again_later_and_later() {
        let mut links = Links::new(0.5);
        let mut tries = Vec::new();
        links.due(1_000);
        for now in 1_500..1_600 {
            if !links.due(now).is_empty() {
                tries.push(now);
                links.dates.done("west", None, at(now), 1.0);
            }
        }
        assert_eq!(tries, [1_500, 1_501, 1_503, 1_507, 1_515, 1_531, 1_563]);
    }

    #[test]
    fn a_replaced_credential_starts_anew_and_a_gone_one_is_forgotten() {
        let mut links = Links::new(0.5);
        links.due(1_000);
        links.standing.insert("west", ("by hand", life(1_490, 2_490)));
        assert_eq!(links.due(1_600), [""; 0]);
        links.standing.clear();
        assert_eq!(links.due(3_000), [""; 0]);
        assert!(links.dates.links.is_empty());
        links.dates.done("west", None, at(3_000), 0.5);
    }

    #[test]
    fn found_past_its_half_it_is_due_at_the_next_look() {
        let mut links = Links::new(0.5);
        assert_eq!(links.due(1_900), [""; 0]);
        assert_eq!(links.due(1_901), ["west"]);
    }
}
