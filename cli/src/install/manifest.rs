//! What is applied to a cluster: `deploy/base` with what differs between clusters filled in. Pure.

use anyhow::{Context as _, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use mesh::export::ROOT_NAMESPACE;
use mesh::inventory::VIP_RANGE;
use mesh::name::{ClusterId, Network, TrustDomain};
use serde_json::{Value, json};

/// What differs between clusters and installations.
#[derive(Debug, Clone, Copy)]
pub(super) struct Settings<'a> {
    pub(super) cluster: &'a ClusterId,
    pub(super) network: &'a Network,
    pub(super) trust_domain: &'a TrustDomain,
    /// The mesh's root certificates.
    pub(super) root_pem: &'a str,
    pub(super) registry: &'a str,
    pub(super) tag: &'a str,
}

/// Labels of all that is installed; `uninstall` finds it by the first.
pub(super) const PART_OF: (&str, &str) = ("app.kubernetes.io/part-of", "isthmus");
const MANAGED_BY: (&str, &str) = ("app.kubernetes.io/managed-by", cluster::operator::FIELD_MANAGER);

/// In the order in which they are applied.
const BASE: [&str; 8] = [
    include_str!("../../../deploy/crds/clusterlinks.isthmus.dev.yaml"),
    include_str!("../../../deploy/crds/exportedservices.isthmus.dev.yaml"),
    include_str!("../../../deploy/base/namespaces.yaml"),
    include_str!("../../../deploy/base/roles.yaml"),
    include_str!("../../../deploy/base/control-plane.yaml"),
    include_str!("../../../deploy/base/federation-controller.yaml"),
    include_str!("../../../deploy/base/gateway.yaml"),
    include_str!("../../../deploy/base/webhook.yaml"),
];

/// CustomResourceDefinitions of Istio, the Gateway API and the MCS API.
pub(super) fn prerequisites() -> Result<Vec<Value>> {
    let mut definitions = vec![];
    for text in cluster::api::foreign::DEFINITIONS {
        definitions.extend(documents(text)?);
    }
    for definition in &mut definitions {
        label(definition, PART_OF);
        label(definition, MANAGED_BY);
    }
    Ok(definitions)
}

/// Everything but what `prerequisites` and Secret `cacerts` are.
pub(super) fn objects(settings: &Settings<'_>) -> Result<Vec<Value>> {
    let mut objects = vec![];
    for text in BASE {
        objects.extend(documents(text)?);
    }
    let after = objects.iter().rposition(|it| it["kind"] == "Namespace");
    let place = after.context("deploy/base has no Namespace")? + 1;
    objects.insert(place, mesh_config(settings));
    for object in &mut objects {
        fill(object, settings);
    }
    Ok(objects)
}

/// Whether this is the namespace that Secret `cacerts` lies in.
pub(super) fn is_ca_namespace(object: &Value) -> bool {
    object["kind"] == "Namespace" && object["metadata"]["name"] == cluster::secret::NAMESPACE
}

/// How a cluster describes itself to its own programs and to linked clusters.
fn mesh_config(settings: &Settings<'_>) -> Value {
    json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "isthmus-mesh", "namespace": ROOT_NAMESPACE},
        "data": {
            "cluster": settings.cluster.as_str(), "network": settings.network.as_str(),
            "trustDomain": settings.trust_domain.as_str(), "vipRange": VIP_RANGE.to_string(),
            "rootCertificates": settings.root_pem,
        },
    })
}

fn fill(object: &mut Value, settings: &Settings<'_>) {
    label(object, PART_OF);
    label(object, MANAGED_BY);
    let network = ("topology.istio.io/network", settings.network.as_str());
    match object["kind"].as_str().unwrap_or_default() {
        "Namespace" if object["metadata"]["name"] == ROOT_NAMESPACE => label(object, network),
        "Service" if object["metadata"]["labels"]["istio"] == "eastwestgateway" => {
            label(object, network);
        }
        "Deployment" => {
            let template = &mut object["spec"]["template"];
            label(template, network);
            for list in ["containers", "initContainers"] {
                for container in template["spec"][list].as_array_mut().into_iter().flatten() {
                    container["image"] = json!(image(container["image"].as_str(), settings));
                }
            }
        }
        "ConfigMap" if object["metadata"]["name"] == "isthmus-injection" => {
            object["data"]["image"] = json!(image(object["data"]["image"].as_str(), settings));
        }
        "MutatingWebhookConfiguration" => {
            for hook in object["webhooks"].as_array_mut().into_iter().flatten() {
                hook["clientConfig"]["caBundle"] = json!(STANDARD.encode(settings.root_pem));
            }
        }
        _ => {}
    }
}

/// `isthmus/NAME` of the base, from the registry and with the tag that was asked for.
fn image(base: Option<&str>, settings: &Settings<'_>) -> String {
    let name = base.unwrap_or_default().rsplit('/').next().unwrap_or_default();
    format!("{}/{name}:{}", settings.registry.trim_end_matches('/'), settings.tag)
}

fn label(object: &mut Value, (key, value): (&str, &str)) {
    object["metadata"]["labels"][key] = json!(value);
}

fn documents(text: &str) -> Result<Vec<Value>> {
    fleet::objects::parse(text).context("a manifest of this program")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn whole() -> Vec<Value> {
        let settings = Settings {
            cluster: &"west".parse().unwrap(),
            network: &"west-net".parse().unwrap(),
            trust_domain: &"west.mesh".parse().unwrap(),
            root_pem: "-----BEGIN CERTIFICATE-----\n",
            registry: "registry.example/isthmus/",
            tag: "1.2.3",
        };
        objects(&settings).unwrap()
    }

    fn find<'a>(objects: &'a [Value], kind: &str, name: &str) -> &'a Value {
        let found = objects.iter().find(|it| it["kind"] == kind && it["metadata"]["name"] == name);
        found.unwrap_or_else(|| panic!("no {kind} {name}"))
    }

    #[test]
    fn what_differs_between_clusters_is_filled_in() {
        let objects = whole();
        let mesh = find(&objects, "ConfigMap", "isthmus-mesh");
        assert_eq!(mesh["data"]["network"], "west-net");
        let gateway = find(&objects, "Deployment", "isthmus-eastwestgateway");
        let container = &gateway["spec"]["template"]["spec"]["containers"][0];
        assert_eq!(container["image"], "registry.example/isthmus/gateway:1.2.3");
        let service = find(&objects, "Service", "isthmus-eastwestgateway");
        assert_eq!(service["metadata"]["labels"]["topology.istio.io/network"], "west-net");
        for object in &objects {
            assert_eq!(object["metadata"]["labels"][PART_OF.0], PART_OF.1, "{object}");
        }
    }

    #[test]
    fn each_stands_after_what_it_needs_and_once() {
        let objects = whole();
        let mut namespaces = BTreeSet::new();
        let mut seen = BTreeSet::new();
        for object in &objects {
            let name = object["metadata"]["name"].as_str().unwrap();
            if object["kind"] == "Namespace" {
                namespaces.insert(name.to_owned());
            }
            let namespace = object["metadata"]["namespace"].as_str().unwrap_or_default();
            assert!(namespace.is_empty() || namespaces.contains(namespace), "{object}");
            assert!(seen.insert((object["kind"].to_string(), namespace, name)), "twice: {object}");
        }
        assert!(objects.iter().any(is_ca_namespace));
        assert!(prerequisites().unwrap().iter().all(|it| it["kind"] == "CustomResourceDefinition"));
    }

    /// What the restricted Pod Security Standard and the threat model ask of every container.
    #[test]
    fn every_pod_is_restricted_and_bounded() {
        let objects = whole();
        let pods: Vec<_> = objects.iter().filter(|it| it["kind"] == "Deployment").collect();
        assert!(pods.len() >= super::super::DEPLOYMENTS.len());
        for deployment in pods {
            let pod = &deployment["spec"]["template"]["spec"];
            assert_eq!(pod["securityContext"]["runAsNonRoot"], true, "{deployment}");
            assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
            for container in pod["containers"].as_array().unwrap() {
                let security = &container["securityContext"];
                assert_eq!(security["readOnlyRootFilesystem"], true);
                assert_eq!(security["allowPrivilegeEscalation"], false);
                assert_eq!(security["capabilities"], json!({"drop": ["ALL"]}));
                assert!(container["readinessProbe"].is_object());
                assert!(container["resources"]["requests"]["memory"].is_string());
            }
        }
    }

    /// `kubectl apply -k deploy/base` must bring what `isthmus install` brings.
    #[test]
    fn kustomize_lists_the_same_files() {
        let listed = |text: &str| -> Vec<String> {
            let list: Value = serde_saphyr::from_str(text).unwrap();
            let resources = list["resources"].as_array().unwrap();
            resources.iter().map(|it| it.as_str().unwrap().to_owned()).collect()
        };
        let base = listed(include_str!("../../../deploy/base/kustomization.yaml"));
        let crds = listed(include_str!("../../../deploy/crds/kustomization.yaml"));
        let files = [&crds[..], &base[1..]].concat();
        assert_eq!(base[0], "../crds");
        assert_eq!(files.len(), BASE.len());
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy");
        for (file, text) in files.iter().zip(BASE) {
            let folder = if crds.contains(file) { "crds" } else { "base" };
            assert_eq!(std::fs::read_to_string(root.join(folder).join(file)).unwrap(), text);
        }
    }
}
