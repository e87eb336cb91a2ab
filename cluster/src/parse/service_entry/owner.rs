//! Whose entry it is, and which hosts its owner may name.

use super::super::{Notes, is_published};
use super::labelled_service;
use kube::api::ObjectMeta;
use mesh::export::ROOT_NAMESPACE;
use mesh::name::{ClusterId, Hostname, ServiceName};

/// Who wrote an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Owner {
    User,
    /// Our federation controller, for this service.
    Publisher(ServiceName),
}

/// Code, problem and fix.
type Refusal = (u16, String, &'static str);

impl Owner {
    /// Ours, where label, field manager, service labels and namespace all fit. What claims to be ours
    /// and does not fit is a user's, and so may not name `.global` hosts.
    pub(super) fn of(meta: &ObjectMeta, root_namespace: &str, notes: &mut Notes) -> Self {
        if !is_published(meta) {
            return Self::User;
        }
        let fits = |service: &ServiceName| {
            let namespace = &notes.object.namespace;
            *namespace == service.namespace || namespace == root_namespace
        };
        match labelled_service(meta).filter(fits) {
            Some(service) => Self::Publisher(service),
            None => {
                notes.refuse(
                    3301,
                    "metadata.labels",
                    "it claims to be published by Isthmus, but its labels name no service of its \
                     namespace; it is read as a user's.",
                    "delete it; the federation controller writes its own again.",
                );
                Self::User
            }
        }
    }

    pub(super) fn service(&self) -> Option<&ServiceName> {
        match self {
            Self::User => None,
            Self::Publisher(service) => Some(service),
        }
    }

    /// Why this owner's object, in `namespace`, may not name `host`.
    pub(super) fn refuses(&self, host: &Hostname, namespace: &str) -> Option<Refusal> {
        match self {
            Self::User => reserved(host).or_else(|| foreign(host, namespace)),
            Self::Publisher(service) => (!stands_for(service, host)).then(|| {
                let problem = format!("{host} is no name of {service}; it is left out.");
                (3301, problem, "delete the entry; the federation controller writes its own again.")
            }),
        }
    }
}

/// The names of a service: of all exporters, or of one cluster's.
fn stands_for(service: &ServiceName, host: &Hostname) -> bool {
    let of_cluster = || {
        let rest =
            host.as_str().strip_prefix(&format!("{}.{}.", service.name, service.namespace))?;
        rest.strip_suffix(".global")?.parse::<ClusterId>().ok()
    };
    *host == service.global_host() || *host == service.clusterset_host() || of_cluster().is_some()
}

/// Hosts that are nobody's to name in a ServiceEntry.
fn reserved(host: &Hostname) -> Option<Refusal> {
    let text = host.as_str();
    let below = |suffix: &str| text == suffix || text.ends_with(&format!(".{suffix}"));
    let kubernetes =
        ["kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"];
    let why = if below("global") || below("clusterset.local") {
        "names of the mesh are written by the federation controller only"
    } else if below("isthmus.internal") {
        "it is a name of the mesh's own gateways"
    } else if kubernetes.contains(&text) {
        "it is the cluster's own API server"
    } else if [".svc", ".svc.cluster.local"]
        .iter()
        .any(|end| below(&format!("{ROOT_NAMESPACE}{end}")))
    {
        "the mesh's own namespace is reserved"
    } else {
        return None;
    };
    Some((
        3302,
        format!("{host} is reserved, {why}; it is left out."),
        "name another host; to offer a service to other clusters write a ServiceExport.",
    ))
}

/// Hosts of another namespace's Services.
fn foreign(host: &Hostname, namespace: &str) -> Option<Refusal> {
    let text = host.as_str();
    let inner = text.strip_suffix(".svc.cluster.local").or_else(|| text.strip_suffix(".svc"));
    let owner = match inner {
        Some(inner) => inner.rsplit_once('.').map(|(_, owner)| owner).unwrap_or_default(),
        // The rest of the cluster's own zone has no owner we know.
        None if text == "cluster.local" || text.ends_with(".cluster.local") => "",
        None => return None,
    };
    (owner != namespace).then(|| {
        let problem = format!("{host} is not a name of namespace {namespace}; it is left out.");
        (3303, problem, "write the entry in the namespace its host belongs to.")
    })
}
