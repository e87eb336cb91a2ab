//! Bringing objects into a cluster in such a way that it can be said what changed, and that a second
//! time changes nothing.

use super::{FIELD_MANAGER, Operator};
use anyhow::{Result, bail};
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// What an apply did, or would do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Change {
    Created,
    Changed,
    Unchanged,
}

/// Whether the cluster keeps what it is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Apply,
    /// The API server judges the object and forgets it.
    DryRun,
}

/// A kind whose CustomResourceDefinition was just made is served within this.
const SERVED_MAX: Duration = Duration::from_secs(20);
const AGAIN_AFTER: Duration = Duration::from_millis(200);

impl Operator {
    /// Server-side apply under [`FIELD_MANAGER`], taking over fields that others hold.
    ///
    /// In a dry run, what stands in a namespace or is of a kind that is not there yet counts as created.
    ///
    /// # Errors
    /// A sentence with the object's kind and name and what the API server said.
    pub async fn bring(&self, object: &Value, mode: Mode) -> Result<Change> {
        let (api, name) = self.api_of(object)?;
        let what = format!("applying {} {name}", object["kind"].as_str().unwrap_or_default());
        let mut params = PatchParams::apply(FIELD_MANAGER).force();
        params.dry_run = mode == Mode::DryRun;
        let until = Instant::now() + SERVED_MAX;
        loop {
            let before = match api.get_opt(&name).await {
                // The kind itself is not served (yet): the patch says so too.
                Err(kube::Error::Api(status)) if status.code == 404 => None,
                before => self.asked(&what, before)?,
            };
            match api.patch(&name, &params, &Patch::Apply(object)).await {
                Err(kube::Error::Api(status)) if status.code == 404 => {
                    if mode == Mode::DryRun {
                        return Ok(Change::Created);
                    }
                    if Instant::now() > until {
                        return self.asked(&what, Err(kube::Error::Api(status)));
                    }
                    tokio::time::sleep(AGAIN_AFTER).await;
                }
                answer => {
                    let after = serde_json::to_value(self.asked(&what, answer)?)?;
                    let Some(before) = before else { return Ok(Change::Created) };
                    let same = content(serde_json::to_value(before)?) == content(after);
                    return Ok(if same { Change::Unchanged } else { Change::Changed });
                }
            }
        }
    }

    /// Merges `change` (RFC 7386) into an object as it was read: whoever wrote it meanwhile is not
    /// written over.
    ///
    /// # Errors
    /// As [`Self::bring`]; ISM2088 where somebody else has written it since.
    pub async fn amend(&self, read: &Value, change: &Value, mode: Mode) -> Result<()> {
        let (api, name) = self.api_of(read)?;
        let kind = read["kind"].as_str().unwrap_or_default();
        let mut change = change.clone();
        change["metadata"] = json!({"resourceVersion": read["metadata"]["resourceVersion"]});
        let params = PatchParams {
            dry_run: mode == Mode::DryRun,
            field_manager: Some(FIELD_MANAGER.into()),
            ..PatchParams::default()
        };
        match api.patch(&name, &params, &Patch::Merge(&change)).await {
            Err(kube::Error::Api(status)) if status.code == 409 => bail!(
                "ISM2088 {kind} {name} was changed by somebody else just now; nothing was written. \
                 Fix: call this again"
            ),
            answer => self.asked(&format!("changing {kind} {name}"), answer).map(|_| ()),
        }
    }

    /// Creates what is absent; what is there is somebody's own and stays as it is.
    ///
    /// # Errors
    /// As [`Self::bring`].
    pub async fn create_absent(&self, object: &Value, mode: Mode) -> Result<Change> {
        let (api, name) = self.api_of(object)?;
        let what = format!("creating {} {name}", object["kind"].as_str().unwrap_or_default());
        if self.asked(&what, api.get_opt(&name).await)?.is_some() {
            return Ok(Change::Unchanged);
        }
        let params =
            PostParams { dry_run: mode == Mode::DryRun, field_manager: Some(FIELD_MANAGER.into()) };
        let object = serde_json::from_value(object.clone())?;
        match api.create(&params, &object).await {
            // Another one was quicker.
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(Change::Unchanged),
            answer => self.asked(&what, answer).map(|_| Change::Created),
        }
    }
}

/// An object without what the API server notes about its writes.
fn content(mut object: Value) -> Value {
    if let Some(metadata) = object["metadata"].as_object_mut() {
        for note in ["managedFields", "resourceVersion", "generation"] {
            metadata.remove(note);
        }
    }
    if let Some(whole) = object.as_object_mut() {
        whole.remove("status");
    }
    object
}

#[cfg(test)]
mod tests {
    use super::content;
    use serde_json::json;

    #[test]
    fn only_what_people_write_counts_as_change() {
        let object = |version: &str, replicas: u32| {
            content(json!({
                "kind": "Deployment",
                "metadata": {"name": "a", "resourceVersion": version, "managedFields": [version]},
                "spec": {"replicas": replicas}, "status": {"replicas": version},
            }))
        };
        assert_eq!(object("1", 2), object("2", 2));
        assert_ne!(object("1", 2), object("1", 3));
    }
}
