//! Writing: create, update, patch and delete, each decided on one state of the store.

use crate::identity::User;
use crate::kind::{Kind, Rules};
use crate::manage::{self, Author};
use crate::object::{self, Object, text, timestamp};
use crate::operation::{Operation, PatchKind, Verb};
use crate::refusal::{Cause, Refusal};
use crate::server::{Outcome, Server, seen};
use crate::store::{Change, Entry, Key, Writer};
use crate::{patch, prepare};
use serde_json::{Value, json};
use std::sync::Arc;

/// An object that is about to be written, and what it replaces.
pub(crate) struct Draft<'a> {
    pub(crate) kind: &'a Arc<Kind>,
    pub(crate) new: Object,
    pub(crate) old: Option<&'a Object>,
    pub(crate) author: Author,
    pub(crate) now: jiff::Timestamp,
}

/// A write under way.
pub(crate) struct Task<'a> {
    pub(crate) server: &'a Server,
    pub(crate) user: &'a User,
    pub(crate) writer: Writer<'a>,
    pub(crate) operation: Operation,
    pub(crate) now: jiff::Timestamp,
    pub(crate) dry: bool,
    pub(crate) warnings: Vec<String>,
}

impl Server {
    pub(crate) fn write(
        &self,
        user: &User,
        operation: Operation,
        now: jiff::Timestamp,
    ) -> Result<Outcome, Refusal> {
        let dry = operation.params.dry_run()?
            || operation.body["kind"] == "DeleteOptions"
                && object::items(&operation.body, &["dryRun"]).iter().any(|word| word == "All");
        let writer = self.store.writer();
        let mut task = Task { server: self, user, writer, operation, now, dry, warnings: vec![] };
        match task.operation.verb {
            Verb::Create => task.create(),
            Verb::Update => task.update(),
            Verb::Patch(PatchKind::Apply) => task.apply(),
            Verb::Patch(kind) => task.patch(kind),
            Verb::Delete => task.delete(),
            Verb::DeleteCollection => task.delete_all(),
            Verb::Get | Verb::List | Verb::Watch => {
                Err(Refusal::internal("a read was taken for a write"))
            }
        }
    }
}

impl Task<'_> {
    pub(crate) fn kind(&self) -> Arc<Kind> {
        self.operation.kind.clone()
    }

    fn author(&self, operation: &'static str) -> Author {
        let given = self.operation.params.text("fieldManager");
        let manager = if given.is_empty() { &self.operation.agent } else { given };
        Author {
            manager: manager.to_owned(),
            operation,
            api_version: self.operation.kind.api_version(),
            subresource: self.operation.subresource.clone(),
        }
    }

    pub(crate) fn key(&self) -> Key {
        (self.operation.namespace.clone(), self.operation.name.clone())
    }

    fn standing(&self) -> Result<Arc<Entry>, Refusal> {
        let Operation { kind, name, .. } = &self.operation;
        let found = self.server.store.get(&kind.resource, &self.key());
        found.ok_or_else(|| Refusal::not_found(kind, name))
    }

    /// A built-in kind's name and version go without saying.
    fn name_kind(&self, body: &mut Value) {
        let kind = &self.operation.kind;
        if let Some(fields) = body.as_object_mut().filter(|_| !kind.is_custom()) {
            fields.entry("kind").or_insert_with(|| json!(kind.kind));
            fields.entry("apiVersion").or_insert_with(|| json!(kind.api_version()));
        }
    }

    /// Checks that a body is of this kind and place.
    fn fits(&self, body: &Value) -> Result<(), Refusal> {
        let Operation { kind, namespace, name, verb, .. } = &self.operation;
        if !body.is_object() {
            return Err(Refusal::bad_request("the body of the request is no object"));
        }
        let (given_kind, given_version) = (text(body, &["kind"]), text(body, &["apiVersion"]));
        let version = kind.api_version();
        if kind.is_custom() && (given_kind.is_empty() || given_version.is_empty()) {
            let what = if given_kind.is_empty() { "Kind" } else { "apiVersion" };
            let message = format!("Object '{what}' is missing in '{}'", shorten(body));
            return Err(Refusal::bad_request(message));
        }
        if given_kind != kind.kind || given_version != version {
            let (group, short) = given_version.split_once('/').unwrap_or(("", given_version));
            let message = format!(
                "{given_kind} in version {short:?} cannot be handled as a {}: no kind {given_kind:?} is registered for version {given_version:?} (group {group:?})",
                kind.kind
            );
            return Err(Refusal::bad_request(message));
        }
        let own = object::namespace(body);
        if !own.is_empty() && own != namespace {
            let message = if kind.namespaced {
                "the namespace of the provided object does not match the namespace sent on the request"
            } else {
                "namespace may not be set on a cluster-scoped object"
            };
            return Err(Refusal::bad_request(message));
        }
        let own = object::name(body);
        if *verb != Verb::Create && own != name {
            let message = if own.is_empty() {
                "name must be provided".to_owned()
            } else {
                format!(
                    "the name of the object ({own}) does not match the name on the URL ({name})"
                )
            };
            return Err(Refusal::bad_request(message));
        }
        Ok(())
    }

    /// Reads a body into its type.
    fn decode(&mut self, body: &Value) -> Result<Object, Refusal> {
        let kind = self.kind();
        let decoded = prepare::decode(&kind, body)?;
        let mut alien = vec![];
        prepare::aliens("", body, &decoded, &mut alien);
        match self.operation.params.text("fieldValidation") {
            "Ignore" => {}
            "Strict" if !alien.is_empty() => {
                let words: Vec<String> =
                    alien.iter().map(|path| format!("unknown field {path:?}")).collect();
                let message = format!(
                    "{} in version {:?} cannot be handled as a {}: strict decoding error: {}",
                    kind.kind,
                    kind.version,
                    kind.kind,
                    words.join(", ")
                );
                return Err(Refusal::bad_request(message));
            }
            _ => self
                .warnings
                .extend(alien.iter().take(10).map(|path| format!("unknown field {path:?}"))),
        }
        Ok(decoded)
    }

    fn create(&mut self) -> Result<Outcome, Refusal> {
        let mut body = self.operation.body.take();
        self.name_kind(&mut body);
        self.fits(&body)?;
        let mut new = self.decode(&body)?;
        if !text(&new, &["metadata", "resourceVersion"]).is_empty() {
            return Err(Refusal::new(
                500,
                "",
                "resourceVersion should not be set on objects to be created",
            ));
        }
        let prefix = text(&new, &["metadata", "generateName"]).to_owned();
        if object::name(&new).is_empty() && !prefix.is_empty() {
            let prefix: String = prefix.chars().take(58).collect();
            object::set_meta(&mut new, "name", json!(format!("{prefix}{}", object::suffix())));
        }
        let author = self.author("Update");
        let entry = self.make(new, author, None)?;
        self.done(201, entry)
    }

    /// Writes an object that is not there yet. `applied`: its managed fields are settled already.
    fn make(
        &mut self,
        mut new: Object,
        author: Author,
        applied: Option<manage::Applied>,
    ) -> Result<Arc<Entry>, Refusal> {
        let kind = self.kind();
        let namespace = self.operation.namespace.clone();
        if kind.namespaced {
            prepare::in_namespace(self.server, &namespace, &kind, object::name(&new))?;
            object::set_meta(&mut new, "namespace", json!(namespace));
        }
        prepare::fresh(&kind, &mut new, self.now);
        let time = timestamp(self.now);
        prepare::default(&kind, &mut new);
        if kind.is("apiextensions.k8s.io", "customresourcedefinitions") {
            crate::definition::establish(&mut new, &time);
        }
        let key = (namespace, object::name(&new).to_owned());
        let draft = Draft { kind: &kind, new, old: None, author, now: self.now };
        let mut new = self.judge(draft)?;
        if self.server.store.get(&kind.resource, &key).is_some() {
            return Err(Refusal::already_exists(&kind, &key.1));
        }
        let name = key.1.clone();
        prepare::allocate(self.server, &kind, &mut new, None)?;
        if let Some(applied) = applied {
            let nothing = json!({});
            new = applied
                .settle(&nothing, new, &kind.shape, &time)
                .map_err(|conflicts| manage::conflict(&kind, &name, conflicts))?;
        }
        self.put(key, new)
    }

    /// Last checks of what is to be written, and its managed fields where it is no apply.
    fn judge(&mut self, draft: Draft<'_>) -> Result<Object, Refusal> {
        let Draft { kind, mut new, old, author, now } = draft;
        let causes = prepare::validate(self.server, kind, &new, old);
        if !causes.is_empty() {
            return Err(Refusal::invalid(kind, object::name(&new), causes));
        }
        prepare::admit(self.server, kind, &new, old)?;
        if author.operation == "Update" {
            let nothing = json!({});
            let time = timestamp(now);
            manage::update(old.unwrap_or(&nothing), &mut new, &kind.shape, &author, &time);
        }
        Ok(new)
    }

    /// Keeps an object, unless this is a rehearsal.
    fn put(&mut self, key: Key, new: Object) -> Result<Arc<Entry>, Refusal> {
        let kind = self.kind();
        if self.dry {
            return Ok(Arc::new(Entry { json: new.to_string().into(), value: new, revision: 0 }));
        }
        let change = Change { resource: kind.resource.clone(), key, value: Some(new) };
        let mut done = self.commit(vec![change])?;
        done.pop().ok_or_else(|| Refusal::internal("a change was lost"))
    }

    pub(crate) fn commit(&mut self, changes: Vec<Change>) -> Result<Vec<Arc<Entry>>, Refusal> {
        let definitions = "apiextensions.k8s.io/customresourcedefinitions";
        let learn = changes.iter().any(|change| &*change.resource == definitions);
        let done = self.writer.commit(changes).map_err(|why| {
            tracing::error!(why, "a write is refused");
            Refusal::new(507, "InsufficientStorage", why)
        })?;
        if learn {
            self.server.learn();
        }
        Ok(done)
    }

    fn done(&mut self, code: u16, entry: Arc<Entry>) -> Result<Outcome, Refusal> {
        let warnings = std::mem::take(&mut self.warnings);
        Ok(Outcome::Object { code, entry, kind: self.kind(), warnings })
    }

    fn update(&mut self) -> Result<Outcome, Refusal> {
        let mut body = self.operation.body.take();
        self.name_kind(&mut body);
        self.fits(&body)?;
        let new = self.decode(&body)?;
        let kind = self.kind();
        let found = match self.standing() {
            Err(_)
                if matches!(&kind.rules, Rules::Builtin(b) if b.put_creates)
                    && self.operation.subresource.is_empty() =>
            {
                if !object::uid(&new).is_empty() {
                    return Err(Refusal::conflict(
                        &kind,
                        &self.operation.name,
                        "Precondition failed: the object is gone",
                    ));
                }
                self.server.permit(self.user, &self.operation, "create")?;
                let author = self.author("Update");
                let mut new = new;
                object::set_meta(&mut new, "resourceVersion", Value::Null);
                let entry = self.make(new, author, None)?;
                return self.done(201, entry);
            }
            found => found?,
        };
        let must = match &kind.rules {
            Rules::Builtin(builtin) => builtin.versioned,
            Rules::Custom(_) => true,
            Rules::Review => false,
        };
        if must && text(&new, &["metadata", "resourceVersion"]).is_empty() {
            let why = "must be specified for an update";
            let cause = Cause::invalid("metadata.resourceVersion", &json!(0), why);
            return Err(Refusal::invalid(&kind, &self.operation.name, vec![cause]));
        }
        self.replace(&found, new)
    }

    fn patch(&mut self, how: PatchKind) -> Result<Outcome, Refusal> {
        let found = self.standing()?;
        let kind = self.kind();
        let mut body = seen(&kind, &found.value).into_owned();
        let given = self.operation.body.take();
        match how {
            PatchKind::Json => patch::json(&mut body, given)?,
            PatchKind::Merge => patch::merge(&mut body, &given)?,
            PatchKind::Strategic => patch::strategic(&mut body, &given, &kind.shape)?,
            PatchKind::Apply => return Err(Refusal::internal("an apply was taken for a patch")),
        }
        self.fits(&body)?;
        let new = self.decode(&body)?;
        self.replace(&found, new)
    }

    /// Puts `new` in the place of what is there.
    fn replace(&mut self, found: &Entry, mut new: Object) -> Result<Outcome, Refusal> {
        let kind = self.kind();
        let (old, name) = (&found.value, self.operation.name.clone());
        let version = text(&new, &["metadata", "resourceVersion"]);
        if !version.is_empty() && version != found.revision.to_string() {
            return Err(Refusal::modified(&kind, &name));
        }
        let uid = object::uid(&new);
        if !uid.is_empty() && uid != object::uid(old) {
            let why = format!(
                "Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
                object::uid(old)
            );
            return Err(Refusal::conflict(&kind, &name, &why));
        }
        let status = self.operation.subresource == "status";
        prepare::carry(&kind, old, &mut new, status);
        prepare::default(&kind, &mut new);
        prepare::allocate(self.server, &kind, &mut new, Some(old))?;
        prepare::generation(&kind, old, &mut new);
        let author = self.author("Update");
        let draft = Draft { kind: &kind, new, old: Some(old), author, now: self.now };
        let new = self.judge(draft)?;
        self.settle(found, new)
    }

    /// Writes what differs; an object that was only waiting for its finalizers goes.
    fn settle(&mut self, found: &Entry, mut new: Object) -> Result<Outcome, Refusal> {
        let version = json!(found.revision.to_string());
        object::set_meta(&mut new, "resourceVersion", version);
        if new == found.value {
            let entry = Arc::new(Entry {
                value: found.value.clone(),
                revision: found.revision,
                json: found.json.clone(),
            });
            return self.done(200, entry);
        }
        let key = self.key();
        if object::is_deleting(&new) && !object::finalizers(&new) && !self.dry {
            let kind = self.kind();
            // Whoever asked for the end has it now; watchers see the last state first.
            let entry = self.put(key.clone(), new)?;
            self.end(&kind, key)?;
            return self.done(200, entry);
        }
        let entry = self.put(key, new)?;
        self.done(200, entry)
    }

    fn apply(&mut self) -> Result<Outcome, Refusal> {
        let kind = self.kind();
        let mut config = self.operation.body.take();
        if self.operation.params.text("fieldManager").is_empty() {
            let message = "PatchOptions.meta.k8s.io \"\" is invalid: fieldManager: Required value: is required for apply patch";
            let mut refusal = Refusal::new(422, "Invalid", message);
            refusal.about = Some((String::new(), "meta.k8s.io".into(), "PatchOptions".into()));
            refusal.causes = vec![Cause::required("fieldManager", "is required for apply patch")];
            return Err(refusal);
        }
        if config["metadata"].is_object() && object::name(&config).is_empty() {
            object::set_meta(&mut config, "name", json!(self.operation.name));
        }
        self.fits(&config)?;
        if config["metadata"]
            .get("managedFields")
            .is_some_and(|f| f.as_array().is_some_and(|l| !l.is_empty()))
        {
            return Err(Refusal::bad_request("metadata.managedFields must be nil"));
        }
        let mut config = self.decode_config(&config)?;
        let version = text(&config, &["metadata", "resourceVersion"]).to_owned();
        let status = self.operation.subresource == "status";
        if kind.status
            && let Some(fields) = config.as_object_mut()
        {
            if status {
                fields.retain(|field, _| {
                    ["apiVersion", "kind", "metadata", "status"].contains(&field.as_str())
                });
            } else {
                fields.remove("status");
            }
        }
        let author = self.author("Apply");
        let forced = self.operation.params.is("force");
        let time = timestamp(self.now);
        let Ok(found) = self.standing() else {
            if status {
                return Err(Refusal::not_found(&kind, &self.operation.name));
            }
            if !version.is_empty() || !object::uid(&config).is_empty() {
                return Err(Refusal::conflict(
                    &kind,
                    &self.operation.name,
                    "Precondition failed: the object is gone",
                ));
            }
            self.server.permit(self.user, &self.operation, "create")?;
            let bare = json!({"apiVersion": kind.api_version(), "kind": kind.kind, "metadata": {}});
            let applied = manage::apply(&bare, &config, &kind.shape, &author, forced, &time);
            let new = applied.object.clone();
            let entry = self.make(new, author, Some(applied))?;
            return self.done(201, entry);
        };
        if !version.is_empty() && version != found.revision.to_string() {
            return Err(Refusal::modified(&kind, &self.operation.name));
        }
        let uid = object::uid(&config);
        if !uid.is_empty() && uid != object::uid(&found.value) {
            let why = format!(
                "Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
                object::uid(&found.value)
            );
            return Err(Refusal::conflict(&kind, &self.operation.name, &why));
        }
        let live = seen(&kind, &found.value).into_owned();
        let applied = manage::apply(&live, &config, &kind.shape, &author, forced, &time);
        let mut new = prepare::decode(&kind, &applied.object)?;
        prepare::carry(&kind, &live, &mut new, status);
        prepare::default(&kind, &mut new);
        prepare::allocate(self.server, &kind, &mut new, Some(&live))?;
        prepare::generation(&kind, &live, &mut new);
        let name = self.operation.name.clone();
        let new = applied
            .settle(&live, new, &kind.shape, &time)
            .map_err(|conflicts| manage::conflict(&kind, &name, conflicts))?;
        let draft = Draft { kind: &kind, new, old: Some(&live), author, now: self.now };
        let new = self.judge(draft)?;
        self.settle(&found, new)
    }

    /// Reads an applied configuration: unknown fields are errors, what is absent stays absent.
    fn decode_config(&mut self, config: &Value) -> Result<Object, Refusal> {
        let mut config = config.clone();
        object::strip_nulls(&mut config);
        let kind = self.kind();
        let decoded = prepare::decode(&kind, &config)?;
        let mut alien = vec![];
        prepare::aliens("", &config, &decoded, &mut alien);
        if let Some(path) = alien.first().filter(|_| !kind.is_custom()) {
            let message = format!(
                "failed to create typed patch object ({}/{}; {}, Kind={}): .{path}: field not declared in schema",
                self.operation.namespace,
                self.operation.name,
                kind.api_version(),
                kind.kind
            );
            return Err(Refusal::new(500, "", message));
        }
        if let Some(path) = alien.first() {
            if self.operation.params.text("fieldValidation") == "Strict" {
                return Err(Refusal::bad_request(format!(
                    "failed to create typed patch object: .{path}: field not declared in schema"
                )));
            }
        }
        Ok(prepare::only_given(&config, &decoded))
    }
}

fn shorten(body: &Value) -> String {
    body.to_string().chars().take(100).collect()
}
