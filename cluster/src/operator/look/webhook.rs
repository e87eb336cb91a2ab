//! The webhook that injects sidecars: whom the API server believes it to be, whether it answers, and who
//! else injects.

use super::{Operator, absent};
use crate::inject::{NamespaceLabels, Sidecar, asks, sidecar};
use k8s_openapi::api::admissionregistration::v1::{MutatingWebhook, MutatingWebhookConfiguration};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::api::{Api, ListParams, PostParams};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Our configuration's name (`deploy/base/webhook.yaml`).
pub const CONFIGURATION: &str = "sidecar-injector.isthmus.dev";
/// How our webhooks' names end.
const OURS: &str = ".inject.isthmus.dev";
/// How the names of Istio's injecting webhooks end.
const ISTIO: &str = "sidecar-injector.istio.io";
/// Most configurations that one look reads.
const CONFIGURATIONS_MAX: u32 = 500;

/// Longest wait for the dry run.
pub const TRY_MAX: Duration = Duration::from_secs(2);

/// Our webhook, as its cluster is told of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Webhook {
    /// What the API server trusts it by, each once: PEM, as written.
    pub bundles: BTreeSet<String>,
    pub tried: Tried,
    /// Other injectors (`CONFIGURATION: WEBHOOK`) that want the same namespaces, with these.
    pub rivals: BTreeMap<String, BTreeSet<String>>,
}

/// What became of a pod that was asked for by a dry run, of which nothing stays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tried {
    /// No namespace asks for sidecars, or this user may make no pods, or something else refused it.
    Not,
    Injected,
    /// It would have been made without a sidecar, in this namespace.
    PassedOver(String),
    /// The API server could not call the webhook, and its own words why.
    Failed(String),
    /// No answer within [`TRY_MAX`].
    Late,
}

impl Operator {
    /// `None` where our webhook is not installed.
    pub(super) async fn webhook(&self) -> anyhow::Result<Option<Webhook>> {
        let list = Api::<MutatingWebhookConfiguration>::all(self.client.clone());
        let list = list.list(&ListParams::default().limit(CONFIGURATIONS_MAX)).await;
        let list = self.asked("listing MutatingWebhookConfigurations", absent(list))?;
        let all = list.map_or_else(Vec::new, |list| list.items);
        let is_ours =
            |it: &&MutatingWebhookConfiguration| it.metadata.name.as_deref() == Some(CONFIGURATION);
        let Some(ours) = all.iter().find(is_ours) else { return Ok(None) };
        let bundle = |hook: &MutatingWebhook| {
            let bundle = hook.client_config.ca_bundle.as_ref().map(|it| it.0.as_slice());
            String::from_utf8_lossy(bundle.unwrap_or_default()).into_owned()
        };
        let bundles = ours.webhooks.iter().flatten().map(bundle).collect();
        let (mut namespaces, _) = self.namespaces().await?;
        namespaces.retain(|name, labels| asks(name, labels));
        let rivals = rivals(&all, &namespaces);
        let tried = match namespaces.iter().next() {
            Some((name, labels)) => self.dry_run(name, labels).await,
            None => Tried::Not,
        };
        Ok(Some(Webhook { bundles, tried, rivals }))
    }

    /// Asks for a pod that is never made.
    async fn dry_run(&self, namespace: &str, labels: &NamespaceLabels) -> Tried {
        let pod = json!({
            "metadata": {"generateName": "isthmus-check-"},
            "spec": {"containers": [{"name": "app", "image": "isthmus.invalid/check"}]},
        });
        let pod: Pod = serde_json::from_value(pod).expect("a literal pod reads as one");
        let params = PostParams { dry_run: true, ..PostParams::default() };
        let pods = Api::<Pod>::namespaced(self.client.clone(), namespace);
        let Ok(answer) = tokio::time::timeout(TRY_MAX, pods.create(&params, &pod)).await else {
            return Tried::Late;
        };
        match answer {
            Ok(made) if sidecar(&made, labels) == Sidecar::Missed => {
                Tried::PassedOver(namespace.to_owned())
            }
            Ok(_) => Tried::Injected,
            Err(kube::Error::Api(status)) => {
                failed(&status.message).map_or(Tried::Not, Tried::Failed)
            }
            Err(_) => Tried::Not,
        }
    }
}

/// Why our webhook could not be called, of an API server's sentence.
fn failed(said: &str) -> Option<String> {
    let (_, rest) = said.split_once("failed calling webhook ")?;
    let (name, why) = rest.trim_start_matches(['\\', '"']).split_once(['\\', '"'])?;
    let why = why.trim_start_matches(['\\', '"', ':', ' ']);
    let why =
        why.rsplit("timeout=").next().and_then(|it| it.split_once(": ")).map_or(why, |it| it.1);
    name.ends_with(OURS).then(|| why.to_owned())
}

/// Injectors of Istio's that select namespaces which ask for ours.
fn rivals(
    all: &[MutatingWebhookConfiguration],
    asking: &BTreeMap<String, NamespaceLabels>,
) -> BTreeMap<String, BTreeSet<String>> {
    let mut rivals: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for configuration in all {
        let name = configuration.metadata.name.as_deref().unwrap_or_default();
        let hooks = configuration.webhooks.iter().flatten();
        for hook in hooks.filter(|hook| hook.name.ends_with(ISTIO)) {
            let selected = asking.iter().filter(|(_, labels)| {
                hook.namespace_selector.as_ref().is_none_or(|selector| selects(selector, labels))
            });
            let selected: BTreeSet<String> = selected.map(|(name, _)| name.clone()).collect();
            if !selected.is_empty() {
                rivals.entry(name.to_owned()).or_default().extend(selected);
            }
        }
    }
    rivals
}

/// `labels.Selector` of apimachinery: every requirement holds; an operator that is unknown does not.
fn selects(selector: &LabelSelector, labels: &NamespaceLabels) -> bool {
    let equal = selector.match_labels.iter().flatten();
    let expressions = selector.match_expressions.iter().flatten();
    equal.into_iter().all(|(key, value)| labels.get(key) == Some(value))
        && expressions.into_iter().all(|it| {
            let value = labels.get(&it.key);
            let among = value.is_some_and(|value| it.values.iter().flatten().any(|v| v == value));
            match it.operator.as_str() {
                "In" => among,
                "NotIn" => !among,
                "Exists" => value.is_some(),
                "DoesNotExist" => value.is_none(),
                _ => false,
            }
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parse::check::object;

    #[test]
    fn an_api_server_says_why_it_could_not_call_us() {
        let said = "Internal error occurred: failed calling webhook \
                    \"namespace.inject.isthmus.dev\": failed to call webhook: Post \
                    \"https://isthmus-control-plane.isthmus-system.svc:15017/inject?timeout=10s\": tls: \
                    failed to verify certificate: x509: certificate signed by unknown authority";
        assert_eq!(
            failed(said).unwrap(),
            "tls: failed to verify certificate: x509: certificate signed by unknown authority"
        );
        assert_eq!(failed(&said.replace("isthmus.dev", "istio.io")), None);
        assert_eq!(failed("pods is forbidden"), None);
    }

    #[test]
    fn a_rival_is_one_that_selects_our_namespaces() {
        let labels = |text: &str| {
            let (key, value) = text.split_once('=').unwrap();
            NamespaceLabels::from([(key.to_owned(), value.to_owned())])
        };
        let rival = object(
            "{metadata: {name: istio-sidecar-injector}, webhooks: [{name: \
             namespace.sidecar-injector.istio.io, admissionReviewVersions: [v1], sideEffects: None, \
             clientConfig: {}, namespaceSelector: {matchExpressions: [{key: istio-injection, operator: \
             In, values: [enabled]}]}}]}",
        );
        let asking = [
            ("shop".to_owned(), labels("istio-injection=enabled")),
            ("ours".to_owned(), labels("isthmus.dev/inject=enabled")),
        ];
        let found = rivals(&[rival], &asking.into());
        let expected = BTreeSet::from(["shop".to_owned()]);
        assert_eq!(found, BTreeMap::from([("istio-sidecar-injector".into(), expected)]));
    }
}
