//! `admission.k8s.io/v1` AdmissionReview: the question of an API server, and its answer.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cluster::inject::{Injection, NamespaceLabels, Settings, inject};
use serde::Deserialize;
use serde_json::{Value, json};
use std::sync::Arc;

/// Longest UID that is answered to; Kubernetes' have 36 characters.
const UID_MAX: usize = 128;

/// What of the question counts.
#[derive(Debug)]
pub(super) struct Review {
    uid: String,
    pub(super) namespace: String,
    /// The pod, or whatever else we are asked about.
    object: Value,
    is_pod: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Wire {
    api_version: String,
    kind: String,
    request: Question,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Question {
    uid: String,
    #[serde(default)]
    kind: Kind,
    #[serde(default)]
    sub_resource: String,
    #[serde(default)]
    operation: String,
    #[serde(default)]
    namespace: String,
    #[serde(default)]
    object: Value,
}

#[derive(Deserialize, Default)]
struct Kind {
    #[serde(default)]
    group: String,
    #[serde(default)]
    kind: String,
}

impl Review {
    pub(super) fn read(body: &[u8]) -> Result<Self, String> {
        let wire: Wire = serde_json::from_slice(body).map_err(|error| {
            format!("this is no AdmissionReview of admission.k8s.io/v1: {error}\n")
        })?;
        if wire.api_version != "admission.k8s.io/v1" || wire.kind != "AdmissionReview" {
            return Err("this is no AdmissionReview of admission.k8s.io/v1\n".into());
        }
        let Question { uid, kind, sub_resource, operation, namespace, object } = wire.request;
        if uid.is_empty() || uid.len() > UID_MAX {
            return Err("the review's uid is empty or too long\n".into());
        }
        // Containers are fixed once a pod exists.
        let is_pod = kind.group.is_empty()
            && kind.kind == "Pod"
            && sub_resource.is_empty()
            && operation == "CREATE";
        Ok(Self { uid, namespace, object, is_pod })
    }

    /// The answer, and in a word what it is. A pod is never refused.
    pub(super) async fn decide(
        self,
        labels: NamespaceLabels,
        settings: Arc<Settings>,
    ) -> (String, &'static str) {
        let Self { uid, namespace, object, is_pod } = self;
        if !is_pod {
            let warning = "ISM4021 the webhook was asked about something else than a new pod, and left it \
                           as it is. Fix: apply deploy/base/webhook.yaml";
            return (allowed(&uid, None, vec![warning.into()]), "no_pod");
        }
        // On a thread of its own: a large pod must not hold up proxies, and a panic ends here.
        let deciding = tokio::task::spawn_blocking(move || {
            let name = ["name", "generateName"].map(|field| object["metadata"][field].clone());
            let name = name.iter().find_map(Value::as_str).unwrap_or_default().to_owned();
            (inject(&object, &labels, &settings), name)
        });
        let Ok((injection, pod)) = deciding.await else {
            let warning = "ISM4022 no sidecar: injection failed by a defect of ours. \
                           Fix: report this with the pod's manifest";
            tracing::error!(namespace, "injection panicked");
            return (allowed(&uid, None, vec![warning.into()]), "defect");
        };
        let warnings = injection.warnings();
        match &injection {
            Injection::Inject { patch, .. } => {
                tracing::info!(namespace, pod, ?warnings, "a pod gets its sidecar");
                let patch = serde_json::to_vec(patch).expect("a patch is plain data");
                (allowed(&uid, Some(patch), warnings), "injected")
            }
            Injection::Leave(why) => {
                tracing::info!(namespace, pod, %why, "a pod is left as it is");
                (allowed(&uid, None, warnings), why.outcome())
            }
        }
    }
}

fn allowed(uid: &str, patch: Option<Vec<u8>>, warnings: Vec<String>) -> String {
    let mut response = json!({"uid": uid, "allowed": true});
    if let Some(patch) = patch {
        response["patchType"] = "JSONPatch".into();
        response["patch"] = STANDARD.encode(patch).into();
    }
    if !warnings.is_empty() {
        response["warnings"] = warnings.into();
    }
    let review = json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response,
    });
    review.to_string()
}
