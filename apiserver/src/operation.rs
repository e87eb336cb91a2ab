//! From a request's line and headers to what is asked.

use crate::kind::{Kind, Registry};
use crate::refusal::{Cause, Refusal};
use http::{HeaderMap, Method, header};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What a request asks for.
#[derive(Debug)]
pub(crate) enum Ask {
    /// `/readyz` and the like.
    Health,
    Version,
    /// `/api`, `/apis` and below, by path.
    Discovery(String),
    OpenApi(String),
    Operation(Operation),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verb {
    Get,
    List,
    Watch,
    Create,
    Update,
    Patch(PatchKind),
    Delete,
    DeleteCollection,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PatchKind {
    Apply,
    Merge,
    Json,
    Strategic,
}

impl Verb {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::List => "list",
            Self::Watch => "watch",
            Self::Create => "create",
            Self::Update => "update",
            Self::Patch(_) => "patch",
            Self::Delete => "delete",
            Self::DeleteCollection => "deletecollection",
        }
    }

    pub(crate) fn writes(self) -> bool {
        !matches!(self, Self::Get | Self::List | Self::Watch)
    }
}

/// One operation on one resource.
#[derive(Debug)]
pub(crate) struct Operation {
    pub(crate) verb: Verb,
    pub(crate) kind: Arc<Kind>,
    /// Empty: all, or cluster scope.
    pub(crate) namespace: String,
    pub(crate) name: String,
    /// `status`, `token`, or empty.
    pub(crate) subresource: String,
    pub(crate) params: Params,
    /// Null until it is read.
    pub(crate) body: Value,
    /// First word of the User-Agent: the manager of who names none.
    pub(crate) agent: String,
}

/// The query.
#[derive(Debug, Default)]
pub(crate) struct Params {
    all: BTreeMap<String, String>,
}

impl Params {
    pub(crate) fn parse(query: &str) -> Self {
        let pairs = form_urlencoded::parse(query.as_bytes());
        Self { all: pairs.map(|(k, v)| (k.into_owned(), v.into_owned())).collect() }
    }

    pub(crate) fn text(&self, name: &str) -> &str {
        self.all.get(name).map(String::as_str).unwrap_or_default()
    }

    /// `true`, `1` or a bare name.
    pub(crate) fn is(&self, name: &str) -> bool {
        self.all.get(name).is_some_and(|text| matches!(&**text, "" | "true" | "1" | "True" | "t"))
    }

    pub(crate) fn number(&self, name: &str) -> Result<Option<u64>, Refusal> {
        match self.text(name) {
            "" => Ok(None),
            text => text.parse().map(Some).map_err(|_| {
                Refusal::bad_request(format!(
                    "unable to convert query parameter {name}: {text:?} is no number"
                ))
            }),
        }
    }

    /// `All`: decide, but keep nothing.
    pub(crate) fn dry_run(&self) -> Result<bool, Refusal> {
        match self.text("dryRun") {
            "" => Ok(false),
            "All" => Ok(true),
            other => {
                let cause = Cause::unsupported("dryRun", &json!([other]), &["All"]);
                let said = format!("{}: {}", cause.field, cause.message);
                let message = format!("CreateOptions.meta.k8s.io \"\" is invalid: {said}");
                let mut refusal = Refusal::new(422, "Invalid", message);
                refusal.causes = vec![cause];
                Err(refusal)
            }
        }
    }
}

/// What is asked, or why nobody here answers that.
pub(crate) fn parse(
    method: &Method,
    path: &str,
    query: &str,
    headers: &HeaderMap,
    registry: &Registry,
) -> Result<Ask, Refusal> {
    let trimmed = path.trim_end_matches('/');
    match trimmed {
        "/readyz" | "/livez" | "/healthz" => return read_only(method, Ask::Health),
        "/version" => return read_only(method, Ask::Version),
        _ => {}
    }
    if trimmed.starts_with("/openapi") {
        return read_only(method, Ask::OpenApi(trimmed.to_owned()));
    }
    let parts: Vec<String> = trimmed
        .split('/')
        .skip(1)
        .map(|part| percent_encoding::percent_decode_str(part).decode_utf8_lossy().into_owned())
        .collect();
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    let (group, version, rest) = match &parts[..] {
        ["api", version, rest @ ..] if !rest.is_empty() => ("", *version, rest),
        ["apis", group, version, rest @ ..] if !rest.is_empty() => (*group, *version, rest),
        ["api" | "apis", ..] => return read_only(method, Ask::Discovery(trimmed.to_owned())),
        _ => return Err(no_page()),
    };
    let absent = || if crate::builtin::owns(group) { no_resource() } else { no_page() };
    let found = |plural: &str| registry.find(group, version, plural).cloned().ok_or_else(absent);
    let (kind, namespace, rest) = match rest {
        // The namespaces themselves.
        ["namespaces"] | ["namespaces", _] | ["namespaces", _, "status" | "finalize"] => {
            (found("namespaces")?, "", &rest[1..])
        }
        ["namespaces", namespace, plural, rest @ ..] => (found(plural)?, *namespace, rest),
        [plural, rest @ ..] => (found(plural)?, "", rest),
        [] => return Err(no_page()),
    };
    let (name, subresource) = match rest {
        [] => ("", ""),
        [name] => (*name, ""),
        [name, subresource] => (*name, *subresource),
        _ => return Err(no_page()),
    };
    // Objects of namespaces are written in theirs, and those of the cluster in none.
    let placed = kind.namespaced != namespace.is_empty();
    let crosses = kind.namespaced && name.is_empty() && !kind.is_review();
    let reads = ![Method::POST, Method::DELETE].contains(method);
    if !(placed || crosses && reads) {
        return Err(if crosses { Refusal::method_not_allowed() } else { absent() });
    }
    served(&kind, subresource)?;
    let params = Params::parse(query);
    let verb = verb(method, &kind, name, subresource, &params, headers)?;
    let agent = headers.get(header::USER_AGENT).and_then(|text| text.to_str().ok());
    let agent = agent.unwrap_or_default().split('/').next().unwrap_or_default();
    let agent =
        if agent.is_empty() { "unknown".to_owned() } else { agent.chars().take(128).collect() };
    Ok(Ask::Operation(Operation {
        verb,
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        subresource: subresource.to_owned(),
        kind,
        params,
        body: Value::Null,
        agent,
    }))
}

fn no_page() -> Refusal {
    Refusal::new(404, "NotFound", "404 page not found")
}

/// Nothing here, in a group that is.
fn no_resource() -> Refusal {
    Refusal::new(404, "NotFound", "the server could not find the requested resource")
}

fn read_only(method: &Method, ask: Ask) -> Result<Ask, Refusal> {
    if [Method::GET, Method::HEAD].contains(method) {
        Ok(ask)
    } else {
        Err(Refusal::method_not_allowed())
    }
}

/// Refuses a subresource that is not there.
fn served(kind: &Kind, subresource: &str) -> Result<(), Refusal> {
    let known = match subresource {
        "" => true,
        "status" => kind.status,
        "token" => kind.is("", "serviceaccounts"),
        _ => false,
    };
    if known {
        return Ok(());
    }
    let elsewhere: &[&str] = match (&*kind.group, &*kind.plural) {
        ("", "pods") => &[
            "attach",
            "binding",
            "ephemeralcontainers",
            "eviction",
            "exec",
            "log",
            "portforward",
            "proxy",
            "resize",
        ],
        ("", "services" | "nodes") => &["proxy"],
        ("", "namespaces") => &["finalize"],
        _ => &["scale"],
    };
    if elsewhere.contains(&subresource) {
        let what = format!("{}/{subresource}", kind.qualified());
        return Err(Refusal::not_implemented(&what, "use a real cluster; nothing runs pods here"));
    }
    Err(no_resource())
}

fn verb(
    method: &Method,
    kind: &Kind,
    name: &str,
    subresource: &str,
    params: &Params,
    headers: &HeaderMap,
) -> Result<Verb, Refusal> {
    let verb = match *method {
        Method::GET | Method::HEAD if name.is_empty() && params.is("watch") => Verb::Watch,
        Method::GET | Method::HEAD if name.is_empty() => Verb::List,
        Method::GET | Method::HEAD => Verb::Get,
        Method::POST if name.is_empty() || subresource == "token" => Verb::Create,
        Method::PUT if !name.is_empty() => Verb::Update,
        Method::PATCH if !name.is_empty() => Verb::Patch(patch_kind(kind, headers)?),
        Method::DELETE if name.is_empty() => Verb::DeleteCollection,
        Method::DELETE if subresource.is_empty() => Verb::Delete,
        _ => return Err(Refusal::method_not_allowed()),
    };
    let token = subresource == "token" && verb != Verb::Create;
    if token || !kind.verbs().contains(&verb.word()) {
        return Err(Refusal::method_not_allowed());
    }
    Ok(verb)
}

fn media(headers: &HeaderMap) -> String {
    let given = headers.get(header::CONTENT_TYPE).and_then(|text| text.to_str().ok());
    given.unwrap_or_default().split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

fn patch_kind(kind: &Kind, headers: &HeaderMap) -> Result<PatchKind, Refusal> {
    let given = media(headers);
    match &*given {
        "application/apply-patch+yaml" => Ok(PatchKind::Apply),
        "application/merge-patch+json" => Ok(PatchKind::Merge),
        "application/json-patch+json" => Ok(PatchKind::Json),
        "application/strategic-merge-patch+json" if !kind.is_custom() => Ok(PatchKind::Strategic),
        _ => {
            let hint = "accepted media types include: application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml";
            Err(Refusal::media_type(&given, hint))
        }
    }
}

/// The body as a value.
pub(crate) fn body(verb: Verb, headers: &HeaderMap, bytes: &[u8]) -> Result<Value, Refusal> {
    if bytes.is_empty() && matches!(verb, Verb::Delete | Verb::DeleteCollection) {
        return Ok(Value::Null);
    }
    let given = media(headers);
    let yaml = match (&*given, verb) {
        ("application/apply-patch+yaml" | "application/yaml", _) => true,
        (_, Verb::Patch(_)) | ("application/json" | "", _) => false,
        _ => {
            let hint = "Fix: send application/json or application/yaml, as `kubectl apply` and `kubectl create -f` do; protobuf and CBOR are not read here";
            return Err(Refusal::media_type(&given, hint));
        }
    };
    let text = std::str::from_utf8(bytes)
        .map_err(|error| Refusal::bad_request(format!("the body is not UTF-8: {error}")))?;
    // What kube-rs sends as apply is JSON.
    let parsed = match serde_json::from_str(text) {
        Ok(value) => Ok(value),
        Err(_) if yaml => {
            serde_saphyr::from_str(text).map_err(|error| runtime::yaml::problem(&error))
        }
        Err(error) => Err(error.to_string()),
    };
    parsed.map_err(|error| {
        Refusal::bad_request(format!("the body of the request cannot be decoded: {error}"))
    })
}
