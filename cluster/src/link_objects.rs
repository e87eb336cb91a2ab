//! ClusterLink objects of the own cluster: followed, made for new secrets, and their status written.

use crate::api::cluster_link::{ClusterLink, ClusterLinkSpec, ClusterLinkStatus, SecretRef};
use crate::api::{self, label};
use crate::events::{self, Events, Regarding};
use crate::follow::{Change, Follow, follow};
use crate::heard::{Heard, chain};
use crate::lease::{Fence, REQUEST_TIMEOUT};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::runtime::watcher;
use kube::{Api, Client};
use mesh::finding::ObjectRef;
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

/// All ClusterLinks by name; `None` until listed once.
pub type Objects = Option<Arc<BTreeMap<String, ClusterLink>>>;

/// What should stand.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Wanted {
    /// Links to make for secrets that have none: not accepted, nothing imported.
    pub create: BTreeMap<String, ObjectRef>,
    /// Links that were made so, never accepted, and whose secret is gone.
    pub delete: Vec<String>,
    pub status: BTreeMap<String, ClusterLinkStatus>,
}

/// Follows ClusterLinks, and writes what is wanted of them whenever `fence` permits; what became of
/// one goes to `events` too.
pub fn start(
    client: Client,
    root_namespace: &str,
    wanted: watch::Receiver<Arc<Wanted>>,
    fence: Fence,
    events: Events,
    end: CancellationToken,
) -> watch::Receiver<Objects> {
    let (send, receive) = watch::channel(None);
    let (changes, changed) = mpsc::channel(64);
    let heard = Heard::default();
    let api: Api<ClusterLink> = Api::namespaced(heard.listen(client.clone()), root_namespace);
    let what = Follow { apis: vec![api], config: watcher::Config::default(), heard };
    tokio::spawn(follow(what, |link| link, |change| change, changes, end.clone()));
    tokio::spawn(collect(changed, send));
    let api = Api::namespaced(client, root_namespace);
    let writer = Writer { api, fence, events, last: BTreeMap::new() };
    tokio::spawn(write(writer, receive.clone(), wanted, end));
    receive
}

async fn collect(mut changed: mpsc::Receiver<Change<ClusterLink>>, send: watch::Sender<Objects>) {
    let mut all = BTreeMap::new();
    let mut listed = false;
    while let Some(change) = changed.recv().await {
        let name = |link: &ClusterLink| link.metadata.name.clone().unwrap_or_default();
        match change {
            Change::Replaced(links) => {
                listed = true;
                all = links.into_iter().map(|link| (name(&link), link)).collect();
            }
            Change::Applied(link) => drop(all.insert(name(&link), link)),
            Change::Deleted(link) => drop(all.remove(&name(&link))),
        }
        if listed {
            send.send_replace(Some(Arc::new(all.clone())));
        }
    }
}

/// After a failed write.
const RETRY: Duration = Duration::from_secs(1);
/// Between two writes of one link's status.
const INTERVAL: Duration = Duration::from_millis(200);
/// `lastHeard` alone is written this seldom: a heartbeat must not become a load.
pub const HEARD_EVERY: Duration = Duration::from_secs(30);

async fn write(
    mut writer: Writer,
    mut objects: watch::Receiver<Objects>,
    mut wanted: watch::Receiver<Arc<Wanted>>,
    end: CancellationToken,
) {
    loop {
        let wake = {
            let now = objects.borrow_and_update().clone();
            let want = wanted.borrow_and_update().clone();
            match now {
                Some(objects) => writer.round(&objects, &want).await,
                None => None,
            }
        };
        let wake = wake.unwrap_or_else(|| Instant::now() + Duration::from_secs(3600));
        tokio::select! {
            () = end.cancelled() => return,
            changed = objects.changed() => if changed.is_err() { return },
            changed = wanted.changed() => if changed.is_err() { return },
            () = writer.fence.changed() => {}
            () = tokio::time::sleep_until(wake.into()) => {}
        }
    }
}

struct Writer {
    api: Api<ClusterLink>,
    fence: Fence,
    events: Events,
    last: BTreeMap<String, Last>,
}

/// When a link's status was last asked to be written.
struct Last {
    at: Instant,
    /// What it was written upon, as [`version`] has it, and what stands since.
    wrote: Option<(Version, ClusterLinkStatus)>,
}

/// Uid and resourceVersion: which object it is, and in which state.
type Version = (Option<String>, Option<String>);

fn version(link: &ClusterLink) -> Version {
    (link.metadata.uid.clone(), link.metadata.resource_version.clone())
}

impl Last {
    /// What stands of `link`: what was written, until the watch tells of anything newer.
    fn stands(&self, link: &ClusterLink) -> Option<ClusterLinkStatus> {
        let (upon, status) = self.wrote.as_ref()?;
        (*upon == version(link)).then(|| status.clone())
    }
}

impl Writer {
    /// Writes what differs, one after the other; when to try again, where something is left.
    async fn round(
        &mut self,
        objects: &BTreeMap<String, ClusterLink>,
        want: &Wanted,
    ) -> Option<Instant> {
        let mut wake: Option<Instant> = None;
        let mut later = |at: Instant| wake = Some(wake.map_or(at, |wake| wake.min(at)));
        for (name, secret) in &want.create {
            if objects.contains_key(name) {
                continue;
            }
            let mut link = ClusterLink::new(
                name,
                ClusterLinkSpec {
                    accepted: false,
                    secret: SecretRef {
                        namespace: secret.namespace.clone(),
                        name: secret.name.clone(),
                    },
                    ..ClusterLinkSpec::default()
                },
            );
            link.metadata.labels =
                Some([(label::MANAGED_BY.to_owned(), label::MANAGER.to_owned())].into());
            let post =
                PostParams { field_manager: Some(label::MANAGER.into()), ..PostParams::default() };
            // AlreadyExists is as good: somebody consented in the meantime.
            if self.request(self.api.create(&post, &link), 409).await == Done::Failed {
                later(Instant::now() + RETRY);
            }
        }
        for name in &want.delete {
            let Some(link) = objects.get(name) else { continue };
            let exactly = Preconditions {
                uid: link.metadata.uid.clone(),
                resource_version: link.metadata.resource_version.clone(),
            };
            let delete = DeleteParams::default().preconditions(exactly);
            if self.request(self.api.delete(name, &delete), 404).await == Done::Failed {
                later(Instant::now() + RETRY);
            }
        }
        for (name, status) in &want.status {
            let Some(link) = objects.get(name) else { continue };
            if link.status.as_ref().is_some_and(|standing| same(standing, status)) {
                continue;
            }
            let now = Instant::now();
            let last = self.last.get(name);
            if let Some(next) = last.map(|last| last.at + INTERVAL).filter(|next| *next > now) {
                later(next);
                continue;
            }
            let known = last.and_then(|last| last.stands(link)).or_else(|| link.status.clone());
            let body = json!({
                "apiVersion": api::GROUP_VERSION,
                "kind": "ClusterLink",
                // Of this very object, not of one made anew under its name.
                "metadata": {"name": name, "uid": link.metadata.uid},
                "status": status,
            });
            let patch = PatchParams::apply(label::MANAGER).force();
            let body = Patch::Apply(&body);
            let done = self.request(self.api.patch_status(name, &patch, &body), 404).await;
            match done {
                Done::Written => self.tell(link, known.as_ref(), status),
                Done::Needless => {}
                Done::Failed => later(Instant::now() + RETRY),
            }
            let wrote = (done == Done::Written).then(|| (version(link), status.clone()));
            self.last.insert(name.clone(), Last { at: now, wrote });
        }
        self.last.retain(|name, _| objects.contains_key(name));
        wake
    }

    /// Says what a link's new status says that the one before did not.
    fn tell(
        &self,
        link: &ClusterLink,
        before: Option<&ClusterLinkStatus>,
        status: &ClusterLinkStatus,
    ) {
        let meta = link.metadata.clone();
        let regarding = Regarding {
            kind: "ClusterLink",
            namespace: meta.namespace.unwrap_or_default(),
            name: meta.name.unwrap_or_default(),
            uid: meta.uid.unwrap_or_default(),
        };
        for said in events::of_link(before, status) {
            self.events.say(regarding.clone(), said);
        }
    }

    /// An answer of `fine` is one that says it need not be done.
    async fn request<T>(
        &self,
        request: impl Future<Output = Result<T, kube::Error>>,
        fine: u16,
    ) -> Done {
        if self.fence.permit(Instant::now()).is_none() {
            return Done::Needless; // Not ours to write; the fence wakes us when it is.
        }
        match tokio::time::timeout(REQUEST_TIMEOUT, request).await {
            Ok(Ok(_)) => Done::Written,
            Ok(Err(kube::Error::Api(status))) if status.code == fine => Done::Needless,
            Ok(Err(error)) => {
                tracing::warn!(error = chain(&error), "a ClusterLink could not be written");
                Done::Failed
            }
            Err(_) => Done::Failed,
        }
    }
}

/// How a request went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Done {
    Written,
    Needless,
    Failed,
}

/// Equal, but for a `lastHeard` that is not much later.
fn same(standing: &ClusterLinkStatus, wanted: &ClusterLinkStatus) -> bool {
    let late = match (&standing.last_heard, &wanted.last_heard) {
        (Some(old), Some(new)) => {
            new.0.as_second() - old.0.as_second() >= HEARD_EVERY.as_secs() as i64
        }
        (None, Some(_)) => true,
        (Some(_) | None, None) => false,
    };
    let alike = ClusterLinkStatus { last_heard: wanted.last_heard.clone(), ..standing.clone() };
    !late && alike == *wanted
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use k8s_openapi::jiff::Timestamp;

    #[test]
    fn what_we_wrote_stands_until_the_watch_tells_of_anything_newer() {
        let link = |uid: &str, version: &str| {
            let mut link = ClusterLink::new("west", ClusterLinkSpec::default());
            link.metadata.uid = Some(uid.into());
            link.metadata.resource_version = Some(version.into());
            link
        };
        let status = ClusterLinkStatus { services: 1, ..ClusterLinkStatus::default() };
        let wrote = Some((version(&link("a", "7")), status.clone()));
        let last = Last { at: Instant::now(), wrote };
        assert_eq!(last.stands(&link("a", "7")), Some(status));
        assert_eq!(last.stands(&link("a", "8")), None, "another replica may have written it");
        assert_eq!(last.stands(&link("b", "7")), None, "made anew under its name");
    }

    #[test]
    fn a_heartbeat_alone_is_written_seldom() {
        let at = |second| ClusterLinkStatus {
            last_heard: Some(Time(Timestamp::from_second(second).unwrap())),
            ..ClusterLinkStatus::default()
        };
        assert!(same(&at(100), &at(129)));
        assert!(!same(&at(100), &at(130)));
        assert!(!same(&ClusterLinkStatus::default(), &at(1)));
        assert!(!same(&at(100), &ClusterLinkStatus { services: 1, ..at(100) }));
    }
}
