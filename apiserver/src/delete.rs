//! Deleting, and what falls with what is deleted: contents of namespaces, owned objects, custom resources.

use crate::kind::Kind;
use crate::object::{self, Object, at, items, set_meta, text, timestamp};
use crate::refusal::Refusal;
use crate::server::{Outcome, Server};
use crate::store::{Change, Entry, Key, Resource};
use crate::write::Task;
use serde_json::{Value, json};
use std::sync::Arc;

/// Namespaces a cluster cannot be without.
const LASTING: [&str; 3] = ["default", "kube-public", "kube-system"];

const DEFINITIONS: &str = "apiextensions.k8s.io/customresourcedefinitions";

impl Task<'_> {
    pub(crate) fn delete(&mut self) -> Result<Outcome, Refusal> {
        let kind = self.kind();
        let key = self.key();
        let found = self.server.store.get(&kind.resource, &key);
        let found = found.ok_or_else(|| Refusal::not_found(&kind, &key.1))?;
        let options = self.operation.body.take();
        self.judge_options(&options, &found.value)?;
        if kind.is("", "namespaces") && LASTING.contains(&&*key.1) {
            return Err(Refusal::forbidden(&kind, &key.1, "this namespace may not be deleted"));
        }
        let gone = self.remove(&kind, key.clone(), &found)?;
        let returns = ["pods", "services", "serviceaccounts", "namespaces"];
        if gone.is_none() || kind.group.is_empty() && returns.contains(&&*kind.plural) {
            let entry =
                gone.or_else(|| self.server.store.get(&kind.resource, &key)).unwrap_or(found);
            return Ok(Outcome::Object { code: 200, entry, kind, warnings: vec![] });
        }
        let mut details =
            json!({"name": key.1, "kind": kind.plural, "uid": object::uid(&found.value)});
        if !kind.group.is_empty() {
            details["group"] = json!(kind.group);
        }
        let value = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details,
        });
        Ok(Outcome::Value { code: 200, value, warnings: vec![] })
    }

    fn judge_options(&self, options: &Value, found: &Object) -> Result<(), Refusal> {
        let kind = self.kind();
        let name = object::name(found);
        let wanted = |field: &str| text(options, &["preconditions", field]);
        let uid = wanted("uid");
        if !uid.is_empty() && uid != object::uid(found) {
            let own = object::uid(found);
            let why = format!(
                "Precondition failed: UID in precondition: {uid}, UID in object meta: {own}"
            );
            return Err(Refusal::conflict(&kind, name, &why));
        }
        let (version, own) =
            (wanted("resourceVersion"), text(found, &["metadata", "resourceVersion"]));
        if !version.is_empty() && version != own {
            let why = format!(
                "Precondition failed: ResourceVersion in precondition: {version}, ResourceVersion in object meta: {own}"
            );
            return Err(Refusal::conflict(&kind, name, &why));
        }
        let policy = text(options, &["propagationPolicy"]);
        let policy = if policy.is_empty() {
            self.operation.params.text("propagationPolicy")
        } else {
            policy
        };
        if !["", "Background", "Foreground", "Orphan"].contains(&policy) {
            let message = format!(
                "DeleteOptions.meta.k8s.io \"\" is invalid: propagationPolicy: Unsupported value: {policy:?}"
            );
            return Err(Refusal::new(422, "Invalid", message));
        }
        Ok(())
    }

    pub(crate) fn delete_all(&mut self) -> Result<Outcome, Refusal> {
        let selector = Server::select(&self.operation)?;
        let kind = self.kind();
        let namespace = self.operation.namespace.clone();
        let (entries, revision) =
            self.server.store.list(&kind.resource, Some(&*namespace).filter(|n| !n.is_empty()));
        let chosen: Vec<_> =
            entries.into_iter().filter(|entry| selector.fits(&entry.value)).collect();
        for entry in &chosen {
            let key = (namespace.clone(), object::name(&entry.value).to_owned());
            self.remove(&kind, key, entry)?;
        }
        Ok(Outcome::List { kind, entries: chosen, revision, next: None, left: 0 })
    }

    /// Removes an object, or marks it where something must happen first. Returns its end, if it came.
    fn remove(
        &mut self,
        kind: &Arc<Kind>,
        key: Key,
        found: &Entry,
    ) -> Result<Option<Arc<Entry>>, Refusal> {
        if self.dry {
            return Ok(None);
        }
        let namespace = kind.is("", "namespaces");
        if !namespace && !object::finalizers(&found.value) {
            return self.end(kind, key).map(Some);
        }
        if !object::is_deleting(&found.value) {
            let mut marked = found.value.clone();
            set_meta(&mut marked, "deletionTimestamp", timestamp(self.now));
            if namespace {
                marked["status"]["phase"] = json!("Terminating");
            } else {
                set_meta(&mut marked, "deletionGracePeriodSeconds", json!(0));
                if let Some(generation) =
                    at(&marked, &["metadata", "generation"]).and_then(Value::as_i64)
                {
                    set_meta(&mut marked, "generation", json!(generation + 1));
                }
            }
            let resource = kind.resource.clone();
            self.commit(vec![Change { resource, key: key.clone(), value: Some(marked) }])?;
        }
        if namespace {
            self.empty(&key.1)?;
        }
        Ok(None)
    }

    /// Takes an object out of the store, and all that hangs on it.
    pub(crate) fn end(&mut self, kind: &Arc<Kind>, key: Key) -> Result<Arc<Entry>, Refusal> {
        let mut first = None;
        let mut falling: Vec<(Resource, Key)> = vec![(kind.resource.clone(), key)];
        while let Some((resource, key)) = falling.pop() {
            let Some(found) = self.server.store.get(&resource, &key) else { continue };
            if first.is_some() && object::finalizers(&found.value) {
                self.mark(&resource, &key, &found)?;
                continue;
            }
            let change = Change { resource: resource.clone(), key: key.clone(), value: None };
            let ended = self.commit(vec![change])?.pop();
            falling.extend(self.owned(object::uid(&found.value))?);
            if &*resource == DEFINITIONS {
                let spec = &found.value["spec"];
                let custom: Resource =
                    format!("{}/{}", text(spec, &["group"]), text(spec, &["names", "plural"]))
                        .into();
                let (entries, _) = self.server.store.list(&custom, None);
                let keys = entries.iter().map(|entry| (custom.clone(), key_of(&entry.value)));
                for (resource, key) in keys {
                    self.commit(vec![Change { resource, key, value: None }])?;
                }
            }
            self.close(&key.0)?;
            first = first.or(ended);
        }
        first.ok_or_else(|| Refusal::internal("a deletion was lost"))
    }

    fn mark(&mut self, resource: &Resource, key: &Key, found: &Entry) -> Result<(), Refusal> {
        if object::is_deleting(&found.value) {
            return Ok(());
        }
        let mut marked = found.value.clone();
        set_meta(&mut marked, "deletionTimestamp", timestamp(self.now));
        set_meta(&mut marked, "deletionGracePeriodSeconds", json!(0));
        let change = Change { resource: resource.clone(), key: key.clone(), value: Some(marked) };
        self.commit(vec![change]).map(|_| ())
    }

    /// What only this owner held; who has others loses the reference.
    fn owned(&mut self, uid: &str) -> Result<Vec<(Resource, Key)>, Refusal> {
        let mut alone = vec![];
        if uid.is_empty() {
            return Ok(alone);
        }
        for resource in self.server.store.resources() {
            for entry in self.server.store.list(&resource, None).0 {
                let owners = items(&entry.value, &["metadata", "ownerReferences"]);
                if !owners.iter().any(|owner| owner["uid"] == uid) {
                    continue;
                }
                let key = key_of(&entry.value);
                let left: Vec<Value> =
                    owners.iter().filter(|owner| owner["uid"] != uid).cloned().collect();
                if left.is_empty() {
                    alone.push((resource.clone(), key));
                    continue;
                }
                let mut value = entry.value.clone();
                set_meta(&mut value, "ownerReferences", left.into());
                self.commit(vec![Change { resource: resource.clone(), key, value: Some(value) }])?;
            }
        }
        Ok(alone)
    }

    /// Empties a namespace that ends; no controller does it here.
    fn empty(&mut self, namespace: &str) -> Result<(), Refusal> {
        for resource in self.server.store.resources() {
            for entry in self.server.store.list(&resource, Some(namespace)).0 {
                let key = key_of(&entry.value);
                if key.0 != namespace {
                    continue;
                }
                if object::finalizers(&entry.value) {
                    self.mark(&resource, &key, &entry)?;
                } else {
                    self.commit(vec![Change { resource: resource.clone(), key, value: None }])?;
                }
            }
        }
        self.close(namespace)
    }

    /// Ends a namespace that ends, once nothing is in it.
    fn close(&mut self, namespace: &str) -> Result<(), Refusal> {
        let key = (String::new(), namespace.to_owned());
        let Some(found) = self.server.store.get("/namespaces", &key) else { return Ok(()) };
        let holds =
            |resource: &Resource| !self.server.store.list(resource, Some(namespace)).0.is_empty();
        if namespace.is_empty()
            || !object::is_deleting(&found.value)
            || object::finalizers(&found.value)
            || self.server.store.resources().iter().any(holds)
        {
            return Ok(());
        }
        let change = Change { resource: "/namespaces".into(), key, value: None };
        self.commit(vec![change]).map(|_| ())
    }
}

fn key_of(value: &Object) -> Key {
    (object::namespace(value).to_owned(), object::name(value).to_owned())
}
