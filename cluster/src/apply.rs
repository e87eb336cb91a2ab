//! Makes a plan so, by server-side apply, under the leader's term.
//!
//! Level-triggered: what should stand is compared with what stands, and only what differs is
//! written. `object` says what each value looks like as JSON, `writer` decides without IO what to
//! write when, and this file carries it out.

mod object;
mod writer;

pub use object::{Desired, KINDS};
pub use writer::ObjectProblem;

use crate::api::label;
use crate::events::{self, Events, Regarding};
use crate::follow::{Change, Follow, follow};
use crate::heard::Heard;
use crate::lease::{Fence, REQUEST_TIMEOUT};
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use kube::api::{DeleteParams, DynamicObject, Patch, PatchParams, Preconditions};
use kube::runtime::watcher;
use kube::{Api, Client};
use mesh::finding::ObjectRef;
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use writer::{Act, Outcome, Standing, Write, Writer};

/// How the writing goes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Progress {
    /// What stands is known, for every kind.
    pub synced: bool,
    /// Objects that differ from the plan, or carry an older term.
    pub pending: usize,
    /// Requests that changed something, since the start.
    pub written: u64,
    /// What the API server refuses, and why; sorted.
    pub problems: Vec<ObjectProblem>,
}

/// Writes what `desired` says until `end`, whenever `fence` permits; what became of an export goes to
/// `events` too.
pub fn start(
    client: Client,
    desired: watch::Receiver<Option<Arc<Desired>>>,
    fence: Fence,
    events: Events,
    end: CancellationToken,
) -> watch::Receiver<Progress> {
    let (send, receive) = watch::channel(Progress::default());
    tokio::spawn(run(client, desired, fence, events, send, end));
    receive
}

/// Requests under way at once.
const IN_FLIGHT_MAX: usize = 16;

type Standings = (&'static str, Change<Option<(ObjectRef, Standing)>>);

async fn run(
    client: Client,
    mut desired: watch::Receiver<Option<Arc<Desired>>>,
    mut fence: Fence,
    events: Events,
    progress: watch::Sender<Progress>,
    end: CancellationToken,
) {
    let (send, mut changes) = mpsc::channel::<Standings>(256);
    for kind in KINDS {
        let heard = Heard::default();
        let own = heard.listen(client.clone());
        let what = Follow {
            apis: vec![Api::all_with(own, &object::resource(kind))],
            config: watcher::Config::default().labels(&format!(
                "{}={}",
                label::MANAGED_BY,
                label::MANAGER
            )),
            heard,
        };
        let trim = move |object: DynamicObject| standing(kind, &object);
        tokio::spawn(follow(what, trim, move |change| (kind, change), send.clone(), end.clone()));
    }
    drop(send);

    let mut writer = Writer::new(KINDS);
    let mut requests = FuturesUnordered::new();
    let mut written = 0;
    loop {
        let now = Instant::now();
        let permit = fence.permit(now);
        let (acts, wake) = match permit {
            Some(term) => writer.step(now, term, IN_FLIGHT_MAX - requests.len().min(IN_FLIGHT_MAX)),
            None => (Vec::new(), None),
        };
        for act in acts {
            let (client, fence) = (client.clone(), fence.clone());
            // Now: the watch may tell of the write before its answer comes.
            let before = writer.export_of(&act.object).cloned();
            requests.push(async move {
                let object = act.object.clone();
                (object, before, carry_out(client, fence, act).await)
            });
        }
        progress.send_if_modified(|before| {
            let next = Progress {
                synced: writer.synced(),
                pending: writer.pending(),
                written,
                problems: writer.problems(),
            };
            let news = *before != next;
            for problem in next.problems.iter().filter(|it| !before.problems.contains(it)) {
                let ObjectProblem { object, why } = problem;
                tracing::warn!(%object, %why, "the API server does not take an object");
            }
            *before = next;
            news
        });
        let wake = wake.unwrap_or(now + Duration::from_secs(3600));
        tokio::select! {
            () = end.cancelled() => return,
            change = changes.recv() => match change {
                Some((kind, change)) => {
                    writer.stands(kind, change);
                    while let Ok((kind, change)) = changes.try_recv() {
                        writer.stands(kind, change);
                    }
                }
                None => return,
            },
            news = desired.changed() => {
                if news.is_err() {
                    return;
                }
                let next = desired.borrow_and_update().clone();
                writer.wants(next);
            }
            () = fence.changed() => {}
            Some((object, before, outcome)) = requests.next() => {
                tell(&events, &object, before.as_ref(), &outcome);
                written += u64::from(matches!(outcome, Outcome::Stands(_) | Outcome::Gone));
                writer.done(Instant::now(), &object, outcome);
            }
            () = tokio::time::sleep_until(wake.into()) => {}
        }
    }
}

/// Says what an export's new spec says that the one before did not.
fn tell(events: &Events, object: &ObjectRef, before: Option<&Value>, outcome: &Outcome) {
    let Outcome::Stands(new) = outcome else { return };
    if object.kind != object::EXPORT {
        return;
    }
    if let Some(said) = events::of_export(before, &new.spec) {
        let regarding = Regarding {
            kind: object::EXPORT,
            namespace: object.namespace.clone(),
            name: object.name.clone(),
            uid: new.uid.clone(),
        };
        events.say(regarding, said);
    }
}

/// One write, checked against the lease's deadline again right before each request.
async fn carry_out(client: Client, fence: Fence, act: Act) -> Outcome {
    let api: Api<DynamicObject> =
        Api::namespaced_with(client, &act.object.namespace, &object::resource(&act.object.kind));
    let work = async {
        match &act.write {
            Write::Create(body) => {
                // Somebody else's object of this name is not ours to overwrite.
                match limited(&fence, api.get_opt(&act.object.name)).await? {
                    Some(found) if !is_ours(&found) => {
                        let who = format!(
                            "{} exists and was not written by Isthmus. Fix: delete or rename it",
                            act.object
                        );
                        return Ok(Outcome::Refused(who));
                    }
                    Some(found) => return Ok(stands(&act.object.kind, &found)),
                    None => {}
                }
                let patch = PatchParams::apply(label::MANAGER);
                let done =
                    limited(&fence, api.patch(&act.object.name, &patch, &Patch::Apply(body)))
                        .await?;
                Ok(stands(&act.object.kind, &done))
            }
            Write::Update(body) => {
                // It carries the resourceVersion it was decided on, so that force takes back fields
                // that somebody edited, and never undoes a newer leader's write.
                let patch = PatchParams::apply(label::MANAGER).force();
                let done =
                    limited(&fence, api.patch(&act.object.name, &patch, &Patch::Apply(body)))
                        .await?;
                Ok(stands(&act.object.kind, &done))
            }
            Write::Delete { uid, version } => {
                let exactly = Preconditions {
                    uid: Some(uid.clone()),
                    resource_version: Some(version.clone()),
                };
                let delete = DeleteParams::background().preconditions(exactly);
                limited(&fence, api.delete(&act.object.name, &delete)).await?;
                Ok(Outcome::Gone)
            }
            Write::Read => match limited(&fence, api.get_opt(&act.object.name)).await? {
                Some(found) if is_ours(&found) => Ok(match standing(&act.object.kind, &found) {
                    Some((_, standing)) => Outcome::Seen(standing),
                    None => Outcome::Missing,
                }),
                Some(_) | None => Ok(Outcome::Missing),
            },
        }
    };
    match work.await {
        Ok(outcome) => outcome,
        Err(Failed::Fenced) => Outcome::Fenced,
        Err(Failed::Silent) => Outcome::Unknown("the API server did not answer in time".into()),
        Err(Failed::Api(kube::Error::Api(status))) => match (&act.write, status.code) {
            (Write::Delete { .. }, 404) => Outcome::Gone,
            (Write::Create(_) | Write::Update(_) | Write::Delete { .. }, 409) => {
                Outcome::Conflict(status.message.clone())
            }
            (_, _) => Outcome::Refused(format!("{} ({})", status.message, status.code)),
        },
        Err(Failed::Api(error)) => Outcome::Unknown(crate::heard::chain(&error)),
    }
}

enum Failed {
    /// The lease may end before an answer: not sent.
    Fenced,
    Silent,
    Api(kube::Error),
}

async fn limited<T>(
    fence: &Fence,
    request: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, Failed> {
    if fence.permit(Instant::now()).is_none() {
        return Err(Failed::Fenced);
    }
    match tokio::time::timeout(REQUEST_TIMEOUT, request).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(Failed::Api(error)),
        Err(_) => Err(Failed::Silent),
    }
}

fn is_ours(object: &DynamicObject) -> bool {
    let labels = object.metadata.labels.as_ref();
    labels.and_then(|all| all.get(label::MANAGED_BY)).is_some_and(|by| by == label::MANAGER)
}

fn stands(kind: &str, object: &DynamicObject) -> Outcome {
    match standing(kind, object) {
        Some((_, standing)) => Outcome::Stands(standing),
        None => Outcome::Missing,
    }
}

/// What matters of an object that stands.
fn standing(kind: &str, object: &DynamicObject) -> Option<(ObjectRef, Standing)> {
    let meta = &object.metadata;
    let reference = ObjectRef::new(kind, meta.namespace.as_deref()?, meta.name.as_deref()?);
    let annotations = meta.annotations.clone().unwrap_or_default();
    let term = annotations.get(label::TERM).and_then(|term| term.parse().ok());
    let standing = Standing {
        version: meta.resource_version.clone()?,
        uid: meta.uid.clone()?,
        term,
        labels: meta.labels.clone().unwrap_or_default(),
        annotations: annotations
            .into_iter()
            .filter(|(key, _)| key != label::TERM)
            .collect::<BTreeMap<_, _>>(),
        spec: object.data.get("spec").cloned().unwrap_or(Value::Null),
    };
    Some((reference, standing))
}
