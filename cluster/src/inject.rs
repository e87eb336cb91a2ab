//! Injection: how a pod that asks for the mesh gets its sidecar, as one pure function.
//!
//! The webhook and `isthmus inject` call [`inject`] and nothing else, so both say the same. It reads a
//! pod as JSON and answers with a patch, so that what it does not know in a pod stays as it is. In
//! doubt it leaves a pod alone and says why: [`Why`] is what people read.

mod containers;
mod document;
mod policy;
mod probes;
mod proxy;
mod settings;
mod state;
mod traffic;

pub use document::{Documents, Done, Outcome, TEXT_MAX, documents};
pub use policy::NamespaceLabels;
pub use settings::{CONFIG_MAP, Settings, namespace_labels, read_settings};
pub use state::{SYSTEM_NAMESPACES, Sidecar, asks, sidecar};

use crate::api::label;
use crate::plain::plain;
use json_patch::Patch;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};
use std::fmt;

/// Longest pod that is read, bytes of its JSON; etcd takes objects of 1.5 MiB.
pub const POD_MAX: usize = 2 * 1024 * 1024;
/// Deepest nesting that is read; a pod has about 12.
pub const DEPTH_MAX: usize = 64;
/// Most containers of all sorts in one pod.
pub const CONTAINERS_MAX: usize = 256;
/// Longest configuration that a sidecar is given in its environment, bytes: the kernel takes strings
/// of 128 KiB (`MAX_ARG_STRLEN`).
pub const CONFIGURATION_MAX: usize = 100 * 1024;
/// Most warnings about one pod; an API server shows 4,096 characters of all webhooks together.
pub const WARNINGS_MAX: usize = 8;
/// Longest warning, characters: an API server cuts behind 256.
const WARNING_MAX: usize = 256;

/// The user that a sidecar runs as, and whose traffic is never captured (Istio's number).
pub const SIDECAR_USER: i64 = 1337;
/// Our containers; the sidecar's is [`crate::parse::pod::SIDECAR_CONTAINER`].
pub const INIT_CONTAINER: &str = "isthmus-init";
/// Annotation of what was injected: version and names, JSON.
pub const STATUS: &str = "isthmus.dev/injected";
/// The variable that holds the sidecar's configuration.
pub const CONFIGURATION: &str = "ISTHMUS_SIDECAR_CONFIG";

/// What becomes of one pod.
#[derive(Debug, Clone, PartialEq)]
pub enum Injection {
    /// It gets a sidecar; warnings tell what will not be as the pod's author meant.
    Inject {
        patch: Patch,
        warnings: Vec<String>,
    },
    Leave(Why),
}

impl Injection {
    /// What its author is to hear: each a sentence of at most 256 characters.
    pub fn warnings(&self) -> Vec<String> {
        match self {
            Self::Inject { warnings, .. } => warnings.clone(),
            Self::Leave(why) if why.is_expected() => Vec::new(),
            Self::Leave(why) => vec![short(&why.to_string())],
        }
    }
}

/// Why a pod is left as it is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Why {
    /// No label asks for it.
    NotAsked,
    /// This label says no.
    Refused {
        on: Labelled,
        label: String,
    },
    /// `istio.io/rev` asks another control plane.
    AnotherRevision {
        on: Labelled,
        revision: String,
    },
    AlreadyOurs,
    HostNetwork,
    /// Another injector's container or annotation.
    AnotherInjector(String),
    /// This container runs as the sidecar's own user, so its traffic could not be captured.
    SidecarUser(String),
    Windows,
    /// A kubelet's copy of a static pod, which starts without asking the API server.
    Mirror,
    /// A name that injection needs is taken.
    NameTaken(String),
    /// A limit of this module, by its name.
    TooLarge(&'static str),
    NotUnderstood(String),
}

/// Where a label stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Labelled {
    Pod,
    Namespace,
}

impl fmt::Display for Labelled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pod => "the pod",
            Self::Namespace => "its namespace",
        })
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAsked => f.write_str(
                "no label asks for a sidecar. Label the namespace istio-injection=enabled, or the \
                 pod sidecar.istio.io/inject=true",
            ),
            Self::Refused { on, label } => write!(f, "{on} has the label {label}"),
            Self::AnotherRevision { on, revision } => {
                write!(
                    f,
                    "{on} asks for the control plane of istio.io/rev={revision}, not for ours"
                )
            }
            Self::AlreadyOurs => f.write_str("it has our sidecar already"),
            Self::HostNetwork => f.write_str(
                "ISM2710 no sidecar: the pod is on its host's network, where capture would be the \
                 whole node's. Fix: remove hostNetwork, or label it sidecar.istio.io/inject=false",
            ),
            Self::AnotherInjector(what) => write!(
                f,
                "ISM2711 no sidecar: another mesh injects this pod too ({what}). \
                 Fix: label the namespace for one mesh only"
            ),
            Self::SidecarUser(what) => write!(
                f,
                "ISM2712 no sidecar: {what} runs as user {SIDECAR_USER}, the sidecar's own, whose \
                 traffic is never captured. Fix: give it another runAsUser"
            ),
            Self::Windows => f.write_str(
                "ISM2713 no sidecar: a pod on Windows cannot have one. \
                 Fix: label it sidecar.istio.io/inject=false",
            ),
            Self::Mirror => f.write_str(
                "ISM2714 no sidecar: a static pod runs as its node's file says. \
                 Fix: make it a Deployment or DaemonSet",
            ),
            Self::NameTaken(what) => write!(
                f,
                "ISM2715 no sidecar: the pod has {what} already, which injection would add. \
                 Fix: rename it"
            ),
            Self::TooLarge(limit) => write!(
                f,
                "ISM2716 no sidecar: the pod is beyond the limit of its {limit}. \
                 Fix: make it smaller"
            ),
            Self::NotUnderstood(problem) => write!(
                f,
                "ISM2717 no sidecar: the pod is not understood: {problem}. \
                 Fix: correct it, or report this line"
            ),
        }
    }
}

impl Why {
    /// Nobody is surprised: it was not asked for, or is there.
    pub fn is_expected(&self) -> bool {
        match self {
            Self::NotAsked
            | Self::Refused { .. }
            | Self::AnotherRevision { .. }
            | Self::AlreadyOurs => true,
            Self::HostNetwork
            | Self::AnotherInjector(_)
            | Self::SidecarUser(_)
            | Self::Windows
            | Self::Mirror
            | Self::NameTaken(_)
            | Self::TooLarge(_)
            | Self::NotUnderstood(_) => false,
        }
    }

    /// One word, for a metric.
    pub fn outcome(&self) -> &'static str {
        match self {
            Self::NotAsked => "not_asked",
            Self::Refused { .. } => "refused",
            Self::AnotherRevision { .. } => "another_revision",
            Self::AlreadyOurs => "already_injected",
            Self::HostNetwork => "host_network",
            Self::AnotherInjector(_) => "another_injector",
            Self::SidecarUser(_) => "sidecar_user",
            Self::Windows => "windows",
            Self::Mirror => "mirror",
            Self::NameTaken(_) => "name_taken",
            Self::TooLarge(_) => "too_large",
            Self::NotUnderstood(_) => "not_understood",
        }
    }
}

/// What a pod becomes. Nothing but these three decides, and the same three decide the same.
pub fn inject(pod: &Value, namespace: &NamespaceLabels, settings: &Settings) -> Injection {
    match attempt(pod, namespace, settings) {
        Ok((patch, warnings)) => Injection::Inject { patch, warnings: fitting(warnings) },
        Err(why) => Injection::Leave(why),
    }
}

/// `pod` with `patch`, which [`inject`] made for it.
pub fn apply(pod: &Value, patch: &Patch) -> Value {
    let mut patched = pod.clone();
    json_patch::patch(&mut patched, patch).expect("a patch fits the pod it was made for");
    patched
}

fn attempt(
    pod: &Value,
    namespace: &NamespaceLabels,
    settings: &Settings,
) -> Result<(Patch, Vec<String>), Why> {
    measured(pod)?;
    // What does not read as a Pod the API server refuses as well; what it may know and we do not
    // is ignored here, and stays since only the patch's paths are touched.
    let typed: Pod =
        serde_json::from_value(pod.clone()).map_err(|e| Why::NotUnderstood(e.to_string()))?;
    policy::wanted(&policy::labels(&typed), namespace)?;
    let spec = typed.spec.as_ref().ok_or_else(|| Why::NotUnderstood("it has no spec".into()))?;
    policy::possible(&typed, spec)?;
    let (probes, mut warnings) = probes::rewrite(pod, &typed);
    let (arguments, said) = traffic::arguments(&typed);
    warnings.extend(said);
    let (proxy, said) = proxy::proxy(&typed, settings);
    warnings.extend(said);
    warnings.extend(policy::doubts(&typed, spec, namespace));
    let configuration = containers::configuration(settings, &proxy, &probes.handed);
    if configuration.len() > CONFIGURATION_MAX {
        return Err(Why::TooLarge("sidecar's configuration (probes and root certificates)"));
    }
    let mut operations = Vec::new();
    add_to_map(&mut operations, pod, "labels", label::TLS_MODE, "istio");
    add_to_map(&mut operations, pod, "annotations", STATUS, &containers::status());
    // One after the other at the front: what else is to run before the application has the network.
    let ours = [
        containers::init(settings, &arguments),
        containers::sidecar(settings, &proxy, &configuration),
    ];
    operations.extend(probes.operations);
    add_to_list(&mut operations, pod, "/spec/initContainers", ours, Place::Front);
    add_to_list(&mut operations, pod, "/spec/volumes", containers::volumes(), Place::Back);
    let patch = serde_json::from_value(Value::Array(operations))
        .expect("each operation is one of RFC 6902 with a valid pointer");
    Ok((patch, warnings))
}

/// Refuses what is beyond a limit before anything is copied. Iterates: a stranger's nesting must not
/// become ours.
fn measured(pod: &Value) -> Result<(), Why> {
    let mut size = 0usize;
    let mut rest = vec![(pod, 1usize)];
    while let Some((value, depth)) = rest.pop() {
        if depth > DEPTH_MAX {
            return Err(Why::TooLarge("depth"));
        }
        size += match value {
            Value::Null | Value::Bool(_) | Value::Number(_) => 8,
            Value::String(text) => text.len() + 2,
            Value::Array(values) => {
                rest.extend(values.iter().map(|value| (value, depth + 1)));
                2 + values.len()
            }
            Value::Object(fields) => {
                rest.extend(fields.values().map(|value| (value, depth + 1)));
                2 + fields.keys().map(|key| key.len() + 4).sum::<usize>()
            }
        };
        if size > POD_MAX {
            return Err(Why::TooLarge("size"));
        }
    }
    let count = |list: &str| pod["spec"][list].as_array().map_or(0, Vec::len);
    let lists = ["containers", "initContainers", "ephemeralContainers"];
    if lists.into_iter().map(count).sum::<usize>() > CONTAINERS_MAX {
        return Err(Why::TooLarge("number of containers"));
    }
    Ok(())
}

#[derive(Clone, Copy)]
enum Place {
    Front,
    Back,
}

/// A key of `metadata.labels` or `metadata.annotations`, which may be absent or null.
fn add_to_map(operations: &mut Vec<Value>, pod: &Value, map: &str, key: &str, value: &str) {
    if !pod["metadata"].is_object() {
        // Two maps of ours; the second finds what the first made.
        if operations.is_empty() {
            operations.push(json!({"op": "add", "path": "/metadata", "value": {}}));
        }
    }
    let whole = format!("/metadata/{map}");
    operations.push(if pod["metadata"][map].is_object() {
        let key = key.replace('~', "~0").replace('/', "~1");
        json!({"op": "add", "path": format!("{whole}/{key}"), "value": value})
    } else {
        json!({"op": "add", "path": whole, "value": {key: value}})
    });
}

/// Members of a list that may be absent or null.
fn add_to_list(
    operations: &mut Vec<Value>,
    pod: &Value,
    path: &str,
    values: impl IntoIterator<Item = Value>,
    place: Place,
) {
    let values: Vec<Value> = values.into_iter().collect();
    if !pod.pointer(path).is_some_and(Value::is_array) {
        operations.push(json!({"op": "add", "path": path, "value": values}));
        return;
    }
    for (index, value) in values.into_iter().enumerate() {
        let at = match place {
            Place::Front => format!("{path}/{index}"),
            Place::Back => format!("{path}/-"),
        };
        operations.push(json!({"op": "add", "path": at, "value": value}));
    }
}

/// At most [`WARNINGS_MAX`], each no longer than the API server shows.
fn fitting(mut warnings: Vec<String>) -> Vec<String> {
    if warnings.len() > WARNINGS_MAX {
        let more = warnings.len() - (WARNINGS_MAX - 1);
        warnings.truncate(WARNINGS_MAX - 1);
        warnings.push(format!("{more} more warnings are not shown"));
    }
    warnings.iter().map(|warning| short(warning)).collect()
}

fn short(text: &str) -> String {
    plain(text, WARNING_MAX)
}

#[cfg(test)]
mod tests;
