//! The server without its wire: an operation and its author in, what came of it out.

use crate::access::{self, Wish};
use crate::builtin::Policy;
use crate::definition;
use crate::identity::{ISSUER, Keys, User};
use crate::kind::{Kind, Registry};
use crate::object::{Object, at};
use crate::operation::{Operation, Verb};
use crate::refusal::Refusal;
use crate::selector::Selector;
use crate::store::{Entry, Store};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use std::sync::{Arc, PoisonError, RwLock};

/// Most objects of one page, where a client asks for pages.
const PAGE_MAX: u64 = 10_000;

/// Everything a cluster is here.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) store: Store,
    pub(crate) keys: Keys,
    pub(crate) policy: Policy,
    /// Where Services get their addresses from.
    pub(crate) services: ipnet::Ipv4Net,
    registry: RwLock<Arc<Registry>>,
}

/// What came of an operation.
#[derive(Debug)]
pub(crate) enum Outcome {
    Object {
        code: u16,
        entry: Arc<Entry>,
        kind: Arc<Kind>,
        warnings: Vec<String>,
    },
    /// An answer that is stored nowhere.
    Value {
        code: u16,
        value: Value,
        warnings: Vec<String>,
    },
    List {
        kind: Arc<Kind>,
        entries: Vec<Arc<Entry>>,
        revision: u64,
        next: Option<String>,
        left: usize,
    },
    Watch(Watch),
}

/// A watch that may begin.
#[derive(Debug)]
pub(crate) struct Watch {
    pub(crate) kind: Arc<Kind>,
    pub(crate) namespace: String,
    pub(crate) selector: Selector,
    pub(crate) from: Start,
    pub(crate) bookmarks: bool,
    pub(crate) seconds: Option<u64>,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Start {
    /// Everything that is there comes first; then, if asked for, a bookmark that says it has come.
    Now {
        marked: bool,
    },
    After(u64),
}

impl Server {
    pub(crate) fn new(store: Store, keys: Keys, policy: Policy, services: ipnet::Ipv4Net) -> Self {
        let server = Self { store, keys, policy, services, registry: RwLock::default() };
        server.learn();
        server
    }

    pub(crate) fn registry(&self) -> Arc<Registry> {
        self.registry.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Reads the definitions anew.
    pub(crate) fn learn(&self) {
        let mut registry = crate::builtin::registry();
        let definitions = self.store.list("apiextensions.k8s.io/customresourcedefinitions", None).0;
        for definition in definitions {
            definition::kinds(&definition.value).into_iter().for_each(|kind| registry.add(kind));
        }
        *self.registry.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(registry);
    }

    /// Who holds a token; nobody's is refused, none is anonymous.
    pub(crate) fn authenticate(&self, token: Option<&str>) -> Result<User, Refusal> {
        let Some(token) = token else { return Ok(User::anonymous()) };
        let reviewed = self.keys.review(token, &[ISSUER.to_owned()], &self.store);
        reviewed.map(|(user, _)| user).map_err(|why| {
            tracing::debug!(why, "a token was refused");
            Refusal::unauthorized()
        })
    }

    /// Whether a user may read a path that is no resource.
    pub(crate) fn admit_path(&self, user: &User, path: &str) -> Result<(), Refusal> {
        let wish = Wish { verb: "get".into(), path: path.to_owned(), ..Wish::default() };
        if access::may(&self.store, user, &wish) {
            return Ok(());
        }
        Err(Refusal::new(403, "Forbidden", format!("forbidden: {}", wish.refused(user))))
    }

    /// Whether a user may do this; asked before a body is read.
    pub(crate) fn admit(&self, user: &User, operation: &Operation) -> Result<(), Refusal> {
        self.permit(user, operation, operation.verb.word())
    }

    pub(crate) fn permit(
        &self,
        user: &User,
        operation: &Operation,
        verb: &str,
    ) -> Result<(), Refusal> {
        let Operation { kind, namespace, name, subresource, .. } = operation;
        let resource = match &**subresource {
            "" => kind.plural.clone(),
            sub => format!("{}/{sub}", kind.plural),
        };
        // A list of one name is a wish for that one.
        let named = operation.params.text("fieldSelector").split(',');
        let named = named.filter_map(|part| part.trim().strip_prefix("metadata.name="));
        let one = named.map(|name| name.trim_start_matches('=')).next().unwrap_or_default();
        let namespaces = kind.is("", "namespaces");
        let wish = Wish {
            verb: verb.to_owned(),
            group: kind.group.clone(),
            resource,
            namespace: if namespaces { name.clone() } else { namespace.clone() },
            name: if name.is_empty() { one.to_owned() } else { name.clone() },
            path: String::new(),
        };
        if access::may(&self.store, user, &wish) {
            return Ok(());
        }
        Err(Refusal::forbidden(kind, &wish.name, &wish.refused(user)))
    }

    /// Does it. Writing waits for the disk.
    pub(crate) fn perform(
        &self,
        user: &User,
        operation: Operation,
        now: jiff::Timestamp,
    ) -> Result<Outcome, Refusal> {
        if operation.kind.is_review() {
            return self.review(user, operation);
        }
        match operation.verb {
            Verb::Get => self.read(operation),
            Verb::List => self.list(operation),
            Verb::Watch => self.watch(operation),
            Verb::Create if operation.subresource == "token" => self.token(operation, now),
            Verb::Create
            | Verb::Update
            | Verb::Patch(_)
            | Verb::Delete
            | Verb::DeleteCollection => self.write(user, operation, now),
        }
    }

    fn read(&self, operation: Operation) -> Result<Outcome, Refusal> {
        let Operation { kind, namespace, name, .. } = operation;
        match self.store.get(&kind.resource, &(namespace, name.clone())) {
            Some(entry) => Ok(Outcome::Object { code: 200, entry, kind, warnings: vec![] }),
            None => Err(Refusal::not_found(&kind, &name)),
        }
    }

    pub(crate) fn select(operation: &Operation) -> Result<Selector, Refusal> {
        let params = &operation.params;
        Selector::parse(&operation.kind, params.text("labelSelector"), params.text("fieldSelector"))
    }

    fn list(&self, operation: Operation) -> Result<Outcome, Refusal> {
        let selector = Self::select(&operation)?;
        let Operation { kind, namespace, params, .. } = operation;
        let wanted = revision(params.text("resourceVersion"))?;
        let exact = params.text("resourceVersionMatch") == "Exact";
        if params.is("sendInitialEvents") {
            let why = "sendInitialEvents is forbidden for list";
            return Err(Refusal::new(422, "Invalid", why));
        }
        let page =
            params.number("limit")?.filter(|limit| *limit > 0).map(|limit| limit.min(PAGE_MAX));
        let (entries, mut revision) =
            self.store.list(&kind.resource, Some(&*namespace).filter(|n| !n.is_empty()));
        if wanted.is_some_and(|wanted| wanted > revision) {
            return Err(ahead(wanted.unwrap_or_default(), revision));
        }
        if let Some(wanted) = wanted.filter(|wanted| exact && *wanted != revision) {
            return Err(Refusal::expired(wanted, revision));
        }
        let mut entries: Vec<_> =
            entries.into_iter().filter(|entry| selector.fits(&entry.value)).collect();
        if !params.text("continue").is_empty() {
            let (first, after) = resume(params.text("continue"))?;
            // Later pages are of now; with the first one's revision a watch tells what they lack.
            self.store.since(first, 1).map_err(|too_old| Refusal::expired(first, too_old.0))?;
            revision = first;
            entries.retain(|entry| key(entry) > (&*after.0, &*after.1));
        }
        let (mut next, mut left) = (None, 0);
        if let Some(page) =
            page.and_then(|page| usize::try_from(page).ok()).filter(|p| entries.len() > *p)
        {
            left = entries.len() - page;
            entries.truncate(page);
            let (namespace, name) = key(&entries[page - 1]);
            let token = json!([revision, namespace, name]).to_string();
            next = Some(URL_SAFE_NO_PAD.encode(token));
        }
        Ok(Outcome::List { kind, entries, revision, next, left })
    }

    fn watch(&self, operation: Operation) -> Result<Outcome, Refusal> {
        let selector = Self::select(&operation)?;
        let Operation { kind, namespace, params, .. } = operation;
        let initial = params.is("sendInitialEvents");
        if initial && params.text("resourceVersionMatch") != "NotOlderThan" {
            let why = "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan";
            return Err(Refusal::new(422, "Invalid", why));
        }
        let bookmarks = params.is("allowWatchBookmarks");
        let wanted = revision(params.text("resourceVersion"))?;
        let own = self.store.revision();
        if wanted.is_some_and(|wanted| wanted > own) {
            return Err(ahead(wanted.unwrap_or_default(), own));
        }
        let from = match wanted {
            Some(wanted) if !initial => Start::After(wanted),
            _ => Start::Now { marked: initial && bookmarks },
        };
        let seconds = params.number("timeoutSeconds")?.filter(|seconds| *seconds > 0);
        Ok(Outcome::Watch(Watch { kind, namespace, selector, from, bookmarks, seconds }))
    }
}

/// Namespace and name.
fn key(entry: &Entry) -> (&str, &str) {
    let text = |field: &str| at(&entry.value, &["metadata", field]).and_then(Value::as_str);
    (text("namespace").unwrap_or_default(), text("name").unwrap_or_default())
}

/// `None` for "the newest" and for "any".
fn revision(text: &str) -> Result<Option<u64>, Refusal> {
    if text.is_empty() || text == "0" {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_| {
        let message = format!("resourceVersion: Invalid value: {text:?}: strconv.ParseUint: parsing {text:?}: invalid syntax");
        Refusal::bad_request(message)
    })
}

fn ahead(wanted: u64, own: u64) -> Refusal {
    let message = format!("Too large resource version: {wanted}, current: {own}");
    let mut refusal = Refusal::new(504, "Timeout", message);
    refusal.retry_after = Some(1);
    refusal
}

fn resume(token: &str) -> Result<(u64, (String, String)), Refusal> {
    let parsed = URL_SAFE_NO_PAD.decode(token).ok();
    let parsed =
        parsed.and_then(|bytes| serde_json::from_slice::<(u64, String, String)>(&bytes).ok());
    let Some((revision, namespace, name)) = parsed else {
        return Err(Refusal::bad_request("continue key is not valid"));
    };
    Ok((revision, (namespace, name)))
}

/// The object as clients of this version see it.
pub(crate) fn seen<'a>(kind: &Kind, value: &'a Object) -> std::borrow::Cow<'a, Object> {
    let version = kind.api_version();
    if value["apiVersion"] == version.as_str() {
        return std::borrow::Cow::Borrowed(value);
    }
    let mut converted = value.clone();
    converted["apiVersion"] = json!(version);
    std::borrow::Cow::Owned(converted)
}
