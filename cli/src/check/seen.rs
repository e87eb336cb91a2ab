//! What was observed of all clusters: the input of the judgement.

use cluster::operator::look::{Look, Silent};
use serde_json::Value;
use trust::probe::Probed;

/// All clusters at one moment.
#[derive(Debug, Clone, Default)]
pub(super) struct Seen {
    pub(super) clusters: Vec<Cluster>,
    pub(super) doors: Vec<Door>,
    /// Seconds since the epoch.
    pub(super) now: i64,
    pub(super) root_namespace: String,
    /// Somebody means to link all of them.
    pub(super) pre: bool,
}

#[derive(Debug, Clone)]
pub(super) struct Cluster {
    /// As the operator calls it.
    pub(super) context: String,
    pub(super) server: String,
    pub(super) look: Result<Box<Look>, Silent>,
    /// Pages of its control plane, where a place was given.
    pub(super) control_plane: Option<ControlPlane>,
    /// Pages of its federation controller, where a place was given.
    pub(super) controller: Option<Controller>,
}

/// A page that was read, or why not.
pub(super) type Page = Result<Value, String>;

#[derive(Debug, Clone)]
pub(super) struct ControlPlane {
    pub(super) place: String,
    /// What it waits for; empty when ready.
    pub(super) waits: Result<String, String>,
    pub(super) sessions: Page,
}

#[derive(Debug, Clone)]
pub(super) struct Controller {
    pub(super) place: String,
    /// What it waits for; empty when ready.
    pub(super) waits: Result<String, String>,
    pub(super) links: Page,
    pub(super) dns: Page,
}

/// One address of a gateway, asked by a handshake.
#[derive(Debug, Clone)]
pub(super) struct Door {
    /// Id of the cluster it should lead to.
    pub(super) cluster: String,
    pub(super) address: String,
    pub(super) probed: Probed,
}

impl Cluster {
    pub(super) fn look(&self) -> Option<&Look> {
        self.look.as_deref().ok()
    }

    /// The id it gives itself, else its context.
    pub(super) fn id(&self) -> &str {
        let mesh = self.look().and_then(|look| look.mesh.as_ref().ok()?.0.as_ref());
        mesh.map_or(&self.context, |mesh| mesh.cluster.as_str())
    }
}

impl Seen {
    /// The cluster that a link leads to, if it was looked at.
    pub(super) fn peer(&self, id: &str, uid: &str) -> Option<&Cluster> {
        let has = |cluster: &&Cluster| {
            let found = cluster.look().and_then(|look| look.uid.as_deref().ok());
            !uid.is_empty() && found == Some(uid)
        };
        let named = |cluster: &&Cluster| cluster.id() == id;
        self.clusters.iter().find(has).or_else(|| self.clusters.iter().find(named))
    }
}
